// What the matrix product's node says, for the bindings of all backends.
#pragma once

#include <cstdint>

#include "engine/backend/backend.h"
#include "engine/backend/loop.h"

namespace tandem {

struct MatMulSizes {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  Loop<3> batch;  // strides in elements: out, a, b

  explicit MatMulSizes(const KernelSpec& spec)
      : transpose_a(spec.attributes->Int("transpose_a") != 0),
        transpose_b(spec.attributes->Int("transpose_b") != 0),
        m(spec.out()[-2]),
        n(spec.out()[-1]),
        k(spec.in(0)[transpose_a ? -2 : -1]) {
    const auto leading = [](const Shape& s) { return Shape(s.dims().first(s.rank() - 2)); };
    const Shape out = leading(spec.out()), a = leading(spec.in(0)), b = leading(spec.in(1));
    const auto strides_a = BroadcastStrides(a, out), strides_b = BroadcastStrides(b, out);
    const auto strides_out = out.Strides();
    Loop<3> dims;
    for (int i = 0; i < out.rank(); ++i) {
      dims.push_back(
          {out[i], {strides_out[i] * m * n, strides_a[i] * m * k, strides_b[i] * k * n}});
    }
    batch = Coalesce<3>(dims);
    // Rows of several matrices that share one right side are rows of one matrix.
    LoopDim<3>& last = batch.back();
    if (!transpose_a && last.size > 1 && last.stride[2] == 0) {
      m *= last.size;
      last = {1, {0, 0, 0}};
    }
  }

  // What one call computes: the products along the last dimension of `batch`.
  const LoopDim<3>& inner() const { return batch.back(); }
  // Calls body(offsets of out, a and b) for the position of all other dimensions.
  template <typename Body>
  void ForOuter(Body&& body) const {
    const size_t outer = batch.size() - 1;
    const int64_t count = CountDims<3>(batch, outer);
    for (int64_t position = 0; position < count; ++position) {
      std::array<int64_t, 3> offset{};
      int64_t rest = position;
      for (size_t i = outer; i-- > 0;) {
        const int64_t index = rest % batch[i].size;
        rest /= batch[i].size;
        for (int j = 0; j < 3; ++j) offset[j] += index * batch[i].stride[j];
      }
      body(offset);
    }
  }
};

}  // namespace tandem
