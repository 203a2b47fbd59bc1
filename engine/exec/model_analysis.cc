#include "engine/exec/model_analysis.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <utility>

#include "engine/base/philox.h"
#include "engine/graph/gradient.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

absl::StatusOr<Graph> ForwardGraph(const GraphSource& source,
                                   const std::vector<TensorType>& inputs) {
  Builder builder(EvaluateNode);
  std::vector<Value> values;
  for (size_t i = 0; i < inputs.size(); ++i) {
    values.push_back(builder.Input(source.inputs()[i].name, inputs[i]));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs, source.Build(builder, values));
  for (Value v : outputs) builder.Output(v);
  return builder.Finish();
}

// Losses of a language model's tokens, one sequence.
Value TokenLosses(Builder& b, const GraphSource& source, const Shape& tokens) {
  const TensorType indices{DType::kI32, {tokens.num_elements()}};
  SequenceValues sequences;
  sequences.tokens = b.Input("tokens", indices);
  sequences.positions = b.Input("positions", indices);
  sequences.query_start = b.Input("query_start", {DType::kI32, {2}});
  const Value targets = b.Input("targets", indices);
  return ops::SoftmaxCrossEntropy(b, source.BuildLogits(b, sequences), targets)[0];
}

// Squared differences of the first float output from a target.
absl::StatusOr<Value> SquaredLosses(Builder& b, const GraphSource& source,
                                    const std::vector<TensorType>& inputs) {
  std::vector<Value> values;
  for (size_t i = 0; i < inputs.size(); ++i) {
    values.push_back(b.Input(source.inputs()[i].name, inputs[i]));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs, source.Build(b, values));
  TANDEM_RETURN_IF_ERROR(b.status());
  for (Value v : outputs) {
    if (b.dtype(v) != DType::kF32) continue;
    const TensorType type = b.type(v);
    return ops::Square(b, ops::Sub(b, v, b.Input("target", type)));
  }
  return FailedPrecondition("the model has no f32 output to train on");
}

// As Trainer builds it: losses, and gradients of all parameters.
absl::StatusOr<Graph> TrainingGraph(const GraphSource& source,
                                    const std::vector<TensorType>& inputs) {
  if (source.parameters().empty()) {
    return FailedPrecondition("the model has no parameters to train");
  }
  Builder builder(EvaluateNode);
  Value losses;
  if (source.sequence() != nullptr) {
    losses = TokenLosses(builder, source, inputs[0].shape);
  } else {
    TANDEM_ASSIGN_OR_RETURN(losses, SquaredLosses(builder, source, inputs));
  }
  TANDEM_RETURN_IF_ERROR(builder.status());
  const TensorType loss_type = builder.type(losses);
  const Value cotangent = builder.Input("cotangent", loss_type);
  std::vector<Value> wrt;
  for (size_t i = 0; i < source.parameters().size(); ++i) {
    const ParameterInfo& info = source.parameters()[i];
    wrt.push_back(builder.Parameter(static_cast<int32_t>(i), info.name, {DType::kF32, info.shape}));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> gradients,
                          Gradient(builder, losses, wrt, cotangent));
  builder.Output(losses);
  for (Value v : gradients) builder.Output(v);
  return builder.Finish();
}

absl::Status PlanTraining(const GraphSource& source, const std::vector<TensorType>& inputs,
                          int64_t flat_elements, ModelAnalysis& analysis) {
  TANDEM_ASSIGN_OR_RETURN(Graph graph, TrainingGraph(source, inputs));
  TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan,
                          Plan::Compile(std::move(graph), CpuBackend()));
  analysis.training_peak_bytes = plan->arena_bytes();
  // Gradients and two moments in f32, a byte of decay mask.
  analysis.training_state_bytes = flat_elements * (3 * static_cast<int64_t>(sizeof(float)) + 1);
  return absl::OkStatus();
}

// Inputs made up for a measurement must fit beside the plan.
absl::Status CheckInputMemory(const std::vector<TensorType>& inputs, const Backend& backend) {
  int64_t bytes = 0;
  for (const TensorType& type : inputs) {
    bytes += type.bytes();
    if (bytes > backend.memory_bytes() / 4) {
      return ResourceExhausted("inputs of more than ", backend.memory_bytes() / 4,
                               " bytes, a quarter of the memory of ", backend.name(),
                               "; make them smaller");
    }
  }
  return absl::OkStatus();
}

