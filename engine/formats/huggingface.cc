#include "engine/formats/huggingface.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/container/flat_hash_map.h"
#include "engine/formats/atomic_file.h"
#include "engine/formats/json.h"
#include "engine/formats/safetensors.h"

namespace tandem {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxConfigBytes = int64_t{1} << 20;
constexpr int64_t kMaxIndexBytes = int64_t{1} << 26;
constexpr int64_t kMaxSideFileBytes = int64_t{1} << 28;
// All shards are open while they are checked; a process may commonly open 1024 files.
constexpr size_t kMaxShards = 512;

// Files that are not weights and go along with a saved model.
constexpr const char* kSideFiles[] = {"tokenizer.json",
                                      "tokenizer.model",
                                      "tokenizer_config.json",
                                      "special_tokens_map.json",
                                      "added_tokens.json",
                                      "vocab.json",
                                      "merges.txt",
                                      "generation_config.json",
                                      "chat_template.jinja",
                                      "tandem_characters.json"};

std::string Join(const std::string& folder, const std::string& name) {
  return (fs::path(folder) / name).string();
}

bool Exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// A shard's name comes from a file: it may only name a file of the folder itself.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos &&
         name.find('\\') == std::string::npos && name.find('\0') == std::string::npos &&
         name.ends_with(".safetensors");
}

absl::StatusOr<std::vector<std::string>> ShardNames(const std::string& index_path) {
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(index_path, kMaxIndexBytes));
  TANDEM_ASSIGN_OR_RETURN(const nlohmann::json index, ParseJson(text, index_path));
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    return InvalidArgument(index_path, ": no weight_map");
  }
  std::vector<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string() || !IsPlainFileName(file.get_ref<const std::string&>())) {
      return InvalidArgument(index_path, ": tensor ", tensor, " is in ", DescribeJson(file),
                             ", expected the name of a .safetensors file in the same folder");
    }
    names.push_back(file.get<std::string>());
  }
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  if (names.size() > kMaxShards) {
    return InvalidArgument(index_path, ": ", names.size(), " files, at most ", kMaxShards,
                           " are supported");
  }
  return names;
}

absl::StatusOr<std::vector<SafetensorsFile>> OpenWeights(const std::string& folder) {
  std::vector<std::string> names = {"model.safetensors"};
  const std::string index = Join(folder, "model.safetensors.index.json");
  if (!Exists(Join(folder, names[0]))) {
    if (!Exists(index)) {
      return NotFound(folder, ": neither model.safetensors nor model.safetensors.index.json");
    }
    TANDEM_ASSIGN_OR_RETURN(names, ShardNames(index));
  }
  std::vector<SafetensorsFile> files;
  for (const std::string& name : names) {
    TANDEM_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(Join(folder, name)));
    files.push_back(std::move(file));
  }
  return files;
}

// Buffers that follow from the configuration and that old versions wrote beside the weights.
bool IsDerivedBuffer(DecoderArchitecture architecture, const SafetensorsTensor& tensor) {
  if (architecture == DecoderArchitecture::kLlama) {
    return tensor.name.ends_with(".rotary_emb.inv_freq");
  }
  // The causal mask (1, 1, P, P), not a linear layer's bias, and the value that it puts.
  return (tensor.name.ends_with(".attn.bias") && tensor.shape.size() == 4) ||
         tensor.name.ends_with(".attn.masked_bias");
}

// GPT-2's first files lack the "transformer." that all later ones have.
std::string CanonicalName(DecoderArchitecture architecture, const std::string& name) {
  if (architecture == DecoderArchitecture::kLlama || name.starts_with("transformer.") ||
      name == "lm_head.weight") {
    return name;
  }
  return "transformer." + name;
}

struct TensorPlace {
  const SafetensorsFile* file = nullptr;
  const SafetensorsTensor* tensor = nullptr;
};

// Which tensor of which file is each parameter, in parameters() order; `tied_head` is a copy of the
// embedding that some files have.
struct WeightPlaces {
  std::vector<TensorPlace> parameters;
  TensorPlace tied_head;
};

