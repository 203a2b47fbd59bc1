// The built server and command line as processes, over the network: what a user does.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "client/client.h"
#include "engine/formats/npy.h"
#include "engine/formats/onnx_tensor.h"
#include "tests/engine/material.h"

namespace tandem {
namespace {

std::string Binary(const std::string& path) {
  const char* folder = std::getenv("TANDEM_BINARY_DIR");
  return StrCat(folder != nullptr ? folder : "build/release", "/", path);
}

// A child process with its output in a file; killed with the object if it still runs.
class Process {
 public:
  Process(std::vector<std::string> words, const std::string& output) {
    pid_ = fork();
    if (pid_ == 0) {
      if (std::freopen(output.c_str(), "w", stdout) == nullptr) _exit(126);
      dup2(1, 2);
      std::vector<char*> arguments;
      for (std::string& word : words) arguments.push_back(word.data());
      arguments.push_back(nullptr);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
  }
  void Signal(int number) const { kill(pid_, number); }
  // Exit status, or 128 + the signal that ended it.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
};

class ProcessTest : public testing::Test {
 protected:
  void SetUp() override { StartServer(); }

  void StartServer(const std::vector<std::string>& options = {}) {
    log_ = folder_ / "server.log";
    std::filesystem::create_directory(folder_ / "models");
    std::vector<std::string> words = {Binary("server/tandem-server"),
                                      "--models",
                                      folder_ / "models",
                                      "--listen",
                                      "127.0.0.1:0",
                                      "--metrics-listen",
                                      "127.0.0.1:0"};
    words.insert(words.end(), options.begin(), options.end());
    server_ = std::make_unique<Process>(words, log_);
    address_.clear();
    for (int i = 0; i < 300 && address_.empty(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      address_ = Logged("listening on ");
    }
    metrics_ = Logged("metrics on http://");
    ASSERT_FALSE(address_.empty()) << ReadFile(log_);
    client_ = std::make_unique<Client>(address_);
  }
  // What the log says behind `text`, up to a space, a slash or the line's end.
  std::string Logged(const std::string& text) const {
    if (!std::filesystem::exists(log_)) return "";
    const std::string log = ReadFile(log_);
    const size_t at = log.find(text);
    if (at == std::string::npos || log.find('\n', at) == std::string::npos) return "";
    const size_t begin = at + text.size();
    return log.substr(begin, log.find_first_of(" /\n", begin) - begin);
  }

  int Run(std::vector<std::string> words, std::string* output) {
    words.insert(words.begin(), {Binary("client/tandem"), "--server", address_});
    const std::string file = folder_ / "output.txt";
    const int status = Process(std::move(words), file).Wait();
    *output = ReadFile(file);
    return status;
  }

  // The value of a sample of the metrics page; NaN if there is none.
  double Metric(const std::string& sample) const {
    const size_t colon = metrics_.find(':');
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(std::stoi(metrics_.substr(colon + 1))));
    inet_pton(AF_INET, metrics_.substr(0, colon).c_str(), &to.sin_addr);
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0) return NAN;
    const std::string request = "GET /metrics HTTP/1.0\r\nConnection: close\r\n\r\n";
    std::string page;
    char buffer[4096];
    if (write(fd, request.data(), request.size()) > 0) {
      for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) page.append(buffer, n);
    }
    close(fd);
    std::istringstream lines(page);
    for (std::string line; std::getline(lines, line);) {
      if (line.rfind(sample + " ", 0) == 0) return std::stod(line.substr(sample.size() + 1));
    }
    return NAN;
  }

  void CreateCharacters() {
    v1::CreateModelRequest request;
    request.set_model("chars");
    request.set_seed(1);
    v1::DecoderConfig& config = *request.mutable_decoder();
    config.set_architecture(v1::DecoderConfig::ARCHITECTURE_LLAMA);
    config.set_layers(4);
    config.set_heads(4);
    config.set_kv_heads(2);
    config.set_hidden_size(64);
    config.set_max_positions(4096);
    config.set_characters("abcdefghijklmnopqrstuvwxyz .\n");
    const auto response = client_->CreateModel(request);
    ASSERT_TRUE(response.ok()) << response.status();
  }

