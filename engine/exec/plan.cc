#include "engine/exec/plan.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "engine/exec/memory_plan.h"
#include "engine/exec/passes.h"
#include "engine/graph/builder.h"

namespace tandem {

constexpr int64_t kSmallInput = int64_t{1} << 16;  // bytes

// Turns a simplified graph into a plan's steps and addresses.
class PlanCompiler {
 public:
  PlanCompiler(Plan& plan, const Backend& backend)
      : plan_(plan), graph_(plan.graph_), backend_(backend) {}

  absl::Status Compile() {
    FindRoots();
    TANDEM_RETURN_IF_ERROR(BindKernels());
    FindReads();
    FindLifetimes();
    ShareInPlace();
    Place();
    for (Value v : graph_.inputs()) plan_.input_types_.push_back(graph_.type(v));
    for (Value v : graph_.outputs()) plan_.output_types_.push_back(graph_.type(v));
    return absl::OkStatus();
  }

 private:
  // A value's memory is its root's: a reshape's output shares its input's.
  int32_t Root(int32_t id) const {
    while (root_[id] != id) id = root_[id];
    return id;
  }
  bool InArena(int32_t id) const {
    return graph_.info(Value{id}).kind == ValueKind::kNode && output_of_[id] < 0;
  }

  void FindRoots() {
    root_.resize(graph_.value_count());
    for (int32_t i = 0; i < graph_.value_count(); ++i) root_[i] = i;
    for (const Node& node : graph_.nodes()) {
      if (node.op->name == "Reshape") root_[node.outputs[0].id] = Root(node.inputs[0].id);
    }
    output_of_.assign(graph_.value_count(), -1);
    for (size_t k = 0; k < graph_.outputs().size(); ++k) {
      const int32_t root = Root(graph_.outputs()[k].id);
      const bool computed = graph_.info(Value{root}).kind == ValueKind::kNode;
      if (computed && output_of_[root] < 0) output_of_[root] = static_cast<int32_t>(k);
    }
  }

  absl::Status BindKernels() {
    for (const Node& node : graph_.nodes()) {
      if (node.op->name == "Reshape") continue;
      KernelSpec spec{.backend = &backend_,
                      .op = node.op,
                      .attributes = &node.attributes,
                      .inputs = {},
                      .present = {},
                      .outputs = {}};
      for (Value v : node.inputs) {
        spec.present.push_back(v.valid());
        spec.inputs.push_back(v.valid() ? graph_.type(v) : TensorType{});
      }
      for (Value v : node.outputs) spec.outputs.push_back(graph_.type(v));
      const Kernel* kernel = backend_.Find(node.op->name);
      absl::StatusOr<BoundKernel> bound = kernel->bind(spec);
      if (!bound.ok()) {
        const std::string where =
            StrCat("[", node.op->name, node.name.empty() ? "" : " ", node.name, "]");
        return Annotate(bound.status(), where);
      }
      plan_.steps_.push_back({.kernel = std::move(*bound),
                              .name = std::string(node.op->name),
                              .inputs = {},
                              .outputs = {},
                              .scratch_offset = 0});
      nodes_.push_back(&node);
      kernels_.push_back(kernel);
    }
    return absl::OkStatus();
  }

  // Whether an output of a kernel that can do without it has no reader.
  bool Skipped(size_t step, Value v) const {
    return kernels_[step]->skips_unused_outputs && v != nodes_[step]->outputs[0] && !read_[v.id];
  }

  void FindReads() {
    read_.assign(graph_.value_count(), false);
    for (const Node& node : graph_.nodes()) {
      for (Value v : node.inputs) {
        if (v.valid()) read_[v.id] = true;
      }
    }
    for (Value v : graph_.outputs()) read_[v.id] = true;
  }

  void FindLifetimes() {
    first_.assign(graph_.value_count(), 0);
    last_.assign(graph_.value_count(), -1);
    for (int32_t step = 0; step < static_cast<int32_t>(nodes_.size()); ++step) {
      for (Value v : nodes_[step]->outputs) {
        first_[Root(v.id)] = step;
        last_[Root(v.id)] = std::max(last_[Root(v.id)], step);
      }
      for (Value v : nodes_[step]->inputs) {
        if (v.valid()) last_[Root(v.id)] = step;
      }
    }
    // An output that could not get its own place is copied at the end.
    for (size_t k = 0; k < graph_.outputs().size(); ++k) {
      const int32_t root = Root(graph_.outputs()[k].id);
      if (output_of_[root] != static_cast<int32_t>(k)) {
        last_[root] = static_cast<int32_t>(nodes_.size());
      }
    }
  }

