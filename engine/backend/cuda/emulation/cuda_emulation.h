// Runs CUDA kernels on the CPU, for tests: the same .cu files compiled as C++.
//
// Each thread of a block is a fiber; blocks run one after another, and the fibers of a block in an
// order drawn from TANDEM_CUDA_EMULATION_SEED, each until it must wait. So a missing barrier shows
// as a wrong result for most seeds, a barrier that some threads never reach as a report and an
// abort, and shared memory that nobody wrote as NaN (all bits one, at the start of every block).
// Device memory is unreadable once its stream was waited for: a host that follows a device pointer
// dies at once; each allocation ends at an unmapped page. Not modelled: time, weak memory ordering,
// bank conflicts, warps split by a mask (a mask other than the full one aborts). What a kernel may
// use is what this header and the wrappers in ../kernels/ptx.h declare.
//
// `__shared__` variables are thread-local, so that the library's thread-local storage of the thread
// that runs a kernel is what to fill before a block: nothing else of the library may lie there. (A
// section of their own would not do: g++ refuses to put a template's and another's in one.)
//
// Kernels, copies and allocations take one process-wide lock; a kernel must not launch another.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

using cudaError_t = int;

#define __global__ static
#define __device__
#define __host__
#define __shared__ static thread_local
#define __constant__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace tandem::cuda::emulation {

// A copy that has been asked for and not waited for.
struct AsyncCopy {
  void* to;
  const void* from;
  int size, bytes;  // the first `bytes` of `size` are read, the rest become 0
  int64_t group;
};

// What the running fiber sees.
struct ThreadState {
  uint3 thread{}, block{};
  dim3 block_dim, grid_dim;
  int linear = 0;  // x + y * block_dim.x + z * block_dim.x * block_dim.y
  std::vector<AsyncCopy> copies{};
  int64_t copy_groups = 0;  // committed
};
extern ThreadState* current;

// The running fiber goes on when ready(context) is true. `what` names the wait in a deadlock
// report.
void Wait(bool (*ready)(void*), void* context, const char* what);
template <typename Ready>
void WaitUntil(Ready ready, const char* what) {
  Wait([](void* context) { return (*static_cast<Ready*>(context))(); }, &ready, what);
}
// Barrier `id` (0..15) of the block among `threads` of its threads (0: all that still run).
void Barrier(int id, int threads);
// Arrives at the barrier without waiting for it (bar.arrive).
void BarrierArrive(int id, int threads);
// All running lanes of the warp meet; each gives `bytes` (at most 64) and gets the 32 lanes' (those
// of lanes that ended are zero), stride 64, valid until the warp's next exchange but one.
const unsigned char* WarpExchange(const void* value, size_t bytes);
// The same for the four warps of a warpgroup: they meet, and the last one to come runs `work`
// first.
void WarpgroupMeet(const std::function<void()>& work);
char* SharedMemory();  // of the block, 1024-byte aligned
size_t SharedMemoryBytes();
// Of a pointer into the block's dynamic shared memory; aborts for any other.
unsigned SharedOffset(const void* pointer);
// `check` runs after every block: for work that must not outlast it.
void AtBlockEnd(void (*check)());
[[noreturn]] void Fatal(const char* what);
inline void CheckMask(unsigned mask) {
  if (mask != 0xffffffffu) Fatal("a warp operation of some lanes only, which is not modelled");
}

// cp.async of ../kernels/ptx.h. The destination is poisoned at once and written at the wait, so
// that neither a reader before it nor one that still needs the old values goes unseen.
void CopyAsync(void* to, const void* from, int size, int bytes);
void CommitCopies();
void WaitCopies(int64_t pending_groups);
// ldmatrix.x4; `row` is this lane's.
void LoadMatrix4(unsigned (&r)[4], const void* row, bool transposed);

// Runs the kernel now, or records it under capture. Returns cudaGetLastError(), as a launch on the
// device does: an earlier call's error, too, unless somebody took it.
cudaError_t SubmitKernel(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> body);

