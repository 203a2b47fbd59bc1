#include "server/model_store.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <utility>

#include "engine/exec/executor.h"
#include "engine/formats/atomic_file.h"
#include "engine/formats/character_tokenizer.h"
#include "engine/formats/huggingface.h"
#include "engine/formats/onnx.h"
#include "engine/formats/tokenizer.h"
#include "engine/nn/initialize.h"
#include "engine/sample/generator.h"
#include "engine/train/trainer.h"
#include "server/generation.h"
#include "server/memory_guard.h"
#include "server/metrics.h"
#include "server/status.h"

namespace tandem::server {
namespace {

namespace fs = std::filesystem;
using Entry = ModelStore::Entry;

// Protobuf's own limit.
constexpr int64_t kMaxOnnxBytes = int64_t{2} << 30;

absl::Status Taken(std::string_view name) {
  return absl::AlreadyExistsError(StrCat("there is a model '", name, "' already"));
}

// What the kernel says could be allocated without swapping; unknown: no limit.
int64_t AvailableMemoryBytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    long long kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %lld kB", &kib) == 1) return kib * 1024;
  }
  return std::numeric_limits<int64_t>::max();
}

// A few numbers from a client must not make the process run out of memory.
absl::Status CheckFits(const GraphSource& source) {
  int64_t bytes = 0;  // DecoderConfig::Validate bounds the sum
  for (const ParameterInfo& info : source.parameters()) {
    bytes += info.shape.num_elements() * static_cast<int64_t>(sizeof(float));
  }
  const int64_t available = AvailableMemoryBytes();
  if (bytes <= available) return absl::OkStatus();
  return ResourceExhausted("the model's parameters need ", bytes, " bytes, ", available,
                           " are available");
}

int64_t FolderBytes(const fs::path& folder) {
  int64_t bytes = 0;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code ignored;
    if (it->is_regular_file(ignored)) bytes += static_cast<int64_t>(it->file_size(ignored));
  }
  return bytes;
}

}  // namespace

ModelEntry::ModelEntry(std::string model_name, ModelFormat model_format)
    : name(std::move(model_name)), format(model_format) {}
ModelEntry::~ModelEntry() = default;

void ModelEntry::SetModel(std::unique_ptr<Model> made) {
  model = std::move(made);
  precision = model->precision();
  source = model->shared_compute_source();
  file_source = model->shared_source();
}

absl::StatusOr<Model*> ModelEntry::Live() const {
  if (model != nullptr) return model.get();
  return absl::AbortedError(StrCat("model '", name, "' was unloaded while the call waited"));
}

ModelStore::ModelStore(Options options, std::optional<Repository> repository, Executor& compute,
                       Metrics& metrics)
    : options_(std::move(options)),
      repository_(std::move(repository)),
      compute_(compute),
      metrics_(metrics) {}
ModelStore::~ModelStore() = default;

absl::StatusOr<std::unique_ptr<ModelStore>> ModelStore::Create(Options options, Executor& compute,
                                                               Metrics& metrics) {
  std::optional<Repository> repository;
  if (!options.repository.empty()) {
    TANDEM_ASSIGN_OR_RETURN(repository, Repository::Open(options.repository));
  }
  return std::unique_ptr<ModelStore>(
      new ModelStore(std::move(options), std::move(repository), compute, metrics));
}

ModelStore::Entry ModelStore::Lookup(std::string_view name) const {
  const std::lock_guard lock(mutex_);
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : it->second;
}

absl::StatusOr<Entry> ModelStore::FindRecord(std::string_view name) const {
  TANDEM_RETURN_IF_ERROR(CheckModelName(name));
  Entry entry = Lookup(name);
  if (entry == nullptr) return NotFound("no model '", name, "' is loaded");
  return entry;
}

absl::StatusOr<Entry> ModelStore::Find(std::string_view name) const {
  TANDEM_ASSIGN_OR_RETURN(Entry entry, FindRecord(name));
  if (entry->error.ok()) return entry;
  return FailedPrecondition("model '", name,
                            "' could not be loaded: ", std::string(entry->error.message()));
}

