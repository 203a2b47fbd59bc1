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

template <typename Desc>
bool IsDirect(const Desc& desc) {
  return std::string_view(desc.impl_info_str()).starts_with("jit");
}

// The descriptor that make() gives, of the first direct implementation if there is one.
template <typename Make>
auto PreferDirect(const Make& make) {
  for (auto desc = make(); true;) {
    if (IsDirect(desc)) return desc;
    if (!desc.next_impl()) return make();
  }
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
          .direct = IsDirect(desc)};
}

}  // namespace

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
  const dnnl::primitive_attr attr = UserScratchpad();

  using Forward = dnnl::convolution_forward;
  const auto prop = p.direction == ConvDirection::kForward ? dnnl::prop_kind::forward_inference
                                                           : dnnl::prop_kind::forward_training;
  const auto describe_forward = [&] {
    return p.bias ? Describe<Forward>(attr, prop, kAlgorithm, x, weight, bias, y, w.strides,
                                      w.dilations, w.begin, w.end)
                  : Describe<Forward>(attr, prop, kAlgorithm, x, weight, y, w.strides, w.dilations,
                                      w.begin, w.end);
  };
  ConvPrimitive made;
  if (p.direction == ConvDirection::kForward) {
    const auto desc = PreferDirect(describe_forward);
    made = FromDesc(desc, Forward(desc), desc.src_desc(), desc.weights_desc(), desc.dst_desc());
  } else if (p.direction == ConvDirection::kInputGrad) {
    using Backward = dnnl::convolution_backward_data;
    const auto forward = describe_forward();
    const auto describe = [&] {
      return DescribeBackward<Backward>(attr, forward, kAlgorithm, x, weight, y, w.strides,
                                        w.dilations, w.begin, w.end);
    };
    const auto desc = PreferPlain(p) ? describe() : PreferDirect(describe);
    made = FromDesc(desc, Backward(desc), desc.diff_src_desc(), desc.weights_desc(),
                    desc.diff_dst_desc());
  } else {
    using Backward = dnnl::convolution_backward_weights;
    const auto desc = DescribeBackward<Backward>(attr, describe_forward(), kAlgorithm, x, weight, y,
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