  TemporaryFolder folder_;
  std::string log_, address_, metrics_;
  std::unique_ptr<Process> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(ProcessTest, TrainsIn16BitsFromTheCommandLine) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "the quick brown fox jumps over the lazy dog.\n";
  WriteFile(folder_ / "text.txt", text);
  std::string output;
  ASSERT_EQ(Run({"models", "create", "half", "--decoder", "llama", "--layers", "1", "--heads", "2",
                 "--hidden", "32", "--positions", "32", "--characters-of", folder_ / "text.txt",
                 "--precision", "f16"},
                &output),
            0)
      << output;
  EXPECT_NE(output.find("f16"), std::string::npos) << output;
  ASSERT_EQ(Run({"--json", "train", "half", "--text", folder_ / "text.txt", "--steps", "3",
                 "--optimizer", "sgd", "--momentum", "0.9", "--nesterov", "--lr", "0.1",
                 "--loss-scaling", "static", "--loss-scale", "512"},
                &output),
            0)
      << output;
  EXPECT_NE(output.find("\"loss_scale\":512"), std::string::npos) << output;
  v1::GetTrainingRequest get;
  get.set_model("half");
  const auto training = client_->GetTraining(get);
  ASSERT_TRUE(training.ok()) << training.status();
  EXPECT_EQ(training->training().loss_scaling().mode(), v1::LOSS_SCALING_MODE_STATIC);
  EXPECT_EQ(training->training().loss_scaling().initial_scale(), 512);
  EXPECT_EQ(training->training().optimizer().kind(), v1::OPTIMIZER_KIND_SGD);
  EXPECT_EQ(training->training().optimizer().parameters().momentum(), 0.9);
  EXPECT_TRUE(training->training().optimizer().nesterov());
  ASSERT_EQ(Run({"models", "save", "half"}, &output), 0) << output;
  ASSERT_EQ(Run({"models", "unload", "half", "--force"}, &output), 0) << output;
  ASSERT_EQ(Run({"models", "load", "half", "--precision", "bf16"}, &output), 0) << output;
  EXPECT_NE(output.find("bf16"), std::string::npos) << output;
  ASSERT_EQ(Run({"status"}, &output), 0) << output;
  EXPECT_NE(output.find("bf16"), std::string::npos) << output;
}

TEST_F(ProcessTest, TrainsAndSamplesFromTheCommandLine) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += "the quick brown fox jumps over the lazy dog.\n";
  WriteFile(folder_ / "text.txt", text);
  std::string output;
  ASSERT_EQ(Run({"models", "create", "fox", "--decoder", "gpt2", "--layers", "2", "--heads", "2",
                 "--hidden", "64", "--positions", "64", "--characters-of", folder_ / "text.txt",
                 "--seed", "3"},
                &output),
            0)
      << output;
  ASSERT_EQ(Run({"train", "fox", "--text", folder_ / "text.txt", "--steps", "150", "--lr", "3e-3",
                 "--decay-vectors", "--no-decay-role", "bias", "--no-decay-role", "norm",
                 "--no-decay", "transformer.w*"},
                &output),
            0)
      << output;
  ASSERT_EQ(
      Run({"generate", "fox", "--prompt", "the quick", "--max-tokens", "35", "--temperature", "0"},
          &output),
      0)
      << output;
  EXPECT_EQ(output, "the quick brown fox jumps over the lazy dog.\n") << "it has learnt its text";
  v1::GetTrainingRequest get;
  get.set_model("fox");
  const auto training = client_->GetTraining(get);
  ASSERT_TRUE(training.ok()) << training.status();
  const v1::Optimizer& optimizer = training->training().optimizer();
  EXPECT_TRUE(optimizer.decay_vectors());
  ASSERT_EQ(optimizer.no_decay_roles_size(), 2);
  EXPECT_EQ(optimizer.no_decay_roles(0), v1::PARAMETER_ROLE_BIAS);
  EXPECT_EQ(optimizer.no_decay_roles(1), v1::PARAMETER_ROLE_NORM);
  ASSERT_EQ(optimizer.no_decay_size(), 1);
  EXPECT_EQ(optimizer.no_decay(0), "transformer.w*");
  // The linear layers of both blocks: 64 x (192 + 64 + 256 + 256).
  EXPECT_EQ(training->training().decayed_parameters(), 2 * 64 * 768);
  ASSERT_EQ(Run({"--json", "score", "fox", "--text", "the quick"}, &output), 0) << output;
  const auto score = nlohmann::json::parse(output);
  EXPECT_EQ(score["sequences"][0]["tokens"].size(), 9u);
  EXPECT_EQ(score["weights_version"], "151");
  ASSERT_EQ(Run({"models", "save", "fox"}, &output), 0) << output;
  ASSERT_EQ(Run({"models", "unload", "fox", "--force"}, &output), 0) << output;
  EXPECT_EQ(Run({"generate", "fox", "--prompt", "the"}, &output), 1);
  EXPECT_NE(output.find("NOT_FOUND"), std::string::npos) << output;
  ASSERT_EQ(Run({"models", "load", "fox"}, &output), 0) << output;
  ASSERT_EQ(
      Run({"generate", "fox", "--prompt", "the quick", "--max-tokens", "10", "--temperature", "0"},
          &output),
      0)
      << output;
  EXPECT_EQ(output, "the quick brown fox\n") << "saved and read again";
}