std::string PlanKey(std::string_view purpose, const std::vector<TensorType>& inputs) {
  std::string key(purpose);
  for (const TensorType& type : inputs) key += StrCat(" ", type.ToString());
  return key;
}

// Uniform in (low, low + 1) for floats, zeros (valid tokens and indices) otherwise.
Tensor MadeUp(const TensorType& type, uint64_t stream, float low) {
  Tensor tensor = Tensor::Zeros(type);
  if (type.dtype != DType::kF32) return tensor;
  std::span<float> data = tensor.data<float>();
  for (size_t i = 0; i < data.size(); ++i) {
    data[i] = low + Philox::Uniform(Philox::Block(1, stream, i)[0]);
  }
  return tensor;
}

// The same nodes in another builder; what each value became.
std::vector<Value> Replay(const Graph& graph, Builder& builder) {
  std::vector<Value> map(graph.value_count());
  for (Value v : graph.inputs()) map[v.id] = builder.Input(graph.info(v).name, graph.type(v));
  const auto mapped = [&](Value v) {
    if (!v.valid() || map[v.id].valid()) return v.valid() ? map[v.id] : Value{};
    const ValueInfo& info = graph.info(v);
    if (info.kind == ValueKind::kRandomKey) {
      map[v.id] = builder.RandomKey();
    } else {
      map[v.id] = info.kind == ValueKind::kParameter
                      ? builder.Parameter(info.index, info.name, info.type)
                      : builder.Constant(info.constant);
    }
    return map[v.id];
  };
  for (const Node& node : graph.nodes()) {
    std::vector<Value> inputs;
    for (Value v : node.inputs) inputs.push_back(mapped(v));
    const std::vector<Value> outputs =
        builder.AddMulti(*node.op, inputs, node.attributes, static_cast<int>(node.outputs.size()));
    for (size_t k = 0; k < outputs.size(); ++k) map[node.outputs[k].id] = outputs[k];
  }
  return map;
}

bool HasWindow(const LayerCost& layer, const Graph& graph, const Node& node) {
  if (!layer.field || !IsFloat(graph.type(node.outputs[0]).dtype)) return false;
  return std::all_of(layer.field->dims.begin(), layer.field->dims.end(), [](const AxisField& f) {
    return f.kind == AxisField::Kind::kWindow && f.axis >= 0;
  });
}

// An index into a row-major tensor, counted up.
bool Next(std::vector<int64_t>& index, const Shape& shape) {
  for (int i = shape.rank() - 1; i >= 0; --i) {
    if (++index[i] < shape[i]) return true;
    index[i] = 0;
  }
  return false;
}

// One position, everywhere else on the other axes.
Tensor OneHot(const TensorType& type, const ReceptiveField& field,
              const std::vector<int64_t>& position) {
  Tensor tensor = Tensor::Zeros(type);
  std::span<float> data = tensor.data<float>();
  std::vector<int64_t> index(type.shape.rank(), 0);
  for (float& x : data) {
    bool here = true;
    for (size_t d = 0; d < position.size(); ++d) {
      here = here && index[field.dims[d].axis] == position[d];
    }
    x = here ? 1 : 0;
    Next(index, type.shape);
  }
  return tensor;
}

// Rises or falls along each spatial dimension, as the bits of `directions` say.
void Ramp(Tensor& input, uint32_t directions) {
  const Shape& shape = input.shape();
  std::vector<int64_t> index(shape.rank(), 0);
  for (float& x : input.data<float>()) {
    x = 1;
    for (int axis = 2; axis < shape.rank(); ++axis) {
      const int64_t at =
          (directions >> (axis - 2) & 1) != 0 ? shape[axis] - 1 - index[axis] : index[axis];
      x += static_cast<float>(at) / static_cast<float>(shape[axis]);
    }
    Next(index, shape);
  }
}

