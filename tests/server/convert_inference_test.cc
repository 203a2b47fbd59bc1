#include "server/convert_inference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

namespace tandem::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<Tensor> OneInput(const inference::ModelInferRequest& request) {
  auto inputs = InputsFromProto(request);
  if (!inputs.ok()) return inputs.status();
  EXPECT_EQ(inputs->size(), 1U);
  return std::move((*inputs)[0].second);
}

inference::ModelInferRequest Request(const std::string& datatype, std::vector<int64_t> shape) {
  inference::ModelInferRequest request;
  auto* input = request.add_inputs();
  input->set_name("x");
  input->set_datatype(datatype);
  input->mutable_shape()->Add(shape.begin(), shape.end());
  return request;
}

void ExpectError(const inference::ModelInferRequest& request, absl::StatusCode code,
                 const std::string& text) {
  const absl::Status status = InputsFromProto(request).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}
void ExpectInvalid(const inference::ModelInferRequest& request, const std::string& text) {
  ExpectError(request, absl::StatusCode::kInvalidArgument, text);
}

TEST(Datatypes, EveryDtypeHasItsName) {
  for (int i = static_cast<int>(DType::kF32); i <= static_cast<int>(DType::kBool); ++i) {
    const auto dtype = static_cast<DType>(i);
    EXPECT_EQ(*DatatypeFromName(DatatypeName(dtype), "x"), dtype);
  }
  EXPECT_EQ(DatatypeName(DType::kBF16), "BF16");
  EXPECT_EQ(DatatypeName(DType::kF32), "FP32");
  EXPECT_EQ(DatatypeFromName("BYTES", "x").status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(DatatypeFromName("fp32", "x").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Inputs, Raw) {
  auto request = Request("FP32", {2});
  const float values[] = {1.5F, -2};
  request.add_raw_input_contents(values, sizeof(values));
  EXPECT_THAT(OneInput(request)->data<float>(), ElementsAre(1.5F, -2));
  request.mutable_raw_input_contents(0)->resize(7);
  ExpectInvalid(request, "input 'x': f32(2) needs 8 bytes, got 7");
}

TEST(Inputs, RawAndContentsExcludeEachOther) {
  auto request = Request("FP32", {1});
  request.add_raw_input_contents("1234");
  request.mutable_inputs(0)->mutable_contents()->add_fp32_contents(1);
  ExpectInvalid(request, "beside raw_input_contents");
  request.mutable_inputs(0)->clear_contents();
  request.add_raw_input_contents("1234");
  ExpectInvalid(request, "raw_input_contents has 2 entries for 1 inputs");
}

TEST(Inputs, EachTypedContents) {
  const auto with = [](const char* datatype, auto fill) {
    auto request = Request(datatype, {2});
    fill(*request.mutable_inputs(0)->mutable_contents());
    return OneInput(request);
  };
  const auto ints = [](auto& c) { c.add_int_contents(-3), c.add_int_contents(100); };
  const auto uints = [](auto& c) { c.add_uint_contents(3), c.add_uint_contents(200); };
  EXPECT_THAT(with("INT8", ints)->data<int8_t>(), ElementsAre(-3, 100));
  EXPECT_THAT(with("INT16", ints)->data<int16_t>(), ElementsAre(-3, 100));
  EXPECT_THAT(with("INT32", ints)->data<int32_t>(), ElementsAre(-3, 100));
  EXPECT_THAT(with("UINT8", uints)->data<uint8_t>(), ElementsAre(3, 200));
  EXPECT_THAT(with("UINT16", uints)->data<uint16_t>(), ElementsAre(3, 200));
  EXPECT_THAT(with("UINT32", uints)->data<uint32_t>(), ElementsAre(3, 200));
  EXPECT_THAT(with("INT64", [](auto& c) { c.add_int64_contents(-5), c.add_int64_contents(6); })
                  ->data<int64_t>(),
              ElementsAre(-5, 6));
  EXPECT_THAT(with("UINT64", [](auto& c) { c.add_uint64_contents(5), c.add_uint64_contents(6); })
                  ->data<uint64_t>(),
              ElementsAre(5, 6));
  EXPECT_THAT(with("FP32", [](auto& c) { c.add_fp32_contents(0.5), c.add_fp32_contents(2); })
                  ->data<float>(),
              ElementsAre(0.5F, 2));
  EXPECT_THAT(with("FP64", [](auto& c) { c.add_fp64_contents(0.5), c.add_fp64_contents(2); })
                  ->data<double>(),
              ElementsAre(0.5, 2));
  EXPECT_THAT(with("BOOL", [](auto& c) { c.add_bool_contents(true), c.add_bool_contents(false); })
                  ->data<bool>(),
              ElementsAre(true, false));
}

TEST(Inputs, BadTypedContents) {
  auto request = Request("INT8", {2});
  auto* contents = request.mutable_inputs(0)->mutable_contents();
  contents->add_int_contents(1);
  ExpectInvalid(request, "needs 2 elements, int_contents has 1");
  contents->add_int_contents(128);
  ExpectInvalid(request, "int_contents[1] is 128, out of range");
  contents->set_int_contents(1, -129);
  ExpectInvalid(request, "out of range");
  contents->set_int_contents(1, -128);
  EXPECT_TRUE(InputsFromProto(request).ok());
  contents->add_fp32_contents(1);
  ExpectInvalid(request, "elements are in fp32_contents, expected int_contents");
  auto half = Request("FP16", {1});
  half.mutable_inputs(0)->mutable_contents()->add_fp32_contents(1);
  ExpectInvalid(half, "FP16 has no contents field");
}

TEST(Inputs, HostileShapes) {
  const int64_t huge = std::numeric_limits<int64_t>::max();
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{-1},
                                            {huge, huge},
                                            {int64_t{1} << 62, 4},
                                            {huge},
                                            {1, 1, 1, 1, 1, 1, 1, 1, 1}}) {
    auto request = Request("FP32", shape);
    ExpectInvalid(request, "input 'x'");
    request.add_raw_input_contents("1234");
    ExpectInvalid(request, "input 'x'");
  }
  // A huge tensor is refused before memory is allocated for it.
  ExpectInvalid(Request("FP32", {int64_t{1} << 37}), "fp32_contents has 0");
}