// The CUDA kernels, emulated on the CPU: training, generation and scoring through the same
// commands; the weights move between devices by way of a file.
TEST_F(ProcessTest, TrainsAndSamplesOnAnEmulatedGpu) {
  const char* const emulated = std::getenv("TANDEM_CUDA_EMULATED");
  if (emulated == nullptr) GTEST_SKIP() << "TANDEM_CUDA_EMULATED is not set: CTest sets it";
  server_ = nullptr;
  setenv("TANDEM_CUDA_LIBRARY", emulated, 1);
  StartServer({"--device", "cuda:0"});
  unsetenv("TANDEM_CUDA_LIBRARY");
  WriteFile(folder_ / "text.txt", "abababababababababababababababababababababababababababababab");
  std::string output;
  ASSERT_EQ(Run({"models", "create", "ab", "--decoder", "llama", "--layers", "2", "--heads", "2",
                 "--hidden", "16", "--positions", "32", "--characters-of", folder_ / "text.txt",
                 "--seed", "3"},
                &output),
            0)
      << output;
  ASSERT_EQ(Run({"train", "ab", "--text", folder_ / "text.txt", "--steps", "12", "--lr", "3e-2",
                 "--batch", "2", "--block", "16", "--validation", "0", "--warmup", "1"},
                &output),
            0)
      << output;
  ASSERT_EQ(Run({"generate", "ab", "--prompt", "aba", "--seed", "5", "--max-tokens", "12",
                 "--temperature", "0.5"},
                &output),
            0)
      << output;
  EXPECT_NE(output.find("babab"), std::string::npos) << output << " after learning abababab";
  ASSERT_EQ(Run({"models", "get", "ab"}, &output), 0) << output;
  EXPECT_NE(output.find("cuda:0"), std::string::npos) << output;
  const auto described = [&](const std::string& name) {
    v1::GetModelRequest get;
    get.set_model(name);
    const auto response = client_->GetModel(get);
    EXPECT_TRUE(response.ok()) << response.status();
    return response.ok() ? response->model() : v1::Model();
  };
  const std::string hash = described("ab").weights_hash();
  ASSERT_EQ(Run({"models", "create", "copy", "--copy-of", "ab", "--device", "cpu"}, &output), 0)
      << output;
  EXPECT_EQ(described("copy").device(), "cpu");
  EXPECT_EQ(described("copy").weights_hash(), hash);
  EXPECT_EQ(Run({"models", "create", "no", "--copy-of", "ab", "--device", "cuda:7"}, &output), 1);
  EXPECT_NE(output.find("the driver shows 1 CUDA devices"), std::string::npos) << output;
  ASSERT_EQ(Run({"models", "save", "ab"}, &output), 0) << output;
  server_ = nullptr;
  StartServer();
  EXPECT_EQ(described("ab").device(), "cpu");
  EXPECT_EQ(described("ab").weights_hash(), hash);
}

