/* Reductions; part of tandem_cuda.h.
 *
 * x (outer, n, inner) -> out (outer, inner). Which elements are added up in which order depends on
 * n alone: in chunks of 4096, each as 128 interleaved partial results that a binary tree joins, and
 * the chunks' results again so. Sums of 16-bit floats are in f32. */
#ifndef TANDEM_CUDA_REDUCE_H_
#define TANDEM_CUDA_REDUCE_H_
#ifdef __cplusplus
extern "C" {
#endif

enum tandem_cuda_reduce_op {
  TANDEM_CUDA_REDUCE_Sum = 0,
  TANDEM_CUDA_REDUCE_Max = 1, /* NaN passes, as in Min */
  TANDEM_CUDA_REDUCE_Min = 2,
  TANDEM_CUDA_REDUCE_Prod = 3
};
#define TANDEM_CUDA_REDUCE_CHUNK 4096

/* Scratch of tandem_cuda_reduce (element_bytes 8) and tandem_cuda_arg_reduce (16), 64-byte aligned;
 * may be 0. */
static inline int64_t tandem_cuda_reduce_scratch_bytes(int64_t outer, int64_t n, int64_t inner,
                                                       int64_t element_bytes) {
  int64_t results = 0;
  while (n > TANDEM_CUDA_REDUCE_CHUNK) {
    n = (n + TANDEM_CUDA_REDUCE_CHUNK - 1) / TANDEM_CUDA_REDUCE_CHUNK;
    results += n;
  }
  return outer * inner * results * element_bytes;
}

/* Any number; integers wrap around. The dtypes are the same, or one is f32 and the other a 16-bit
 * float. n = 0 gives the operation's neutral element. */
TANDEM_CUDA_API int tandem_cuda_reduce(int32_t op, int32_t x_dtype, int32_t out_dtype, void* out,
                                       const void* x, int64_t outer, int64_t n, int64_t inner,
                                       void* scratch, tandem_cuda_stream stream);

/* The index of the largest (smallest) of n >= 1: of equal ones the first; NaN wins. Any dtype. */
TANDEM_CUDA_API int tandem_cuda_arg_reduce(int32_t largest, int32_t dtype, int64_t* out,
                                           const void* x, int64_t outer, int64_t n, int64_t inner,
                                           void* scratch, tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
