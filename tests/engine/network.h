// Small convolutional networks with random positive weights, for tests of the analysis.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/philox.h"
#include "engine/exec/model_analysis.h"
#include "engine/ops/ops.h"

namespace tandem {

using Dims = std::vector<int64_t>;

// A model of one image-like input whose graph a function builds from layers with random positive
// weights: nothing cancels, no rectifier is dead.
class Network final : public GraphSource {
 public:
  using Body = std::function<Value(Network&, Builder&, Value)>;
  Network(Shape input, Body body) : body_(std::move(body)) {
    inputs_.push_back({"x", DType::kF32, Dims(input.begin(), input.end())});
    outputs_.push_back({"y", DType::kF32, {}});
    Builder builder;  // once, to learn of the parameters
    builder.Output(body_(*this, builder, builder.Input("x", {DType::kF32, input})));
    const absl::StatusOr<Graph> graph = builder.Finish();
    EXPECT_TRUE(graph.ok()) << graph.status();
  }

  std::string_view format() const override { return "test"; }
  const std::vector<IoSpec>& inputs() const override { return inputs_; }
  const std::vector<IoSpec>& outputs() const override { return outputs_; }
  const std::vector<ParameterInfo>& parameters() const override { return parameters_; }
  absl::StatusOr<std::vector<Value>> Build(Builder& b, std::span<const Value> in) const override {
    Network copy = *this;
    copy.next_ = 0;
    return std::vector<Value>{copy.body_(copy, b, in[0])};
  }

  Value Parameter(Builder& b, const Shape& shape, ParameterRole role = ParameterRole::kWeight) {
    const int32_t index = next_++;
    const std::string name = "p" + std::to_string(index);
    if (index == static_cast<int32_t>(parameters_.size())) {
      parameters_.push_back({.name = name, .shape = shape, .role = role});
    }
    return b.Parameter(index, name, {DType::kF32, shape});
  }

  struct Window {
    int64_t kernel = 3, stride = 1, pad = -1, dilation = 1, groups = 1, pad_end = -1;
  };
  // pad -1: as much on both sides as keeps the size at stride 1.
  static ops::ConvOptions Options(const Window& w, int dims) {
    const int64_t pad = w.pad >= 0 ? w.pad : (w.kernel - 1) * w.dilation / 2;
    const int64_t end = w.pad_end >= 0 ? w.pad_end : pad;
    return {.strides = Dims(dims, w.stride),
            .pads_begin = Dims(dims, pad),
            .pads_end = Dims(dims, end),
            .dilations = Dims(dims, w.dilation),
            .groups = w.groups};
  }
  Value Conv(Builder& b, Value x, int64_t channels, const Window& w) {
    const int dims = b.shape(x).rank() - 2;
    Shape weight{channels, b.shape(x)[1] / w.groups};
    for (int i = 0; i < dims; ++i) weight.push_back(w.kernel);
    const Value weights = Parameter(b, weight),
                bias = Parameter(b, {channels}, ParameterRole::kBias);
    return ops::Relu(b, ops::Conv(b, x, weights, bias, Options(w, dims)));
  }
  // To (size - 1) stride - 2 pad + reach + 1 positions.
  Value Transposed(Builder& b, Value x, int64_t channels, const Window& w) {
    const Shape from = b.shape(x);
    const int dims = from.rank() - 2;
    const ops::ConvOptions options = Options(w, dims);
    Shape weight{from[1], channels}, to{from[0], channels};
    for (int i = 0; i < dims; ++i) {
      weight.push_back(w.kernel);
      to.push_back((from[i + 2] - 1) * w.stride + (w.kernel - 1) * w.dilation + 1 -
                   options.pads_begin[i] - options.pads_end[i]);
    }
    return ops::ConvInputGrad(b, x, Parameter(b, weight), to, options);
  }
  static ops::PoolOptions Pool(const Window& w, int dims) {
    const ops::ConvOptions options = Options(w, dims);
    return {.kernel = Dims(dims, w.kernel),
            .strides = options.strides,
            .pads_begin = options.pads_begin,
            .pads_end = options.pads_end,
            .dilations = options.dilations};
  }
  static Value MaxPool(Builder& b, Value x, const Window& w) {
    return ops::MaxPool(b, x, Pool(w, b.shape(x).rank() - 2))[0];
  }
  static Value AveragePool(Builder& b, Value x, const Window& w) {
    return ops::AveragePool(b, x, Pool(w, b.shape(x).rank() - 2));
  }

 private:
  Body body_;
  std::vector<IoSpec> inputs_, outputs_;
  std::vector<ParameterInfo> parameters_;
  int32_t next_ = 0;
};

inline ParameterStore PositiveWeights(const GraphSource& source) {
  ParameterStore store(source.parameters());
  for (size_t i = 0; i < source.parameters().size(); ++i) {
    uint64_t at = 0;
    const Shape& shape = source.parameters()[i].shape;
    const auto fan_in = static_cast<float>(shape.Count(1, shape.rank()));
    for (float& x : store.values(static_cast<int>(i))) {
      x = (0.1f + Philox::Uniform(Philox::Block(7, i, at++)[0])) / fan_in;
    }
  }
  return store;
}

inline std::unique_ptr<Model> Make(Shape input, Network::Body body) {
  auto source = std::make_shared<Network>(std::move(input), std::move(body));
  ParameterStore store = PositiveWeights(*source);
  return std::make_unique<Model>("m", std::move(source), std::move(store));
}

inline std::vector<TensorType> Types(const Model& model) {
  const Dims& dims = model.source().inputs()[0].dims;
  return {{DType::kF32, Shape(std::span<const int64_t>(dims))}};
}

}  // namespace tandem
