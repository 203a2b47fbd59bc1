// Counter-based noise: Philox4x32-10 (engine/base/philox.h) in vectors.
//
// Element i of a stream is a function of (key, stream, i), bit for bit on every instruction set and
// thread count. Its place in the generator, chosen so that no lane ever changes its place:
//   f32: of group i / 64, block 16 (i / 64) + i % 16, word i % 64 / 16;
//   f64: of group i / 32, block 16 (i / 32) + i % 16, words 2h and 2h + 1 with h = i % 32 / 16.
// The counter is (block, stream); normal noise (Box and Muller 1958) makes two of two words or
// pairs of words, cosine then sine.
//
// Nothing allocates or throws; n <= 0 does nothing. Large arrays are split over threads.
#pragma once

#include <cstdint>

#include "engine/base/philox.h"

namespace tandem::cpu {

enum class NoiseKind : uint8_t { kUniform, kNormal, kGumbel, kExponential, kLogistic, kLaplace };

struct NoiseStream {
  uint64_t key = 0;  // Philox's: Philox::Fold of a run's seed and call
  uint64_t stream = 0;
};

// Elements [0, n) of the stream. Uniform: 31 random bits rounded to f32, or 53; never 0 or 1. The
// others from 32 bits without cancellation at either end.
void FillNoise(NoiseKind kind, const NoiseStream& stream, float* out, int64_t n);
void FillNoise(NoiseKind kind, const NoiseStream& stream, double* out, int64_t n);

// y = softmax((x + g) scale) along rows of (rows, cols), g the kGumbel noise of `stream`, element
// (r, c) at r cols + c. y may be x.
void GumbelSoftmax(const float* x, const NoiseStream& stream, float scale, float* y, int64_t rows,
                   int64_t cols);

}  // namespace tandem::cpu