  // Gives the output of an element-by-element kernel the memory of an input that ends there.
  void ShareInPlace() {
    for (int32_t step = 0; step < static_cast<int32_t>(nodes_.size()); ++step) {
      if (!kernels_[step]->in_place) continue;
      const int32_t out = nodes_[step]->outputs[0].id;
      if (Root(out) != out || !InArena(out)) continue;
      const int64_t bytes = graph_.type(Value{out}).bytes();
      for (Value v : nodes_[step]->inputs) {
        if (!v.valid()) continue;
        const int32_t in = Root(v.id);
        if (!InArena(in) || last_[in] != step || graph_.type(Value{in}).bytes() != bytes) continue;
        root_[out] = in;
        last_[in] = last_[out];
        break;
      }
    }
  }

  void Place() {
    std::vector<MemoryBlock> blocks;
    absl::flat_hash_map<int32_t, size_t> block_of;
    absl::flat_hash_set<int32_t> skipped;
    for (size_t step = 0; step < nodes_.size(); ++step) {
      for (Value v : nodes_[step]->outputs) {
        if (Skipped(step, v)) skipped.insert(v.id);
      }
    }
    for (int32_t id = 0; id < graph_.value_count(); ++id) {
      if (Root(id) != id || !InArena(id) || skipped.contains(id)) continue;
      block_of[id] = blocks.size();
      blocks.push_back({.bytes = graph_.type(Value{id}).bytes(),
                        .first = first_[id],
                        .last = std::max(first_[id], last_[id])});
    }
    const size_t scratch_begin = blocks.size();
    for (int32_t step = 0; step < static_cast<int32_t>(nodes_.size()); ++step) {
      blocks.push_back(
          {.bytes = plan_.steps_[step].kernel.scratch_bytes, .first = step, .last = step});
    }
    plan_.arena_bytes_ = AssignOffsets(blocks);

    const auto locate = [&](Value v) -> Plan::Location {
      if (!v.valid()) return {};
      const int32_t root = Root(v.id);
      const ValueInfo& info = graph_.info(Value{root});
      switch (info.kind) {
        case ValueKind::kInput:
          return {Plan::Place::kInput, info.index};
        case ValueKind::kParameter:
          return {Plan::Place::kParameter, info.index};
        case ValueKind::kConstant:
          plan_.constants_.push_back(info.constant);
          return {Plan::Place::kConstant, static_cast<int64_t>(plan_.constants_.size()) - 1};
        case ValueKind::kRandomKey:
          return {Plan::Place::kRandomKey, 0};
        case ValueKind::kNode:
          break;
      }
      if (output_of_[root] >= 0) return {Plan::Place::kOutput, output_of_[root]};
      return {Plan::Place::kArena, blocks[block_of[root]].offset};
    };
    size_t most_inputs = 0, most_outputs = 0;
    for (size_t step = 0; step < nodes_.size(); ++step) {
      Plan::Step& target = plan_.steps_[step];
      for (Value v : nodes_[step]->inputs) target.inputs.push_back(locate(v));
      for (Value v : nodes_[step]->outputs) {
        target.outputs.push_back(locate(skipped.contains(v.id) ? Value{} : v));
      }
      target.scratch_offset = blocks[scratch_begin + step].offset;
      most_inputs = std::max(most_inputs, target.inputs.size());
      most_outputs = std::max(most_outputs, target.outputs.size());
    }
    plan_.input_pointers_.resize(most_inputs);
    plan_.output_pointers_.resize(most_outputs);
    for (size_t k = 0; k < graph_.outputs().size(); ++k) {
      const Value v = graph_.outputs()[k];
      const Plan::Location from = locate(v);
      if (from.place == Plan::Place::kOutput && from.index == static_cast<int64_t>(k)) continue;
      plan_.output_copies_.push_back({from, static_cast<int64_t>(k), graph_.type(v).bytes()});
    }
  }

