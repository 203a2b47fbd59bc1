#include "engine/exec/passes.h"

#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/graph/builder.h"
#include "engine/ops/definitions.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

std::vector<bool> LiveNodes(const Graph& graph) {
  std::vector<bool> live(graph.nodes().size(), false);
  std::vector<bool> wanted(graph.value_count(), false);
  for (Value v : graph.outputs()) wanted[v.id] = true;
  for (size_t i = graph.nodes().size(); i-- > 0;) {
    const Node& node = graph.nodes()[i];
    for (Value v : node.outputs) live[i] = live[i] || wanted[v.id];
    if (!live[i]) continue;
    for (Value v : node.inputs) {
      if (v.valid()) wanted[v.id] = true;
    }
  }
  return live;
}

// Alias operators need no kernel: the plan gives the output the input's memory.
bool NeedsKernel(const OpDef& op) { return op.name != "Reshape"; }

// Another graph with the same inputs, and the values of the first one in it.
class Copier {
 public:
  explicit Copier(const Graph& graph) : graph_(graph), map_(graph.value_count()) {
    for (Value v : graph.inputs()) {
      map_[v.id] = builder_.Input(graph.info(v).name, graph.type(v));
    }
  }
  Builder& builder() { return builder_; }
  Value Mapped(Value v) {
    if (!v.valid() || map_[v.id].valid()) return v.valid() ? map_[v.id] : Value{};
    const ValueInfo& info = graph_.info(v);
    switch (info.kind) {
      case ValueKind::kParameter:
        map_[v.id] = builder_.Parameter(info.index, info.name, info.type);
        break;
      case ValueKind::kRandomKey:
        map_[v.id] = builder_.RandomKey();
        break;
      default:
        map_[v.id] = builder_.Constant(info.constant);
    }
    return map_[v.id];
  }
  void Set(Value v, Value copy) { map_[v.id] = copy; }
  std::vector<Value> Inputs(const Node& node) {
    std::vector<Value> inputs;
    for (Value v : node.inputs) inputs.push_back(Mapped(v));
    return inputs;
  }
  void Copy(const Node& node, const std::vector<Value>& inputs) {
    builder_.SetScope(node.name);
    const std::vector<Value> outputs =
        builder_.AddMulti(*node.op, inputs, node.attributes, static_cast<int>(node.outputs.size()));
    for (size_t k = 0; k < outputs.size(); ++k) Set(node.outputs[k], outputs[k]);
  }
  absl::StatusOr<Graph> Finish() {
    for (Value v : graph_.outputs()) builder_.Output(Mapped(v));
    return builder_.Finish();
  }

 private:
  const Graph& graph_;
  Builder builder_;
  std::vector<Value> map_;
};

bool IsHalf(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF16; }

// Whether the backend computes this node as it is.
absl::StatusOr<bool> Computes(const Backend& backend, const Graph& graph, const Node& node) {
  const Kernel* kernel = backend.Find(node.op->name);
  if (kernel == nullptr) return false;
  KernelSpec spec{.backend = &backend,
                  .op = node.op,
                  .attributes = &node.attributes,
                  .inputs = {},
                  .present = {},
                  .outputs = {}};
  std::vector<const TensorType*> types;
  for (Value v : node.inputs) {
    spec.present.push_back(v.valid());
    spec.inputs.push_back(v.valid() ? graph.type(v) : TensorType{});
    types.push_back(v.valid() ? &graph.type(v) : nullptr);
  }
  TANDEM_ASSIGN_OR_RETURN(spec.outputs,
                          node.op->infer({.inputs = types, .attributes = node.attributes}));
  const absl::StatusOr<BoundKernel> bound = kernel->bind(spec);
  if (bound.ok()) return true;
  if (absl::IsUnimplemented(bound.status())) return false;
  return bound.status();
}

