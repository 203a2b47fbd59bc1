// How attention cuts sequences into tiles, and keys into splits.
#include "engine/backend/cuda/kernels/attention_schedule.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace tandem::cuda {
namespace {

TEST(AttentionScheduleTest, TilesCoverTheRows) {
  EXPECT_EQ(TilesOf(0, 4, 64), 0);
  EXPECT_EQ(TilesOf(1, 1, 64), 1);
  EXPECT_EQ(TilesOf(16, 4, 64), 1);
  EXPECT_EQ(TilesOf(17, 4, 64), 2);
  EXPECT_EQ(TilesOf(1, 71, 64), 2);  // one token's heads may take two
  EXPECT_EQ(TilesOf(1 << 26, 64, 64), 1 << 26);
}

TEST(AttentionScheduleTest, TheGridHoldsEveryTile) {
  std::mt19937 random(3);
  for (int run = 0; run < 2000; ++run) {
    const int group = 1 + static_cast<int>(random() % 12), rows = run % 2 == 0 ? 64 : 16;
    const int sequences = 1 + static_cast<int>(random() % 9);
    int tokens = 0, tiles = 0;
    for (int s = 0; s < sequences; ++s) {
      const int n = static_cast<int>(random() % 3 == 0 ? random() % 2 : random() % 200);
      tokens += n;
      tiles += TilesOf(n, group, rows);
    }
    const int bound = TileBound(tokens, sequences, group, rows);
    ASSERT_GE(bound, tiles);
    ASSERT_LE(bound, tiles + sequences);  // and few in vain
  }
  EXPECT_EQ(TileBound(0, 5, 4, 64), 0);
}

TEST(AttentionScheduleTest, SplitsAreOfAFixedSize) {
  EXPECT_EQ(SplitsOf(1), 1);
  EXPECT_EQ(SplitsOf(kSplitKeys), 1);
  EXPECT_EQ(SplitsOf(kSplitKeys + 1), 2);
  EXPECT_EQ(SplitsOf(int64_t{1} << 40), 1 << 29);
}

// Each block finds its tile: the same as counting through the sequences.
__global__ void Find(const int32_t* query_start, int sequences, int group, int tile_rows,
                     int* out) {
  int tile = static_cast<int>(blockIdx.x), sequence = -1;
  const bool found = FindTile(query_start, sequences, group, tile_rows, &tile, &sequence);
  if (threadIdx.x % 32 != 7) return;  // any lane knows
  out[2 * blockIdx.x] = found ? sequence : -1;
  out[2 * blockIdx.x + 1] = found ? tile : -1;
}

TEST(AttentionScheduleTest, BlocksFindTheirTiles) {
  std::mt19937 random(5);
  for (const int sequences : {1, 31, 32, 33, 100}) {
    std::vector<int32_t> start{0};
    for (int s = 0; s < sequences; ++s) {
      start.push_back(start.back() + static_cast<int>(random() % 4 == 0 ? 0 : random() % 90));
    }
    const int group = 3, rows = 64, bound = TileBound(start.back(), sequences, group, rows);
    std::vector<int> expected;
    for (int s = 0; s < sequences; ++s) {
      for (int t = 0; t < TilesOf(start[s + 1] - start[s], group, rows); ++t) {
        expected.push_back(s);
        expected.push_back(t);
      }
    }
    expected.resize(2 * bound, -1);
    std::vector<int> got(2 * bound, -2);
    ASSERT_EQ(Launch(Find, static_cast<unsigned>(bound), 64, 0, nullptr, start.data(), sequences,
                     group, rows, got.data()),
              0);
    ASSERT_EQ(got, expected);
  }
}

}  // namespace
}  // namespace tandem::cuda
