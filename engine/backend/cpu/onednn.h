// The bridge to oneDNN: its engine and stream, its errors as Status, and the difference between
// oneDNN 2 (an operation descriptor, then a primitive descriptor) and oneDNN 3 (one step).
//
// Primitives are made when a kernel is bound and only executed when it runs. oneDNN allows one
// primitive to execute in several threads at once if each brings its own scratchpad and memory
// objects; every Execution below has its own.
#pragma once

#include <omp.h>

#include <cstdint>
#include <dnnl.hpp>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/base/error.h"

namespace tandem::cpu {

// The process's one CPU engine and its one stream.
const dnnl::engine& OneDnnEngine();
const dnnl::stream& OneDnnStream();

// Attributes of primitives whose scratchpad the caller gives (DNNL_ARG_SCRATCHPAD), so that
// executing does not allocate.
dnnl::primitive_attr UserScratchpad();

// A Status of what oneDNN threw.
absl::Status OneDnnStatus(const dnnl::error& error);

// Runs body() and returns its Status, or what oneDNN threw: the one place that catches.
template <typename Body>
absl::Status GuardOneDnn(Body&& body) {
  try {
    return body();
  } catch (const dnnl::error& error) {
    return OneDnnStatus(error);
  }
}

// Which of oneDNN's implementations, by name ("jit:avx2", "x64:gemm:jit"), a caller would have.
using Accept = bool (*)(std::string_view implementation);
inline bool AnyImplementation(std::string_view) { return true; }

// What make() gives, at the first implementation that is accepted, or the first one if none is.
template <typename Make>
auto FirstAccepted(Accept accept, const Make& make) {
  for (auto desc = make(); true;) {
    if (accept(desc.impl_info_str())) return desc;
    if (!desc.next_impl()) return make();
  }
}

// The descriptor of a primitive; `args` as oneDNN 3 takes them, without engine and attributes.
template <typename Primitive, typename... Args>
typename Primitive::primitive_desc Describe(Accept accept, const dnnl::primitive_attr& attr,
                                            const Args&... args) {
  using Desc = typename Primitive::primitive_desc;
#if DNNL_VERSION_MAJOR >= 3
  return FirstAccepted(accept, [&] { return Desc(OneDnnEngine(), args..., attr); });
#else
  // It must live while implementations are gone through: the iterator points to it.
  const typename Primitive::desc operation(args...);
  return FirstAccepted(accept, [&] { return Desc(operation, attr, OneDnnEngine()); });
#endif
}

// The same for a backward primitive, which also needs its forward primitive's descriptor.
template <typename Primitive, typename Hint, typename... Args>
typename Primitive::primitive_desc DescribeBackward(Accept accept, const dnnl::primitive_attr& attr,
                                                    const Hint& hint, const Args&... args) {
  using Desc = typename Primitive::primitive_desc;
#if DNNL_VERSION_MAJOR >= 3
  return FirstAccepted(accept, [&] { return Desc(OneDnnEngine(), args..., hint, attr); });
#else
  const typename Primitive::desc operation(args...);
  return FirstAccepted(accept, [&] { return Desc(operation, attr, OneDnnEngine(), hint); });
#endif
}

// A primitive with its memory objects made in advance. Move-only; one thread at a time.
class Execution {
 public:
  using Argument = std::pair<int, dnnl::memory::desc>;  // DNNL_ARG_..., layout

  Execution() = default;  // nothing to execute
  // Arguments of zero size are left out (an absent bias, an empty scratchpad).
  Execution(const dnnl::primitive& primitive, const std::vector<Argument>& arguments);
  Execution(Execution&&) = default;
  Execution& operator=(Execution&&) = default;

  bool empty() const { return arguments_.empty(); }
  // One address an argument, in the constructor's order. Does not throw; a failure is a bug and
  // aborts: nothing depends on the data, and the scratchpad is there.
  void Run(std::initializer_list<const void*> addresses);

 private:
  dnnl::primitive primitive_;
  std::vector<dnnl::memory> memories_;      // an empty one stands for an argument left out
  std::vector<const void*> addresses_;      // what the memories point to now
  std::vector<dnnl_exec_arg_t> arguments_;  // as oneDNN's C interface takes them
};

// The reorder between two layouts of one tensor, addresses {from, to, scratch}; empty where the
// layouts are equal. `scratch_bytes` grows to what it needs.
Execution MakeReorder(const dnnl::memory::desc& from, const dnnl::memory::desc& to,
                      int64_t* scratch_bytes);

// While it lives, OpenMP regions that this thread starts have at most that many threads. oneDNN
// sizes scratchpads by the thread count at creation: execution must not see a larger one.
class ThreadLimit {
 public:
  explicit ThreadLimit(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~ThreadLimit() { omp_set_num_threads(before_); }
  ThreadLimit(const ThreadLimit&) = delete;
  ThreadLimit& operator=(const ThreadLimit&) = delete;

 private:
  int before_;
};

}  // namespace tandem::cpu