TEST_F(ProcessTest, ADeviceThatIsNotThereSaysWhy) {
  std::string output;
  const std::string file = folder_ / "output.txt";
  const auto start = [&](const std::string& device) {
    const int status =
        Process({Binary("server/tandem-server"), "--device", device, "--listen", "127.0.0.1:0"},
                file)
            .Wait();
    output = ReadFile(file);
    return status;
  };
  EXPECT_EQ(start("gpu"), 1);
  EXPECT_NE(output.find("device 'gpu' is unknown: expected 'cpu' or 'cuda:0'"), std::string::npos)
      << output;
  // No machine has so many.
  EXPECT_EQ(start("cuda:4096"), 1);
  EXPECT_NE(output.find("device cuda:4096"), std::string::npos) << output;
  setenv("TANDEM_CUDA_LIBRARY", "/nowhere/libtandem_cuda.so", 1);
  EXPECT_EQ(start("cuda:0"), 1);
  unsetenv("TANDEM_CUDA_LIBRARY");
  EXPECT_NE(output.find("the CUDA library cannot be loaded (/nowhere/libtandem_cuda.so"),
            std::string::npos)
      << output;
}

// A row of the table for each upsampler, and every option heard.
TEST_F(ProcessTest, TheUpsamplingExampleTrainsEveryNet) {
  std::string output;
  ASSERT_EQ(Run({"--json", "example", "upsampling", "--steps", "30", "--batch", "4", "--channels",
                 "4", "--size", "16", "--images", "8", "--seed", "3"},
                &output),
            0)
      << output;
  std::istringstream lines(output);
  std::vector<nlohmann::json> rows;
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind("{", 0) == 0) rows.push_back(nlohmann::json::parse(line));
  }
  ASSERT_EQ(rows.size(), 7u) << output;
  EXPECT_EQ(rows[0]["upsampler"], "bicubic interpolation");
  EXPECT_EQ(rows[0]["parameters"], 0);
  for (size_t i = 1; i < rows.size(); ++i) {
    EXPECT_GT(rows[i]["parameters"], 200) << output;
    EXPECT_GT(rows[i]["step_ms"], 0) << output;
    // The nets start near plain interpolation, and learn.
    EXPECT_GT(rows[i]["psnr_db"].get<double>(), rows[0]["psnr_db"].get<double>() - 1) << output;
  }
  EXPECT_GT(rows[4]["psnr_db"].get<double>(), rows[0]["psnr_db"].get<double>()) << output;
  // Nothing stays behind unless --keep says so.
  const auto listed = client_->ListModels({});
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ(listed->models_size(), 0);
  EXPECT_EQ(Run({"example", "upsampling", "--size", "15"}, &output), 1);
  EXPECT_NE(output.find("--size 15 is odd"), std::string::npos) << output;
}

// A client that dies in the middle of a long generation, and one in the middle of training.
// x (1, 1, 16, 16) -> a convolution of 3 x 3 with stride 2 and a bias, and another of 3 x 3.
std::string ConvolutionsOnnx() {
  onnx::ModelProto model;
  model.set_ir_version(8);
  model.add_opset_import()->set_version(13);
  onnx::GraphProto* graph = model.mutable_graph();
  graph->set_name("graph");
  for (onnx::ValueInfoProto* value : {graph->add_input(), graph->add_output()}) {
    auto* type = value->mutable_type()->mutable_tensor_type();
    type->set_elem_type(onnx::TensorProto::FLOAT);
    const bool input = value == &graph->input(0);
    value->set_name(input ? "x" : "y");
    for (const int dim : {1, 1, input ? 16 : 5, input ? 16 : 5}) {
      type->mutable_shape()->add_dim()->set_dim_value(dim);
    }
  }
  const auto weight = [&](const char* name, const std::vector<int64_t>& dims, int elements) {
    onnx::TensorProto* tensor = graph->add_initializer();
    tensor->set_name(name);
    tensor->set_data_type(onnx::TensorProto::FLOAT);
    for (int64_t dim : dims) tensor->add_dims(dim);
    for (int i = 0; i < elements; ++i) tensor->add_float_data(0.1f);
  };
  weight("w", {1, 1, 3, 3}, 9);
  weight("b", {1}, 1);
  const auto conv = [&](const std::vector<const char*>& inputs, const char* output, int stride) {
    onnx::NodeProto* node = graph->add_node();
    node->set_op_type("Conv");
    for (const char* input : inputs) node->add_input(input);
    node->add_output(output);
    onnx::AttributeProto* strides = node->add_attribute();
    strides->set_name("strides");
    strides->set_type(onnx::AttributeProto::INTS);
    for (int i = 0; i < 2; ++i) strides->add_ints(stride);
  };
  conv({"x", "w", "b"}, "h", 2);
  conv({"h", "w"}, "y", 1);
  return model.SerializeAsString();
}

