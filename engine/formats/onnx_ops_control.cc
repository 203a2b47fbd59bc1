// Control flow: decided, and loops unrolled, while the graph is built.
#include <algorithm>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

// Unrolled iterations of one loop.
constexpr int64_t kMaxIterations = 10'000;

absl::StatusOr<bool> ConstantBool(NodeContext& c, Value value, std::string_view what) {
  const Tensor* tensor = c.b.constant(value);
  if (tensor == nullptr) {
    return Unimplemented(what,
                         " depends on data: only one that is constant, or follows from "
                         "shapes, is supported");
  }
  if (tensor->dtype() != DType::kBool || tensor->num_elements() != 1) {
    return InvalidArgument(what, " is ", tensor->type().ToString(), ", expected one bool");
  }
  return ElementAsInt(*tensor, 0) != 0;
}

// The branch that the condition takes; the other is not looked at.
Outputs If(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const bool condition, ConstantBool(c, c.In(0), "the condition"));
  const onnx::GraphProto* then_branch = c.GraphAttribute("then_branch");
  const onnx::GraphProto* else_branch = c.GraphAttribute("else_branch");
  if (then_branch == nullptr || else_branch == nullptr) {
    return InvalidArgument("then_branch or else_branch is missing");
  }
  return c.Subgraph(condition ? *then_branch : *else_branch, {});
}

// Per iteration one value; stacked along a new first axis.
Value Stack(Builder& b, const std::vector<Value>& values, int axis) {
  std::vector<Value> parts;
  for (const Value value : values) parts.push_back(compose::ExpandAxis(b, value, axis));
  return ops::Concat(b, std::move(parts), axis);
}

Outputs Loop(NodeContext& c) {
  const onnx::GraphProto* body = c.GraphAttribute("body");
  if (body == nullptr) return InvalidArgument("body is missing");
  int64_t limit = kMaxIterations + 1;
  if (c.Has(0)) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<int64_t> given, c.ConstantInts(0, "trip count"));
    if (given.size() != 1) return InvalidArgument("the trip count is no scalar");
    limit = given[0];
  }
  Value condition = c.Has(1) ? c.In(1) : c.Scalar(1, DType::kBool);
  std::vector<Value> carried(c.inputs().begin() + std::min(2, c.count()), c.inputs().end());
  const int scans = body->output_size() - 1 - static_cast<int>(carried.size());
  if (scans < 0) {
    return InvalidArgument("the body has ", body->output_size(), " outputs for ", carried.size(),
                           " carried values");
  }
  std::vector<std::vector<Value>> scanned(scans);
  for (int64_t i = 0; i < limit; ++i) {
    TANDEM_ASSIGN_OR_RETURN(const bool go, ConstantBool(c, condition, "the loop's condition"));
    if (!go) break;
    if (i == kMaxIterations) {
      return ResourceExhausted("more than ", kMaxIterations, " iterations");
    }
    std::vector<Value> inputs = {c.b.Constant(Tensor::Scalar<int64_t>(i)), condition};
    inputs.insert(inputs.end(), carried.begin(), carried.end());
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs, c.Subgraph(*body, inputs));
    condition = outputs[0];
    for (size_t k = 0; k < carried.size(); ++k) carried[k] = outputs[1 + k];
    for (int k = 0; k < scans; ++k) scanned[k].push_back(outputs[1 + carried.size() + k]);
  }
  std::vector<Value> results = std::move(carried);
  for (const std::vector<Value>& values : scanned) {
    if (values.empty()) return Unimplemented("a scan output of no iterations is not supported");
    results.push_back(Stack(c.b, values, 0));
  }
  return results;
}

// A list of one entry for each scan input or output, zeros when absent.
absl::StatusOr<std::vector<int64_t>> ScanList(NodeContext& c, std::string_view name, int count) {
  std::vector<int64_t> values = c.Ints(name);
  if (values.empty()) values.assign(count, 0);
  if (static_cast<int>(values.size()) == count) return values;
  return InvalidArgument("attribute ", name, " has ", values.size(), " entries, expected ", count);
}

struct ScanSpec {
  const onnx::GraphProto* body = nullptr;
  int states = 0, inputs = 0, outputs = 0;
  std::vector<int64_t> input_axes, output_axes, input_directions, output_directions;
};

