// The one place that catches failed allocations: a request whose intermediate values do not fit
// into memory must not end the process.
#pragma once

#include <new>
#include <stdexcept>
#include <utility>

#include "engine/base/error.h"

namespace tandem::server {

// What `work` returns (a Status or StatusOr), or RESOURCE_EXHAUSTED.
template <typename Work>
auto CatchOutOfMemory(Work&& work) -> decltype(work()) {
  try {
    return std::forward<Work>(work)();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("not enough memory for this request");
  } catch (const std::length_error&) {
    return absl::ResourceExhaustedError("this request needs more memory than can be addressed");
  }
}

}  // namespace tandem::server
