// OnnxSource: reading the file, deciding what is trained, building graphs, writing the file.
#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "engine/base/error.h"
#include "engine/exec/plan.h"
#include "engine/formats/onnx.h"
#include "engine/formats/onnx_convert.h"
#include "engine/formats/onnx_graph.h"
#include "engine/formats/onnx_roles.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

// The newest file format whose changes are known here, and the oldest with opset_import.
constexpr int64_t kMinIrVersion = 3;
constexpr int64_t kMaxIrVersion = 14;

struct Io {
  IoSpec spec;
  bool has_shape = false;
  std::vector<std::string> dim_params;  // "" where the size is given or has no name
};

absl::StatusOr<Io> ReadIo(const onnx::ValueInfoProto& info, std::string_view what) {
  Io io;
  io.spec.name = info.name();
  const std::string label = StrCat(what, " '", info.name(), "'");
  if (info.name().empty()) return InvalidArgument("an ", what, " of the graph has no name");
  if (!info.type().has_tensor_type()) {
    return Unimplemented(label,
                         " is not a tensor (sequences, maps and optionals are not supported)");
  }
  const onnx::TypeProto::Tensor& type = info.type().tensor_type();
  TANDEM_ASSIGN_OR_RETURN(io.spec.dtype, DTypeFromOnnx(type.elem_type(), label));
  io.has_shape = type.has_shape();
  if (type.shape().dim_size() > kMaxRank) {
    return Unimplemented(label, " has ", type.shape().dim_size(), " dimensions, at most ", kMaxRank,
                         " are supported");
  }
  for (const onnx::TensorShapeProto::Dimension& dim : type.shape().dim()) {
    const int64_t size = dim.has_dim_value() ? dim.dim_value() : -1;
    if (dim.has_dim_value() && size < 0) {
      return InvalidArgument(label, " has a dimension of size ", size);
    }
    io.spec.dims.push_back(size);
    io.dim_params.push_back(dim.has_dim_param() ? dim.dim_param() : "");
  }
  return io;
}

// Drops a tensor's data: a parameter's values live in the ParameterStore.
void ClearData(onnx::TensorProto* tensor) {
  tensor->clear_raw_data();
  tensor->clear_float_data();
  tensor->clear_int32_data();
}

class Source final : public OnnxSource {
 public:
  explicit Source(std::unique_ptr<onnx::ModelProto> model) : model_(std::move(model)) {}

  // Everything but the parameters' values, which `values` gets in parameters() order.
  absl::Status Load(std::vector<Tensor>& values) {
    TANDEM_RETURN_IF_ERROR(CheckHeader());
    TANDEM_ASSIGN_OR_RETURN(index_, GraphIndex::Make(*model_));
    TANDEM_RETURN_IF_ERROR(ReadInitializers(values));
    TANDEM_RETURN_IF_ERROR(ReadInterface());
    return TryBuild();
  }

  std::string_view format() const override { return "onnx"; }
  const std::vector<IoSpec>& inputs() const override { return inputs_; }
  const std::vector<IoSpec>& outputs() const override { return outputs_; }
  const std::vector<ParameterInfo>& parameters() const override { return parameters_; }
  const std::vector<bool>& shape_inputs() const override { return shape_inputs_; }
  absl::StatusOr<std::vector<Value>> Build(Builder& builder,
                                           std::span<const Value> inputs) const override;
  absl::StatusOr<std::string> Serialize(const ParameterStore& parameters) const override;

 private:
  const onnx::GraphProto& graph() const { return model_->graph(); }
  absl::Status CheckHeader() const;
  absl::Status ReadInitializers(std::vector<Tensor>& values);
  absl::Status ReadInterface();
  absl::Status CheckInputs(const Builder& builder, std::span<const Value> inputs) const;
  absl::Status TryBuild();

