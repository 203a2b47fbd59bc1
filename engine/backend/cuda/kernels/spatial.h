/* Convolution and pooling over one or two spatial dimensions; part of tandem_cuda.h.
 *
 * Images are (N, C, H, W); one spatial dimension W is (1, W). All of it is deterministic, and an
 * image's bits do not depend on the others of its batch (a weight's gradient sums over them). */
#ifndef TANDEM_CUDA_SPATIAL_H_
#define TANDEM_CUDA_SPATIAL_H_
#ifdef __cplusplus
extern "C" {
#endif

/* Output (oh, ow) sees inputs (oh * stride_h - pad_top + kh * dilation_h, likewise in w), those
 * that exist. Each at most 2^24; in_h * in_w and out_h * out_w below 2^31. */
struct tandem_cuda_window_params {
  int64_t in_h, in_w, out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;
  int64_t pad_top, pad_left, pad_bottom, pad_right;
};

struct tandem_cuda_conv_params {
  struct tandem_cuda_window_params window;
  int64_t batch, groups;
  int64_t in_channels, out_channels; /* of all groups; in / groups * kernel, and batch times pixels
                                        or kernel * out / groups, below 2^31 */
  int32_t dtype;                     /* f32, f16, bf16: of all tensors; sums are f32 */
};

/* ONNX's Conv. y (N, O, OH, OW) = bias (O), which may be null, plus x (N, C, H, W) correlated with
 * weight (O, C / groups, KH, KW). Each element is one f32 sum over (c, kh, kw) in that order. */
TANDEM_CUDA_API int tandem_cuda_conv(void* y, const void* x, const void* weight, const void* bias,
                                     const struct tandem_cuda_conv_params* params,
                                     tandem_cuda_stream stream);
/* dx (N, C, H, W) from dy (N, O, OH, OW): one f32 sum over (o, kh, kw) in that order. */
TANDEM_CUDA_API int tandem_cuda_conv_input_grad(void* dx, const void* dy, const void* weight,
                                                const struct tandem_cuda_conv_params* params,
                                                tandem_cuda_stream stream);
/* dweight (O, C / groups, KH, KW) from dy and x. Sums over (n, oh, ow) are cut into pieces, which
 * the shapes alone determine; scratch holds them. */
TANDEM_CUDA_API int64_t
tandem_cuda_conv_weight_grad_scratch_bytes(const struct tandem_cuda_conv_params* params);
TANDEM_CUDA_API int tandem_cuda_conv_weight_grad(void* dweight, const void* dy, const void* x,
                                                 const struct tandem_cuda_conv_params* params,
                                                 void* scratch, tandem_cuda_stream stream);

/* ONNX's MaxPool. y and index (planes, OH, OW); index, which may be null, is the place h * W + w of
 * the first maximum in row-major order; a NaN is larger than any number. f32, f64, f16, bf16, i8,
 * u8, i32, i64. Every window holds an input element. Visits every tap of every window. */
TANDEM_CUDA_API int tandem_cuda_max_pool(void* y, int64_t* index, const void* x, int64_t planes,
                                         const struct tandem_cuda_window_params* window,
                                         int32_t dtype, tandem_cuda_stream stream);
/* The same for windows that are large and overlap, in O(log kernel) steps an element: maxima over
 * 1, 2, 4 ... taps, one dimension after the other. f32, f16, bf16. */
TANDEM_CUDA_API int64_t tandem_cuda_sliding_maximum_scratch_bytes(
    int64_t planes, const struct tandem_cuda_window_params* window);
TANDEM_CUDA_API int tandem_cuda_sliding_maximum(void* y, int64_t* index, const void* x,
                                                int64_t planes,
                                                const struct tandem_cuda_window_params* window,
                                                int32_t dtype, void* scratch,
                                                tandem_cuda_stream stream);
/* dx (planes, in) = the sum of dy (planes, out) over the elements whose index it is, in their
 * order; an index outside a plane is moved to its nearest place. f32, f16, bf16; `in` and `out`
 * below 2^31, and `in` positive where `out` is. */
TANDEM_CUDA_API int64_t tandem_cuda_max_pool_grad_scratch_bytes(int64_t planes, int64_t out);
TANDEM_CUDA_API int tandem_cuda_max_pool_grad(void* dx, const void* dy, const int64_t* index,
                                              int64_t planes, int64_t in, int64_t out,
                                              int32_t dtype, void* scratch,
                                              tandem_cuda_stream stream);

/* ONNX's AveragePool: the mean over a window's elements; with count_include_pad the padding counts
 * as zeros, but not what lies beyond it (ceil mode). f32, f16, bf16. */
TANDEM_CUDA_API int tandem_cuda_average_pool(void* y, const void* x, int64_t planes,
                                             const struct tandem_cuda_window_params* window,
                                             int32_t count_include_pad, int32_t dtype,
                                             tandem_cuda_stream stream);
TANDEM_CUDA_API int tandem_cuda_average_pool_grad(void* dx, const void* dy, int64_t planes,
                                                  const struct tandem_cuda_window_params* window,
                                                  int32_t count_include_pad, int32_t dtype,
                                                  tandem_cuda_stream stream);

#ifdef __cplusplus
}
#endif
#endif