TEST_F(ProcessTest, AnalyzesAndDraws) {
  WriteFile(folder_ / "convolutions.onnx", ConvolutionsOnnx());
  std::string output;
  ASSERT_EQ(
      Run({"models", "create", "convolutions", "--onnx", folder_ / "convolutions.onnx"}, &output),
      0)
      << output;
  const std::string svg = folder_ / "field.svg";
  ASSERT_EQ(Run({"analyze", "convolutions", "--measure", "--verify", "--svg", svg}, &output), 0)
      << output;
  for (const char* part : {"Conv+bias", "7x7", "GFLOP/S", "without biases", "agree"}) {
    EXPECT_NE(output.find(part), std::string::npos) << part << output;
  }
  std::string picture = ReadFile(svg);
  EXPECT_EQ(picture.rfind("<svg", 0), 0U);
  for (const char* part :
       {"Receptive field of convolutions", "3, stride 2", "7, stride 2", "</svg>"}) {
    EXPECT_NE(picture.find(part), std::string::npos) << part << picture;
  }
  ASSERT_EQ(Run({"--json", "analyze", "convolutions"}, &output), 0) << output;
  const auto analysis = nlohmann::json::parse(output);
  EXPECT_EQ(analysis["bias_parameters"], "1");
  EXPECT_EQ(analysis["layers"][1]["receptive_field"]["dimensions"][1]["size"], "7");
  EXPECT_EQ(Run({"analyze", "convolutions", "--input", "x=1,1,16"}, &output), 1);
  EXPECT_NE(output.find("INVALID_ARGUMENT"), std::string::npos) << output;

  ASSERT_EQ(Run({"models", "get", "convolutions", "--parameters"}, &output), 0) << output;
  EXPECT_NE(output.find("bias"), std::string::npos) << output;

  ASSERT_EQ(Run({"activations", "gelu", "swiglu", "--svg", svg, "--from=-3", "--to", "3"}, &output),
            0)
      << output;
  EXPECT_NE(output.find("SwiGlu"), std::string::npos) << output;
  picture = ReadFile(svg);
  for (const char* part : {">gelu<", ">swiglu<", ">-2<", "</svg>"}) {
    EXPECT_NE(picture.find(part), std::string::npos) << part;
  }
  EXPECT_EQ(picture.find(">relu<"), std::string::npos);
  ASSERT_EQ(Run({"--json", "activations", "elu", "--set", "alpha=2", "--points", "5"}, &output), 0)
      << output;
  const auto elu = nlohmann::json::parse(output)["activations"][0];
  EXPECT_EQ(elu["y"].size(), 5U);
  EXPECT_EQ(elu["parameters"][0]["value"], 2);
  EXPECT_EQ(Run({"activations", "nope"}, &output), 1);
  EXPECT_NE(output.find("NOT_FOUND"), std::string::npos) << output;
}