std::vector<Entry> ModelStore::List() const {
  const std::lock_guard lock(mutex_);
  std::vector<Entry> entries;
  for (const auto& [name, entry] : entries_) entries.push_back(entry);
  return entries;
}

std::vector<std::string> ModelStore::RepositoryNames() const {
  return repository_ ? repository_->List() : std::vector<std::string>();
}

absl::StatusOr<const Repository*> ModelStore::repository() const {
  if (repository_) return &*repository_;
  return FailedPrecondition("the server has no model repository (--models)");
}

void ModelStore::LoadAll(const std::function<bool()>& stop) {
  for (const std::string& name : RepositoryNames()) {
    if (stop()) return;
    const absl::StatusOr<Entry> entry = Load(name);
    if (!entry.ok()) {
      spdlog::error("model '{}' could not be loaded: {}", name,
                    Printable(std::string(entry.status().message())));
    }
  }
}

absl::StatusOr<Entry> ModelStore::ReadEntry(const std::string& name, Precision precision) const {
  TANDEM_ASSIGN_OR_RETURN(const Repository* repository, repository());
  TANDEM_ASSIGN_OR_RETURN(const ModelLocation location, repository->Find(name));
  auto entry = std::make_shared<ModelEntry>(name, location.format);
  entry->version = location.version;
  if (location.format == ModelFormat::kOnnx) {
    entry->origin = location.path.parent_path();
    TANDEM_ASSIGN_OR_RETURN(const std::string bytes, ReadSmallFile(location.path, kMaxOnnxBytes));
    TANDEM_ASSIGN_OR_RETURN(LoadedOnnx loaded, LoadOnnx(bytes));
    entry->SetModel(std::make_unique<Model>(name, std::move(loaded.source),
                                            std::move(loaded.parameters), precision));
  } else {
    entry->origin = location.path;
    TANDEM_ASSIGN_OR_RETURN(LoadedModel loaded, LoadHuggingFace(entry->origin));
    absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = LoadTokenizer(entry->origin);
    if (!tokenizer.ok() && !absl::IsNotFound(tokenizer.status())) return tokenizer.status();
    if (tokenizer.ok()) entry->tokenizer = *std::move(tokenizer);
    entry->SetModel(std::make_unique<Model>(name, std::move(loaded.source),
                                            std::move(loaded.parameters), precision));
  }
  return entry;
}

absl::Status ModelStore::CheckNotTraining(const std::string& name) {
  const Entry existing = Lookup(name);
  if (existing == nullptr) return absl::OkStatus();
  return compute_.RunAndWait(Executor::Lane::kServing, [&]() -> absl::Status {
    if (existing->trainer == nullptr) return absl::OkStatus();
    return FailedPrecondition("model '", name, "' is being trained: stop that first");
  });
}

