#include <chrono>
#include <cstdio>
#include <filesystem>

#include "absl/strings/str_format.h"
#include "client/command/command.h"
#include "engine/formats/npy.h"

namespace tandem::command {
namespace {

struct DatatypeName {
  DType dtype;
  const char* name;
};
// KServe's names.
constexpr DatatypeName kDatatypes[] = {
    {DType::kF32, "FP32"},   {DType::kF64, "FP64"},   {DType::kF16, "FP16"},
    {DType::kBF16, "BF16"},  {DType::kI8, "INT8"},    {DType::kI16, "INT16"},
    {DType::kI32, "INT32"},  {DType::kI64, "INT64"},  {DType::kU8, "UINT8"},
    {DType::kU16, "UINT16"}, {DType::kU32, "UINT32"}, {DType::kU64, "UINT64"},
    {DType::kBool, "BOOL"}};

struct InferOptions {
  std::string model, output_dir;
  std::vector<std::string> inputs;
};

absl::StatusOr<Tensor> OutputTensor(const inference::ModelInferResponse& response, int i) {
  const auto& output = response.outputs(i);
  for (const DatatypeName& known : kDatatypes) {
    if (output.datatype() != known.name) continue;
    TANDEM_ASSIGN_OR_RETURN(
        const Shape shape,
        Shape::Checked({output.shape().data(), static_cast<size_t>(output.shape_size())},
                       SizeOf(known.dtype), output.name()));
    const TensorType type{known.dtype, shape};
    if (i >= response.raw_output_contents_size() ||
        static_cast<int64_t>(response.raw_output_contents(i).size()) != type.bytes()) {
      return Internal("output '", output.name(), "' has the wrong number of bytes");
    }
    Tensor tensor(type);
    const std::string& raw = response.raw_output_contents(i);
    std::copy(raw.begin(), raw.end(), static_cast<char*>(tensor.raw()));
    return tensor;
  }
  return Unimplemented("output '", output.name(), "' has datatype ", output.datatype());
}

std::string Preview(const Tensor& tensor) {
  std::string text;
  const int64_t shown = std::min<int64_t>(tensor.num_elements(), 8);
  for (int64_t i = 0; i < shown; ++i) {
    text += absl::StrFormat("%s%.6g", i > 0 ? " " : "", ElementAsDouble(tensor, i));
  }
  return shown < tensor.num_elements() ? text + " ..." : text;
}

absl::Status Infer(const Session& session, const InferOptions& options) {
  inference::ModelInferRequest request;
  request.set_model_name(options.model);
  for (const std::string& text : options.inputs) {
    TANDEM_ASSIGN_OR_RETURN(const auto named, SplitArgument("--input ", text, "NAME=FILE"));
    TANDEM_ASSIGN_OR_RETURN(const Tensor tensor, ReadTensorFile(named.second));
    auto& input = *request.add_inputs();
    input.set_name(named.first);
    for (const DatatypeName& known : kDatatypes) {
      if (known.dtype == tensor.dtype()) input.set_datatype(known.name);
    }
    for (int64_t dim : tensor.shape()) input.add_shape(dim);
    request.add_raw_input_contents(tensor.raw(), tensor.bytes());
  }
  const auto begin = std::chrono::steady_clock::now();
  TANDEM_ASSIGN_OR_RETURN(const inference::ModelInferResponse response,
                          session.client().ModelInfer(request));
  const double ms =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  if (session.json) PrintJson(response);
  for (int i = 0; i < response.outputs_size(); ++i) {
    TANDEM_ASSIGN_OR_RETURN(const Tensor tensor, OutputTensor(response, i));
    const std::string& name = response.outputs(i).name();
    std::string saved;
    if (!options.output_dir.empty()) {
      TANDEM_ASSIGN_OR_RETURN(const std::string npy, WriteNpy(tensor));
      std::error_code error;
      std::filesystem::create_directories(options.output_dir, error);
      // An output's name comes from the model: no path of its own.
      std::string file = name;
      for (char& c : file) {
        if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.')
          c = '_';
      }
      const std::string path =
          (std::filesystem::path(options.output_dir) / (file + ".npy")).string();
      TANDEM_RETURN_IF_ERROR(WriteFile(path, npy));
      saved = "  -> " + path;
    }
    if (!session.json) {
      std::printf("%s %s = %s%s\n", name.c_str(), tensor.type().ToString().c_str(),
                  Preview(tensor).c_str(), saved.c_str());
    }
  }
  if (!session.json) std::printf("%.2f ms\n", ms);
  return absl::OkStatus();
}

}  // namespace

void AddInferCommand(CLI::App& app, Session& session) {
  auto options = std::make_shared<InferOptions>();
  CLI::App* infer = app.add_subcommand("infer", "One forward pass, through KServe v2");
  infer->add_option("model", options->model, "the model")->required();
  infer->add_option("--input", options->inputs, "NAME=FILE.npy or NAME=FILE.pb (may be repeated)");
  infer->add_option("--output-dir", options->output_dir, "where to write each output as .npy");
  infer->callback([&session, options] { session.Run([&] { return Infer(session, *options); }); });
}

}  // namespace tandem::command
