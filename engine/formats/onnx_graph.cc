#include "engine/formats/onnx_graph.h"

#include <algorithm>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_context.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/formats/onnx_uses.h"

namespace tandem {
namespace {

// Far above real models, far below what would hurt.
constexpr int64_t kMaxNodes = 200'000;
constexpr int kMaxGraphDepth = 12;
constexpr int kMaxCallDepth = 24;

}  // namespace

std::string NodeLabel(const onnx::NodeProto& node) {
  const std::string& name =
      !node.name().empty() || node.output_size() == 0 ? node.name() : node.output(0);
  return StrCat("'", name, "' (", node.op_type(), ")");
}

class GraphChecker {
 public:
  explicit GraphChecker(GraphIndex& index) : index_(index) {}

  absl::Status CheckModel() {
    const onnx::ModelProto& model = *index_.model_;
    TANDEM_ASSIGN_OR_RETURN(index_.opsets_[nullptr], Opsets(model.opset_import()));
    for (const onnx::FunctionProto& function : model.functions()) {
      const std::pair<std::string_view, std::string_view> key(function.domain(), function.name());
      if (!index_.functions_.try_emplace(key, &function).second) {
        return InvalidArgument("two functions are named '", function.name(), "'");
      }
    }
    for (const onnx::FunctionProto& function : model.functions()) {
      TANDEM_RETURN_IF_ERROR(CheckFunction(function).status());
    }
    FreeNames free;
    TANDEM_RETURN_IF_ERROR(CheckGraph(model.graph(), 0, free));
    if (!free.empty()) return Dangling(*free.begin());
    return absl::OkStatus();
  }

 private:
  // Names that are read but not made in a graph, with the label of a node that reads each.
  using FreeNames = absl::flat_hash_map<std::string_view, std::string>;
  // Who makes a name: a node by its index, or -1 for inputs and initializers.
  using Producers = absl::flat_hash_map<std::string_view, int>;

  static absl::Status Dangling(const std::pair<const std::string_view, std::string>& free) {
    return InvalidArgument("node ", free.second, " reads '", free.first,
                           "', which no input, initializer or node makes");
  }

  template <typename Imports>
  static absl::StatusOr<OpsetVersions> Opsets(const Imports& imports) {
    OpsetVersions versions;
    if (imports.empty()) return InvalidArgument("no opset_import: the operator set is unknown");
    for (const auto& import : imports) {
      const std::string domain(CanonicalDomain(import.domain()));
      if (!versions.try_emplace(domain, import.version()).second) {
        return InvalidArgument("opset_import gives domain '", domain, "' twice");
      }
      if (domain.empty() && (import.version() < 1 || import.version() > kMaxOnnxOpset)) {
        return Unimplemented("opset version ", import.version(), " is not supported (1 to ",
                             kMaxOnnxOpset, " are)");
      }
    }
    return versions;
  }

  // Depth of calls below a function, itself included; each function's body is checked once.
  absl::StatusOr<int> CheckFunction(const onnx::FunctionProto& function) {
    if (open_calls_ > kMaxCallDepth) {
      return InvalidArgument("functions call each other more than ", kMaxCallDepth, " deep");
    }
    const auto [it, inserted] = call_depths_.try_emplace(&function, kOpen);
    if (!inserted) {
      if (it->second != kOpen) return it->second;
      return InvalidArgument("function '", function.name(), "' calls itself");
    }
    const onnx::FunctionProto* caller = std::exchange(function_, &function);
    const int caller_depth = std::exchange(callee_depth_, 0);
    ++open_calls_;
    const absl::Status status = CheckFunctionBody(function);
    --open_calls_;
    const int depth = 1 + std::exchange(callee_depth_, caller_depth);
    function_ = caller;
    TANDEM_RETURN_IF_ERROR(Annotate(status, StrCat("function '", function.name(), "'")));
    if (depth > kMaxCallDepth) {
      return InvalidArgument("functions call each other more than ", kMaxCallDepth, " deep");
    }
    call_depths_[&function] = depth;
    return depth;
  }

  absl::Status CheckFunctionBody(const onnx::FunctionProto& function) {
    TANDEM_ASSIGN_OR_RETURN(index_.opsets_[&function], Opsets(function.opset_import()));
    Producers producers;
    for (const std::string& name : function.input()) {
      TANDEM_RETURN_IF_ERROR(Define(name, -1, producers));
    }
    FreeNames free;
    TANDEM_RETURN_IF_ERROR(CheckNodes(function.node(), &function, 0, producers, free));
    for (const std::string& name : function.output()) {
      if (!producers.contains(name)) return InvalidArgument("nothing makes output '", name, "'");
    }
    if (!free.empty()) return Dangling(*free.begin());
    return absl::OkStatus();
  }

