/* Rotary positions, and the gradient of an embedding; part of tandem_cuda.h. */
#ifndef TANDEM_CUDA_EMBEDDING_H_
#define TANDEM_CUDA_EMBEDDING_H_
#ifdef __cplusplus
extern "C" {
#endif

/* Rotary positions (Su et al., RoFormer, 2021), pairing (i, i + D/2): of each head (a, b) becomes
 * (a cos - b sin, b cos + a sin), computed in f32. */
struct tandem_cuda_rope_params {
  const void* x;            /* (tokens, heads, D); a token's heads lie side by side */
  const int32_t* positions; /* (tokens), moved into [0, table_positions) */
  const void* table;        /* (table_positions, D): D/2 cosines, then D/2 sines */
  void* out;                /* (tokens, heads, D); may be x if the strides are equal */
  int64_t tokens;
  int64_t heads;
  int64_t head_dim; /* even */
  int64_t x_stride; /* elements from a token to the next */
  int64_t out_stride;
  int64_t table_positions;
  int32_t dtype;       /* f32, bf16 or f16, of x and out */
  int32_t table_dtype; /* the same, or f32 */
  int32_t inverse;     /* rotates back: the gradient */
};
TANDEM_CUDA_API int tandem_cuda_rope(const struct tandem_cuda_rope_params* params,
                                     tandem_cuda_stream stream);

/* out (vocabulary, cols) = zeros, then out[ids[i]] += dy[i] in the order of i, whatever order the
 * device works in; floats are added in f32 (f64 for f64) and rounded once, integers wrap. A
 * negative id counts from the end; what is then outside goes to the nearest row. */
struct tandem_cuda_gather_grad_params {
  const void* dy;  /* (rows, cols) */
  const void* ids; /* (rows), i32 or i64 */
  void* out;
  void* scratch; /* of tandem_cuda_gather_grad_scratch, 8-byte aligned */
  int64_t rows;  /* below 2^31, as is vocabulary */
  int64_t cols;
  int64_t vocabulary;
  int32_t dtype; /* f32, f64, bf16, f16, i32 or i64 */
  int32_t id_dtype;
};
TANDEM_CUDA_API int tandem_cuda_gather_grad_scratch(int64_t rows, int64_t vocabulary,
                                                    int64_t* bytes);
TANDEM_CUDA_API int tandem_cuda_gather_grad(const struct tandem_cuda_gather_grad_params* params,
                                            tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
