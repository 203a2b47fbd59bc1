// Bindings of the random operators and of the gamma function's family.
#include "engine/backend/cuda/cuda_backend.h"
#include "engine/backend/cuda/kernels_table.h"
#include "engine/ops/ops.h"

namespace tandem::cuda {
namespace {

#define SAME(name, number) static_assert(static_cast<int>(ops::Noise::name) == (number))
SAME(kUniform, TANDEM_CUDA_NOISE_UNIFORM);
SAME(kNormal, TANDEM_CUDA_NOISE_NORMAL);
SAME(kGumbel, TANDEM_CUDA_NOISE_GUMBEL);
SAME(kExponential, TANDEM_CUDA_NOISE_EXPONENTIAL);
SAME(kLogistic, TANDEM_CUDA_NOISE_LOGISTIC);
SAME(kLaplace, TANDEM_CUDA_NOISE_LAPLACE);
#undef SAME

// Input 0 is the key: {seed, call}.
absl::StatusOr<BoundKernel> BindRandom(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(random, tandem_cuda_random, spec);
  const auto noise = static_cast<int32_t>(spec.attributes->Int("noise"));
  const auto stream = static_cast<uint64_t>(spec.attributes->Int("stream"));
  const auto dtype = static_cast<int32_t>(spec.outputs[0].dtype);
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    random(noise, dtype, args.outputs[0], args.in<uint64_t>(0), stream, n, random.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindRandomGamma(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(random_gamma, tandem_cuda_random_gamma, spec);
  const auto stream = static_cast<uint64_t>(spec.attributes->Int("stream"));
  const auto dtype = static_cast<int32_t>(spec.dtype(1));
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    random_gamma(dtype, args.outputs[0], args.in<uint64_t>(0), args.inputs[1], stream, n,
                 random_gamma.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindRandomGammaGrad(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(random_gamma_grad, tandem_cuda_random_gamma_grad, spec);
  const auto dtype = static_cast<int32_t>(spec.dtype());
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    random_gamma_grad(dtype, args.outputs[0], args.inputs[0], args.inputs[1], args.inputs[2], n,
                      random_gamma_grad.device->stream());
  }};
}

absl::StatusOr<BoundKernel> BindSampleTokens(const KernelSpec& spec) {
  TANDEM_CUDA_CALL(sample, tandem_cuda_sample_tokens, spec);
  const int64_t rows = spec.in(0)[0], vocabulary = spec.in(0)[1];
  if (vocabulary >= int64_t{1} << 30) return Unimplemented("a vocabulary of ", vocabulary);
  return BoundKernel{[=](const KernelArgs& args) {
    const auto* key = args.in<uint64_t>(6);
    const tandem_cuda_sample_params params = {.logits = args.in<float>(0),
                                              .model_logits = args.in<float>(0),
                                              .lse = args.in<float>(1),
                                              .temperature = args.in<float>(2),
                                              .top_k = args.in<int32_t>(3),
                                              .top_p = args.in<double>(4),
                                              .min_p = args.in<double>(5),
                                              .seed = key,
                                              .stream = key + rows,
                                              .position = key + 2 * rows,
                                              .token = args.out<int32_t>(0),
                                              .logprob = args.out<float>(1),
                                              .sampling_logprob = args.out<float>(2),
                                              .rows = rows,
                                              .vocabulary = vocabulary};
    sample(&params, sample.device->stream());
  }};
}

template <int32_t op>
absl::StatusOr<BoundKernel> BindSpecial(const KernelSpec& spec) {
  if (!IsFloat(spec.dtype())) {
    return Unimplemented(DTypeName(spec.dtype()), " is not supported on CUDA");
  }
  TANDEM_CUDA_CALL(special, tandem_cuda_special, spec);
  const auto dtype = static_cast<int32_t>(spec.dtype());
  const int64_t n = spec.out().num_elements();
  return BoundKernel{[=](const KernelArgs& args) {
    special(op, dtype, args.outputs[0], args.inputs[0], n, special.device->stream());
  }};
}

}  // namespace

constinit const Kernel kSampleTokensKernel = {.bind = BindSampleTokens};
constinit const Kernel kRandomKernel = {.bind = BindRandom};
constinit const Kernel kRandomGammaKernel = {.bind = BindRandomGamma, .in_place = true};
constinit const Kernel kRandomGammaGradKernel = {.bind = BindRandomGammaGrad, .in_place = true};
constinit const Kernel kLgammaKernel = {.bind = BindSpecial<TANDEM_CUDA_SPECIAL_Lgamma>,
                                        .in_place = true};
constinit const Kernel kDigammaKernel = {.bind = BindSpecial<TANDEM_CUDA_SPECIAL_Digamma>,
                                         .in_place = true};
constinit const Kernel kTrigammaKernel = {.bind = BindSpecial<TANDEM_CUDA_SPECIAL_Trigamma>,
                                          .in_place = true};

}  // namespace tandem::cuda
