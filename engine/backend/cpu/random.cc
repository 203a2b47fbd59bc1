// Kernels of the random operators.
#include "engine/backend/cpu/kernels/random.h"

#include <algorithm>

#include "engine/backend/cpu/dtypes.h"
#include "engine/backend/cpu/kernels/gamma.h"
#include "engine/backend/cpu/kernels_table.h"
#include "engine/base/draw_token.h"

namespace tandem::cpu {
namespace {

#define SAME(name) \
  static_assert(static_cast<int>(NoiseKind::name) == static_cast<int>(ops::Noise::name));
SAME(kUniform)
SAME(kNormal)
SAME(kGumbel)
SAME(kExponential)
SAME(kLogistic)
SAME(kLaplace)
#undef SAME

// Input 0 is the key: {seed, call}.
NoiseStream StreamOf(const KernelArgs& args, int64_t stream) {
  const auto* key = args.in<uint64_t>(0);
  return {.key = Philox::Fold(key[0], key[1]), .stream = static_cast<uint64_t>(stream)};
}

absl::StatusOr<BoundKernel> BindRandom(const KernelSpec& spec) {
  const auto kind = static_cast<NoiseKind>(spec.attributes->Int("noise"));
  const int64_t stream = spec.attributes->Int("stream");
  const int64_t n = spec.out().num_elements();
  if (spec.outputs[0].dtype == DType::kF32) {
    return BoundKernel{[=](const KernelArgs& args) {
      FillNoise(kind, StreamOf(args, stream), args.out<float>(), n);
    }};
  }
  return BoundKernel{[=](const KernelArgs& args) {
    FillNoise(kind, StreamOf(args, stream), args.out<double>(), n);
  }};
}

absl::StatusOr<BoundKernel> BindGumbelSoftmax(const KernelSpec& spec) {
  const int64_t stream = spec.attributes->Int("stream");
  const auto scale = static_cast<float>(1 / spec.attributes->Float("temperature"));
  const int64_t cols = spec.out()[-1], rows = spec.out().num_elements() / cols;
  return BoundKernel{[=](const KernelArgs& args) {
    GumbelSoftmax(args.in<float>(1), StreamOf(args, stream), scale, args.out<float>(), rows, cols);
  }};
}

constexpr int64_t kGammaGrain = 64;  // elements: some 10 us

template <typename T>
BoundKernel GammaKernel(int64_t stream_number, int64_t n) {
  return {[=](const KernelArgs& args) {
    const NoiseStream stream = StreamOf(args, stream_number);
    const T* concentration = args.in<T>(1);
    T* out = args.out<T>();
    ParallelFor(n, kGammaGrain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[i] = static_cast<T>(DrawLogGamma(concentration[i], stream, static_cast<uint64_t>(i)));
      }
    });
  }};
}

absl::StatusOr<BoundKernel> BindRandomGamma(const KernelSpec& spec) {
  const int64_t stream = spec.attributes->Int("stream"), n = spec.out().num_elements();
  return spec.dtype(1) == DType::kF32 ? GammaKernel<float>(stream, n)
                                      : GammaKernel<double>(stream, n);
}

template <typename T>
BoundKernel GammaGradKernel(int64_t n) {
  return {[=](const KernelArgs& args) {
    const T *concentration = args.in<T>(0), *log_draw = args.in<T>(1), *dy = args.in<T>(2);
    T* out = args.out<T>();
    ParallelFor(n, kGammaGrain, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        out[i] = static_cast<T>(dy[i] * LogGammaGradient(concentration[i], log_draw[i]));
      }
    });
  }};
}

absl::StatusOr<BoundKernel> BindRandomGammaGrad(const KernelSpec& spec) {
  const int64_t n = spec.out().num_elements();
  return spec.dtype() == DType::kF32 ? GammaGradKernel<float>(n) : GammaGradKernel<double>(n);
}

absl::StatusOr<BoundKernel> BindSampleTokens(const KernelSpec& spec) {
  const int64_t rows = spec.in(0)[0], vocabulary = spec.in(0)[1];
  return BoundKernel{[=](const KernelArgs& args) {
                       const auto* key = args.in<uint64_t>(6);
                       float* row = static_cast<float*>(args.scratch);
                       for (int64_t r = 0; r < rows; ++r) {
                         const float* logits = args.in<float>(0) + r * vocabulary;
                         std::copy_n(logits, vocabulary, row);
                         const DrawnToken drawn = DrawToken({row, static_cast<size_t>(vocabulary)},
                                                            {.temperature = args.in<float>(2)[r],
                                                             .top_k = args.in<int32_t>(3)[r],
                                                             .top_p = args.in<double>(4)[r],
                                                             .min_p = args.in<double>(5)[r],
                                                             .seed = key[r],
                                                             .stream = key[rows + r],
                                                             .position = key[2 * rows + r]});
                         args.out<int32_t>(0)[r] = drawn.token;
                         args.out<float>(1)[r] = logits[drawn.token] - args.in<float>(1)[r];
                         args.out<float>(2)[r] = drawn.sampling_logprob;
                       }
                     },
                     vocabulary * static_cast<int64_t>(sizeof(float))};
}

}  // namespace

constinit const Kernel kRandomKernel = {.bind = BindRandom};
constinit const Kernel kGumbelSoftmaxKernel = {.bind = BindGumbelSoftmax, .in_place = true};
constinit const Kernel kRandomGammaKernel = {.bind = BindRandomGamma, .in_place = true};
constinit const Kernel kRandomGammaGradKernel = {.bind = BindRandomGammaGrad, .in_place = true};

constinit const Kernel kSampleTokensKernel = {.bind = BindSampleTokens};

}  // namespace tandem::cpu
