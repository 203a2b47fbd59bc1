/* Kernels that move elements by position; part of tandem_cuda.h. Elements of 1, 2, 4 or 8 bytes. */
#ifndef TANDEM_CUDA_SHAPE_H_
#define TANDEM_CUDA_SHAPE_H_
#include "engine/backend/cuda/kernels/strided.h"
#ifdef __cplusplus
extern "C" {
#endif

/* out = x over the loop's operands {out, x}, which may not overlap. Transposes, broadcasts, slices,
 * and what is written into a part of the output. */
TANDEM_CUDA_API int tandem_cuda_copy_strided(int32_t element_bytes, void* out, const void* x,
                                             const struct tandem_cuda_loop* loop,
                                             tandem_cuda_stream stream);

/* out[i] = the element whose bytes are the lowest of `bits`, (n). */
TANDEM_CUDA_API int tandem_cuda_fill(int32_t element_bytes, void* out, uint64_t bits, int64_t n,
                                     tandem_cuda_stream stream);

/* x (outer, axis, inner), indices (n) of i32 or i64 -> out (outer, n, inner): slices of x. A
 * negative index counts from the end; what is then outside goes to the nearest end. */
TANDEM_CUDA_API int tandem_cuda_gather(int32_t element_bytes, int32_t index_dtype, void* out,
                                       const void* x, const void* indices, int64_t outer,
                                       int64_t axis, int64_t n, int64_t inner,
                                       tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
