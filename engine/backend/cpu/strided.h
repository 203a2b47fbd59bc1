// Runs loops over tensors that are seen through strides on the CPU's threads.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "engine/backend/backend.h"
#include "engine/backend/loop.h"
#include "engine/base/threads.h"

namespace tandem::cpu {

// Elements a thread should have before another one is worth waking.
inline constexpr int64_t kParallelGrain = 32768;

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
