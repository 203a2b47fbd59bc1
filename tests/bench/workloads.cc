// The work that the product is measured by, in one run with the machine's own limits. Prints a
// table: median time, rate, and the share of the FMA peak. With a server's address (TANDEM_SERVER)
// the forward passes are timed through KServe too.
//
//   workloads [NAME...]     names as printed; none: all
//
// TANDEM_PROFILE=1: also where a training step's time goes, operator by operator.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "client/client.h"
#include "engine/base/threads.h"
#include "engine/formats/onnx.h"
#include "engine/nn/decoder.h"
#include "engine/nn/initialize.h"
#include "engine/sample/generator.h"
#include "engine/train/trainer.h"
#include "tests/bench/probe.h"

namespace tandem::bench {
namespace {

double peak_gflops = 0;

void Report(const char* name, double seconds, double flops, const char* rate_unit, double rate) {
  char share[32] = "";
  if (flops > 0) {
    std::snprintf(share, sizeof(share), "%.2f of FMA peak", flops / seconds / 1e9 / peak_gflops);
  }
  std::printf("%-34s %10.3f ms  %12.1f %-10s %s\n", name, seconds * 1e3, rate, rate_unit, share);
  std::fflush(stdout);
}

bool Wanted(int argc, char** argv, const char* name) {
  if (argc < 2) return true;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], name) == 0) return true;
  }
  return false;
}

std::unique_ptr<Model> Gpt(int64_t layers, int64_t heads, int64_t width, int64_t positions) {
  DecoderConfig c;
  c.architecture = DecoderArchitecture::kGpt2;
  c.vocab_size = 65;
  c.layers = layers;
  c.heads = c.kv_heads = heads;
  c.hidden_size = width;
  c.head_dim = width / heads;
  c.intermediate_size = 4 * width;
  c.max_positions = positions;
  c.tie_embeddings = true;
  c.activation = DecoderActivation::kGelu;
  auto source = DecoderSource::Create(c);
  if (!source.ok()) std::abort();
  return std::make_unique<Model>("gpt", *source, InitializeParameters(**source, 1));
}

std::vector<int32_t> Tokens(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& t : tokens) t = static_cast<int32_t>(random() % 65);
  return tokens;
}

// Multiply-adds of a decoder's training step: forward once, backward twice; causal attention.
double StepFlops(int64_t layers, int64_t width, int64_t block, int64_t batch) {
  const auto n = static_cast<double>(batch * block);
  const auto d = static_cast<double>(width);
  const double linear = n * (static_cast<double>(layers) * 12 * d * d + d * 65);
  const double attention = static_cast<double>(layers) * n * static_cast<double>(block + 1) * d;
  return 3 * 2 * (linear + attention);
}

void TrainingStep(const char* name, int64_t layers, int64_t heads, int64_t width, int64_t block,
                  int64_t batch) {
  auto model = Gpt(layers, heads, width, block);
  OptimizerOptions optimizer;
  optimizer.max_grad_norm = 1;
  auto trainer = Trainer::Create(model.get(), {}, optimizer, {});
  if (!trainer.ok()) std::abort();
  Batch data;
  for (int64_t i = 0; i < batch; ++i) {
    const auto seed = static_cast<uint32_t>(i);
    data.sequences.push_back(
        {.tokens = Tokens(block, seed), .targets = Tokens(block, seed + 100), .weights = {}});
  }
  const double seconds = MedianSeconds([&] {
    if (!(*trainer)->ForwardBackward(data).ok() || !(*trainer)->OptimStep().ok()) std::abort();
  });
  Report(name, seconds, StepFlops(layers, width, block, batch), "tokens/s",
         static_cast<double>(batch * block) / seconds);
  if (std::getenv("TANDEM_PROFILE") == nullptr) return;
  PlanProfile profile;
  model->plans().set_profile(&profile);
  constexpr int kRuns = 20;
  for (int i = 0; i < kRuns; ++i) {
    if (!(*trainer)->ForwardBackward(data).ok() || !(*trainer)->OptimStep().ok()) std::abort();
  }
  std::printf("%s", profile.ToString(kRuns).c_str());
}

