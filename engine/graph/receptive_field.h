// Receptive fields: which positions of an input each position of a value can see.
//
// The layer recursion of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional
// Neural Networks" (Distill 2019), made exact where strides go down and up again: a transposed
// convolution's outputs see windows that depend on their phase, so a field is a window for each
// phase of a period. It follows a dimension through transposes, reshapes that keep, split or merge
// it, slices, padding and branches, whose windows unite. Values of the network play no part: a
// weight of zero still sees.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/graph/graph.h"
#include "engine/graph/op.h"

namespace tandem {

// What the positions of a value along one of its axes see of one spatial dimension of the input:
// position m * period() + r sees [low[r] + m * jump, high[r] + m * jump], both ends included, in
// positions of the input, beyond its ends too where there is padding.
struct AxisField {
  enum class Kind : uint8_t {
    kWindow,
    kWhole,    // all of the input: after a global pool, a flattening, a product over the dimension
    kUnknown,  // branches of different strides met, or an operator that cannot be followed
  };
  Kind kind = Kind::kWindow;
  int axis = -1;                   // the value's axis; -1: every position sees the same window
  int64_t jump = 1;                // >= 0
  std::vector<int64_t> low, high;  // low > high: that phase sees nothing

  int64_t period() const { return static_cast<int64_t>(low.size()); }
  // Of position p of the axis (p may be negative: within padding).
  int64_t Low(int64_t p) const;
  int64_t High(int64_t p) const;
  bool Empty(int64_t p) const;

  // The largest window of any phase; kWindow only, as are the next two.
  int64_t size() const;
  // How far apart two neighbours look, on average over a period.
  double stride() const { return static_cast<double>(jump) / static_cast<double>(period()); }
  // Centre of the window of the first position that sees anything.
  double offset() const;
};

struct ReceptiveField {
  std::vector<AxisField> dims;  // one a spatial dimension of the input, outermost first
  std::string note;             // why a dimension is kUnknown; else empty
};

// For each value of the graph, by id, its field on `input`, whose spatial dimensions are those
// after the first two; none where it does not depend on the input. `input` has rank 3 or more.
std::vector<std::optional<ReceptiveField>> ReceptiveFields(const Graph& graph, Value input);

// The input that has one: the first of floats with rank 3 or more; invalid if there is none.
Value SpatialInput(const Graph& graph);

// The field behind a window over `in`, along one dimension `i` of the window.
AxisField BehindWindow(const AxisField& in, const Geometry& window, int i);
// The field of a value that reads both. Windows unite if their strides agree.
AxisField Union(const AxisField& a, const AxisField& b);

}  // namespace tandem
