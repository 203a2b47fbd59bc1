/* Elementwise kernels; part of tandem_cuda.h. */
#ifndef TANDEM_CUDA_ELEMENTWISE_H_
#define TANDEM_CUDA_ELEMENTWISE_H_
#ifdef __cplusplus
extern "C" {
#endif

/* out[i] = -x[i]; f32, (n) */
TANDEM_CUDA_API int tandem_cuda_negate(float* out, const float* x, int64_t n,
                                       tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
