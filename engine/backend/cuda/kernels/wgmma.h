// wgmma m64nNk16: D (64, N) f32 in registers += A (64, 16) B (16, N), bf16 or f16. Included by
// hopper.h; the emulated twin decodes the descriptors as the hardware does.
//
// A warpgroup issues together: WgmmaFence, any number of Wgmma, WgmmaCommit, then WgmmaWait before
// it touches the accumulators, or lets anybody overwrite the operands. Thread t of the warpgroup
// holds, of D, rows 16 (t / 32) + t % 32 / 4 + {0, 8} and columns 8 j + 2 (t % 4) + {0, 1}, as
// d[4 j + {0, 1}] and d[4 j + {2, 3}]; of A in registers the same rows, columns 2 (t % 4) + {0, 1}
// in a[0] and a[1], 8 more in a[2] and a[3].
#pragma once

#include <type_traits>

namespace tandem::cuda {

enum class Major : int { kK = 0, kMn = 1 };

// An operand in shared memory whose rows are 128 bytes, swizzled as TMA does (address bits 4..6 ^=
// bits 7..9), the tile 1024-byte aligned. kK: a row of M or N holds 64 elements along K; the next k
// = 16 is 32 bytes on. kMn: a row of K holds 64 elements along M or N; the next k = 16 is 2048
// bytes on, and the next 64 elements of M or N `leading_bytes` (not read in the other case).
__device__ __forceinline__ uint64_t WgmmaDescriptor(const void* shared,
                                                    unsigned leading_bytes = 16) {
  constexpr uint64_t kGroupBytes = 1024;  // 8 rows
  return (SharedAddress(shared) & 0x3ffffu) >> 4 | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         (kGroupBytes >> 4) << 32 | uint64_t{1} << 62;
}
__device__ __forceinline__ uint64_t WgmmaAdvance(uint64_t descriptor, unsigned bytes) {
  return descriptor + (bytes >> 4);
}

__device__ __forceinline__ void WgmmaFence() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emulation::WgmmaFence();
#endif
}
__device__ __forceinline__ void WgmmaCommit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emulation::WgmmaCommit();
#endif
}
// Until all but the last kInFlight groups are done.
template <int kInFlight>
__device__ __forceinline__ void WgmmaWait() {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
#else
  emulation::WgmmaWait(kInFlight);
#endif
}
// Keeps the compiler from moving reads and writes of accumulators across: before the first Wgmma of
// a batch and after its wait.
template <int kSize>
__device__ __forceinline__ void WgmmaFenceAccumulators(float (&d)[kSize]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
#else
  (void)d;
#endif
}

// Wgmma<T, major of A, major of B>(d, a, b, accumulate): D = A B + (accumulate ? D : 0), N by d's
// size (2 N values over the warpgroup's threads: float[N / 2]); N is 8, 16, 32, 64, 128 or 256.
// A from shared memory (a descriptor) or, below, from registers.
#ifdef __CUDACC__

// clang-format off
#define TANDEM_10(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define TANDEM_LIST_8 "%0,%1,%2,%3"
#define TANDEM_LIST_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define TANDEM_LIST_32 TANDEM_10() "%10,%11,%12,%13,%14,%15"
#define TANDEM_LIST_64 TANDEM_10() TANDEM_10(1) TANDEM_10(2) "%30,%31"
#define TANDEM_LIST_128 TANDEM_10() TANDEM_10(1) TANDEM_10(2) TANDEM_10(3) TANDEM_10(4) TANDEM_10(5) "%60,%61,%62,%63"
#define TANDEM_LIST_256 TANDEM_10() TANDEM_10(1) TANDEM_10(2) TANDEM_10(3) TANDEM_10(4) TANDEM_10(5) TANDEM_10(6) TANDEM_10(7) TANDEM_10(8) TANDEM_10(9) TANDEM_10(10) TANDEM_10(11) "%120,%121,%122,%123,%124,%125,%126,%127"
#define TANDEM_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define TANDEM_D16(i) TANDEM_D4(i), TANDEM_D4((i) + 4), TANDEM_D4((i) + 8), TANDEM_D4((i) + 12)
#define TANDEM_D64(i) TANDEM_D16(i), TANDEM_D16((i) + 16), TANDEM_D16((i) + 32), TANDEM_D16((i) + 48)
#define TANDEM_REGISTERS_8 TANDEM_D4(0)
#define TANDEM_REGISTERS_16 TANDEM_D4(0), TANDEM_D4(4)
#define TANDEM_REGISTERS_32 TANDEM_D16(0)
#define TANDEM_REGISTERS_64 TANDEM_D16(0), TANDEM_D16(16)
#define TANDEM_REGISTERS_128 TANDEM_D64(0)
#define TANDEM_REGISTERS_256 TANDEM_D64(0), TANDEM_D64(64)

