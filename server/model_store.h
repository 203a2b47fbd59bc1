// The loaded models, by name.
//
// Lock contract: one mutex guards the map of names, and is held for look-ups and swaps alone. A
// ModelEntry found there may be replaced or unloaded at any time: calls hold a shared_ptr, and what
// they compute with (the members marked so) is touched on the compute thread only, where unloading
// happens too.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/exec/model.h"
#include "engine/nn/decoder.h"
#include "server/repository.h"

namespace tandem {
class Executor;
class Tokenizer;
class Trainer;
}  // namespace tandem

namespace tandem::server {

class Generation;
class Metrics;
class ModelMetrics;

// A model that was loaded or made, or the record that its load failed.
struct ModelEntry {
  ModelEntry(std::string model_name, ModelFormat model_format);
  ~ModelEntry();

  // Immutable once the entry is in the store; any thread.
  const std::string name;
  ModelFormat format;
  std::string version = "1";
  absl::Status error;  // not OK: FAILED, and everything below is empty
  std::string origin;  // the folder it came from; empty: made in memory
  Precision precision = Precision::kF32;
  const Backend* device = &CpuBackend();           // where the store puts the model
  std::shared_ptr<const GraphSource> source;       // of the graphs that compute, in the precision
  std::shared_ptr<const GraphSource> file_source;  // f32: what Save writes
  std::shared_ptr<const Tokenizer> tokenizer;      // null: none
  std::u32string characters;  // of a character tokenizer that no folder of origin has
  std::shared_ptr<ModelMetrics> metrics;

  // Compute thread only. `model` is null once the entry was unloaded.
  std::unique_ptr<Model> model;
  std::unique_ptr<Trainer> trainer;
  std::shared_ptr<Generation> generation;  // made by the first Generate
  // Of the ForwardBackward calls since the last optimizer step.
  double accumulated_seconds = 0, accumulated_loss = 0;
  int64_t accumulated_tokens = 0;

  // Before the entry is in the store.
  void SetModel(std::unique_ptr<Model> made);
  // The model, or ABORTED where it was unloaded between a call's arrival and its turn.
  absl::StatusOr<Model*> Live() const;
};

// A language model to be made with random weights.
struct NewDecoder {
  DecoderConfig config;
  uint64_t seed = 0;
  std::u32string characters;  // of its character tokenizer; empty: no tokenizer
};

// In what and where a model computes. Unset: for a copy as its original, else f32, on the server's
// device.
struct Placement {
  std::optional<Precision> precision;
  const Backend* device = nullptr;
};

class ModelStore {
 public:
  struct Options {
    std::string repository;  // empty: none, models live in memory only
    int64_t kv_cache_bytes = int64_t{256} << 20;
    const Backend* device = &CpuBackend();  // where models live and run
  };
  static absl::StatusOr<std::unique_ptr<ModelStore>> Create(Options options, Executor& compute,
                                                            Metrics& metrics);
  ~ModelStore();

  // Any thread; none waits for a computation.
  using Entry = std::shared_ptr<ModelEntry>;
  // NOT_FOUND: no such model. FAILED_PRECONDITION: it could not be loaded, and why.
  absl::StatusOr<Entry> Find(std::string_view name) const;
  // As Find, but one that could not be loaded is found too.
  absl::StatusOr<Entry> FindRecord(std::string_view name) const;
  std::vector<Entry> List() const;  // by name, failed ones too
  // Names in the repository.
  std::vector<std::string> RepositoryNames() const;

  // Loader thread only, which puts changes in an order; these wait for the compute thread.
  //
  // Loads every model of the repository; failures become entries. Stops early if `stop` says so.
  void LoadAll(const std::function<bool()>& stop);
  // Replaces the model, if it is loaded. FAILED_PRECONDITION: it is in training.
  absl::StatusOr<Entry> Load(const std::string& name, const Placement& placement = {});
  // Each adds a model. ALREADY_EXISTS: the name is taken.
  absl::StatusOr<Entry> CreateFromOnnx(const std::string& name, const std::string& bytes,
                                       const Placement& placement = {});
  absl::StatusOr<Entry> CreateDecoder(const std::string& name, NewDecoder decoder,
                                      const Placement& placement = {});
  absl::StatusOr<Entry> CreateCopy(const std::string& name, const std::string& original,
                                   const Placement& placement = {});
  absl::Status Unload(const std::string& name, bool force);
  struct Saved {
    std::string path;  // relative to the repository
    int64_t bytes = 0;
  };
  absl::StatusOr<Saved> Save(const std::string& name, const std::string& save_as);

  // Compute thread only: the entry's token sampler, made on first use.
  absl::StatusOr<Generation*> GenerationOf(ModelEntry& entry);
  // Compute thread only: ends every generation, at shutdown.
  void CloseAll(const absl::Status& why);

 private:
  ModelStore(Options options, std::optional<Repository> repository, Executor& compute,
             Metrics& metrics);
  absl::StatusOr<const Repository*> repository() const;
  absl::StatusOr<Entry> ReadEntry(const std::string& name, Precision precision) const;
  const Backend* DeviceOf(const Placement& placement) const {
    return placement.device != nullptr ? placement.device : options_.device;
  }
  absl::Status CheckFree(const std::string& name) const;
  absl::Status Insert(Entry entry, bool replace);
  static void Retire(ModelEntry& entry, const absl::Status& why);
  absl::Status CheckNotTraining(const std::string& name);
  Entry Lookup(std::string_view name) const;

  const Options options_;
  const std::optional<Repository> repository_;
  Executor& compute_;
  Metrics& metrics_;
  mutable std::mutex mutex_;  // guards entries_
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace tandem::server
