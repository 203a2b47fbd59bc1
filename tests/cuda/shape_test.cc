// The kernels that move elements, against loops written out.
#include <cstring>
#include <random>

#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

struct Dim {
  int64_t size, out, in;
};

template <typename T>
std::vector<T> Numbers(int64_t n, uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::vector<T> x(n);
  for (T& v : x) v = static_cast<T>(random());
  return x;
}

// Copies, from in + in_offset to out + out_offset, and compares all of the output; what is not
// written keeps its bytes.
template <typename T>
void TestCopy(const std::vector<Dim>& dims, int64_t out_size, int64_t in_size,
              int64_t out_offset = 0, int64_t in_offset = 0) {
  tandem_cuda_loop loop = {};
  loop.dims = static_cast<int32_t>(dims.size());
  int64_t count = 1;
  for (size_t i = 0; i < dims.size(); ++i) {
    loop.size[i] = dims[i].size;
    loop.stride[0][i] = dims[i].out;
    loop.stride[1][i] = dims[i].in;
    count *= dims[i].size;
  }
  const std::vector<T> x = Numbers<T>(in_size);
  std::vector<T> want = Numbers<T>(out_size, 2);
  const DeviceArray<T> in(x), out(want);
  for (int64_t i = 0; i < count; ++i) {
    int64_t rest = i, to = out_offset, from = in_offset;
    for (size_t d = dims.size(); d-- > 0;) {
      to += rest % dims[d].size * dims[d].out;
      from += rest % dims[d].size * dims[d].in;
      rest /= dims[d].size;
    }
    want[to] = x[from];
  }
  ASSERT_EQ(tandem_cuda_copy_strided(sizeof(T), out.get() + out_offset, in.get() + in_offset, &loop,
                                     nullptr),
            0);
  EXPECT_EQ(out.Get(), want);
}

template <typename T>
class CopyTest : public ::testing::Test {};
using Types = ::testing::Types<uint8_t, uint16_t, uint32_t, uint64_t>;
TYPED_TEST_SUITE(CopyTest, Types);

TYPED_TEST(CopyTest, Contiguous) {
  for (int64_t n : {1, 3, 16, 257, 4096}) {
    TestCopy<TypeParam>({{n, 1, 1}}, n, n);
    TestCopy<TypeParam>({{n, 1, 1}}, n + 1, n + 3, 1, 3);
  }
  TestCopy<TypeParam>({}, 1, 1);
  TestCopy<TypeParam>({{0, 5, 5}, {5, 1, 1}}, 1, 1);
}
TYPED_TEST(CopyTest, Transposes) {
  TestCopy<TypeParam>({{33, 65, 1}, {65, 1, 33}}, 33 * 65, 33 * 65);
  TestCopy<TypeParam>({{64, 96, 1}, {96, 1, 64}}, 64 * 96, 64 * 96);
  TestCopy<TypeParam>({{3, 2, 1}, {2, 1, 3}}, 6, 6);
  // (2, 40, 3, 50) -> (50, 3, 40, 2)-like: outer dimensions around a swap.
  TestCopy<TypeParam>({{2, 6000, 6000}, {50, 120, 1}, {3, 40, 50}, {40, 1, 150}}, 12000, 12000);
  // (B, S, H, D) -> (B, H, S, D): runs of D.
  for (int64_t d : {3, 16, 64}) {
    TestCopy<TypeParam>({{2, 15 * d, 15 * d}, {3, 5 * d, d}, {5, d, 3 * d}, {d, 1, 1}}, 30 * d,
                        30 * d);
  }
}
TYPED_TEST(CopyTest, BroadcastsAndSlices) {
  TestCopy<TypeParam>({{7, 24, 1}, {24, 1, 0}}, 168, 7);
  TestCopy<TypeParam>({{7, 24, 0}, {24, 1, 1}}, 168, 24);
  TestCopy<TypeParam>({{100, 1, 0}}, 100, 1);
  // Every second element of rows in reverse; into every third.
  TestCopy<TypeParam>({{5, 8, -16}, {8, 1, 2}}, 40, 80, 0, 64);
  TestCopy<TypeParam>({{5, 40, 8}, {8, 3, 1}}, 200, 40, 2);
  TestCopy<TypeParam>({{2, 64, 64},
                       {2, 32, 32},
                       {2, 16, 16},
                       {2, 8, 8},
                       {2, 1, 4},
                       {2, 2, 2},
                       {1, 9, 9},
                       {2, 4, 1}},
                      128, 128);
}
TYPED_TEST(CopyTest, Fill) {
  using T = TypeParam;
  for (int64_t n : {0, 1, 5, 1000}) {
    const std::vector<T> before = Numbers<T>(n + 2);
    const DeviceArray<T> out(before);
    ASSERT_EQ(tandem_cuda_fill(sizeof(T), out.get() + 1, 0x0123456789abcdef, n, nullptr), 0);
    std::vector<T> want = before;
    std::fill_n(want.begin() + 1, n, static_cast<T>(0x0123456789abcdef));
    EXPECT_EQ(out.Get(), want);
  }
}

template <typename T, typename Index>
void TestGather(int64_t outer, int64_t axis, int64_t n, int64_t inner, int32_t index_dtype) {
  const std::vector<T> x = Numbers<T>(outer * axis * inner);
  std::vector<Index> indices(n);
  for (int64_t i = 0; i < n; ++i) indices[i] = static_cast<Index>(i * 7 % (2 * axis) - axis);
  if (n > 2) {
    indices[1] = static_cast<Index>(axis + 5);
    indices[2] = static_cast<Index>(-axis - 5);
  }
  const DeviceArray<T> in(x), out(outer * n * inner);
  const DeviceArray<Index> index(indices);
  ASSERT_EQ(tandem_cuda_gather(sizeof(T), index_dtype, out.get(), in.get(), index.get(), outer,
                               axis, n, inner, nullptr),
            0);
  const std::vector<T> y = out.Get();
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < n; ++i) {
      int64_t at = indices[i];
      if (at < 0) at += axis;
      at = std::min(std::max<int64_t>(at, 0), axis - 1);
      for (int64_t k = 0; k < inner; ++k) {
        ASSERT_EQ(y[(o * n + i) * inner + k], x[(o * axis + at) * inner + k]);
      }
    }
  }
}
TYPED_TEST(CopyTest, Gather) {
  for (int64_t inner : {1, 3, 6, 64}) {
    for (int64_t outer : {1, 5}) {
      TestGather<TypeParam, int32_t>(outer, 9, 14, inner, TANDEM_CUDA_I32);
      TestGather<TypeParam, int64_t>(outer, 9, 14, inner, TANDEM_CUDA_I64);
    }
  }
  TestGather<TypeParam, int32_t>(2, 3, 0, 4, TANDEM_CUDA_I32);
}

}  // namespace
}  // namespace tandem::cuda::testing
