#include "engine/backend/cuda/emulation/cuda_emulation.h"

#include <link.h>
#include <pthread.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

namespace tandem::cuda::emulation {

ThreadState* current = nullptr;

namespace {

constexpr size_t kStackBytes = size_t{256} << 10;
constexpr int kBarriers = 16;
constexpr size_t kMaxSharedBytes = size_t{227} << 10;

int64_t Setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

struct Fiber {
  ThreadState state;
  jmp_buf registers;
  ucontext_t start;
  void* stack = nullptr;
  bool started = false, done = true;
  bool (*ready)(void*) = nullptr;  // what it waits for; null: nothing
  void* context = nullptr;
  const char* what = "";
};

struct BarrierState {
  int arrived = 0;
  int64_t generation = 0;
};

struct Warp {
  int arrived = 0;
  int64_t generation = 0;
  alignas(64) unsigned char values[2][32 * 64];
};

struct Warpgroup {
  int arrived = 0;
  int64_t generation = 0;
};

// One block at a time.
struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;  // reused; the first `threads` are this block's
  int threads = 0, alive = 0;
  std::vector<int> lanes_alive;
  BarrierState barriers[kBarriers];
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  std::function<void()> body;
  jmp_buf scheduler;
  Fiber* running = nullptr;
  std::mt19937_64 random{static_cast<uint64_t>(Setting("TANDEM_CUDA_EMULATION_SEED", 1))};
};

Block& block() {
  static Block* const instance = new Block;
  return *instance;
}

void SwitchToScheduler() {
  Fiber& fiber = *block().running;
  if (_setjmp(fiber.registers) == 0) _longjmp(block().scheduler, 1);
}

void FiberMain() {
  for (;;) {
    block().body();
    block().running->done = true;
    SwitchToScheduler();
  }
}

Fiber& FiberAt(int i) {
  std::vector<std::unique_ptr<Fiber>>& fibers = block().fibers;
  while (static_cast<int>(fibers.size()) <= i) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fiber->stack == MAP_FAILED) Fatal("no memory for the stacks of a block");
    fibers.push_back(std::move(fiber));
  }
  return *fibers[i];
}

void Resume(Fiber& fiber) {
  Block& b = block();
  b.running = &fiber;
  current = &fiber.state;
  if (_setjmp(b.scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.registers, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, FiberMain, 0);
  setcontext(&fiber.start);
}

void ReportDeadlock() {
  Block& b = block();
  const uint3 at = b.fibers[0]->state.block;
  std::fprintf(stderr, "CUDA emulation: block (%u,%u,%u) cannot go on:\n", at.x, at.y, at.z);
  std::map<std::string, std::vector<int>> waits;
  for (int i = 0; i < b.threads; ++i) {
    if (!b.fibers[i]->done) waits[b.fibers[i]->what].push_back(i);
  }
  for (const auto& [what, threads] : waits) {
    std::fprintf(stderr, "  %zu threads (first %d, last %d) wait for %s\n", threads.size(),
                 threads.front(), threads.back(), what.c_str());
  }
  Fatal("a deadlock");
}

void RunBlock() {
  Block& b = block();
  std::vector<int> order(b.threads);
  for (int i = 0; i < b.threads; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), b.random);
  while (b.alive > 0) {
    bool progress = false;
    for (int i : order) {
      Fiber& fiber = *b.fibers[i];
      if (fiber.done || (fiber.ready != nullptr && !fiber.ready(fiber.context))) continue;
      fiber.ready = nullptr;
      progress = true;
      Resume(fiber);
      if (fiber.done) {
        --b.alive;
        --b.lanes_alive[i / 32];
      }
    }
    if (!progress) ReportDeadlock();
  }
}

struct Allocation {
  char* map;
  size_t map_bytes, bytes;
};

struct Device {
  std::recursive_mutex mutex;
  std::map<void*, Allocation> allocations;
  bool open = false;  // between the first work and a wait for it
  size_t used = 0;
  const size_t total = static_cast<size_t>(Setting("TANDEM_CUDA_EMULATION_MEMORY_MIB", 4096)) << 20;
  bool capturing = false;
  std::vector<std::function<void()>> captured;
};

Device& device() {
  static Device* const instance = new Device;
  return *instance;
}

void Protect(int protection) {
  for (const auto& [pointer, a] : device().allocations) {
    mprotect(a.map, a.map_bytes - static_cast<size_t>(getpagesize()), protection);
  }
}

