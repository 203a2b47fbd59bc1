#include "engine/backend/cuda/emulation/hopper_emulation.h"

#include <array>
#include <deque>
#include <random>
#include <vector>

#include "engine/backend/cuda/emulation/cuda_emulation.h"

namespace tandem::cuda::emulation {
namespace {

// An mbarrier's 64 bits. All ones, as in fresh shared memory: not initialised.
struct BarrierObject {
  uint64_t parity : 1, pending : 20, expected : 20, bytes : 22, zero : 1;
};
static_assert(sizeof(BarrierObject) == 8);

BarrierObject& ObjectAt(void* barrier) {
  if (SharedOffset(barrier) % 8 != 0) Fatal("an mbarrier that is not 8-byte aligned");
  auto& object = *static_cast<BarrierObject*>(barrier);
  if (object.zero != 0) Fatal("an mbarrier used before it was initialised");
  return object;
}

void EndPhaseWhenDone(BarrierObject& object) {
  if (object.pending != 0 || object.bytes != 0) return;
  object.parity ^= 1;
  object.pending = object.expected;
}

struct BulkCopy {
  const CUtensorMap* map;
  char* shared;
  void* barrier;  // of a load
  std::array<int, 5> at;
  int thread = 0;      // of a store
  int64_t group = -1;  // of a store: -1 before its commit
};

struct StoreThread {
  int64_t committed = 0;
};

struct WgmmaOp {
  WgmmaOperands operands;  // of the first thread to come
  int issued = 0;
  bool done = false;
  std::array<float*, 128> d;
  std::array<std::array<uint32_t, 4>, 128> a;
};

struct WgmmaThread {
  int64_t next = 0;             // the number of its next operation
  std::vector<int64_t> groups;  // the end of each committed group
  bool fenced = false;
};

struct Warpgroup {
  std::deque<WgmmaOp> ops;
  int64_t first = 0;  // the number of ops.front()
  std::array<WgmmaThread, 128> threads;
};

struct Async {
  std::vector<BulkCopy> loads, stores;
  std::array<StoreThread, 1024> store_threads;
  std::array<Warpgroup, 8> warpgroups;
  std::mt19937 random{1};

  Async() {
    const char* seed = std::getenv("TANDEM_CUDA_EMULATION_SEED");
    if (seed != nullptr) random.seed(static_cast<unsigned>(std::atoll(seed)));
    AtBlockEnd([] { Get().CheckEmpty(); });
  }
  static Async& Get() {
    static Async* const instance = new Async;
    return *instance;
  }
  void CheckEmpty() {
    if (!loads.empty()) Fatal("a block ended with a bulk load in flight");
    if (!stores.empty()) Fatal("a block ended with a bulk store in flight");
    for (Warpgroup& group : warpgroups) {
      if (!group.ops.empty()) Fatal("a block ended with a wgmma in flight");
      group = Warpgroup();
    }
    store_threads = {};
  }
};

const TensorMapFields& Fields(const CUtensorMap* map) {
  const auto& fields = *reinterpret_cast<const TensorMapFields*>(map);
  if (fields.magic != kTensorMapMagic) Fatal("a tensor map that was never made");
  return fields;
}

unsigned Swizzled(unsigned address) { return address ^ ((address >> 7 & 7) << 4); }

int64_t BoxBytes(const TensorMapFields& map) {
  int64_t bytes = map.element_bytes;
  for (int i = 0; i < map.rank; ++i) bytes *= map.box[i];
  return bytes;
}

// Copies the box row by row: visit(shared row offset, global row or null when outside, first and
// last byte of the row that are inside).
void CopyBox(const BulkCopy& copy, bool load) {
  const TensorMapFields& map = Fields(copy.map);
  const unsigned start = SharedOffset(copy.shared);
  int64_t rows = 1;
  for (int i = 1; i < map.rank; ++i) rows *= map.box[i];
  const int row_bytes = map.box[0] * map.element_bytes;
  for (int64_t row = 0; row < rows; ++row) {
    const char* global = map.base;
    bool inside = true;
    int64_t rest = row;
    for (int i = 1; i < map.rank; ++i) {
      const int64_t at = copy.at[i] + rest % map.box[i];
      rest /= map.box[i];
      inside = inside && at >= 0 && at < map.sizes[i];
      global += inside ? at * static_cast<int64_t>(map.strides[i]) : 0;
    }
    for (int b = 0; b < row_bytes; ++b) {
      const unsigned linear = start + static_cast<unsigned>(row * row_bytes + b);
      char& shared = SharedMemory()[map.swizzled ? Swizzled(linear) : linear];
      const int64_t at = copy.at[0] + b / map.element_bytes;
      const bool here = inside && at >= 0 && at < map.sizes[0];
      char* const element = const_cast<char*>(global) + copy.at[0] * int64_t{map.element_bytes} + b;
      if (load) {
        shared = here ? *element : 0;
      } else if (here) {
        *element = shared;
      }
    }
  }
}

void Load(const BulkCopy& copy) {
  CopyBox(copy, true);
  BarrierObject& object = ObjectAt(copy.barrier);
  object.bytes -= static_cast<uint64_t>(BoxBytes(Fields(copy.map)));
  EndPhaseWhenDone(object);
}

void CheckBox(const CUtensorMap* map, const void* shared, int rank) {
  const TensorMapFields& fields = Fields(map);
  if (fields.rank != rank) Fatal("a bulk copy of another rank than its tensor map");
  const unsigned offset = SharedOffset(shared);
  if (offset % 128 != 0) Fatal("a bulk copy's shared memory is not 128-byte aligned");
  if (offset + static_cast<uint64_t>(BoxBytes(fields)) > SharedMemoryBytes()) {
    Fatal("a bulk copy past the end of the shared memory");
  }
}

// --- wgmma ------------------------------------------------------------------------------------

struct Descriptor {
  unsigned start, leading, stride;
  bool swizzled, mn_major;

