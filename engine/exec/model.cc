#include "engine/exec/model.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "absl/strings/str_format.h"
#include "engine/exec/passes.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

uint64_t HashBytes(uint64_t hash, const void* data, size_t bytes) {
  constexpr uint64_t kPrime = 0x9E3779B97F4A7C15;
  const auto* p = static_cast<const unsigned char*>(data);
  for (; bytes >= 8; p += 8, bytes -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    hash = std::rotl(hash ^ word, 29) * kPrime;
  }
  uint64_t word = bytes;
  std::memcpy(reinterpret_cast<unsigned char*>(&word) + 1, p, bytes);
  return std::rotl(hash ^ word, 29) * kPrime;
}

std::string DimsToString(const std::vector<int64_t>& dims) {
  return Shape(std::span<const int64_t>(dims)).ToString();
}

}  // namespace

Value GraphSource::BuildLogits(Builder& builder, const SequenceValues&) const {
  return builder.Fail(FailedPrecondition("the model is no language model"));
}

absl::Status CheckInput(const IoSpec& spec, const Tensor& tensor) {
  if (tensor.dtype() != spec.dtype) {
    return InvalidArgument("input '", spec.name, "' is ", DTypeName(tensor.dtype()), ", expected ",
                           DTypeName(spec.dtype));
  }
  bool fits = tensor.shape().rank() == static_cast<int>(spec.dims.size());
  for (int i = 0; fits && i < tensor.shape().rank(); ++i) {
    fits = spec.dims[i] < 0 || spec.dims[i] == tensor.shape()[i];
  }
  if (!fits) {
    return InvalidArgument("input '", spec.name, "' has shape ", tensor.shape().ToString(),
                           ", expected ", DimsToString(spec.dims));
  }
  return absl::OkStatus();
}

ParameterStore::ParameterStore(const std::vector<ParameterInfo>& infos) {
  for (const ParameterInfo& info : infos) {
    const int64_t size = info.shape.num_elements();
    offsets_.push_back(flat_size_);
    sizes_.push_back(size);
    flat_size_ += Padded(size);
  }
  absl::StatusOr<DeviceMemory> memory = DeviceMemory::Allocate(CpuBackend(), bytes());
  if (!memory.ok()) throw std::bad_alloc();  // as every host container here does
  CpuBackend().Zero(memory->data(), bytes());
  SetMemory(CpuBackend(), *std::move(memory));
}

void ParameterStore::SetMemory(const Backend& backend, DeviceMemory memory) {
  backend_ = &backend;
  memory_ = std::move(memory);
  pointers_.clear();
  for (int64_t offset : offsets_) {
    pointers_.push_back(memory_.data() + offset * static_cast<int64_t>(sizeof(float)));
  }
}

const float* ParameterStore::flat() const {
  if (!backend_->host_memory()) {
    std::fprintf(stderr, "ParameterStore::flat: the values are on %s\n",
                 std::string(backend_->name()).c_str());
    std::abort();
  }
  return reinterpret_cast<const float*>(memory_.data());
}

absl::Status ParameterStore::MoveTo(const Backend& backend) {
  if (&backend == backend_) return absl::OkStatus();
  TANDEM_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(backend, bytes()));
  if (backend_->host_memory()) {
    backend.Upload(memory.data(), memory_.data(), bytes());
  } else if (backend.host_memory()) {
    backend_->Download(memory.data(), memory_.data(), bytes());
    TANDEM_RETURN_IF_ERROR(backend_->Finish());
  } else {
    TANDEM_ASSIGN_OR_RETURN(const ParameterStore host, HostCopy());
    backend.Upload(memory.data(), host.memory_.data(), bytes());
  }
  TANDEM_RETURN_IF_ERROR(backend.Finish());
  SetMemory(backend, std::move(memory));
  return absl::OkStatus();
}

