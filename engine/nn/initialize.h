// Random initial parameters that are the same bits on each machine.
#pragma once

#include <utility>

#include "engine/nn/decoder.h"

namespace tandem {

// A pair of independent standard normals from u1, u2 in (0, 1) (Box and Muller 1958). Only
// correctly rounded IEEE operations, no libm, whose last bits differ between versions.
std::pair<double, double> BoxMuller(double u1, double u2);

// Norms are ones, biases zeros, every other parameter i has elements N(0, source.initial_std(i)^2):
// element 4 p + w comes from word w of Philox block (seed, stream i, position p).
ParameterStore InitializeParameters(const DecoderSource& source, uint64_t seed);

}  // namespace tandem
