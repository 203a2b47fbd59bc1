// Compiled for the machine it is built on (-march=native): a probe, not a product.
#include "tests/bench/probe.h"

#include <omp.h>

#include <cstring>

namespace tandem::bench {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
using Vector = float __attribute__((vector_size(kLanes * 4)));

float FmaLoop(long n) {
  constexpr int kChains = 12;  // enough to hide the latency on two ports
  Vector acc[kChains];
  for (int i = 0; i < kChains; ++i) acc[i] = Vector{} + 0.1f * static_cast<float>(i);
  Vector x = Vector{} + 0.999f, y = Vector{} + 0.001f;
  for (long k = 0; k < n; ++k) {
    for (int i = 0; i < kChains; ++i) {
      acc[i] = acc[i] * x + y;
      asm volatile("" : "+x"(acc[i]));
    }
  }
  Vector sum{};
  for (const Vector& a : acc) sum += a;
  return sum[0];
}

}  // namespace

double FmaPeakGflops() {
  constexpr long kIterations = 20'000'000;
  double best = 0;
  for (int run = 0; run < 3; ++run) {
    float sink = 0;
    const double begin = Now();
    const int threads = omp_get_max_threads();
#pragma omp parallel reduction(+ : sink)
    sink += FmaLoop(kIterations);
    const double seconds = Now() - begin;
    best = std::max(best,
                    2.0 * 12 * kLanes * static_cast<double>(kIterations) * threads / seconds / 1e9);
    asm volatile("" ::"x"(sink));
  }
  return best;
}

double CopyGigabytesPerSecond() {
  constexpr long kBytes = 256L << 20;
  std::vector<char> from(kBytes, 1), to(kBytes, 2);
  const double seconds = MedianSeconds(
      [&] {
#pragma omp parallel
        {
          const long piece = kBytes / omp_get_num_threads();
          const long at = piece * omp_get_thread_num();
          std::memcpy(to.data() + at, from.data() + at, piece);
        }
      },
      3, 0.2);
  return 2.0 * kBytes / seconds / 1e9;
}

}  // namespace tandem::bench
