// Model: a graph source, its parameters and their version. The only resource that the API knows.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/exec/autocast.h"
#include "engine/exec/device_tensor.h"
#include "engine/exec/plan.h"
#include "engine/graph/builder.h"

namespace tandem {

// A named input or output of a model; -1 is a size that may vary.
struct IoSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> dims;
};

enum class ParameterRole : uint8_t { kWeight, kBias, kNorm, kEmbedding };

struct ParameterInfo {
  std::string name;  // as in the file that it came from
  Shape shape;       // always f32 in memory
  ParameterRole role = ParameterRole::kWeight;
  DType file_dtype = DType::kF32;  // what Save writes
};

// Packed sequences, as values of the graph being built (N tokens of S sequences).
struct SequenceValues {
  Value tokens;       // (N) i32
  Value positions;    // (N) i32
  Value query_start;  // (S + 1) i32
  // Serving from a KV cache, else all invalid / empty. As ops::PagedAttention takes them.
  Value past_length;                    // (S) i32
  Value block_table;                    // (S, B) i32
  std::vector<Value> k_cache, v_cache;  // one a layer
  // Rows whose logits are wanted, (R) i32; invalid: all N.
  Value logit_rows;
};

// What a language model is, beyond its graph.
struct SequenceModelInfo {
  int64_t vocab_size = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, max_positions = 0;
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
};

// Makes the forward graph for concrete input shapes: an ONNX file, a decoder configuration.
// Immutable and thread-safe.
class GraphSource {
 public:
  virtual ~GraphSource() = default;
  virtual std::string_view format() const = 0;  // "onnx", "huggingface", "decoder"
  virtual const std::vector<IoSpec>& inputs() const = 0;
  virtual const std::vector<IoSpec>& outputs() const = 0;
  virtual const std::vector<ParameterInfo>& parameters() const = 0;
  // Appends the forward graph to the builder; returns one value an output. The values given have
  // the dtypes and ranks of inputs(). The builder should have EvaluateNode as its evaluator.
  virtual absl::StatusOr<std::vector<Value>> Build(Builder& builder,
                                                   std::span<const Value> inputs) const = 0;
  // Language models only: null otherwise.
  virtual const SequenceModelInfo* sequence() const { return nullptr; }
  // Logits (R, V) of packed sequences. Training and serving call this same function.
  virtual Value BuildLogits(Builder& builder, const SequenceValues& sequences) const;
};

// The parameters of one model, f32, in one flat buffer in parameters() order, each starting at a
// multiple of 16 elements (padding is zero and stays so). In the host's memory at first, where
// files are read and written; MoveTo takes them to where plans run.
class ParameterStore {
 public:
  explicit ParameterStore(const std::vector<ParameterInfo>& infos);
  // The elements that a parameter takes in the flat buffer, padding included.
  static int64_t Padded(int64_t elements) { return (elements + 15) / 16 * 16; }
  int64_t flat_size() const { return flat_size_; }  // elements, padding included
  int64_t offset(int i) const { return offsets_[i]; }
  int64_t size(int i) const { return sizes_[i]; }

  // The whole buffer and one address a parameter, as Plan::Run takes them, in backend()'s memory.
  const Backend& backend() const { return *backend_; }
  void* data() { return memory_.data(); }
  const std::vector<const void*>& pointers() const { return pointers_; }
  // Moves the values there. RESOURCE_EXHAUSTED: no memory; they stay where they are.
  absl::Status MoveTo(const Backend& backend);
  // The same values in the host's memory.
  absl::StatusOr<ParameterStore> HostCopy() const;

  // The values; only in the host's memory (CHECKed).
  float* flat() { return const_cast<float*>(std::as_const(*this).flat()); }
  const float* flat() const;
  std::span<float> values(int i) { return {flat() + offsets_[i], static_cast<size_t>(sizes_[i])}; }
  std::span<const float> values(int i) const {
    return {flat() + offsets_[i], static_cast<size_t>(sizes_[i])};
  }

 private:
  int64_t bytes() const { return flat_size_ * static_cast<int64_t>(sizeof(float)); }
  void SetMemory(const Backend& backend, DeviceMemory memory);

  const Backend* backend_ = nullptr;
  DeviceMemory memory_;
  int64_t flat_size_ = 0;
  std::vector<int64_t> offsets_, sizes_;
  std::vector<const void*> pointers_;
};

// A tensor from outside against the specification: dtype, rank, and the sizes that are fixed.
absl::Status CheckInput(const IoSpec& spec, const Tensor& tensor);