// A thread's last error. Not thread-local: see StaticShared.
pthread_key_t ErrorKey() {
  static const pthread_key_t made = [] {
    pthread_key_t key;
    if (pthread_key_create(&key, nullptr) != 0) Fatal("no key for a thread's last error");
    return key;
  }();
  return made;
}

cudaError_t Failed(cudaError_t error) {
  pthread_setspecific(ErrorKey(), reinterpret_cast<void*>(static_cast<intptr_t>(error)));
  return error;
}

cudaError_t TakeError() {
  const auto error = reinterpret_cast<intptr_t>(pthread_getspecific(ErrorKey()));
  pthread_setspecific(ErrorKey(), nullptr);
  return static_cast<cudaError_t>(error);
}

// Device memory is accessible from the first work on until the stream is waited for.
void Open() {
  if (!std::exchange(device().open, true)) Protect(PROT_READ | PROT_WRITE);
}
void Close() {
  const std::lock_guard<std::recursive_mutex> lock(device().mutex);
  if (std::exchange(device().open, false)) Protect(PROT_NONE);
}

cudaError_t Submit(std::function<void()> work) {
  const std::lock_guard<std::recursive_mutex> lock(device().mutex);
  if (device().capturing) {
    device().captured.push_back(std::move(work));
  } else {
    Open();
    work();
  }
  return cudaSuccess;
}

}  // namespace

void Fatal(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::abort();
}

void Wait(bool (*ready)(void*), void* context, const char* what) {
  if (ready(context)) return;
  Fiber& fiber = *block().running;
  fiber.ready = ready;
  fiber.context = context;
  fiber.what = what;
  SwitchToScheduler();
}

void BarrierArrive(int id, int threads) {
  if (id < 0 || id >= kBarriers) Fatal("a barrier number outside 0..15");
  BarrierState& barrier = block().barriers[id];
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
}

void Barrier(int id, int threads) {
  if (id < 0 || id >= kBarriers) Fatal("a barrier number outside 0..15");
  Block& b = block();
  BarrierState& barrier = b.barriers[id];
  const int64_t generation = barrier.generation;
  ++barrier.arrived;
  // Threads that ended while others wait count as arrived, as on the device.
  const auto ready = [&b, &barrier, generation, threads] {
    if (barrier.generation != generation) return true;
    if (barrier.arrived < (threads == 0 ? b.alive : threads)) return false;
    barrier.arrived = 0;
    ++barrier.generation;
    return true;
  };
  WaitUntil(ready, id == 0 ? "__syncthreads" : "a named barrier");
}

const unsigned char* WarpExchange(const void* value, size_t bytes) {
  if (bytes > 64) Fatal("a warp exchange of more than 64 bytes a lane");
  Block& b = block();
  const int linear = current->linear, lane = linear & 31, index = linear / 32;
  Warp& warp = b.warps[index];
  const int64_t generation = warp.generation;
  unsigned char* values = warp.values[generation & 1];
  if (warp.arrived == 0) std::memset(values, 0, sizeof(warp.values[0]));
  if (bytes > 0) std::memcpy(values + 64 * lane, value, bytes);
  ++warp.arrived;
  const auto ready = [&b, &warp, generation, index] {
    if (warp.generation != generation) return true;
    if (warp.arrived < b.lanes_alive[index]) return false;
    warp.arrived = 0;
    ++warp.generation;
    return true;
  };
  WaitUntil(ready, "the other lanes of its warp");
  return values;
}

void WarpgroupMeet(const std::function<void()>& work) {
  Warpgroup& group = block().warpgroups[current->linear / 128];
  const int64_t generation = group.generation;
  if (++group.arrived == 128) {
    work();
    group.arrived = 0;
    ++group.generation;
    return;
  }
  WaitUntil([&group, generation] { return group.generation != generation; },
            "the other threads of its warpgroup");
}

void CopyAsync(void* to, const void* from, int size, int bytes) {
  const auto misaligned = [size](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(size) != 0;
  };
  if (misaligned(to) || misaligned(from)) Fatal("a misaligned cp.async");
  if (bytes < 0 || bytes > size) Fatal("a cp.async of more bytes than its size");
  std::memset(to, 0xff, static_cast<size_t>(size));
  current->copies.push_back({to, from, size, bytes, current->copy_groups});
}

