/* Normalisations over the last dimension of x (rows, cols), row-major; part of tandem_cuda.h.
 *
 * dtype (f32, bf16, f16) is that of x, y, dy, dx, gamma, beta, dgamma and dbeta; mean and rstd
 * (rows) are f32, as is all arithmetic. gamma and beta (cols) may be null: ones and zeros. A row's
 * bits depend on that row and the parameters alone. cols > 0. */
#ifndef TANDEM_CUDA_NORMALIZATION_H_
#define TANDEM_CUDA_NORMALIZATION_H_
#ifdef __cplusplus
extern "C" {
#endif

/* y = x rstd gamma, rstd = 1 / sqrt(mean(x^2) + epsilon): Zhang and Sennrich, 2019. */
TANDEM_CUDA_API int tandem_cuda_rms_norm(int32_t dtype, const void* x, const void* gamma,
                                         float epsilon, void* y, float* rstd, int64_t rows,
                                         int64_t cols, tandem_cuda_stream stream);
/* y = (x - mean) rstd gamma + beta, rstd = 1 / sqrt(mean((x - mean)^2) + epsilon): Ba et al., 2016.
 */
TANDEM_CUDA_API int tandem_cuda_layer_norm(int32_t dtype, const void* x, const void* gamma,
                                           const void* beta, float epsilon, void* y, float* mean,
                                           float* rstd, int64_t rows, int64_t cols,
                                           tandem_cuda_stream stream);

/* With h = (x - mean) rstd and g = dy gamma, means over a row and sums over the rows:
 *   dx = rstd (g - mean(g) - h mean(g h)),  dgamma = sum(dy h),  dbeta = sum(dy)
 * and for RmsNorm the same with mean = 0 and without mean(g). The sums over rows go by chunks that
 * the shape alone fixes, added in order. */
struct tandem_cuda_norm_grad_params {
  const void* x;
  const void* dy;
  const void* gamma;
  const float* mean; /* not read for RmsNorm */
  const float* rstd;
  void* dx;
  void* dgamma;
  void* dbeta;   /* null: RmsNorm */
  void* scratch; /* of tandem_cuda_norm_grad_scratch, 16-byte aligned */
  int64_t rows;
  int64_t cols;
  int32_t dtype;
};
TANDEM_CUDA_API int tandem_cuda_norm_grad_scratch(int32_t dtype, int64_t rows, int64_t cols,
                                                  int32_t layer_norm, int64_t* bytes);
TANDEM_CUDA_API int tandem_cuda_norm_grad(const struct tandem_cuda_norm_grad_params* params,
                                          tandem_cuda_stream stream);

/* y = softmax(x); NaN for a row with NaN or +inf, or of nothing but -inf. y may be x. */
TANDEM_CUDA_API int tandem_cuda_softmax(int32_t dtype, const void* x, void* y, int64_t rows,
                                        int64_t cols, tandem_cuda_stream stream);
/* dx = y (dy - sum(y dy)); dx may be y or dy. */
TANDEM_CUDA_API int tandem_cuda_softmax_grad(int32_t dtype, const void* y, const void* dy, void* dx,
                                             int64_t rows, int64_t cols, tandem_cuda_stream stream);
/* y = x - lse, lse the bits that tandem_cuda_cross_entropy gives, in one subtraction. y may be x. */
TANDEM_CUDA_API int tandem_cuda_log_softmax(int32_t dtype, const void* x, void* y, int64_t rows,
                                            int64_t cols, tandem_cuda_stream stream);
/* dx = dy - exp(y) sum(dy); dx may be y or dy. */
TANDEM_CUDA_API int tandem_cuda_log_softmax_grad(int32_t dtype, const void* y, const void* dy,
                                                 void* dx, int64_t rows, int64_t cols,
                                                 tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