TEST_F(ProcessTest, AKilledClientFreesItsWork) {
  CreateCharacters();
  const std::string running = "tandem_kv_cache_usage_ratio{model=\"chars\"}";
  {
    Process generate({Binary("client/tandem"), "--server", address_, "generate", "chars",
                      "--prompt", "a", "--max-tokens", "4000"},
                     folder_ / "generate.txt");
    for (int i = 0; i < 200 && !(Metric(running) > 0); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    ASSERT_GT(Metric(running), 0);
    generate.Signal(SIGKILL);
    EXPECT_EQ(generate.Wait(), 128 + SIGKILL);
  }
  for (int i = 0; i < 200 && Metric(running) > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  EXPECT_EQ(Metric(running), 0);

  WriteFile(folder_ / "text.txt", std::string(20000, 'a'));
  {
    Process train({Binary("client/tandem"), "--server", address_, "train", "chars", "--text",
                   folder_ / "text.txt", "--steps", "100000", "--block", "256"},
                  folder_ / "train.txt");
    const std::string steps = "tandem_train_steps_total{model=\"chars\"}";
    for (int i = 0; i < 500 && !(Metric(steps) > 2); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    ASSERT_GT(Metric(steps), 2);
    train.Signal(SIGKILL);
    train.Wait();
    // The step that runs ends; after that, none.
    double last = -1;
    for (int i = 0; i < 100 && Metric(steps) != last; ++i) {
      last = Metric(steps);
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
    EXPECT_EQ(Metric(steps), last);
  }
  std::string output;
  EXPECT_EQ(Run({"health"}, &output), 0) << output;
}

TEST_F(ProcessTest, TerminationIsGraceful) {
  CreateCharacters();
  std::string output;
  EXPECT_EQ(Run({"health"}, &output), 0);
  EXPECT_EQ(output, "serving\n");
  server_->Signal(SIGTERM);
  EXPECT_EQ(server_->Wait(), 0) << ReadFile(log_);
  EXPECT_EQ(Run({"health"}, &output), 1);
}

TEST_F(ProcessTest, ApproximatesFromTheCommandLine) {
  const std::string numbers = folder_ / "numbers.txt", state = folder_ / "state";
  std::string text, output;
  for (int i = 0; i < 20000; ++i) text += std::to_string(i * 7919 % 20000) + "\n";
  WriteFile(numbers, text);
  const auto json = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"--json", "approximate"});
    EXPECT_EQ(Run(words, &output), 0) << output;
    // After the progress, on standard error.
    return nlohmann::json::parse(output.substr(output.rfind("{\"step\"")));
  };
  auto answer = json({"mean", numbers});
  EXPECT_EQ(answer["observations"], "20000");
  EXPECT_NEAR(answer["estimate"][0].get<double>(), 9999.5, 1e-6);
  answer = json({"mean", numbers, "--constant-step", "1"});
  EXPECT_EQ(answer["estimate"][0], 19999 * 7919 % 20000);
  answer = json({"ema", numbers, "--alpha", "1"});
  EXPECT_EQ(answer["estimate"][0], 19999 * 7919 % 20000);
  answer = json({"quantile", numbers, "-p", "0.1", "-p", "0.9"});
  EXPECT_NEAR(answer["estimate"][0].get<double>(), 2000, 200);
  EXPECT_NEAR(answer["estimate"][1].get<double>(), 18000, 200);
  // In two runs, the second of which goes on where the first stopped.
  const std::vector<std::string> minimise = {"minimize",
                                             "--command",
                                             "awk '{print ($1-3)^2 + ($2+1)^2}'",
                                             "--start",
                                             "0",
                                             "0",
                                             "--difference",
                                             "0.2",
                                             "--seed",
                                             "5",
                                             "--scale",
                                             "0.4",
                                             "--lower",
                                             "-9",
                                             "--upper",
                                             "9"};
  const auto with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words = minimise;
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  json(with({"--steps", "40", "--state", state}));
  answer = json(with({"--steps", "100", "--state", state}));
  EXPECT_EQ(answer["step"], "100");
  EXPECT_NEAR(answer["estimate"][0].get<double>(), 3, 0.1);
  EXPECT_NEAR(answer["estimate"][1].get<double>(), -1, 0.1);
  EXPECT_EQ(json(with({"--steps", "100"}))["estimate"], answer["estimate"]);
  answer = json({"minimize", "--method", "adam", "--command", "awk '{print 2*($1-3)}'", "--start",
                 "0", "--scale", "0.3", "--steps", "100"});
  EXPECT_NEAR(answer["estimate"][0].get<double>(), 3, 0.1);
  answer =
      json({"minimize", "--method", "kiefer-wolfowitz", "--command", "awk '{print ($1-3)^2}'",
            "--start", "0", "--scale", "0.5", "--steps", "50", "--difference-exponent", "0.2"});
  EXPECT_NEAR(answer["estimate"][0].get<double>(), 3, 0.1);
  answer = json({"root", "--command", "awk '{print $1-2, $2-$1}'", "--start", "0", "5", "--steps",
                 "60", "--exponent", "0.6", "--offset", "1", "--average", "--average-after", "20"});
  EXPECT_NEAR(answer["estimate"][1].get<double>(), 2, 0.1);
  EXPECT_NEAR(answer["average"][0].get<double>(), 2, 0.1);
  EXPECT_EQ(Run({"approximate", "root", "--command", "echo 1 2", "--start", "0"}, &output), 1);
  EXPECT_NE(output.find("printed 2 numbers, expected 1"), std::string::npos) << output;
  EXPECT_EQ(Run({"approximate", "root", "--command", "exit 3", "--start", "0"}, &output), 1);
  EXPECT_NE(output.find("'exit 3' failed at 0"), std::string::npos) << output;
  WriteFile(numbers, "1 2 three");
  EXPECT_EQ(Run({"approximate", "mean", numbers}, &output), 1);
  EXPECT_NE(output.find("'three' is not a finite number"), std::string::npos) << output;
}

TEST_F(ProcessTest, EvaluatesPredictionsFromTheCommandLine) {
  const auto save = [&](const char* name, const Tensor& tensor) {
    const std::string path = folder_ / name;
    const auto npy = WriteNpy(tensor);
    EXPECT_TRUE(npy.ok()) << npy.status();
    WriteFile(path, *npy);
    return path;
  };
  // Predicted 0, 1, 0, of doubles as NumPy writes them.
  const std::vector<double> values = {3, 1, 0, 2, 2, 1};
  const std::vector<int64_t> classes = {0, 1, 1}, flags = {1, 0, 0, 1, 1, 1};
  const std::string logits = save("logits.npy", Tensor::Of<double>({3, 2}, values));
  const std::string targets = save("targets.npy", Tensor::Of<int64_t>({3}, classes));
  const std::string labels = save("labels.npy", Tensor::Of<int64_t>({3, 2}, flags));
  const std::string gradient = folder_ / "gradient.npy";
  std::string output;
  const auto json = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"--json", "evaluate-predictions", logits});
    EXPECT_EQ(Run(words, &output), 0) << output;
    return nlohmann::json::parse(output);
  };
  auto answer = json({"--targets", targets, "--top-k", "2", "--temperature", "0.001", "--gradient",
                      gradient, "--gradient-of", "accuracy"});
  EXPECT_NEAR(answer["values"][0]["hard"].get<double>(), 2.0 / 3, 1e-9);
  EXPECT_NEAR(answer["values"][0]["smooth"].get<double>(), 2.0 / 3, 1e-6);
  EXPECT_EQ(answer["values"][3]["k"], "2");
  const auto read = ReadNpy(ReadFile(gradient));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->shape(), (Shape{3, 2}));
  answer = json({"--labels", labels, "--threshold", "0.9"});
  EXPECT_EQ(answer["values"][0]["hard"], 0.5);
  WriteFile(folder_ / "references.txt", "2 | 0 1 | 1 1\n\n1 | 0 1\n");
  answer = json({"--references", folder_ / "references.txt", "--max-order", "2", "--add-k", "1"});
  EXPECT_EQ(answer["precisions"][0], 1);
  EXPECT_EQ(answer["precisions"][1], 1);
  EXPECT_EQ(answer["reference_tokens"], "4");
  ASSERT_EQ(Run({"evaluate-predictions", logits, "--targets", targets}, &output), 0) << output;
  EXPECT_NE(output.find("f1-macro  0.666667  "), std::string::npos) << output;
  EXPECT_NE(output.find("CLASS  SUPPORT  F1"), std::string::npos) << output;
  EXPECT_EQ(Run({"evaluate-predictions", logits}, &output), 1);
  EXPECT_NE(output.find("give one of --targets, --labels and --references"), std::string::npos);
  EXPECT_EQ(Run({"evaluate-predictions", logits, "--targets", targets, "--probabilities"}, &output),
            1);
  EXPECT_NE(output.find("expected a probability"), std::string::npos) << output;
  WriteFile(folder_ / "references.txt", "2 1 | 0");
  EXPECT_EQ(
      Run({"evaluate-predictions", logits, "--references", folder_ / "references.txt"}, &output),
      1);
  EXPECT_NE(output.find("line 1: '1' where LENGTH"), std::string::npos) << output;
}

