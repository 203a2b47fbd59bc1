// Convolution and its two adjoints on oneDNN.
//
// oneDNN's direct convolutions want channels in blocks; the tensors of a plan are plain NC(H)W. The
// batch is cut into tasks of a few images, and one thread takes a task through all its steps (into
// the blocked layout, convolution, back) while it is in the cache: faster than whole-batch steps,
// whose reorders are bound by memory. With fewer images than threads there is one task, and oneDNN
// divides it.
//
// Bits: the forward pass and the input gradient of an image are the same in any batch and with any
// thread count. oneDNN's direct kernels have that property (conv_test holds them to it); its others
// do not, and get one image and one thread at a time. The weight gradient sums over the batch, in
// oneDNN in an order that follows the thread count: here each task runs on one thread, and the
// tasks and the order of their sums follow from the shapes alone.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/backend/cpu/conv_primitive.h"
#include "engine/backend/cpu/kernels_table.h"
#include "engine/backend/cpu/onednn.h"
#include "engine/base/threads.h"

namespace tandem::cpu {
namespace {

using dnnl::memory;

// Offsets into a kernel's scratch, each 64-byte aligned.
class ScratchLayout {
 public:
  int64_t Take(int64_t bytes) {
    const int64_t offset = size_;
    size_ += (bytes + 63) / 64 * 64;
    return offset;
  }
  int64_t Take(const memory::desc& desc) { return Take(static_cast<int64_t>(desc.get_size())); }
  int64_t size() const { return size_; }

 private:
  int64_t size_ = 0;
};

// --- Tasks
// ----------------------------------------------------------------------------------------

// The batch in `count` nearly equal pieces: sizes differ by at most one image.
struct Tasks {
  int64_t images, count;
  int64_t begin(int64_t task) const { return images * task / count; }
  int64_t size(int64_t task) const { return begin(task + 1) - begin(task); }
  int64_t small() const { return images / count; }
  bool uneven() const { return images % count != 0; }
};

// Calls body(lane, task) for every task, each lane's tasks in order and on one thread, which sees
// OpenMP as having `threads_inside`.
template <typename Body>
void RunTasks(int64_t count, int lanes, int threads_inside, const Body& body) {
  ParallelFor(lanes, 1, [&](int64_t begin, int64_t end) {
    const ThreadLimit limit(threads_inside);
    for (int64_t lane = begin; lane < end; ++lane) {
      for (int64_t task = count * lane / lanes; task < count * (lane + 1) / lanes; ++task) {
        body(static_cast<int>(lane), task);
      }
    }
  });
}

// Bytes of intermediate layouts that a task may touch and stay in a core's own cache.
constexpr int64_t kTaskBytes = int64_t{384} << 10;

// --- Forward and input gradient: image by image through the same weights ------------------------

class ImageMap {
 public:
  explicit ImageMap(const ConvProblem& problem) : problem_(problem), threads_(ThreadCount()) {
    const bool forward = problem.direction == ConvDirection::kForward;
    in_image_ = forward ? problem.x_image() : problem.y_image();
    out_image_ = forward ? problem.y_image() : problem.x_image();
    tasks_ = {problem.x[0], TaskCount()};
    lanes_ = static_cast<int>(std::min<int64_t>(tasks_.count, threads_));
    Build();
  }

  int64_t scratch_bytes() const { return scratch_.size(); }

  // in: x or dy; weight; bias or null; out: y or dx.
  void Run(const float* in, const float* weight, const float* bias, float* out, void* scratch) {
    auto* base = static_cast<std::byte*>(scratch);
    const void* blocked_weight = weight;
    if (!load_weight_.empty()) {
      const ThreadLimit limit(threads_);
      blocked_weight = base + weight_offset_;
      load_weight_.Run({weight, blocked_weight, base + lane_offset_});
    }
    RunTasks(tasks_.count, lanes_, threads_inside_, [&](int lane, int64_t task) {
      Steps& steps = lanes_steps_[lane][tasks_.size(task) - tasks_.small()];
      std::byte* const at = base + lane_offset_ + lane * lane_bytes_;
      std::byte* const work = at + work_offset_;
      const float* from = in + tasks_.begin(task) * in_image_;
      float* to = out + tasks_.begin(task) * out_image_;
      const void* source = from;
      void* target = to;
      if (!steps.load.empty()) {
        source = at + in_offset_;
        steps.load.Run({from, source, work});
      }
      if (!steps.store.empty()) target = at + out_offset_;
      steps.convolve.Run({source, blocked_weight, bias, target, work});
      if (!steps.store.empty()) steps.store.Run({target, to, work});
    });
  }

 private:
  struct Steps {
    Execution load, convolve, store;
  };

