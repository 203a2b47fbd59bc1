// The order in which the blocks of a matrix product take its tiles.
#pragma once

#include "engine/backend/cuda/kernels/device.h"

namespace tandem::cuda {

// Tiles of all products of a batch, numbered so that consecutive ones share operands: down
// kTileGroup rows of tiles, then to the next column of tiles.
struct TileOrder {
  static constexpr int64_t kTileGroup = 8;
  struct Place {
    int64_t batch, row, column;  // of tiles
  };

  int64_t rows, columns, batch;  // tiles of one product; products

  __host__ __device__ __forceinline__ TileOrder(int64_t m, int64_t n, int64_t products, int tile_m,
                                                int tile_n)
      : rows((m + tile_m - 1) / tile_m), columns((n + tile_n - 1) / tile_n), batch(products) {}
  __host__ __device__ __forceinline__ int64_t Count() const { return rows * columns * batch; }
  __host__ __device__ __forceinline__ Place At(int64_t index) const {
    const int64_t product = index / (rows * columns), i = index - product * rows * columns;
    const int64_t group = i / (kTileGroup * columns), rest = i - group * kTileGroup * columns;
    const int64_t first = group * kTileGroup;
    const int64_t tall = rows - first < kTileGroup ? rows - first : kTileGroup;
    const int64_t column = rest / tall;
    return {product, first + rest - column * tall, column};
  }
};

}  // namespace tandem::cuda
