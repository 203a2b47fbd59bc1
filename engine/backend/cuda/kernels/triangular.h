/* Triangular systems; part of tandem_cuda.h. */
#ifndef TANDEM_CUDA_TRIANGULAR_H_
#define TANDEM_CUDA_TRIANGULAR_H_
#ifdef __cplusplus
extern "C" {
#endif

/* l (batch, size, size), rhs and out (batch, size, columns), f32 or f64: the solution of L x = rhs,
 * or of L^T x = rhs when `transposed`, for the lower triangle of l. Substitution in the order of
 * the CPU's kernel, and its bits. out is not rhs. */
TANDEM_CUDA_API int tandem_cuda_triangular_solve(int32_t dtype, int32_t transposed, void* out,
                                                 const void* l, const void* rhs, int64_t batch,
                                                 int64_t size, int64_t columns,
                                                 tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
