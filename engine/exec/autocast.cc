#include "engine/exec/autocast.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <utility>

#include "engine/exec/model.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

enum class Rule : uint8_t { kHalf, kF32, kAsGiven };

Rule RuleOf(std::string_view op) {
  static constexpr std::string_view kHalf[] = {"MatMul",         "Conv",      "ConvInputGrad",
                                               "ConvWeightGrad", "Attention", "PagedAttention"};
  static constexpr std::string_view kAsGiven[] = {
      "Neg",         "Abs",       "Sign",      "Tanh",    "Sigmoid",     "Erf",
      "Relu",        "Gelu",      "GeluTanh",  "Silu",    "Sqrt",        "Floor",
      "Ceil",        "Round",     "Add",       "Sub",     "Mul",         "Div",
      "Max",         "Min",       "Equal",     "Less",    "LessOrEqual", "Where",
      "SwiGlu",      "ReduceMax", "ReduceMin", "Reshape", "Transpose",   "BroadcastTo",
      "Slice",       "Unslice",   "Pad",       "Concat",  "Gather",      "MaxPool",
      "AveragePool", "Resize",    "LayerNorm", "RmsNorm", "Rope",        "StraightThrough"};
  const auto among = [op](const auto& names) {
    return std::find(std::begin(names), std::end(names), op) != std::end(names);
  };
  return among(kHalf) ? Rule::kHalf : among(kAsGiven) ? Rule::kAsGiven : Rule::kF32;
}

// Operators through which a product stays unrounded on its way to an f32 operator.
bool PassesUnrounded(std::string_view op) {
  static constexpr std::string_view kNames[] = {"Reshape", "Transpose", "Add",  "Sub",
                                                "Mul",     "Div",       "Where"};
  return std::find(std::begin(kNames), std::end(kNames), op) != std::end(kNames);
}

// The largest finite value.
double Largest(DType dtype) { return dtype == DType::kF16 ? 65504.0 : 0x1.fep127; }

class Rewrite {
 public:
  Rewrite(const Graph& graph, DType dtype, Builder& builder)
      : graph_(graph), dtype_(dtype), b_(builder), values_(graph.value_count()) {}

  absl::StatusOr<std::vector<Value>> Run(std::span<const Value> inputs) {
    if (inputs.size() != graph_.inputs().size()) {
      return Internal("autocast: ", inputs.size(), " inputs for ", graph_.inputs().size());
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      values_[graph_.inputs()[i].id] = {.value = inputs[i], .kind = Kind::kFirm};
    }
    FindUnrounded();
    for (const Node& node : graph_.nodes()) {
      b_.SetScope(node.name);
      Emit(node);
      TANDEM_RETURN_IF_ERROR(b_.status());
    }
    b_.SetScope("");
    std::vector<Value> outputs;
    for (Value v : graph_.outputs()) outputs.push_back(As(v, graph_.type(v).dtype));
    TANDEM_RETURN_IF_ERROR(b_.status());
    return outputs;
  }

 private:
  // kPliant: f32 that takes the type of what it meets; kTable: such, and a parameter.
  enum class Kind : uint8_t { kFirm, kPliant, kTable };
  struct Entry {
    Value value;
    Kind kind = Kind::kFirm;
  };

  bool IsF32(Value v) const { return v.valid() && graph_.type(v).dtype == DType::kF32; }

  // Products whose readers are f32 operators, or operators that hand them on to such.
  void FindUnrounded() {
    std::vector<bool> read(graph_.value_count(), false), rounded(graph_.value_count(), false);
    for (Value v : graph_.outputs()) read[v.id] = true;
    for (size_t i = graph_.nodes().size(); i-- > 0;) {
      const Node& node = graph_.nodes()[i];
      const Rule rule = RuleOf(node.op->name);
      bool out_rounded = true;
      if (rule == Rule::kF32) out_rounded = false;
      if (PassesUnrounded(node.op->name)) {
        const Value out = node.outputs[0];
        out_rounded = !read[out.id] || rounded[out.id];
      }
      for (Value v : node.inputs) {
        if (!v.valid()) continue;
        read[v.id] = true;
        if (out_rounded) rounded[v.id] = true;
      }
    }
    unrounded_.resize(graph_.value_count());
    for (size_t v = 0; v < unrounded_.size(); ++v) unrounded_[v] = read[v] && !rounded[v];
  }

  // A constant is pliant unless 16 bits cannot hold it.
  Kind ConstantKind(const Tensor& tensor) const {
    for (float x : tensor.data<float>()) {
      if (std::isfinite(x) && std::abs(x) > Largest(dtype_)) return Kind::kFirm;
    }
    return Kind::kPliant;
  }

