#include "engine/tensor/tensor.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "engine/tensor/dispatch.h"

namespace tandem {

std::string TensorType::ToString() const { return StrCat(DTypeName(dtype), shape.ToString()); }

Buffer::Buffer(int64_t bytes) : bytes_(bytes) {
  const size_t rounded = std::max<size_t>(64, (static_cast<size_t>(bytes) + 63) / 64 * 64);
  data_.reset(static_cast<std::byte*>(::operator new (rounded, std::align_val_t{64})));
}

void Buffer::Free::operator()(std::byte* p) const { ::operator delete (p, std::align_val_t{64}); }

Tensor Tensor::Zeros(TensorType type) {
  Tensor tensor(std::move(type));
  std::memset(tensor.raw(), 0, tensor.bytes());
  return tensor;
}

Tensor Tensor::Clone() const {
  Tensor copy(type_);
  if (bytes() > 0) std::memcpy(copy.raw(), raw(), bytes());
  return copy;
}

Tensor Tensor::Reshaped(Shape shape) && {
  if (shape.num_elements() != num_elements()) {
    std::fprintf(stderr, "CHECK: reshape of %s to %s\n", type_.ToString().c_str(),
                 shape.ToString().c_str());
    std::abort();
  }
  type_.shape = std::move(shape);
  return std::move(*this);
}

void Tensor::CheckType(DType dtype) const {
  if (dtype != type_.dtype) {
    std::fprintf(stderr, "CHECK: a %s tensor read as %s\n",
                 std::string(DTypeName(type_.dtype)).c_str(),
                 std::string(DTypeName(dtype)).c_str());
    std::abort();
  }
}

double ElementAsDouble(const Tensor& tensor, int64_t i) {
  return Dispatch(tensor.dtype(), [&]<typename T>(T*) {
    return ConvertElement<double>(static_cast<const T*>(tensor.raw())[i]);
  });
}

int64_t ElementAsInt(const Tensor& tensor, int64_t i) {
  return Dispatch(tensor.dtype(), [&]<typename T>(T*) {
    return ConvertElement<int64_t>(static_cast<const T*>(tensor.raw())[i]);
  });
}

Tensor CastTensor(const Tensor& tensor, DType dtype) {
  Tensor out(dtype, tensor.shape());
  Dispatch(tensor.dtype(), [&]<typename From>(From*) {
    Dispatch(dtype, [&]<typename To>(To*) {
      const From* x = static_cast<const From*>(tensor.raw());
      std::transform(x, x + tensor.num_elements(), static_cast<To*>(out.raw()),
                     [](From v) { return ConvertElement<To>(v); });
    });
  });
  return out;
}

}  // namespace tandem
