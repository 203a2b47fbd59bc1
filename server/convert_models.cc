#include "server/convert_models.h"

#include <algorithm>
#include <set>
#include <string>

#include "engine/formats/character_tokenizer.h"
#include "engine/train/trainer.h"
#include "server/convert.h"
#include "server/status.h"

namespace tandem::server {
namespace {

// Far above any model, and low enough that products of two do not overflow. The engine checks the
// rest.
constexpr int64_t kMaxSize = int64_t{1} << 30;

absl::Status CheckSize(int64_t value, int64_t least, std::string_view field) {
  if (value >= least && value <= kMaxSize) return absl::OkStatus();
  return InvalidArgument("decoder.", field, " is ", value, ", expected ", least, " to ", kMaxSize);
}

absl::Status CheckSizes(const v1::DecoderConfig& c) {
  TANDEM_RETURN_IF_ERROR(CheckSize(c.vocab_size(), c.characters().empty() ? 1 : 0, "vocab_size"));
  TANDEM_RETURN_IF_ERROR(CheckSize(c.layers(), 1, "layers"));
  TANDEM_RETURN_IF_ERROR(CheckSize(c.heads(), 1, "heads"));
  TANDEM_RETURN_IF_ERROR(CheckSize(c.kv_heads(), 0, "kv_heads"));
  TANDEM_RETURN_IF_ERROR(CheckSize(c.hidden_size(), 1, "hidden_size"));
  TANDEM_RETURN_IF_ERROR(CheckSize(c.intermediate_size(), 0, "intermediate_size"));
  TANDEM_RETURN_IF_ERROR(CheckSize(c.max_positions(), 1, "max_positions"));
  if (c.hidden_size() % c.heads() != 0) {
    return InvalidArgument("decoder.hidden_size ", c.hidden_size(), " is not a multiple of heads ",
                           c.heads());
  }
  return absl::OkStatus();
}

// The numbers that may be unset, and those that belong to one architecture alone.
absl::Status SetOptionals(const v1::DecoderConfig& c, DecoderConfig& out) {
  if (c.has_norm_epsilon()) {
    TANDEM_RETURN_IF_ERROR(CheckFinite(c.norm_epsilon(), "decoder.norm_epsilon"));
    out.norm_epsilon = c.norm_epsilon();
  }
  if (c.has_initializer_std()) {
    TANDEM_RETURN_IF_ERROR(CheckFinite(c.initializer_std(), "decoder.initializer_std"));
    out.initializer_std = c.initializer_std();
  }
  const bool llama = out.architecture == DecoderArchitecture::kLlama;
  if (c.has_rope_theta()) {
    if (!llama) return InvalidArgument("decoder.rope_theta is set, but GPT-2 has none");
    TANDEM_RETURN_IF_ERROR(CheckFinite(c.rope_theta(), "decoder.rope_theta"));
    out.rope_theta = c.rope_theta();
  }
  if (llama && c.has_bias() && c.bias()) {
    return InvalidArgument("decoder.bias is set, but Llama has no biases");
  }
  out.bias = !llama && (!c.has_bias() || c.bias());
  out.tie_embeddings = !c.has_tie_embeddings() || c.tie_embeddings();
  return absl::OkStatus();
}

void FillLanguageModel(const ModelEntry& entry, const SequenceModelInfo& info,
                       v1::LanguageModel* out) {
  out->set_vocab_size(info.vocab_size);
  out->set_max_positions(info.max_positions);
  out->set_layers(info.layers);
  out->set_heads(info.heads);
  out->set_kv_heads(info.kv_heads);
  out->set_head_dim(info.head_dim);
  out->set_has_tokenizer(entry.tokenizer != nullptr);
  out->mutable_eos_token_ids()->Add(info.eos_token_ids.begin(), info.eos_token_ids.end());
}

}  // namespace

v1::Precision ToProto(Precision precision) {
  switch (precision) {
    case Precision::kF32:
      return v1::PRECISION_F32;
    case Precision::kBF16:
      return v1::PRECISION_BF16;
    case Precision::kF16:
      return v1::PRECISION_F16;
  }
  return v1::PRECISION_UNSPECIFIED;
}

absl::StatusOr<Placement> ToPlacement(v1::Precision precision, const std::string& device) {
  Placement placement;
  TANDEM_ASSIGN_OR_RETURN(placement.precision, FromProto(precision));
  if (!device.empty()) {
    TANDEM_ASSIGN_OR_RETURN(placement.device, FindBackend(device));
  }
  return placement;
}

absl::StatusOr<std::optional<Precision>> FromProto(v1::Precision precision) {
  if (precision == v1::PRECISION_UNSPECIFIED) return std::optional<Precision>();
  for (const Precision known : {Precision::kF32, Precision::kBF16, Precision::kF16}) {
    if (ToProto(known) == precision) return std::optional<Precision>(known);
  }
  return InvalidArgument("precision ", static_cast<int>(precision), " is not a known Precision");
}

absl::StatusOr<NewDecoder> FromProto(const v1::DecoderConfig& c, uint64_t seed) {
  TANDEM_RETURN_IF_ERROR(CheckSizes(c));
  NewDecoder decoder;
  decoder.seed = seed;
  DecoderConfig& out = decoder.config;
  switch (c.architecture()) {
    case v1::DecoderConfig::ARCHITECTURE_GPT2:
      out.architecture = DecoderArchitecture::kGpt2;
      out.activation = DecoderActivation::kGelu;
      break;
    case v1::DecoderConfig::ARCHITECTURE_LLAMA:
      out.architecture = DecoderArchitecture::kLlama;
      out.activation = DecoderActivation::kSilu;
      break;
    default:
      return InvalidArgument("decoder.architecture is ", static_cast<int>(c.architecture()),
                             ", expected ARCHITECTURE_GPT2 or ARCHITECTURE_LLAMA");
  }
  out.vocab_size = c.vocab_size();
  if (!c.characters().empty()) {
    TANDEM_ASSIGN_OR_RETURN(decoder.characters, CharactersOf(c.characters()));
    const auto count = static_cast<int64_t>(decoder.characters.size());
    if (out.vocab_size != 0 && out.vocab_size != count) {
      return InvalidArgument("decoder.vocab_size is ", out.vocab_size, ", but characters has ",
                             count, " different ones");
    }
    out.vocab_size = count;
  }
  out.layers = c.layers();
  out.heads = c.heads();
  out.kv_heads = c.kv_heads() == 0 ? c.heads() : c.kv_heads();
  out.hidden_size = c.hidden_size();
  out.head_dim = c.hidden_size() / c.heads();
  out.intermediate_size = c.intermediate_size();
  if (out.intermediate_size == 0) {
    out.intermediate_size = out.architecture == DecoderArchitecture::kGpt2
                                ? 4 * out.hidden_size
                                : (8 * out.hidden_size / 3 + 31) / 32 * 32;
  }
  out.max_positions = c.max_positions();
  TANDEM_RETURN_IF_ERROR(SetOptionals(c, out));
  TANDEM_RETURN_IF_ERROR(out.Validate());
  return decoder;
}

absl::StatusOr<std::vector<TensorType>> InputTypes(const v1::AnalyzeModelRequest& request,
                                                   const GraphSource& source) {
  std::vector<TensorType> types;
  for (const IoSpec& spec : source.inputs()) {
    TensorType& type = types.emplace_back(TensorType{spec.dtype, Shape(spec.dims)});
    for (int i = 0; i < type.shape.rank(); ++i) {
      if (type.shape[i] < 0) type.shape[i] = source.sequence() != nullptr ? 16 : 1;
    }
  }
  std::set<std::string> named;
  for (const v1::TensorSpec& input : request.inputs()) {
    const std::string what = StrCat("input '", input.name(), "'");
    if (!named.insert(input.name()).second) return InvalidArgument(what, " is given twice");
    const auto& specs = source.inputs();
    const auto spec = std::find_if(specs.begin(), specs.end(),
                                   [&](const IoSpec& s) { return s.name == input.name(); });
    if (spec == specs.end()) return InvalidArgument("the model has no ", what);
    if (input.dtype() != v1::DATA_TYPE_UNSPECIFIED && input.dtype() != ToProto(spec->dtype)) {
      return InvalidArgument(what, " has dtype ", DTypeName(spec->dtype));
    }
    TANDEM_ASSIGN_OR_RETURN(
        const Shape shape,
        Shape::Checked({input.shape().data(), static_cast<size_t>(input.shape_size())},
                       SizeOf(spec->dtype), what));
    bool fits = shape.rank() == static_cast<int>(spec->dims.size());
    for (int i = 0; fits && i < shape.rank(); ++i) {
      fits = spec->dims[i] < 0 || spec->dims[i] == shape[i];
    }
    if (!fits) {
      return InvalidArgument(what, ": shape ", shape.ToString(), " does not fit ",
                             Shape(spec->dims).ToString());
    }
    types[spec - specs.begin()].shape = shape;
  }
  return types;
}

void ToProto(const ModelEntry& entry, bool with_hash, v1::Model* out) {
  out->set_name(entry.name);
  if (!entry.error.ok()) {
    out->set_state(v1::MODEL_STATE_FAILED);
    out->set_error(Printable(std::string(entry.error.message())));
    return;
  }
  out->set_format(entry.format == ModelFormat::kOnnx ? v1::MODEL_FORMAT_ONNX
                                                     : v1::MODEL_FORMAT_HUGGINGFACE);
  out->set_state(v1::MODEL_STATE_READY);
  for (const IoSpec& input : entry.source->inputs()) ToProto(input, out->add_inputs());
  for (const IoSpec& output : entry.source->outputs()) ToProto(output, out->add_outputs());
  out->set_device(std::string(entry.device->name()));
  out->set_precision(ToProto(entry.precision));
  if (const SequenceModelInfo* info = entry.source->sequence()) {
    FillLanguageModel(entry, *info, out->mutable_language_model());
  }
  if (entry.model == nullptr) return;  // unloaded a moment ago
  const Model& model = *entry.model;
  out->set_parameter_count(model.parameter_count());
  out->set_parameter_bytes(model.parameters().flat_size() * static_cast<int64_t>(sizeof(float)));
  out->set_weights_version(model.weights_version());
  if (with_hash) {
    // Empty where the device failed; the next computation there says how.
    out->set_weights_hash(model.WeightsHash().value_or(""));
  }
  out->set_training(entry.trainer != nullptr);
}

}  // namespace tandem::server
