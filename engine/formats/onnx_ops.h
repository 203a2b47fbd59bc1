// The table of ONNX operators: by name, the function that turns a node into vocabulary operators.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "engine/formats/onnx_context.h"

namespace tandem {

// The newest version of the default operator set whose changes are known here.
inline constexpr int64_t kMaxOnnxOpset = 28;

// A set of input positions.
constexpr uint32_t InputSet() { return 0; }
template <typename... Rest>
constexpr uint32_t InputSet(int first, Rest... rest) {
  return (uint32_t{1} << first) | InputSet(rest...);
}
inline constexpr int kAnyCount = 1 << 20;

struct OnnxOp {
  std::string_view name;
  // The node's inputs have been counted, and those below min_inputs are there.
  Outputs (*convert)(NodeContext&) = nullptr;
  int min_inputs = 1;
  int max_inputs = 1;
  // Inputs whose values decide shapes: they must fold to constants.
  uint32_t shape_inputs = 0;
  // Inputs that are settings rather than weights: an initializer used only so is not trained.
  uint32_t fixed_inputs = 0;
};

// A row of a family's table.
constexpr OnnxOp Op(std::string_view name, Outputs (*convert)(NodeContext&), int min_inputs = 1,
                    int max_inputs = 1, uint32_t shape_inputs = 0) {
  return {.name = name,
          .convert = convert,
          .min_inputs = min_inputs,
          .max_inputs = max_inputs,
          .shape_inputs = shape_inputs};
}

// Operators of the default domain; null for an unknown one. Families: onnx_ops_<family>.cc.
const OnnxOp* FindOnnxOp(std::string_view name);

std::span<const OnnxOp> OnnxMathOps();
std::span<const OnnxOp> OnnxActivationOps();
std::span<const OnnxOp> OnnxReduceOps();
std::span<const OnnxOp> OnnxShapeOps();
std::span<const OnnxOp> OnnxPadOps();
std::span<const OnnxOp> OnnxGenerateOps();
std::span<const OnnxOp> OnnxIndexOps();
std::span<const OnnxOp> OnnxNnOps();
std::span<const OnnxOp> OnnxNormalizationOps();
std::span<const OnnxOp> OnnxControlOps();
std::span<const OnnxOp> OnnxResizeOps();
std::span<const OnnxOp> OnnxRecurrentOps();
std::span<const OnnxOp> OnnxLossOps();
std::span<const OnnxOp> OnnxAttentionOps();
std::span<const OnnxOp> OnnxEinsumOps();
std::span<const OnnxOp> OnnxQuantizeOps();
std::span<const OnnxOp> OnnxStateOps();
std::span<const OnnxOp> OnnxGridOps();
std::span<const OnnxOp> OnnxBitOps();
std::span<const OnnxOp> OnnxRandomOps();

}  // namespace tandem
