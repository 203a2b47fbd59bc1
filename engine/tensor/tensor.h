// Tensor: dtype, shape and storage, row-major. Move-only; Clone() copies.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "engine/base/dtype.h"
#include "engine/tensor/shape.h"

namespace tandem {

struct TensorType {
  DType dtype = DType::kF32;
  Shape shape;

  int64_t bytes() const { return SizeOf(dtype) * shape.num_elements(); }
  bool operator==(const TensorType&) const = default;
  // "f32(2,3)"
  std::string ToString() const;
};

// Host memory, 64-byte aligned (a cache line, a full AVX-512 vector) and rounded up to that, so
// that a vector load at the last element stays inside. Uninitialised.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);
  std::byte* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  int64_t bytes_ = 0;
};

class Tensor {
 public:
  Tensor() = default;
  // Uninitialised.
  explicit Tensor(TensorType type) : type_(std::move(type)), buffer_(type_.bytes()) {}
  Tensor(DType dtype, Shape shape) : Tensor(TensorType{dtype, std::move(shape)}) {}

  template <typename T>
  static Tensor Of(Shape shape, std::span<const T> values);
  template <typename T>
  static Tensor Of(Shape shape, std::initializer_list<T> values) {
    return Of<T>(std::move(shape), std::span<const T>(values.begin(), values.size()));
  }
  template <typename T>
  static Tensor Scalar(T value) {
    return Of<T>({}, {value});
  }
  static Tensor Zeros(TensorType type);

  const TensorType& type() const { return type_; }
  DType dtype() const { return type_.dtype; }
  const Shape& shape() const { return type_.shape; }
  int64_t num_elements() const { return type_.shape.num_elements(); }
  int64_t bytes() const { return type_.bytes(); }
  void* raw() { return buffer_.data(); }
  const void* raw() const { return buffer_.data(); }
  // The elements; T must be the dtype's type (CHECKed).
  template <typename T>
  std::span<T> data() {
    CheckType(TypeOf<T>());
    return {reinterpret_cast<T*>(buffer_.data()), static_cast<size_t>(num_elements())};
  }
  template <typename T>
  std::span<const T> data() const {
    CheckType(TypeOf<T>());
    return {reinterpret_cast<const T*>(buffer_.data()), static_cast<size_t>(num_elements())};
  }
  Tensor Clone() const;
  // The same storage under another shape of as many elements (CHECKed).
  Tensor Reshaped(Shape shape) &&;

 private:
  void CheckType(DType dtype) const;

  TensorType type_;
  Buffer buffer_;
};

template <typename T>
Tensor Tensor::Of(Shape shape, std::span<const T> values) {
  Tensor tensor(TypeOf<T>(), std::move(shape));
  std::copy(values.begin(), values.end(), tensor.data<T>().begin());
  return tensor;
}

// Element i as a double or an int64, whatever the dtype (reading constants, printing).
double ElementAsDouble(const Tensor& tensor, int64_t i);
int64_t ElementAsInt(const Tensor& tensor, int64_t i);
// A copy converted to dtype: floats to integers truncate, anything to bool is != 0.
Tensor CastTensor(const Tensor& tensor, DType dtype);

}  // namespace tandem
