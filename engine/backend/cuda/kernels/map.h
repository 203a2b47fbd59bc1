// The kernel of everything elementwise: out = f(in...) over a strided loop, several neighbouring
// elements a thread.
#pragma once

#include <cstdint>
#include <utility>

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/divisor.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda {

// tandem_cuda_loop for a kernel: fewer than 2^31 elements, the last dimension in packs.
template <int kOperands>
struct PackedLoop {
  uint32_t items = 0;                  // packs in all
  int32_t dims = 0;                    // before the last one
  Divisor row;                         // packs of the last dimension
  Divisor size[TANDEM_CUDA_MAX_DIMS];  // of the others
  int64_t stride[kOperands][TANDEM_CUDA_MAX_DIMS];
  int64_t step[kOperands];  // the last dimension's stride

  // Each operand's offset at the first element of a pack of v.
  __device__ __forceinline__ void Locate(uint32_t item, int v, int64_t* offset) const {
    uint32_t outer = 0, inner = item;
    if (dims > 0) {
      outer = row.Divide(item);
      inner = item - outer * row.divisor();
    }
#pragma unroll
    for (int k = 0; k < kOperands; ++k) offset[k] = step[k] * (static_cast<int64_t>(inner) * v);
    for (int i = dims - 1; i >= 0; --i) {
      const uint32_t next = size[i].Divide(outer);
      const auto index = static_cast<int64_t>(outer - next * size[i].divisor());
      outer = next;
#pragma unroll
      for (int k = 0; k < kOperands; ++k) offset[k] += index * stride[k][i];
    }
  }
};

template <typename T, int v>
struct alignas(sizeof(T) * v) Pack {
  T element[v];
};

template <int v, typename T>
__device__ __forceinline__ Pack<T, v> LoadPack(const T* p, int64_t step) {
  if (v == 1 || step == 1) return *reinterpret_cast<const Pack<T, v>*>(p);
  Pack<T, v> pack;
  if (step == 0) {
    const T x = *p;
#pragma unroll
    for (int i = 0; i < v; ++i) pack.element[i] = x;
  } else {
#pragma unroll
    for (int i = 0; i < v; ++i) pack.element[i] = p[i * step];
  }
  return pack;
}

template <int v, typename F, typename Out, typename... In>
__device__ __forceinline__ void ApplyToPack(const F& f, Out* out, int64_t step,
                                            const Pack<In, v>&... in) {
  Pack<Out, v> y;
#pragma unroll
  for (int i = 0; i < v; ++i) y.element[i] = f(in.element[i]...);
  if (v == 1 || step == 1) {
    *reinterpret_cast<Pack<Out, v>*>(out) = y;
  } else {
#pragma unroll
    for (int i = 0; i < v; ++i) out[i * step] = y.element[i];
  }
}

template <int v, typename Loop, typename F, typename Out, size_t... k, typename... In>
__device__ __forceinline__ void MapPack(const Loop& loop, const int64_t* offset, const F& f,
                                        Out* out, std::index_sequence<k...>, const In*... in) {
  ApplyToPack<v, F, Out, In...>(f, out + offset[0], loop.step[0],
                                LoadPack<v>(in + offset[k + 1], loop.step[k + 1])...);
}

template <int v, typename F, typename Out, typename... In>
__global__ void __launch_bounds__(256)
    MapKernel(const PackedLoop<1 + sizeof...(In)> loop, F f, Out* out, const In*... in) {
  const uint32_t stride = gridDim.x * blockDim.x;
  for (uint32_t item = blockIdx.x * blockDim.x + threadIdx.x; item < loop.items; item += stride) {
    int64_t offset[1 + sizeof...(In)];
    loop.Locate(item, v, offset);
    MapPack<v>(loop, offset, f, out, std::index_sequence_for<In...>(), in...);
  }
}

// Whether packs of v elements of operand k are aligned wherever they are loaded or stored whole.
template <int v, typename T>
bool Packable(const tandem_cuda_loop& loop, int k, const T* p) {
  const int last = loop.dims - 1;
  if (last < 0 || loop.stride[k][last] != 1) return true;
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Pack<T, v>) != 0) return false;
  for (int i = 0; i < last; ++i) {
    if (loop.stride[k][i] % v != 0) return false;
  }
  return true;
}

