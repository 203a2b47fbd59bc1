// ONNX's backend tests: every case of scope `core`, compared with ONNX's own tolerances; and
// trained models against the outputs recorded with them.
//
// A case that this engine has no operator for answers Unimplemented and is counted; any other
// error, or a wrong number, fails. Set TANDEM_ONNX_CASES to a part of a case's name to run only
// those.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "engine/exec/plan.h"
#include "engine/formats/onnx.h"
#include "engine/formats/onnx_proto.h"
#include "engine/formats/onnx_tensor.h"
#include "tests/engine/material.h"

namespace tandem {
namespace {

// The least number of `core` cases that pass; raise it when more do.
constexpr int kPassingCases = 1023;

// Whose recorded outputs contradict the specification, or are random.
const std::set<std::string>& Disputed() {
  static const auto* const cases = new std::set<std::string>{
      "node/test_maxunpool_export_with_output_shape",
      "node/test_resize_downsample_scales_linear_align_corners",
      "node/test_resize_downsample_scales_cubic_align_corners",
  };
  return *cases;
}

struct Tolerance {
  double relative, absolute;
};

absl::StatusOr<Tensor> ReadTensor(const std::string& path) {
  onnx::TensorProto proto;
  if (!proto.ParseFromString(ReadFile(path))) return Internal(path, ": not a TensorProto");
  return TensorFromProto(proto, path);
}

absl::StatusOr<std::vector<Tensor>> ReadTensors(const std::string& folder, const std::string& kind,
                                                size_t count) {
  std::vector<Tensor> tensors;
  for (size_t i = 0; i < count; ++i) {
    const std::string path = folder + "/" + kind + "_" + std::to_string(i) + ".pb";
    if (!std::filesystem::exists(path)) break;
    TANDEM_ASSIGN_OR_RETURN(Tensor tensor, ReadTensor(path));
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

// Builds the model for these inputs and runs it.
absl::StatusOr<std::vector<Tensor>> Run(const LoadedOnnx& model,
                                        const std::vector<Tensor>& inputs) {
  const std::vector<IoSpec>& specs = model.source->inputs();
  if (inputs.size() != specs.size()) {
    return Internal(inputs.size(), " recorded inputs for ", specs.size());
  }
  Builder builder(EvaluateNode);
  std::vector<Value> values;
  std::vector<const Tensor*> arguments;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (model.source->shape_inputs()[i]) {
      values.push_back(builder.Constant(inputs[i].Clone()));
    } else {
      values.push_back(builder.Input(specs[i].name, inputs[i].type()));
      arguments.push_back(&inputs[i]);
    }
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs, model.source->Build(builder, values));
  for (const Value output : outputs) builder.Output(output);
  TANDEM_ASSIGN_OR_RETURN(Graph graph, builder.Finish());
  TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<Plan> plan,
                          Plan::Compile(std::move(graph), CpuBackend()));
  return RunPlan(*plan, arguments, model.parameters.pointers());
}

absl::Status Compare(const Tensor& actual, const Tensor& expected, Tolerance tolerance) {
  if (actual.type() != expected.type()) {
    return Internal("is ", actual.type().ToString(), ", expected ", expected.type().ToString());
  }
  if (expected.dtype() == DType::kF16 || expected.dtype() == DType::kBF16) {
    tolerance.absolute = std::max(tolerance.absolute, 1e-3);
    tolerance.relative = std::max(tolerance.relative, 1e-2);
  }
  for (int64_t i = 0; i < expected.num_elements(); ++i) {
    if (!IsFloat(expected.dtype())) {
      const int64_t a = ElementAsInt(actual, i), e = ElementAsInt(expected, i);
      if (a != e) return Internal("element ", i, " is ", a, ", expected ", e);
      continue;
    }
    const double a = ElementAsDouble(actual, i), e = ElementAsDouble(expected, i);
    if ((std::isnan(a) && std::isnan(e)) || a == e) continue;
    if (!(std::abs(a - e) <= tolerance.absolute + tolerance.relative * std::abs(e))) {
      return Internal("element ", i, " is ", a, ", expected ", e);
    }
  }
  return absl::OkStatus();
}

// Some recorded scalars are lists of one.
void AdaptScalars(const std::vector<IoSpec>& specs, std::vector<Tensor>& inputs) {
  for (size_t i = 0; i < inputs.size() && i < specs.size(); ++i) {
    if (specs[i].dims.empty() && inputs[i].shape() == Shape{1}) {
      inputs[i] = std::move(inputs[i]).Reshaped({});
    }
  }
}

// All data sets of one case; the first that is not right.
absl::Status RunCase(const std::string& folder, Tolerance tolerance) {
  TANDEM_ASSIGN_OR_RETURN(const LoadedOnnx model, LoadOnnx(ReadFile(folder + "/model.onnx")));
  int sets = 0;
  for (;; ++sets) {
    const std::string data = folder + "/test_data_set_" + std::to_string(sets);
    if (!std::filesystem::exists(data)) break;
    TANDEM_ASSIGN_OR_RETURN(std::vector<Tensor> inputs,
                            ReadTensors(data, "input", model.source->inputs().size()));
    AdaptScalars(model.source->inputs(), inputs);
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Tensor> expected,
                            ReadTensors(data, "output", model.source->outputs().size()));
    if (expected.empty()) return Internal("no recorded outputs in ", data);
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Tensor> outputs, Run(model, inputs));
    for (size_t i = 0; i < expected.size(); ++i) {
      TANDEM_RETURN_IF_ERROR(
          Annotate(Compare(outputs[i], expected[i], tolerance),
                   StrCat("output ", i, " '", model.source->outputs()[i].name, "'")));
    }
  }
  return sets > 0 ? absl::OkStatus() : Internal("no recorded data in ", folder);
}