// Widens the measured bounds to the gradient's elements that are not zero.
void AddNonZeros(const Tensor& gradient, MeasuredField& field) {
  std::vector<int64_t> index(gradient.shape().rank(), 0);
  for (float g : gradient.data<float>()) {
    for (size_t d = 0; g != 0 && d < field.measured_low.size(); ++d) {
      field.measured_low[d] = std::min(field.measured_low[d], index[d + 2]);
      field.measured_high[d] = std::max(field.measured_high[d], index[d + 2]);
    }
    Next(index, gradient.shape());
  }
}

// The middle of the layer's output and what it should see there; nothing measured yet.
void PlaceInTheMiddle(const ReceptiveField& field, const Shape& output, const Shape& input,
                      MeasuredField& result) {
  for (size_t d = 0; d < field.dims.size(); ++d) {
    const AxisField& dim = field.dims[d];
    const int64_t at = output[dim.axis] / 2, size = input[static_cast<int>(d) + 2];
    result.position.push_back(at);
    const bool empty = dim.Empty(at);
    result.expected_low.push_back(empty ? size : std::max<int64_t>(dim.Low(at), 0));
    result.expected_high.push_back(empty ? -1 : std::min<int64_t>(dim.High(at), size - 1));
    result.measured_low.push_back(size);
    result.measured_high.push_back(-1);
  }
}

// Runs the gradient's plan on several made-up inputs and collects where it is not zero.
absl::Status CollectNonZeros(Model& model, Plan& plan, const std::vector<TensorType>& inputs,
                             int spatial_input, Tensor cotangent, MeasuredField& result) {
  constexpr int kRandomInputs = 4;
  std::vector<Tensor> tensors;
  std::vector<const Tensor*> pointers;
  tensors.reserve(inputs.size() + 1);
  for (const TensorType& type : inputs) tensors.push_back(MadeUp(type, tensors.size(), 0.5f));
  tensors.push_back(std::move(cotangent));
  for (const Tensor& tensor : tensors) pointers.push_back(&tensor);
  Tensor& image = tensors[spatial_input];
  TANDEM_ASSIGN_OR_RETURN(const std::span<const void* const> parameters,
                          model.ParameterAddresses());
  const uint32_t ramps = uint32_t{1} << std::min<size_t>(result.position.size(), 3);
  for (uint32_t draw = 0; draw < ramps + kRandomInputs; ++draw) {
    if (draw < ramps) {
      Ramp(image, draw);
    } else {
      image = MadeUp(image.type(), draw, draw % 2 == 0 ? 0 : -0.5f);
    }
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Tensor> gradients,
                            RunPlan(plan, pointers, parameters));
    AddNonZeros(gradients[0], result);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelAnalysis> AnalyzeModel(const GraphSource& source,
                                           const std::vector<TensorType>& inputs) {
  TANDEM_ASSIGN_OR_RETURN(Graph graph, ForwardGraph(source, inputs));
  TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan,
                          Plan::Compile(std::move(graph), CpuBackend()));
  ModelAnalysis analysis;
  analysis.forward_peak_bytes = plan->arena_bytes();
  std::vector<bool> is_bias;
  int64_t flat_elements = 0;
  for (const ParameterInfo& info : source.parameters()) {
    const int64_t elements = info.shape.num_elements();
    is_bias.push_back(info.role == ParameterRole::kBias);
    analysis.parameters += elements;
    if (is_bias.back()) analysis.bias_parameters += elements;
    flat_elements += ParameterStore::Padded(elements);
  }
  analysis.parameter_bytes = analysis.parameters * static_cast<int64_t>(sizeof(float));
  analysis.cost = AnalyzeGraph(plan->graph(), is_bias);
  if (analysis.cost.input.valid()) {
    analysis.spatial_input = plan->graph().info(analysis.cost.input).index;
  }
  analysis.training_error = PlanTraining(source, inputs, flat_elements, analysis);
  return analysis;
}

