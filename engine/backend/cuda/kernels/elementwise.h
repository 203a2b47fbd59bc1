/* Elementwise kernels; part of tandem_cuda.h.
 *
 * 16-bit floats are computed with in f32. Integers wrap around. Every output may be the same array
 * as an input of its shape and element size. */
#ifndef TANDEM_CUDA_ELEMENTWISE_H_
#define TANDEM_CUDA_ELEMENTWISE_H_
#include "engine/backend/cuda/kernels/strided.h"
#ifdef __cplusplus
extern "C" {
#endif

/* The operators of one input of engine/ops/ops.h, by name. */
enum tandem_cuda_unary_op {
  TANDEM_CUDA_UNARY_Neg = 0,
  TANDEM_CUDA_UNARY_Abs = 1,
  TANDEM_CUDA_UNARY_Sign = 2, /* 0 at both zeros, NaN at NaN */
  TANDEM_CUDA_UNARY_Exp = 3,
  TANDEM_CUDA_UNARY_Log = 4,
  TANDEM_CUDA_UNARY_Sqrt = 5,
  TANDEM_CUDA_UNARY_Rsqrt = 6,
  TANDEM_CUDA_UNARY_Reciprocal = 7,
  TANDEM_CUDA_UNARY_Tanh = 8,
  TANDEM_CUDA_UNARY_Sigmoid = 9,
  TANDEM_CUDA_UNARY_Erf = 10,
  TANDEM_CUDA_UNARY_Relu = 11, /* NaN passes */
  TANDEM_CUDA_UNARY_Gelu = 12,
  TANDEM_CUDA_UNARY_GeluTanh = 13,
  TANDEM_CUDA_UNARY_Silu = 14,
  TANDEM_CUDA_UNARY_Softplus = 15,
  TANDEM_CUDA_UNARY_Sin = 16,
  TANDEM_CUDA_UNARY_Cos = 17,
  TANDEM_CUDA_UNARY_Floor = 18,
  TANDEM_CUDA_UNARY_Ceil = 19,
  TANDEM_CUDA_UNARY_Round = 20, /* half to even */
  TANDEM_CUDA_UNARY_Square = 21,
  TANDEM_CUDA_UNARY_Log1p = 22,
  TANDEM_CUDA_UNARY_Expm1 = 23,
  TANDEM_CUDA_UNARY_Not = 24, /* bool */
  TANDEM_CUDA_UNARY_COUNT = 25
};
/* out[i] = op(x[i]), (n). The floating types; integers for Neg, Abs, Sign, Relu and Square; bool
 * for Not. */
TANDEM_CUDA_API int tandem_cuda_unary(int32_t op, int32_t dtype, void* out, const void* x,
                                      int64_t n, tandem_cuda_stream stream);

enum tandem_cuda_unary_grad_op {
  TANDEM_CUDA_UNARY_GRAD_Relu = 0,
  TANDEM_CUDA_UNARY_GRAD_Gelu = 1,
  TANDEM_CUDA_UNARY_GRAD_GeluTanh = 2,
  TANDEM_CUDA_UNARY_GRAD_Silu = 3,
  TANDEM_CUDA_UNARY_GRAD_COUNT = 4
};
/* dx[i] = dy[i] op'(x[i]), (n). The floating types. */
TANDEM_CUDA_API int tandem_cuda_unary_grad(int32_t op, int32_t dtype, void* dx, const void* x,
                                           const void* dy, int64_t n, tandem_cuda_stream stream);

enum tandem_cuda_binary_op {
  TANDEM_CUDA_BINARY_Add = 0,
  TANDEM_CUDA_BINARY_Sub = 1,
  TANDEM_CUDA_BINARY_Mul = 2,
  TANDEM_CUDA_BINARY_Div = 3, /* integers: towards 0; by 0: 0 */
  TANDEM_CUDA_BINARY_Pow = 4,
  TANDEM_CUDA_BINARY_Max = 5, /* NaN from either side */
  TANDEM_CUDA_BINARY_Min = 6,
  TANDEM_CUDA_BINARY_Mod = 7, /* floats: C's fmod; integers: the divisor's sign; by 0: 0 */
  TANDEM_CUDA_BINARY_Equal = 8,
  TANDEM_CUDA_BINARY_Less = 9,
  TANDEM_CUDA_BINARY_LessOrEqual = 10,
  TANDEM_CUDA_BINARY_And = 11, /* bool, as Or and Xor */
  TANDEM_CUDA_BINARY_Or = 12,
  TANDEM_CUDA_BINARY_Xor = 13,
  TANDEM_CUDA_BINARY_COUNT = 14
};
/* out = op(a, b) over the loop's operands {out, a, b}, of which out is dense. a and b are of
 * `dtype`; out too, but bool for Equal, Less and LessOrEqual. Any number; bool for Equal, And, Or
 * and Xor. */
TANDEM_CUDA_API int tandem_cuda_binary(int32_t op, int32_t dtype, void* out, const void* a,
                                       const void* b, const struct tandem_cuda_loop* loop,
                                       tandem_cuda_stream stream);

/* out = condition ? x : y over the loop's operands {out, condition, x, y}; condition is bool, the
 * others elements of 1, 2, 4 or 8 bytes. */
TANDEM_CUDA_API int tandem_cuda_where(int32_t element_bytes, void* out, const void* condition,
                                      const void* x, const void* y,
                                      const struct tandem_cuda_loop* loop,
                                      tandem_cuda_stream stream);

/* Any dtype to any other, (n). Floats to integers truncate and saturate, NaN becomes 0; integers to
 * integers wrap; anything to bool is != 0; f64 reaches a 16-bit float through f32. */
TANDEM_CUDA_API int tandem_cuda_cast(int32_t from, int32_t to, void* out, const void* x, int64_t n,
                                     tandem_cuda_stream stream);

/* out = silu(gate) up, (n); and {dgate, dup} = {dy up silu'(gate), dy silu(gate)}. f32, f16, bf16.
 */
TANDEM_CUDA_API int tandem_cuda_swiglu(int32_t dtype, void* out, const void* gate, const void* up,
                                       int64_t n, tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_swiglu_grad(int32_t dtype, void* dgate, void* dup, const void* gate,
                                            const void* up, const void* dy, int64_t n,
                                            tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
