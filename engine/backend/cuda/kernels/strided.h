/* A loop over tensors that are seen through strides; part of tandem_cuda.h. */
#ifndef TANDEM_CUDA_STRIDED_H_
#define TANDEM_CUDA_STRIDED_H_
#ifdef __cplusplus
extern "C" {
#endif

#define TANDEM_CUDA_MAX_DIMS 8
#define TANDEM_CUDA_MAX_OPERANDS 4

/* Sizes outermost first; strides in elements, negative or 0 (broadcast) too. Operand 0 is the
 * output. Fastest with as few dimensions as the strides allow (neighbours merged), and the last
 * dimension's strides 0 or 1. */
struct tandem_cuda_loop {
  int32_t dims; /* 0 (one element) to TANDEM_CUDA_MAX_DIMS */
  int32_t reserved;
  int64_t size[TANDEM_CUDA_MAX_DIMS];
  int64_t stride[TANDEM_CUDA_MAX_OPERANDS][TANDEM_CUDA_MAX_DIMS];
};

#ifdef __cplusplus
}
#endif
#endif