  // Where bits could follow the batch or the threads: an image a task, on one thread. Else one task
  // for all threads where images are few, or tasks that fit the cache, a multiple of the threads.
  int64_t TaskCount() {
    const int64_t images = problem_.x[0];
    const bool few = images % threads_ != 0 && images < 4 * threads_;
    const ThreadLimit limit(few ? threads_ : 1);
    if (!MakeConvPrimitive(problem_, few ? images : 1, problem_.weight[0]).direct) return images;
    if (few) {
      threads_inside_ = threads_;
      return 1;
    }
    const int64_t image_bytes = 2 * SizeOf(DType::kF32) * (in_image_ + out_image_);
    const int64_t fit = std::max<int64_t>(1, kTaskBytes / image_bytes);
    const int64_t wanted = (images + fit - 1) / fit;
    return std::min(images, (wanted + threads_ - 1) / threads_ * threads_);
  }

  void Build() {
    const bool forward = problem_.direction == ConvDirection::kForward;
    int64_t work = 0;
    std::vector<ConvPrimitive> sizes;
    {
      const ThreadLimit limit(threads_inside_);
      sizes.push_back(MakeConvPrimitive(problem_, tasks_.small(), problem_.weight[0]));
      if (tasks_.uneven()) {
        sizes.push_back(MakeConvPrimitive(problem_, tasks_.small() + 1, problem_.weight[0]));
      }
      lanes_steps_.resize(lanes_);
      for (auto& lane : lanes_steps_) {
        for (const ConvPrimitive& p : sizes) lane.push_back(MakeSteps(p, forward, &work));
      }
    }
    // Both sizes want the weights alike: their layout follows from the channels.
    {
      const ThreadLimit limit(threads_);
      load_weight_ = MakeReorder(sizes[0].plain_weight, sizes[0].weight, &work);
    }
    const ConvPrimitive& largest = sizes.back();
    ScratchLayout lane;
    in_offset_ = lane.Take(forward ? largest.x : largest.y);
    out_offset_ = lane.Take(forward ? largest.y : largest.x);
    work_offset_ = lane.Take(work);
    lane_bytes_ = lane.size();
    weight_offset_ = scratch_.Take(sizes[0].weight);
    lane_offset_ = scratch_.Take(lanes_ * lane_bytes_);
  }

  Steps MakeSteps(const ConvPrimitive& p, bool forward, int64_t* work) const {
    Steps steps;
    *work = std::max(*work, static_cast<int64_t>(p.scratch.get_size()));
    const memory::desc bias = ConvBias(problem_);
    if (forward) {
      steps.load = MakeReorder(p.plain_x, p.x, work);
      steps.store = MakeReorder(p.y, p.plain_y, work);
      steps.convolve = Execution(p.primitive, {{DNNL_ARG_SRC, p.x},
                                               {DNNL_ARG_WEIGHTS, p.weight},
                                               {DNNL_ARG_BIAS, bias},
                                               {DNNL_ARG_DST, p.y},
                                               {DNNL_ARG_SCRATCHPAD, p.scratch}});
    } else {
      steps.load = MakeReorder(p.plain_y, p.y, work);
      steps.store = MakeReorder(p.x, p.plain_x, work);
      steps.convolve = Execution(p.primitive, {{DNNL_ARG_DIFF_DST, p.y},
                                               {DNNL_ARG_WEIGHTS, p.weight},
                                               {DNNL_ARG_BIAS, bias},
                                               {DNNL_ARG_DIFF_SRC, p.x},
                                               {DNNL_ARG_SCRATCHPAD, p.scratch}});
    }
    return steps;
  }

  ConvProblem problem_;
  int threads_;  // when bound
  int64_t in_image_, out_image_;
  Tasks tasks_;
  int lanes_, threads_inside_ = 1;
  Execution load_weight_;
  std::vector<std::vector<Steps>> lanes_steps_;  // [lane][0: small, 1: one image more]
  ScratchLayout scratch_;
  int64_t weight_offset_ = 0, lane_offset_ = 0, lane_bytes_ = 0;
  int64_t in_offset_ = 0, out_offset_ = 0, work_offset_ = 0;  // within a lane
};

// --- Weight gradient: a sum over images
// -------------------------------------------------------------

// Tasks are pieces of the batch, times slices of the output channels where the batch is small; each
// writes its partial sum, and these are added in order.
class WeightGrad {
 public:
  explicit WeightGrad(const ConvProblem& problem) : problem_(problem), threads_(ThreadCount()) {
    elements_ = problem.weight.num_elements();
    const int64_t fit = std::max<int64_t>(1, kPartialBytes / (elements_ * SizeOf(DType::kF32)));
    tasks_ = {problem.x[0], std::min({problem.x[0], kPieces, fit})};
    const int64_t outputs = problem.weight[0];
    for (int64_t n = kPieces / tasks_.count; n > 1 && problem.groups == 1; n /= 2) {
      if (outputs % (n * kSliceChannels) != 0) continue;
      slices_ = n;
      break;
    }
    slice_channels_ = outputs / slices_;
    lanes_ = static_cast<int>(std::min<int64_t>(tasks_.count * slices_, threads_));
    Build();
  }