  Plan& plan_;
  const Graph& graph_;
  const Backend& backend_;
  std::vector<int32_t> root_, output_of_, first_, last_;
  std::vector<bool> read_;          // whether a node or an output of the graph reads the value
  std::vector<const Node*> nodes_;  // of each step
  std::vector<const Kernel*> kernels_;
};

absl::StatusOr<std::byte*> Workspace::Reserve(int64_t bytes) {
  if (bytes > memory_.bytes()) {
    memory_ = DeviceMemory();  // the old one goes first
    TANDEM_ASSIGN_OR_RETURN(memory_, DeviceMemory::Allocate(backend_, bytes));
  }
  return memory_.data();
}

absl::StatusOr<std::unique_ptr<Plan>> Plan::Compile(Graph graph, const Backend& backend,
                                                    std::shared_ptr<Workspace> workspace) {
  auto plan = std::make_unique<Plan>();
  plan->backend_ = &backend;
  TANDEM_ASSIGN_OR_RETURN(plan->graph_, Simplify(graph, backend));
  plan->workspace_ =
      workspace != nullptr ? std::move(workspace) : std::make_shared<Workspace>(backend);
  TANDEM_RETURN_IF_ERROR(PlanCompiler(*plan, backend).Compile());
  TANDEM_RETURN_IF_ERROR(plan->UploadConstants());
  return plan;
}

absl::Status Plan::UploadConstants() {
  if (backend_->host_memory()) return absl::OkStatus();
  for (const std::shared_ptr<const Tensor>& constant : constants_) {
    TANDEM_ASSIGN_OR_RETURN(DeviceMemory memory,
                            DeviceMemory::Allocate(*backend_, constant->bytes()));
    backend_->Upload(memory.data(), constant->raw(), constant->bytes());
    device_constants_.push_back(std::move(memory));
  }
  return absl::OkStatus();
}

absl::Status Plan::Stage(std::span<const Address> inputs, std::span<const Address> outputs) {
  int64_t bytes = arena_bytes_;
  const auto take = [&bytes](int64_t size) {
    const int64_t offset = (bytes + 63) / 64 * 64;
    bytes = offset + size;
    return offset;
  };
  const int64_t key = take(sizeof(random_key_));
  std::vector<int64_t> input_offsets, output_offsets;
  input_offsets.resize(inputs.size());
  for (const bool small : {true, false}) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const int64_t size = input_types_[i].bytes();
      if (inputs[i].host && (size <= kSmallInput) == small) input_offsets[i] = take(size);
    }
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    output_offsets.push_back(outputs[i].host ? take(output_types_[i].bytes()) : 0);
  }
  TANDEM_ASSIGN_OR_RETURN(arena_, workspace_->Reserve(bytes));
  key_ = arena_ + key;
  // Small inputs travel together: each upload is a wait.
  small_inputs_.assign(sizeof(random_key_), std::byte{});
  std::memcpy(small_inputs_.data(), random_key_.data(), sizeof(random_key_));
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].host) continue;
    const int64_t bytes = input_types_[i].bytes();
    inputs_[i] = arena_ + input_offsets[i];
    if (bytes > kSmallInput) {
      backend_->Upload(inputs_[i], inputs[i].data, bytes);
    } else if (bytes > 0) {
      small_inputs_.resize(input_offsets[i] - key + bytes);
      std::memcpy(small_inputs_.data() + input_offsets[i] - key, inputs[i].data, bytes);
    }
  }
  backend_->Upload(arena_ + key, small_inputs_.data(), static_cast<int64_t>(small_inputs_.size()));
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].host) outputs_[i] = arena_ + output_offsets[i];
  }
  return absl::OkStatus();
}

void* Plan::Resolve(const Location& location) const {
  switch (location.place) {
    case Place::kArena:
      return arena_ + location.index;
    case Place::kInput:
      return inputs_[location.index];
    case Place::kParameter:
      return const_cast<void*>(parameters_[location.index]);
    case Place::kConstant:
      return backend_->host_memory() ? const_cast<void*>(constants_[location.index]->raw())
                                     : device_constants_[location.index].data();
    case Place::kRandomKey:
      return const_cast<void*>(key_);
    case Place::kOutput:
      return outputs_[location.index];
    case Place::kAbsent:
      return nullptr;
  }
  return nullptr;
}

void Plan::RunStep(const Step& step) {
  for (size_t i = 0; i < step.inputs.size(); ++i) input_pointers_[i] = Resolve(step.inputs[i]);
  for (size_t i = 0; i < step.outputs.size(); ++i) output_pointers_[i] = Resolve(step.outputs[i]);
  step.kernel.run({.inputs = {input_pointers_.data(), step.inputs.size()},
                   .outputs = {output_pointers_.data(), step.outputs.size()},
                   .scratch = arena_ + step.scratch_offset});
}

void Plan::RunSteps() {
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (profile_ == nullptr) {
      RunStep(steps_[i]);
      continue;
    }
    const auto begin = std::chrono::steady_clock::now();
    RunStep(steps_[i]);
    backend_->Finish().IgnoreError();  // the end of Run reports it
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    profile_->Add(i, steps_[i].name, taken.count());
  }
  for (const OutputCopy& copy : output_copies_) {
    backend_->Copy(outputs_[copy.output], Resolve(copy.from), copy.bytes);
  }
}

