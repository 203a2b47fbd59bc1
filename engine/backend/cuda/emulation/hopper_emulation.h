// What kernels/hopper.h and kernels/wgmma.h do under emulation.
//
// Asynchronous work is late on purpose. A bulk copy into shared memory happens at once or when a
// thread looks at its barrier (drawn from TANDEM_CUDA_EMULATION_SEED); a bulk store and a wgmma
// happen at the wait that covers them. So data used before its wait is stale or NaN, and an operand
// overwritten before its wait spoils the result. A block that ends with such work in flight aborts.
#pragma once

#include <cstddef>
#include <cstdint>

// As opaque as CUDA's.
struct alignas(64) CUtensorMap {
  uint64_t opaque[16];
};

namespace tandem::cuda::emulation {

// What the emulation keeps in a CUtensorMap. Sizes and strides innermost first.
struct TensorMapFields {
  uint64_t magic;
  char* base;
  uint64_t strides[5];  // bytes
  uint32_t sizes[5];
  uint16_t box[5];
  uint8_t rank, element_bytes;
  bool swizzled;  // in 128 bytes, else not at all
};
static_assert(sizeof(TensorMapFields) <= sizeof(CUtensorMap));
inline constexpr uint64_t kTensorMapMagic = 0x54656e736f724d70;

void BarrierObjectInit(void* barrier, unsigned count);
void BarrierObjectArrive(void* barrier, int expected_bytes);
void BarrierObjectWait(void* barrier, unsigned parity);

void BulkLoad(void* to, const CUtensorMap* map, void* barrier, int rank, const int* at);
void BulkStore(const CUtensorMap* map, const void* from, int rank, const int* at);
void BulkStoreCommit();
void BulkStoreWait(int groups_in_flight);

// One thread's part of a wgmma m64nNk16: d is N/2 accumulators, a four registers or null.
struct WgmmaOperands {
  int n = 0;
  bool bf16 = false;  // else f16
  bool a_mn_major = false, b_mn_major = false, accumulate = false;
  float* d = nullptr;
  const uint32_t* a = nullptr;
  uint64_t a_descriptor = 0, b_descriptor = 0;
};
void WgmmaIssue(const WgmmaOperands& operands);
void WgmmaFence();
void WgmmaCommit();
void WgmmaWait(int groups_in_flight);

}  // namespace tandem::cuda::emulation
