#include <algorithm>
#include <map>

#include "engine/backend/cpu/kernels/rowwise.h"
#include "tests/cuda/float_array.h"

namespace tandem::cuda::testing {
namespace {

struct RopeCase {
  int64_t tokens, heads, head_dim, gap;  // gap: elements between tokens of x
};

// x and the table as the dtypes have them; the same rotation in double.
void CheckRope(int32_t dtype, int32_t table_dtype, const RopeCase& c, bool inverse) {
  constexpr int64_t kPositions = 50;
  const int64_t width = c.heads * c.head_dim, stride = width + c.gap, half = c.head_dim / 2;
  const std::vector<double> x = Numbers(dtype, c.tokens * stride, 1);
  const std::vector<double> table = Numbers(table_dtype, kPositions * c.head_dim, 2);
  std::vector<int32_t> positions(c.tokens);
  for (int64_t t = 0; t < c.tokens; ++t) positions[t] = static_cast<int32_t>(t * 37 % 60 - 5);
  const FloatArray d_x(dtype, x), d_table(table_dtype, table), out(dtype, c.tokens * width);
  const DeviceArray<int32_t> d_positions(positions);
  const tandem_cuda_rope_params params = {.x = d_x.get(),
                                          .positions = d_positions.get(),
                                          .table = d_table.get(),
                                          .out = out.get(),
                                          .tokens = c.tokens,
                                          .heads = c.heads,
                                          .head_dim = c.head_dim,
                                          .x_stride = stride,
                                          .out_stride = width,
                                          .table_positions = kPositions,
                                          .dtype = dtype,
                                          .table_dtype = table_dtype,
                                          .inverse = inverse ? 1 : 0};
  ASSERT_EQ(tandem_cuda_rope(&params, nullptr), 0);
  std::vector<double> expected(c.tokens * width);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t position = std::clamp<int64_t>(positions[t], 0, kPositions - 1);
    for (int64_t h = 0; h < c.heads; ++h) {
      for (int64_t i = 0; i < half; ++i) {
        const double cosine = table[position * c.head_dim + i];
        const double sine = table[position * c.head_dim + half + i] * (inverse ? -1 : 1);
        const double a = x[t * stride + h * c.head_dim + i];
        const double b = x[t * stride + h * c.head_dim + half + i];
        const int64_t to = t * width + h * c.head_dim + i;
        expected[to] = a * cosine - b * sine;
        expected[to + half] = b * cosine + a * sine;
      }
    }
  }
  ExpectNear(out.Get(), expected, 1e-6 + Epsilon(dtype), "rope of " + std::to_string(dtype));
}

TEST(RopeTest, RotatesPairs) {
  for (int32_t dtype : FloatTypes()) {
    for (const RopeCase& c : {RopeCase{1, 1, 2, 0}, RopeCase{7, 3, 10, 3}, RopeCase{9, 4, 64, 64},
                              RopeCase{5, 2, 16, 1}, RopeCase{3, 0, 8, 0}, RopeCase{0, 2, 8, 0}}) {
      CheckRope(dtype, dtype, c, false);
      CheckRope(dtype, TANDEM_CUDA_F32, c, true);
    }
  }
}

TEST(RopeTest, TheSameBitsAsOnTheCpu) {
  constexpr int64_t kTokens = 20, kHeads = 3, kDim = 24, kWidth = kHeads * kDim, kPositions = 30;
  std::vector<float> cosine(kPositions * kDim / 2), sine(cosine.size()), table;
  cpu::FillRopeTables(10000, kDim, kPositions, cosine.data(), sine.data());
  for (int64_t p = 0; p < kPositions; ++p) {
    const auto first = p * kDim / 2, last = first + kDim / 2;
    table.insert(table.end(), cosine.begin() + first, cosine.begin() + last);
    table.insert(table.end(), sine.begin() + first, sine.begin() + last);
  }
  std::vector<float> x, expected(kTokens * kWidth);
  for (double v : Numbers(TANDEM_CUDA_F32, kTokens * kWidth, 1)) x.push_back(v);
  std::vector<int32_t> positions;
  for (int32_t t = 0; t < kTokens; ++t) positions.push_back(t * 11 % kPositions);
  for (int32_t inverse : {0, 1}) {
    cpu::Rope({kTokens, kHeads, kDim, kWidth, kWidth}, x.data(), positions.data(), cosine.data(),
              sine.data(), inverse != 0, expected.data());
    const DeviceArray<float> d_x(x), d_table(table);
    const DeviceArray<int32_t> d_positions(positions);
    const tandem_cuda_rope_params params = {.x = d_x.get(),
                                            .positions = d_positions.get(),
                                            .table = d_table.get(),
                                            .out = d_x.get(),
                                            .tokens = kTokens,
                                            .heads = kHeads,
                                            .head_dim = kDim,
                                            .x_stride = kWidth,
                                            .out_stride = kWidth,
                                            .table_positions = kPositions,
                                            .dtype = TANDEM_CUDA_F32,
                                            .table_dtype = TANDEM_CUDA_F32,
                                            .inverse = inverse};
    ASSERT_EQ(tandem_cuda_rope(&params, nullptr), 0);
    EXPECT_EQ(d_x.Get(), expected);
  }
}

// Runs GatherGrad on raw arrays; T's bits go to the device as they are.
template <typename T, typename Id>
std::vector<T> GatherGrad(int32_t dtype, const std::vector<T>& dy, const std::vector<Id>& ids,
                          int64_t cols, int64_t vocabulary) {
  int64_t bytes = 0;
  const auto rows = static_cast<int64_t>(ids.size());
  EXPECT_EQ(tandem_cuda_gather_grad_scratch(rows, vocabulary, &bytes), 0);
  const DeviceArray<T> d_dy(dy), out(vocabulary * cols);
  const DeviceArray<Id> d_ids(ids);
  const DeviceArray<uint8_t> scratch(bytes);
  const tandem_cuda_gather_grad_params params = {
      .dy = d_dy.get(),
      .ids = d_ids.get(),
      .out = out.get(),
      .scratch = scratch.get(),
      .rows = rows,
      .cols = cols,
      .vocabulary = vocabulary,
      .dtype = dtype,
      .id_dtype = sizeof(Id) == 8 ? TANDEM_CUDA_I64 : TANDEM_CUDA_I32};
  EXPECT_EQ(tandem_cuda_gather_grad(&params, nullptr), 0);
  return out.Get();
}

// out[id] += dy in the order of the rows, in Sum.
template <typename Sum, typename T, typename Id>
std::vector<Sum> Reference(const std::vector<T>& dy, const std::vector<Id>& ids, int64_t cols,
                           int64_t vocabulary) {
  std::vector<Sum> out(vocabulary * cols);
  for (size_t i = 0; i < ids.size(); ++i) {
    int64_t id = ids[i] < 0 ? ids[i] + vocabulary : ids[i];
    id = std::clamp<int64_t>(id, 0, vocabulary - 1);
    for (int64_t j = 0; j < cols; ++j) {
      out[id * cols + j] += static_cast<Sum>(dy[i * cols + j]);
    }
  }
  return out;
}

std::vector<int32_t> Ids(int64_t n, int32_t vocabulary, int64_t same) {
  std::vector<int32_t> ids(n);
  for (int64_t i = 0; i < n; ++i) {
    ids[i] = i % 7 < same ? 3 : static_cast<int32_t>(i * 7919 % vocabulary);
  }
  return ids;
}

std::vector<float> Floats(int64_t n) {
  std::vector<float> x;
  for (double v : Numbers(TANDEM_CUDA_F32, n, 5)) x.push_back(static_cast<float>(v));
  return x;
}

// To the bit: the sums are in the order of the tokens.
TEST(GatherGradTest, AddsInTheOrderOfTheTokens) {
  for (const auto& [rows, cols, same] :
       {std::tuple{1, 1, 0}, {40, 33, 0}, {300, 8, 4}, {70, 1100, 3}, {3000, 12, 5}}) {
    const std::vector<float> dy = Floats(int64_t{rows} * cols);
    std::vector<int32_t> ids = Ids(rows, 29, same);
    EXPECT_EQ(GatherGrad(TANDEM_CUDA_F32, dy, ids, cols, 29), Reference<float>(dy, ids, cols, 29))
        << rows << " x " << cols;
  }
}

TEST(GatherGradTest, PlacesOutsideAndEveryType) {
  const std::vector<int64_t> ids = {0, -1, 5, 2, -100, 1000, 2};
  const std::vector<float> dy = Floats(14);
  EXPECT_EQ(GatherGrad(TANDEM_CUDA_F32, dy, ids, 2, 6), Reference<float>(dy, ids, 2, 6));
  const std::vector<double> f64(dy.begin(), dy.end());
  EXPECT_EQ(GatherGrad(TANDEM_CUDA_F64, f64, ids, 2, 6), Reference<double>(f64, ids, 2, 6));
  std::vector<int32_t> i32;
  std::vector<int64_t> i64;
  for (float v : dy) {
    i32.push_back(static_cast<int32_t>(v * 1e8f));
    i64.push_back(static_cast<int64_t>(v * 1e8f) << 20);
  }
  EXPECT_EQ(GatherGrad(TANDEM_CUDA_I32, i32, ids, 2, 6), Reference<int32_t>(i32, ids, 2, 6));
  EXPECT_EQ(GatherGrad(TANDEM_CUDA_I64, i64, ids, 2, 6), Reference<int64_t>(i64, ids, 2, 6));
  std::vector<uint16_t> bf16, f16;
  for (float v : dy) bf16.push_back(BF16(v).bits), f16.push_back(F16(v).bits);
  std::vector<float> wide_bf16, wide_f16;
  for (float v : dy) {
    wide_bf16.push_back(static_cast<float>(BF16(v)));
    wide_f16.push_back(static_cast<float>(F16(v)));
  }
  std::vector<uint16_t> expected_bf16, expected_f16;
  for (float v : Reference<float>(wide_bf16, ids, 2, 6)) expected_bf16.push_back(BF16(v).bits);
  for (float v : Reference<float>(wide_f16, ids, 2, 6)) expected_f16.push_back(F16(v).bits);
  EXPECT_EQ(GatherGrad(TANDEM_CUDA_BF16, bf16, ids, 2, 6), expected_bf16);
  EXPECT_EQ(GatherGrad(TANDEM_CUDA_F16, f16, ids, 2, 6), expected_f16);
}

TEST(GatherGradTest, NothingGivesZeros) {
  EXPECT_EQ(GatherGrad(TANDEM_CUDA_F32, std::vector<float>(), std::vector<int32_t>(), 3, 4),
            std::vector<float>(12));
  EXPECT_TRUE(
      GatherGrad(TANDEM_CUDA_F32, std::vector<float>(), std::vector<int32_t>{1}, 0, 4).empty());
}

}  // namespace
}  // namespace tandem::cuda::testing