absl::StatusOr<ParameterStore> ParameterStore::HostCopy() const {
  ParameterStore copy{std::vector<ParameterInfo>()};
  copy.flat_size_ = flat_size_;
  copy.offsets_ = offsets_;
  copy.sizes_ = sizes_;
  TANDEM_ASSIGN_OR_RETURN(DeviceMemory memory, DeviceMemory::Allocate(CpuBackend(), bytes()));
  backend_->Download(memory.data(), memory_.data(), bytes());
  TANDEM_RETURN_IF_ERROR(backend_->Finish());
  copy.SetMemory(CpuBackend(), std::move(memory));
  return copy;
}

absl::StatusOr<Plan*> PlanCache::Get(const std::string& key,
                                     const std::function<absl::StatusOr<Graph>()>& build) {
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (it->first == key) {
      entries_.splice(entries_.begin(), entries_, it);
      entries_.front().second->set_profile(profile_);
      return entries_.front().second.get();
    }
  }
  TANDEM_ASSIGN_OR_RETURN(Graph graph, build());
  if (copy_dtype_.has_value()) {
    TANDEM_ASSIGN_OR_RETURN(graph, ReadParameterCopies(graph, *copy_dtype_, parameters_));
  }
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Plan> plan,
                          Plan::Compile(std::move(graph), *backend_, workspace_));
  int64_t bytes = plan->arena_bytes();
  for (const TensorType& type : plan->output_types()) bytes += type.bytes();
  if (bytes > backend_->memory_bytes() / 2) {
    return ResourceExhausted(
        "this batch needs ", bytes, " bytes of working memory, more than half of the ",
        backend_->memory_bytes(), " of ", backend_->name(), "; make it smaller");
  }
  if (entries_.size() >= capacity_) entries_.pop_back();
  plan->set_profile(profile_);
  entries_.emplace_front(key, std::move(plan));
  return entries_.front().second.get();
}

Model::Model(std::string name, std::shared_ptr<const GraphSource> source, ParameterStore parameters,
             Precision precision)
    : name_(std::move(name)),
      source_(std::move(source)),
      compute_source_(WithPrecision(source_, precision)),
      parameters_(std::move(parameters)),
      precision_(precision) {
  ResetPlans();
}

void Model::ResetPlans() {
  plans_ = PlanCache(backend());
  copies_ = DeviceTensor();
  copies_version_ = 0;
  round_ = nullptr;
  if (precision_ == Precision::kF32) return;
  plans_.ReadCopies(PrecisionDType(precision_), static_cast<int32_t>(source_->parameters().size()));
}

absl::StatusOr<Address> Model::ParameterCopies() {
  TANDEM_RETURN_IF_ERROR(ParameterAddresses().status());
  if (precision_ == Precision::kF32) return FailedPrecondition("weights in f32 have no copies");
  return copies_.address();
}

absl::StatusOr<std::span<const void* const>> Model::ParameterAddresses() {
  if (precision_ == Precision::kF32) return parameters_.pointers();
  const DType dtype = PrecisionDType(precision_);
  if (round_ == nullptr) {
    Builder b;
    b.Output(ops::Cast(b, b.Input("", {DType::kF32, {parameters_.flat_size()}}), dtype));
    TANDEM_ASSIGN_OR_RETURN(Graph graph, b.Finish());
    TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Plan> round,
                            Plan::Compile(std::move(graph), backend()));
    TANDEM_ASSIGN_OR_RETURN(copies_,
                            DeviceTensor::Zeros(backend(), {dtype, {parameters_.flat_size()}}));
    round_ = std::move(round);  // last: it says that all of this is there
    addresses_ = parameters_.pointers();
    for (size_t i = 0; i < parameters_.pointers().size(); ++i) {
      const int64_t offset = parameters_.offset(static_cast<int>(i)) * SizeOf(dtype);
      addresses_.push_back(copies_.address(offset).data);
    }
  }
  if (copies_version_ != weights_version_) {
    TANDEM_RETURN_IF_ERROR(
        round_->Run({{OnDevice(parameters_.data())}}, {}, {{copies_.address()}}));
    copies_version_ = weights_version_;
  }
  return addresses_;
}

