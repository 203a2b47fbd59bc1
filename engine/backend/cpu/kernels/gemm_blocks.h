// How gemm.cc and gemm-inl.h cut a matrix product: the same on every instruction set.
#pragma once

#include <cstdint>

#include "engine/backend/cpu/kernels/gemm.h"

namespace tandem::cpu {

// A packed block of B (kGemmDepth, kGemmColumns) takes 432 KiB of a core's L2. Of a packed block of
// A (kGemmRows, kGemmDepth) the few rows of a tile stay in L1. All are multiples of every tile.
constexpr int64_t kGemmDepth = 192;
constexpr int64_t kGemmColumns = 576;
constexpr int64_t kGemmRows = 96;

// Up to so many rows B is not packed: it would be written and read again for too few uses.
constexpr int64_t kGemmDirectRows = 16;
constexpr int64_t kGemmDirectRowsTransposed = 32;  // B stored (n, k)

// Of A, the direct path packs blocks of so many floats: all k of a few rows, for most models, so
// that rows of B are read whole.
constexpr int64_t kGemmDirectFloats = 65536;

// Columns that do not fill a tile are packed on the direct path too: fewer than these.
constexpr int64_t kGemmDirectRest = 48;

// The most floats in a vector.
constexpr int64_t kGemmMaxLanes = 16;

inline bool IsDirect(const GemmParams& g) {
  return g.m <= (g.transpose_b ? kGemmDirectRowsTransposed : kGemmDirectRows);
}

// A thread's part of one product's C.
struct GemmPiece {
  int64_t row, rows;
  int64_t column, columns;
};

// The size of equal blocks, multiples of unit and not above most (itself one), that cover total.
inline int64_t BlockSize(int64_t total, int64_t most, int64_t unit) {
  const int64_t blocks = (total + most - 1) / most;
  return ((total + blocks - 1) / blocks + unit - 1) / unit * unit;
}

// The most k in a block of A on the direct path.
inline int64_t DirectDepth(const GemmParams& g) {
  return BlockSize(g.k, kGemmDirectFloats / ((g.m + 7) / 8 * 8) / 16 * 16, 16);
}

}  // namespace tandem::cpu
