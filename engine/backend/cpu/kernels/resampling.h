// Linear maps along the last dimensions of f32 tensors: each output element is a weighted sum of a
// few neighbours. Interpolation in either direction, and its adjoint.
//
// Planes and rows are shared out over threads; an element's bits depend on neither. Nothing
// allocates or throws.
#pragma once

#include <cstdint>
#include <vector>

namespace tandem::cpu {

// The rows of a banded matrix, as kernels read them: taps [first[o], first[o] + taps) for every
// output o, weights 0 where a row has fewer. All taps lie inside the input.
struct Band {
  // From rows of count(o) = begin[o + 1] - begin[o] weights from first[o] on; first never falls or
  // never rises.
  Band(int64_t input, const std::vector<int32_t>& first, const std::vector<int64_t>& begin,
       const std::vector<double>& weights);

  int64_t input = 0, output = 0, taps = 1;
  bool copies = false;  // one tap of weight 1 each: no arithmetic
  int64_t stride = 0;   // from one tap's weights to the next's: output rounded up to whole vectors
  std::vector<int32_t> first;  // (stride): past the end as at it
  std::vector<float> weights;  // (taps, stride): 0 past the end
  // Most input elements, first to last, that kLanes neighbouring outputs look at.
  static constexpr int64_t kLanes = 16;
  int64_t reach = 0;
  // Distance of the first taps of the first and last of 8, and of 16, neighbouring outputs.
  int64_t spread8 = 0, spread16 = 0;
  // For each kLanes outputs: whether every first tap is two after the one before.
  std::vector<uint8_t> in_pairs;
};

// y (planes, down->output, along->output) from x (planes, down->input, along->input): first down
// the columns, then along the rows. Either may be null: that dimension of size `rows` or `columns`
// stays. x and y do not overlap. With both, along->reach is at most kResampleReach.
struct ResampleParams {
  int64_t planes = 0;
  int64_t rows = 1, columns = 1;  // of x
  const Band* down = nullptr;
  const Band* along = nullptr;
};
inline constexpr int64_t kResampleReach = 2048;

void Resample(const ResampleParams& params, const float* x, float* y);

}  // namespace tandem::cpu