class MaterialTest : public ProcessTest {
 protected:
  Tensor ReadProto(const std::string& path) {
    onnx::TensorProto proto;
    EXPECT_TRUE(proto.ParseFromString(ReadFile(path))) << path;
    auto tensor = TensorFromProto(proto, path);
    EXPECT_TRUE(tensor.ok()) << tensor.status();
    return *std::move(tensor);
  }
};

// ONNX Runtime's recorded outputs, through KServe.
TEST_F(MaterialTest, RealModelsThroughKServe) {
  TANDEM_NEED_MATERIAL("models/mnist-8");
  for (const std::string name : {"mnist-8", "super_resolution"}) {
    v1::CreateModelRequest create;
    create.set_model(name);
    create.set_onnx(ReadFile(MaterialPath("models/" + name + "/model.onnx")));
    const auto created = client_->CreateModel(create);
    ASSERT_TRUE(created.ok()) << created.status();
    const std::string set = MaterialPath("models/" + name + "/test_data_set_0/");
    const Tensor input = ReadProto(set + "input_0.pb"), expected = ReadProto(set + "output_0.pb");
    inference::ModelInferRequest request;
    request.set_model_name(name);
    auto& in = *request.add_inputs();
    in.set_name(created->model().inputs(0).name());
    in.set_datatype("FP32");
    for (int64_t d : input.shape()) in.add_shape(d);
    request.add_raw_input_contents(input.raw(), input.bytes());
    const auto response = client_->ModelInfer(request);
    ASSERT_TRUE(response.ok()) << response.status();
    ASSERT_EQ(response->raw_output_contents(0).size(), static_cast<size_t>(expected.bytes()));
    std::vector<float> got(expected.num_elements());
    std::memcpy(got.data(), response->raw_output_contents(0).data(), expected.bytes());
    for (size_t i = 0; i < got.size(); ++i) {
      const float want = expected.data<float>()[i];
      ASSERT_NEAR(got[i], want, 1e-4 + 1e-3 * std::abs(want)) << name << " element " << i;
    }
    if (name == "mnist-8") continue;
    // And from a file, as .npy.
    std::string output;
    EXPECT_EQ(Run({"infer", name, "--input", in.name() + "=" + set + "input_0.pb", "--output-dir",
                   folder_ / "out"},
                  &output),
              0)
        << output;
    const auto npy =
        ReadNpy(ReadFile(folder_ / "out/" + created->model().outputs(0).name() + ".npy"));
    ASSERT_TRUE(npy.ok()) << npy.status();
    EXPECT_EQ(npy->shape(), expected.shape());
  }
}

