/* Resampling along one dimension by a banded matrix; part of tandem_cuda.h. */
#ifndef TANDEM_CUDA_RESIZE_H_
#define TANDEM_CUDA_RESIZE_H_
#ifdef __cplusplus
extern "C" {
#endif

/* y (outer, outputs, inner) from x (outer, inputs, inner):
 *   y[a][o][b] = sum over k < begin[o + 1] - begin[o] of weights[begin[o] + k] x[a][first[o] +
 * k][b] in that order. The tables are device memory: interpolation, or a transposed table for its
 * gradient. */
struct tandem_cuda_resample_params {
  int64_t outer, inputs, outputs, inner;
  const int32_t* first;     /* (outputs) */
  const int64_t* begin;     /* (outputs + 1) */
  const void* weights;      /* f64 where x is f64, else f32 */
  int32_t x_dtype, y_dtype; /* equal, or one of them f32 and the other f16 or bf16; sums are f32 */
};
TANDEM_CUDA_API int tandem_cuda_resample(void* y, const void* x,
                                         const struct tandem_cuda_resample_params* params,
                                         tandem_cuda_stream stream);
/* y[a][o][b] = x[a][first[o]][b], elements of 1, 2, 4 or 8 bytes. */
TANDEM_CUDA_API int tandem_cuda_resample_nearest(void* y, const void* x, const int32_t* first,
                                                 int64_t outer, int64_t inputs, int64_t outputs,
                                                 int64_t inner, int32_t element_bytes,
                                                 tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
