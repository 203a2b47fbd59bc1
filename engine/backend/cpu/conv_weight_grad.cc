// The weight gradient of a convolution on oneDNN: a sum over images.
//
// Tasks are pieces of the batch, times slices of the output channels where the batch is small. Each
// runs on one thread (into oneDNN's layouts, gradient, back) and writes its partial sum; these are
// added in order. oneDNN alone would sum in an order that follows the thread count: here the tasks
// and the order of their sums follow from the shapes alone.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "engine/backend/cpu/conv_primitive.h"
#include "engine/backend/cpu/conv_tasks.h"
#include "engine/backend/cpu/kernels_table.h"

namespace tandem::cpu {
namespace {

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

absl::StatusOr<BoundKernel> BindConvWeightGrad(const KernelSpec& spec) {
  TANDEM_ASSIGN_OR_RETURN(
      const ConvProblem problem,
      ReadConvProblem(spec, ConvDirection::kWeightGrad, spec.in(1), spec.out(), spec.in(0)));
  if (problem.x[0] == 0) {
    const int64_t bytes = spec.outputs[0].bytes();
    return BoundKernel{
        .run = [bytes](const KernelArgs& args) { std::memset(args.outputs[0], 0, bytes); }};
  }
  std::shared_ptr<WeightGrad> kernel;
  TANDEM_RETURN_IF_ERROR(GuardOneDnn([&] {
    kernel = std::make_shared<WeightGrad>(problem);
    return CheckScratch(kernel->scratch_bytes());
  }));
  return BoundKernel{.run =
                         [kernel](const KernelArgs& args) {
                           kernel->Run(args.in<float>(0), args.in<float>(1), args.out<float>(),
                                       args.scratch);
                         },
                     .scratch_bytes = kernel->scratch_bytes()};
}

}  // namespace

constinit const Kernel kConvWeightGradKernel = {.bind = BindConvWeightGrad};

}  // namespace tandem::cpu