template <int kOperands>
PackedLoop<kOperands> MakePackedLoop(const tandem_cuda_loop& loop, int v) {
  PackedLoop<kOperands> packed;
  packed.dims = loop.dims > 0 ? loop.dims - 1 : 0;
  const auto last = static_cast<uint32_t>(loop.dims > 0 ? loop.size[packed.dims] / v : 1);
  packed.items = last;
  packed.row = Divisor(last);
  for (int i = 0; i < packed.dims; ++i) {
    packed.items *= static_cast<uint32_t>(loop.size[i]);
    packed.size[i] = Divisor(static_cast<uint32_t>(loop.size[i]));
    for (int k = 0; k < kOperands; ++k) packed.stride[k][i] = loop.stride[k][i];
  }
  for (int k = 0; k < kOperands; ++k) {
    packed.step[k] = loop.dims > 0 ? loop.stride[k][packed.dims] : 1;
  }
  return packed;
}

template <int v, typename F, typename Out, typename... In>
cudaError_t LaunchMap(const tandem_cuda_loop& loop, const F& f, cudaStream_t stream, Out* out,
                      const In*... in) {
  const auto packed = MakePackedLoop<1 + sizeof...(In)>(loop, v);
  return Launch(MapKernel<v, F, Out, In...>, BlocksFor(packed.items, 256), 256, 0, stream, packed,
                f, out, in...);
}

// Calls run(loop, offsets) for the parts of dimension `dim` before and from `middle` on.
template <int kOperands, typename Run>
cudaError_t Halves(const tandem_cuda_loop& loop, int dim, int64_t middle, const Run& run) {
  tandem_cuda_loop part = loop;
  int64_t offset[kOperands] = {};
  part.size[dim] = middle;
  const cudaError_t error = run(part, offset);
  if (error != cudaSuccess) return error;
  part.size[dim] = loop.size[dim] - middle;
  for (int k = 0; k < kOperands; ++k) offset[k] = middle * loop.stride[k][dim];
  return run(part, offset);
}

template <int v, typename F, typename Any, typename Out, size_t... k, typename... In>
cudaError_t MapOver(const tandem_cuda_loop& loop, const F& f, const Any& any, cudaStream_t stream,
                    Out* out, std::index_sequence<k...> inputs, const In*... in) {
  int64_t count = 1;
  int longest = 0;
  for (int i = 0; i < loop.dims; ++i) {
    count *= loop.size[i];
    if (loop.size[i] > loop.size[longest]) longest = i;
  }
  if (count == 0) return cudaSuccess;
  const auto halves = [&](int dim, int64_t middle) {
    return Halves<1 + sizeof...(In)>(
        loop, dim, middle, [&](const tandem_cuda_loop& part, const int64_t* offset) {
          return MapOver<v>(part, f, any, stream, out + offset[0], inputs, (in + offset[k + 1])...);
        });
  };
  // Positions have 32 bits.
  if (count > int64_t{1} << 30) {
    const int64_t half = loop.size[longest] / 2;
    return halves(longest, half < v ? half : half / v * v);
  }
  if constexpr (v > 1) {
    const int last = loop.dims - 1;
    const int64_t rest = last < 0 ? 1 : loop.size[last] % v;
    if (last == 0 && rest != 0 && loop.size[0] > v) return halves(0, loop.size[0] - rest);
    if (rest == 0 && Packable<v>(loop, 0, out) &&
        (Packable<v>(loop, static_cast<int>(k) + 1, in) && ...)) {
      return LaunchMap<v>(loop, f, stream, out, in...);
    }
  }
  return LaunchMap<1>(loop, any, stream, out, in...);
}

// out = f(in...) over the loop, by v elements a thread where alignment and sizes allow; elsewhere
// by `any`, which computes the same (several f may share a kernel for that). An output may be an
// input of the same strides.
template <int v, typename F, typename Any, typename Out, typename... In>
cudaError_t Map(const tandem_cuda_loop& loop, const F& f, const Any& any, tandem_cuda_stream stream,
                Out* out, const In*... in) {
  return MapOver<v>(loop, f, any, static_cast<cudaStream_t>(stream), out,
                    std::index_sequence_for<In...>(), in...);
}
template <int v, typename F, typename Out, typename... In>
cudaError_t Map(const tandem_cuda_loop& loop, const F& f, tandem_cuda_stream stream, Out* out,
                const In*... in) {
  return Map<v>(loop, f, f, stream, out, in...);
}

// The loop over n contiguous elements of every operand.
inline tandem_cuda_loop Contiguous(int64_t n) {
  tandem_cuda_loop loop = {};
  loop.dims = 1;
  loop.size[0] = n;
  for (auto& stride : loop.stride) stride[0] = 1;
  return loop;
}

}  // namespace tandem::cuda
