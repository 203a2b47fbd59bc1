/* The k largest elements of rows; part of tandem_cuda.h. */
#ifndef TANDEM_CUDA_TOPK_H_
#define TANDEM_CUDA_TOPK_H_
#ifdef __cplusplus
extern "C" {
#endif

#define TANDEM_CUDA_TOPK_MOST 8192
/* x (rows, n) -> values (rows, k) and indices (rows, k): the k largest (smallest) of a row, largest
 * (smallest) first, of equal ones the first first; NaN is above all, and both zeros are equal. Any
 * number. k <= n < 2^31; TANDEM_CUDA_UNSUPPORTED for k above TANDEM_CUDA_TOPK_MOST. By radix
 * selection (Alabi et al., "Fast k-selection algorithms for graphics processing units", 2012). */
TANDEM_CUDA_API int tandem_cuda_topk(int32_t largest, int32_t dtype, void* values, int64_t* indices,
                                     const void* x, int64_t rows, int64_t n, int64_t k,
                                     tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