  Descriptor(uint64_t bits, bool major)
      : start(static_cast<unsigned>(bits & 0x3fff) << 4),
        leading(static_cast<unsigned>(bits >> 16 & 0x3fff) << 4),
        stride(static_cast<unsigned>(bits >> 32 & 0x3fff) << 4),
        swizzled(bits >> 62 == 1),
        mn_major(major) {
    if (bits >> 62 > 1) Fatal("a wgmma descriptor of 32 or 64 byte swizzling");
    if ((bits >> 49 & 7) != 0) Fatal("a wgmma descriptor with a base offset");
  }
  // Where element (row of M or N, k) lies; the canonical layouts of the PTX ISA.
  unsigned Offset(int row, int k) const {
    const auto r = static_cast<unsigned>(row), c = static_cast<unsigned>(k);
    unsigned at = start;
    if (swizzled) {
      at += mn_major ? r / 64 * leading + r % 64 * 2 + c / 8 * stride + c % 8 * 128
                     : r / 8 * stride + r % 8 * 128 + c * 2;
      at = Swizzled(at);
    } else {
      at += mn_major ? r / 8 * stride + r % 8 * 2 + c / 8 * leading + c % 8 * 16
                     : r / 8 * stride + r % 8 * 16 + c / 8 * leading + c % 8 * 2;
    }
    if (at + 2 > SharedMemoryBytes()) Fatal("a wgmma operand past the end of the shared memory");
    return at;
  }
};

float Value(uint16_t bits, bool bf16) {
  if (bf16) return std::bit_cast<float>(uint32_t{bits} << 16);
  // f16: an f32 whose exponent is 112 too small, subnormals too.
  const uint32_t sign = (uint32_t{bits} & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  const float value = magnitude >= 0x7c00u ? std::bit_cast<float>(0x7f800000u | magnitude << 13)
                                           : std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(value));
}

float SharedValue(const Descriptor& descriptor, int row, int k, bool bf16) {
  uint16_t bits;
  std::memcpy(&bits, SharedMemory() + descriptor.Offset(row, k), 2);
  return Value(bits, bf16);
}

// d[n] += a * b[n]; the product of two 16-bit floats is exact in f32.
__attribute__((optimize("O3"))) void AddScaledRow(float* __restrict__ d, float a,
                                                  const float* __restrict__ b, int n) {
  for (int i = 0; i < n; ++i) d[i] += a * b[i];
}

// The accumulators' order in registers: thread t holds rows 16 (t / 32) + t / 4 % 8 + {0, 8},
// columns 8 j + 2 (t % 4) + {0, 1}.
float* Accumulator(WgmmaOp& op, int row, int column) {
  const int thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
  return op.d[thread] + column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
}

void Run(WgmmaOp& op) {
  const WgmmaOperands& o = op.operands;
  std::vector<float> b(16 * o.n);
  const Descriptor b_at(o.b_descriptor, o.b_mn_major), a_at(o.a_descriptor, o.a_mn_major);
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < o.n; ++n) b[k * o.n + n] = SharedValue(b_at, n, k, o.bf16);
  }
  std::vector<float> d(o.n);
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < o.n; ++n) d[n] = o.accumulate ? *Accumulator(op, m, n) : 0.0f;
    for (int k = 0; k < 16; ++k) {
      float a = 0;
      if (o.a != nullptr) {
        const int thread = m / 16 * 32 + m % 8 * 4 + k % 8 / 2;
        const uint32_t pair = op.a[thread][m % 16 / 8 + k / 8 * 2];
        a = Value(static_cast<uint16_t>(pair >> (k % 2 * 16)), o.bf16);
      } else {
        a = SharedValue(a_at, m, k, o.bf16);
      }
      AddScaledRow(d.data(), a, &b[k * o.n], o.n);
    }
    for (int n = 0; n < o.n; ++n) *Accumulator(op, m, n) = d[n];
  }
  op.done = true;
}

bool Same(const WgmmaOperands& x, const WgmmaOperands& y) {
  return x.n == y.n && x.bf16 == y.bf16 && x.a_mn_major == y.a_mn_major &&
         x.b_mn_major == y.b_mn_major && x.accumulate == y.accumulate &&
         (x.a == nullptr) == (y.a == nullptr) && x.a_descriptor == y.a_descriptor &&
         x.b_descriptor == y.b_descriptor;
}