absl::Status CheckTensor(const TensorPlace& place, const Shape& expected) {
  const SafetensorsTensor& tensor = *place.tensor;
  if (!std::equal(tensor.shape.begin(), tensor.shape.end(), expected.begin(), expected.end())) {
    std::string shape;
    for (int64_t dim : tensor.shape) shape += StrCat(shape.empty() ? "" : ",", dim);
    return InvalidArgument(place.file->path(), ": tensor ", tensor.name, " is (", shape,
                           "), expected ", expected.ToString());
  }
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 && tensor.dtype != DType::kBF16) {
    return Unimplemented(place.file->path(), ": tensor ", tensor.name, " is ", tensor.file_type,
                         "; F32, F16 and BF16 are supported");
  }
  return absl::OkStatus();
}

absl::StatusOr<WeightPlaces> FindWeights(const std::vector<SafetensorsFile>& files,
                                         const DecoderSource& source) {
  const std::vector<ParameterInfo>& infos = source.parameters();
  const DecoderConfig& config = source.config();
  absl::flat_hash_map<std::string, size_t> index;
  for (size_t i = 0; i < infos.size(); ++i) index[infos[i].name] = i;
  WeightPlaces places;
  places.parameters.resize(infos.size());
  for (const SafetensorsFile& file : files) {
    for (const SafetensorsTensor& tensor : file.header().tensors) {
      if (IsDerivedBuffer(config.architecture, tensor)) continue;
      const std::string name = CanonicalName(config.architecture, tensor.name);
      const auto found = index.find(name);
      TensorPlace* place = nullptr;
      if (found != index.end()) {
        place = &places.parameters[found->second];
      } else if (config.tie_embeddings && name == "lm_head.weight") {
        place = &places.tied_head;
      } else {
        return InvalidArgument(file.path(), ": tensor ", tensor.name,
                               " is not part of the model that config.json describes");
      }
      if (place->tensor != nullptr) {
        return InvalidArgument(file.path(), ": tensor ", tensor.name, " is there twice");
      }
      *place = {&file, &tensor};
      // The embedding is parameter 0 of every decoder.
      const size_t i = found != index.end() ? found->second : 0;
      TANDEM_RETURN_IF_ERROR(CheckTensor(*place, infos[i].shape));
    }
  }
  for (size_t i = 0; i < infos.size(); ++i) {
    if (places.parameters[i].tensor == nullptr) {
      return InvalidArgument(files.front().path(), files.size() > 1 ? " and the other shards" : "",
                             ": tensor ", infos[i].name, " ", infos[i].shape.ToString(),
                             " is missing");
    }
  }
  return places;
}

absl::Status CheckTiedHead(const TensorPlace& head, std::span<const float> embedding) {
  std::vector<float> values(embedding.size());
  TANDEM_RETURN_IF_ERROR(head.file->ReadFloats(*head.tensor, values));
  if (std::memcmp(values.data(), embedding.data(), embedding.size_bytes()) == 0) {
    return absl::OkStatus();
  }
  return InvalidArgument(head.file->path(), ": tensor ", head.tensor->name,
                         " differs from the embedding, but config.json has tie_word_embeddings");
}

// generate() stops at the tokens of generation_config.json, which may be more than config.json's.
absl::Status AddGenerationEos(const std::string& folder, DecoderConfig& config) {
  const std::string path = Join(folder, "generation_config.json");
  if (!Exists(path)) return absl::OkStatus();
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxConfigBytes));
  TANDEM_ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(text, path));
  if (!json.is_object()) return InvalidArgument(path, ": not an object");
  const auto found = json.find("eos_token_id");
  if (found == json.end() || found->is_null()) return absl::OkStatus();
  const nlohmann::json ids = found->is_array() ? *found : nlohmann::json::array({*found});
  for (const nlohmann::json& id : ids) {
    if (!id.is_number_integer()) {
      return InvalidArgument(path, ": eos_token_id is ", DescribeJson(id), ", expected an integer");
    }
    const int64_t value = id.get<int64_t>();
    auto& all = config.eos_token_ids;
    if (value >= 0 && value < config.vocab_size &&
        std::find(all.begin(), all.end(), value) == all.end()) {
      all.push_back(static_cast<int32_t>(value));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<DecoderConfig> ReadConfig(const std::string& folder) {
  const std::string path = Join(folder, "config.json");
  TANDEM_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kMaxConfigBytes));
  absl::StatusOr<DecoderConfig> config = ParseHuggingFaceConfig(text);
  if (!config.ok()) return Annotate(config.status(), folder);
  TANDEM_RETURN_IF_ERROR(AddGenerationEos(folder, *config));
  return config;
}