  const Entry& Of(Value v) {
    Entry& entry = values_[v.id];
    if (entry.value.valid()) return entry;
    const ValueInfo& info = graph_.info(v);
    switch (info.kind) {
      case ValueKind::kParameter:
        entry = {b_.Parameter(info.index, info.name, info.type), Kind::kTable};
        break;
      case ValueKind::kRandomKey:
        entry = {b_.RandomKey(), Kind::kFirm};
        break;
      default:
        entry = {b_.Constant(info.constant), Kind::kFirm};
        if (info.type.dtype == DType::kF32) entry.kind = ConstantKind(*info.constant);
    }
    return entry;
  }

  Value As(Value v, DType dtype) {
    const Value value = Of(v).value;
    if (b_.dtype(value) == dtype) return value;
    Value& cast = casts_[{v.id, dtype}];
    if (!cast.valid()) cast = ops::Cast(b_, value, dtype);
    return cast;
  }

  bool IsHalfNow(Value v) { return b_.dtype(Of(v).value) == dtype_; }

  // What an operator that takes its operands as they come computes in.
  DType GivenDType(const Node& node) {
    bool half = false;
    for (Value v : node.inputs) {
      if (!IsF32(v)) continue;
      if (IsHalfNow(v)) {
        half = true;
      } else if (Of(v).kind == Kind::kFirm) {
        return DType::kF32;
      }
    }
    return half ? dtype_ : DType::kF32;
  }

  Kind OutputKind(const Node& node, Rule rule) {
    if (rule != Rule::kAsGiven) return Kind::kFirm;
    const bool pliant = std::all_of(node.inputs.begin(), node.inputs.end(), [&](Value v) {
      return !IsF32(v) || (!IsHalfNow(v) && Of(v).kind != Kind::kFirm);
    });
    const bool floats =
        std::any_of(node.inputs.begin(), node.inputs.end(), [&](Value v) { return IsF32(v); });
    return pliant && floats ? Kind::kPliant : Kind::kFirm;
  }

  void Emit(const Node& node) {
    if (node.op->name == "Cast") return EmitCast(node);
    if (node.op->name == "Gather" && EmitEmbedding(node)) return;
    const Rule rule = RuleOf(node.op->name);
    const bool paged = node.op->name == "PagedAttention";
    DType dtype = rule == Rule::kHalf ? dtype_ : DType::kF32;
    if (rule == Rule::kAsGiven) dtype = GivenDType(node);
    std::vector<Value> inputs;
    for (size_t i = 0; i < node.inputs.size(); ++i) {
      const Value v = node.inputs[i];
      const bool cache = paged && i >= 6;  // written in place: no copy may stand for it
      if (!v.valid()) {
        inputs.emplace_back();
      } else {
        inputs.push_back(IsF32(v) && !cache ? As(v, dtype) : Of(v).value);
      }
    }
    Attributes attributes = node.attributes;
    if (node.op->name == "MatMul" && IsF32(node.outputs[0]) && unrounded_[node.outputs[0].id]) {
      attributes.Set("out", static_cast<int64_t>(DType::kF32));
    }
    const Kind kind = OutputKind(node, rule);
    const std::vector<Value> outputs =
        b_.AddMulti(*node.op, inputs, std::move(attributes), static_cast<int>(node.outputs.size()));
    for (size_t k = 0; k < outputs.size(); ++k) {
      values_[node.outputs[k].id] = {outputs[k], kind};
    }
  }

  // A truth value as a number is as good in 16 bits; other integers may not be.
  void EmitCast(const Node& node) {
    const Value in = node.inputs[0], out = node.outputs[0];
    const DType from = graph_.type(in).dtype, to = graph_.type(out).dtype;
    if (from == to) {
      values_[out.id] = Of(in);
      return;
    }
    const Value result = ops::Cast(b_, Of(in).value, to);
    values_[out.id] = {result,
                       from == DType::kBool && to == DType::kF32 ? Kind::kPliant : Kind::kFirm};
  }

  // Rows of a parameter by computed indices: taken in f32, then rounded.
  bool EmitEmbedding(const Node& node) {
    const Value table = node.inputs[0], indices = Of(node.inputs[1]).value;
    if (!IsF32(table) || Of(table).kind != Kind::kTable || b_.constant(indices) != nullptr) {
      return false;
    }
    const Value rows = b_.Add(*node.op, {Of(table).value, indices}, node.attributes);
    values_[node.outputs[0].id] = {ops::Cast(b_, rows, dtype_), Kind::kFirm};
    return true;
  }

  const Graph& graph_;
  const DType dtype_;
  Builder& b_;
  std::vector<Entry> values_;    // of the builder, by the graph's
  std::vector<bool> unrounded_;  // by value
  std::map<std::pair<int32_t, DType>, Value> casts_;
};

class MixedSource final : public GraphSource {
 public:
  MixedSource(std::shared_ptr<const GraphSource> source, DType dtype)
      : source_(std::move(source)), dtype_(dtype) {}

