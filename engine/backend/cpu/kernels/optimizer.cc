#include "engine/backend/cpu/kernels/optimizer.h"

#include <algorithm>
#include <cmath>

#include "engine/base/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/optimizer.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "engine/backend/cpu/kernels/vector_math-inl.h"

// What the steps multiply by, rounded to f32 once. Not per instruction set: included once.
#ifndef TANDEM_CPU_KERNELS_OPTIMIZER_FACTORS_
#define TANDEM_CPU_KERNELS_OPTIMIZER_FACTORS_
namespace tandem::cpu {
struct AdamFactors {
  float grad_scale, l2, keep_p, one_minus_beta1, beta2, one_minus_beta2, root_bias2, eps, step_size;
};
struct SgdFactors {
  float grad_scale, l2, momentum, gain, lr;
  bool nesterov, first_step;
};
}  // namespace tandem::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {

double SquaresRange(const float* x, size_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const size_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto v0 = hn::PromoteTo(d, hn::LoadU(df, x + i));
    const auto v1 = hn::PromoteTo(d, hn::LoadU(df, x + i + lanes));
    const auto v2 = hn::PromoteTo(d, hn::LoadU(df, x + i + 2 * lanes));
    const auto v3 = hn::PromoteTo(d, hn::LoadU(df, x + i + 3 * lanes));
    s0 = hn::MulAdd(v0, v0, s0);
    s1 = hn::MulAdd(v1, v1, s1);
    s2 = hn::MulAdd(v2, v2, s2);
    s3 = hn::MulAdd(v3, v3, s3);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return sum;
}

void AdamRange(const AdamFactors& factors, float* p, const float* g, float* m, float* v, size_t n) {
  const F32 d;
  const AdamFactors f = factors;
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 p0 = Load(d, p + i, part);
    const VecF32 scaled = hn::Mul(Load(d, g + i, part), hn::Set(d, f.grad_scale));
    const VecF32 grad = hn::MulAdd(p0, hn::Set(d, f.l2), scaled);
    const VecF32 m0 = Load(d, m + i, part);
    const VecF32 m1 = hn::MulAdd(hn::Set(d, f.one_minus_beta1), hn::Sub(grad, m0), m0);
    const VecF32 square = hn::Mul(hn::Mul(grad, grad), hn::Set(d, f.one_minus_beta2));
    const VecF32 v1 = hn::MulAdd(Load(d, v + i, part), hn::Set(d, f.beta2), square);
    const VecF32 root = hn::Div(hn::Sqrt(v1), hn::Set(d, f.root_bias2));
    const VecF32 direction = hn::Div(m1, hn::Add(root, hn::Set(d, f.eps)));
    const VecF32 kept = hn::Mul(p0, hn::Set(d, f.keep_p));
    Store(m1, d, m + i, part);
    Store(v1, d, v + i, part);
    Store(hn::NegMulAdd(direction, hn::Set(d, f.step_size), kept), d, p + i, part);
  });
}

void SgdRange(const SgdFactors& factors, float* p, const float* g, float* buffer, size_t n) {
  const F32 d;
  const SgdFactors f = factors;
  const VecF32 momentum = hn::Set(d, f.momentum);
  ForEachVector(d, n, [&](size_t i, auto part) TANDEM_VECTOR_LAMBDA {
    const VecF32 p0 = Load(d, p + i, part);
    const VecF32 scaled = hn::Mul(Load(d, g + i, part), hn::Set(d, f.grad_scale));
    VecF32 step = hn::MulAdd(p0, hn::Set(d, f.l2), scaled);
    if (buffer != nullptr) {
      VecF32 b = step;
      if (!f.first_step) {
        b = hn::MulAdd(Load(d, buffer + i, part), momentum, hn::Mul(step, hn::Set(d, f.gain)));
      }
      Store(b, d, buffer + i, part);
      step = f.nesterov ? hn::MulAdd(b, momentum, step) : b;
    }
    Store(hn::NegMulAdd(step, hn::Set(d, f.lr), p0), d, p + i, part);
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(SquaresRange);
HWY_EXPORT(AdamRange);
HWY_EXPORT(SgdRange);

namespace {
constexpr int64_t kGrain = 16384;  // elements
}

double SumOfSquares(const float* x, int64_t n) {
  const auto range = HWY_DYNAMIC_DISPATCH(SquaresRange);
  constexpr int64_t kChunk = 16384, kChunks = 256;
  double sums[kChunks];
  double total = 0.0;
  for (int64_t at = 0; at < n; at += kChunk * kChunks) {
    const int64_t chunks = std::min(kChunks, (n - at + kChunk - 1) / kChunk);
    ParallelFor(chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const int64_t first = at + c * kChunk;
        sums[c] = range(x + first, static_cast<size_t>(std::min(kChunk, n - first)));
      }
    });
    for (int64_t c = 0; c < chunks; ++c) total += sums[c];
  }
  return total;
}

void AdamWStep(const AdamWParams& params, float* p, const float* g, float* m, float* v, int64_t n) {
  const auto range = HWY_DYNAMIC_DISPATCH(AdamRange);
  const double step = static_cast<double>(params.step);
  const double bias1 = 1.0 - std::pow(params.beta1, step);
  const double bias2 = 1.0 - std::pow(params.beta2, step);
  const double decay = params.adamw ? params.lr * params.weight_decay : 0.0;
  const AdamFactors factors = {
      .grad_scale = params.grad_scale,
      .l2 = static_cast<float>(params.adamw ? 0.0 : params.weight_decay),
      .keep_p = static_cast<float>(1.0 - decay),
      .one_minus_beta1 = static_cast<float>(1.0 - params.beta1),
      .beta2 = static_cast<float>(params.beta2),
      .one_minus_beta2 = static_cast<float>(1.0 - params.beta2),
      .root_bias2 = static_cast<float>(std::sqrt(bias2)),
      .eps = static_cast<float>(params.eps),
      .step_size = static_cast<float>(params.lr / bias1),
  };
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    range(factors, p + begin, g + begin, m + begin, v + begin, static_cast<size_t>(end - begin));
  });
}

void SgdStep(const SgdParams& params, float* p, const float* g, float* buffer, int64_t n) {
  const auto range = HWY_DYNAMIC_DISPATCH(SgdRange);
  float* const momentum_buffer = params.momentum == 0.0 ? nullptr : buffer;
  const SgdFactors factors = {
      .grad_scale = params.grad_scale,
      .l2 = static_cast<float>(params.weight_decay),
      .momentum = static_cast<float>(params.momentum),
      .gain = static_cast<float>(1.0 - params.dampening),
      .lr = static_cast<float>(params.lr),
      .nesterov = params.nesterov,
      .first_step = params.first_step,
  };
  ParallelFor(n, kGrain, [&](int64_t begin, int64_t end) {
    range(factors, p + begin, g + begin, momentum_buffer == nullptr ? nullptr : buffer + begin,
          static_cast<size_t>(end - begin));
  });
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
