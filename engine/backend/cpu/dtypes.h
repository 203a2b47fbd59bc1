// Which element types a kernel takes, and how 16-bit floats use the f32 kernels.
#pragma once

#include <algorithm>
#include <array>
#include <string>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/kernels/elementwise.h"
#include "engine/backend/cpu/strided.h"
#include "engine/base/error.h"
#include "engine/tensor/dispatch.h"

namespace tandem::cpu {

// The error of a kernel that is bound to a dtype it has no code for; the plan names the operator.
inline absl::Status UnsupportedDType(DType dtype) {
  return Unimplemented(DTypeName(dtype), " is not supported on the CPU");
}
// OK if input `i` is f32.
inline absl::Status RequireF32(const KernelSpec& spec, int i) {
  return spec.dtype(i) == DType::kF32 ? absl::OkStatus() : UnsupportedDType(spec.dtype(i));
}

// A 16-bit float is computed with as a float, everything else as itself.
template <typename T>
auto Widen(T x) {
  if constexpr (kIsHalf<T>) {
    return static_cast<float>(x);
  } else {
    return x;
  }
}
template <typename T, typename Wide>
T Narrow(Wide x) {
  return static_cast<T>(x);
}

inline void Convert(const BF16* x, float* y, int64_t n) { ConvertBF16ToF32(x, y, n); }
inline void Convert(const F16* x, float* y, int64_t n) { ConvertF16ToF32(x, y, n); }
inline void Convert(const float* x, BF16* y, int64_t n) { ConvertF32ToBF16(x, y, n); }
inline void Convert(const float* x, F16* y, int64_t n) { ConvertF32ToF16(x, y, n); }

// Runs f(inputs, outputs, count) on f32 copies of `n` elements of 16-bit arrays, a chunk at a time.
template <typename Half, size_t kInputs, size_t kOutputs, typename F>
void ThroughF32(const KernelArgs& args, int64_t n, F f) {
  constexpr int64_t kChunk = 512;
  ParallelFor(n, kParallelGrain, [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kInputs + kOutputs][kChunk];
    std::array<const float*, kInputs> inputs;
    std::array<float*, kOutputs> outputs;
    for (size_t k = 0; k < kInputs; ++k) inputs[k] = buffer[k];
    for (size_t k = 0; k < kOutputs; ++k) outputs[k] = buffer[kInputs + k];
    for (int64_t i = begin; i < end; i += kChunk) {
      const int64_t count = std::min(kChunk, end - i);
      for (size_t k = 0; k < kInputs; ++k) {
        Convert(args.in<Half>(static_cast<int>(k)) + i, buffer[k], count);
      }
      f(inputs, outputs, count);
      for (size_t k = 0; k < kOutputs; ++k) {
        Convert(outputs[k], args.out<Half>(static_cast<int>(k)) + i, count);
      }
    }
  });
}

}  // namespace tandem::cpu
