// Plan: a graph made runnable on one backend: dead nodes gone, kernels bound, memory laid out.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/graph/graph.h"

namespace tandem {

// Memory of a backend that plans which never run at the same time share. Not thread-safe.
class Workspace {
 public:
  explicit Workspace(const Backend& backend) : backend_(backend) {}
  // At least that many bytes, 64-byte aligned; what was there before is lost when it grows.
  absl::StatusOr<std::byte*> Reserve(int64_t bytes);
  int64_t bytes() const { return memory_.bytes(); }

 private:
  const Backend& backend_;
  DeviceMemory memory_;
};

// Where a run finds an input or puts an output: in the backend's memory, or in the host's, from and
// to which the run then copies.
struct Address {
  void* data = nullptr;
  bool host = false;
};
inline Address OnHost(const Tensor& tensor) { return {const_cast<void*>(tensor.raw()), true}; }
inline Address OnHost(const void* data) { return {const_cast<void*>(data), true}; }
inline Address OnDevice(const void* data) { return {const_cast<void*>(data), false}; }

// Where the time of runs goes, operator by operator and step by step: for benchmarks and analysis.
class PlanProfile {
 public:
  void Add(size_t step, const std::string& op, double seconds);
  // Of all runs, by the plan's step; meaningful where one plan alone was profiled.
  const std::vector<double>& step_seconds() const { return step_seconds_; }
  // A table, slowest operator first; times are the mean of `runs` runs.
  std::string ToString(int64_t runs) const;

 private:
  struct Row {
    double seconds = 0;
    int64_t calls = 0;
  };
  std::map<std::string, Row> rows_;
  std::vector<double> step_seconds_;
};

class Plan {
 public:
  // Errors: an operator that the backend has no kernel for and that does not lower, named. Without
  // a workspace the plan has one of its own.
  static absl::StatusOr<std::unique_ptr<Plan>> Compile(Graph graph, const Backend& backend,
                                                       std::shared_ptr<Workspace> workspace = {});

  // Runs the graph. `inputs` are the addresses of graph.inputs() in order, `parameters` the address
  // of each model parameter by its index (in the backend's memory), `outputs` where to write
  // graph.outputs() in order. An output may share memory with the input whose value it replaces
  // only where every reader of that input is an in-place kernel (the optimizer). Not thread-safe:
  // one arena. Outputs on the host are there on return, others when the backend gets to it. Errors:
  // no memory; a failure of the device.
  absl::Status Run(std::span<const Address> inputs, std::span<const void* const> parameters,
                   std::span<const Address> outputs);

  // The key of the graph's random numbers from now on: the same key gives the same numbers, another
  // seed or call gives others. {0, 0} until it is set.
  void SetRandomKey(uint64_t seed, uint64_t call) { random_key_ = {seed, call}; }

  const std::vector<TensorType>& input_types() const { return input_types_; }
  const std::vector<TensorType>& output_types() const { return output_types_; }
  // The graph after the passes. Each of its nodes is a step, in order, but reshapes, which only
  // rename memory.
  const Graph& graph() const { return graph_; }
  const Backend& backend() const { return *backend_; }
  // Memory that a run needs for intermediate values and kernels' scratch.
  int64_t arena_bytes() const { return arena_bytes_; }
  int64_t step_count() const { return static_cast<int64_t>(steps_.size()); }
  // From now on each run adds its steps' times; null: off.
  void set_profile(PlanProfile* profile) { profile_ = profile; }

 private:
  enum class Place : uint8_t {
    kArena,
    kInput,
    kParameter,
    kConstant,
    kRandomKey,
    kOutput,
    kAbsent
  };
  struct Location {
    Place place = Place::kAbsent;
    int64_t index = 0;  // byte offset in the arena, or index into the run's list
  };
  struct Step {
    BoundKernel kernel;
    std::string name;
    std::vector<Location> inputs, outputs;
    int64_t scratch_offset = 0;
  };
  struct OutputCopy {
    Location from;
    int64_t output, bytes;
  };
  friend class PlanCompiler;

  absl::Status UploadConstants();
  // Device memory behind the arena for what is on the host, and copies of the inputs in it.
  absl::Status Stage(std::span<const Address> inputs, std::span<const Address> outputs);
  void* Resolve(const Location& location) const;
  void RunStep(const Step& step);
  void RunSteps();
  // RunSteps, by a recording once the same addresses come again.
  void Submit();

  Graph graph_;  // kernels may refer to its attributes
  std::vector<TensorType> input_types_, output_types_;
  const Backend* backend_ = nullptr;
  std::vector<std::shared_ptr<const Tensor>> constants_;
  std::vector<DeviceMemory> device_constants_;  // one each, where the host's memory will not do
  std::vector<Step> steps_;
  std::vector<OutputCopy> output_copies_;
  std::shared_ptr<Workspace> workspace_;
  std::array<uint64_t, 2> random_key_ = {0, 0};  // seed, call
  int64_t arena_bytes_ = 0;
  PlanProfile* profile_ = nullptr;
  std::unique_ptr<Recording> recording_;        // of the steps at recorded_
  std::vector<const void*> recorded_, latest_;  // every address of a run

  // Of the current run.
  std::byte* arena_ = nullptr;
  const void* key_ = nullptr;
  std::vector<void*> inputs_, outputs_;
  std::vector<std::byte> small_inputs_;  // with the key, on their way to the device
  std::span<const void* const> parameters_;
  std::vector<const void*> input_pointers_;
  std::vector<void*> output_pointers_;
};

// Runs, and returns the outputs in the host's memory.
absl::StatusOr<std::vector<Tensor>> RunToHost(Plan& plan, std::span<const Address> inputs,
                                              std::span<const void* const> parameters);

// The same for inputs on the host, which it checks against the plan's types.
absl::StatusOr<std::vector<Tensor>> RunPlan(Plan& plan, std::span<const Tensor* const> inputs,
                                            std::span<const void* const> parameters = {});

// One node on constant inputs, on the CPU: the Builder's Evaluator.
absl::StatusOr<std::vector<Tensor>> EvaluateNode(const OpDef& op, const Attributes& attributes,
                                                 std::span<const Tensor* const> inputs);

}  // namespace tandem
