// The kernel families of attention; attention.cu chooses. `splits` is 1, or the grid's splits of
// the keys, each leaving Partials.
#pragma once

#include "engine/backend/cuda/kernels/attention_schedule.h"

namespace tandem::cuda {

// Any head_dim <= 256, arithmetic in f32.
cudaError_t AttentionGeneric(const AttentionParams& p, int splits, cudaStream_t stream);
cudaError_t AttentionGradGeneric(const AttentionGradParams& p, cudaStream_t stream);

// bf16 and f16, head_dim 64 and 128, by mma.sync.
cudaError_t AttentionMma(const AttentionParams& p, int splits, cudaStream_t stream);
cudaError_t AttentionGradMma(const AttentionGradParams& p, cudaStream_t stream);

// The same by wgmma, on compute capability 9.0.
cudaError_t AttentionHopper(const AttentionParams& p, int splits, cudaStream_t stream);
cudaError_t AttentionGradHopper(const AttentionGradParams& p, cudaStream_t stream);

}  // namespace tandem::cuda
