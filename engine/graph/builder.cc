#include "engine/graph/builder.h"

#include <algorithm>
#include <utility>

namespace tandem {
namespace {

// Constants above this stay nodes: folding may not make a small file a large process.
constexpr int64_t kMaxFoldedBytes = int64_t{64} << 20;

}  // namespace

Value Builder::NewValue(ValueInfo info) {
  graph_.values_.push_back(std::move(info));
  return Value{static_cast<int32_t>(graph_.values_.size() - 1)};
}

Value Builder::Input(std::string_view name, TensorType type) {
  if (!ok()) return {};
  const auto index = static_cast<int32_t>(graph_.inputs_.size());
  const Value v = NewValue({.type = std::move(type),
                            .kind = ValueKind::kInput,
                            .index = index,
                            .output = 0,
                            .name = std::string(name),
                            .constant = nullptr});
  graph_.inputs_.push_back(v);
  return v;
}

Value Builder::Parameter(int32_t index, std::string_view name, TensorType type) {
  if (!ok()) return {};
  auto [it, inserted] = parameters_.try_emplace(index);
  if (inserted) {
    it->second = NewValue({.type = std::move(type),
                           .kind = ValueKind::kParameter,
                           .index = index,
                           .output = 0,
                           .name = std::string(name),
                           .constant = nullptr});
  }
  return it->second;
}

Value Builder::Constant(std::shared_ptr<const Tensor> tensor) {
  if (!ok()) return {};
  TensorType type = tensor->type();
  return NewValue({.type = std::move(type),
                   .kind = ValueKind::kConstant,
                   .index = 0,
                   .output = 0,
                   .name = "",
                   .constant = std::move(tensor)});
}

Value Builder::RandomKey() {
  if (!ok()) return {};
  if (!random_key_.valid()) {
    random_key_ = NewValue({.type = {DType::kI64, {2}},
                            .kind = ValueKind::kRandomKey,
                            .index = 0,
                            .output = 0,
                            .name = "random_key",
                            .constant = nullptr});
  }
  return random_key_;
}

Value Builder::Scalar(double value, DType dtype) {
  return Constant(CastTensor(Tensor::Scalar(value), dtype));
}

Value Builder::Add(const OpDef& op, std::span<const Value> inputs, Attributes attributes) {
  return AddMulti(op, inputs, std::move(attributes), 1)[0];
}

std::vector<Value> Builder::AddMulti(const OpDef& op, std::span<const Value> inputs,
                                     Attributes attributes, int outputs) {
  std::vector<Value> results(outputs);
  if (!ok()) return results;
  const std::string where =
      scope_.empty() ? StrCat("[", op.name, "]") : StrCat("[", op.name, " ", scope_, "]");
  const int count = static_cast<int>(inputs.size());
  if (count < op.min_inputs || count > op.max_inputs) {
    Fail(InvalidArgument(where, " takes ", op.min_inputs, " to ", op.max_inputs, " inputs, got ",
                         count));
    return results;
  }
  std::vector<const TensorType*> types;
  bool all_constant = count > 0;
  for (int i = 0; i < count; ++i) {
    if (!inputs[i].valid() && i < op.min_inputs) {
      Fail(InvalidArgument(where, " input ", i, " is missing"));
      return results;
    }
    types.push_back(inputs[i].valid() ? &type(inputs[i]) : nullptr);
    all_constant = all_constant && (!inputs[i].valid() || constant(inputs[i]) != nullptr);
  }
  absl::StatusOr<std::vector<TensorType>> inferred =
      op.infer({.inputs = types, .attributes = attributes});
  if (!inferred.ok()) {
    Fail(absl::Status(inferred.status().code(), StrCat(where, " ", inferred.status().message())));
    return results;
  }
  int64_t bytes = 0;
  for (const TensorType& t : *inferred) {
    absl::StatusOr<Shape> checked = Shape::Checked(t.shape.dims(), SizeOf(t.dtype), where);
    if (!checked.ok()) {
      Fail(checked.status());
      return results;
    }
    bytes += t.bytes();
  }
  if (static_cast<int>(inferred->size()) != outputs) {
    Fail(Internal(where, " gives ", inferred->size(), " outputs, ", outputs, " were expected"));
    return results;
  }
  if (all_constant && evaluator_ && bytes <= kMaxFoldedBytes) {
    std::vector<const Tensor*> tensors;
    for (Value v : inputs) tensors.push_back(v.valid() ? constant(v) : nullptr);
    absl::StatusOr<std::vector<Tensor>> folded = evaluator_(op, attributes, tensors);
    if (!folded.ok()) {
      Fail(Annotate(folded.status(), where));
      return results;
    }
    for (int i = 0; i < outputs; ++i) results[i] = Constant(std::move((*folded)[i]));
    return results;
  }
  const auto index = static_cast<int32_t>(graph_.nodes_.size());
  for (int i = 0; i < outputs; ++i) {
    results[i] = NewValue({.type = std::move((*inferred)[i]),
                           .kind = ValueKind::kNode,
                           .index = index,
                           .output = i,
                           .name = "",
                           .constant = nullptr});
  }
  graph_.nodes_.push_back({.op = &op,
                           .attributes = std::move(attributes),
                           .inputs = std::vector<Value>(inputs.begin(), inputs.end()),
                           .outputs = results,
                           .name = scope_});
  return results;
}

void Builder::Output(Value value) {
  if (!ok()) return;
  if (!value.valid()) {
    Fail(Internal("an output of the graph is an invalid value"));
    return;
  }
  graph_.outputs_.push_back(value);
}

const TensorType& Builder::type(Value v) const {
  static const TensorType kNone;
  return v.valid() ? graph_.values_[v.id].type : kNone;
}

const Tensor* Builder::constant(Value v) const {
  return v.valid() ? graph_.values_[v.id].constant.get() : nullptr;
}

Value Builder::Fail(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
  return {};
}

absl::StatusOr<Graph> Builder::Finish() {
  if (!ok()) return status_;
  parameters_.clear();
  random_key_ = {};
  random_streams_ = 0;
  return std::exchange(graph_, Graph());
}

}  // namespace tandem
