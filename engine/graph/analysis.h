// What a graph costs, node by node: parameters, operations, memory, receptive fields.
//
// Works on any graph and touches no values. Counts are doubles where products of sizes may exceed
// 64 bits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/graph/receptive_field.h"

namespace tandem {

struct LayerCost {
  std::string name;  // of the node; may be empty
  std::string_view op;
  Shape output_shape;           // of the first output
  int64_t parameters = 0;       // elements of the parameters that it reads, reshaped or not
  int64_t bias_parameters = 0;  // those of them that are biases
  double flops = 0;             // a multiply-add counts as two
  double bias_flops = 0;        // of flops: the additions of biases
  double macs = 0;              // multiply-accumulates of products and convolutions
  int64_t output_bytes = 0;     // of all outputs; 0 for a reshape, which shares its input's memory
  double bytes_moved = 0;       // inputs, parameters and outputs, each read or written once
  bool fused_bias = false;      // a product or convolution that adds its bias itself
  std::optional<ReceptiveField> field;  // on the graph's SpatialInput

  // FLOPs per byte moved: below the machine's ratio of FLOPs to bandwidth, memory is the limit.
  double arithmetic_intensity() const { return bytes_moved > 0 ? flops / bytes_moved : 0; }
};

struct GraphCost {
  std::vector<LayerCost> layers;  // one a node, in order
  Value input;                    // that the fields are on; invalid: the graph has none
  double flops = 0, bias_flops = 0, macs = 0, bytes_moved = 0;
  int64_t activation_bytes = 0;  // of all outputs
  double arithmetic_intensity() const { return bytes_moved > 0 ? flops / bytes_moved : 0; }
};

// `is_bias` says of each model parameter, by index, whether it is one.
GraphCost AnalyzeGraph(const Graph& graph, const std::vector<bool>& is_bias);

}  // namespace tandem