  static absl::Status Define(const std::string& name, int producer, Producers& producers) {
    if (!producers.try_emplace(name, producer).second) {
      return InvalidArgument("'", name, "' is made twice");
    }
    return absl::OkStatus();
  }

  absl::Status CheckGraph(const onnx::GraphProto& graph, int depth, FreeNames& free) {
    if (depth > kMaxGraphDepth) {
      return InvalidArgument("subgraphs are nested more than ", kMaxGraphDepth, " deep");
    }
    if (graph.sparse_initializer_size() > 0) {
      return Unimplemented("sparse initializers are not supported");
    }
    Producers producers;
    for (const onnx::TensorProto& tensor : graph.initializer()) {
      if (tensor.name().empty()) return InvalidArgument("an initializer has no name");
      TANDEM_RETURN_IF_ERROR(Define(tensor.name(), -1, producers));
      if (depth > 0) TANDEM_RETURN_IF_ERROR(ReadConstant(tensor, tensor.name()));
    }
    NameSet inputs;
    for (const onnx::ValueInfoProto& input : graph.input()) {
      if (!inputs.insert(input.name()).second) {
        return InvalidArgument("two inputs are named '", input.name(), "'");
      }
      producers.try_emplace(input.name(), -1);  // it may be an initializer's default
    }
    TANDEM_RETURN_IF_ERROR(CheckNodes(graph.node(), &graph, depth, producers, free));
    for (const onnx::ValueInfoProto& output : graph.output()) {
      if (producers.contains(output.name())) continue;
      if (depth == 0)
        return InvalidArgument("nothing makes the graph's output '", output.name(), "'");
      free.try_emplace(output.name(), "(a subgraph's output)");
    }
    return absl::OkStatus();
  }

  template <typename Nodes>
  absl::Status CheckNodes(const Nodes& nodes, const void* owner, int depth, Producers& producers,
                          FreeNames& free) {
    node_count_ += nodes.size();
    if (node_count_ > kMaxNodes) return ResourceExhausted("more than ", kMaxNodes, " nodes");
    for (int i = 0; i < nodes.size(); ++i) {
      for (const std::string& output : nodes[i].output()) {
        if (!output.empty()) TANDEM_RETURN_IF_ERROR(Define(output, i, producers));
      }
    }
    std::vector<std::vector<int>> reads(nodes.size());  // the nodes that node i waits for
    for (int i = 0; i < nodes.size(); ++i) {
      const onnx::NodeProto& node = nodes[i];
      FreeNames names;
      TANDEM_RETURN_IF_ERROR(
          Annotate(CheckNode(node, depth, names), StrCat("node ", NodeLabel(node))));
      for (auto& [name, reader] : names) {
        const auto it = producers.find(name);
        if (it == producers.end()) {
          free.try_emplace(name, std::move(reader));
        } else if (it->second >= 0) {
          reads[i].push_back(it->second);
        }
      }
    }
    return Sort(nodes, reads, index_.orders_[owner]);
  }

  // Everything that can be said of a node without its neighbours; `names` gets what it reads.
  absl::Status CheckNode(const onnx::NodeProto& node, int depth, FreeNames& names) {
    for (const std::string& input : node.input()) {
      if (!input.empty()) names.try_emplace(input, NodeLabel(node));
    }
    TANDEM_RETURN_IF_ERROR(CheckOperator(node));
    NameSet attributes;
    for (const onnx::AttributeProto& attribute : node.attribute()) {
      if (!attributes.insert(attribute.name()).second) {
        return InvalidArgument("attribute '", attribute.name(), "' is given twice");
      }
      if (!attribute.ref_attr_name().empty()) {
        TANDEM_RETURN_IF_ERROR(CheckReference(attribute));
      }
      if (attribute.has_t()) {
        TANDEM_RETURN_IF_ERROR(
            ReadConstant(attribute.t(), StrCat("attribute '", attribute.name(), "'")));
      }
      if (attribute.graphs_size() > 0) {
        return Unimplemented("attribute '", attribute.name(), "' is a list of graphs");
      }
      const bool is_graph = attribute.type() == onnx::AttributeProto::GRAPH;
      if (is_graph && !attribute.has_g() && attribute.ref_attr_name().empty()) {
        return InvalidArgument("attribute '", attribute.name(), "' has no graph");
      }
      if (attribute.has_g()) TANDEM_RETURN_IF_ERROR(CheckGraph(attribute.g(), depth + 1, names));
    }
    return absl::OkStatus();
  }