void Decode(const char* name, int64_t sequences) {
  auto model = Gpt(6, 6, 384, 256);
  const double seconds = MedianSeconds(
      [&] {
        auto generator = Generator::Create(model.get(), {});
        if (!generator.ok()) std::abort();
        for (int64_t i = 0; i < sequences; ++i) {
          SamplingOptions options;
          options.max_tokens = 200;
          options.seed = static_cast<uint64_t>(i);
          if (!(*generator)
                   ->Add({1, 2, 3}, options,
                         [](const absl::Status&, const SampledToken&) { return true; })
                   .ok()) {
            std::abort();
          }
        }
        while ((*generator)->HasWork()) (*generator)->Step();
      },
      3);
  const auto tokens = static_cast<double>(sequences * 200);
  Report(name, seconds, 0, "tokens/s", tokens / seconds);
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void OnnxForward(const std::string& name) {
  const char* material = std::getenv("TANDEM_MATERIAL");
  const std::string path = std::string(material != nullptr ? material : "../shared/material") +
                           "/models/" + name + "/model.onnx";
  if (!std::filesystem::exists(path)) {
    std::printf("%-34s skipped: %s is not there\n", name.c_str(), path.c_str());
    return;
  }
  const std::string bytes = ReadAll(path);
  auto loaded = LoadOnnx(bytes);
  if (!loaded.ok()) {
    std::printf("%-34s %s\n", name.c_str(), loaded.status().ToString().c_str());
    return;
  }
  Model model(name, loaded->source, std::move(loaded->parameters));
  std::vector<Tensor> tensors;
  std::vector<std::pair<std::string, const Tensor*>> inputs;
  for (const IoSpec& spec : model.source().inputs()) {
    std::vector<int64_t> dims = spec.dims;
    for (int64_t& d : dims) d = d < 0 ? 1 : d;
    tensors.push_back(Tensor::Zeros({spec.dtype, Shape(std::span<const int64_t>(dims))}));
    std::mt19937 random(1);
    if (spec.dtype == DType::kF32) {
      for (float& x : tensors.back().data<float>()) x = static_cast<float>(random() % 1000) / 1000;
    }
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    inputs.emplace_back(model.source().inputs()[i].name, &tensors[i]);
  }
  const double seconds = MedianSeconds([&] {
    if (!model.Forward(inputs).ok()) std::abort();
  });
  Report(name.c_str(), seconds, 0, "passes/s", 1 / seconds);
  const char* server = std::getenv("TANDEM_SERVER");
  if (server == nullptr) return;
  Client client(server);
  v1::CreateModelRequest create;
  create.set_model("bench-" + name);
  create.set_onnx(bytes);
  (void)client.CreateModel(create);
  inference::ModelInferRequest request;
  request.set_model_name("bench-" + name);
  for (size_t i = 0; i < tensors.size(); ++i) {
    auto& input = *request.add_inputs();
    input.set_name(model.source().inputs()[i].name);
    input.set_datatype("FP32");
    for (int64_t d : tensors[i].shape()) input.add_shape(d);
    request.add_raw_input_contents(tensors[i].raw(), tensors[i].bytes());
  }
  const double remote = MedianSeconds([&] {
    const auto response = client.ModelInfer(request);
    if (!response.ok()) {
      std::printf("%s\n", response.status().ToString().c_str());
      std::abort();
    }
  });
  Report((name + ", through KServe").c_str(), remote, 0, "passes/s", 1 / remote);
}

}  // namespace
}  // namespace tandem::bench

int main(int argc, char** argv) {
  using namespace tandem::bench;  // NOLINT(google-build-using-namespace): the program's own
  tandem::EnsureThreadPolicy(argv);
  peak_gflops = FmaPeakGflops();
  std::printf("%d threads, FMA peak %.1f GFLOP/s, copy %.1f GB/s\n\n", tandem::ThreadCount(),
              peak_gflops, CopyGigabytesPerSecond());
  if (Wanted(argc, argv, "gpt_small")) TrainingStep("gpt_small", 4, 4, 128, 64, 12);
  if (Wanted(argc, argv, "gpt_384")) TrainingStep("gpt_384", 6, 6, 384, 256, 8);
  if (Wanted(argc, argv, "decode_1")) Decode("decode_1", 1);
  if (Wanted(argc, argv, "decode_16")) Decode("decode_16", 16);
  for (const char* name : {"mnist-8", "super_resolution"}) {
    if (Wanted(argc, argv, name)) OnnxForward(name);
  }
  std::printf("\nFMA peak again: %.1f GFLOP/s\n", FmaPeakGflops());
  return 0;
}