absl::StatusOr<Entry> ModelStore::Load(const std::string& name, const Placement& placement) {
  const Precision precision = placement.precision.value_or(Precision::kF32);
  TANDEM_RETURN_IF_ERROR(CheckModelName(name));
  TANDEM_RETURN_IF_ERROR(CheckNotTraining(name));
  const auto begin = std::chrono::steady_clock::now();
  absl::StatusOr<Entry> entry = CatchOutOfMemory([&] { return ReadEntry(name, precision); });
  if (entry.ok()) {
    (*entry)->device = DeviceOf(placement);
    // Onto the device first, so that no room there is a failure of this model like any other.
    const absl::Status moved = compute_.RunAndWait(
        Executor::Lane::kServing, [&] { return (*entry)->model->MoveTo(*(*entry)->device); });
    if (!moved.ok()) entry = moved;
  }
  if (!entry.ok()) {
    const Entry existing = Lookup(name);
    // What serves goes on serving; a name that the repository does not have is not recorded.
    const bool record = (existing == nullptr || !existing->error.ok()) &&
                        !absl::IsNotFound(entry.status()) && repository_.has_value();
    if (record) {
      auto failed = std::make_shared<ModelEntry>(name, ModelFormat::kOnnx);
      failed->error = entry.status();
      const std::lock_guard lock(mutex_);
      entries_[name] = failed;
    }
    return entry.status();
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  (*entry)->metrics = metrics_.Model(name);
  TANDEM_RETURN_IF_ERROR(Insert(*entry, /*replace=*/true));
  (*entry)->metrics->Loaded(taken.count());
  spdlog::info("loaded model '{}' version {}: {} parameters, {} on {}, {:.3f} s", name,
               (*entry)->version, (*entry)->model->parameter_count(), PrecisionName(precision),
               (*entry)->device->name(), taken.count());
  return entry;
}

absl::Status ModelStore::Insert(Entry entry, bool replace) {
  return compute_.RunAndWait(Executor::Lane::kServing, [&]() -> absl::Status {
    Entry existing = Lookup(entry->name);
    if (existing != nullptr && !replace) return Taken(entry->name);
    if (existing != nullptr && existing->trainer != nullptr) {
      return FailedPrecondition("model '", entry->name, "' is being trained: stop that first");
    }
    TANDEM_RETURN_IF_ERROR(entry->model->MoveTo(*entry->device));
    if (entry->metrics == nullptr) entry->metrics = metrics_.Model(entry->name);
    entry->metrics->WeightsVersion(entry->model->weights_version());
    {
      const std::lock_guard lock(mutex_);
      entries_[entry->name] = entry;
    }
    if (existing != nullptr) {
      Retire(*existing, absl::AbortedError(StrCat("model '", entry->name, "' was loaded again")));
    }
    return absl::OkStatus();
  });
}

void ModelStore::Retire(ModelEntry& entry, const absl::Status& why) {
  if (entry.generation != nullptr) entry.generation->Close(why);
  entry.generation = nullptr;
  entry.trainer = nullptr;
  entry.model = nullptr;
}

absl::Status ModelStore::CheckFree(const std::string& name) const {
  TANDEM_RETURN_IF_ERROR(CheckModelName(name));
  return Lookup(name) == nullptr ? absl::OkStatus() : Taken(name);
}

absl::StatusOr<Entry> ModelStore::CreateFromOnnx(const std::string& name, const std::string& bytes,
                                                 const Placement& placement) {
  TANDEM_RETURN_IF_ERROR(CheckFree(name));
  TANDEM_ASSIGN_OR_RETURN(LoadedOnnx loaded, LoadOnnx(bytes));
  auto entry = std::make_shared<ModelEntry>(name, ModelFormat::kOnnx);
  entry->SetModel(std::make_unique<Model>(name, std::move(loaded.source),
                                          std::move(loaded.parameters),
                                          placement.precision.value_or(Precision::kF32)));
  entry->device = DeviceOf(placement);
  TANDEM_RETURN_IF_ERROR(Insert(entry, /*replace=*/false));
  return entry;
}

absl::StatusOr<Entry> ModelStore::CreateDecoder(const std::string& name, NewDecoder decoder,
                                                const Placement& placement) {
  TANDEM_RETURN_IF_ERROR(CheckFree(name));
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<const DecoderSource> source,
                          DecoderSource::Create(decoder.config));
  TANDEM_RETURN_IF_ERROR(CheckFits(*source));
  auto entry = std::make_shared<ModelEntry>(name, ModelFormat::kHuggingFace);
  entry->SetModel(std::make_unique<Model>(name, source, InitializeParameters(*source, decoder.seed),
                                          placement.precision.value_or(Precision::kF32)));
  entry->device = DeviceOf(placement);
  if (!decoder.characters.empty()) {
    TANDEM_ASSIGN_OR_RETURN(entry->tokenizer, CharacterTokenizer::Create(decoder.characters));
    entry->characters = std::move(decoder.characters);
  }
  TANDEM_RETURN_IF_ERROR(Insert(entry, /*replace=*/false));
  return entry;
}

