/* The C interface of libtandem_cuda.so: everything that runs on an NVIDIA GPU.
 *
 * The library holds the kernels and nothing else: it knows no graph, allocates only where a
 * function says so, and needs libc, libm, libdl and a driver at run time. It loads where there is
 * no driver; the first call then fails with the driver's own error. Python can call it through
 * ctypes.
 *
 * Every function returns 0 or an error that tandem_cuda_error_string explains. Pointers named in
 * the comments as (shape) are row-major device memory; sizes count elements unless named _bytes.
 * `stream` comes last; work is only enqueued, in stream order. Arguments are not checked beyond
 * what is said: the caller's bindings do that. Thread-safe, but for one stream at a time. */
#ifndef TANDEM_CUDA_H_
#define TANDEM_CUDA_H_

#include <stddef.h>
#include <stdint.h>

#define TANDEM_CUDA_API __attribute__((visibility("default")))
/* Changes with every change of this interface; the loader refuses another. */
#define TANDEM_CUDA_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

typedef void* tandem_cuda_stream;

/* Element types: the numbers of tandem::DType. */
enum tandem_cuda_dtype {
  TANDEM_CUDA_F32 = 0,
  TANDEM_CUDA_F64 = 1,
  TANDEM_CUDA_F16 = 2,
  TANDEM_CUDA_BF16 = 3,
  TANDEM_CUDA_I8 = 4,
  TANDEM_CUDA_I16 = 5,
  TANDEM_CUDA_I32 = 6,
  TANDEM_CUDA_I64 = 7,
  TANDEM_CUDA_U8 = 8,
  TANDEM_CUDA_U16 = 9,
  TANDEM_CUDA_U32 = 10,
  TANDEM_CUDA_U64 = 11,
  TANDEM_CUDA_BOOL = 12
};

/* A function that has no kernel for its arguments (dtype, head dimension ...) returns this. */
#define TANDEM_CUDA_UNSUPPORTED 801 /* cudaErrorNotSupported */

/* --- runtime.cu ------------------------------------------------------------------------------- */

struct tandem_cuda_device_info {
  char name[256];
  int32_t major, minor; /* compute capability */
  int32_t multiprocessors;
  int64_t memory_bytes;
  int64_t shared_bytes_per_block; /* the most that a kernel may ask for */
};

TANDEM_CUDA_API int32_t tandem_cuda_abi_version(void);
TANDEM_CUDA_API const char* tandem_cuda_error_string(int error);
/* Devices that the driver shows; an error when there is no driver, or one that is too old. */
TANDEM_CUDA_API int tandem_cuda_device_count(int32_t* count);
TANDEM_CUDA_API int tandem_cuda_describe_device(int32_t device,
                                                struct tandem_cuda_device_info* info);
/* Makes the device current for the calling thread: before every other function below. */
TANDEM_CUDA_API int tandem_cuda_use_device(int32_t device);
TANDEM_CUDA_API int tandem_cuda_memory(int64_t* available_bytes, int64_t* total_bytes);

TANDEM_CUDA_API int tandem_cuda_stream_create(tandem_cuda_stream* stream);
TANDEM_CUDA_API int tandem_cuda_stream_destroy(tandem_cuda_stream stream);
/* Waits for all work of the stream; reports an error of any of it. */
TANDEM_CUDA_API int tandem_cuda_stream_finish(tandem_cuda_stream stream);

/* From the device's stream-ordered pool, which keeps freed memory for the next allocation. */
TANDEM_CUDA_API int tandem_cuda_allocate(void** pointer, int64_t bytes, tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_free(void* pointer, tandem_cuda_stream stream);
/* Copies. The host's memory must stay as it is until the stream has finished. */
TANDEM_CUDA_API int tandem_cuda_upload(void* to_device, const void* from_host, int64_t bytes,
                                       tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_download(void* to_host, const void* from_device, int64_t bytes,
                                         tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_copy(void* to_device, const void* from_device, int64_t bytes,
                                     tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_fill_bytes(void* to_device, int32_t byte, int64_t bytes,
                                           tandem_cuda_stream stream);

/* CUDA graphs: what is enqueued between begin and end is recorded instead of run. */
typedef void* tandem_cuda_recording;
TANDEM_CUDA_API int tandem_cuda_record_begin(tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_record_end(tandem_cuda_recording* recording,
                                           tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_replay(tandem_cuda_recording recording, tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_recording_destroy(tandem_cuda_recording recording);

#ifdef __cplusplus
}
#endif

/* The kernels, family by family. */
#include "engine/backend/cuda/kernels/elementwise.h"
#include "engine/backend/cuda/kernels/matmul.h"
#include "engine/backend/cuda/kernels/normalization.h"
#include "engine/backend/cuda/kernels/attention.h"
#include "engine/backend/cuda/kernels/loss.h"
#include "engine/backend/cuda/kernels/embedding.h"
#include "engine/backend/cuda/kernels/resize.h"
#include "engine/backend/cuda/kernels/spatial.h"
#include "engine/backend/cuda/kernels/optimizer.h"
#include "engine/backend/cuda/kernels/random.h"
#include "engine/backend/cuda/kernels/reduce.h"
#include "engine/backend/cuda/kernels/shape.h"
#include "engine/backend/cuda/kernels/sampling.h"
#include "engine/backend/cuda/kernels/topk.h"
#include "engine/backend/cuda/kernels/triangular.h"

#endif /* TANDEM_CUDA_H_ */
