// libtandem_cuda.so, loaded at run time, so that one binary serves with and without a GPU.
#pragma once

#include <memory>
#include <string>

#include "engine/backend/cuda/kernels/tandem_cuda.h"
#include "engine/base/error.h"

namespace tandem::cuda {

class Library {
 public:
  // Opens `path`; empty: $TANDEM_CUDA_LIBRARY, else libtandem_cuda.so beside the program, above it,
  // in ../lib, or where the dynamic linker looks. UNAVAILABLE: it is not there, or is of another
  // version; the message says what to do. The library stays loaded.
  static absl::StatusOr<const Library*> Open(const std::string& path = {});

  // The function of that name, or null where this library has none.
  template <typename Function>
  Function* Find(const char* name) const {
    return reinterpret_cast<Function*>(Symbol(name));
  }
  const std::string& path() const { return path_; }
  // "out of memory", from an error of any function.
  std::string ErrorString(int error) const;

 private:
  Library() = default;
  void* Symbol(const char* name) const;

  std::string path_;
  void* handle_ = nullptr;
};

}  // namespace tandem::cuda
