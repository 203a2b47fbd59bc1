// What this machine can do right now: the yardstick of every figure of the same run.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

namespace tandem::bench {

inline double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Median seconds of one call, over `runs` blocks of at least `block_seconds` each, after a warm-up.
inline double MedianSeconds(const std::function<void()>& body, int runs = 7,
                            double block_seconds = 0.3) {
  body();
  std::vector<double> medians;
  for (int run = 0; run < runs; ++run) {
    std::vector<double> times;
    const double end = Now() + block_seconds;
    do {
      const double begin = Now();
      body();
      times.push_back(Now() - begin);
    } while (Now() < end || times.size() < 3);
    std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2),
                     times.end());
    medians.push_back(times[times.size() / 2]);
  }
  std::nth_element(medians.begin(), medians.begin() + runs / 2, medians.end());
  return medians[runs / 2];
}

// f32 fused multiply-adds on all cores, in GFLOP/s (a multiply-add counts as two).
double FmaPeakGflops();
// Bytes read and written by a copy of 256 MiB on all cores, in GB/s.
double CopyGigabytesPerSecond();

}  // namespace tandem::bench