// The node on f32 copies of its 16-bit inputs, its results rounded to what they were to be.
absl::StatusOr<std::vector<Value>> ThroughF32(Builder& builder, const Graph& graph,
                                              const Node& original, const Node& node) {
  std::vector<Value> inputs = node.inputs;
  DType half = DType::kF32;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].valid() || !IsHalf(builder.dtype(inputs[i]))) continue;
    half = builder.dtype(inputs[i]);
    if (node.op->name == "PagedAttention" && i >= 6) {
      return Unimplemented("[PagedAttention] ", DTypeName(half), " caches");
    }
    inputs[i] = ops::Cast(builder, inputs[i], DType::kF32);
  }
  std::vector<Value> results =
      builder.AddMulti(*node.op, inputs, node.attributes, static_cast<int>(node.outputs.size()));
  for (size_t k = 0; k < results.size(); ++k) {
    results[k] = ops::Cast(builder, results[k], graph.type(original.outputs[k]).dtype);
  }
  return results;
}

// x where v is Cast(Cast(x, f32), the type of x): nothing was lost on the way.
Value WithoutRoundTrip(const Builder& builder, Value v, DType to) {
  const ValueInfo& info = builder.graph().info(v);
  if (!IsHalf(to) || info.kind != ValueKind::kNode || info.type.dtype != DType::kF32) return {};
  const Node& node = builder.graph().nodes()[info.index];
  if (node.op->name != "Cast" || builder.dtype(node.inputs[0]) != to) return {};
  return node.inputs[0];
}

// One sweep; sets `lowered` if a lowering put in operators that another sweep must look at.
absl::StatusOr<Graph> Sweep(const Graph& graph, const Backend& backend, bool* lowered) {
  Copier copier(graph);
  Builder& builder = copier.builder();
  const std::vector<bool> live = LiveNodes(graph);
  absl::flat_hash_map<std::string, std::vector<Value>> seen;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    if (!live[i]) continue;
    Node node = graph.nodes()[i];
    std::string key = StrCat(node.op->name, "|", node.attributes.ToString());
    for (Value& v : node.inputs) {
      v = copier.Mapped(v);
      absl::StrAppend(&key, "|", v.id);
    }
    std::vector<Value>& results = seen[key];
    if (results.empty()) {
      builder.SetScope(node.name);
      bool half = false, computes = true;
      for (Value v : node.inputs) half = half || (v.valid() && IsHalf(builder.dtype(v)));
      if (half && NeedsKernel(*node.op)) {
        TANDEM_ASSIGN_OR_RETURN(computes, Computes(backend, builder.graph(), node));
      }
      Value same;
      if (node.op->name == "Cast") {
        same = WithoutRoundTrip(builder, node.inputs[0], graph.type(node.outputs[0]).dtype);
      }
      if (same.valid()) {
        results = {same};
      } else if (!computes) {
        TANDEM_ASSIGN_OR_RETURN(results, ThroughF32(builder, graph, graph.nodes()[i], node));
        *lowered = true;
      } else if (NeedsKernel(*node.op) && backend.Find(node.op->name) == nullptr) {
        if (node.op->lower == nullptr) {
          return Unimplemented("[", node.op->name, "] has no kernel on ", backend.name());
        }
        results = node.op->lower(builder, node);
        *lowered = true;
      } else {
        results = builder.AddMulti(*node.op, node.inputs, node.attributes,
                                   static_cast<int>(node.outputs.size()));
      }
      TANDEM_RETURN_IF_ERROR(builder.status());
    }
    for (size_t k = 0; k < node.outputs.size(); ++k) copier.Set(node.outputs[k], results[k]);
  }
  return copier.Finish();
}

std::vector<int> Uses(const Graph& graph) {
  std::vector<int> uses(graph.value_count(), 0);
  for (const Node& node : graph.nodes()) {
    for (Value v : node.inputs) {
      if (v.valid()) ++uses[v.id];
    }
  }
  for (Value v : graph.outputs()) ++uses[v.id];
  return uses;
}

// Cast(MatMul(a, b) of 16-bit floats, f32) -> MatMul(a, b, out = f32), where nothing else reads it.
absl::StatusOr<Graph> KeepUnroundedProducts(const Graph& graph) {
  const std::vector<int> uses = Uses(graph);
  std::vector<Node> nodes = graph.nodes();
  std::vector<bool> gone(nodes.size(), false);
  bool any = false;
  for (Node& node : nodes) {
    if (node.op->name != "Cast" || graph.type(node.outputs[0]).dtype != DType::kF32) continue;
    const ValueInfo& info = graph.info(node.inputs[0]);
    if (info.kind != ValueKind::kNode || !IsHalf(info.type.dtype)) continue;
    if (uses[node.inputs[0].id] != 1 || graph.nodes()[info.index].op->name != "MatMul") continue;
    Node product = graph.nodes()[info.index];
    product.attributes.Set("out", static_cast<int64_t>(DType::kF32));
    product.outputs = node.outputs;
    node = std::move(product);
    gone[info.index] = true;
    any = true;
  }
  if (!any) return graph;
  Copier copier(graph);
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (!gone[i]) copier.Copy(nodes[i], copier.Inputs(nodes[i]));
  }
  return copier.Finish();
}

