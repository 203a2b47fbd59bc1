// tandem example upsampling: one small super-resolution net after another, alike but for how they
// upsample, each trained over the wire and measured against plain bicubic interpolation.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numbers>
#include <random>

#include "absl/strings/str_format.h"
#include "client/command/command.h"
#include "engine/formats/onnx_writer.h"

namespace tandem::command {
namespace {

struct UpsamplingOptions {
  int64_t steps = 200, batch = 16, channels = 16, size = 48, images = 32;
  double lr = 3e-3;
  uint64_t seed = 1;
  bool keep = false;
};

// Grey images (N, 1, size, size) in [0, 1] and the same at half the size, each pixel the mean of
// four.
struct Images {
  int64_t count = 0, size = 0;
  std::vector<float> high, low;
};

// How far inside a shape (positive) or outside it a point lies, in pixels; drawn with a soft edge.
float Coverage(double inside) { return static_cast<float>(std::clamp(inside + 0.5, 0.0, 1.0)); }

class Painter {
 public:
  explicit Painter(uint64_t seed) : random_(seed) {}

  // A grating, two discs and a few strokes such as letters have.
  std::vector<float> Paint(int64_t size) {
    std::vector<float> image(size * size);
    const auto extent = static_cast<double>(size);
    const double angle = Uniform(0, std::numbers::pi), wave = Uniform(4, 12);
    const double phase = Uniform(0, 2 * std::numbers::pi), contrast = Uniform(0.05, 0.25);
    Draw(image, size, 1, [&](double x, double y) {
      const double along = x * std::cos(angle) + y * std::sin(angle);
      return 0.5 + contrast * std::sin(2 * std::numbers::pi * along / wave + phase);
    });
    for (int i = 0; i < 2; ++i) {
      const double cx = Uniform(0, extent), cy = Uniform(0, extent), r = Uniform(3, extent / 4);
      Blend(image, size, Uniform(0, 1),
            [&](double x, double y) { return r - std::hypot(x - cx, y - cy); });
    }
    for (int i = 0; i < 5; ++i) {
      const double ax = Uniform(0, extent), ay = Uniform(0, extent);
      const double bx = ax + Uniform(-12, 12), by = ay + Uniform(-12, 12);
      const double width = Uniform(0.6, 1.6);
      Blend(image, size, Uniform(0, 1) < 0.5 ? 0.05 : 0.95, [&](double x, double y) {
        const double dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy + 1e-9;
        const double t = std::clamp(((x - ax) * dx + (y - ay) * dy) / length, 0.0, 1.0);
        return width - std::hypot(x - ax - t * dx, y - ay - t * dy);
      });
    }
    return image;
  }

  Images Make(int64_t count, int64_t size) {
    Images images{.count = count, .size = size, .high = {}, .low = {}};
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<float> image = Paint(size);
      images.high.insert(images.high.end(), image.begin(), image.end());
      for (int64_t y = 0; y < size; y += 2) {
        for (int64_t x = 0; x < size; x += 2) {
          const float* at = &image[y * size + x];
          images.low.push_back((at[0] + at[1] + at[size] + at[size + 1]) / 4);
        }
      }
    }
    return images;
  }

 private:
  double Uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(random_() >> 11) * 0x1p-53;
  }
  template <class Value>
  static void Draw(std::vector<float>& image, int64_t size, float weight, Value value) {
    for (int64_t i = 0; i < size * size; ++i) {
      const double x = static_cast<double>(i % size) + 0.5, y = static_cast<double>(i / size) + 0.5;
      image[i] += weight * (static_cast<float>(value(x, y)) - image[i]);
    }
  }
  template <class Inside>
  static void Blend(std::vector<float>& image, int64_t size, double grey, Inside inside) {
    for (int64_t i = 0; i < size * size; ++i) {
      const double x = static_cast<double>(i % size) + 0.5, y = static_cast<double>(i / size) + 0.5;
      image[i] += Coverage(inside(x, y)) * (static_cast<float>(grey) - image[i]);
    }
  }

  std::mt19937_64 random_;
};

