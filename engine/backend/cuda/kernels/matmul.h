/* Matrix products; part of tandem_cuda.h. */
#ifndef TANDEM_CUDA_MATMUL_H_
#define TANDEM_CUDA_MATMUL_H_
#ifdef __cplusplus
extern "C" {
#endif

enum tandem_cuda_activation {
  TANDEM_CUDA_ACTIVATION_NONE = 0,
  TANDEM_CUDA_ACTIVATION_RELU = 1,     /* max(x, 0); NaN stays */
  TANDEM_CUDA_ACTIVATION_SILU = 2,     /* x / (1 + exp(-x)) */
  TANDEM_CUDA_ACTIVATION_GELU = 3,     /* x / 2 (1 + erf(x / sqrt(2))) */
  TANDEM_CUDA_ACTIVATION_GELU_TANH = 4 /* x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
};

/* out (batch, m, n) = activation(a (batch, m, k) b (batch, k, n) + bias (n)) + residual (batch, m,
 * n), or, with b2, silu(a b) * (a b2) + residual (SwiGLU; Shazeer, arXiv:2002.05202).
 *
 * Row-major; leading dimensions and batch strides count elements, a batch stride of 0 shares the
 * operand. With transpose_a, a is (batch, k, m); with transpose_b, b and b2 are (batch, n, k).
 * bias, residual and b2 may be null; b2 goes without bias, activation and transpose_a. residual has
 * the strides of out and may be out; nothing else overlaps out.
 *
 * Types (dtype: a, b, b2, bias; out_dtype: out, residual):
 *   f32 -> f32: each element is one chain of fused multiply-adds over k = 0 .. k-1 from +0, then
 * the bias is added: the bits of the CPU's kernel. With tf32 the operands are rounded to tf32 (10
 *     bits of fraction, ties away from zero) and tensor cores add.
 *   bf16, f16 -> the same or f32: tensor cores, f32 sums. A 16-bit result is rounded after each
 *     part of the epilogue (sum and bias, activation or SwiGLU, residual): the bits of the separate
 *     operators.
 *   f64, i32, i64, u32, u64 -> the same: a plain loop (product and sum rounded separately; integers
 *     wrap), bias and nothing else.
 * Batch-invariant: the bits of an output row depend on that row of a and of residual, on b and
 * bias, and on nothing else: k is never split, and every tile shape takes it in the same steps with
 * the same instruction. (A device uses mma.sync or wgmma for all sizes; they may differ in bits.)
 *
 * 16-byte aligned pointers with leading dimensions and strides that are multiples of 16 bytes are
 * fast; others are read element by element. */
struct tandem_cuda_matmul_params {
  const void* a;
  const void* b;
  const void* b2;
  const void* bias;
  const void* residual;
  void* out;
  int64_t batch, m, n, k;
  int64_t lda, ldb, ld_out;
  int64_t a_stride, b_stride, out_stride; /* from one matrix of the batch to the next */
  int32_t dtype, out_dtype;
  int32_t transpose_a, transpose_b;
  int32_t activation;
  int32_t tf32;
};

TANDEM_CUDA_API int tandem_cuda_matmul(const struct tandem_cuda_matmul_params* params,
                                       tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