  absl::Status CheckOperator(const onnx::NodeProto& node) {
    if (const onnx::FunctionProto* function = index_.FindFunction(node); function != nullptr) {
      TANDEM_ASSIGN_OR_RETURN(const int depth, CheckFunction(*function));
      callee_depth_ = std::max(callee_depth_, depth);
      if (node.input_size() > function->input_size() ||
          node.output_size() > function->output_size()) {
        return InvalidArgument("a call with ", node.input_size(), " inputs and ",
                               node.output_size(), " outputs of a function with ",
                               function->input_size(), " and ", function->output_size());
      }
      return absl::OkStatus();
    }
    const std::string_view domain = CanonicalDomain(node.domain());
    if (!index_.opsets_.at(function_).contains(std::string(domain))) {
      return InvalidArgument("no opset_import for its domain '", domain, "'");
    }
    const OnnxOp* op = domain.empty() ? FindOnnxOp(node.op_type()) : nullptr;
    if (op == nullptr) {
      return Unimplemented("operator '", node.op_type(), "' of domain '",
                           domain.empty() ? "ai.onnx" : domain, "' is not supported");
    }
    if (node.input_size() < op->min_inputs || node.input_size() > op->max_inputs) {
      return InvalidArgument(
          "has ", node.input_size(), " inputs, expected ", op->min_inputs,
          op->max_inputs == kAnyCount ? " or more" : StrCat(" to ", op->max_inputs));
    }
    for (int i = 0; i < op->min_inputs; ++i) {
      if (node.input(i).empty()) return InvalidArgument("input ", i, " is missing");
    }
    return absl::OkStatus();
  }

  // Only attributes that the function declares without a default can be referred to.
  absl::Status CheckReference(const onnx::AttributeProto& attribute) const {
    if (function_ == nullptr) {
      return InvalidArgument("attribute '", attribute.name(), "' refers to '",
                             attribute.ref_attr_name(), "' outside a function");
    }
    for (const std::string& declared : function_->attribute()) {
      if (declared == attribute.ref_attr_name()) return absl::OkStatus();
    }
    return Unimplemented("attribute '", attribute.name(), "' refers to '",
                         attribute.ref_attr_name(),
                         "', which the function does not declare, or gives a default");
  }

  absl::Status ReadConstant(const onnx::TensorProto& proto, std::string_view what) {
    TANDEM_ASSIGN_OR_RETURN(Tensor tensor, TensorFromProto(proto, what));
    const DType dtype = ComputeDType(tensor.dtype());
    if (dtype != tensor.dtype()) tensor = CastTensor(tensor, dtype);
    index_.constants_[&proto] = std::make_shared<const Tensor>(std::move(tensor));
    return absl::OkStatus();
  }

  // Kahn's algorithm; keeps the file's order where that is already a good one.
  template <typename Nodes>
  static absl::Status Sort(const Nodes& nodes, const std::vector<std::vector<int>>& reads,
                           std::vector<int>& order) {
    const int count = nodes.size();
    std::vector<int> waiting(count, 0);
    std::vector<std::vector<int>> readers(count);
    for (int i = 0; i < count; ++i) {
      waiting[i] = static_cast<int>(reads[i].size());
      for (const int producer : reads[i]) readers[producer].push_back(i);
    }
    std::vector<int> ready;
    for (int i = count - 1; i >= 0; --i) {
      if (waiting[i] == 0) ready.push_back(i);
    }
    order.reserve(count);
    while (!ready.empty()) {
      const int i = ready.back();
      ready.pop_back();
      order.push_back(i);
      for (const int reader : readers[i]) {
        if (--waiting[reader] == 0) ready.push_back(reader);
      }
    }
    if (static_cast<int>(order.size()) == count) return absl::OkStatus();
    for (int i = 0; i < count; ++i) {
      if (waiting[i] > 0) {
        return InvalidArgument("the graph has a cycle through node ", NodeLabel(nodes[i]));
      }
    }
    return absl::OkStatus();
  }

  GraphIndex& index_;
  const onnx::FunctionProto* function_ = nullptr;  // whose body is checked
  int64_t node_count_ = 0;
  static constexpr int kOpen = 0;  // being checked
  absl::flat_hash_map<const onnx::FunctionProto*, int> call_depths_;
  int callee_depth_ = 0;  // the deepest so far of those that function_ calls
  int open_calls_ = 0;    // functions being checked, which bounds the recursion
};

const onnx::FunctionProto* GraphIndex::FindFunction(const onnx::NodeProto& node) const {
  const auto it =
      functions_.find(std::pair<std::string_view, std::string_view>(node.domain(), node.op_type()));
  return it == functions_.end() ? nullptr : it->second;
}

absl::StatusOr<GraphIndex> GraphIndex::Make(const onnx::ModelProto& model) {
  GraphIndex index;
  index.model_ = &model;
  TANDEM_RETURN_IF_ERROR(GraphChecker(index).CheckModel());
  ValueUses uses = AnalyzeUses(index, model.graph());
  index.shape_names_ = std::move(uses.shape);
  index.trained_names_ = std::move(uses.trained);
  return index;
}

}  // namespace tandem
