#include "engine/backend/cuda/cuda_backend.h"

#include <charconv>
#include <map>
#include <unordered_map>
#include <utility>

#include "engine/backend/cuda/kernels_table.h"

namespace tandem {
namespace cuda {
namespace {

const std::unordered_map<std::string_view, const Kernel*>& Kernels() {
  static const auto* const kernels = new std::unordered_map<std::string_view, const Kernel*>{
#define OP(op) {ops::k##op.name, &k##op##Kernel},
      TANDEM_CUDA_KERNELS(OP)
#undef OP
  };
  return *kernels;
}

}  // namespace

// A function of runtime.cu; Open has checked that the library is of this interface version.
#define RUNTIME(name) (library_.Find<decltype(tandem_cuda_##name)>("tandem_cuda_" #name))

absl::StatusOr<std::unique_ptr<Device>> Device::Open(const Library& library, int number) {
  std::unique_ptr<Device> device(new Device(library, number));
  TANDEM_RETURN_IF_ERROR(device->Start());
  return device;
}

absl::Status Device::Start() {
  int32_t count = 0;
  if (const int error = RUNTIME(device_count)(&count); error != 0) {
    return absl::UnavailableError(StrCat("device ", name_, ": there is no usable NVIDIA driver (",
                                         library_.ErrorString(error), ")"));
  }
  if (number_ < 0 || number_ >= count) {
    return absl::UnavailableError(
        StrCat("device ", name_, ": the driver shows ", count, " CUDA devices, numbered from 0"));
  }
  if (const int error = RUNTIME(describe_device)(number_, &info_); error != 0) {
    return absl::UnavailableError(StrCat("device ", name_, ": ", library_.ErrorString(error)));
  }
  if (capability() < kLeastCapability) {
    return absl::UnavailableError(StrCat("device ", name_, " (", info_.name,
                                         ") has compute capability ", info_.major, ".", info_.minor,
                                         "; Tandem's kernels need 8.0 or above"));
  }
  Use();
  if (const int error = RUNTIME(stream_create)(&stream_); error != 0) {
    return absl::UnavailableError(StrCat("device ", name_, ": ", library_.ErrorString(error)));
  }
  return Finish();
}

Device::~Device() {
  if (stream_ == nullptr) return;
  Use();
  RUNTIME(stream_destroy)(stream_);
}

const Kernel* Device::Find(std::string_view op) const {
  const auto it = Kernels().find(op);
  return it == Kernels().end() ? nullptr : it->second;
}

void Device::Check(int error, const char* what) const {
  if (error == 0) return;
  constexpr int kOutOfMemory = 2;  // cudaErrorMemoryAllocation
  const std::string message = StrCat(name_, ": ", what, ": ", library_.ErrorString(error));
  const std::lock_guard<std::mutex> lock(mutex_);
  if (error == TANDEM_CUDA_UNSUPPORTED) {
    run_error_.Update(Unimplemented(message));
  } else if (error == kOutOfMemory) {
    run_error_.Update(ResourceExhausted(message));
  } else {
    error_.Update(Internal(message));
  }
}

void Device::Use() const {
  // The current device belongs to the thread: one call each is enough while it uses one device.
  thread_local const Device* current = nullptr;
  if (current == this) return;
  const int error = RUNTIME(use_device)(number_);
  Check(error, "using the device");
  current = error == 0 ? this : nullptr;
}

absl::StatusOr<void*> Device::Allocate(int64_t bytes) const {
  Use();
  void* memory = nullptr;
  const int error = RUNTIME(allocate)(&memory, bytes, stream_);
  if (error == 0) return memory;
  int64_t available = 0, total = 0;
  RUNTIME(memory)(&available, &total);
  return ResourceExhausted(name_, " cannot give ", bytes, " bytes (", library_.ErrorString(error),
                           "): ", available, " of its ", total, " are free");
}

void Device::Free(void* memory) const {
  Use();
  Check(RUNTIME(free)(memory, stream_), "freeing memory");
}

void Device::Upload(void* to, const void* from_host, int64_t bytes) const {
  Use();
  Check(RUNTIME(upload)(to, from_host, bytes, stream_), "upload");
  // Pageable memory may or may not have been staged by now.
  Check(RUNTIME(stream_finish)(stream_), "upload");
}

void Device::Download(void* to_host, const void* from, int64_t bytes) const {
  Use();
  Check(RUNTIME(download)(to_host, from, bytes, stream_), "download");
  Check(RUNTIME(stream_finish)(stream_), "download");
}

void Device::Copy(void* to, const void* from, int64_t bytes) const {
  Use();
  Check(RUNTIME(copy)(to, from, bytes, stream_), "copy");
}

void Device::Zero(void* to, int64_t bytes) const {
  Use();
  Check(RUNTIME(fill_bytes)(to, 0, bytes, stream_), "zeroing memory");
}

// A CUDA graph: one launch instead of one a kernel.
class Device::Graph final : public Recording {
 public:
  Graph(const Device& device, tandem_cuda_recording recording)
      : device_(device), recording_(recording) {}
  ~Graph() override {
    device_.Use();
    device_.Check(device_.library_.Find<decltype(tandem_cuda_recording_destroy)>(
                      "tandem_cuda_recording_destroy")(recording_),
                  "dropping a recording");
  }
  void Replay() override {
    device_.Use();
    device_.Check(device_.library_.Find<decltype(tandem_cuda_replay)>("tandem_cuda_replay")(
                      recording_, device_.stream_),
                  "replaying a recording");
  }

 private:
  const Device& device_;
  const tandem_cuda_recording recording_;
};

std::unique_ptr<Recording> Device::Record(const std::function<void()>& submit) const {
  Use();
  if (RUNTIME(record_begin)(stream_) != 0) return nullptr;
  submit();
  tandem_cuda_recording recording = nullptr;
  if (RUNTIME(record_end)(&recording, stream_) != 0 || recording == nullptr) return nullptr;
  return std::make_unique<Graph>(*this, recording);
}

absl::Status Device::Finish() const {
  Use();
  Check(RUNTIME(stream_finish)(stream_), "finishing");
  const std::lock_guard<std::mutex> lock(mutex_);
  const absl::Status run = std::exchange(run_error_, absl::OkStatus());
  return error_.ok() ? run : error_;
}

}  // namespace cuda

namespace {

absl::StatusOr<const Backend*> CudaBackend(int device) {
  static std::mutex mutex;
  static auto* const devices = new std::map<int, std::unique_ptr<cuda::Device>>;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = devices->find(device); found != devices->end()) {
    return found->second.get();
  }
  static const absl::StatusOr<const cuda::Library*> library = cuda::Library::Open();
  if (!library.ok()) return Annotate(library.status(), StrCat("device cuda:", device));
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<cuda::Device> opened,
                          cuda::Device::Open(**library, device));
  const Backend* const backend = opened.get();
  devices->emplace(device, std::move(opened));
  return backend;
}

}  // namespace

absl::StatusOr<const Backend*> FindBackend(std::string_view device) {
  if (device == "cpu") return &CpuBackend();
  constexpr std::string_view kCuda = "cuda:";
  int number = -1;
  if (device.substr(0, kCuda.size()) == kCuda) {
    const std::string_view digits = device.substr(kCuda.size());
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    if (error != std::errc() || end != digits.data() + digits.size()) number = -1;
  }
  if (number < 0) {
    return InvalidArgument("device '", device,
                           "' is unknown: expected 'cpu' or 'cuda:0', 'cuda:1' ...");
  }
  return CudaBackend(number);
}

}  // namespace tandem