absl::StatusOr<ScanSpec> ReadScan(NodeContext& c) {
  if (c.opset() < 9) return Unimplemented("Scan of opset 8 (with a batch axis) is not supported");
  ScanSpec spec;
  spec.body = c.GraphAttribute("body");
  if (spec.body == nullptr) return InvalidArgument("body is missing");
  const int64_t inputs = c.Int("num_scan_inputs", 0);
  if (inputs < 1 || inputs > c.count()) {
    return InvalidArgument("attribute num_scan_inputs=", inputs, " of ", c.count(), " inputs");
  }
  spec.inputs = static_cast<int>(inputs);
  spec.states = c.count() - spec.inputs;
  spec.outputs = spec.body->output_size() - spec.states;
  if (spec.outputs < 0) return InvalidArgument("the body has too few outputs");
  TANDEM_ASSIGN_OR_RETURN(spec.input_axes, ScanList(c, "scan_input_axes", spec.inputs));
  TANDEM_ASSIGN_OR_RETURN(spec.output_axes, ScanList(c, "scan_output_axes", spec.outputs));
  TANDEM_ASSIGN_OR_RETURN(spec.input_directions, ScanList(c, "scan_input_directions", spec.inputs));
  TANDEM_ASSIGN_OR_RETURN(spec.output_directions,
                          ScanList(c, "scan_output_directions", spec.outputs));
  return spec;
}

Outputs Scan(NodeContext& c) {
  TANDEM_ASSIGN_OR_RETURN(const ScanSpec spec, ReadScan(c));
  std::vector<int> axes;
  int64_t length = -1;
  for (int k = 0; k < spec.inputs; ++k) {
    const Shape shape = c.shape(spec.states + k);
    TANDEM_ASSIGN_OR_RETURN(const int axis, NormalizeAxis(spec.input_axes[k], shape.rank()));
    if (length >= 0 && shape[axis] != length) {
      return InvalidArgument("scan inputs of lengths ", length, " and ", shape[axis]);
    }
    length = shape[axis];
    axes.push_back(axis);
  }
  if (length < 1 || length > kMaxIterations) {
    return Unimplemented("a scan of ", length, " steps is not supported (1 to ", kMaxIterations,
                         " are)");
  }
  std::vector<Value> values(c.inputs().begin(), c.inputs().begin() + spec.states);
  std::vector<std::vector<Value>> scanned(spec.outputs);
  for (int64_t i = 0; i < length; ++i) {
    values.resize(spec.states);
    for (int k = 0; k < spec.inputs; ++k) {
      const int64_t place = spec.input_directions[k] != 0 ? length - 1 - i : i;
      const Value slice = compose::SliceAxis(c.b, c.In(spec.states + k), axes[k], place, place + 1);
      values.push_back(compose::DropAxis(c.b, slice, axes[k]));
    }
    TANDEM_RETURN_IF_ERROR(c.b.status());
    TANDEM_ASSIGN_OR_RETURN(values, c.Subgraph(*spec.body, values));
    for (int k = 0; k < spec.outputs; ++k) scanned[k].push_back(values[spec.states + k]);
  }
  values.resize(spec.states);
  for (int k = 0; k < spec.outputs; ++k) {
    std::vector<Value>& steps = scanned[k];
    if (spec.output_directions[k] != 0) std::reverse(steps.begin(), steps.end());
    TANDEM_ASSIGN_OR_RETURN(const int axis,
                            NormalizeAxis(spec.output_axes[k], c.b.shape(steps[0]).rank() + 1));
    values.push_back(Stack(c.b, steps, axis));
  }
  return values;
}

constexpr OnnxOp kOps[] = {
    {.name = "If", .convert = If, .shape_inputs = InputSet(0)},
    {.name = "Loop",
     .convert = Loop,
     .min_inputs = 0,
     .max_inputs = kAnyCount,
     .shape_inputs = InputSet(0, 1)},
    {.name = "Scan", .convert = Scan, .min_inputs = 1, .max_inputs = kAnyCount},
};

}  // namespace

std::span<const OnnxOp> OnnxControlOps() { return kOps; }

}  // namespace tandem
