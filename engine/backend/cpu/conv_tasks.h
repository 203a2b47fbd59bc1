// How the convolution kernels divide a batch, and where in their scratch the pieces work.
#pragma once

#include <cstdint>
#include <dnnl.hpp>

#include "engine/backend/cpu/onednn.h"
#include "engine/base/threads.h"

namespace tandem::cpu {

// Offsets into a kernel's scratch, each 64-byte aligned.
class ScratchLayout {
 public:
  int64_t Take(int64_t bytes) {
    const int64_t offset = size_;
    size_ += (bytes + 63) / 64 * 64;
    return offset;
  }
  int64_t Take(const dnnl::memory::desc& desc) {
    return Take(static_cast<int64_t>(desc.get_size()));
  }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

// The batch in `count` nearly equal pieces: sizes differ by at most one image.
struct Tasks {
  int64_t images, count;
  int64_t begin(int64_t task) const { return images * task / count; }
  int64_t size(int64_t task) const { return begin(task + 1) - begin(task); }
  int64_t small() const { return images / count; }
  bool uneven() const { return images % count != 0; }
};

// Calls body(lane, task) for every task, each lane's tasks in order and on one thread, which sees
// OpenMP as having `threads_inside`.
template <typename Body>
void RunTasks(int64_t count, int lanes, int threads_inside, const Body& body) {
  ParallelFor(lanes, 1, [&](int64_t begin, int64_t end) {
    const ThreadLimit limit(threads_inside);
    for (int64_t lane = begin; lane < end; ++lane) {
      for (int64_t task = count * lane / lanes; task < count * (lane + 1) / lanes; ++task) {
        body(static_cast<int>(lane), task);
      }
    }
  });
}

}  // namespace tandem::cpu