int64_t Model::parameter_count() const {
  int64_t count = 0;
  for (const ParameterInfo& info : source_->parameters()) count += info.shape.num_elements();
  return count;
}

absl::Status Model::MoveTo(const Backend& backend) {
  TANDEM_RETURN_IF_ERROR(parameters_.MoveTo(backend));
  ResetPlans();
  return absl::OkStatus();
}

absl::StatusOr<std::string> Model::WeightsHash() const {
  if (!backend().host_memory() && hash_version_ == weights_version_) return hash_;
  std::optional<ParameterStore> copy;
  if (!backend().host_memory()) {
    TANDEM_ASSIGN_OR_RETURN(copy, parameters_.HostCopy());
  }
  const ParameterStore& parameters = copy.has_value() ? *copy : parameters_;
  uint64_t hash = 0;
  for (size_t i = 0; i < source_->parameters().size(); ++i) {
    const ParameterInfo& info = source_->parameters()[i];
    hash = HashBytes(hash, info.name.data(), info.name.size());
    hash = HashBytes(hash, info.shape.dims().data(), info.shape.dims().size_bytes());
    const std::span<const float> values = parameters.values(static_cast<int>(i));
    hash = HashBytes(hash, values.data(), values.size_bytes());
  }
  hash_ = absl::StrFormat("%016x", hash);
  hash_version_ = weights_version_;
  return hash_;
}

absl::StatusOr<std::vector<Tensor>> Model::Forward(
    const std::vector<std::pair<std::string, const Tensor*>>& inputs,
    std::optional<uint64_t> seed) {
  const std::vector<IoSpec>& specs = source_->inputs();
  std::vector<const Tensor*> tensors(specs.size(), nullptr);
  for (const auto& [name, tensor] : inputs) {
    const auto spec =
        std::find_if(specs.begin(), specs.end(), [&](const IoSpec& s) { return s.name == name; });
    if (spec == specs.end()) {
      std::string known;
      for (const IoSpec& s : specs) known += StrCat(known.empty() ? "" : ", ", "'", s.name, "'");
      return InvalidArgument("model '", name_, "' has no input '", name, "'; it has ", known);
    }
    const Tensor*& place = tensors[spec - specs.begin()];
    if (place != nullptr) return InvalidArgument("input '", name, "' is given twice");
    TANDEM_RETURN_IF_ERROR(CheckInput(*spec, *tensor));
    place = tensor;
  }
  std::string key = "forward";
  for (size_t i = 0; i < specs.size(); ++i) {
    if (tensors[i] == nullptr) {
      return InvalidArgument("input '", specs[i].name, "' of model '", name_, "' is missing");
    }
    key += StrCat(" ", tensors[i]->type().ToString());
  }
  if (const SequenceModelInfo* sequence = source_->sequence()) {
    for (int64_t i = 0; i < tensors[0]->num_elements(); ++i) {
      const int64_t token = ElementAsInt(*tensors[0], i);
      if (token < 0 || token >= sequence->vocab_size) {
        return InvalidArgument("input '", specs[0].name, "' element ", i, " is ", token,
                               ", outside the vocabulary [0, ", sequence->vocab_size, ")");
      }
    }
  }
  TANDEM_ASSIGN_OR_RETURN(Plan * plan, plans_.Get(key, [&]() -> absl::StatusOr<Graph> {
    Builder builder(EvaluateNode);
    std::vector<Value> values;
    for (size_t i = 0; i < specs.size(); ++i) {
      values.push_back(builder.Input(specs[i].name, tensors[i]->type()));
    }
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Value> outputs, source().Build(builder, values));
    for (Value v : outputs) builder.Output(v);
    return builder.Finish();
  }));
  if (seed.has_value()) {
    plan->SetRandomKey(*seed, 0);
  } else {
    plan->SetRandomKey(0, ++forward_calls_);  // from 1: no unseeded call repeats seed 0
  }
  TANDEM_ASSIGN_OR_RETURN(const std::span<const void* const> parameters, ParameterAddresses());
  return RunPlan(*plan, tensors, parameters);
}

}  // namespace tandem