template <typename T>
T Shuffle(T value, int source_lane) {
  static_assert(std::is_trivially_copyable_v<T>);
  const unsigned char* all = WarpExchange(&value, sizeof(T));
  T result;
  std::memcpy(&result, all + 64 * (source_lane & 31), sizeof(T));
  return result;
}
inline int Lane() { return current->linear & 31; }

}  // namespace tandem::cuda::emulation

#define threadIdx (::tandem::cuda::emulation::current->thread)
#define blockIdx (::tandem::cuda::emulation::current->block)
#define blockDim (::tandem::cuda::emulation::current->block_dim)
#define gridDim (::tandem::cuda::emulation::current->grid_dim)
inline constexpr int warpSize = 32;

inline void __syncthreads() { ::tandem::cuda::emulation::Barrier(0, 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::tandem::cuda::emulation::CheckMask(mask);
  ::tandem::cuda::emulation::WarpExchange(nullptr, 0);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
// Masks are full (CheckMask); widths below 32 work as on the device.
template <typename T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  ::tandem::cuda::emulation::CheckMask(mask);
  const int self = ::tandem::cuda::emulation::Lane();
  return ::tandem::cuda::emulation::Shuffle(v, (self & ~(width - 1)) | (lane & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int lane_mask, int width = 32) {
  ::tandem::cuda::emulation::CheckMask(mask);
  const int self = ::tandem::cuda::emulation::Lane(), source = self ^ lane_mask;
  const bool inside = (source & ~(width - 1)) == (self & ~(width - 1));
  return ::tandem::cuda::emulation::Shuffle(v, inside ? source : self);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  ::tandem::cuda::emulation::CheckMask(mask);
  const int self = ::tandem::cuda::emulation::Lane(), source = self + static_cast<int>(delta);
  const bool inside = source / width == self / width;
  return ::tandem::cuda::emulation::Shuffle(v, inside ? source : self);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  ::tandem::cuda::emulation::CheckMask(mask);
  const int self = ::tandem::cuda::emulation::Lane(), source = self - static_cast<int>(delta);
  const bool inside = source >= 0 && source / width == self / width;
  return ::tandem::cuda::emulation::Shuffle(v, inside ? source : self);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  ::tandem::cuda::emulation::CheckMask(mask);
  const int flag = predicate != 0 ? 1 : 0;
  const unsigned char* all = ::tandem::cuda::emulation::WarpExchange(&flag, sizeof(flag));
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= unsigned{all[64 * lane] != 0} << lane;
  return result;
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, !p) == 0; }

// Atomics: fibers never interleave within one.
template <typename T>
T atomicAdd(T* p, T v) {
  const T old = *p;
  *p = old + v;
  return old;
}
template <typename T>
T atomicMax(T* p, T v) {
  const T old = *p;
  *p = std::max(old, v);
  return old;
}
template <typename T>
T atomicOr(T* p, T v) {
  const T old = *p;
  *p = old | v;
  return old;
}
template <typename T>
T atomicExch(T* p, T v) {
  const T old = *p;
  *p = v;
  return old;
}
template <typename T>
T atomicCAS(T* p, T expected, T v) {
  const T old = *p;
  if (old == expected) *p = v;
  return old;
}

// Arithmetic.
using std::max;
using std::min;
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline float rsqrtf(float a) { return 1 / std::sqrt(a); }
inline double rsqrt(double a) { return 1 / std::sqrt(a); }
inline float __expf(float a) { return std::exp(a); }
inline float __logf(float a) { return std::log(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __float_as_uint(float f) { return std::bit_cast<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return std::bit_cast<float>(u); }
inline int __float_as_int(float f) { return std::bit_cast<int>(f); }
inline float __int_as_float(int i) { return std::bit_cast<float>(i); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((Wide{a} * b) >> 64);
}
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __ffs(int v) { return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1; }
template <typename T>
T __ldg(const T* p) {
  return *p;
}

// The runtime, as far as ../kernels uses it. Work runs when it is submitted, except under capture.

enum : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNotSupported = 801
};
using cudaStream_t = struct CUstream_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
using cudaEvent_t = struct CUevent_st*;
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem, sharedMemPerBlockOptin;
  int major, minor, multiProcessorCount;
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76
};
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* available, size_t* total);
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
// The last failure of a call above on this thread, which is forgotten.
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
