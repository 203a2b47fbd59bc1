// Loops over tensors that are seen through strides: broadcasts, slices, transposes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/base/threads.h"

namespace tandem::cpu {

// Elements a thread should have before another one is worth waking.
inline constexpr int64_t kParallelGrain = 32768;

// One dimension of a loop over K operands: its size, and each operand's step in elements.
template <int K>
struct LoopDim {
  int64_t size;
  std::array<int64_t, K> stride;
};
template <int K>
using Loop = std::vector<LoopDim<K>>;

// The same loop with as few dimensions as possible: size 1 dropped, neighbours merged where for
// every operand the outer stride is the inner one times its size. At least one dimension remains.
template <int K>
Loop<K> Coalesce(const Loop<K>& dims) {
  Loop<K> out;
  for (const LoopDim<K>& dim : dims) {
    if (dim.size == 1) continue;
    bool merge = !out.empty();
    for (int k = 0; k < K && merge; ++k) {
      merge = out.back().stride[k] == dim.size * dim.stride[k];
    }
    if (merge) {
      out.back().size *= dim.size;
      out.back().stride = dim.stride;
    } else {
      out.push_back(dim);
    }
  }
  if (out.empty()) {
    LoopDim<K> one{1, {}};
    one.stride.fill(1);
    out.push_back(one);
  }
  return out;
}

// The strides of `shape` when it is broadcast to `out`: 0 where it is stretched.
std::vector<int64_t> BroadcastStrides(const Shape& shape, const Shape& out);

// The loop of an output and inputs broadcast to it: operand 0 is the output.
template <int K>
Loop<K> BroadcastLoop(const Shape& out, const std::array<const Shape*, K - 1>& inputs) {
  Loop<K> dims(out.rank());
  std::array<std::vector<int64_t>, K> strides;
  strides[0] = BroadcastStrides(out, out);
  for (int k = 1; k < K; ++k) strides[k] = BroadcastStrides(*inputs[k - 1], out);
  for (int i = 0; i < out.rank(); ++i) {
    dims[i].size = out[i];
    for (int k = 0; k < K; ++k) dims[i].stride[k] = strides[k][i];
  }
  return Coalesce<K>(dims);
}

// Elements of dimensions [0, end).
template <int K>
int64_t CountDims(const Loop<K>& dims, size_t end) {
  int64_t count = 1;
  for (size_t i = 0; i < end; ++i) count *= dims[i].size;
  return count;
}

// Calls body(offsets) for each position of dims [0, outer), in order within a thread; threads share
// the positions when `inner`, the elements that one call does, does not keep them busy itself.
template <int K, typename Body>
void ForOuter(const Loop<K>& dims, size_t outer, int64_t inner, Body&& body) {
  const int64_t count = CountDims<K>(dims, outer);
  const auto run = [&](int64_t begin, int64_t end) {
    std::array<int64_t, K> offset{};
    std::array<int64_t, kMaxRank> index{};
    int64_t rest = begin;
    for (size_t i = outer; i-- > 0;) {
      index[i] = rest % dims[i].size;
      rest /= dims[i].size;
      for (int k = 0; k < K; ++k) offset[k] += index[i] * dims[i].stride[k];
    }
    for (int64_t position = begin; position < end; ++position) {
      body(offset);
      for (size_t i = outer; i-- > 0;) {
        for (int k = 0; k < K; ++k) offset[k] += dims[i].stride[k];
        if (++index[i] < dims[i].size) break;
        for (int k = 0; k < K; ++k) offset[k] -= dims[i].size * dims[i].stride[k];
        index[i] = 0;
      }
    }
  };
  if (inner >= 2 * kParallelGrain) {
    run(0, count);
  } else {
    ParallelFor(count, kParallelGrain / std::max<int64_t>(1, inner) + 1, run);
  }
}

// Copies elements of `element_bytes` (1, 2, 4 or 8): operand 0 is written, operand 1 read. The two
// may not overlap.
void CopyStrided(const Loop<2>& dims, int64_t element_bytes, void* out, const void* in);
// Parallel memory filling and copying.
void CopyBytes(void* out, const void* in, int64_t bytes);
void ZeroBytes(void* out, int64_t bytes);

}  // namespace tandem::cpu