// The nets: features of the small image, an upsampler, and the result added to bicubic
// interpolation.
class NetWriter {
 public:
  NetWriter(const UpsamplingOptions& o, std::string_view upsampler)
      : channels_(o.channels), random_(o.seed), onnx_(13) {
    onnx_.Input("x", {-1, 1, o.size / 2, o.size / 2});
    onnx_.Output("y", {-1, 1, o.size, o.size});
    onnx_.Weights("scales", {4}, {1, 1, 2, 2});
    if (upsampler == "bicubic interpolation") {
      Resize("x", "y", "cubic");
      return;
    }
    Resize("x", "interpolated", "cubic");
    Upsample(upsampler);
    onnx_.Node("Add", {"interpolated", "detail"}, {"y"});
  }
  std::string Bytes() const { return onnx_.Bytes(); }

 private:
  void Upsample(std::string_view upsampler) {
    const int64_t c = channels_;
    if (upsampler == "max unpooling") {
      // Maxima of the large image say where the small image's features go back to.
      Conv("interpolated", "wide", 1, c, true);
      onnx_.Node("MaxPool", {"wide"}, {"pooled", "places"},
                 {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}});
      Conv("pooled", "features", c, c, true);
      onnx_.Node("MaxUnpool", {"features", "places"}, {"up"},
                 {{"kernel_shape", Ints{2, 2}}, {"strides", Ints{2, 2}}});
      return Conv("up", "detail", c, 1, false);
    }
    Conv("x", "first", 1, c, true);
    Conv("first", "features", c, c, true);
    if (upsampler == "pixel shuffle") {
      Conv("features", "folded", c, 4, false);
      onnx_.Node("DepthToSpace", {"folded"}, {"detail"},
                 {{"blocksize", int64_t{2}}, {"mode", std::string("CRD")}});
    } else if (upsampler == "transposed convolution") {
      Random("detail_w", {c, 1, 4, 4}, 4 * c, 0.1);
      onnx_.Weights("detail_b", {1}, {0});
      onnx_.Node(
          "ConvTranspose", {"features", "detail_w", "detail_b"}, {"detail"},
          {{"kernel_shape", Ints{4, 4}}, {"strides", Ints{2, 2}}, {"pads", Ints{1, 1, 1, 1}}});
    } else {
      Resize("features", "up",
             upsampler == "nearest"    ? "nearest"
             : upsampler == "bilinear" ? "linear"
                                       : "cubic");
      Conv("up", "detail", c, 1, false);
    }
  }

  using Ints = std::vector<int64_t>;

  void Resize(const std::string& from, const std::string& to, const std::string& mode) {
    std::vector<OnnxWriter::Attribute> attributes = {{"mode", mode}};
    if (mode == "nearest") {
      attributes.emplace_back("coordinate_transformation_mode", std::string("asymmetric"));
      attributes.emplace_back("nearest_mode", std::string("floor"));
    }
    onnx_.Node("Resize", {from, "", "scales"}, {to}, attributes);
  }
  // 3 x 3, and a ReLU for features; what makes the result starts small, as it is added to one.
  void Conv(const std::string& from, const std::string& to, int64_t in, int64_t out, bool relu) {
    Random(to + "_w", {out, in, 3, 3}, 9 * in, relu ? 1 : 0.1);
    onnx_.Weights(to + "_b", {out}, std::vector<float>(out));
    const std::string result = relu ? to + "_linear" : to;
    onnx_.Node("Conv", {from, to + "_w", to + "_b"}, {result},
               {{"kernel_shape", Ints{3, 3}}, {"pads", Ints{1, 1, 1, 1}}});
    if (relu) onnx_.Node("Relu", {result}, {to});
  }
  // He et al. 2015, times `gain`.
  void Random(const std::string& name, const Ints& dims, int64_t fan_in, double gain) {
    int64_t count = 1;
    for (const int64_t dim : dims) count *= dim;
    std::vector<float> values(count);
    const double scale = gain * std::sqrt(2 / static_cast<double>(fan_in));
    for (float& v : values) {
      // Box and Muller's normal, the same with every standard library.
      const double u = static_cast<double>((random_() >> 11) + 1) * 0x1p-53;
      const double w = static_cast<double>(random_() >> 11) * 0x1p-53;
      v = static_cast<float>(scale * std::sqrt(-2 * std::log(u)) *
                             std::cos(2 * std::numbers::pi * w));
    }
    onnx_.Weights(name, dims, values);
  }

  int64_t channels_;
  std::mt19937_64 random_;
  OnnxWriter onnx_;
};

