// The emulation of sm_90a's copy engine and warpgroup product: a two-stage GEMM with a producer
// warp, from each kind of operand, against plain arithmetic.
#include "engine/backend/cuda/kernels/hopper.h"

#include <gtest/gtest.h>

#include <vector>

#include "engine/backend/cuda/kernels/tensor_map.cu"

namespace tandem::cuda {
namespace {

constexpr int kN = 128, kChunk = 64, kStages = 2, kConsumers = 128;
constexpr int kABytes = 64 * 128, kBBytes = kN * 128;

// D (64, N) = A B. A (64, K) row-major, by shared memory or by registers; B is (N, K) or (K, N).
template <bool kARegisters, Major kB>
__global__ void Gemm(float* out, const CUtensorMap map_a, const CUtensorMap map_b, int k) {
  char* const shared = DynamicShared();
  auto* const full = reinterpret_cast<uint64_t*>(shared + kStages * (kABytes + kBBytes));
  uint64_t* const empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      MbarrierInit(full + i, 1);
      MbarrierInit(empty + i, kConsumers);
    }
    MbarrierInitFence();
  }
  __syncthreads();
  const int chunks = (k + kChunk - 1) / kChunk, t = static_cast<int>(threadIdx.x);
  if (t >= kConsumers) {
    if (t > kConsumers) return;
    for (int c = 0; c < chunks; ++c) {
      const int stage = c % kStages;
      char* const a = shared + stage * (kABytes + kBBytes);
      MbarrierWait(empty + stage, (c / kStages & 1) ^ 1);
      MbarrierArriveExpect(full + stage, kABytes + kBBytes);
      TmaLoad(a, &map_a, full + stage, c * kChunk, 0);
      if (kB == Major::kK) {
        TmaLoad(a + kABytes, &map_b, full + stage, c * kChunk, 0);
      } else {
        for (int n = 0; n < kN; n += 64) {
          TmaLoad(a + kABytes + n * 128, &map_b, full + stage, n, c * kChunk);
        }
      }
    }
    return;
  }
  float d[kN / 2];
  for (int c = 0; c < chunks; ++c) {
    const int stage = c % kStages;
    const char* const a = shared + stage * (kABytes + kBBytes);
    MbarrierWait(full + stage, c / kStages & 1);
    WgmmaFence();
    for (int i = 0; i < kChunk / 16; ++i) {
      const uint64_t b =
          WgmmaAdvance(WgmmaDescriptor(a + kABytes, 64 * 128), kB == Major::kK ? 32 * i : 2048 * i);
      if constexpr (kARegisters) {
        uint32_t registers[4];
        for (int j = 0; j < 4; ++j) {
          const int row = t / 32 * 16 + t % 32 / 4 + j % 2 * 8,
                    column = i * 16 + t % 4 * 2 + j / 2 * 8;
          const int at = row * 128 + column * 2;
          std::memcpy(&registers[j], a + (at ^ (at >> 7 & 7) << 4), 4);
        }
        Wgmma<Bf16, kB>(d, registers, b, c > 0 || i > 0);
      } else {
        Wgmma<Bf16, Major::kK, kB>(d, WgmmaAdvance(WgmmaDescriptor(a), 32 * i), b, c > 0 || i > 0);
      }
    }
    WgmmaCommit();
    WgmmaWait<0>();
    MbarrierArrive(empty + stage);
  }
  for (int i = 0; i < kN / 2; ++i) {
    const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8,
              column = i / 4 * 8 + t % 4 * 2 + i % 2;
    out[row * kN + column] = d[i];
  }
}

