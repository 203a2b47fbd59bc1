// The `tandem` command line: what its subcommands share. Each file adds its subcommands to the app;
// a subcommand's callback returns through Session::Run, which prints errors and sets the exit code.
#pragma once

#include <google/protobuf/message.h>

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "client/client.h"
#include "engine/base/error.h"
#include "engine/tensor/tensor.h"

namespace tandem::command {

struct Session {
  std::string server = "127.0.0.1:8500";
  bool json = false;
  int exit_code = 0;

  Client client() const { return Client(server); }
  // Runs a subcommand; an error is printed to standard error as "error: CODE: message".
  void Run(const std::function<absl::Status()>& body);
};

void AddHealthCommand(CLI::App& app, Session& session);
void AddModelCommands(CLI::App& app, Session& session);
void AddAnalyzeCommand(CLI::App& app, Session& session);
void AddActivationsCommand(CLI::App& app, Session& session);
void AddInferCommand(CLI::App& app, Session& session);
void AddTrainCommand(CLI::App& app, Session& session);
void AddGenerateCommands(CLI::App& app, Session& session);
void AddDistributionCommands(CLI::App& app, Session& session);
void AddApproximateCommands(CLI::App& app, Session& session);
void AddExampleCommands(CLI::App& app, Session& session);
void AddEvaluateCommand(CLI::App& app, Session& session);

// Sets an optional field of the request only if the option is given.
template <typename T, typename Set>
void AddOptional(CLI::App* app, const std::string& name, Set set, const std::string& help) {
  app->add_option_function<T>(
      name, [set](const T& value) { set(value); }, help);
}

// One line of protobuf's JSON, fields by their proto names.
void PrintJson(const google::protobuf::Message& message);
// Columns padded to their widest cell; the first row is the heading.
void PrintTable(const std::vector<std::vector<std::string>>& rows);
// "1,234,567", "1.23 M" and "1.5 MiB".
std::string WithCommas(int64_t value);
std::string Quantity(double value);
std::string Bytes(int64_t bytes);
std::string ShapeText(const google::protobuf::RepeatedField<int64_t>& dims);

// What stands before and after the first '=' of an argument; else an error that begins with
// `option`, as "--input ", and says that the argument is not `form`, as "NAME=FILE".
absl::StatusOr<std::pair<std::string, std::string>> SplitArgument(std::string_view option,
                                                                  const std::string& text,
                                                                  std::string_view form);
absl::StatusOr<std::string> ReadFile(const std::string& path);
absl::Status WriteFile(const std::string& path, std::string_view contents);
// .npy, or .pb (an ONNX TensorProto), by the name's ending.
absl::StatusOr<Tensor> ReadTensorFile(const std::string& path);
v1::DataType ToProto(DType dtype);
v1::Tensor ToProto(const Tensor& tensor);
// INTERNAL: a server's tensor that is not as long as its shape, or of no known dtype.
absl::StatusOr<Tensor> FromProto(const v1::Tensor& tensor);

// The progress line of a long command: rewritten in place on a terminal, a line now and then
// otherwise.
class Progress {
 public:
  // total 0: unknown, so there is no bar.
  Progress(int64_t total, std::string unit);
  // `detail` stands behind the bar: "loss 1.234 ...".
  void Update(int64_t done, const std::string& detail);
  // Prints text above the bar.
  void Note(const std::string& text);
  void Finish();

 private:
  double Elapsed() const;
  void Draw();

  const int64_t total_;
  const std::string unit_;
  const bool terminal_;
  const double start_;
  double last_drawn_ = 0;
  int64_t done_ = 0;
  std::string detail_;
};

}  // namespace tandem::command
