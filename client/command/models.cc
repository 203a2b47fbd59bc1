#include <cctype>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "client/command/command.h"

namespace tandem::command {
namespace {

std::string StateText(const v1::Model& model) {
  if (model.state() == v1::MODEL_STATE_FAILED) return "failed";
  return model.training() ? "training" : "ready";
}

std::string FormatText(v1::ModelFormat format) {
  switch (format) {
    case v1::MODEL_FORMAT_ONNX:
      return "onnx";
    case v1::MODEL_FORMAT_HUGGINGFACE:
      return "huggingface";
    default:
      return "-";
  }
}

std::string DtypeText(v1::DataType dtype) {
  std::string name = v1::DataType_Name(dtype);
  constexpr std::string_view kPrefix = "DATA_TYPE_";
  return name.rfind(kPrefix, 0) == 0 ? name.substr(kPrefix.size()) : name;
}

std::string PrecisionText(v1::Precision precision) {
  return precision == v1::PRECISION_BF16 ? "bf16" : precision == v1::PRECISION_F16 ? "f16" : "f32";
}

void PrintModel(const v1::Model& model) {
  std::vector<std::vector<std::string>> rows = {
      {"name", model.name()},
      {"format", FormatText(model.format())},
      {"state", StateText(model) + (model.error().empty() ? "" : ": " + model.error())},
      {"parameters",
       StrCat(WithCommas(model.parameter_count()), " (", Bytes(model.parameter_bytes()), ")")},
      {"weights version", std::to_string(model.weights_version())}};
  if (!model.weights_hash().empty()) rows.push_back({"weights hash", model.weights_hash()});
  rows.push_back({"device", model.device()});
  rows.push_back({"precision", PrecisionText(model.precision())});
  for (const auto& spec : model.inputs()) {
    rows.push_back(
        {"input", StrCat(spec.name(), " ", DtypeText(spec.dtype()), " ", ShapeText(spec.shape()))});
  }
  for (const auto& spec : model.outputs()) {
    rows.push_back({"output", StrCat(spec.name(), " ", DtypeText(spec.dtype()), " ",
                                     ShapeText(spec.shape()))});
  }
  if (model.has_language_model()) {
    const v1::LanguageModel& lm = model.language_model();
    rows.push_back(
        {"language model", absl::StrFormat("%d layers, %d heads (%d for keys and values) of %d, "
                                           "vocabulary %d, %d positions, %s",
                                           lm.layers(), lm.heads(), lm.kv_heads(), lm.head_dim(),
                                           lm.vocab_size(), lm.max_positions(),
                                           lm.has_tokenizer() ? "text or tokens" : "tokens only")});
  }
  PrintTable(rows);
}

absl::Status ShowModel(const Session& session, const absl::StatusOr<v1::Model>& model) {
  TANDEM_RETURN_IF_ERROR(model.status());
  if (session.json) {
    PrintJson(*model);
  } else {
    PrintModel(*model);
  }
  return absl::OkStatus();
}

std::string RoleText(v1::ParameterRole role) {
  std::string name = v1::ParameterRole_Name(role);
  constexpr std::string_view kPrefix = "PARAMETER_ROLE_";
  if (name.rfind(kPrefix, 0) == 0) name = name.substr(kPrefix.size());
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

absl::Status GetModel(const Session& session, const v1::GetModelRequest& request) {
  TANDEM_ASSIGN_OR_RETURN(const v1::GetModelResponse response, session.client().GetModel(request));
  if (!request.parameters()) return ShowModel(session, response.model());
  if (session.json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  PrintModel(response.model());
  std::printf("\n");
  std::vector<std::vector<std::string>> rows = {{"PARAMETER", "SHAPE", "ROLE", "ELEMENTS"}};
  for (const v1::Parameter& parameter : response.parameters()) {
    rows.push_back({parameter.name(), ShapeText(parameter.shape()), RoleText(parameter.role()),
                    WithCommas(parameter.elements())});
  }
  PrintTable(rows);
  return absl::OkStatus();
}

absl::Status ListModels(const Session& session) {
  TANDEM_ASSIGN_OR_RETURN(const v1::ListModelsResponse response, session.client().ListModels({}));
  if (session.json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {
      {"MODEL", "FORMAT", "STATE", "PARAMETERS", "VERSION", "DEVICE", "PRECISION"}};
  for (const v1::Model& model : response.models()) {
    rows.push_back({model.name(), FormatText(model.format()), StateText(model),
                    WithCommas(model.parameter_count()), std::to_string(model.weights_version()),
                    model.device(), PrecisionText(model.precision())});
    if (!model.error().empty()) rows.back().back() += "  " + model.error();
  }
  PrintTable(rows);
  return absl::OkStatus();
}

absl::Status Status(const Session& session) {
  Client client = session.client();
  TANDEM_ASSIGN_OR_RETURN(const inference::ServerMetadataResponse metadata,
                          client.ServerMetadata({}));
  TANDEM_ASSIGN_OR_RETURN(const inference::ServerReadyResponse ready, client.ServerReady({}));
  if (session.json) {
    PrintJson(metadata);
    PrintJson(ready);
    return absl::OkStatus();
  }
  std::printf("%s %s at %s: %s\n\n", metadata.name().c_str(), metadata.version().c_str(),
              session.server.c_str(), ready.ready() ? "ready" : "not ready");
  return ListModels(session);
}

// Empty: unspecified.
v1::Precision ParsePrecision(const std::string& name) {
  return name == "f32"    ? v1::PRECISION_F32
         : name == "bf16" ? v1::PRECISION_BF16
         : name == "f16"  ? v1::PRECISION_F16
                          : v1::PRECISION_UNSPECIFIED;
}

void AddDevice(CLI::App& app, std::string& device) {
  app.add_option("--device", device,
                 "where the model computes: cpu, cuda:0 ...; default: the server's, or the "
                 "original's for a copy");
}

void AddPrecision(CLI::App& app, std::string& precision) {
  app.add_option("--precision", precision,
                 "what the model computes in (weights are f32): f32, bf16 or f16; default: f32, or "
                 "the original's for a copy")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
}

struct CreateOptions {
  std::string name, onnx, copy_of, decoder, characters_of, precision, device;
  int64_t vocab = 0, layers = 4, heads = 4, kv_heads = 0, hidden = 128, intermediate = 0;
  int64_t positions = 256;
  bool no_bias = false, untied = false;
  uint64_t seed = 0;
};

absl::Status Create(const Session& session, const CreateOptions& o) {
  v1::CreateModelRequest request;
  request.set_model(o.name);
  request.set_seed(o.seed);
  request.set_precision(ParsePrecision(o.precision));
  request.set_device(o.device);
  if (!o.onnx.empty()) {
    TANDEM_ASSIGN_OR_RETURN(*request.mutable_onnx(), ReadFile(o.onnx));
  } else if (!o.copy_of.empty()) {
    request.set_copy_of(o.copy_of);
  } else {
    v1::DecoderConfig& config = *request.mutable_decoder();
    config.set_architecture(o.decoder == "gpt2" ? v1::DecoderConfig::ARCHITECTURE_GPT2
                                                : v1::DecoderConfig::ARCHITECTURE_LLAMA);
    config.set_vocab_size(o.vocab);
    config.set_layers(o.layers);
    config.set_heads(o.heads);
    config.set_kv_heads(o.kv_heads);
    config.set_hidden_size(o.hidden);
    config.set_intermediate_size(o.intermediate);
    config.set_max_positions(o.positions);
    config.set_tie_embeddings(!o.untied);
    if (o.decoder == "gpt2") config.set_bias(!o.no_bias);
    if (!o.characters_of.empty()) {
      TANDEM_ASSIGN_OR_RETURN(*config.mutable_characters(), ReadFile(o.characters_of));
    }
  }
  TANDEM_ASSIGN_OR_RETURN(const v1::CreateModelResponse response,
                          session.client().CreateModel(request));
  return ShowModel(session, response.model());
}

void AddCreate(CLI::App& models, Session& session) {
  auto options = std::make_shared<CreateOptions>();
  CLI::App* create = models.add_subcommand(
      "create", "Make a model: from an ONNX file, a copy, or a decoder with random weights");
  create->add_option("name", options->name, "the new model's name")->required();
  CLI::Option* onnx = create->add_option("--onnx", options->onnx, "an ONNX file");
  CLI::Option* copy = create->add_option("--copy-of", options->copy_of, "a loaded model");
  CLI::Option* decoder =
      create->add_option("--decoder", options->decoder, "a decoder-only transformer")
          ->check(CLI::IsMember({"gpt2", "llama"}));
  onnx->excludes(copy)->excludes(decoder);
  copy->excludes(decoder);
  create->add_option("--layers", options->layers, "layers")->capture_default_str();
  create->add_option("--heads", options->heads, "attention heads")->capture_default_str();
  create->add_option("--kv-heads", options->kv_heads, "key and value heads; 0: as many");
  create->add_option("--hidden", options->hidden, "width")->capture_default_str();
  create->add_option("--intermediate", options->intermediate, "width of the MLP; 0: the usual");
  create->add_option("--positions", options->positions, "longest sequence")->capture_default_str();
  create->add_option("--vocab", options->vocab, "vocabulary size (without --characters-of)");
  create->add_option("--characters-of", options->characters_of,
                     "a text whose characters become the vocabulary");
  create->add_flag("--no-bias", options->no_bias, "gpt2: no biases");
  create->add_flag("--untied", options->untied, "an output matrix apart from the embedding");
  create->add_option("--seed", options->seed, "seed of the initial weights")->capture_default_str();
  AddPrecision(*create, options->precision);
  AddDevice(*create, options->device);
  create->callback([&session, options] {
    session.Run([&]() -> absl::Status {
      if (options->onnx.empty() && options->copy_of.empty() && options->decoder.empty()) {
        return InvalidArgument("give one of --onnx, --copy-of and --decoder");
      }
      return Create(session, *options);
    });
  });
}

}  // namespace

void AddModelCommands(CLI::App& app, Session& session) {
  app.add_subcommand("status", "Whether the server is ready, and its models")->callback([&session] {
    session.Run([&] { return Status(session); });
  });
  CLI::App& models = *app.add_subcommand("models", "List, create, load, save and unload models");
  models.require_subcommand(1);
  models.fallthrough();
  models.add_subcommand("list", "All models")->callback([&session] {
    session.Run([&] { return ListModels(session); });
  });
  AddCreate(models, session);
  const auto add = [&](const char* verb, const char* help, auto call) {
    auto name = std::make_shared<std::string>();
    CLI::App* sub = models.add_subcommand(verb, help);
    sub->add_option("name", *name, "the model's name")->required();
    sub->callback([&session, name, call] { session.Run([&] { return call(*name); }); });
    return sub;
  };
  auto parameters = std::make_shared<bool>(false);
  add("get", "One model, with the hash of its weights",
      [&session, parameters](const std::string& name) {
        v1::GetModelRequest request;
        request.set_model(name);
        request.set_parameters(*parameters);
        return GetModel(session, request);
      })
      ->add_flag("--parameters", *parameters, "and its parameters, with shapes and roles");
  auto precision = std::make_shared<std::string>();
  auto device = std::make_shared<std::string>();
  CLI::App* load = add("load", "Read a model from the server's repository",
                       [&session, precision, device](const std::string& name) {
                         v1::LoadModelRequest request;
                         request.set_model(name);
                         request.set_precision(ParsePrecision(*precision));
                         request.set_device(*device);
                         absl::StatusOr<v1::LoadModelResponse> response =
                             session.client().LoadModel(request);
                         if (!response.ok()) return response.status();
                         return ShowModel(session, response->model());
                       });
  AddPrecision(*load, *precision);
  AddDevice(*load, *device);
  auto force = std::make_shared<bool>(false);
  add("unload", "Drop a model from memory", [&session, force](const std::string& name) {
    v1::UnloadModelRequest request;
    request.set_model(name);
    request.set_force(*force);
    return session.client().UnloadModel(request).status();
  })->add_flag("--force", *force, "even while it is being trained");
  auto save_as = std::make_shared<std::string>();
  add("save", "Write the current weights into the server's repository",
      [&session, save_as](const std::string& name) -> absl::Status {
        v1::SaveModelRequest request;
        request.set_model(name);
        request.set_save_as(*save_as);
        TANDEM_ASSIGN_OR_RETURN(const v1::SaveModelResponse response,
                                session.client().SaveModel(request));
        if (session.json) {
          PrintJson(response);
        } else {
          std::printf("wrote %s (%s)\n", response.path().c_str(), Bytes(response.bytes()).c_str());
        }
        return absl::OkStatus();
      })
      ->add_option("--as", *save_as, "another name in the repository");
}

}  // namespace tandem::command