  int64_t scratch_bytes() const { return scratch_.size(); }

  void Run(const float* dy, const float* x, float* dweight, void* scratch) {
    auto* base = static_cast<std::byte*>(scratch);
    auto* partials = reinterpret_cast<float*>(base + partials_offset_);
    RunTasks(tasks_.count * slices_, lanes_, 1, [&](int lane, int64_t task) {
      const int64_t piece = task / slices_, slice = task % slices_;
      Steps& steps = lanes_steps_[lane][tasks_.size(piece) - tasks_.small()];
      std::byte* const at = base + lane_offset_ + lane * lane_bytes_;
      std::byte* const work = at + work_offset_;
      const int64_t channel = slice * slice_channels_;
      const float* from_x = x + tasks_.begin(piece) * problem_.x_image();
      const float* from_dy =
          dy + tasks_.begin(piece) * problem_.y_image() + channel * problem_.y[2] * problem_.y[3];
      float* to = (tasks_.count == 1 ? dweight : partials + piece * elements_) +
                  channel * (elements_ / problem_.weight[0]);
      const void* source = from_x;
      const void* cotangent = from_dy;
      void* target = to;
      if (!steps.load_x.empty()) {
        source = at + x_offset_;
        steps.load_x.Run({from_x, source, work});
      }
      if (!steps.load_dy.empty()) {
        cotangent = at + dy_offset_;
        steps.load_dy.Run({from_dy, cotangent, work});
      }
      if (!steps.store.empty()) target = at + weight_offset_;
      steps.convolve.Run({source, cotangent, target, work});
      if (!steps.store.empty()) steps.store.Run({target, to, work});
    });
    if (tasks_.count > 1) AddPartials(partials, dweight);
  }

 private:
  static constexpr int64_t kPieces = 16;         // so many threads can work
  static constexpr int64_t kSliceChannels = 16;  // a vector of AVX-512, two of AVX2
  static constexpr int64_t kPartialBytes = int64_t{64} << 20;

  struct Steps {
    Execution load_x, load_dy, convolve, store;
  };

  void AddPartials(const float* partials, float* dweight) const {
    ParallelFor(elements_, 4096, [&](int64_t begin, int64_t end) {
      std::copy(partials + begin, partials + end, dweight + begin);
      for (int64_t piece = 1; piece < tasks_.count; ++piece) {
        const float* partial = partials + piece * elements_;
        for (int64_t i = begin; i < end; ++i) dweight[i] += partial[i];
      }
    });
  }

  void Build() {
    const ThreadLimit limit(1);
    std::vector<ConvPrimitive> sizes;
    sizes.push_back(MakeConvPrimitive(problem_, tasks_.small(), slice_channels_));
    if (tasks_.uneven()) {
      sizes.push_back(MakeConvPrimitive(problem_, tasks_.small() + 1, slice_channels_));
    }
    int64_t work = 0, weight_bytes = 0;
    lanes_steps_.resize(lanes_);
    for (auto& lane : lanes_steps_) {
      for (const ConvPrimitive& p : sizes) {
        lane.push_back(MakeSteps(p, &work));
        weight_bytes = std::max(weight_bytes, static_cast<int64_t>(p.weight.get_size()));
      }
    }
    ScratchLayout lane;
    x_offset_ = lane.Take(sizes.back().x);
    dy_offset_ = lane.Take(sizes.back().y);
    weight_offset_ = lane.Take(weight_bytes);
    work_offset_ = lane.Take(work);
    lane_bytes_ = lane.size();
    partials_offset_ =
        scratch_.Take(tasks_.count == 1 ? 0 : tasks_.count * elements_ * SizeOf(DType::kF32));
    lane_offset_ = scratch_.Take(lanes_ * lane_bytes_);
  }

  static Steps MakeSteps(const ConvPrimitive& p, int64_t* work) {
    *work = std::max(*work, static_cast<int64_t>(p.scratch.get_size()));
    Steps steps;
    steps.load_x = MakeReorder(p.plain_x, p.x, work);
    steps.load_dy = MakeReorder(p.plain_y, p.y, work);
    steps.store = MakeReorder(p.weight, p.plain_weight, work);
    steps.convolve = Execution(p.primitive, {{DNNL_ARG_SRC, p.x},
                                             {DNNL_ARG_DIFF_DST, p.y},
                                             {DNNL_ARG_DIFF_WEIGHTS, p.weight},
                                             {DNNL_ARG_SCRATCHPAD, p.scratch}});
    return steps;
  }

