// Receptive fields by recursion, against the gradients that are not zero.
#include "engine/graph/receptive_field.h"

#include <gtest/gtest.h>

#include "tests/engine/network.h"

namespace tandem {
namespace {

// What the last layer should see: size, stride, offset in every dimension.
struct Expected {
  int64_t size;
  double stride, offset;
};

struct Architecture {
  const char* name;
  Shape input;
  Expected field;
  Network::Body body;
};

Value Resized(Builder& b, Value x, int64_t size, const char* mode, const char* coordinates) {
  ops::ResizeOptions options;
  options.axes = {{.axis = 2, .size = size}, {.axis = 3, .size = size}};
  options.mode = mode;
  options.coordinates = coordinates;
  return ops::Resize(b, x, options);
}

const std::vector<Architecture>& Architectures() {
  static const auto* const all = new std::vector<Architecture>{
      // 1 + 2 (3 - 1), then strides: 3, 5 at jump 1; 9 at jump 2
      {"plain",
       {1, 2, 32, 40},
       {9, 2, -0.0},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 3, {});
         x = n.Conv(b, x, 3, {.stride = 2});
         return n.Conv(b, x, 2, {});
       }},
      // Padding on one side only moves the centre.
      {"strided with uneven padding",
       {1, 1, 64, 64},
       {17, 8, 6},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 2, {.kernel = 5, .stride = 2, .pad = 0, .pad_end = 2});
         x = n.Conv(b, x, 2, {.kernel = 3, .stride = 2, .pad = 1, .pad_end = 0});
         return n.Conv(b, x, 2, {.kernel = 3, .stride = 2, .pad = 0, .pad_end = 1});
       }},
      {"residual",
       {2, 2, 40, 40},
       {19, 4, 0},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 4, {.kernel = 7, .stride = 2});
         const Value y = n.Conv(b, n.Conv(b, x, 4, {}), 4, {});
         x = ops::Relu(b, ops::Add(b, x, y));
         const Value down = n.Conv(b, x, 6, {.kernel = 1, .stride = 2, .pad = 0});
         return ops::Add(b, down, n.Conv(b, n.Conv(b, x, 6, {.stride = 2}), 6, {.kernel = 1}));
       }},
      {"u-net",
       {1, 1, 32, 32},
       {26, 1, -0.5},
       [](Network& n, Builder& b, Value x) {
         const Value a = n.Conv(b, x, 2, {});
         const Value c =
             n.Conv(b, Network::MaxPool(b, a, {.kernel = 2, .stride = 2, .pad = 0}), 2, {});
         Value d = n.Conv(b, Network::MaxPool(b, c, {.kernel = 2, .stride = 2, .pad = 0}), 2, {});
         d = n.Transposed(b, d, 2, {.kernel = 2, .stride = 2, .pad = 0});
         d = n.Conv(b, ops::Concat(b, {c, d}, 1), 2, {});
         d = n.Transposed(b, d, 2, {.kernel = 2, .stride = 2, .pad = 0});
         return n.Conv(b, ops::Concat(b, {a, d}, 1), 1, {});
       }},
      {"dilated stack in one dimension",
       {1, 1, 128},
       {32, 1, -15.5},
       [](Network& n, Builder& b, Value x) {
         for (const int64_t dilation : {1, 2, 4, 8, 16}) {
           const Value y =
               n.Conv(b, x, 2, {.kernel = 2, .pad = dilation, .dilation = dilation, .pad_end = 0});
           x = ops::Add(b, ops::Mul(b, ops::Tanh(b, y), ops::Sigmoid(b, y)),
                        n.Conv(b, x, 2, {.kernel = 1}));
         }
         return x;
       }},
      {"inception",
       {1, 2, 24, 24},
       {7, 1, 0},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 4, {});
         const Value one = n.Conv(b, x, 2, {.kernel = 1});
         const Value three = n.Conv(b, n.Conv(b, x, 2, {.kernel = 1}), 2, {});
         const Value five = n.Conv(b, n.Conv(b, x, 2, {.kernel = 1}), 2, {.kernel = 5});
         const Value pool = n.Conv(b, Network::MaxPool(b, x, {}), 2, {.kernel = 1});
         return ops::Concat(b, {one, three, five, pool}, 1);
       }},
      {"pools",
       {1, 3, 48, 48},
       {13, 4, 4},
       [](Network& n, Builder& b, Value x) {
         x = Network::MaxPool(b, n.Conv(b, x, 3, {}), {.kernel = 3, .stride = 2, .pad = 1});
         x = Network::AveragePool(b, x, {.kernel = 3, .stride = 2, .pad = 0});
         return Network::MaxPool(b, x, {.kernel = 2, .stride = 1, .pad = 0, .pad_end = 0});
       }},
      {"depthwise separable",
       {1, 4, 30, 30},
       {13, 2, 0},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 4, {.kernel = 3, .groups = 4});
         x = n.Conv(b, x, 8, {.kernel = 1});
         x = n.Conv(b, x, 8, {.kernel = 3, .stride = 2, .groups = 8});
         x = n.Conv(b, x, 4, {.kernel = 1});
         return n.Conv(b, x, 4, {.kernel = 5, .groups = 4});
       }},
      {"pointwise",
       {1, 3, 9, 9},
       {1, 1, 0},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, n.Conv(b, x, 4, {.kernel = 1}), 4, {.kernel = 1});
         return ops::Add(b, ops::Gelu(b, x), ops::Square(b, x));
       }},
      // Channels last for a normalization, as in ConvNeXt, and back.
      {"channels last",
       {1, 2, 28, 28},
       {4, 4, 1.5},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 4, {.kernel = 4, .stride = 4, .pad = 0});
         x = ops::Transpose(b, x, {0, 2, 3, 1});
         x = ops::RmsNorm(b, x, n.Parameter(b, {4}), 1e-5)[0];
         x = ops::MatMul(b, x, n.Parameter(b, {4, 6}));
         x = ops::Transpose(b, x, {0, 3, 1, 2});
         return ops::Slice(b, x, {0, 0, 0, 0}, {1, 6, 6, 6}, {1, 1, 1, 1});
       }},
      // A slice from the middle in steps, padding, and space to depth.
      {"slice, pad, space to depth",
       {1, 2, 34, 34},
       {9, 4, 5},
       [](Network& n, Builder& b, Value x) {
         x = ops::Slice(b, n.Conv(b, x, 2, {}), {0, 0, 4, 4}, {1, 2, 34, 34}, {1, 1, 2, 2});
         x = ops::Pad(b, x, {0, 0, 1, 1}, {0, 0, 0, 0});  // 16 x 16
         x = ops::Transpose(b, ops::Reshape(b, x, {1, 2, 8, 2, 8, 2}), {0, 1, 3, 5, 2, 4});
         x = ops::Reshape(b, x, {1, 8, 8, 8});
         return n.Conv(b, x, 2, {.kernel = 2, .pad = 0});
       }},
      // Strides below 1, phases that see different windows, a stride that skips phases.
      {"transposed",
       {1, 2, 20, 20},
       {4, 2.0 / 3, -0.5},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 2, {});
         x = n.Transposed(b, x, 2, {.kernel = 4, .stride = 3, .pad = 1});
         return n.Conv(b, x, 2, {.kernel = 3, .stride = 2, .pad = 1});
       }},
      {"dilated transposed",
       {1, 2, 25},
       {5, 0.5, 0},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 2, {});
         return n.Transposed(b, x, 2, {.kernel = 3, .stride = 2, .pad = 2, .dilation = 2});
       }},
      // Noise sees nothing.
      {"noise",
       {1, 1, 12, 12},
       {5, 1, 0},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 2, {});
         x = ops::Add(b, x, ops::Random(b, ops::Noise::kUniform, DType::kF32, Shape(b.shape(x))));
         return n.Conv(b, x, 2, {});
       }},
      // Bilinear, by 2 up and by 2 down: two taps each.
      {"bilinear up",
       {1, 1, 14, 14},
       {5, 0.5, 0},
       [](Network& n, Builder& b, Value x) {
         return n.Conv(b, Resized(b, n.Conv(b, x, 2, {}), 28, "linear", "half_pixel"), 1, {});
       }},
      {"bilinear down",
       {1, 1, 28, 28},
       {4, 2, 0.5},
       [](Network& n, Builder& b, Value x) {
         return Resized(b, n.Conv(b, x, 2, {}), 14, "linear", "half_pixel");
       }},
      // Depth to space: (C r r, H, W) -> (C, H r, W r), by a reshape, a transpose and a reshape.
      {"pixel shuffle",
       {1, 1, 14, 14},
       {4, 0.5, -0.5},
       [](Network& n, Builder& b, Value x) {
         x = n.Conv(b, x, 8, {});
         x = ops::Reshape(b, x, {1, 2, 2, 2, 14, 14});
         x = ops::Transpose(b, x, {0, 1, 4, 2, 5, 3});
         x = ops::Reshape(b, x, {1, 2, 28, 28});
         return n.Conv(b, x, 1, {});
       }},
  };
  return *all;
}