template <bool kARegisters, Major kB>
void CheckGemm(int k) {
  // Rows of 160 values: the maps' strides.
  constexpr int kStride = 160;
  const int b_rows = kB == Major::kK ? kN : k, b_columns = kB == Major::kK ? k : kN;
  std::vector<uint16_t> a(64 * kStride), b(b_rows * kStride);
  std::vector<float> out(64 * kN, NAN);
  for (size_t i = 0; i < a.size(); ++i)
    a[i] = FromFloat<Bf16>(static_cast<float>(i * 7 % 33) - 16).bits;
  for (size_t i = 0; i < b.size(); ++i)
    b[i] = FromFloat<Bf16>(static_cast<float>(i * 5 % 29) - 14).bits;
  CUtensorMap map_a{}, map_b{};
  ASSERT_EQ(MakeTensorMap({a.data(), 2, 2, {k, 64}, {0, kStride * 2}, {kChunk, 64}, true}, &map_a),
            0);
  ASSERT_EQ(MakeTensorMap({b.data(),
                           2,
                           2,
                           {b_columns, b_rows},
                           {0, kStride * 2},
                           {64, kB == Major::kK ? kN : kChunk},
                           true},
                          &map_b),
            0);
  ASSERT_EQ(Launch(Gemm<kARegisters, kB>, 1, kConsumers + 32, kStages * (kABytes + kBBytes) + 64,
                   nullptr, out.data(), map_a, map_b, k),
            0);
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < kN; ++n) {
      float expected = 0;
      for (int i = 0; i < k; ++i) {
        const uint16_t bits = kB == Major::kK ? b[n * kStride + i] : b[i * kStride + n];
        expected += ToFloat(Bf16{a[m * kStride + i]}) * ToFloat(Bf16{bits});
      }
      ASSERT_EQ(out[m * kN + n], expected) << m << " " << n;
    }
  }
}

TEST(HopperTest, ProductsOfEveryOperand) {
  for (const int k : {16, 64, 150, 150}) {  // 150: zero-filled to 192
    CheckGemm<false, Major::kK>(k);
    CheckGemm<true, Major::kK>(k);
    CheckGemm<false, Major::kMn>(k);
    CheckGemm<true, Major::kMn>(k);
  }
}

__global__ void CopyByStore(const CUtensorMap from, const CUtensorMap to) {
  char* const shared = DynamicShared();
  auto* const full = reinterpret_cast<uint64_t*>(shared + 4096);
  if (threadIdx.x != 0) return;
  MbarrierInit(full, 1);
  MbarrierArriveExpect(full, 32 * 2 * 4 * 4);
  TmaLoad(shared, &from, full, -3, 1, 2);
  MbarrierWait(full, 0);
  TmaStore(&to, shared, 5, 0, 0);
  TmaStoreCommit();
  TmaStoreWait<0>();
}

// A box that sticks out on both sides arrives as zeros, and leaves nothing behind outside.
TEST(HopperTest, BoxesAreCutAtTheTensorsEdge) {
  std::vector<float> in(5 * 3 * 20), out(4 * 2 * 20, -1.0f);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i + 1);
  CUtensorMap from{}, to{};
  ASSERT_EQ(MakeTensorMap({in.data(), 4, 3, {18, 3, 5}, {0, 80, 240}, {32, 2, 4}, false}, &from),
            0);
  ASSERT_EQ(MakeTensorMap({out.data(), 4, 3, {20, 2, 4}, {0, 80, 160}, {32, 2, 4}, false}, &to), 0);
  ASSERT_EQ(Launch(CopyByStore, 1, 32, 8192, nullptr, from, to), 0);
  for (int z = 0; z < 4; ++z) {
    for (int y = 0; y < 2; ++y) {
      for (int x = 0; x < 20; ++x) {
        const int from_x = x - 5 - 3;
        const bool inside = from_x >= 0 && from_x < 18 && z + 2 < 5;
        const float expected = x < 5    ? -1.0f
                               : inside ? in[((z + 2) * 3 + y + 1) * 20 + from_x]
                                        : 0.0f;
        ASSERT_EQ(out[(z * 2 + y) * 20 + x], expected) << z << " " << y << " " << x;
      }
    }
  }
}

TEST(HopperTest, MapsThatTheDriverRefuses) {
  std::vector<float> data(64);
  CUtensorMap map{};
  EXPECT_NE(MakeTensorMap({data.data() + 1, 4, 2, {8, 8}, {0, 32}, {8, 8}, false}, &map), 0);
  EXPECT_NE(MakeTensorMap({data.data(), 4, 2, {8, 8}, {0, 36}, {8, 8}, false}, &map), 0);
  EXPECT_NE(MakeTensorMap({data.data(), 4, 2, {8, 8}, {0, 32}, {64, 8}, true}, &map), 0);
  EXPECT_NE(MakeTensorMap({data.data(), 4, 2, {8, 0}, {0, 32}, {8, 8}, false}, &map), 0);
}

}  // namespace
}  // namespace tandem::cuda
