// Windows over three spatial dimensions, from those over two.
#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_window.h"

namespace tandem {
namespace {

// All entries but the first: the height's and width's.
std::vector<int64_t> Tail(const std::vector<int64_t>& values) {
  return {values.begin() + 1, values.end()};
}

// x (N, C, D, H, W), weight (O, C / groups, K, h, w): the sum over k of the convolutions of x's
// slices k dilation, k dilation + stride, ... by weight's slice k.
Value Conv3d(Builder& b, Value x, Value weight, Value bias, const ops::ConvOptions& o) {
  if (!b.ok()) return {};
  const Shape w = b.shape(weight);
  const Value padded = ops::Pad(b, x, {0, 0, o.pads_begin[0], 0, 0}, {0, 0, o.pads_end[0], 0, 0});
  const Value front = ops::Transpose(b, padded, {0, 2, 1, 3, 4});  // (N, D, C, H, W)
  if (!b.ok()) return {};
  const Shape s = b.shape(front);
  const int64_t extent = (w[2] - 1) * o.dilations[0] + 1;
  if (s[1] < extent) {
    return b.Fail(InvalidArgument("a kernel ", extent, " deep over an input ", s[1], " deep"));
  }
  const int64_t depth = (s[1] - extent) / o.strides[0] + 1;
  const ops::ConvOptions plane = {.strides = Tail(o.strides),
                                  .pads_begin = Tail(o.pads_begin),
                                  .pads_end = Tail(o.pads_end),
                                  .dilations = Tail(o.dilations),
                                  .groups = o.groups};
  Value sum;
  for (int64_t k = 0; k < w[2]; ++k) {
    const int64_t first = k * o.dilations[0];
    const Value slices =
        ops::Slice(b, front, {0, first, 0, 0, 0},
                   {s[0], first + (depth - 1) * o.strides[0] + 1, s[2], s[3], s[4]},
                   {1, o.strides[0], 1, 1, 1});
    const Value planes = ops::Reshape(b, slices, {s[0] * depth, s[2], s[3], s[4]});
    const Value kernel = compose::DropAxis(b, compose::SliceAxis(b, weight, 2, k, k + 1), 2);
    const Value y = ops::Conv(b, planes, kernel, k == 0 ? bias : Value{}, plane);
    if (!b.ok()) return {};
    sum = k == 0 ? y : ops::Add(b, sum, y);
  }
  const Shape y = b.shape(sum);  // (N depth, O, H, W)
  const Value apart = ops::Reshape(b, sum, {s[0], depth, y[1], y[2], y[3]});
  return ops::Transpose(b, apart, {0, 2, 1, 3, 4});
}

// Maxima of maxima, and means of means whose counts are products, one dimension after another.
template <typename Pool>
Value Pool3d(Builder& b, Value x, const ops::PoolOptions& o, Pool pool) {
  if (!b.ok()) return {};
  const Shape s = b.shape(x);
  ops::PoolOptions along = o;
  along.kernel = {o.kernel[0], 1};
  along.strides = {o.strides[0], 1};
  along.pads_begin = {o.pads_begin[0], 0};
  along.pads_end = {o.pads_end[0], 0};
  along.dilations = {o.dilations[0], 1};
  const Value deep = pool(ops::Reshape(b, x, {s[0], s[1], s[2], s[3] * s[4]}), along);
  if (!b.ok()) return {};
  const int64_t depth = b.shape(deep)[2];
  ops::PoolOptions plane = o;
  plane.kernel = Tail(o.kernel);
  plane.strides = Tail(o.strides);
  plane.pads_begin = Tail(o.pads_begin);
  plane.pads_end = Tail(o.pads_end);
  plane.dilations = Tail(o.dilations);
  const Value y = pool(ops::Reshape(b, deep, {s[0], s[1] * depth, s[3], s[4]}), plane);
  if (!b.ok()) return {};
  const Shape flat = b.shape(y);
  return ops::Reshape(b, y, {s[0], s[1], depth, flat[2], flat[3]});
}

}  // namespace

Value ConvSpatial(Builder& b, Value x, Value weight, Value bias, const ops::ConvOptions& options) {
  if (options.strides.size() < 3) return ops::Conv(b, x, weight, bias, options);
  return Conv3d(b, x, weight, bias, options);
}

Value MaxPoolSpatial(Builder& b, Value x, const ops::PoolOptions& options) {
  const auto pool = [&](Value v, const ops::PoolOptions& o) { return ops::MaxPool(b, v, o)[0]; };
  return options.kernel.size() < 3 ? pool(x, options) : Pool3d(b, x, options, pool);
}

Value AveragePoolSpatial(Builder& b, Value x, const ops::PoolOptions& options) {
  const auto pool = [&](Value v, const ops::PoolOptions& o) { return ops::AveragePool(b, v, o); };
  return options.kernel.size() < 3 ? pool(x, options) : Pool3d(b, x, options, pool);
}

}  // namespace tandem