void CommitCopies() { ++current->copy_groups; }

void WaitCopies(int64_t pending_groups) {
  const int64_t done = current->copy_groups - pending_groups;
  std::erase_if(current->copies, [done](const AsyncCopy& copy) {
    if (copy.group >= done) return false;
    const auto bytes = static_cast<size_t>(copy.bytes);
    if (bytes > 0) std::memcpy(copy.to, copy.from, bytes);
    std::memset(static_cast<char*>(copy.to) + bytes, 0, static_cast<size_t>(copy.size) - bytes);
    return true;
  });
}

void LoadMatrix4(unsigned (&r)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) Fatal("a misaligned ldmatrix");
  const unsigned char* all = WarpExchange(row, 16);
  const int g = Lane() / 4, t = Lane() % 4;
  for (int i = 0; i < 4; ++i) {
    uint16_t half[2];
    for (int j = 0; j < 2; ++j) {
      const int at_row = transposed ? 2 * t + j : g, column = transposed ? g : 2 * t + j;
      std::memcpy(&half[j], all + 64 * (8 * i + at_row) + 2 * column, 2);
    }
    r[i] = half[0] | static_cast<unsigned>(half[1]) << 16;
  }
}

char* SharedMemory() { return block().shared; }
size_t SharedMemoryBytes() { return block().shared_bytes; }

unsigned SharedOffset(const void* pointer) {
  const auto offset =
      reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(SharedMemory());
  if (offset >= SharedMemoryBytes()) Fatal("an address outside the dynamic shared memory");
  return static_cast<unsigned>(offset);
}

static std::vector<void (*)()>& BlockEndChecks() {
  static auto* const checks = new std::vector<void (*)()>;
  return *checks;
}

void AtBlockEnd(void (*check)()) { BlockEndChecks().push_back(check); }

// The `__shared__` variables of all kernels: this thread's copy of the library's thread-local
// storage.
struct StaticShared {
  char* data = nullptr;
  size_t bytes = 0;
};

static int VisitObject(dl_phdr_info* info, size_t, void* found) {
  const auto own = reinterpret_cast<uintptr_t>(&VisitObject);
  bool ours = false;
  const ElfW(Phdr)* storage = nullptr;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = info->dlpi_phdr[i];
    const uintptr_t start = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD) ours = ours || (own >= start && own - start < header.p_memsz);
    if (header.p_type == PT_TLS) storage = &header;
  }
  if (!ours) return 0;
  if (storage != nullptr) {
    *static_cast<StaticShared*>(found) = {static_cast<char*>(info->dlpi_tls_data),
                                          storage->p_memsz};
  }
  return 1;
}

static StaticShared FindStaticShared() {
  // A library's storage comes into being when a thread first asks for an address in it.
  __shared__ char one;
  char* const volatile known = &one;
  StaticShared found;
  dl_iterate_phdr(VisitObject, &found);
  const auto offset = reinterpret_cast<uintptr_t>(known) - reinterpret_cast<uintptr_t>(found.data);
  if (found.data == nullptr || offset >= found.bytes) Fatal("__shared__ variables are not found");
  return found;
}

static void RunKernel(dim3 grid, dim3 block_dim, size_t shared_bytes,
                      const std::function<void()>& body) {
  Block& b = block();
  if (b.running != nullptr) Fatal("a kernel launched from a kernel");
  const int threads = static_cast<int>(block_dim.x * block_dim.y * block_dim.z);
  if (threads == 0 || threads > 1024) Fatal("a block of no or more than 1024 threads");
  if (shared_bytes > kMaxSharedBytes) Fatal("more than 227 KiB of shared memory");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) Fatal("an empty grid");
  if (grid.y > 65535 || grid.z > 65535) Fatal("a grid of more than 65535 in y or z");
  if (b.shared == nullptr) {
    b.shared = static_cast<char*>(std::aligned_alloc(1024, kMaxSharedBytes + 1024));
  }
  const StaticShared static_shared = FindStaticShared();
  b.body = body;
  b.shared_bytes = shared_bytes;
  b.threads = threads;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        std::memset(b.shared, 0xff, shared_bytes);
        std::memset(static_shared.data, 0xff, static_shared.bytes);
        for (BarrierState& barrier : b.barriers) barrier = BarrierState();
        b.warps.resize((threads + 31) / 32);
        b.warpgroups.assign((threads + 127) / 128, Warpgroup());
        b.lanes_alive.assign(b.warps.size(), 0);
        for (Warp& warp : b.warps) warp.arrived = 0;
        for (int i = 0; i < threads; ++i) {
          Fiber& fiber = FiberAt(i);
          const auto t = static_cast<unsigned>(i);
          fiber.state = {.thread = {t % block_dim.x, t / block_dim.x % block_dim.y,
                                    t / block_dim.x / block_dim.y},
                         .block = {x, y, z},
                         .block_dim = block_dim,
                         .grid_dim = grid,
                         .linear = i};
          fiber.done = false;
          fiber.ready = nullptr;
          ++b.lanes_alive[i / 32];
        }
        b.alive = threads;
        RunBlock();
        for (void (*const check)() : BlockEndChecks()) check();
      }
    }
  }
  b.running = nullptr;
  b.body = nullptr;
}

