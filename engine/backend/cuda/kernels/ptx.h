// Instructions of sm_80 that CUDA C++ has no name for, each with a twin for the emulation.
//
// Fragments are those of the PTX ISA (9.7.14). With g = lane / 4 and t = lane % 4, the lower index
// in the lower half of a register:
//   16-bit A (16, 16): a[0] = (g, 2t..2t+1), a[1] = (g + 8, 2t..), a[2] = (g, 2t + 8..),
//                      a[3] = (g + 8, 2t + 8..)
//   16-bit B (16, 8):  b0 = (2t..2t+1, g), b1 = (2t + 8.., g)
//   tf32 A (16, 8):    a[0] = (g, t), a[1] = (g + 8, t), a[2] = (g, t + 4), a[3] = (g + 8, t + 4)
//   tf32 B (8, 8):     b0 = (t, g), b1 = (t + 4, g)
//   C (16, 8):         c[0..1] = (g, 2t..2t+1), c[2..3] = (g + 8, 2t..2t+1)
// All 32 lanes execute them together. The twins add exact products in double and round once; the
// device's order and rounding within one instruction are its own.
#pragma once

#include "engine/backend/cuda/kernels/device.h"

namespace tandem::cuda {

// --- cp.async: global to shared memory without registers ---------------------------------------

// Starts copying 16 bytes, of which only the first `bytes` are read and the rest become 0; both
// pointers 16-byte aligned. Until the wait, `shared` holds nothing of use.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, int bytes = 16) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(bytes)
               : "memory");
#else
  emulation::CopyAsync(shared, global, 16, bytes);
#endif
}

// The same with 4 bytes, 4-byte aligned.
__device__ __forceinline__ void CopyAsync4(void* shared, const void* global, int bytes = 4) {
#ifdef __CUDACC__
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(bytes)
               : "memory");
#else
  emulation::CopyAsync(shared, global, 4, bytes);
#endif
}

// Closes the group of this thread's copies since the last commit.
__device__ __forceinline__ void CommitCopies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulation::CommitCopies();
#endif
}

// Waits until all but the thread's last kPending groups are there. Other threads see them after a
// barrier.
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emulation::WaitCopies(kPending);
#endif
}

// --- ldmatrix: 8 x 8 matrices of 16-bit elements -----------------------------------------------

// Lane 8 i + r gives the address of row r (16 bytes, aligned) of matrix i. r[i] = row g, columns
// 2t..2t+1 of matrix i.
__device__ __forceinline__ void LoadMatrix4(unsigned (&r)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
#else
  emulation::LoadMatrix4(r, row, false);
#endif
}

// The same of the transposed matrices: r[i] = rows 2t..2t+1, column g.
__device__ __forceinline__ void LoadMatrix4Transposed(unsigned (&r)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
#else
  emulation::LoadMatrix4(r, row, true);
#endif
}

// --- mma.sync: c += a b, sums in f32 -----------------------------------------------------------

#ifdef __CUDACC__
#define TANDEM_MMA_SYNC(SHAPE_AND_TYPES)                                          \
  asm volatile("mma.sync.aligned." SHAPE_AND_TYPES                                \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else
namespace emulation {

// Element (row, k) of A: the two halves of register row / 8 + 2 (k / 8) of lane 4 (row % 8) + k % 8
// / 2, and so on.
template <typename T>
float HalfOf(const unsigned char* lane, int word, int half) {
  unsigned value;
  std::memcpy(&value, lane + 4 * word, 4);
  return ToFloat(T{static_cast<uint16_t>(value >> (16 * half))});
}

template <typename T>
void MmaM16N8K16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned char* all = WarpExchange(mine, sizeof(mine));
  const int g = Lane() / 4, t = Lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int high = i / 2, column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const int place = k % 8 / 2;
      sum += double{HalfOf<T>(all + 64 * (4 * g + place), high + 2 * (k / 8), k % 2)} *
             double{HalfOf<T>(all + 64 * (4 * column + place), 4 + k / 8, k % 2)};
    }
    c[i] = static_cast<float>(sum);
  }
}

inline void MmaM16N8K8Tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned char* all = WarpExchange(mine, sizeof(mine));
  const int g = Lane() / 4, t = Lane() % 4;
  const auto word = [all](int lane, int i) {
    unsigned value;
    std::memcpy(&value, all + 64 * lane + 4 * i, 4);
    return double{std::bit_cast<float>(value & ~0x1fffu)};  // the low bits are not read
  };
  for (int i = 0; i < 4; ++i) {
    const int high = i / 2, column = 2 * t + i % 2;
    double sum = c[i];
    for (int k = 0; k < 8; ++k) {
      sum += word(4 * g + k % 4, high + 2 * (k / 4)) * word(4 * column + k % 4, 4 + k / 4);
    }
    c[i] = static_cast<float>(sum);
  }
}

}  // namespace emulation
#endif

__device__ __forceinline__ void Mma16816(Bf16, float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
#ifdef __CUDACC__
  TANDEM_MMA_SYNC("m16n8k16.row.col.f32.bf16.bf16.f32");
#else
  emulation::MmaM16N8K16<Bf16>(c, a, b0, b1);
#endif
}

__device__ __forceinline__ void Mma16816(F16, float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
#ifdef __CUDACC__
  TANDEM_MMA_SYNC("m16n8k16.row.col.f32.f16.f16.f32");
#else
  emulation::MmaM16N8K16<F16>(c, a, b0, b1);
#endif
}

// Mma16816<Bf16>(c, a, b0, b1).
template <typename T>
__device__ __forceinline__ void Mma16816(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                         unsigned b1) {
  Mma16816(T{}, c, a, b0, b1);
}

// Operands are f32 of which the low 13 bits are not read; ToTf32 rounds.
__device__ __forceinline__ void Mma1688Tf32(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                            unsigned b1) {
#ifdef __CUDACC__
  TANDEM_MMA_SYNC("m16n8k8.row.col.f32.tf32.tf32.f32");
#else
  emulation::MmaM16N8K8Tf32(c, a, b0, b1);
#endif
}
#undef TANDEM_MMA_SYNC

// To the nearest tf32, ties away from zero.
__device__ __forceinline__ unsigned ToTf32(float f) {
#ifdef __CUDACC__
  unsigned u;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(u) : "f"(f));
  return u;
#else
  const auto u = std::bit_cast<unsigned>(f);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & ~0x1fffu;
#endif
}

// 2^x to 2 ulp; subnormal results are 0.
__device__ __forceinline__ float Exp2Approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
#endif
}

}  // namespace tandem::cuda
