#include "engine/backend/cuda/kernels/tile_order.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

namespace tandem::cuda {
namespace {

TEST(TileOrderTest, MeetsEveryTileOnceAndKeepsNeighboursTogether) {
  for (const auto& [m, n, batch] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {64, 128, 2}, {65, 129, 1}, {64 * 19, 128 * 5, 3}, {64 * 8, 128 * 40, 1}}) {
    const TileOrder order(m, n, batch, 64, 128);
    std::set<std::array<int64_t, 3>> seen;
    for (int64_t i = 0; i < order.Count(); ++i) {
      const TileOrder::Place place = order.At(i);
      EXPECT_TRUE(place.row >= 0 && place.row * 64 < m && place.column >= 0 &&
                  place.column * 128 < n && place.batch >= 0 && place.batch < batch);
      seen.insert({place.batch, place.row, place.column});
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), (m + 63) / 64 * ((n + 127) / 128) * batch);
  }
  // 64 tiles in a row read 8 stripes of a and 8 of b, not 2 and 40.
  const TileOrder order(64 * 16, 128 * 40, 1, 64, 128);
  std::set<int64_t> rows, columns;
  for (int64_t i = 0; i < 64; ++i) {
    rows.insert(order.At(i).row);
    columns.insert(order.At(i).column);
  }
  EXPECT_EQ(rows.size(), 8u);
  EXPECT_EQ(columns.size(), 8u);
}

}  // namespace
}  // namespace tandem::cuda