absl::Status CopySideFiles(const std::string& origin, const std::string& folder) {
  std::error_code error;
  if (origin.empty() || fs::equivalent(origin, folder, error)) return absl::OkStatus();
  for (const char* name : kSideFiles) {
    const absl::StatusOr<std::string> content =
        ReadSmallFile(Join(origin, name), kMaxSideFileBytes);
    if (absl::IsNotFound(content.status())) continue;
    TANDEM_RETURN_IF_ERROR(content.status());
    TANDEM_RETURN_IF_ERROR(WriteFileAtomically(Join(folder, name), *content));
  }
  return absl::OkStatus();
}

// The origin's own config.json if it says the same, for the fields that only others read.
absl::StatusOr<std::string> ConfigText(const DecoderSource& source, const std::string& origin) {
  if (!origin.empty()) {
    const absl::StatusOr<DecoderConfig> config = ReadConfig(origin);
    if (config.ok() && *config == source.config()) {
      return ReadSmallFile(Join(origin, "config.json"), kMaxConfigBytes);
    }
  }
  return WriteHuggingFaceConfig(source.config(), source.parameters()[0].file_dtype);
}

}  // namespace

bool IsHuggingFaceFolder(const std::string& folder) { return Exists(Join(folder, "config.json")); }

absl::StatusOr<LoadedModel> LoadHuggingFace(const std::string& folder) {
  TANDEM_ASSIGN_OR_RETURN(const DecoderConfig config, ReadConfig(folder));
  TANDEM_ASSIGN_OR_RETURN(const std::vector<SafetensorsFile> files, OpenWeights(folder));
  TANDEM_ASSIGN_OR_RETURN(const std::shared_ptr<const DecoderSource> described,
                          DecoderSource::Create(config));
  TANDEM_ASSIGN_OR_RETURN(const WeightPlaces places, FindWeights(files, *described));
  std::vector<DType> dtypes;
  for (const TensorPlace& place : places.parameters) dtypes.push_back(*place.tensor->dtype);
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<const DecoderSource> source,
                          DecoderSource::Create(config, "huggingface", dtypes));
  ParameterStore parameters(source->parameters());
  for (size_t i = 0; i < places.parameters.size(); ++i) {
    const TensorPlace& place = places.parameters[i];
    TANDEM_RETURN_IF_ERROR(
        place.file->ReadFloats(*place.tensor, parameters.values(static_cast<int>(i))));
  }
  if (places.tied_head.tensor != nullptr) {
    TANDEM_RETURN_IF_ERROR(CheckTiedHead(places.tied_head, parameters.values(0)));
  }
  return LoadedModel{std::move(source), std::move(parameters)};
}

absl::Status SaveHuggingFace(const GraphSource& source, const ParameterStore& parameters,
                             const std::string& folder, const std::string& origin) {
  const auto* decoder = dynamic_cast<const DecoderSource*>(&source);
  if (decoder == nullptr) {
    return Unimplemented("a model of format ", source.format(),
                         " cannot be saved as a Hugging Face folder");
  }
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return FailedPrecondition("cannot make folder ", folder, ": ", error.message());
  TANDEM_RETURN_IF_ERROR(CopySideFiles(origin, folder));
  TANDEM_ASSIGN_OR_RETURN(const std::string config, ConfigText(*decoder, origin));
  TANDEM_RETURN_IF_ERROR(WriteFileAtomically(Join(folder, "config.json"), config));
  std::vector<SafetensorsSource> tensors;
  const std::vector<ParameterInfo>& infos = decoder->parameters();
  for (size_t i = 0; i < infos.size(); ++i) {
    tensors.push_back({.name = infos[i].name,
                       .shape = {infos[i].shape.begin(), infos[i].shape.end()},
                       .file_dtype = infos[i].file_dtype,
                       .values = parameters.values(static_cast<int>(i))});
  }
  return WriteSafetensors(Join(folder, "model.safetensors"), tensors, {{"format", "pt"}});
}

}  // namespace tandem
