// Builder: makes a Graph node by node and keeps its first error.
//
// After an error every call returns invalid values and does nothing, so code that builds need not
// check each step: Finish() (or status()) tells. Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/graph/op.h"

namespace tandem {

class Builder {
 public:
  // Evaluates one node on constant inputs. With one, a node whose inputs are all constants becomes
  // constants at once, which is how shape arithmetic in a model file disappears.
  using Evaluator = std::function<absl::StatusOr<std::vector<Tensor>>(
      const OpDef&, const Attributes&, std::span<const Tensor* const>)>;

  Builder() = default;
  explicit Builder(Evaluator evaluator) : evaluator_(std::move(evaluator)) {}
  Builder(const Builder&) = delete;
  Builder& operator=(const Builder&) = delete;

  // A value given at every run, in the order of these calls.
  Value Input(std::string_view name, TensorType type);
  // The model's parameter `index`; asking twice gives the same value.
  Value Parameter(int32_t index, std::string_view name, TensorType type);
  Value Constant(std::shared_ptr<const Tensor> tensor);
  Value Constant(Tensor tensor) {
    return Constant(std::make_shared<const Tensor>(std::move(tensor)));
  }
  // A scalar (rank 0) constant of that dtype.
  Value Scalar(double value, DType dtype = DType::kF32);

  // The key of the run's random numbers (Plan::SetRandomKey), i64 (2): the seed's bits and the
  // call. Asking twice gives the same value.
  Value RandomKey();
  // 0, 1, 2, ...: a number for each random node, so that no two of one graph share their noise. A
  // lowering must keep its node's number instead: the passes build the graph anew.
  int64_t NextRandomStream() { return random_streams_++; }
  // The number that comes next; setting it continues where another builder of the same run stopped.
  int64_t random_streams() const { return random_streams_; }
  void set_random_streams(int64_t next) { random_streams_ = next; }

  // Appends a node. The first form is for operators with one output.
  Value Add(const OpDef& op, std::span<const Value> inputs, Attributes attributes = {});
  Value Add(const OpDef& op, std::initializer_list<Value> inputs, Attributes attributes = {}) {
    return Add(op, std::span<const Value>(inputs.begin(), inputs.size()), std::move(attributes));
  }
  // `outputs` values, whatever happens (invalid ones after an error).
  std::vector<Value> AddMulti(const OpDef& op, std::span<const Value> inputs, Attributes attributes,
                              int outputs);

  void Output(Value value);
  // A name that nodes get from now on, and that error messages begin with.
  void SetScope(std::string_view scope) { scope_ = scope; }

  const TensorType& type(Value v) const;
  const Shape& shape(Value v) const { return type(v).shape; }
  DType dtype(Value v) const { return type(v).dtype; }
  // The tensor behind a constant value, else null.
  const Tensor* constant(Value v) const;
  const Graph& graph() const { return graph_; }

  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }
  // Records an error (the first one stays); returns an invalid value for convenience.
  Value Fail(absl::Status status);

  // The finished graph, or the first error. The builder is empty afterwards.
  absl::StatusOr<Graph> Finish();

 private:
  Value NewValue(ValueInfo info);

  Graph graph_;
  absl::flat_hash_map<int32_t, Value> parameters_;
  Value random_key_;
  int64_t random_streams_ = 0;
  absl::Status status_;
  std::string scope_;
  Evaluator evaluator_;
};

}  // namespace tandem