class ReceptiveFieldTest : public testing::TestWithParam<int> {};

TEST_P(ReceptiveFieldTest, RecursionAgreesWithGradients) {
  const Architecture& a = Architectures()[GetParam()];
  SCOPED_TRACE(a.name);
  const std::unique_ptr<Model> model = Make(a.input, a.body);
  const std::vector<TensorType> types = Types(*model);
  const absl::StatusOr<ModelAnalysis> analysis = AnalyzeModel(model->source(), types);
  ASSERT_TRUE(analysis.ok()) << analysis.status();
  const absl::StatusOr<MeasuredField> measured = MeasureReceptiveField(*model, types);
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->layer, static_cast<int32_t>(analysis->cost.layers.size()) - 1);
  EXPECT_EQ(measured->measured_low, measured->expected_low);
  EXPECT_EQ(measured->measured_high, measured->expected_high);
  const ReceptiveField& field = *analysis->cost.layers[measured->layer].field;
  for (size_t d = 0; d < field.dims.size(); ++d) {
    const AxisField& dim = field.dims[d];
    ASSERT_EQ(dim.kind, AxisField::Kind::kWindow) << field.note;
    EXPECT_EQ(dim.size(), a.field.size);
    EXPECT_DOUBLE_EQ(dim.stride(), a.field.stride);
    EXPECT_DOUBLE_EQ(dim.offset(), a.field.offset);
    // The position is an interior one: nothing was clipped, so the bounds tell size and centre.
    const int64_t at = measured->position[d];
    EXPECT_EQ(measured->measured_low[d], dim.Low(at));
    EXPECT_EQ(measured->measured_high[d], dim.High(at));
  }
  // Every layer on the way.
  for (int32_t i = 0; i < measured->layer; ++i) {
    const absl::StatusOr<MeasuredField> inner = MeasureReceptiveField(*model, types, i);
    if (!inner.ok()) {
      EXPECT_EQ(inner.status().code(), absl::StatusCode::kFailedPrecondition) << inner.status();
      continue;
    }
    EXPECT_TRUE(inner->agrees()) << "layer " << i << " " << analysis->cost.layers[i].op;
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, ReceptiveFieldTest,
                         testing::Range(0, static_cast<int>(Architectures().size())));

