// sm_90a's own instructions: mbarriers, the tensor memory accelerator (TMA), warp specialisation
// and, in wgmma.h, the warpgroup's matrix product. Thin wrappers of PTX (ISA 8.0 and later; the
// names below), with emulated twins. A kernel that uses them guards its body by TANDEM_HOPPER: no
// other chip has them.
#pragma once

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/tensor_map.h"

namespace tandem::cuda {

// --- mbarrier: phases of `count` arrivals and of the bytes that loads bring
// -----------------------

// By one thread; then MbarrierInitFence by it and __syncthreads by all.
__device__ __forceinline__ void MbarrierInit(uint64_t* barrier, unsigned count) {
#ifdef __CUDACC__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(count)
               : "memory");
#else
  emulation::BarrierObjectInit(barrier, count);
#endif
}
// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void MbarrierInitFence() {
#ifdef __CUDACC__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void MbarrierArrive(uint64_t* barrier) {
#ifdef __CUDACC__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
#else
  emulation::BarrierObjectArrive(barrier, 0);
#endif
}
// Arrives, and has the current phase wait for `bytes` more of loads.
__device__ __forceinline__ void MbarrierArriveExpect(uint64_t* barrier, unsigned bytes) {
#ifdef __CUDACC__
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
#else
  emulation::BarrierObjectArrive(barrier, static_cast<int>(bytes));
#endif
}
// Returns once the phase of that parity is over: 0 for the first, 1 for the second, 0 for the
// third ... On a fresh barrier parity 1 does not wait.
__device__ __forceinline__ void MbarrierWait(uint64_t* barrier, unsigned parity) {
#ifdef __CUDACC__
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over:\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
#else
  emulation::BarrierObjectWait(barrier, parity);
#endif
}

// --- TMA: boxes of a tensor (tensor_map.h) between global and shared memory
// ----------------------- Shared addresses 128-byte aligned (1024 where the map swizzles).
// Coordinates innermost first, in elements. One thread issues.

__device__ __forceinline__ void TmaPrefetchMap(const CUtensorMap* map) {
#ifdef __CUDACC__
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
#else
  (void)map;
#endif
}

// Global to shared; outside the tensor zero. Counts the box's bytes down at the barrier when done.
__device__ __forceinline__ void TmaLoad(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                        int x, int y) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y)
      : "memory");
#else
  const int at[] = {x, y};
  emulation::BulkLoad(shared, map, barrier, 2, at);
#endif
}
__device__ __forceinline__ void TmaLoad(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                        int x, int y, int z) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
#else
  const int at[] = {x, y, z};
  emulation::BulkLoad(shared, map, barrier, 3, at);
#endif
}
__device__ __forceinline__ void TmaLoad(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                        int x, int y, int z, int w) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5, %6}], [%2];" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
#else
  const int at[] = {x, y, z, w};
  emulation::BulkLoad(shared, map, barrier, 4, at);
#endif
}

// Shared to global; nothing is written outside the tensor. The shared memory was written before a
// FenceProxyAsync, and stays as it is until TmaStoreWait.
__device__ __forceinline__ void TmaStore(const CUtensorMap* map, const void* shared, int x, int y) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(SharedAddress(shared)), "r"(x), "r"(y)
      : "memory");
#else
  const int at[] = {x, y};
  emulation::BulkStore(map, shared, 2, at);
#endif
}
__device__ __forceinline__ void TmaStore(const CUtensorMap* map, const void* shared, int x, int y,
                                         int z) {
#ifdef __CUDACC__
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(SharedAddress(shared)), "r"(x), "r"(y), "r"(z)
      : "memory");
#else
  const int at[] = {x, y, z};
  emulation::BulkStore(map, shared, 3, at);
#endif
}
__device__ __forceinline__ void TmaStoreCommit() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#else
  emulation::BulkStoreCommit();
#endif
}
// Until all but the last kInFlight groups of this thread have read their shared memory.
template <int kInFlight>
__device__ __forceinline__ void TmaStoreWait() {
#ifdef __CUDACC__
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kInFlight) : "memory");
#else
  emulation::BulkStoreWait(kInFlight);
#endif
}

// --- warp specialisation
// --------------------------------------------------------------------------

// By each thread that wrote shared memory by ordinary stores, before the barrier after which wgmma
// or TMA reads it.
__device__ __forceinline__ void FenceProxyAsync() {
#ifdef __CUDACC__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Registers a thread of the whole warpgroup: a multiple of 8 in 24..256. The kernel is compiled
// with __launch_bounds__(threads, 1).
template <int kRegisters>
__device__ __forceinline__ void RegistersIncrease() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#ifdef __CUDACC__
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void RegistersDecrease() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
#ifdef __CUDACC__
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

// Named barrier `id` (1..15; 0 is __syncthreads) among `threads`, a multiple of 32.
__device__ __forceinline__ void NamedBarrierSync(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulation::Barrier(id, threads);
#endif
}
__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
#ifdef __CUDACC__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emulation::BarrierArrive(id, threads);
#endif
}

}  // namespace tandem::cuda

#include "engine/backend/cuda/kernels/wgmma.h"
