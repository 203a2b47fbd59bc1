// NumPy's .npy files (format versions 1, 2 and 3; numpy.lib.format), little-endian, C order.
#pragma once

#include <string>
#include <string_view>

#include "engine/tensor/tensor.h"

namespace tandem {

// A whole file's bytes to a tensor. Errors: not an .npy file; big-endian or Fortran order
// (Unimplemented); a dtype without counterpart; data that does not fill the shape exactly.
absl::StatusOr<Tensor> ReadNpy(std::string_view bytes);

// The tensor as an .npy file, version 1.0. bf16, which NumPy lacks, is Unimplemented.
absl::StatusOr<std::string> WriteNpy(const Tensor& tensor);

}  // namespace tandem
