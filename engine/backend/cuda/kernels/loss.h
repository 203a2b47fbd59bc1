/* Log-sum-exp, cross entropy and its gradient over logits (rows, cols); part of tandem_cuda.h.
 *
 * dtype (f32, bf16, f16) is that of logits and dlogits; lse, loss and dloss (rows) are f32, as is
 * all arithmetic; targets (rows) are moved into [0, cols). Each pass reads the logits once. A row's
 * bits depend on that row alone. cols > 0. */
#ifndef TANDEM_CUDA_LOSS_H_
#define TANDEM_CUDA_LOSS_H_
#ifdef __cplusplus
extern "C" {
#endif

/* lse[i] = ln(sum_j exp(logits[i,j])): -inf for a row of -inf, +inf for a row with +inf and no NaN.
 * loss[i] = lse[i] - logits[i, targets[i]]; targets and loss may be null: the lse alone. */
TANDEM_CUDA_API int tandem_cuda_cross_entropy(int32_t dtype, const void* logits,
                                              const int32_t* targets, float* loss, float* lse,
                                              int64_t rows, int64_t cols,
                                              tandem_cuda_stream stream);
/* dlogits[i,j] = dloss[i] (softmax(logits)[i,j] - [j == targets[i]]), which may be the logits; the
 * target's as minus the sum of the others, which keeps its digits where the softmax is near 1. A
 * row with dloss = 0 gives zeros. */
TANDEM_CUDA_API int tandem_cuda_cross_entropy_grad(int32_t dtype, const void* logits,
                                                   const int32_t* targets, const float* lse,
                                                   const float* dloss, void* dlogits, int64_t rows,
                                                   int64_t cols, tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
