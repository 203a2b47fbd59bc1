// The OpDef of every operator of ops.h, and the list of them all.
//
// A family's file defines its own (`constinit const OpDef kConv = {.name = "Conv", ...}`); the
// registry (registry.cc) and the backends' kernel tables take theirs from the list here.
#pragma once

#include "engine/graph/op.h"
#include "engine/ops/ops.h"

// In the order of ops.h. OP(name) for each.
// clang-format off
#define TANDEM_ELEMENTWISE_OPS(OP) \
  TANDEM_UNARY_OPS(OP)             \
  TANDEM_UNARY_GRAD_OPS(OP) TANDEM_BINARY_OPS(OP) OP(Where) OP(Cast) OP(SwiGlu) OP(SwiGluGrad)
#define TANDEM_RANDOM_OPS(OP) \
  OP(Random) OP(GumbelSoftmax) OP(RandomGamma) OP(RandomGammaGrad) OP(SampleTokens)
#define TANDEM_REDUCE_OPS(OP) \
  OP(ReduceSum) OP(ReduceMax) OP(ReduceMin) OP(ReduceProd) OP(ArgMax) OP(ArgMin) OP(TopK)
#define TANDEM_SHAPE_OPS(OP) \
  OP(Reshape)                \
  OP(Transpose) OP(BroadcastTo) OP(Slice) OP(Unslice) OP(Pad) OP(Concat) OP(Gather) OP(GatherGrad)
#define TANDEM_LINEAR_OPS(OP) OP(MatMul) OP(TriangularSolve)
#define TANDEM_CONV_OPS(OP) \
  OP(Conv)                  \
  OP(ConvInputGrad)         \
  OP(ConvWeightGrad) OP(MaxPool) OP(MaxPoolGrad) OP(AveragePool) OP(AveragePoolGrad)
#define TANDEM_RESIZE_OPS(OP) OP(Resize) OP(ResizeGrad)
#define TANDEM_NORMALIZATION_OPS(OP) \
  OP(Softmax)                        \
  OP(SoftmaxGrad)                    \
  OP(LogSoftmax) OP(LogSoftmaxGrad) OP(LayerNorm) OP(LayerNormGrad) OP(RmsNorm) OP(RmsNormGrad)
#define TANDEM_LOSS_OPS(OP) OP(SoftmaxCrossEntropy) OP(SoftmaxCrossEntropyGrad)
#define TANDEM_SEQUENCE_OPS(OP) OP(Rope) OP(Attention) OP(AttentionGrad) OP(PagedAttention)
#define TANDEM_OPTIMIZER_OPS(OP) OP(SumOfSquares) OP(OptimizerControl) OP(AdamStep) OP(SgdStep)
// Operators that plans make where the backend has a kernel; lowered where it has none.
#define TANDEM_FUSED_OPS(OP) OP(FusedMatMul)
// Operators that are nothing but their lowering, on every backend.
#define TANDEM_LOWERED_OPS(OP) OP(StraightThrough)
#define TANDEM_KERNEL_OPS(OP)                                                                 \
  TANDEM_ELEMENTWISE_OPS(OP)                                                                  \
  TANDEM_RANDOM_OPS(OP)                                                                       \
  TANDEM_REDUCE_OPS(OP)                                                                       \
  TANDEM_SHAPE_OPS(OP) TANDEM_LINEAR_OPS(OP) TANDEM_CONV_OPS(OP) TANDEM_RESIZE_OPS(OP)        \
      TANDEM_NORMALIZATION_OPS(OP) TANDEM_LOSS_OPS(OP) TANDEM_SEQUENCE_OPS(OP)                \
          TANDEM_OPTIMIZER_OPS(OP)
#define TANDEM_ALL_OPS(OP) TANDEM_KERNEL_OPS(OP) TANDEM_FUSED_OPS(OP) TANDEM_LOWERED_OPS(OP)
// clang-format on

namespace tandem::ops {

#define OP(name) extern const OpDef k##name;
TANDEM_ALL_OPS(OP)
#undef OP

}  // namespace tandem::ops