cudaError_t SubmitKernel(dim3 grid, dim3 block_dim, size_t shared_bytes,
                         std::function<void()> body) {
  Submit([=] { RunKernel(grid, block_dim, shared_bytes, body); });
  return TakeError();
}

}  // namespace tandem::cuda::emulation

namespace emulation = tandem::cuda::emulation;

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};
struct CUstream_st {};

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : emulation::Failed(cudaErrorInvalidDevice);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return emulation::Failed(cudaErrorInvalidDevice);
  const auto sm = static_cast<int>(emulation::Setting("TANDEM_CUDA_EMULATION_SM", 90));
  *properties = {.name = "CPU emulation of CUDA",
                 .totalGlobalMem = emulation::device().total,
                 .sharedMemPerBlockOptin = emulation::kMaxSharedBytes,
                 .major = sm / 10,
                 .minor = sm % 10,
                 .multiProcessorCount = 4};
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return error;
  *value = attribute == cudaDevAttrMultiProcessorCount      ? properties.multiProcessorCount
           : attribute == cudaDevAttrComputeCapabilityMajor ? properties.major
                                                            : properties.minor;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  const std::lock_guard<std::recursive_mutex> lock(emulation::device().mutex);
  *total = emulation::device().total;
  *available = *total - emulation::device().used;
  return cudaSuccess;
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  emulation::Device& device = emulation::device();
  const std::lock_guard<std::recursive_mutex> lock(device.mutex);
  if (bytes > device.total - device.used) return emulation::Failed(cudaErrorMemoryAllocation);
  const auto page = static_cast<size_t>(getpagesize());
  const size_t rounded = (bytes + 63) / 64 * 64;
  const size_t body = (rounded + page - 1) / page * page;
  void* map =
      mmap(nullptr, body + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return emulation::Failed(cudaErrorMemoryAllocation);
  *pointer = static_cast<char*>(map) + body - rounded;
  // Fresh memory is poisoned: NaN in every floating type.
  mprotect(map, body, PROT_READ | PROT_WRITE);
  std::memset(map, 0xff, body);
  if (!device.open) mprotect(map, body, PROT_NONE);
  device.allocations[*pointer] = {static_cast<char*>(map), body + page, bytes};
  device.used += bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) {
  emulation::Device& device = emulation::device();
  const std::lock_guard<std::recursive_mutex> lock(device.mutex);
  const auto found = device.allocations.find(pointer);
  if (found == device.allocations.end()) return emulation::Failed(cudaErrorInvalidValue);
  const emulation::Allocation a = found->second;
  device.allocations.erase(found);
  device.used -= a.bytes;
  mprotect(a.map, a.map_bytes - static_cast<size_t>(getpagesize()), PROT_READ);
  const auto* end = static_cast<const unsigned char*>(pointer) + a.bytes;
  for (size_t i = 0; i < (a.bytes + 63) / 64 * 64 - a.bytes; ++i) {
    if (end[i] != 0xff) emulation::Fatal("a kernel wrote past the end of an allocation");
  }
  munmap(a.map, a.map_bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  return emulation::Submit([=] { std::memmove(to, from, bytes); });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  return emulation::Submit([=] { std::memset(to, value, bytes); });
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  emulation::Close();
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  emulation::device().capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  emulation::device().capturing = false;
  *graph = new CUgraph_st{std::move(emulation::device().captured)};
  emulation::device().captured.clear();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const std::function<void()>& work : exec->work) emulation::Submit(work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return emulation::TakeError(); }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    default:
      return "error of the emulation";
  }
}
