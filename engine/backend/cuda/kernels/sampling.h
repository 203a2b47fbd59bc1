/* Tokens drawn on the device from logits (rows, vocabulary) f32; part of tandem_cuda.h. */
#ifndef TANDEM_CUDA_SAMPLING_H_
#define TANDEM_CUDA_SAMPLING_H_
#ifdef __cplusplus
extern "C" {
#endif

/* Draws a token a row, as engine/sample/token_sampler.cc does: logits / temperature, the top_k
 * largest, of these the likeliest that together have top_p of the probability, of these those with
 * at least min_p of the likeliest's, and among them the largest of logit + Gumbel noise keyed by
 * (seed, stream, position, token) in Philox4x32-10. Of equal logits the first token counts as the
 * larger. Nothing is sorted but what the cuts may leave, and a row's result depends on that row and
 * its own parameters alone.
 *
 * The token is the CPU's: the noise and the scores are taken in double, and differ from the CPU's
 * only by its last bits. Where the top_p cut falls within 1e-7 of a token's cumulative probability
 * the cut may differ by that token, and sampling_logprob may by an f32 rounding or two: the
 * probabilities of tokens that are likely to be cut are summed from f32 exponentials. */
struct tandem_cuda_sample_params {
  const float* logits;       /* penalties and biases applied; vocabulary below 2^30 */
  const float* model_logits; /* for logprob: before these; may be logits */
  const float* lse;          /* (rows), of model_logits */
  const float*
      temperature;      /* (rows), as are all below; 0: the largest logit, the first of equals */
  const int32_t* top_k; /* 0: off */
  const double* top_p;  /* in (0, 1]; 1: off */
  const double* min_p;  /* in [0, 1]; 0: off */
  const uint64_t* seed;
  const uint64_t* stream;   /* of the seed: which of several samples */
  const uint64_t* position; /* tokens before this one; below 2^32 */
  int32_t* token;
  float* logprob;          /* model_logits[token] - lse */
  float* sampling_logprob; /* of the distribution drawn from; 0 at temperature 0 */
  int64_t rows;
  int64_t vocabulary;
};
TANDEM_CUDA_API int tandem_cuda_sample_tokens(const struct tandem_cuda_sample_params* params,
                                              tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
