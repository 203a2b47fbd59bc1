#include "engine/tensor/tensor.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace tandem {
namespace {

// Calls f with a null pointer of the dtype's C++ type.
template <typename F>
auto Dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(static_cast<float*>(nullptr));
    case DType::kF64:
      return f(static_cast<double*>(nullptr));
    case DType::kF16:
      return f(static_cast<F16*>(nullptr));
    case DType::kBF16:
      return f(static_cast<BF16*>(nullptr));
    case DType::kI8:
      return f(static_cast<int8_t*>(nullptr));
    case DType::kI16:
      return f(static_cast<int16_t*>(nullptr));
    case DType::kI32:
      return f(static_cast<int32_t*>(nullptr));
    case DType::kI64:
      return f(static_cast<int64_t*>(nullptr));
    case DType::kU8:
      return f(static_cast<uint8_t*>(nullptr));
    case DType::kU16:
      return f(static_cast<uint16_t*>(nullptr));
    case DType::kU32:
      return f(static_cast<uint32_t*>(nullptr));
    case DType::kU64:
      return f(static_cast<uint64_t*>(nullptr));
    case DType::kBool:
      return f(static_cast<bool*>(nullptr));
  }
  std::abort();
}

template <typename To, typename From>
To ConvertElement(From x) {
  if constexpr (std::is_same_v<From, F16> || std::is_same_v<From, BF16>) {
    return ConvertElement<To>(static_cast<float>(x));
  } else if constexpr (std::is_same_v<To, F16> || std::is_same_v<To, BF16>) {
    return To(static_cast<float>(x));
  } else if constexpr (std::is_same_v<To, bool>) {
    return x != From{};
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    // Out of range and NaN are undefined in C++: saturate, NaN becomes 0.
    if (std::isnan(x)) return To{0};
    constexpr double low = static_cast<double>(std::numeric_limits<To>::min());
    constexpr double high = static_cast<double>(std::numeric_limits<To>::max());
    const double d = static_cast<double>(x);
    if (d <= low) return std::numeric_limits<To>::min();
    if (d >= high) return std::numeric_limits<To>::max();
    return static_cast<To>(x);
  } else {
    return static_cast<To>(x);
  }
}

}  // namespace

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
