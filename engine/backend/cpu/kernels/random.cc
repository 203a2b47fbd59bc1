#include "engine/backend/cpu/kernels/random.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/backend/cpu/kernels/portable_math.h"
#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/random.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/philox-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

// Elements [begin, end) of the stream to out[begin, end); begin is a multiple of 64.
template <NoiseKind kind>
void NoiseRange(const NoiseStream& stream, float* out, size_t begin, size_t end) {
  const F32 d;
  size_t i = begin;
  for (; i + kNoiseGroup <= end; i += kNoiseGroup) {
    NoiseGroup<kind>(d, stream, i / kNoiseGroup, [&](size_t k, VecF32 v) TANDEM_VECTOR_LAMBDA {
      hn::StoreU(v, d, out + i + k);
    });
  }
  if (i == end) return;
  HWY_ALIGN float last[kNoiseGroup];
  NoiseGroup<kind>(d, stream, i / kNoiseGroup,
                   [&](size_t k, VecF32 v) TANDEM_VECTOR_LAMBDA { hn::Store(v, d, last + k); });
  std::copy_n(last, end - i, out + i);
}

void NoiseRangeOf(NoiseKind kind, const NoiseStream& stream, float* out, size_t begin, size_t end) {
  switch (kind) {
    case NoiseKind::kUniform:
      return NoiseRange<NoiseKind::kUniform>(stream, out, begin, end);
    case NoiseKind::kNormal:
      return NoiseRange<NoiseKind::kNormal>(stream, out, begin, end);
    case NoiseKind::kGumbel:
      return NoiseRange<NoiseKind::kGumbel>(stream, out, begin, end);
    case NoiseKind::kExponential:
      return NoiseRange<NoiseKind::kExponential>(stream, out, begin, end);
    case NoiseKind::kLogistic:
      return NoiseRange<NoiseKind::kLogistic>(stream, out, begin, end);
    case NoiseKind::kLaplace:
      return NoiseRange<NoiseKind::kLaplace>(stream, out, begin, end);
  }
}

// y = (x + noise) scale over a row whose first element is element `at` of the stream; returns the
// largest (NaN may be lost).
HWY_INLINE float PerturbRow(const float* x, const NoiseStream& stream, uint64_t at, float scale,
                            float* y, size_t n) {
  const F32 d;
  const VecF32 factor = hn::Set(d, scale);
  VecF32 largest = hn::Set(d, -std::numeric_limits<float>::infinity());
  float largest_at_ends = -std::numeric_limits<float>::infinity();
  // A group of which the row has only the elements [from, to).
  const auto partial = [&](size_t i, size_t from, size_t to) HWY_ATTR {
    HWY_ALIGN float noise[kNoiseGroup];
    NoiseGroup<NoiseKind::kGumbel>(d, stream, (at + i) / kNoiseGroup,
                                   [&](size_t k, VecF32 v)
                                       TANDEM_VECTOR_LAMBDA { hn::Store(v, d, noise + k); });
    for (size_t k = from; k < to; ++k, ++i) {
      y[i] = (x[i] + noise[k]) * scale;
      largest_at_ends = y[i] > largest_at_ends ? y[i] : largest_at_ends;
    }
  };
  const size_t offset = at % kNoiseGroup;
  size_t i = 0;
  if (offset != 0) {
    const size_t to = std::min(kNoiseGroup, offset + n);
    partial(0, offset, to);
    i = to - offset;
  }
  for (; i + kNoiseGroup <= n; i += kNoiseGroup) {
    NoiseGroup<NoiseKind::kGumbel>(
        d, stream, (at + i) / kNoiseGroup, [&](size_t k, VecF32 v) TANDEM_VECTOR_LAMBDA {
          const VecF32 z = hn::Mul(hn::Add(hn::LoadU(d, x + i + k), v), factor);
          hn::StoreU(z, d, y + i + k);
          largest = hn::Max(largest, z);
        });
  }
  if (i < n) partial(i, 0, n - i);
  return std::max(largest_at_ends, hn::GetLane(hn::MaxOfLanes(d, largest)));
}

// y = e^(y - shift); returns the sum. 64 partial sums whatever the vectors' width, so that the bits
// are the same on every instruction set.
HWY_INLINE float ExponentiateRow(float shift, float* y, size_t n) {
  constexpr size_t kSums = 64;
  const F32 d;
  const size_t lanes = hn::Lanes(d);
  const VecF32 shifts = hn::Set(d, shift);
  HWY_ALIGN float sums[kSums] = {};
  size_t i = 0;
  const auto step = [&](size_t at, VecF32 z) TANDEM_VECTOR_LAMBDA {
    const VecF32 e = ExpBelow88(d, hn::Sub(z, shifts));
    hn::Store(hn::Add(hn::Load(d, sums + at), e), d, sums + at);
    return e;
  };
  for (; i + kSums <= n; i += kSums) {
    for (size_t k = 0; k < kSums; k += lanes) {
      hn::StoreU(step(k, hn::LoadU(d, y + i + k)), d, y + i + k);
    }
  }
  if (i < n) {
    HWY_ALIGN float last[kSums];
    std::copy_n(y + i, n - i, last);
    std::fill(last + (n - i), last + kSums, -std::numeric_limits<float>::infinity());
    for (size_t k = 0; k < kSums; k += lanes) {
      hn::Store(step(k, hn::Load(d, last + k)), d, last + k);
    }
    std::copy_n(last, n - i, y + i);
  }
  for (size_t half = kSums / 2; half > 0; half /= 2) {
    for (size_t k = 0; k < half; ++k) sums[k] += sums[k + half];
  }
  return sums[0];
}

