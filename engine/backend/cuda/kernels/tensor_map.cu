#include <atomic>

#include "engine/backend/cuda/kernels/tensor_map.h"

#ifdef __CUDACC__
#include <cudaTypedefs.h>
#endif

namespace tandem::cuda {

#ifdef __CUDACC__

namespace {

// The driver's encoder: the library is not linked with libcuda, so that it loads without one.
PFN_cuTensorMapEncodeTiled_v12000 Encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

cudaError_t MakeTensorMap(const TensorMapSpec& spec, CUtensorMap* map) {
  // A failure is not remembered: the next call may find a driver that is up.
  static std::atomic<PFN_cuTensorMapEncodeTiled_v12000> found = nullptr;
  PFN_cuTensorMapEncodeTiled_v12000 encode = found;
  if (encode == nullptr) found = encode = Encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t sizes[5], strides[4];
  cuuint32_t box[5], element_strides[5];
  for (int i = 0; i < spec.rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(spec.sizes[i]);
    if (i > 0) strides[i - 1] = static_cast<cuuint64_t>(spec.strides[i]);
    box[i] = static_cast<cuuint32_t>(spec.box[i]);
    element_strides[i] = 1;
  }
  // Zero fill outside works bitwise for every type of that width.
  const CUtensorMapDataType type = spec.element_bytes == 1   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : spec.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_UINT16
                                                             : CU_TENSOR_MAP_DATA_TYPE_UINT32;
  const CUresult result =
      encode(map, type, static_cast<cuuint32_t>(spec.rank), const_cast<void*>(spec.base), sizes,
             strides, box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             spec.swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

#else

cudaError_t MakeTensorMap(const TensorMapSpec& spec, CUtensorMap* map) {
  emulation::TensorMapFields fields{};
  fields.magic = emulation::kTensorMapMagic;
  fields.base = static_cast<char*>(const_cast<void*>(spec.base));
  fields.rank = static_cast<uint8_t>(spec.rank);
  fields.element_bytes = static_cast<uint8_t>(spec.element_bytes);
  fields.swizzled = spec.swizzled;
  const int row_bytes = spec.box[0] * spec.element_bytes;
  bool valid = spec.rank >= 2 && spec.rank <= 5 &&
               reinterpret_cast<uintptr_t>(spec.base) % 16 == 0 && row_bytes % 16 == 0 &&
               (!spec.swizzled || row_bytes <= 128);
  for (int i = 0; valid && i < spec.rank; ++i) {
    fields.sizes[i] = static_cast<uint32_t>(spec.sizes[i]);
    fields.strides[i] = static_cast<uint64_t>(i == 0 ? spec.element_bytes : spec.strides[i]);
    fields.box[i] = static_cast<uint16_t>(spec.box[i]);
    valid = spec.sizes[i] >= 1 && spec.sizes[i] < int64_t{1} << 32 && spec.box[i] >= 1 &&
            spec.box[i] <= 256 &&
            (i == 0 || (spec.strides[i] % 16 == 0 && spec.strides[i] < int64_t{1} << 40));
  }
  if (!valid) return cudaErrorInvalidValue;
  std::memcpy(map, &fields, sizeof(fields));
  return cudaSuccess;
}

#endif

}  // namespace tandem::cuda
