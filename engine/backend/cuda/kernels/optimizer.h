/* The optimizer's step over flat parameters, all of it on the device; part of tandem_cuda.h.
 *
 * Sum of squares, control, update: nothing waits for the host. The vectors of control are those of
 * engine/ops/ops.h (OptimizerHyper, OptimizerState, OptimizerControlEntry), f64. */
#ifndef TANDEM_CUDA_OPTIMIZER_H_
#define TANDEM_CUDA_OPTIMIZER_H_
#ifdef __cplusplus
extern "C" {
#endif

enum tandem_cuda_optimizer_hyper {
  TANDEM_CUDA_HYPER_LEARNING_RATE,
  TANDEM_CUDA_HYPER_BETA1,
  TANDEM_CUDA_HYPER_BETA2,
  TANDEM_CUDA_HYPER_EPSILON,
  TANDEM_CUDA_HYPER_WEIGHT_DECAY,
  TANDEM_CUDA_HYPER_MOMENTUM,
  TANDEM_CUDA_HYPER_MAX_GRAD_NORM,
  TANDEM_CUDA_HYPER_GROWTH,
  TANDEM_CUDA_HYPER_BACKOFF,
  TANDEM_CUDA_HYPER_GROWTH_INTERVAL,
  TANDEM_CUDA_HYPER_COUNT
};
enum tandem_cuda_optimizer_state {
  TANDEM_CUDA_STATE_STEP,
  TANDEM_CUDA_STATE_SKIPPED,
  TANDEM_CUDA_STATE_LOSS_SCALE,
  TANDEM_CUDA_STATE_GOOD_STEPS,
  TANDEM_CUDA_STATE_COUNT
};
enum tandem_cuda_optimizer_control_entry {
  TANDEM_CUDA_CONTROL_LEARNING_RATE,
  TANDEM_CUDA_CONTROL_BETA1,
  TANDEM_CUDA_CONTROL_BETA2,
  TANDEM_CUDA_CONTROL_EPSILON,
  TANDEM_CUDA_CONTROL_WEIGHT_DECAY,
  TANDEM_CUDA_CONTROL_BIAS1,
  TANDEM_CUDA_CONTROL_BIAS2,
  TANDEM_CUDA_CONTROL_GRAD_SCALE,
  TANDEM_CUDA_CONTROL_MOMENTUM,
  TANDEM_CUDA_CONTROL_APPLY,
  TANDEM_CUDA_CONTROL_GRAD_NORM,
  TANDEM_CUDA_CONTROL_LOSS_SCALE,
  TANDEM_CUDA_CONTROL_COUNT
};

/* *sum = the sum of x[i]^2 in f64, of chunks added in order: the same bits on any GPU. Infinite or
 * NaN exactly when some x[i] is. x (n) is f32, bf16 or f16. */
TANDEM_CUDA_API int tandem_cuda_sum_of_squares_scratch(int64_t n, int64_t* bytes);
TANDEM_CUDA_API int tandem_cuda_sum_of_squares(int32_t dtype, const void* x, double* sum,
                                               void* scratch, int64_t n, tandem_cuda_stream stream);

/* OptimizerControl of ops.h, in f64: from the sum of squares of the gradients, whether the step is
 * applied, clipping (PyTorch's clip_grad_norm_), bias corrections and the dynamic loss scale
 * (PyTorch's GradScaler). next may be state. */
TANDEM_CUDA_API int tandem_cuda_optimizer_control(const double* sum, const double* hyper,
                                                  const double* state, double* control,
                                                  double* next, tandem_cuda_stream stream);

/* One pass over memory; element by element, in f32, with the operations of the CPU's kernel. An
 * output may be its input. */
struct tandem_cuda_optimizer_step_params {
  const float* p; /* (n), as all arrays */
  const float* g;
  const float* m;        /* Adam's first moment; SGD's momentum buffer */
  const float* v;        /* Adam's second moment; not read by SGD */
  const uint8_t* decay;  /* 1 where weight decay applies */
  const double* control; /* (TANDEM_CUDA_CONTROL_COUNT) */
  float* p_out;
  float* m_out;
  float* v_out;
  void* p_copy; /* null, or p_out rounded to copy_dtype: written by a skipped step too */
  int64_t n;
  int32_t copy_dtype; /* bf16 or f16 */
  int32_t flag;       /* Adam: decoupled weight decay (AdamW); SGD: Nesterov */
};
TANDEM_CUDA_API int tandem_cuda_adam_step(const struct tandem_cuda_optimizer_step_params* params,
                                          tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_sgd_step(const struct tandem_cuda_optimizer_step_params* params,
                                         tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
