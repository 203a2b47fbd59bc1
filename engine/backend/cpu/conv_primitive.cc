#include "engine/backend/cpu/conv_primitive.h"

#include <algorithm>
#include <string_view>

namespace tandem::cpu {
namespace {

using dnnl::memory;
using Tag = memory::format_tag;

memory::desc F32(const memory::dims& dims, Tag tag) { return {dims, memory::data_type::f32, tag}; }

// With few input channels oneDNN's direct input gradient pads them to a whole vector, at 3 to 10
// times the cost of its im2col product on plain layouts.
bool PreferPlain(const ConvProblem& p) {
  const bool depthwise = p.groups > 1 && p.weight[1] == 1 && p.weight[0] == p.groups;
  return p.direction == ConvDirection::kInputGrad && p.weight[1] <= 3 && !depthwise;
}

// The convolution's numbers as oneDNN takes them; its dilations count the elements left out.
struct WindowDims {
  memory::dims strides, dilations, begin, end;

  explicit WindowDims(const ConvProblem& p) {
    for (int i = 0; i < 2; ++i) {
      const ops::WindowDim& dim = p.window[i];
      // Any stride beyond the last position gives one output; a huge one could overflow oneDNN's
      // offsets.
      const int64_t last = p.x[i + 2] + dim.pad_begin + dim.pad_end - dim.extent();
      strides.push_back(std::min(dim.stride, last + 1));
      dilations.push_back(dim.kernel == 1 ? 0 : dim.dilation - 1);
      begin.push_back(dim.pad_begin);
      end.push_back(dim.pad_end);
    }
  }
};

bool IsDirect(std::string_view implementation) {
  return implementation.starts_with("jit:") || implementation.starts_with("jit_1x1:") ||
         implementation.starts_with("jit_dw:");
}
bool IsMatrixProduct(std::string_view implementation) {
  return implementation.find("gemm") != std::string_view::npos;
}

template <typename Desc>
ConvPrimitive FromDesc(const Desc& desc, const dnnl::primitive& primitive, const memory::desc& x,
                       const memory::desc& weight, const memory::desc& y) {
  return {.primitive = primitive,
          .x = x,
          .weight = weight,
          .y = y,
          .scratch = desc.scratchpad_desc(),
          .plain_x = {},
          .plain_weight = {},
          .plain_y = {},
          .direct = IsDirect(desc.impl_info_str())};
}

// Elements after padding the channels to whole vectors, which oneDNN's layouts do.
int64_t Padded(int64_t channels) { return (channels + 15) / 16 * 16; }

}  // namespace

absl::StatusOr<ConvProblem> ReadConvProblem(const KernelSpec& spec, ConvDirection direction,
                                            const Shape& x, const Shape& weight, const Shape& y) {
  if (spec.dtype() != DType::kF32) {
    return Unimplemented(DTypeName(spec.dtype()), " on the CPU, only f32 is supported");
  }
  TANDEM_ASSIGN_OR_RETURN(ops::Window window,
                          ops::ReadWindow(*spec.attributes, weight.dims().subspan(2)));
  ConvProblem p{.direction = direction,
                .x = ops::AsPlane(x),
                .weight = ops::AsPlane(weight),
                .y = ops::AsPlane(y),
                .window = ops::AsPlane(window),
                .groups = spec.attributes->Int("groups"),
                .bias = direction == ConvDirection::kForward && spec.has(2)};
  // oneDNN generates code for every column of the kernel, some of it for every column it spans.
  constexpr int64_t kMaxKernel = 4096, kMaxTaps = int64_t{1} << 16, kMaxSpan = int64_t{1} << 14;
  if (std::max(p.weight[2], p.weight[3]) > kMaxKernel || p.weight.Count(2, 4) > kMaxTaps ||
      std::max(p.window[0].extent(), p.window[1].extent()) > kMaxSpan) {
    return Unimplemented("weight ", weight.ToString(), " on the CPU: a kernel of more than ",
                         kMaxKernel, " in a dimension, ", kMaxTaps, " in all or a span of ",
                         kMaxSpan);
  }
  constexpr int64_t kMaxElements = int64_t{1} << 28;
  const int64_t outputs = p.groups * Padded(p.weight[0] / p.groups);
  if (p.x[0] > 0 && (Padded(p.x[1]) * p.x.Count(2, 4) > kMaxElements ||
                     Padded(p.y[1]) * p.y.Count(2, 4) > kMaxElements ||
                     outputs * Padded(p.weight[1]) * p.weight.Count(2, 4) > kMaxElements)) {
    return Unimplemented("x ", x.ToString(), ", weight ", weight.ToString(), ", y ", y.ToString(),
                         " on the CPU: more than ", kMaxElements,
                         " elements an image or in the weights, channels padded to 16");
  }
  return p;
}

absl::Status CheckScratch(int64_t scratch_bytes) {
  constexpr int64_t kMaxScratchBytes = int64_t{1} << 34;
  if (scratch_bytes >= 0 && scratch_bytes <= kMaxScratchBytes) return absl::OkStatus();
  return ResourceExhausted("needs ", scratch_bytes, " bytes of scratch, above the limit of ",
                           kMaxScratchBytes);
}

ConvPrimitive MakeConvPrimitive(const ConvProblem& p, int64_t images, int64_t outputs) {
  constexpr auto kAlgorithm = dnnl::algorithm::convolution_direct;
  const memory::dims x_dims = {images, p.x[1], p.x[2], p.x[3]};
  const memory::dims y_dims = {images, outputs, p.y[2], p.y[3]};
  const memory::dims weight_dims =
      p.groups == 1
          ? memory::dims{outputs, p.weight[1], p.weight[2], p.weight[3]}
          : memory::dims{p.groups, outputs / p.groups, p.weight[1], p.weight[2], p.weight[3]};
  const Tag image_tag = PreferPlain(p) ? Tag::nchw : Tag::any;
  const memory::desc x = F32(x_dims, image_tag), y = F32(y_dims, image_tag);
  const memory::desc weight = F32(weight_dims, Tag::any);
  const memory::desc bias = F32({outputs}, Tag::x);
  const WindowDims w(p);
  const Accept accept = PreferPlain(p)                              ? IsMatrixProduct
                        : p.direction == ConvDirection::kWeightGrad ? AnyImplementation
                                                                    : IsDirect;
  const dnnl::primitive_attr attr = UserScratchpad();

  using Forward = dnnl::convolution_forward;
  const auto prop = p.direction == ConvDirection::kForward ? dnnl::prop_kind::forward_inference
                                                           : dnnl::prop_kind::forward_training;
  const auto forward = p.bias ? Describe<Forward>(accept, attr, prop, kAlgorithm, x, weight, bias,
                                                  y, w.strides, w.dilations, w.begin, w.end)
                              : Describe<Forward>(accept, attr, prop, kAlgorithm, x, weight, y,
                                                  w.strides, w.dilations, w.begin, w.end);
  ConvPrimitive made;
  if (p.direction == ConvDirection::kForward) {
    made = FromDesc(forward, Forward(forward), forward.src_desc(), forward.weights_desc(),
                    forward.dst_desc());
  } else if (p.direction == ConvDirection::kInputGrad) {
    using Backward = dnnl::convolution_backward_data;
    const auto desc = DescribeBackward<Backward>(accept, attr, forward, kAlgorithm, x, weight, y,
                                                 w.strides, w.dilations, w.begin, w.end);
    made = FromDesc(desc, Backward(desc), desc.diff_src_desc(), desc.weights_desc(),
                    desc.diff_dst_desc());
  } else {
    using Backward = dnnl::convolution_backward_weights;
    const auto desc = DescribeBackward<Backward>(accept, attr, forward, kAlgorithm, x, weight, y,
                                                 w.strides, w.dilations, w.begin, w.end);
    made = FromDesc(desc, Backward(desc), desc.src_desc(), desc.diff_weights_desc(),
                    desc.diff_dst_desc());
  }
  made.plain_x = F32(x_dims, Tag::nchw);
  made.plain_weight = F32(weight_dims, p.groups == 1 ? Tag::oihw : Tag::goihw);
  // Strides of the whole tensor: `outputs` may be a slice of its channels.
  made.plain_y = memory::desc(y_dims, memory::data_type::f32,
                              memory::dims{p.y_image(), p.y[2] * p.y[3], p.y[3], 1});
  return made;
}

dnnl::memory::desc ConvBias(const ConvProblem& problem) {
  return problem.bias ? F32({problem.weight[0]}, Tag::x) : memory::desc();
}

}  // namespace tandem::cpu
