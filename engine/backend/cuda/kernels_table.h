// The CUDA kernel of every operator that has one: one line an operator, defined in the family's
// file beside this one as `constinit const Kernel kNegKernel = {.bind = BindNeg};`. An operator
// that is not here is lowered, or the plan names it.
#pragma once

#include "engine/backend/backend.h"
#include "engine/ops/definitions.h"

// clang-format off
#define TANDEM_CUDA_UNARY_KERNELS(OP) \
  OP(Neg) OP(Abs) OP(Sign) OP(Exp) OP(Log) OP(Sqrt) OP(Rsqrt) OP(Reciprocal) OP(Tanh) \
  OP(Sigmoid) OP(Erf) OP(Relu) OP(Gelu) OP(GeluTanh) OP(Silu) OP(Softplus) OP(Sin) OP(Cos) \
  OP(Floor) OP(Ceil) OP(Round) OP(Square) OP(Log1p) OP(Expm1) OP(Not)
#define TANDEM_CUDA_ELEMENTWISE_KERNELS(OP) \
  TANDEM_CUDA_UNARY_KERNELS(OP) \
  TANDEM_UNARY_GRAD_OPS(OP) TANDEM_BINARY_OPS(OP) OP(Where) OP(Cast) OP(SwiGlu) OP(SwiGluGrad)
#define TANDEM_CUDA_RANDOM_KERNELS(OP) \
  OP(Random) OP(SampleTokens) OP(RandomGamma) OP(RandomGammaGrad) OP(Lgamma) OP(Digamma) OP(Trigamma)
#define TANDEM_CUDA_REDUCE_KERNELS(OP) \
  OP(ReduceSum) OP(ReduceMax) OP(ReduceMin) OP(ReduceProd) OP(ArgMax) OP(ArgMin) OP(TopK)
#define TANDEM_CUDA_SHAPE_KERNELS(OP) \
  OP(Reshape) OP(Transpose) OP(BroadcastTo) OP(Slice) OP(Unslice) OP(Pad) OP(Concat) OP(Gather)
#define TANDEM_CUDA_NORMALIZATION_KERNELS(OP)                   \
  OP(Softmax) OP(SoftmaxGrad) OP(LogSoftmax) OP(LogSoftmaxGrad) \
  OP(LayerNorm) OP(LayerNormGrad) OP(RmsNorm) OP(RmsNormGrad)
#define TANDEM_CUDA_LINEAR_KERNELS(OP) OP(MatMul) OP(FusedMatMul) OP(TriangularSolve)
#define TANDEM_CUDA_ATTENTION_KERNELS(OP) OP(Attention) OP(AttentionGrad) OP(PagedAttention)
#define TANDEM_CUDA_LOSS_KERNELS(OP) OP(SoftmaxCrossEntropy) OP(SoftmaxCrossEntropyGrad)
#define TANDEM_CUDA_EMBEDDING_KERNELS(OP) OP(Rope) OP(GatherGrad)
#define TANDEM_CUDA_SPATIAL_KERNELS(OP)         \
  OP(Conv) OP(ConvInputGrad) OP(ConvWeightGrad) \
  OP(MaxPool) OP(MaxPoolGrad)                   \
  OP(AveragePool) OP(AveragePoolGrad)           \
  OP(Resize) OP(ResizeGrad)
#define TANDEM_CUDA_OPTIMIZER_KERNELS(OP) \
  OP(SumOfSquares) OP(OptimizerControl) OP(AdamStep) OP(SgdStep)
#define TANDEM_CUDA_KERNELS(OP)         \
  TANDEM_CUDA_ELEMENTWISE_KERNELS(OP)   \
  TANDEM_CUDA_REDUCE_KERNELS(OP)        \
  TANDEM_CUDA_SHAPE_KERNELS(OP)         \
  TANDEM_CUDA_RANDOM_KERNELS(OP)        \
  TANDEM_CUDA_NORMALIZATION_KERNELS(OP) \
  TANDEM_CUDA_LINEAR_KERNELS(OP)        \
  TANDEM_CUDA_ATTENTION_KERNELS(OP)     \
  TANDEM_CUDA_LOSS_KERNELS(OP)          \
  TANDEM_CUDA_EMBEDDING_KERNELS(OP)     \
  TANDEM_CUDA_OPTIMIZER_KERNELS(OP)     \
  TANDEM_CUDA_SPATIAL_KERNELS(OP)
// clang-format on

namespace tandem::cuda {

#define OP(name) extern const Kernel k##name##Kernel;
TANDEM_CUDA_KERNELS(OP)
#undef OP

}  // namespace tandem::cuda
