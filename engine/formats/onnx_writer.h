// Builds an ONNX file in code: for examples and tests that make a model of their own.
//
// Names are the caller's to keep unique, as in the file itself; LoadOnnx says what is wrong with
// one. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace onnx {
class ModelProto;
}

namespace tandem {

class OnnxWriter {
 public:
  // An attribute of ONNX's type INT, INTS or STRING.
  struct Attribute {
    Attribute(std::string_view n, int64_t value) : name(n), number(value) {}
    Attribute(std::string_view n, std::vector<int64_t> values)
        : name(n), kind(Kind::kInts), numbers(std::move(values)) {}
    Attribute(std::string_view n, std::string value)
        : name(n), kind(Kind::kString), text(std::move(value)) {}

    enum class Kind : uint8_t { kInt, kInts, kString };
    std::string name;
    Kind kind = Kind::kInt;
    int64_t number = 0;
    std::vector<int64_t> numbers;
    std::string text;
  };

  // A graph in the operators of that opset (https://onnx.ai/onnx/operators).
  explicit OnnxWriter(int64_t opset);
  ~OnnxWriter();
  OnnxWriter(const OnnxWriter&) = delete;
  OnnxWriter& operator=(const OnnxWriter&) = delete;

  // An f32 input or output; a dimension below 0 is of any size.
  void Input(std::string_view name, const std::vector<int64_t>& dims);
  void Output(std::string_view name, const std::vector<int64_t>& dims);
  // An initializer: an f32 one is a parameter unless it is an operator's shape input. The values
  // number the product of dims.
  void Weights(std::string_view name, const std::vector<int64_t>& dims,
               const std::vector<float>& values);
  // Appends a node; an input named "" is absent.
  void Node(std::string_view op, const std::vector<std::string>& inputs,
            const std::vector<std::string>& outputs, const std::vector<Attribute>& attributes = {});
  // The file's bytes.
  std::string Bytes() const;

 private:
  std::unique_ptr<onnx::ModelProto> model_;
};

}  // namespace tandem
