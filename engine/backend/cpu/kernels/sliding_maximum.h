// Maximum over sliding windows in time that does not depend on the window's size: van Herk 1992 and
// Gil and Werman 1993 (maxima of block prefixes and suffixes), over vectors instead of elements.
//
// In two dimensions rows come first, then columns, so that the first of equals in row-major order
// stays the first. Each window is put together from pieces that may overlap; of two pieces the one
// that begins earlier wins unless the later one is larger, whatever the pieces: the results do not
// depend on how they are cut.
#pragma once

#include "engine/backend/cpu/kernels/pooling.h"

namespace tandem::cpu {

// Maxima of this many neighbours are the elements of the block prefixes and suffixes; a multiple of
// every instruction set's lanes.
inline constexpr int64_t kColumn = 16;
// Elements that buffers have beyond what is asked of them, for whole vectors.
inline constexpr int64_t kSlack = 128;

// Values, and their places within the plane where they are wanted.
struct PairBuffer {
  float* value = nullptr;
  int32_t* place = nullptr;
  PairBuffer operator+(int64_t i) const { return {value + i, place + i}; }
};

// How MaxPool2d is cut into pieces of work, or that it should not be done this way.
struct SlidingLayout {
  explicit SlidingLayout(const Pool2dParams& p);

  bool pays = false;    // against looking at every tap
  int64_t tile = 0;     // output columns of a piece, except a last one
  int64_t tiles = 0;    // pieces of a plane
  int64_t line = 0;     // elements of the buffers along a row
  int64_t scratch = 0;  // bytes that one piece at a time needs
};

// MaxPool2d for a layout that pays. `scratch` holds layout.scratch bytes for each of params.slots.
void SlidingMaximum2d(const Pool2dParams& params, const SlidingLayout& layout, const float* x,
                      float* y, int64_t* index, void* scratch);

}  // namespace tandem::cpu