void Plan::Submit() {
  latest_.assign({arena_, key_});
  latest_.insert(latest_.end(), inputs_.begin(), inputs_.end());
  latest_.insert(latest_.end(), outputs_.begin(), outputs_.end());
  latest_.insert(latest_.end(), parameters_.begin(), parameters_.end());
  if (profile_ != nullptr || latest_ != recorded_) {
    recording_ = nullptr;
    recorded_.swap(latest_);
    RunSteps();
    return;
  }
  // The second run in a row at these addresses: the first one has loaded every kernel.
  if (recording_ == nullptr) recording_ = backend_->Record([this] { RunSteps(); });
  if (recording_ != nullptr) {
    recording_->Replay();
  } else {
    RunSteps();
  }
}

absl::Status Plan::Run(std::span<const Address> inputs, std::span<const void* const> parameters,
                       std::span<const Address> outputs) {
  parameters_ = parameters;
  inputs_.clear();
  outputs_.clear();
  for (const Address& input : inputs) inputs_.push_back(input.data);
  for (const Address& output : outputs) outputs_.push_back(output.data);
  if (backend_->host_memory()) {
    TANDEM_ASSIGN_OR_RETURN(arena_, workspace_->Reserve(arena_bytes_));
    key_ = random_key_.data();
    RunSteps();
    return absl::OkStatus();
  }
  TANDEM_RETURN_IF_ERROR(Stage(inputs, outputs));
  Submit();
  bool any = false;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].host) continue;
    backend_->Download(outputs[i].data, outputs_[i], output_types_[i].bytes());
    any = true;
  }
  return any ? backend_->Finish() : absl::OkStatus();
}

void PlanProfile::Add(size_t step, const std::string& op, double seconds) {
  if (step_seconds_.size() <= step) step_seconds_.resize(step + 1, 0);
  step_seconds_[step] += seconds;
  Row& row = rows_[op];
  row.seconds += seconds;
  ++row.calls;
}

std::string PlanProfile::ToString(int64_t runs) const {
  std::vector<std::pair<std::string, Row>> sorted(rows_.begin(), rows_.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  double total = 0;
  for (const auto& [name, row] : sorted) total += row.seconds;
  std::string text = absl::StrFormat("%-28s %6s %10s %6s\n", "operator", "calls", "us", "share");
  for (const auto& [name, row] : sorted) {
    absl::StrAppendFormat(&text, "%-28s %6d %10.1f %5.1f%%\n", name, row.calls / runs,
                          row.seconds / static_cast<double>(runs) * 1e6, 100 * row.seconds / total);
  }
  return text;
}

absl::StatusOr<std::vector<Tensor>> RunToHost(Plan& plan, std::span<const Address> inputs,
                                              std::span<const void* const> parameters) {
  std::vector<Tensor> outputs;
  std::vector<Address> addresses;
  for (const TensorType& type : plan.output_types()) outputs.emplace_back(type);
  for (const Tensor& tensor : outputs) addresses.push_back(OnHost(tensor));
  TANDEM_RETURN_IF_ERROR(plan.Run(inputs, parameters, addresses));
  return outputs;
}

absl::StatusOr<std::vector<Tensor>> RunPlan(Plan& plan, std::span<const Tensor* const> inputs,
                                            std::span<const void* const> parameters) {
  if (inputs.size() != plan.input_types().size()) {
    return InvalidArgument("the plan takes ", plan.input_types().size(), " inputs, got ",
                           inputs.size());
  }
  std::vector<Address> addresses;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i]->type() != plan.input_types()[i]) {
      return InvalidArgument("input ", i, " is ", inputs[i]->type().ToString(), ", expected ",
                             plan.input_types()[i].ToString());
    }
    addresses.push_back(OnHost(*inputs[i]));
  }
  return RunToHost(plan, addresses, parameters);
}

absl::StatusOr<std::vector<Tensor>> EvaluateNode(const OpDef& op, const Attributes& attributes,
                                                 std::span<const Tensor* const> inputs) {
  Builder builder;
  std::vector<Value> values;
  std::vector<const Tensor*> tensors;
  std::vector<const TensorType*> types;
  for (const Tensor* tensor : inputs) {
    values.push_back(tensor == nullptr ? Value{} : builder.Input("", tensor->type()));
    types.push_back(tensor == nullptr ? nullptr : &tensor->type());
    if (tensor != nullptr) tensors.push_back(tensor);
  }
  TANDEM_ASSIGN_OR_RETURN(const std::vector<TensorType> outputs,
                          op.infer({.inputs = types, .attributes = attributes}));
  for (Value v : builder.AddMulti(op, values, attributes, static_cast<int>(outputs.size()))) {
    builder.Output(v);
  }
  TANDEM_ASSIGN_OR_RETURN(Graph graph, builder.Finish());
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Plan> plan,
                          Plan::Compile(std::move(graph), CpuBackend()));
  return RunPlan(*plan, tensors);
}

}  // namespace tandem