  std::unique_ptr<onnx::ModelProto> model_;
  std::optional<GraphIndex> index_;
  std::vector<IoSpec> inputs_, outputs_;
  std::vector<std::vector<std::string>> dim_params_;  // of inputs_
  std::vector<bool> output_has_shape_;
  std::vector<bool> shape_inputs_;
  std::vector<ParameterInfo> parameters_;
  std::vector<int> parameter_initializers_;  // position of each parameter in graph.initializer
  std::vector<std::pair<std::string, std::shared_ptr<const Tensor>>> constants_;
};

absl::Status Source::CheckHeader() const {
  const int64_t ir = model_->ir_version();
  if (!model_->has_graph()) return InvalidArgument("the model has no graph");
  if (ir < kMinIrVersion) {
    return InvalidArgument("IR version ", ir, " is too old, or missing (", kMinIrVersion, " to ",
                           kMaxIrVersion, " are supported)");
  }
  if (ir > kMaxIrVersion) {
    return Unimplemented("IR version ", ir, " is not supported (", kMinIrVersion, " to ",
                         kMaxIrVersion, " are)");
  }
  if (model_->training_info_size() > 0) {
    return Unimplemented("training_info is not supported");
  }
  if (graph().output_size() == 0) return InvalidArgument("the graph has no outputs");
  return absl::OkStatus();
}

absl::Status Source::ReadInitializers(std::vector<Tensor>& values) {
  const absl::flat_hash_map<std::string_view, ParameterRole> roles = ParameterRoles(graph());
  onnx::GraphProto* graph = model_->mutable_graph();
  for (int i = 0; i < graph->initializer_size(); ++i) {
    onnx::TensorProto* proto = graph->mutable_initializer(i);
    const std::string& name = proto->name();
    TANDEM_ASSIGN_OR_RETURN(Tensor tensor,
                            TensorFromProto(*proto, StrCat("initializer '", name, "'")));
    const DType dtype = tensor.dtype();
    const bool is_weight =
        (dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16) &&
        tensor.shape().rank() > 0 && index_->IsTrained(name) && !index_->DecidesShapes(name);
    if (ComputeDType(dtype) != dtype) tensor = CastTensor(tensor, ComputeDType(dtype));
    if (!is_weight) {
      constants_.emplace_back(name, std::make_shared<const Tensor>(std::move(tensor)));
      continue;
    }
    const auto role = roles.find(name);
    parameters_.push_back({.name = name,
                           .shape = tensor.shape(),
                           .role = role == roles.end() ? ParameterRole::kWeight : role->second,
                           .file_dtype = dtype});
    parameter_initializers_.push_back(i);
    values.push_back(std::move(tensor));
    ClearData(proto);
  }
  return absl::OkStatus();
}

absl::Status Source::ReadInterface() {
  NameSet initializers;
  for (const onnx::TensorProto& tensor : graph().initializer()) initializers.insert(tensor.name());
  for (const onnx::ValueInfoProto& info : graph().input()) {
    // Before IR version 4 every initializer was an input too.
    if (initializers.contains(info.name())) continue;
    TANDEM_ASSIGN_OR_RETURN(Io io, ReadIo(info, "input"));
    if (!io.has_shape)
      return Unimplemented("input '", info.name(), "' has no shape, not even a rank");
    shape_inputs_.push_back(index_->DecidesShapes(info.name()));
    inputs_.push_back(std::move(io.spec));
    dim_params_.push_back(std::move(io.dim_params));
  }
  NameSet names;
  for (const onnx::ValueInfoProto& info : graph().output()) {
    TANDEM_ASSIGN_OR_RETURN(Io io, ReadIo(info, "output"));
    if (!names.insert(info.name()).second) {
      return InvalidArgument("two outputs are named '", info.name(), "'");
    }
    outputs_.push_back(std::move(io.spec));
    output_has_shape_.push_back(io.has_shape);
  }
  return absl::OkStatus();
}