absl::StatusOr<MeasuredTime> MeasureTime(Model& model, const std::vector<TensorType>& inputs) {
  constexpr int kRepetitions = 5;
  constexpr double kEnoughSeconds = 0.5;
  TANDEM_RETURN_IF_ERROR(CheckInputMemory(inputs, model.backend()));
  // Not one of the model's plans: in 16 bits those read copies of the weights, where the analysed
  // graph has casts.
  PlanCache plans(model.backend(), /*capacity=*/1);
  TANDEM_ASSIGN_OR_RETURN(
      Plan * plan, plans.Get("measure", [&] { return ForwardGraph(model.source(), inputs); }));
  std::vector<Tensor> tensors;
  std::vector<const Tensor*> pointers;
  tensors.reserve(inputs.size());
  for (const TensorType& type : inputs) {
    tensors.push_back(MadeUp(type, tensors.size(), -0.5f));
    pointers.push_back(&tensors.back());
  }
  // The first run grows the workspace and pages it in.
  TANDEM_ASSIGN_OR_RETURN(const std::span<const void* const> parameters,
                          model.ParameterAddresses());
  TANDEM_RETURN_IF_ERROR(RunPlan(*plan, pointers, parameters).status());
  PlanProfile profile;
  MeasuredTime measured;
  const auto begin = std::chrono::steady_clock::now();
  plan->set_profile(&profile);
  absl::Status status;
  while (status.ok() && measured.repetitions < kRepetitions) {
    status = RunPlan(*plan, pointers, parameters).status();
    ++measured.repetitions;
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (taken.count() > kEnoughSeconds) break;
  }
  plan->set_profile(nullptr);
  TANDEM_RETURN_IF_ERROR(status);
  size_t step = 0;
  for (const Node& node : plan->graph().nodes()) {
    const bool runs = node.op->name != "Reshape" && step < profile.step_seconds().size();
    measured.layer_seconds.push_back(runs ? profile.step_seconds()[step] / measured.repetitions
                                          : 0);
    measured.layer_ops.emplace_back(node.op->name);
    if (node.op->name != "Reshape") ++step;
  }
  return measured;
}

absl::StatusOr<MeasuredField> MeasureReceptiveField(Model& model,
                                                    const std::vector<TensorType>& inputs,
                                                    int32_t layer) {
  TANDEM_RETURN_IF_ERROR(CheckInputMemory(inputs, model.backend()));
  TANDEM_ASSIGN_OR_RETURN(Graph raw, ForwardGraph(model.source(), inputs));
  TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> forward,
                          Plan::Compile(std::move(raw), CpuBackend()));
  const Graph& graph = forward->graph();
  const GraphCost cost = AnalyzeGraph(graph, {});
  MeasuredField result;
  for (auto i = static_cast<int32_t>(cost.layers.size()) - 1; i >= 0 && result.layer < 0; --i) {
    if (layer >= 0 && i != layer) continue;
    if (HasWindow(cost.layers[i], graph, graph.nodes()[i])) result.layer = i;
  }
  if (result.layer < 0) {
    return FailedPrecondition(
        "no layer has a receptive field to verify: the input has no spatial "
        "dimensions, or every layer sees all of it");
  }
  const Value target = graph.nodes()[result.layer].outputs[0];
  const TensorType target_type = graph.type(target);
  if (target_type.dtype != DType::kF32 || graph.type(cost.input).dtype != DType::kF32) {
    return Unimplemented("receptive fields are verified on f32 values only");
  }
  const ReceptiveField& field = *cost.layers[result.layer].field;
  PlaceInTheMiddle(field, target_type.shape, graph.type(cost.input).shape, result);
  const std::string key = StrCat(PlanKey("field", inputs), " ", result.layer);
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, model.plans().Get(key, [&]() -> absl::StatusOr<Graph> {
    Builder builder;
    const std::vector<Value> values = Replay(graph, builder);
    const Value cotangent = builder.Input("cotangent", target_type);
    TANDEM_RETURN_IF_ERROR(builder.status());
    const Value wrt = values[cost.input.id];
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> gradient,
                            Gradient(builder, values[target.id], {&wrt, 1}, cotangent));
    builder.Output(gradient[0]);
    return builder.Finish();
  }));
  TANDEM_RETURN_IF_ERROR(CollectNonZeros(model, *plan, inputs, graph.info(cost.input).index,
                                         OneHot(target_type, field, result.position), result));
  return result;
}

}  // namespace tandem