void GumbelSoftmaxRow(const float* x, const NoiseStream& stream, uint64_t at, float scale, float* y,
                      size_t n) {
  const F32 d;
  const float shift = PerturbRow(x, stream, at, scale, y, n);
  const VecF32 inverse = hn::Set(d, 1.0f / ExponentiateRow(shift, y, n));
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    Store(hn::Mul(Load(d, y + i, part), inverse), d, y + i, part);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(NoiseRangeOf);
HWY_EXPORT(GumbelSoftmaxRow);

namespace {

constexpr int64_t kGroup32 = 64, kGroup64 = 32, kBlocks = 16;  // elements, elements, blocks a group
constexpr int64_t kGrain = 4096;                               // elements: some 10 us

uint64_t Pair(uint32_t low, uint32_t high) { return low | uint64_t{high} << 32; }

// k / 2^53, and for k = 0 half of the least.
double Uniform53(uint64_t bits) {
  const uint64_t k = bits >> 11;
  return (k == 0 ? 0.5 : static_cast<double>(k)) * 0x1p-53;
}

double NoiseOf(NoiseKind kind, uint64_t bits) {
  const double u = Uniform53(bits);
  switch (kind) {
    case NoiseKind::kUniform:
      return u;
    case NoiseKind::kExponential:
      return -portable::Log(u);
    case NoiseKind::kGumbel:
      return -portable::Log(-portable::Log(u));
    case NoiseKind::kLogistic:
      return portable::Log(u) - portable::Log(1 - u);
    case NoiseKind::kLaplace:
      return (bits & 1) != 0 ? portable::Log(u) : -portable::Log(u);
    case NoiseKind::kNormal:
      break;  // of two numbers: FillGroup
  }
  return u;
}

void FillGroup(NoiseKind kind, const NoiseStream& stream, int64_t group, double* out) {
  for (int64_t i = 0; i < kBlocks; ++i) {
    const Philox::Words w = Philox::Block(stream.key, stream.stream, group * kBlocks + i);
    const uint64_t first = Pair(w[0], w[1]), second = Pair(w[2], w[3]);
    if (kind == NoiseKind::kNormal) {
      const double radius = std::sqrt(-2 * portable::Log(Uniform53(first)));
      const auto [sin, cos] = portable::OfTurns(second);
      out[i] = radius * cos;
      out[i + kBlocks] = radius * sin;
    } else {
      out[i] = NoiseOf(kind, first);
      out[i + kBlocks] = NoiseOf(kind, second);
    }
  }
}

}  // namespace

void FillNoise(NoiseKind kind, const NoiseStream& stream, float* out, int64_t n) {
  const auto run = HWY_DYNAMIC_DISPATCH(NoiseRangeOf);
  const int64_t groups = (n + kGroup32 - 1) / kGroup32;
  ParallelFor(groups, kGrain / kGroup32, [&](int64_t begin, int64_t end) {
    run(kind, stream, out, static_cast<size_t>(begin * kGroup32),
        static_cast<size_t>(std::min(n, end * kGroup32)));
  });
}

void FillNoise(NoiseKind kind, const NoiseStream& stream, double* out, int64_t n) {
  const int64_t groups = (n + kGroup64 - 1) / kGroup64;
  ParallelFor(groups, kGrain / 8 / kGroup64, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      double values[kGroup64];
      FillGroup(kind, stream, g, values);
      std::copy_n(values, std::min(kGroup64, n - g * kGroup64), out + g * kGroup64);
    }
  });
}

void GumbelSoftmax(const float* x, const NoiseStream& stream, float scale, float* y, int64_t rows,
                   int64_t cols) {
  const auto run = HWY_DYNAMIC_DISPATCH(GumbelSoftmaxRow);
  ParallelFor(rows, (kGrain + cols - 1) / std::max<int64_t>(1, cols),
              [&](int64_t begin, int64_t end) {
                for (int64_t r = begin; r < end; ++r) {
                  run(x + r * cols, stream, static_cast<uint64_t>(r * cols), scale, y + r * cols,
                      static_cast<size_t>(cols));
                }
              });
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
