// The optimizer's step: sum of squares, control, update.
#include <cfloat>

#include "engine/backend/cuda/kernels/rows.h"

namespace tandem::cuda {
namespace {

// --- Sum of squares -----------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int64_t kChunk = 16384;  // elements of a partial sum

// The sum over the block's threads, in thread 0: a tree.
__device__ __forceinline__ double BlockSum(double v) {
  __shared__ double partial[32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(kFullWarp, v, mask);
  if (lane == 0) partial[warp] = v;
  __syncthreads();
  v = lane < static_cast<int>(blockDim.x) / 32 ? partial[lane] : 0;
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) v += __shfl_xor_sync(kFullWarp, v, mask);
  return v;
}

// A block a chunk; thread t adds the chunk's vectors t, t + kThreads, ...
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) SquareChunks(const T* x, double* partial, int64_t n) {
  constexpr int kVectors = static_cast<int>(kChunk) / kThreads / kVector<T>;
  const int64_t first = blockIdx.x * kChunk;
  const int count = static_cast<int>(min(kChunk, n - first));
  // What does not fill a vector is its owner's last, element by element.
  const int whole = kAligned ? count - count % kVector<T> : count;
  uint4 raw[kVectors];
  LoadRow<T, kAligned>(x + first, 0, whole, 0.0f, raw);
  double sums[4] = {};
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const double v = Element<T>(raw[i], j);
      sums[j % 4] = __fma_rn(v, v, sums[j % 4]);
    }
  }
  if (kAligned && whole / kVector<T> % kThreads == static_cast<int>(threadIdx.x)) {
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const double v = whole + j < count ? ToFloat(x[first + whole + j]) : 0.0f;
      sums[j % 4] = __fma_rn(v, v, sums[j % 4]);
    }
  }
  const double sum = BlockSum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(1024)
    AddPartials(const double* partial, double* sum, int64_t count) {
  double own = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += 1024) own += partial[i];
  const double all = BlockSum(own);
  if (threadIdx.x == 0) *sum = all;
}

// --- Control ------------------------------------------------------------------------------------

__device__ __forceinline__ double NormalF32(double x) {
  return x < FLT_MIN ? double{FLT_MIN} : x > FLT_MAX ? double{FLT_MAX} : x;
}

__global__ void Control(const double* sum_of_squares, const double* hyper, const double* state,
                        double* control, double* next) {
  // Everything is read before anything is written: next may be state.
  const double sum = *sum_of_squares, scale = state[TANDEM_CUDA_STATE_LOSS_SCALE];
  const double step = state[TANDEM_CUDA_STATE_STEP] + 1;
  const double skipped = state[TANDEM_CUDA_STATE_SKIPPED];
  const double good = state[TANDEM_CUDA_STATE_GOOD_STEPS] + 1;
  const bool finite = fabs(sum) <= DBL_MAX;
  const double norm = sqrt(sum) / scale, max_norm = hyper[TANDEM_CUDA_HYPER_MAX_GRAD_NORM];
  const double limit = max_norm / (norm + 1e-6);
  const double clip = finite && max_norm > 0 && limit < 1 ? limit : 1;
  control[TANDEM_CUDA_CONTROL_LEARNING_RATE] = hyper[TANDEM_CUDA_HYPER_LEARNING_RATE];
  control[TANDEM_CUDA_CONTROL_BETA1] = hyper[TANDEM_CUDA_HYPER_BETA1];
  control[TANDEM_CUDA_CONTROL_BETA2] = hyper[TANDEM_CUDA_HYPER_BETA2];
  control[TANDEM_CUDA_CONTROL_EPSILON] = hyper[TANDEM_CUDA_HYPER_EPSILON];
  control[TANDEM_CUDA_CONTROL_WEIGHT_DECAY] = hyper[TANDEM_CUDA_HYPER_WEIGHT_DECAY];
  control[TANDEM_CUDA_CONTROL_BIAS1] = 1 - pow(hyper[TANDEM_CUDA_HYPER_BETA1], step);
  control[TANDEM_CUDA_CONTROL_BIAS2] = 1 - pow(hyper[TANDEM_CUDA_HYPER_BETA2], step);
  control[TANDEM_CUDA_CONTROL_GRAD_SCALE] = clip / scale;
  control[TANDEM_CUDA_CONTROL_MOMENTUM] = hyper[TANDEM_CUDA_HYPER_MOMENTUM];
  control[TANDEM_CUDA_CONTROL_APPLY] = finite ? 1 : 0;
  control[TANDEM_CUDA_CONTROL_GRAD_NORM] = norm;
  control[TANDEM_CUDA_CONTROL_LOSS_SCALE] = scale;
  const bool grow = finite && good >= hyper[TANDEM_CUDA_HYPER_GROWTH_INTERVAL];
  double next_scale = scale;
  if (!finite) next_scale = NormalF32(scale * hyper[TANDEM_CUDA_HYPER_BACKOFF]);
  if (grow) next_scale = NormalF32(scale * hyper[TANDEM_CUDA_HYPER_GROWTH]);
  next[TANDEM_CUDA_STATE_STEP] = finite ? step : step - 1;
  next[TANDEM_CUDA_STATE_SKIPPED] = finite ? skipped : skipped + 1;
  next[TANDEM_CUDA_STATE_LOSS_SCALE] = next_scale;
  next[TANDEM_CUDA_STATE_GOOD_STEPS] = finite && !grow ? good : 0;
}