ReceptiveField LastField(Shape input, const Network::Body& body) {
  const std::unique_ptr<Model> model = Make(std::move(input), body);
  const absl::StatusOr<ModelAnalysis> analysis = AnalyzeModel(model->source(), Types(*model));
  EXPECT_TRUE(analysis.ok()) << analysis.status();
  return *analysis->cost.layers.back().field;
}

TEST(ReceptiveFieldTest, GlobalPoolingAndFlatteningSeeTheWholeInput) {
  const auto whole = [](const ReceptiveField& field) {
    EXPECT_EQ(field.dims.size(), 2U);
    for (const AxisField& dim : field.dims) EXPECT_EQ(dim.kind, AxisField::Kind::kWhole);
  };
  whole(LastField({1, 2, 8, 8}, [](Network& n, Builder& b, Value x) {
    return ops::ReduceMean(b, n.Conv(b, x, 2, {}), {2, 3}, true);
  }));
  whole(LastField({1, 2, 8, 8}, [](Network& n, Builder& b, Value x) {
    x = ops::Reshape(b, n.Conv(b, x, 2, {}), {1, 128});
    return ops::MatMul(b, x, n.Parameter(b, {128, 3}));
  }));
  // Squeeze and excitation: the gate sees all, so all see all.
  whole(LastField({1, 2, 8, 8}, [](Network& n, Builder& b, Value x) {
    x = n.Conv(b, x, 2, {});
    return ops::Mul(b, x, ops::Sigmoid(b, ops::ReduceMean(b, x, {2, 3}, true)));
  }));
}