// Builds once, so that most of what is wrong with a model is said when it is loaded, and the ranks
// of outputs that the file does not declare are known. With sizes that vary it is a guess what
// sizes the model can do, and a failure means nothing.
absl::Status Source::TryBuild() {
  const bool needs_values =
      std::find(shape_inputs_.begin(), shape_inputs_.end(), true) != shape_inputs_.end();
  if (needs_values) return absl::OkStatus();
  Builder builder(EvaluateNode);
  bool varies = false;
  std::vector<Value> values;
  for (const IoSpec& spec : inputs_) {
    std::vector<int64_t> dims = spec.dims;
    for (int64_t& dim : dims) {
      varies = varies || dim < 0;
      if (dim < 0) dim = 1;
    }
    TANDEM_ASSIGN_OR_RETURN(const Shape shape, Shape::Checked(dims, SizeOf(spec.dtype),
                                                              StrCat("input '", spec.name, "'")));
    values.push_back(builder.Input(spec.name, {spec.dtype, shape}));
  }
  const absl::StatusOr<std::vector<Value>> built = Build(builder, values);
  if (!built.ok()) return varies ? absl::OkStatus() : built.status();
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (output_has_shape_[i]) continue;
    const Shape& shape = builder.shape((*built)[i]);
    outputs_[i].dims.assign(shape.begin(), shape.end());
    if (varies) std::fill(outputs_[i].dims.begin(), outputs_[i].dims.end(), -1);
  }
  return absl::OkStatus();
}

absl::Status Source::CheckInputs(const Builder& builder, std::span<const Value> inputs) const {
  if (inputs.size() != inputs_.size()) {
    return InvalidArgument("the model has ", inputs_.size(), " inputs, got ", inputs.size());
  }
  // Dimensions of one name have one size.
  absl::flat_hash_map<std::string_view, std::pair<int64_t, std::string_view>> sizes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const IoSpec& spec = inputs_[i];
    const TensorType& type = builder.type(inputs[i]);
    const auto mismatch = [&](const auto&... why) {
      return InvalidArgument("input '", spec.name, "' is ", type.ToString(), ": ", why...);
    };
    if (type.dtype != spec.dtype) return mismatch("expected ", DTypeName(spec.dtype));
    if (type.shape.rank() != static_cast<int>(spec.dims.size())) {
      return mismatch("expected ", spec.dims.size(), " dimensions");
    }
    for (int d = 0; d < type.shape.rank(); ++d) {
      if (spec.dims[d] >= 0 && spec.dims[d] != type.shape[d]) {
        return mismatch("expected dimension ", d, " of size ", spec.dims[d]);
      }
      const std::string& name = dim_params_[i][d];
      if (name.empty()) continue;
      const auto& [size, input] = sizes.try_emplace(name, type.shape[d], spec.name).first->second;
      if (size != type.shape[d]) {
        return mismatch("dimension '", name, "' is ", type.shape[d], ", but ", size, " in input '",
                        input, "'");
      }
    }
    if (shape_inputs_[i] && builder.constant(inputs[i]) == nullptr) {
      return Unimplemented("input '", spec.name,
                           "' decides shapes: its value must be known when the graph is built");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Value>> Source::Build(Builder& builder,
                                                 std::span<const Value> inputs) const {
  TANDEM_RETURN_IF_ERROR(builder.status());
  TANDEM_RETURN_IF_ERROR(CheckInputs(builder, inputs));
  absl::flat_hash_map<std::string_view, Value> bound;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const DType dtype = ComputeDType(inputs_[i].dtype);
    bound[inputs_[i].name] =
        dtype == inputs_[i].dtype ? inputs[i] : ops::Cast(builder, inputs[i], dtype);
  }
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const ParameterInfo& info = parameters_[i];
    bound[info.name] =
        builder.Parameter(static_cast<int32_t>(i), info.name, {DType::kF32, info.shape});
  }
  for (const auto& [name, tensor] : constants_) bound[name] = builder.Constant(tensor);
  GraphConverter converter(*index_, builder);
  TANDEM_ASSIGN_OR_RETURN(std::vector<Value> outputs, converter.Convert(graph(), std::move(bound)));
  for (size_t i = 0; i < outputs.size(); ++i) {
    const IoSpec& spec = outputs_[i];
    const DType dtype = builder.dtype(outputs[i]);
    if (dtype != ComputeDType(spec.dtype)) {
      return InvalidArgument("output '", spec.name, "' is declared ", DTypeName(spec.dtype),
                             ", but the nodes make ", DTypeName(dtype));
    }
    if (dtype != spec.dtype) outputs[i] = ops::Cast(builder, outputs[i], spec.dtype);
  }
  TANDEM_RETURN_IF_ERROR(builder.status());
  return outputs;
}

