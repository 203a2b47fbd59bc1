// Which element types the bindings of floating-point kernels take.
#pragma once

#include "engine/backend/cuda/cuda_backend.h"

namespace tandem::cuda {

inline absl::Status UnsupportedDType(DType dtype) {
  return Unimplemented(DTypeName(dtype), " is not supported on CUDA");
}

// OK if input `i` is f32, bf16 or f16.
inline absl::Status RequireFloat(const KernelSpec& spec, int i) {
  switch (spec.dtype(i)) {
    case DType::kF32:
    case DType::kBF16:
    case DType::kF16:
      return absl::OkStatus();
    default:
      return UnsupportedDType(spec.dtype(i));
  }
}

// The kernels keep statistics (mean, rstd, lse, loss) in f32.
inline absl::Status RequireF32Statistic(DType dtype) {
  return dtype == DType::kF32
             ? absl::OkStatus()
             : Unimplemented("statistics in ", DTypeName(dtype), " are not supported on CUDA");
}

// The library's number of a dtype.
inline int32_t Number(DType dtype) { return static_cast<int32_t>(dtype); }

// Null where the optional input is absent.
inline const void* OptionalInput(const KernelArgs& args, size_t i) {
  return i < args.inputs.size() ? args.inputs[i] : nullptr;
}

// The input as a matrix: its last dimension is a row.
struct Matrix {
  int64_t rows, cols;
  explicit Matrix(const Shape& shape) : rows(shape.Count(0, shape.rank() - 1)), cols(shape[-1]) {}
};

}  // namespace tandem::cuda