  std::string_view format() const override { return source_->format(); }
  const std::vector<IoSpec>& inputs() const override { return source_->inputs(); }
  const std::vector<IoSpec>& outputs() const override { return source_->outputs(); }
  const std::vector<ParameterInfo>& parameters() const override { return source_->parameters(); }
  const SequenceModelInfo* sequence() const override { return source_->sequence(); }

  absl::StatusOr<std::vector<Value>> Build(Builder& builder,
                                           std::span<const Value> inputs) const override {
    TANDEM_RETURN_IF_ERROR(builder.status());
    Inner inner(builder);
    std::vector<Value> values;
    for (Value v : inputs) values.push_back(inner.Take(v));
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs,
                            source_->Build(inner.builder, values));
    return inner.Finish(outputs, dtype_);
  }

  Value BuildLogits(Builder& builder, const SequenceValues& sequences) const override {
    if (!builder.ok()) return {};
    Inner inner(builder);
    SequenceValues values = sequences;
    for (Value* v : {&values.tokens, &values.positions, &values.query_start, &values.past_length,
                     &values.block_table, &values.logit_rows}) {
      *v = inner.Take(*v);
    }
    for (Value& v : values.k_cache) v = inner.TakeCache(v);
    for (Value& v : values.v_cache) v = inner.TakeCache(v);
    const Value logits = source_->BuildLogits(inner.builder, values);
    const absl::StatusOr<std::vector<Value>> outputs = inner.Finish({&logits, 1}, dtype_);
    return outputs.ok() ? (*outputs)[0] : builder.Fail(outputs.status());
  }

 private:
  // The f32 graph, on its way into the outer builder.
  struct Inner {
    explicit Inner(Builder& outer_builder) : outer(outer_builder), builder(EvaluateNode) {
      builder.set_random_streams(outer.random_streams());
    }
    // The outer value in the f32 graph: a constant stays one, shapes may depend on it.
    Value Take(Value v) {
      if (!v.valid()) return {};
      const ValueInfo& info = outer.graph().info(v);
      if (info.constant != nullptr) return builder.Constant(info.constant);
      given.push_back(v);
      return builder.Input(info.name, info.type);
    }
    // A KV cache, which the f32 graph thinks to be f32.
    Value TakeCache(Value v) {
      given.push_back(v);
      return builder.Input("cache", {DType::kF32, outer.shape(v)});
    }
    absl::StatusOr<std::vector<Value>> Finish(std::span<const Value> outputs, DType dtype) {
      outer.set_random_streams(builder.random_streams());
      for (Value v : outputs) builder.Output(v);
      TANDEM_ASSIGN_OR_RETURN(const Graph graph, builder.Finish());
      return Autocast(graph, given, dtype, outer);
    }
    Builder& outer;
    Builder builder;
    std::vector<Value> given;
  };

  const std::shared_ptr<const GraphSource> source_;
  const DType dtype_;
};

}  // namespace

std::string_view PrecisionName(Precision precision) { return DTypeName(PrecisionDType(precision)); }

DType PrecisionDType(Precision precision) {
  switch (precision) {
    case Precision::kBF16:
      return DType::kBF16;
    case Precision::kF16:
      return DType::kF16;
    case Precision::kF32:
      break;
  }
  return DType::kF32;
}

absl::StatusOr<std::vector<Value>> Autocast(const Graph& graph, std::span<const Value> inputs,
                                            DType dtype, Builder& builder) {
  return Rewrite(graph, dtype, builder).Run(inputs);
}

std::shared_ptr<const GraphSource> WithPrecision(std::shared_ptr<const GraphSource> source,
                                                 Precision precision) {
  if (precision == Precision::kF32) return source;
  return std::make_shared<MixedSource>(std::move(source), PrecisionDType(precision));
}

DType KvCacheDType(const SequenceModelInfo& info, Precision precision, const Backend& backend) {
  constexpr int64_t kPage = 32;
  const DType dtype = PrecisionDType(precision);
  const OpDef* op = FindOp("PagedAttention");
  const Kernel* kernel = backend.Find(op->name);
  if (precision == Precision::kF32 || kernel == nullptr) return DType::kF32;
  const Attributes attributes = {{"scale", 1.0}};
  const TensorType q{dtype, {1, info.heads, info.head_dim}};
  const TensorType kv{dtype, {1, info.kv_heads, info.head_dim}};
  const TensorType one{DType::kI32, {1}};
  const KernelSpec spec{.backend = &backend,
                        .op = op,
                        .attributes = &attributes,
                        .inputs = {q,
                                   kv,
                                   kv,
                                   {DType::kI32, {2}},
                                   one,
                                   {DType::kI32, {1, 1}},
                                   {dtype, {1, info.kv_heads, info.head_dim, kPage}},
                                   {dtype, {1, info.kv_heads, kPage, info.head_dim}}},
                        .present = std::vector<bool>(8, true),
                        .outputs = {q}};
  return kernel->bind(spec).ok() ? dtype : DType::kF32;
}

}  // namespace tandem