absl::StatusOr<Entry> ModelStore::CreateCopy(const std::string& name, const std::string& original,
                                             const Placement& placement) {
  TANDEM_RETURN_IF_ERROR(CheckFree(name));
  TANDEM_ASSIGN_OR_RETURN(const Entry from, Find(original));
  auto entry = std::make_shared<ModelEntry>(name, from->format);
  TANDEM_RETURN_IF_ERROR(compute_.RunAndWait(Executor::Lane::kServing, [&]() -> absl::Status {
    TANDEM_ASSIGN_OR_RETURN(const Model* model, from->Live());
    TANDEM_ASSIGN_OR_RETURN(ParameterStore parameters, model->parameters().HostCopy());
    entry->SetModel(std::make_unique<Model>(name, from->file_source, std::move(parameters),
                                            placement.precision.value_or(from->precision)));
    return absl::OkStatus();
  }));
  entry->device = placement.device != nullptr ? placement.device : from->device;
  entry->origin = from->origin;
  entry->tokenizer = from->tokenizer;
  entry->characters = from->characters;
  TANDEM_RETURN_IF_ERROR(Insert(entry, /*replace=*/false));
  return entry;
}

absl::Status ModelStore::Unload(const std::string& name, bool force) {
  TANDEM_RETURN_IF_ERROR(CheckModelName(name));
  return compute_.RunAndWait(Executor::Lane::kServing, [&]() -> absl::Status {
    const Entry entry = Lookup(name);
    if (entry == nullptr) return NotFound("no model '", name, "' is loaded");
    if (entry->trainer != nullptr && !force) {
      return FailedPrecondition("model '", name, "' is being trained, and force is not set");
    }
    {
      const std::lock_guard lock(mutex_);
      entries_.erase(name);
    }
    Retire(*entry, absl::AbortedError(StrCat("model '", name, "' was unloaded")));
    return absl::OkStatus();
  });
}

absl::StatusOr<ModelStore::Saved> ModelStore::Save(const std::string& name,
                                                   const std::string& save_as) {
  TANDEM_ASSIGN_OR_RETURN(const Repository* repository, repository());
  TANDEM_ASSIGN_OR_RETURN(const Entry entry, Find(name));
  TANDEM_ASSIGN_OR_RETURN(const fs::path place,
                          repository->PlaceFor(save_as.empty() ? name : save_as, entry->format));
  // The disk is waited for here, not on the compute thread.
  std::optional<ParameterStore> parameters;
  TANDEM_RETURN_IF_ERROR(compute_.RunAndWait(Executor::Lane::kServing, [&]() -> absl::Status {
    TANDEM_ASSIGN_OR_RETURN(const Model* model, entry->Live());
    TANDEM_ASSIGN_OR_RETURN(parameters, model->parameters().HostCopy());
    return absl::OkStatus();
  }));
  std::error_code error;
  const fs::path folder = entry->format == ModelFormat::kOnnx ? place.parent_path() : place;
  fs::create_directories(folder, error);
  if (error) {
    return absl::UnavailableError(
        StrCat("cannot make folder '", repository->Relative(folder), "': ", error.message()));
  }
  Saved saved{repository->Relative(place), 0};
  if (entry->format == ModelFormat::kOnnx) {
    TANDEM_ASSIGN_OR_RETURN(const std::string bytes,
                            SerializeOnnx(*entry->file_source, *parameters));
    TANDEM_RETURN_IF_ERROR(WriteFileAtomically(place, bytes));
    saved.bytes = static_cast<int64_t>(bytes.size());
  } else {
    if (!entry->characters.empty()) {
      TANDEM_RETURN_IF_ERROR(WriteFileAtomically(place / "tandem_characters.json",
                                                 WriteCharacters(entry->characters)));
    }
    TANDEM_RETURN_IF_ERROR(SaveHuggingFace(*entry->file_source, *parameters, place, entry->origin));
    saved.bytes = FolderBytes(place);
  }
  return saved;
}

absl::StatusOr<Generation*> ModelStore::GenerationOf(ModelEntry& entry) {
  TANDEM_ASSIGN_OR_RETURN(Model * model, entry.Live());
  if (entry.generation == nullptr) {
    Generator::Options options;
    options.kv_cache_bytes = options_.kv_cache_bytes;
    TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Generator> generator,
                            Generator::Create(model, options));
    entry.generation =
        std::make_shared<Generation>(std::move(generator), compute_, metrics_, entry.metrics);
  }
  return entry.generation.get();
}

void ModelStore::CloseAll(const absl::Status& why) {
  for (const Entry& entry : List()) {
    if (entry->generation != nullptr) entry->generation->Close(why);
  }
}

}  // namespace tandem::server