// I0... number the operands after the accumulators.
#define TANDEM_WGMMA_SHARED(N, TYPE, I0, I1, I2, I3, I4)                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I2 ", 0;\n"                                  \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {"             \
               TANDEM_LIST_##N "}, " I0 ", " I1 ", p, 1, 1, " I3 ", " I4 ";\n}"                 \
               : TANDEM_REGISTERS_##N                                                           \
               : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kA)),  \
                 "n"(static_cast<int>(kB)))
#define TANDEM_WGMMA_REGISTERS(N, TYPE, I0, I1, I2, I3, I4, I5, I6)                             \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I5 ", 0;\n"                                  \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {"             \
               TANDEM_LIST_##N "}, {" I0 "," I1 "," I2 "," I3 "}, " I4 ", p, 1, 1, " I6 ";\n}"  \
               : TANDEM_REGISTERS_##N                                                           \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                            \
                 "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kB)))
#define TANDEM_WGMMA_SHAPE(N, I0, I1, I2, I3, I4, I5, I6)                                       \
  template <typename T, Major kA, Major kB>                                                     \
  __device__ __forceinline__ void Wgmma(float (&d)[N / 2], uint64_t a, uint64_t b,              \
                                        bool accumulate) {                                      \
    if constexpr (std::is_same_v<T, Bf16>) {                                                    \
      TANDEM_WGMMA_SHARED(N, "bf16", I0, I1, I2, I3, I4);                                       \
    } else {                                                                                    \
      TANDEM_WGMMA_SHARED(N, "f16", I0, I1, I2, I3, I4);                                        \
    }                                                                                           \
  }                                                                                             \
  template <typename T, Major kB>                                                               \
  __device__ __forceinline__ void Wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,  \
                                        bool accumulate) {                                      \
    if constexpr (std::is_same_v<T, Bf16>) {                                                    \
      TANDEM_WGMMA_REGISTERS(N, "bf16", I0, I1, I2, I3, I4, I5, I6);                            \
    } else {                                                                                    \
      TANDEM_WGMMA_REGISTERS(N, "f16", I0, I1, I2, I3, I4, I5, I6);                             \
    }                                                                                           \
  }
TANDEM_WGMMA_SHAPE(8, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
TANDEM_WGMMA_SHAPE(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
TANDEM_WGMMA_SHAPE(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
TANDEM_WGMMA_SHAPE(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
TANDEM_WGMMA_SHAPE(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
TANDEM_WGMMA_SHAPE(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
// clang-format on

#else

template <typename T, Major kA, Major kB, int kSize>
void Wgmma(float (&d)[kSize], uint64_t a, uint64_t b, bool accumulate) {
  emulation::WgmmaIssue({.n = 2 * kSize,
                         .bf16 = std::is_same_v<T, Bf16>,
                         .a_mn_major = kA == Major::kMn,
                         .b_mn_major = kB == Major::kMn,
                         .accumulate = accumulate,
                         .d = d,
                         .a = nullptr,
                         .a_descriptor = a,
                         .b_descriptor = b});
}
template <typename T, Major kB, int kSize>
void Wgmma(float (&d)[kSize], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  emulation::WgmmaIssue({.n = 2 * kSize,
                         .bf16 = std::is_same_v<T, Bf16>,
                         .a_mn_major = false,
                         .b_mn_major = kB == Major::kMn,
                         .accumulate = accumulate,
                         .d = d,
                         .a = a,
                         .a_descriptor = 0,
                         .b_descriptor = b});
}

#endif

}  // namespace tandem::cuda
