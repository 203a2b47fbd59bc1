// Devices, memory, streams and recordings.
#include <cstring>

#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"

namespace {

cudaStream_t Stream(tandem_cuda_stream stream) { return static_cast<cudaStream_t>(stream); }

// The runtime also keeps an error for cudaGetLastError, where the next launch would find it and
// take it for its own.
int Reported(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

}  // namespace

int32_t tandem_cuda_abi_version(void) { return TANDEM_CUDA_ABI_VERSION; }

const char* tandem_cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

int tandem_cuda_device_count(int32_t* count) {
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  *count = error == cudaSuccess ? found : 0;
  return Reported(error);
}

int tandem_cuda_describe_device(int32_t device, struct tandem_cuda_device_info* info) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) return Reported(error);
  std::memcpy(info->name, properties.name, sizeof(info->name));
  info->name[sizeof(info->name) - 1] = 0;
  info->major = properties.major;
  info->minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  info->shared_bytes_per_block = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  return cudaSuccess;
}

int tandem_cuda_use_device(int32_t device) {
  const cudaError_t error = cudaSetDevice(device);
#ifdef __CUDACC__
  if (error != cudaSuccess) return Reported(error);
  cudaMemPool_t pool;
  const cudaError_t found = cudaDeviceGetDefaultMemPool(&pool, device);
  if (found != cudaSuccess) return Reported(found);
  uint64_t keep = UINT64_MAX;
  return Reported(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
#else
  return error;
#endif
}

int tandem_cuda_memory(int64_t* available_bytes, int64_t* total_bytes) {
  size_t available = 0, total = 0;
  const cudaError_t error = cudaMemGetInfo(&available, &total);
  *available_bytes = static_cast<int64_t>(available);
  *total_bytes = static_cast<int64_t>(total);
  return Reported(error);
}

int tandem_cuda_stream_create(tandem_cuda_stream* stream) {
  cudaStream_t made = nullptr;
  const cudaError_t error = cudaStreamCreate(&made);
  *stream = made;
  return Reported(error);
}

int tandem_cuda_stream_destroy(tandem_cuda_stream stream) {
  return Reported(cudaStreamDestroy(Stream(stream)));
}

int tandem_cuda_stream_finish(tandem_cuda_stream stream) {
  return Reported(cudaStreamSynchronize(Stream(stream)));
}

int tandem_cuda_allocate(void** pointer, int64_t bytes, tandem_cuda_stream stream) {
  *pointer = nullptr;
  if (bytes <= 0) return cudaSuccess;
  return Reported(cudaMallocAsync(pointer, static_cast<size_t>(bytes), Stream(stream)));
}

int tandem_cuda_free(void* pointer, tandem_cuda_stream stream) {
  return pointer == nullptr ? cudaSuccess : Reported(cudaFreeAsync(pointer, Stream(stream)));
}

namespace {

int Copy(void* to, const void* from, int64_t bytes, cudaMemcpyKind kind, void* stream) {
  if (bytes <= 0) return cudaSuccess;
  return Reported(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), kind, Stream(stream)));
}

}  // namespace

int tandem_cuda_upload(void* to_device, const void* from_host, int64_t bytes,
                       tandem_cuda_stream stream) {
  return Copy(to_device, from_host, bytes, cudaMemcpyHostToDevice, stream);
}

int tandem_cuda_download(void* to_host, const void* from_device, int64_t bytes,
                         tandem_cuda_stream stream) {
  return Copy(to_host, from_device, bytes, cudaMemcpyDeviceToHost, stream);
}

int tandem_cuda_copy(void* to_device, const void* from_device, int64_t bytes,
                     tandem_cuda_stream stream) {
  return Copy(to_device, from_device, bytes, cudaMemcpyDeviceToDevice, stream);
}

int tandem_cuda_fill_bytes(void* to_device, int32_t byte, int64_t bytes,
                           tandem_cuda_stream stream) {
  if (bytes <= 0) return cudaSuccess;
  return Reported(cudaMemsetAsync(to_device, byte, static_cast<size_t>(bytes), Stream(stream)));
}

int tandem_cuda_record_begin(tandem_cuda_stream stream) {
  return Reported(cudaStreamBeginCapture(Stream(stream), cudaStreamCaptureModeThreadLocal));
}

int tandem_cuda_record_end(tandem_cuda_recording* recording, tandem_cuda_stream stream) {
  *recording = nullptr;
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaStreamEndCapture(Stream(stream), &graph);
  if (error != cudaSuccess) return Reported(error);
  cudaGraphExec_t exec = nullptr;
  error = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  *recording = exec;
  return Reported(error);
}

int tandem_cuda_replay(tandem_cuda_recording recording, tandem_cuda_stream stream) {
  return Reported(cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), Stream(stream)));
}

int tandem_cuda_recording_destroy(tandem_cuda_recording recording) {
  return recording == nullptr
             ? cudaSuccess
             : Reported(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(recording)));
}