TEST(OnnxConformance, CoreCases) {
  TANDEM_NEED_MATERIAL("onnx-backend/index.json");
  const nlohmann::json index =
      nlohmann::json::parse(ReadFile(MaterialPath("onnx-backend/index.json")));
  const char* filter = std::getenv("TANDEM_ONNX_CASES");
  std::vector<std::string> passed;
  std::map<std::string, std::string> failed, unsupported;
  int disputed = 0;
  for (const auto& [name, about] : index.items()) {
    if (about["scope"] != "core") continue;
    if (filter != nullptr && name.find(filter) == std::string::npos) continue;
    if (about["nondeterministic"] == true || Disputed().contains(name)) {
      ++disputed;
      continue;
    }
    const absl::Status status = RunCase(MaterialPath("onnx-backend/" + name), {1e-3, 1e-7});
    if (status.ok()) {
      passed.push_back(name);
    } else if (absl::IsUnimplemented(status)) {
      unsupported[name] = std::string(status.message());
    } else {
      failed[name] = status.ToString();
    }
  }
  for (const auto& [name, why] : unsupported)
    std::cout << "unsupported " << name << ": " << why << "\n";
  for (const auto& [name, why] : failed) std::cout << "FAILED " << name << ": " << why << "\n";
  std::cout << "passed " << passed.size() << ", failed " << failed.size() << ", unsupported "
            << unsupported.size() << ", random or disputed " << disputed << "\n";
  EXPECT_TRUE(failed.empty());
  if (filter == nullptr) {
    EXPECT_GE(static_cast<int>(passed.size()), kPassingCases);
  }
}

class TrainedModel : public testing::TestWithParam<const char*> {};

TEST_P(TrainedModel, GivesTheRecordedOutputs) {
  const std::string folder = std::string("models/") + GetParam();
  TANDEM_NEED_MATERIAL(folder);
  const absl::Status status = RunCase(MaterialPath(folder), {1e-3, 1e-4});
  EXPECT_TRUE(status.ok()) << status;
}

std::string TestName(const testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(OnnxConformance, TrainedModel,
                         testing::Values("mnist-8", "super_resolution", "wonnx-opt-mnist",
                                         "ultraface-rfb-320", "silero-vad"),
                         TestName);

}  // namespace
}  // namespace tandem