// Plans for one backend by key (a model's purpose and input shapes), least recently used out first.
// Not thread-safe.
class PlanCache {
 public:
  explicit PlanCache(size_t capacity = 256) : PlanCache(CpuBackend(), capacity) {}
  explicit PlanCache(const Backend& backend, size_t capacity = 256)
      : backend_(&backend), capacity_(capacity), workspace_(std::make_shared<Workspace>(backend)) {}
  // The plan under `key`, made if it is not there.
  // The graph that `build` makes becomes the plan; all plans share one workspace. A plan that needs
  // more than half of the device's memory is RESOURCE_EXHAUSTED.
  absl::StatusOr<Plan*> Get(const std::string& key,
                            const std::function<absl::StatusOr<Graph>()>& build);
  // Graphs that come read the parameters' copies in `dtype`: ReadParameterCopies of passes.h.
  void ReadCopies(DType dtype, int32_t parameters) {
    copy_dtype_ = dtype;
    parameters_ = parameters;
  }
  int64_t workspace_bytes() const { return workspace_->bytes(); }
  // Every plan that Get returns from now on adds its times there; null: off.
  void set_profile(PlanProfile* profile) { profile_ = profile; }

 private:
  using Entry = std::pair<std::string, std::unique_ptr<Plan>>;
  const Backend* backend_;
  size_t capacity_;
  std::shared_ptr<Workspace> workspace_;
  std::optional<DType> copy_dtype_;
  int32_t parameters_ = 0;
  PlanProfile* profile_ = nullptr;
  std::list<Entry> entries_;  // most recent first
};

// Weights are read and written on the compute thread only; the version is counted there.
class Model {
 public:
  // `precision` is what every graph of the model computes in: forward passes, generation, scoring
  // and training alike (autocast.h). The parameters are f32.
  Model(std::string name, std::shared_ptr<const GraphSource> source, ParameterStore parameters,
        Precision precision = Precision::kF32);

  const std::string& name() const { return name_; }
  Precision precision() const { return precision_; }
  // Of the graphs that compute, in the model's precision.
  const GraphSource& source() const { return *compute_source_; }
  const std::shared_ptr<const GraphSource>& shared_compute_source() const {
    return compute_source_;
  }
  // As it was given: f32, and what writes the model's file.
  const std::shared_ptr<const GraphSource>& shared_source() const { return source_; }
  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }
  int64_t parameter_count() const;  // elements, without padding
  // Where the parameters are and everything runs: the CPU, until MoveTo. Moving drops the plans;
  // what was made for the model before (a Trainer, a Generator) must go first.
  const Backend& backend() const { return parameters_.backend(); }
  absl::Status MoveTo(const Backend& backend);
  // Starts at 1; every change of any weight adds 1: who writes parameters() calls Bump.
  int64_t weights_version() const { return weights_version_; }
  // copies_written: who changed the weights has written ParameterCopies too.
  void BumpWeightsVersion(bool copies_written = false) {
    ++weights_version_;
    if (copies_written) copies_version_ = weights_version_;
  }
  // A 64-bit hash of names, shapes and bits, as 16 hex digits; the same on every device.
  absl::StatusOr<std::string> WeightsHash() const;

  // Forward pass by name. Inputs in any order; checks names, dtypes, ranks and sizes against
  // source().inputs(). Returns all outputs, in source().outputs() order. A graph with random nodes
  // draws anew on every call: by (0, number of the call), or by `seed`, which repeats.
  absl::StatusOr<std::vector<Tensor>> Forward(
      const std::vector<std::pair<std::string, const Tensor*>>& inputs,
      std::optional<uint64_t> seed = std::nullopt);
  PlanCache& plans() { return plans_; }
  // What plans() take as parameters: one address each and, in 16-bit precision, one each of their
  // rounded copies, which this brings up to date. So a pass over a model reads 2 bytes a weight.
  absl::StatusOr<std::span<const void* const>> ParameterAddresses();
  // Where the rounded copies are, in the store's layout. FAILED_PRECONDITION: in f32 there are
  // none.
  absl::StatusOr<Address> ParameterCopies();

 private:
  void ResetPlans();

  std::string name_;
  std::shared_ptr<const GraphSource> source_, compute_source_;
  ParameterStore parameters_;
  Precision precision_;
  PlanCache plans_;
  // In 16-bit precision: the parameters rounded, in the store's layout, as of copies_version_.
  DeviceTensor copies_;
  int64_t copies_version_ = 0;
  std::unique_ptr<Plan> round_;
  std::vector<const void*> addresses_;
  int64_t weights_version_ = 1;
  // Of a model on a device, where hashing means downloading: as of hash_version_.
  mutable std::string hash_;
  mutable int64_t hash_version_ = 0;
  uint64_t forward_calls_ = 0;  // without a seed: the call of the random key
};

}  // namespace tandem
