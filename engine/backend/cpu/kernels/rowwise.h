// f32 kernels over the rows of a contiguous (rows, cols) matrix: softmax, losses, norms, sums,
// rotary positions, embeddings.
//
// A row's bits depend on that row, its parameters and cols alone: not on the other rows, the row's
// place or the thread count. Sums over rows (parameter gradients) are split into chunks by the
// shape alone and merged in order, so their bits do not depend on the thread count either. Within
// one CPU type, that is: the vector width fixes the order of a row's sum.
//
// Nothing allocates or throws; rows <= 0 or cols <= 0 does nothing. An output may be the same array
// as an input of its shape unless said otherwise. Scratch comes from the caller, in f32.
#pragma once

#include <cstdint>

namespace tandem::cpu {

// ---- Softmax and cross entropy. A row with NaN or +inf gives NaN, as PyTorch does.

// y = softmax(x). A row of nothing but -inf gives NaN.
void Softmax(const float* x, float* y, int64_t rows, int64_t cols);
// dx = y * (dy - sum(dy * y)), from the output.
void SoftmaxBackward(const float* y, const float* dy, float* dx, int64_t rows, int64_t cols);

// lse[i] = ln(sum_j exp(x[i,j])); -inf for a row of -inf, +inf for a row with +inf and no NaN.
void LogSumExp(const float* x, float* lse, int64_t rows, int64_t cols);

// y = x - LogSumExp(x), those very bits: one f32 subtraction, as in SoftmaxCrossEntropy.
void LogSoftmax(const float* x, float* y, int64_t rows, int64_t cols);
// dx = dy - exp(y) * sum(dy), from the output.
void LogSoftmaxBackward(const float* y, const float* dy, float* dx, int64_t rows, int64_t cols);

// loss[i] = lse[i] - logits[i, target[i]], so that logits - LogSumExp is exactly its negative.
// targets in [0, cols); lse (rows) is kept for the backward pass.
void SoftmaxCrossEntropy(const float* logits, const int32_t* targets, float* loss, float* lse,
                         int64_t rows, int64_t cols);
// dlogits[i,j] = g[i] * (softmax(logits)[i,j] - [j == target[i]]); a row with g = 0 gives zeros.
void SoftmaxCrossEntropyBackward(const float* logits, const int32_t* targets, const float* lse,
                                 const float* g, float* dlogits, int64_t rows, int64_t cols);

// ---- Reductions.

void RowSum(const float* x, float* out, int64_t rows, int64_t cols);
void RowMax(const float* x, float* out, int64_t rows, int64_t cols);       // NaN passes
void RowArgMax(const float* x, int64_t* out, int64_t rows, int64_t cols);  // the first; NaN wins

// out (cols) = the sum over rows. Scratch may be 0 bytes: then a null will do.
int64_t ColumnSumScratchBytes(int64_t rows, int64_t cols);
void ColumnSum(const float* x, float* out, float* scratch, int64_t rows, int64_t cols);

// ---- Norms.

// y = (x - mean) * rstd * gamma + beta, rstd = 1 / sqrt(var + eps), var = mean((x - mean)^2) in a
// second pass (Ba et al., 2016). gamma, beta (cols) may be null; mean, rstd (rows) are written.
void LayerNorm(const float* x, const float* gamma, const float* beta, float eps, float* y,
               float* mean, float* rstd, int64_t rows, int64_t cols);
// With h = (x - mean) rstd and g = dy gamma: dx = rstd (g - mean(g) - h mean(g h)).
void LayerNormBackward(const float* x, const float* dy, const float* gamma, const float* mean,
                       const float* rstd, float* dx, int64_t rows, int64_t cols);
// dgamma = sum_rows dy h, dbeta = sum_rows dy; either may be null. Scratch may be 0 bytes.
int64_t LayerNormParameterScratchBytes(int64_t rows, int64_t cols);
void LayerNormParameterBackward(const float* x, const float* dy, const float* mean,
                                const float* rstd, float* dgamma, float* dbeta, float* scratch,
                                int64_t rows, int64_t cols);

// y = x * rstd * gamma, rstd = 1 / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019). gamma (cols)
// may be null; rstd (rows) is written.
void RmsNorm(const float* x, const float* gamma, float eps, float* y, float* rstd, int64_t rows,
             int64_t cols);
// With h = x rstd and g = dy gamma: dx = rstd (g - h mean(g h)).
void RmsNormBackward(const float* x, const float* dy, const float* gamma, const float* rstd,
                     float* dx, int64_t rows, int64_t cols);
// dgamma = sum_rows dy h. Scratch may be 0 bytes.
int64_t RmsNormParameterScratchBytes(int64_t rows, int64_t cols);
void RmsNormParameterBackward(const float* x, const float* dy, const float* rstd, float* dgamma,
                              float* scratch, int64_t rows, int64_t cols);

// ---- Rotary positions (Su et al., RoFormer, 2021), pairing (i, i + head_dim / 2) as Llama in the
// Hugging Face layout does.

// Angle of (position, i) = position * base^(-2 i / head_dim); cos and sin (max_positions,
// head_dim / 2), computed in double. head_dim is even.
void FillRopeTables(double base, int64_t head_dim, int64_t max_positions, float* cos, float* sin);
// The same from frequencies given (head_dim / 2), for scaled variants.
void FillRopeTables(const double* frequencies, int64_t half_dim, int64_t max_positions, float* cos,
                    float* sin);

struct RopeParams {
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;          // even
  int64_t in_token_stride = 0;   // elements from a token to the next; heads lie side by side
  int64_t out_token_stride = 0;  // the same as in_token_stride when in place
};
// x, out (tokens, heads, head_dim); positions (tokens), within the tables. Backward, the gradient's
// rotation by the opposite angle, is the same function with inverse = true.
void Rope(const RopeParams& params, const float* x, const int32_t* positions, const float* cos,
          const float* sin, bool inverse, float* out);

// ---- Embeddings.

// out[i] = table[ids[i]]; table (_, cols), ids (rows) valid, out (rows, cols).
void EmbeddingGather(const float* table, const int32_t* ids, float* out, int64_t rows,
                     int64_t cols);
// dtable[ids[i]] += dy[i], in the order of i.
void EmbeddingScatterAdd(const float* dy, const int32_t* ids, float* dtable, int64_t rows,
                         int64_t cols);

}  // namespace tandem::cpu
