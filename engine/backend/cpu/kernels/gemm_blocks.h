// How gemm.cc and gemm-inl.h cut a matrix product: the same on every instruction set.
#pragma once

#include <cstdint>

namespace tandem::cpu {

// A packed block of B (kGemmDepth, kGemmColumns) takes 432 KiB of a core's L2. Of a packed block of
// A (kGemmRows, kGemmDepth) the few rows of a tile stay in L1. All are multiples of every tile.
constexpr int64_t kGemmDepth = 192;
constexpr int64_t kGemmColumns = 576;
constexpr int64_t kGemmRows = 96;

// Up to so many rows B is not packed: it would be written and read again for too few uses. A block
// of A (so many rows, kGemmDirectDepth) is packed.
constexpr int64_t kGemmDirectRows = 16;
constexpr int64_t kGemmDirectDepth = 512;

// The most floats in a vector.
constexpr int64_t kGemmMaxLanes = 16;

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

}  // namespace tandem::cpu