void AddTensor(v1::Batch* batch, const char* name, const std::vector<float>& values, int64_t count,
               int64_t size) {
  v1::NamedTensor* named = batch->add_tensors();
  named->set_name(name);
  v1::Tensor* tensor = named->mutable_tensor();
  tensor->set_dtype(v1::DATA_TYPE_F32);
  for (const int64_t dim : {count, int64_t{1}, size, size}) tensor->add_shape(dim);
  tensor->set_data(values.data(), values.size() * sizeof(float));
}

// What one net came to.
struct Result {
  std::string upsampler;
  int64_t parameters = 0;
  double psnr = 0, step_ms = 0, infer_ms = 0;
};

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// 10 log10(1 / mean squared error) over the images, in dB, through KServe.
absl::Status Measure(Client& client, const std::string& model, const Images& images,
                     Result& result) {
  inference::ModelInferRequest request;
  request.set_model_name(model);
  auto* input = request.add_inputs();
  input->set_name("x");
  input->set_datatype("FP32");
  for (const int64_t dim : {images.count, int64_t{1}, images.size / 2, images.size / 2}) {
    input->add_shape(dim);
  }
  request.add_raw_input_contents(images.low.data(), images.low.size() * sizeof(float));
  inference::ModelInferResponse response;
  for (int i = 0; i < 2; ++i) {  // the first pass plans
    const auto begin = std::chrono::steady_clock::now();
    TANDEM_ASSIGN_OR_RETURN(response, client.ModelInfer(request));
    result.infer_ms = SecondsSince(begin) * 1e3;
  }
  if (response.raw_output_contents_size() != 1 ||
      response.raw_output_contents(0).size() != images.high.size() * sizeof(float)) {
    return InvalidArgument("'", model, "' answered with something else than one image each");
  }
  std::vector<float> y(images.high.size());
  std::memcpy(y.data(), response.raw_output_contents(0).data(), y.size() * sizeof(float));
  double sum = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const double d = static_cast<double>(y[i]) - static_cast<double>(images.high[i]);
    sum += d * d;
  }
  result.psnr = -10 * std::log10(sum / static_cast<double>(y.size()));
  return absl::OkStatus();
}

absl::Status TrainNet(Client& client, const std::string& model, const UpsamplingOptions& o,
                      Progress& progress, int64_t done, Result& result) {
  v1::StartTrainingRequest start;
  start.set_model(model);
  start.mutable_objective()->set_loss(v1::LOSS_MSE);
  start.mutable_optimizer()->set_kind(v1::OPTIMIZER_KIND_ADAM);
  TANDEM_RETURN_IF_ERROR(client.StartTraining(start).status());
  Painter painter(o.seed + 1);
  double seconds = 0;
  for (int64_t step = 0; step < o.steps; ++step) {
    const Images images = painter.Make(o.batch, o.size);
    v1::TrainStepRequest request;
    request.set_model(model);
    AddTensor(request.mutable_batch(), "x", images.low, o.batch, o.size / 2);
    AddTensor(request.mutable_batch(), "target", images.high, o.batch, o.size);
    // Down to zero along half a cosine.
    const double share = static_cast<double>(step) / static_cast<double>(o.steps);
    request.mutable_parameters()->set_learning_rate(o.lr * 0.5 *
                                                    (1 + std::cos(std::numbers::pi * share)));
    TANDEM_ASSIGN_OR_RETURN(const v1::TrainStepResponse response, client.TrainStep(request));
    seconds += response.forward_backward().forward_backward_seconds() +
               response.optim().optimizer_seconds();
    progress.Update(done + step + 1, absl::StrFormat("%s  loss %.5f", result.upsampler,
                                                     response.forward_backward().loss()));
  }
  result.step_ms = o.steps == 0 ? 0 : seconds / static_cast<double>(o.steps) * 1e3;
  v1::StopTrainingRequest stop;
  stop.set_model(model);
  return client.StopTraining(stop).status();
}

