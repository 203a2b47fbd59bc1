// Tiles of rows in shared memory and their fragments for mma.sync: rows of kD 16-bit values, the
// 16-byte units of row r permuted by ^ (r % 8), so that ldmatrix meets no bank twice.
#pragma once

#include "engine/backend/cuda/kernels/attention_fragments.h"

namespace tandem::cuda {

template <int kD>
__device__ __forceinline__ char* TileUnit(char* tile, int row, int unit) {
  return tile + row * (2 * kD) + ((unit ^ (row & 7)) << 4);
}

// Starts copying `rows` rows; row_of(i) is where row i begins, or null for zeros.
template <typename T, int kD, int kThreads, typename RowOf>
__device__ __forceinline__ void CopyTile(char* tile, int rows, RowOf row_of) {
  constexpr int kUnits = kD / 8;
  const int unit = static_cast<int>(threadIdx.x) % kUnits;
#pragma unroll 2
  for (int row = static_cast<int>(threadIdx.x) / kUnits; row < rows; row += kThreads / kUnits) {
    const T* const from = row_of(row);
    // The zeros' source address is not read, but must be one.
    CopyAsync16(TileUnit<kD>(tile, row, unit), from != nullptr ? from + 8 * unit : row_of(0),
                from != nullptr ? 16 : 0);
  }
}

// ldmatrix addresses of a lane, as 32-bit shared addresses: one base a tile and order, from which
// 16 rows on and 16 columns on are an addition and an exclusive or.
struct OperandBase {
  unsigned address;

  // Forgets what the compiler knows, so that it does not keep every address in a register.
  __device__ __forceinline__ OperandBase Renewed() const {
    unsigned same = address;
#ifdef __CUDACC__
    asm volatile("" : "+r"(same));
#endif
    return {same};
  }
  template <int kD>
  __device__ __forceinline__ unsigned At(int row, int step) const {
    return (address ^ static_cast<unsigned>(step << 5)) + static_cast<unsigned>(row * (2 * kD));
  }
};
// For A operands, and for B operands whose k runs over the tile's rows.
template <int kD>
__device__ __forceinline__ OperandBase RowBase(char* tile, int row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {SharedAddress(TileUnit<kD>(tile, row + lane % 16, lane / 16))};
}
// For B operands whose columns are the tile's rows.
template <int kD>
__device__ __forceinline__ OperandBase ColumnBase(char* tile) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {SharedAddress(TileUnit<kD>(tile, lane / 16 * 8 + lane % 8, lane / 8 % 2))};
}

__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], unsigned address) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  LoadMatrix4(r, emulation::SharedMemory() + address);
#endif
}
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], unsigned address) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#else
  LoadMatrix4Transposed(r, emulation::SharedMemory() + address);
#endif
}

// The 16 x 16 A operand, columns 16 step...
template <int kD>
__device__ __forceinline__ void LoadA(OperandBase base, int step, uint32_t (&a)[4]) {
  LoadMatrices(a, base.At<kD>(0, step));
}
// Two 16 x 8 B operands, b[0..1] and b[2..3]: their columns are the tile's rows `row`... (16 of
// them), their k is 16 step... along the rows.
template <int kD>
__device__ __forceinline__ void LoadB(OperandBase column_base, int row, int step,
                                      uint32_t (&b)[4]) {
  LoadMatrices(b, column_base.At<kD>(row, step));
}
// The same where k runs over the tile's rows `row`..., and columns are 16 step... along the rows.
template <int kD>
__device__ __forceinline__ void LoadBTransposed(OperandBase row_base, int row, int step,
                                                uint32_t (&b)[4]) {
  LoadMatricesTransposed(b, row_base.At<kD>(row, step));
}

// The part of accumulators c (16 rows, kSize / 2 columns) that columns 8 j... make.
template <typename T, int kSize>
__device__ __forceinline__ void MmaColumns(float (&c)[kSize], int j, const uint32_t (&a)[4],
                                           uint32_t b0, uint32_t b1) {
  float part[4] = {c[4 * j], c[4 * j + 1], c[4 * j + 2], c[4 * j + 3]};
  Mma16816<T>(part, a, b0, b1);
#pragma unroll
  for (int i = 0; i < 4; ++i) c[4 * j + i] = part[i];
}

}  // namespace tandem::cuda