absl::StatusOr<std::string> Source::Serialize(const ParameterStore& parameters) const {
  if (parameters.pointers().size() != parameters_.size()) {
    return InvalidArgument("a store of ", parameters.pointers().size(),
                           " parameters for a model of ", parameters_.size());
  }
  onnx::ModelProto model = *model_;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const ParameterInfo& info = parameters_[i];
    const std::span<const float> values = parameters.values(static_cast<int>(i));
    if (static_cast<int64_t>(values.size()) != info.shape.num_elements()) {
      return InvalidArgument("parameter '", info.name, "' has ", values.size(),
                             " values, expected ", info.shape.num_elements());
    }
    Tensor tensor = Tensor::Of<float>(info.shape, values);
    if (info.file_dtype != DType::kF32) tensor = CastTensor(tensor, info.file_dtype);
    onnx::TensorProto* proto =
        model.mutable_graph()->mutable_initializer(parameter_initializers_[i]);
    proto->set_raw_data(tensor.raw(), static_cast<size_t>(tensor.bytes()));
  }
  if (model.ByteSizeLong() > std::numeric_limits<int32_t>::max()) {
    return ResourceExhausted("the model is ", model.ByteSizeLong(),
                             " bytes; one ONNX file holds at most 2 GiB");
  }
  std::string bytes;
  if (!model.SerializeToString(&bytes)) return Internal("protobuf could not write the model");
  return bytes;
}

absl::StatusOr<std::unique_ptr<onnx::ModelProto>> Parse(std::string_view bytes) {
  if (bytes.empty()) return InvalidArgument("the file is empty");
  if (bytes.size() > std::numeric_limits<int32_t>::max()) {
    return InvalidArgument("the file has ", bytes.size(),
                           " bytes; an ONNX model has at most 2 GiB");
  }
  constexpr std::string_view kLfs = "version https://git-lfs";
  if (bytes.substr(0, kLfs.size()) == kLfs) {
    return InvalidArgument("the file is a git-lfs pointer, not the model that it stands for");
  }
  auto model = std::make_unique<onnx::ModelProto>();
  if (!model->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return InvalidArgument("not an ONNX model: protobuf cannot parse the ", bytes.size(), " bytes");
  }
  return model;
}

}  // namespace

absl::StatusOr<LoadedOnnx> LoadOnnx(std::string_view bytes) {
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<onnx::ModelProto> model, Parse(bytes));
  auto source = std::make_shared<Source>(std::move(model));
  std::vector<Tensor> values;
  TANDEM_RETURN_IF_ERROR(source->Load(values));
  ParameterStore parameters(source->parameters());
  for (size_t i = 0; i < values.size(); ++i) {
    const std::span<const float> from = std::as_const(values[i]).data<float>();
    std::copy(from.begin(), from.end(), parameters.values(static_cast<int>(i)).begin());
  }
  return LoadedOnnx{std::move(source), std::move(parameters)};
}

absl::StatusOr<std::string> SerializeOnnx(const GraphSource& source,
                                          const ParameterStore& parameters) {
  const auto* onnx_source = dynamic_cast<const OnnxSource*>(&source);
  if (onnx_source == nullptr) {
    return InvalidArgument("a model of format '", source.format(), "' cannot be written as ONNX");
  }
  return onnx_source->Serialize(parameters);
}

}  // namespace tandem
