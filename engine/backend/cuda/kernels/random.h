/* Counter-based noise; part of tandem_cuda.h.
 *
 * Philox4x32-10 (Salmon et al. 2011), keyed by key (2): {seed, call} folded, in device memory, and
 * counted by (block, stream). The same bits as the CPU's kernels (backend/cpu/kernels/random.h):
 *   f32: element i is of block 16 (i / 64) + i % 16, word i % 64 / 16;
 *   f64: of block 16 (i / 32) + i % 16, words 2h and 2h + 1 with h = i % 32 / 16.
 * Every function of the words is written out in exactly rounded operations. */
#ifndef TANDEM_CUDA_RANDOM_H_
#define TANDEM_CUDA_RANDOM_H_
#ifdef __cplusplus
extern "C" {
#endif

/* The numbers of tandem::ops::Noise. */
enum tandem_cuda_noise {
  TANDEM_CUDA_NOISE_UNIFORM = 0,
  TANDEM_CUDA_NOISE_NORMAL = 1,
  TANDEM_CUDA_NOISE_GUMBEL = 2,
  TANDEM_CUDA_NOISE_EXPONENTIAL = 3,
  TANDEM_CUDA_NOISE_LOGISTIC = 4,
  TANDEM_CUDA_NOISE_LAPLACE = 5
};
/* out (n), f32 or f64. */
TANDEM_CUDA_API int tandem_cuda_random(int32_t noise, int32_t dtype, void* out, const uint64_t* key,
                                       uint64_t stream_number, int64_t n,
                                       tandem_cuda_stream stream);

/* out[i] = the logarithm of a draw of Gamma(concentration[i], 1) (Marsaglia and Tsang 2000), (n),
 * f32 or f64; NaN where the concentration is not positive. stream_number < 2^32. */
TANDEM_CUDA_API int tandem_cuda_random_gamma(int32_t dtype, void* out, const uint64_t* key,
                                             const void* concentration, uint64_t stream_number,
                                             int64_t n, tandem_cuda_stream stream);
/* out = dy d log_draw / d concentration at a fixed quantile (Figurnov et al. 2018), (n), f32 or
 * f64. */
TANDEM_CUDA_API int tandem_cuda_random_gamma_grad(int32_t dtype, void* out,
                                                  const void* concentration, const void* log_draw,
                                                  const void* dy, int64_t n,
                                                  tandem_cuda_stream stream);

enum tandem_cuda_special_op {
  TANDEM_CUDA_SPECIAL_Lgamma = 0,
  TANDEM_CUDA_SPECIAL_Digamma = 1,
  TANDEM_CUDA_SPECIAL_Trigamma = 2
};
/* out[i] = op(x[i]), (n), the floating types; computed in f64. */
TANDEM_CUDA_API int tandem_cuda_special(int32_t op, int32_t dtype, void* out, const void* x,
                                        int64_t n, tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
