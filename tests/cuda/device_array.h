// Arrays in the (emulated) device's memory, for tests of the C interface.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace tandem::cuda::testing {

// Freed when it goes; fresh memory is poisoned (all bits one: NaN).
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) : size_(size) {
    EXPECT_EQ(tandem_cuda_allocate(&data_, size * static_cast<int64_t>(sizeof(T)), nullptr), 0);
  }
  explicit DeviceArray(const std::vector<T>& values)
      : DeviceArray(static_cast<int64_t>(values.size())) {
    Set(values);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { EXPECT_EQ(tandem_cuda_free(data_, nullptr), 0); }

  void Set(const std::vector<T>& values) {
    EXPECT_EQ(tandem_cuda_upload(data_, values.data(), Bytes(), nullptr), 0);
  }
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    EXPECT_EQ(tandem_cuda_download(values.data(), data_, Bytes(), nullptr), 0);
    EXPECT_EQ(tandem_cuda_stream_finish(nullptr), 0);
    return values;
  }
  T* get() const { return static_cast<T*>(data_); }
  int64_t size() const { return size_; }

 private:
  int64_t Bytes() const { return size_ * static_cast<int64_t>(sizeof(T)); }

  int64_t size_;
  void* data_ = nullptr;
};

}  // namespace tandem::cuda::testing