TEST(Inputs, NamesAndParameters) {
  auto request = Request("BYTES", {1});
  ExpectError(request, absl::StatusCode::kUnimplemented, "BYTES");
  request = Request("FLOAT", {1});
  ExpectInvalid(request, "'FLOAT'");
  request = Request("FP32", {1});
  *request.add_inputs() = request.inputs(0);
  request.add_raw_input_contents("1234");
  request.add_raw_input_contents("1234");
  ExpectInvalid(request, "'x' is given twice");

  request = Request("FP32", {1});
  request.add_raw_input_contents("1234");
  for (const char* reserved : {"sequence_id", "priority", "timeout", "headers",
                               "binary_data_output", "triton_enable_empty_final_response"}) {
    (*request.mutable_parameters())[reserved].set_int64_param(1);
  }
  EXPECT_TRUE(InputsFromProto(request).ok());
  (*request.mutable_parameters())["temperature"].set_double_param(1);
  ExpectInvalid(request, "parameter 'temperature'");
  request.clear_parameters();
  (*request.mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("r");
  ExpectInvalid(request, "shared_memory_region");
}

TEST(Outputs, AllOrThoseRequested) {
  const std::vector<IoSpec> specs = {{"a", DType::kF32, {-1}}, {"b", DType::kF32, {}}};
  inference::ModelInferRequest request;
  EXPECT_THAT(*RequestedOutputs(request, specs), ElementsAre(0, 1));
  request.add_outputs()->set_name("b");
  EXPECT_THAT(*RequestedOutputs(request, specs), ElementsAre(1));
  request.add_outputs()->set_name("b");
  EXPECT_THAT(std::string(RequestedOutputs(request, specs).status().message()),
              HasSubstr("requested twice"));
  request.mutable_outputs(1)->set_name("c");
  EXPECT_THAT(std::string(RequestedOutputs(request, specs).status().message()),
              HasSubstr("no output 'c'; it has 'a', 'b'"));
  request.mutable_outputs(1)->set_name("a");
  (*request.mutable_outputs(1)->mutable_parameters())["classification"].set_int64_param(3);
  EXPECT_THAT(std::string(RequestedOutputs(request, specs).status().message()),
              HasSubstr("classification"));
}

TEST(Outputs, RawBytes) {
  inference::ModelInferResponse response;
  AddOutput("y", Tensor::Of<int32_t>({1, 2}, {7, -1}), &response);
  ASSERT_EQ(response.outputs_size(), 1);
  EXPECT_EQ(response.outputs(0).name(), "y");
  EXPECT_EQ(response.outputs(0).datatype(), "INT32");
  EXPECT_THAT(response.outputs(0).shape(), ElementsAre(1, 2));
  int32_t values[2];
  ASSERT_EQ(response.raw_output_contents(0).size(), sizeof(values));
  std::memcpy(values, response.raw_output_contents(0).data(), sizeof(values));
  EXPECT_THAT(values, ElementsAre(7, -1));
}

}  // namespace
}  // namespace tandem::server
