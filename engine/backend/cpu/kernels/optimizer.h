// Optimizer steps over flat f32 arrays, with PyTorch's formulas, one pass over memory each.
//
// Element by element, so bits depend neither on place nor on the thread count. Hyperparameters are
// double and combined in double before they meet an f32, as in PyTorch: 1 - beta2 in f32 would be
// off in the fifth digit. Nothing allocates or throws.
#pragma once

#include <cstdint>

namespace tandem::cpu {

// The sum of x[i]^2 in double, over fixed chunks merged in order: the same for any thread count.
// Infinite or NaN exactly when some x[i] is.
double SumOfSquares(const float* x, int64_t n);

struct AdamWParams {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  int64_t step = 1;         // this step's number, from 1
  float grad_scale = 1.0f;  // multiplies the gradient first: clip coefficient, 1 / loss scale
  bool adamw = true;        // decoupled decay (Loshchilov and Hutter, 2019); else L2 (Adam)
};
// torch.optim.AdamW / Adam, without amsgrad: decay p (AdamW) or add wd p to g (Adam);
// m += (1 - beta1)(g - m); v = beta2 v + (1 - beta2) g^2;
// p -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps).
void AdamWStep(const AdamWParams& params, float* p, const float* g, float* m, float* v, int64_t n);

struct SgdParams {
  double lr = 1e-2;
  double momentum = 0.0;
  double dampening = 0.0;
  double weight_decay = 0.0;
  bool nesterov = false;
  bool first_step = true;  // the momentum buffer starts as the gradient, undampened
  float grad_scale = 1.0f;
};
// torch.optim.SGD: g += wd p; buffer = momentum buffer + (1 - dampening) g; g = buffer, or with
// nesterov g + momentum buffer; p -= lr g. buffer may be null when momentum is 0.
void SgdStep(const SgdParams& params, float* p, const float* g, float* buffer, int64_t n);

}  // namespace tandem::cpu