// --- Updates ------------------------------------------------------------------------------------

using StepParams = tandem_cuda_optimizer_step_params;

// What Adam multiplies by: combined in double and rounded once, in the CPU kernel's order (see
// AdamParams in engine/backend/cpu/optimizer.cc).
struct Adam {
  static constexpr bool kSecondMoment = true;
  float grad_scale, l2, keep, one_minus_beta1, beta2, one_minus_beta2, eps, step_size;

  __device__ __forceinline__ Adam(const double* control, bool decoupled) {
    const double given = control[TANDEM_CUDA_CONTROL_LEARNING_RATE];
    const double root = sqrt(control[TANDEM_CUDA_CONTROL_BIAS2]);
    const double lr = given * root / control[TANDEM_CUDA_CONTROL_BIAS1];
    double decay = control[TANDEM_CUDA_CONTROL_WEIGHT_DECAY];
    if (decoupled) decay *= lr == 0 ? 0 : given / lr;
    grad_scale = static_cast<float>(control[TANDEM_CUDA_CONTROL_GRAD_SCALE]);
    l2 = static_cast<float>(decoupled ? 0 : decay);
    keep = static_cast<float>(1 - (decoupled ? lr * decay : 0));
    one_minus_beta1 = static_cast<float>(1 - control[TANDEM_CUDA_CONTROL_BETA1]);
    beta2 = static_cast<float>(control[TANDEM_CUDA_CONTROL_BETA2]);
    one_minus_beta2 = static_cast<float>(1 - control[TANDEM_CUDA_CONTROL_BETA2]);
    eps = static_cast<float>(control[TANDEM_CUDA_CONTROL_EPSILON] * root);
    step_size = static_cast<float>(lr);
  }
  __device__ __forceinline__ void Update(float& p, float g, float& m, float& v, bool decays) const {
    const float grad = fmaf(p, decays ? l2 : 0.0f, g * grad_scale);
    m = fmaf(one_minus_beta1, grad - m, m);
    v = fmaf(v, beta2, grad * grad * one_minus_beta2);
    const float direction = m / (sqrtf(v) + eps);
    p = fmaf(-direction, step_size, p * (decays ? keep : 1.0f));
  }
};

struct Sgd {
  static constexpr bool kSecondMoment = false;
  float grad_scale, l2, momentum, lr;
  bool nesterov, buffered;  // without momentum the buffer stays as it is

  __device__ __forceinline__ Sgd(const double* control, bool flag)
      : grad_scale(static_cast<float>(control[TANDEM_CUDA_CONTROL_GRAD_SCALE])),
        l2(static_cast<float>(control[TANDEM_CUDA_CONTROL_WEIGHT_DECAY])),
        momentum(static_cast<float>(control[TANDEM_CUDA_CONTROL_MOMENTUM])),
        lr(static_cast<float>(control[TANDEM_CUDA_CONTROL_LEARNING_RATE])),
        nesterov(flag),
        buffered(control[TANDEM_CUDA_CONTROL_MOMENTUM] != 0) {}
  __device__ __forceinline__ void Update(float& p, float g, float& m, float&, bool decays) const {
    float step = fmaf(p, decays ? l2 : 0.0f, g * grad_scale);
    if (buffered) {
      m = fmaf(m, momentum, step);
      step = nesterov ? fmaf(m, momentum, step) : m;
    }
    p = fmaf(-step, lr, p);
  }
};

__device__ __forceinline__ float4 Load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ void Store4(float4 v, float* p) { *reinterpret_cast<float4*>(p) = v; }

template <typename Copy>
__device__ __forceinline__ void StoreCopy4(float4 v, void* copy, int64_t at) {
  const unsigned a = FromFloat<Copy>(v.x).bits | unsigned{FromFloat<Copy>(v.y).bits} << 16;
  const unsigned b = FromFloat<Copy>(v.z).bits | unsigned{FromFloat<Copy>(v.w).bits} << 16;
  *reinterpret_cast<uint2*>(static_cast<Copy*>(copy) + at) = make_uint2(a, b);
}

