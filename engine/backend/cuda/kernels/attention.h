/* Causal attention within sequences of unequal length, with grouped-query heads; part of
 * tandem_cuda.h.
 *
 * Arithmetic (FlashAttention's, Dao 2023): keys come in blocks of 128 from position 0 of the
 * sequence; the softmax is in base 2 with a running maximum and sum; every 2,048 keys are a split
 * that starts from nothing, and splits are merged in order. An output row depends on its own query
 * and on the keys and values up to its position, bit for bit: alone (decode), in any piece of its
 * prompt (prefill) or in a packed training batch, beside any neighbours. Only infinities and NaNs
 * among later values of its own sequence can reach it. One device uses the same kernels' arithmetic
 * everywhere. Tensors are 16-byte aligned. */
#ifndef TANDEM_CUDA_ATTENTION_H_
#define TANDEM_CUDA_ATTENTION_H_
#ifdef __cplusplus
extern "C" {
#endif

/* N tokens, S sequences, H query heads, Hkv key/value heads, D <= 256. Head h reads key/value head
 * h / (H / Hkv). Token i of sequence s is row query_start[s] + i and has position i, or
 * past_length[s] + i where there is a cache; it attends to all positions up to its own. */
struct tandem_cuda_attention_params {
  int32_t dtype;      /* F32, F16 or BF16: of q, k, v, out and the caches */
  int32_t capability; /* of the device: 90 for 9.0 */
  int32_t tokens, sequences, heads, kv_heads, head_dim;
  float scale;                /* above 0; score = scale q.k */
  const int32_t* query_start; /* (S + 1) */
  const void *q, *k, *v;      /* (N, H, D), (N, Hkv, D), (N, Hkv, D) */
  void* out;                  /* (N, H, D) */
  float* lse;                 /* (N, H) natural log-sum-exp of the scores; or null */
  /* The cache, of paged_attention alone: pages of 32 positions, each (Hkv, 32, D). Position p of
   * sequence s lies in page block_table[s, p / 32]. */
  const int32_t* past_length; /* (S) */
  const int32_t* block_table; /* (S, blocks_per_sequence) */
  void *k_cache, *v_cache;    /* (P, Hkv, 32, D) */
  int32_t pages, blocks_per_sequence;
  /* paged_attention: 1 has one block go through all splits of a row, 0 chooses. The same bits. */
  int32_t whole_rows;
  void* scratch; /* paged_attention: what paged_attention_scratch says, 64-byte aligned */
};

/* Over k and v; writes out and lse. */
TANDEM_CUDA_API int tandem_cuda_attention(const struct tandem_cuda_attention_params* params,
                                          tandem_cuda_stream stream);
/* Writes the new k and v into the cache, then attends to the cache; writes out. */
TANDEM_CUDA_API int tandem_cuda_paged_attention(const struct tandem_cuda_attention_params* params,
                                                tandem_cuda_stream stream);
/* Reads the sizes, not the pointers. */
TANDEM_CUDA_API int tandem_cuda_paged_attention_scratch(
    const struct tandem_cuda_attention_params* params, int64_t* bytes);

/* The gradients of sum(dout * out), from tandem_cuda_attention's out and lse. Deterministic: no
 * atomics, each gradient summed in one order. delta (N, H) f32 is scratch. */
struct tandem_cuda_attention_grad_params {
  struct tandem_cuda_attention_params forward;
  const void* dout;   /* (N, H, D) */
  void *dq, *dk, *dv; /* (N, H, D), (N, Hkv, D), (N, Hkv, D) */
  float* delta;
};
TANDEM_CUDA_API int tandem_cuda_attention_grad(
    const struct tandem_cuda_attention_grad_params* params, tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
