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

// Twelve chains hide the latency of two ports; twelve names, since an array would live in memory.
#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

float FmaLoop(long n) {
  const Vector x = Vector{} + 0.999f, y = Vector{} + 0.001f;
#define DECLARE(i) Vector acc##i = Vector{} + 0.1f * i;
#define STEP(i)            \
  acc##i = acc##i * x + y; \
  asm volatile("" : "+v"(acc##i));
#define SUM(i) sum += acc##i;
  CHAINS(DECLARE)
  for (long k = 0; k < n; ++k) {
    CHAINS(STEP)
  }
  Vector sum{};
  CHAINS(SUM)
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