Warpgroup& Mine() { return Async::Get().warpgroups[current->linear / 128]; }

}  // namespace

void BarrierObjectInit(void* barrier, unsigned count) {
  if (SharedOffset(barrier) % 8 != 0) Fatal("an mbarrier that is not 8-byte aligned");
  *static_cast<BarrierObject*>(barrier) = {0, count, count, 0, 0};
}

void BarrierObjectArrive(void* barrier, int expected_bytes) {
  BarrierObject& object = ObjectAt(barrier);
  if (object.pending == 0) Fatal("more arrivals at an mbarrier than its count");
  object.bytes += static_cast<uint64_t>(expected_bytes);
  --object.pending;
  EndPhaseWhenDone(object);
}

void BarrierObjectWait(void* barrier, unsigned parity) {
  const auto ready = [barrier, parity] {
    std::vector<BulkCopy>& loads = Async::Get().loads;
    for (size_t i = 0; i < loads.size();) {
      if (loads[i].barrier != barrier) {
        ++i;
        continue;
      }
      const BulkCopy copy = loads[i];
      loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(i));
      Load(copy);
    }
    return ObjectAt(barrier).parity != parity;
  };
  WaitUntil(ready, "an mbarrier");
}

void BulkLoad(void* to, const CUtensorMap* map, void* barrier, int rank, const int* at) {
  CheckBox(map, to, rank);
  ObjectAt(barrier);
  BulkCopy copy{map, static_cast<char*>(to), barrier, {}};
  std::copy(at, at + rank, copy.at.begin());
  Async& async = Async::Get();
  if (async.random() % 2 == 0) {
    Load(copy);
  } else {
    async.loads.push_back(copy);
  }
}

void BulkStore(const CUtensorMap* map, const void* from, int rank, const int* at) {
  CheckBox(map, from, rank);
  BulkCopy copy{map, static_cast<char*>(const_cast<void*>(from)), nullptr, {}};
  std::copy(at, at + rank, copy.at.begin());
  copy.thread = current->linear;
  Async::Get().stores.push_back(copy);
}

void BulkStoreCommit() {
  Async& async = Async::Get();
  const int64_t group = async.store_threads[current->linear].committed++;
  for (BulkCopy& store : async.stores) {
    if (store.thread == current->linear && store.group < 0) store.group = group;
  }
}

void BulkStoreWait(int groups_in_flight) {
  Async& async = Async::Get();
  const int64_t end = async.store_threads[current->linear].committed - groups_in_flight;
  std::vector<BulkCopy> later;
  for (const BulkCopy& store : async.stores) {
    if (store.thread == current->linear && store.group >= 0 && store.group < end) {
      CopyBox(store, false);
    } else {
      later.push_back(store);
    }
  }
  async.stores = std::move(later);
}

void WgmmaIssue(const WgmmaOperands& operands) {
  Warpgroup& group = Mine();
  const int index = current->linear % 128;
  WgmmaThread& thread = group.threads[index];
  if (!thread.fenced) Fatal("a wgmma without a wgmma.fence since the last wait");
  const int64_t number = thread.next++;
  while (group.first + static_cast<int64_t>(group.ops.size()) <= number) {
    group.ops.emplace_back();
    group.ops.back().operands = operands;
  }
  WgmmaOp& op = group.ops[number - group.first];
  if (!Same(op.operands, operands)) Fatal("threads of a warpgroup issue different wgmmas");
  op.d[index] = operands.d;
  if (operands.a != nullptr) std::copy(operands.a, operands.a + 4, op.a[index].begin());
  ++op.issued;
}

void WgmmaFence() { Mine().threads[current->linear % 128].fenced = true; }

void WgmmaCommit() {
  WgmmaThread& thread = Mine().threads[current->linear % 128];
  thread.groups.push_back(thread.next);
}

void WgmmaWait(int groups_in_flight) {
  Warpgroup& group = Mine();
  WgmmaThread& thread = group.threads[current->linear % 128];
  thread.fenced = false;
  const auto groups = static_cast<int64_t>(thread.groups.size()) - groups_in_flight;
  if (groups <= 0) return;
  const int64_t end = thread.groups[groups - 1];
  thread.groups.erase(thread.groups.begin(), thread.groups.begin() + groups);
  const auto issued = [&group, end] {
    for (int64_t i = group.first; i < end; ++i) {
      if (group.ops[i - group.first].issued < 128) return false;
    }
    return true;
  };
  WaitUntil(issued, "the other threads of its warpgroup to issue a wgmma");
  for (int64_t i = group.first; i < end; ++i) {
    WgmmaOp& op = group.ops[i - group.first];
    if (!op.done) Run(op);
  }
  while (!group.ops.empty() && group.ops.front().done) {
    group.ops.pop_front();
    ++group.first;
  }
}

}  // namespace tandem::cuda::emulation