// (N), or (1, ..., 1, N) of no higher rank than the product (..., N).
bool IsVector(const TensorType& type, const Shape& product) {
  const Shape& shape = type.shape;
  return type.dtype == DType::kF32 && shape.rank() >= 1 && shape.rank() <= product.rank() &&
         shape[-1] == product[-1] && shape.Count(0, shape.rank() - 1) == 1;
}

// The node whose product this addition could end with its other input as the bias, else -1.
int32_t ProductUnderBias(const Graph& graph, const Node& add, const std::vector<int>& uses,
                         Value* bias) {
  if (add.op->name != "Add") return -1;
  for (int i = 0; i < 2; ++i) {
    const Value product = add.inputs[i], vector = add.inputs[1 - i];
    const ValueInfo& info = graph.info(product);
    if (info.kind != ValueKind::kNode || uses[product.id] != 1) continue;
    const Node& node = graph.nodes()[info.index];
    if (node.op->name != "MatMul" || (node.inputs.size() > 2 && node.inputs[2].valid())) continue;
    if (graph.type(node.inputs[0]).dtype != DType::kF32) continue;
    if (info.type.dtype != DType::kF32 || !IsVector(graph.type(vector), info.type.shape)) continue;
    *bias = vector;
    return info.index;
  }
  return -1;
}

// MatMul(a, b) + vector -> MatMul(a, b, vector).
absl::StatusOr<Graph> FuseBiases(const Graph& graph) {
  const std::vector<int> uses = Uses(graph);
  std::vector<Node> nodes = graph.nodes();
  std::vector<bool> gone(nodes.size(), false);
  bool any = false;
  for (Node& node : nodes) {
    Value bias;
    const int32_t product = ProductUnderBias(graph, node, uses, &bias);
    if (product < 0) continue;
    Node fused = graph.nodes()[product];
    fused.inputs.resize(2);
    fused.inputs.push_back(bias);
    fused.outputs = node.outputs;
    node = std::move(fused);
    gone[product] = true;
    any = true;
  }
  if (!any) return graph;
  Copier copier(graph);
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (gone[i]) continue;
    std::vector<Value> inputs = copier.Inputs(nodes[i]);
    Builder& b = copier.builder();
    if (nodes[i].op->name == "MatMul" && inputs.size() > 2 && b.shape(inputs[2]).rank() > 1) {
      inputs[2] = ops::Reshape(b, inputs[2], Shape{b.shape(inputs[2]).num_elements()});
    }
    copier.Copy(nodes[i], inputs);
  }
  return copier.Finish();
}

// Places of FusedMatMul's inputs.
constexpr size_t kBias = 2, kUp = 3, kResidual = 4;

// What becomes of a product and the node that reads it: one operator.
class EpilogueFusion {
 public:
  EpilogueFusion(const Graph& graph, const Backend& backend)
      : graph_(graph),
        backend_(backend),
        uses_(Uses(graph)),
        nodes_(graph.nodes()),
        gone_(nodes_.size(), false) {}

