// Loops over tensors that are seen through strides: broadcasts, slices, transposes.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "engine/tensor/shape.h"

namespace tandem {

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

}  // namespace tandem
