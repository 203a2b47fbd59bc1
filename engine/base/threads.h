// Data-parallel loops over the one OpenMP team that oneDNN uses too.
//
// Contract: only the compute thread (engine/exec/executor) calls these while a server runs, so that
// there is one team; a nested call runs serially. Results may not depend on the thread count: a
// reduction across the range is split by data, never by thread.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace tandem {

// The threads a parallel loop may use; OMP_NUM_THREADS or SetThreadCount, else the cores.
inline int ThreadCount() { return omp_get_max_threads(); }
inline void SetThreadCount(int threads) { omp_set_num_threads(std::max(1, threads)); }

// Idle OpenMP threads must neither spin for long (they starve gRPC's threads) nor sleep at once
// (a wake-up costs more than a small kernel). libgomp reads its policy from the environment before
// main, so this sets it and starts the program again if it was not set; call it first in main.
void EnsureThreadPolicy(char** argv);

// Calls body(begin, end) on disjoint pieces that cover [0, n); no piece is shorter than grain
// unless it is the last. Runs inline when one piece is enough. body must not throw.
template <typename Body>
void ParallelFor(int64_t n, int64_t grain, Body&& body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(1, grain);
  const int64_t pieces = std::min<int64_t>((n + grain - 1) / grain, ThreadCount());
  if (pieces <= 1 || omp_in_parallel()) {
    body(int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(static_cast <int>(pieces))
  {
    const int64_t count = omp_get_num_threads();
    const int64_t piece = omp_get_thread_num();
    const int64_t begin = n * piece / count;
    const int64_t end = n * (piece + 1) / count;
    if (begin < end) body(begin, end);
  }
}

}  // namespace tandem