  absl::StatusOr<Graph> Run() {
    for (Node& node : nodes_) {
      std::vector<int32_t> products;
      Node fused = Fused(node, &products);
      if (products.empty()) continue;
      fused.outputs = node.outputs;
      TANDEM_ASSIGN_OR_RETURN(const bool computes, Computes(backend_, graph_, fused));
      if (!computes) continue;
      node = std::move(fused);
      for (const int32_t product : products) gone_[product] = true;
    }
    Copier copier(graph_);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!gone_[i]) copier.Copy(nodes_[i], copier.Inputs(nodes_[i]));
    }
    return copier.Finish();
  }

 private:
  // The node of the floating-point product that `v` is, and nothing but its one reader sees; else
  // -1.
  int32_t Product(Value v, std::string_view op) const {
    const ValueInfo& info = graph_.info(v);
    const bool candidate = info.kind == ValueKind::kNode && uses_[v.id] == 1 &&
                           nodes_[info.index].op->name == op && IsFloat(info.type.dtype);
    return candidate ? info.index : -1;
  }

  Node Started(int32_t product) const {
    Node fused = nodes_[product];
    fused.op = &ops::kFusedMatMul;
    fused.inputs.resize(kResidual + 1);
    if (!fused.attributes.Has("activation")) fused.attributes.Set("activation", std::string());
    return fused;
  }

  // The operator that does the node's work and that of `products`, which is empty where none can.
  Node Fused(const Node& node, std::vector<int32_t>* products) const {
    const std::string_view op = node.op->name;
    if (op == "Relu" || op == "Silu" || op == "Gelu" || op == "GeluTanh") {
      const int32_t product = Product(node.inputs[0], "MatMul");
      if (product < 0) return {};
      *products = {product};
      Node fused = Started(product);
      fused.attributes.Set("activation", std::string(op));
      return fused;
    }
    if (op == "SwiGlu") {
      const int32_t gate = Product(node.inputs[0], "MatMul"),
                    up = Product(node.inputs[1], "MatMul");
      if (gate < 0 || up < 0 || !AreAPair(nodes_[gate], nodes_[up])) return {};
      *products = {gate, up};
      Node fused = Started(gate);
      fused.inputs[kUp] = nodes_[up].inputs[1];
      return fused;
    }
    if (op != "Add") return {};
    for (int i = 0; i < 2; ++i) {
      const Value residual = node.inputs[1 - i];
      if (graph_.type(residual) != graph_.type(node.inputs[i])) continue;
      int32_t product = Product(node.inputs[i], "FusedMatMul");
      if (product >= 0 && nodes_[product].inputs[kResidual].valid()) continue;
      if (product < 0) product = Product(node.inputs[i], "MatMul");
      if (product < 0) continue;
      *products = {product};
      Node fused = Started(product);
      fused.inputs[kResidual] = residual;
      return fused;
    }
    return {};
  }

  // Products of one left operand with two of the same type, without biases.
  bool AreAPair(const Node& gate, const Node& up) const {
    const auto biased = [](const Node& n) {
      return n.inputs.size() > kBias && n.inputs[kBias].valid();
    };
    return gate.inputs[0] == up.inputs[0] && !biased(gate) && !biased(up) &&
           gate.attributes == up.attributes &&
           graph_.type(gate.inputs[1]) == graph_.type(up.inputs[1]);
  }

  const Graph& graph_;
  const Backend& backend_;
  const std::vector<int> uses_;
  std::vector<Node> nodes_;
  std::vector<bool> gone_;
};

}  // namespace

absl::StatusOr<Graph> ReadParameterCopies(const Graph& graph, DType dtype, int32_t count) {
  Copier copier(graph);
  for (const Node& node : graph.nodes()) {
    const std::vector<Value> inputs = copier.Inputs(node);
    const bool cast = node.op->name == "Cast" && graph.type(node.outputs[0]).dtype == dtype &&
                      graph.info(node.inputs[0]).kind == ValueKind::kParameter;
    if (cast) {
      const ValueInfo& info = graph.info(node.inputs[0]);
      copier.Set(node.outputs[0], copier.builder().Parameter(info.index + count, info.name,
                                                             {dtype, info.type.shape}));
    } else {
      copier.Copy(node, inputs);
    }
  }
  return copier.Finish();
}

absl::StatusOr<Graph> Simplify(const Graph& graph, const Backend& backend) {
  bool lowered = false;
  TANDEM_ASSIGN_OR_RETURN(Graph result, KeepUnroundedProducts(graph));
  TANDEM_ASSIGN_OR_RETURN(result, Sweep(result, backend, &lowered));
  for (int rounds = 0; lowered; ++rounds) {
    if (rounds == 8) return Internal("lowering does not end");
    lowered = false;
    TANDEM_ASSIGN_OR_RETURN(result, Sweep(result, backend, &lowered));
  }
  TANDEM_ASSIGN_OR_RETURN(result, FuseBiases(result));
  if (backend.Find("FusedMatMul") == nullptr) return result;
  return EpilogueFusion(result, backend).Run();
}

}  // namespace tandem
