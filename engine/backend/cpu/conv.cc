// Convolution and its input gradient on oneDNN: image by image through the same weights.
//
// oneDNN's direct convolutions want channels in blocks; the tensors of a plan are plain NC(H)W. The
// batch is cut into tasks of a few images, and one thread takes a task through all its steps (into
// the blocked layout, convolution, back) while it is in the cache: faster than whole-batch steps,
// whose reorders are bound by memory. With fewer images than threads there is one task, and oneDNN
// divides it.
//
// Bits: those of an image are the same in any batch and with any thread count. oneDNN's direct
// kernels have that property (conv_test holds them to it); its others do not, and get one image and
// one thread at a time.
#include <algorithm>
#include <memory>
#include <vector>

#include "engine/backend/cpu/conv_primitive.h"
#include "engine/backend/cpu/conv_tasks.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

// Bytes of intermediate layouts that a task may touch and stay in a core's own cache.
constexpr int64_t kTaskBytes = int64_t{384} << 10;

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

  // The primitives of the tasks' one or two sizes.
  std::vector<ConvPrimitive> MakeSizes() const {
    const ThreadLimit limit(threads_inside_);
    std::vector<ConvPrimitive> sizes;
    for (int64_t extra = 0; extra <= (tasks_.uneven() ? 1 : 0); ++extra) {
      sizes.push_back(MakeConvPrimitive(problem_, tasks_.small() + extra, problem_.weight[0]));
    }
    return sizes;
  }

  void Build() {
    std::vector<ConvPrimitive> sizes = MakeSizes();
    if (sizes.size() > 1 && (!sizes[1].direct || sizes[1].weight != sizes[0].weight)) {
      tasks_.count = tasks_.images;
      sizes = MakeSizes();
    }
    const bool forward = problem_.direction == ConvDirection::kForward;
    int64_t work = 0;
    {
      const ThreadLimit limit(threads_inside_);
      lanes_steps_.resize(lanes_);
      for (auto& lane : lanes_steps_) {
        for (const ConvPrimitive& p : sizes) lane.push_back(MakeSteps(p, forward, &work));
      }
    }
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
    const dnnl::memory::desc bias = ConvBias(problem_);
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

absl::StatusOr<BoundKernel> BindMap(const ConvProblem& problem) {
  if (problem.x[0] == 0) return BoundKernel{.run = [](const KernelArgs&) {}};
  std::shared_ptr<ImageMap> map;
  TANDEM_RETURN_IF_ERROR(GuardOneDnn([&] {
    map = std::make_shared<ImageMap>(problem);
    return CheckScratch(map->scratch_bytes());
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
      ReadConvProblem(spec, ConvDirection::kForward, spec.in(0), spec.in(1), spec.out()));
  return BindMap(problem);
}

absl::StatusOr<BoundKernel> BindConvInputGrad(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(
      const ConvProblem problem,
      ReadConvProblem(spec, ConvDirection::kInputGrad, spec.out(), spec.in(1), spec.in(0)));
  return BindMap(problem);
}

}  // namespace

constinit const Kernel kConvKernel = {.bind = BindConv};
constinit const Kernel kConvInputGradKernel = {.bind = BindConvInputGrad};

}  // namespace tandem::cpu
