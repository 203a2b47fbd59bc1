// Transposes of a matrix with few rows or few columns: streams of 32-bit elements shuffled together
// and taken apart. Pixel shuffles, and images with their channels last, are made of these.
#pragma once

#include <cstdint>

namespace tandem::cpu {

inline constexpr int64_t kMaxStreams = 4;

// out[i * streams + k] = in[k * stride + i] for i in [0, n) and k in [0, streams), streams in
// [2, kMaxStreams].
void Interleave(const uint32_t* in, int64_t stride, int64_t streams, int64_t n, uint32_t* out);
// out[k * stride + i] = in[i * streams + k]
void Deinterleave(const uint32_t* in, int64_t streams, int64_t stride, int64_t n, uint32_t* out);

}  // namespace tandem::cpu