void PrintResults(const std::vector<Result>& results, bool json) {
  if (json) {
    for (const Result& r : results) {
      std::printf(
          "{\"upsampler\":\"%s\",\"parameters\":%lld,\"psnr_db\":%.3f,\"step_ms\":%.3f,"
          "\"infer_ms\":%.3f}\n",
          r.upsampler.c_str(), static_cast<long long>(r.parameters), r.psnr, r.step_ms, r.infer_ms);
    }
    return;
  }
  std::vector<std::vector<std::string>> rows = {
      {"UPSAMPLER", "PARAMETERS", "PSNR dB", "GAIN dB", "ms/STEP", "ms/INFER"}};
  for (const Result& r : results) {
    rows.push_back({r.upsampler, WithCommas(r.parameters), absl::StrFormat("%.2f", r.psnr),
                    absl::StrFormat("%+.2f", r.psnr - results[0].psnr),
                    r.step_ms == 0 ? "-" : absl::StrFormat("%.2f", r.step_ms),
                    absl::StrFormat("%.2f", r.infer_ms)});
  }
  PrintTable(rows);
}

absl::Status RunUpsampling(const Session& session, const UpsamplingOptions& o) {
  if (o.size % 2 != 0) return InvalidArgument("--size ", o.size, " is odd");
  Client client = session.client();
  const Images held_out = Painter(o.seed).Make(o.images, o.size);
  const std::vector<std::string> upsamplers = {
      "bicubic interpolation",  "nearest",      "bilinear", "bicubic", "pixel shuffle",
      "transposed convolution", "max unpooling"};
  Progress progress(o.steps * (static_cast<int64_t>(upsamplers.size()) - 1), "step");
  std::vector<Result> results;
  for (const std::string& upsampler : upsamplers) {
    Result result{.upsampler = upsampler};
    std::string model = "example-upsampling-" + upsampler;
    for (char& c : model) c = c == ' ' ? '-' : c;
    v1::CreateModelRequest create;
    create.set_model(model);
    create.set_onnx(NetWriter(o, upsampler).Bytes());
    TANDEM_ASSIGN_OR_RETURN(const v1::CreateModelResponse created, client.CreateModel(create));
    result.parameters = created.model().parameter_count();
    absl::Status status;
    if (!results.empty()) {
      const int64_t done = o.steps * static_cast<int64_t>(results.size() - 1);
      status = TrainNet(client, model, o, progress, done, result);
    }
    if (status.ok()) status = Measure(client, model, held_out, result);
    if (!o.keep || !status.ok()) {
      v1::UnloadModelRequest unload;
      unload.set_model(model);
      unload.set_force(true);  // it is not saved anywhere
      status.Update(client.UnloadModel(unload).status());
    }
    if (!status.ok()) {
      progress.Finish();
      return Annotate(status, upsampler);
    }
    results.push_back(std::move(result));
  }
  progress.Finish();
  PrintResults(results, session.json);
  return absl::OkStatus();
}

}  // namespace

void AddExampleCommands(CLI::App& app, Session& session) {
  CLI::App* example = app.add_subcommand("example", "Small complete uses of a server");
  example->require_subcommand(1);
  auto o = std::make_shared<UpsamplingOptions>();
  CLI::App* command = example->add_subcommand(
      "upsampling",
      "Train a super-resolution net with each upsampler in turn, on images made here, and compare");
  command->add_option("--steps", o->steps, "optimizer steps of each net")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--batch", o->batch, "images a step")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--channels", o->channels, "of the features")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--size", o->size, "of the large images, even, in pixels")
      ->check(CLI::Range(8, 1024))
      ->capture_default_str();
  command->add_option("--images", o->images, "held out to measure on")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--lr", o->lr, "highest learning rate")->capture_default_str();
  command->add_option("--seed", o->seed, "of weights and images")->capture_default_str();
  command->add_flag("--keep", o->keep, "leave the trained models on the server");
  command->callback([&session, o] { session.Run([&] { return RunUpsampling(session, *o); }); });
}

}  // namespace tandem::command