  ConvProblem problem_;
  int threads_;  // when bound
  int64_t elements_ = 0;
  Tasks tasks_;
  int64_t slices_ = 1, slice_channels_ = 0;
  int lanes_ = 1;
  std::vector<std::vector<Steps>> lanes_steps_;  // [lane][0: small, 1: one image more]
  ScratchLayout scratch_;
  int64_t partials_offset_ = 0, lane_offset_ = 0, lane_bytes_ = 0;
  int64_t x_offset_ = 0, dy_offset_ = 0, weight_offset_ = 0, work_offset_ = 0;  // within a lane
};

// --- Binding
// -----------------------------------------------------------------------------------------

absl::StatusOr<ConvProblem> ReadProblem(const KernelSpec& spec, ConvDirection direction,
                                        const Shape& x, const Shape& weight, const Shape& y) {
  if (spec.dtype() != DType::kF32) {
    return Unimplemented(spec.op->name, " on the CPU: ", DTypeName(spec.dtype()),
                         ", only f32 is supported");
  }
  TANDEM_ASSIGN_OR_RETURN(ops::Window window,
                          ops::ReadWindow(*spec.attributes, weight.dims().subspan(2)));
  ConvProblem problem{.direction = direction,
                      .x = ops::AsPlane(x),
                      .weight = ops::AsPlane(weight),
                      .y = ops::AsPlane(y),
                      .window = ops::AsPlane(window),
                      .groups = spec.attributes->Int("groups"),
                      .bias = direction == ConvDirection::kForward && spec.has(2)};
  // oneDNN keeps offsets within an image and within the weights in 32 bits, after padding the
  // channels to whole vectors.
  constexpr int64_t kMaxElements = int64_t{1} << 27;
  if (problem.x.num_elements() > 0 && std::max({problem.x_image(), problem.y_image(),
                                                problem.weight.num_elements()}) > kMaxElements) {
    return Unimplemented(spec.op->name, " on the CPU: x ", x.ToString(), ", weight ",
                         weight.ToString(), ", y ", y.ToString(),
                         ": more than 2^27 elements an image");
  }
  return problem;
}

absl::StatusOr<BoundKernel> BindMap(const KernelSpec& spec, const ConvProblem& problem) {
  if (problem.x[0] == 0) return BoundKernel{.run = [](const KernelArgs&) {}};
  std::shared_ptr<ImageMap> map;
  TANDEM_RETURN_IF_ERROR(GuardOneDnn([&] {
    map = std::make_shared<ImageMap>(problem);
    return absl::OkStatus();
  }));
  const bool bias = problem.bias;
  return BoundKernel{.run =
                         [map, bias](const KernelArgs& args) {
                           map->Run(args.in<float>(0), args.in<float>(1),
                                    bias ? args.in<float>(2) : nullptr, args.out<float>(),
                                    args.scratch);
                         },
                     .scratch_bytes = map->scratch_bytes()};
}

absl::StatusOr<BoundKernel> BindConv(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(
      const ConvProblem problem,
      ReadProblem(spec, ConvDirection::kForward, spec.in(0), spec.in(1), spec.out()));
  return BindMap(spec, problem);
}

absl::StatusOr<BoundKernel> BindConvInputGrad(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(
      const ConvProblem problem,
      ReadProblem(spec, ConvDirection::kInputGrad, spec.out(), spec.in(1), spec.in(0)));
  return BindMap(spec, problem);
}

absl::StatusOr<BoundKernel> BindConvWeightGrad(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(
      const ConvProblem problem,
      ReadProblem(spec, ConvDirection::kWeightGrad, spec.in(1), spec.out(), spec.in(0)));
  if (problem.x[0] == 0) {
    const int64_t bytes = spec.outputs[0].bytes();
    return BoundKernel{
        .run = [bytes](const KernelArgs& args) { std::memset(args.outputs[0], 0, bytes); }};
  }
  std::shared_ptr<WeightGrad> kernel;
  TANDEM_RETURN_IF_ERROR(GuardOneDnn([&] {
    kernel = std::make_shared<WeightGrad>(problem);
    return absl::OkStatus();
  }));
  return BoundKernel{.run =
                         [kernel](const KernelArgs& args) {
                           kernel->Run(args.in<float>(0), args.in<float>(1), args.out<float>(),
                                       args.scratch);
                         },
                     .scratch_bytes = kernel->scratch_bytes()};
}

}  // namespace

constinit const Kernel kConvKernel = {.bind = BindConv};
constinit const Kernel kConvInputGradKernel = {.bind = BindConvInputGrad};
constinit const Kernel kConvWeightGradKernel = {.bind = BindConvWeightGrad};

}  // namespace tandem::cpu