// A Hugging Face folder from the repository, text in and out.
TEST_F(MaterialTest, StoriesThroughTheNetwork) {
  TANDEM_NEED_MATERIAL("llama/stories260K/hf-f32");
  std::filesystem::copy(MaterialPath("llama/stories260K/hf-f32"), folder_ / "models/stories",
                        std::filesystem::copy_options::recursive);
  std::string output;
  ASSERT_EQ(Run({"models", "load", "stories"}, &output), 0) << output;
  const auto reference = nlohmann::json::parse(
      ReadFile(MaterialPath("llama/stories260K/reference/greedy_hf-f32.json")));
  for (const auto& expected : reference["results"]) {
    v1::GenerateRequest request;
    request.set_model("stories");
    request.set_text(expected["prompt"]);
    request.set_temperature(0);
    request.set_max_tokens(static_cast<int32_t>(expected["generated_ids"].size()));
    std::vector<int32_t> tokens;
    std::vector<float> logprobs;
    const absl::Status status = client_->Generate(request, [&](const v1::GenerateResponse& r) {
      if (r.has_token()) {
        tokens.push_back(r.token());
        logprobs.push_back(r.logprob());
      }
      return true;
    });
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(tokens, expected["generated_ids"].get<std::vector<int32_t>>());
    for (size_t i = 0; i < logprobs.size(); ++i) {
      EXPECT_NEAR(logprobs[i], expected["steps"][i]["logprob"].get<double>(), 1e-4);
    }
  }
}

}  // namespace
}  // namespace tandem