// Elements i .. i + 3.
template <typename Rule, typename Copy>
__device__ __forceinline__ void UpdateFour(const StepParams& s, const Rule& rule, bool apply,
                                           int64_t i) {
  float4 p = Load4(s.p + i);
  if (apply) {
    const float4 g = Load4(s.g + i);
    float4 m = Load4(s.m + i), v = make_float4(0, 0, 0, 0);
    if (Rule::kSecondMoment) v = Load4(s.v + i);
    const unsigned decay = *reinterpret_cast<const unsigned*>(s.decay + i);
    rule.Update(p.x, g.x, m.x, v.x, (decay & 0xffu) != 0);
    rule.Update(p.y, g.y, m.y, v.y, (decay & 0xff00u) != 0);
    rule.Update(p.z, g.z, m.z, v.z, (decay & 0xff0000u) != 0);
    rule.Update(p.w, g.w, m.w, v.w, (decay & 0xff000000u) != 0);
    Store4(p, s.p_out + i);
    Store4(m, s.m_out + i);
    if (Rule::kSecondMoment) Store4(v, s.v_out + i);
  } else {
    if (s.p_out != s.p) Store4(p, s.p_out + i);
    if (s.m_out != s.m) Store4(Load4(s.m + i), s.m_out + i);
    if (Rule::kSecondMoment && s.v_out != s.v) Store4(Load4(s.v + i), s.v_out + i);
  }
  if (s.p_copy != nullptr) StoreCopy4<Copy>(p, s.p_copy, i);
}

template <typename Rule, typename Copy>
__device__ __forceinline__ void UpdateOne(const StepParams& s, const Rule& rule, bool apply,
                                          int64_t i) {
  float p = s.p[i], m = s.m[i], v = Rule::kSecondMoment ? s.v[i] : 0.0f;
  if (apply) rule.Update(p, s.g[i], m, v, s.decay[i] != 0);
  s.p_out[i] = p;
  s.m_out[i] = m;
  if (Rule::kSecondMoment) s.v_out[i] = v;
  if (s.p_copy != nullptr) static_cast<Copy*>(s.p_copy)[i] = FromFloat<Copy>(p);
}

template <typename Rule, typename Copy>
__global__ void __launch_bounds__(kThreads) Step(StepParams s, int64_t fours) {
  // One thread does the arithmetic in double: it is slow on most GPUs.
  __shared__ __align__(16) unsigned char shared[sizeof(Rule)];
  Rule* const made = reinterpret_cast<Rule*>(shared);
  if (threadIdx.x == 0) *made = Rule(s.control, s.flag != 0);
  __syncthreads();
  const Rule rule = *made;
  const bool apply = s.control[TANDEM_CUDA_CONTROL_APPLY] != 0;
  for (int64_t i = GridIndex(); i < fours; i += GridStride()) {
    UpdateFour<Rule, Copy>(s, rule, apply, 4 * i);
  }
  for (int64_t i = 4 * fours + GridIndex(); i < s.n; i += GridStride()) {
    UpdateOne<Rule, Copy>(s, rule, apply, i);
  }
}

template <typename Rule>
int LaunchStep(const StepParams& s, cudaStream_t stream) {
  const bool aligned = RowsAligned(0, s.p, s.g, s.m, s.v, s.p_out, s.m_out, s.v_out) &&
                       reinterpret_cast<uintptr_t>(s.decay) % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(s.p_copy) % 8 == 0;
  const int64_t fours = aligned ? s.n / 4 : 0;
  // Few enough blocks that each works for long after its first thread's arithmetic in double.
  const unsigned blocks = BlocksFor(aligned ? fours + 1 : s.n, kThreads, 132 * 8);
  if (s.n == 0) return cudaSuccess;
  if (s.p_copy != nullptr && s.copy_dtype != TANDEM_CUDA_BF16 && s.copy_dtype != TANDEM_CUDA_F16) {
    return TANDEM_CUDA_UNSUPPORTED;
  }
  return Launch(
      s.p_copy != nullptr && s.copy_dtype == TANDEM_CUDA_F16 ? Step<Rule, F16> : Step<Rule, Bf16>,
      blocks, kThreads, 0, stream, s, fours);
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_sum_of_squares_scratch(int64_t n, int64_t* bytes) {
  using tandem::cuda::kChunk;
  *bytes = (n + kChunk - 1) / kChunk * static_cast<int64_t>(sizeof(double));
  return 0;
}

int tandem_cuda_sum_of_squares(int32_t dtype, const void* x, double* sum, void* scratch, int64_t n,
                               tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const auto s = static_cast<cudaStream_t>(stream);
  auto* const partial = static_cast<double*>(scratch);
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  if (chunks > INT32_MAX) return TANDEM_CUDA_UNSUPPORTED;
  const int error = WithFloat(dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    const bool aligned = RowsAligned(0, x);
    return Launch(aligned ? SquareChunks<T, true> : SquareChunks<T, false>,
                  static_cast<unsigned>(chunks), kThreads, 0, s, static_cast<const T*>(x), partial,
                  n);
  });
  if (error != cudaSuccess) return error;
  return Launch(AddPartials, 1, 1024, 0, s, partial, sum, chunks);
}

int tandem_cuda_optimizer_control(const double* sum, const double* hyper, const double* state,
                                  double* control, double* next, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  return Launch(Control, 1, 1, 0, static_cast<cudaStream_t>(stream), sum, hyper, state, control,
                next);
}

int tandem_cuda_adam_step(const struct tandem_cuda_optimizer_step_params* params,
                          tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  return LaunchStep<Adam>(*params, static_cast<cudaStream_t>(stream));
}

int tandem_cuda_sgd_step(const struct tandem_cuda_optimizer_step_params* params,
                         tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  return LaunchStep<Sgd>(*params, static_cast<cudaStream_t>(stream));
}