TEST(ReceptiveFieldTest, BranchesOfDifferentStridesAreNamed) {
  const ReceptiveField field = LastField({1, 2, 8, 8}, [](Network& n, Builder& b, Value x) {
    const Value half = n.Conv(b, x, 2, {.kernel = 2, .stride = 2, .pad = 0});
    const Value cut = ops::Slice(b, n.Conv(b, x, 2, {}), {0, 0, 0, 0}, {1, 2, 4, 4}, {1, 1, 1, 1});
    return ops::Add(b, half, cut);
  });
  EXPECT_EQ(field.dims[0].kind, AxisField::Kind::kUnknown);
  EXPECT_NE(field.note.find("strides 2 and 1"), std::string::npos) << field.note;
}

TEST(ReceptiveFieldTest, ResizingByOtherRatiosIsNotGuessed) {
  for (const auto& [size, coordinates] :
       {std::pair<int64_t, const char*>{12, "half_pixel"}, {16, "align_corners"}}) {
    const int64_t to = size;
    const char* const how = coordinates;
    const ReceptiveField field = LastField({1, 2, 8, 8}, [&](Network& n, Builder& b, Value x) {
      return n.Conv(b, Resized(b, x, to, "linear", how), 2, {});
    });
    EXPECT_EQ(field.dims[0].kind, AxisField::Kind::kUnknown);
    EXPECT_NE(field.note.find("Resize"), std::string::npos) << field.note;
  }
}

TEST(ReceptiveFieldTest, PositionsThatSeeNothing) {
  // Stride 3 with a kernel of 1: two of three outputs see no input.
  const ReceptiveField field = LastField({1, 1, 8, 8}, [](Network& n, Builder& b, Value x) {
    return n.Transposed(b, x, 1, {.kernel = 1, .stride = 3, .pad = 0});
  });
  ASSERT_EQ(field.dims[0].kind, AxisField::Kind::kWindow);
  EXPECT_FALSE(field.dims[0].Empty(0));
  EXPECT_TRUE(field.dims[0].Empty(1));
  EXPECT_TRUE(field.dims[0].Empty(-1));
  EXPECT_EQ(field.dims[0].Low(-3), -1);
  EXPECT_EQ(field.dims[0].size(), 1);
}

TEST(ReceptiveFieldTest, HostileStridesNeitherOverflowNorHang) {
  const Geometry wide = {
      .kernel = {1 << 24}, .stride = {1 << 24}, .pad_begin = {1 << 23}, .dilation = {1}};
  AxisField field{.axis = 2, .low = {0}, .high = {0}};
  for (int i = 0; i < 10; ++i)
    field = field.kind == AxisField::Kind::kWindow ? BehindWindow(field, wide, 0) : field;
  EXPECT_EQ(field.kind, AxisField::Kind::kUnknown);
  Geometry up = {
      .kernel = {7}, .stride = {17}, .pad_begin = {0}, .dilation = {1}, .transposed = true};
  field = {.axis = 2, .low = {0}, .high = {0}};
  for (int i = 0; i < 10; ++i)
    field = field.kind == AxisField::Kind::kWindow ? BehindWindow(field, up, 0) : field;
  EXPECT_EQ(field.kind, AxisField::Kind::kUnknown);
}

}  // namespace
}  // namespace tandem
