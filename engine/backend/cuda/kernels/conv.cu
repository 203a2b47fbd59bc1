// Convolutions as products over shared-memory tiles whose operands are read where they lie, and the
// same sums an output a thread where a group is too narrow for tiles (depthwise).
#include "engine/backend/cuda/kernels/device.h"
#include "engine/backend/cuda/kernels/quotient.h"
#include "engine/backend/cuda/kernels/tandem_cuda.h"
#include "engine/backend/cuda/kernels/window.h"

namespace tandem::cuda {
namespace {

struct ConvShape {
  Window window;
  int batch, groups;
  int in_channels, out_channels;  // of a group
};

// A product C (rows, columns) = A (rows, inner) B (inner, columns) for each group: one f32 sum an
// element in the order of the inner index, cut into `pieces` of `piece` each.
struct Extents {
  int rows, columns, inner, groups;
  int pieces, piece;
};

// The inner index of the forward pass and of the input's gradient: (channel, kh, kw).
struct Tap {
  int channel, kh, kw;
};
__device__ __forceinline__ Tap TapAt(const Window& w, int k) {
  const int taps = w.h.kernel * w.w.kernel, rest = k % taps;
  return {k / taps, rest / w.w.kernel, rest % w.w.kernel};
}
__device__ __forceinline__ void Advance(const Window& w, Tap* tap) {
  if (++tap->kw < w.w.kernel) return;
  tap->kw = 0;
  if (++tap->kh < w.h.kernel) return;
  tap->kh = 0;
  ++tap->channel;
}

// rows: output channels; columns: output pixels of all images; inner: taps of the input channels.
template <typename T>
struct Forward {
  static constexpr bool kInnerFirst = false;  // neighbours of B in memory are columns
  ConvShape s;
  T* y;
  const T *x, *weight, *bias;
  Extents e;

  using Inner = Tap;
  struct Column {
    const T* image;
    int h, w;
  };
  __device__ Inner InnerAt(int k) const { return TapAt(s.window, k); }
  __device__ void Next(Inner* k) const { Advance(s.window, k); }
  __device__ Column ColumnAt(int group, int n) const {
    const int pixels = s.window.h.out * s.window.w.out, image = n / pixels, pixel = n % pixels;
    const int64_t plane = int64_t{image} * s.groups * s.in_channels + group * s.in_channels;
    return {x + plane * s.window.Inputs(), s.window.h.Start(pixel / s.window.w.out),
            s.window.w.Start(pixel % s.window.w.out)};
  }
  __device__ float A(int group, int m, const Inner& k) const {
    const int64_t row = int64_t{group} * s.out_channels + m;
    const int64_t at = (row * s.in_channels + k.channel) * s.window.h.kernel + k.kh;
    return ToFloat(weight[at * s.window.w.kernel + k.kw]);
  }
  __device__ float B(const Inner& k, const Column& c) const {
    const int h = c.h + k.kh * s.window.h.dilation, w = c.w + k.kw * s.window.w.dilation;
    if (!s.window.h.Holds(h) || !s.window.w.Holds(w)) return 0.0f;
    return ToFloat(c.image[k.channel * s.window.Inputs() + int64_t{h} * s.window.w.in + w]);
  }
  __device__ void Store(int group, int m, int n, int /*piece*/, float sum) const {
    const int pixels = s.window.h.out * s.window.w.out;
    const int64_t channel = int64_t{group} * s.out_channels + m;
    if (bias != nullptr) sum += ToFloat(bias[channel]);
    const int64_t plane = int64_t{n / pixels} * s.groups * s.out_channels + channel;
    FromFloat(sum, y + plane * pixels + n % pixels);
  }
};

// rows: input channels; columns: input pixels of all images; inner: taps of the output channels.
template <typename T>
struct InputGrad {
  static constexpr bool kInnerFirst = false;
  ConvShape s;
  T* dx;
  const T *dy, *weight;
  Extents e;

  using Inner = Tap;
  struct Column {
    const T* image;
    int h, w;
  };
  __device__ Inner InnerAt(int k) const { return TapAt(s.window, k); }
  __device__ void Next(Inner* k) const { Advance(s.window, k); }
  __device__ Column ColumnAt(int group, int n) const {
    const int pixels = s.window.h.in * s.window.w.in, image = n / pixels, pixel = n % pixels;
    const int64_t plane = int64_t{image} * s.groups * s.out_channels + group * s.out_channels;
    return {dy + plane * s.window.Outputs(), pixel / s.window.w.in + s.window.h.pad_begin,
            pixel % s.window.w.in + s.window.w.pad_begin};
  }
  __device__ float A(int group, int m, const Inner& k) const {
    const int64_t row = int64_t{group} * s.out_channels + k.channel;
    const int64_t at = (row * s.in_channels + m) * s.window.h.kernel + k.kh;
    return ToFloat(weight[at * s.window.w.kernel + k.kw]);
  }
  __device__ float B(const Inner& k, const Column& c) const {
    const int h = c.h - k.kh * s.window.h.dilation, w = c.w - k.kw * s.window.w.dilation;
    if (h < 0 || w < 0) return 0.0f;
    const int oh = h / s.window.h.stride, ow = w / s.window.w.stride;
    if (oh * s.window.h.stride != h || oh >= s.window.h.out) return 0.0f;
    if (ow * s.window.w.stride != w || ow >= s.window.w.out) return 0.0f;
    return ToFloat(c.image[k.channel * s.window.Outputs() + int64_t{oh} * s.window.w.out + ow]);
  }
  __device__ void Store(int group, int m, int n, int /*piece*/, float sum) const {
    const int pixels = s.window.h.in * s.window.w.in;
    const int64_t plane =
        int64_t{n / pixels} * s.groups * s.in_channels + group * s.in_channels + m;
    FromFloat(sum, dx + plane * pixels + n % pixels);
  }
};

// rows: output channels; columns: taps of the input channels; inner: output pixels of all images.
template <typename T>
struct WeightGrad {
  static constexpr bool kInnerFirst = true;
  ConvShape s;
  T* dweight;
  float* partial;  // (pieces, elements of dweight); null: one piece, straight to dweight
  const T *dy, *x;
  Extents e;

  struct Inner {
    int image, oh, ow;
  };
  struct Column {
    int channel, h, w;  // of the first output's
  };
  __device__ Inner InnerAt(int k) const {
    const int pixels = s.window.h.out * s.window.w.out, rest = k % pixels;
    return {k / pixels, rest / s.window.w.out, rest % s.window.w.out};
  }
  __device__ void Next(Inner* k) const {
    if (++k->ow < s.window.w.out) return;
    k->ow = 0;
    if (++k->oh < s.window.h.out) return;
    k->oh = 0;
    ++k->image;
  }
  __device__ Column ColumnAt(int group, int n) const {
    const Tap tap = TapAt(s.window, n);
    return {group * s.in_channels + tap.channel, s.window.h.Start(0) + tap.kh * s.window.h.dilation,
            s.window.w.Start(0) + tap.kw * s.window.w.dilation};
  }
  __device__ float A(int group, int m, const Inner& k) const {
    const int64_t plane = int64_t{k.image} * s.groups * s.out_channels + group * s.out_channels + m;
    return ToFloat(dy[plane * s.window.Outputs() + int64_t{k.oh} * s.window.w.out + k.ow]);
  }
  __device__ float B(const Inner& k, const Column& c) const {
    const int h = c.h + k.oh * s.window.h.stride, w = c.w + k.ow * s.window.w.stride;
    if (!s.window.h.Holds(h) || !s.window.w.Holds(w)) return 0.0f;
    const int64_t plane = int64_t{k.image} * s.groups * s.in_channels + c.channel;
    return ToFloat(x[plane * s.window.Inputs() + int64_t{h} * s.window.w.in + w]);
  }
  __device__ void Store(int group, int m, int n, int piece, float sum) const {
    const int64_t row = int64_t{group} * s.out_channels + m;
    const int64_t at = row * e.columns + n;
    if (partial == nullptr) {
      FromFloat(sum, dweight + at);
    } else {
      const int64_t elements = int64_t{s.groups} * s.out_channels * e.columns;
      partial[piece * elements + at] = sum;
    }
  }
};

constexpr int kTile = 64, kDepth = 16, kThreads = 256;
constexpr int kPitch = kTile + 4;

// The tile's share of B: one column a thread and some inner indices, or the other way about, so
// that neighbouring threads read neighbouring elements.
template <class Product>
struct TileLoads {
  static constexpr int kLoads = kTile * kDepth / kThreads;
  static constexpr int kColumns = Product::kInnerFirst ? kLoads : 1;
  typename Product::Column columns[kColumns];
};

// One tile a block; 4 x 4 sums a thread.
template <class Product>
__global__ void __launch_bounds__(kThreads) TiledProduct(Product p) {
  alignas(16) __shared__ float a[kDepth][kPitch];
  alignas(16) __shared__ float b[kDepth][kPitch];
  const Extents& e = p.e;
  const int row_tiles = (e.rows + kTile - 1) / kTile,
            column_tiles = (e.columns + kTile - 1) / kTile;
  int tile = static_cast<int>(blockIdx.x);
  const int row0 = tile % row_tiles * kTile;
  tile /= row_tiles;
  const int column0 = tile % column_tiles * kTile;
  tile /= column_tiles;
  const int piece = tile % e.pieces, group = tile / e.pieces;
  const int begin = piece * e.piece, end = min(e.inner, begin + e.piece);

  const int t = static_cast<int>(threadIdx.x);
  TileLoads<Product> loads;
  for (int i = 0; i < loads.kColumns; ++i) {
    const int n = column0 + (Product::kInnerFirst ? t / kDepth + kDepth * i : t % kTile);
    loads.columns[i] = p.ColumnAt(group, min(n, e.columns - 1));
  }
  float sums[4][4] = {};
  for (int k0 = begin; k0 < end; k0 += kDepth) {
    const int depth = t % kDepth, k = k0 + depth;
    const typename Product::Inner inner = p.InnerAt(min(k, end - 1));
#pragma unroll
    for (int i = 0; i < TileLoads<Product>::kLoads; ++i) {
      const int m = t / kDepth + kDepth * i;
      a[depth][m] = k < end && row0 + m < e.rows ? p.A(group, row0 + m, inner) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < TileLoads<Product>::kLoads; ++i) {
      if constexpr (Product::kInnerFirst) {
        const int n = t / kDepth + kDepth * i;
        const bool inside = k < end && column0 + n < e.columns;
        b[depth][n] = inside ? p.B(inner, loads.columns[i]) : 0.0f;
      } else {
        const int n = t % kTile, at = t / kTile + kThreads / kTile * i;
        const bool inside = k0 + at < end && column0 + n < e.columns;
        b[at][n] = inside ? p.B(p.InnerAt(k0 + at), loads.columns[0]) : 0.0f;
      }
    }
    __syncthreads();
    const int m = t / 16 * 4, n = t % 16 * 4;
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const float4 u = *reinterpret_cast<const float4*>(&a[d][m]);
      const float4 v = *reinterpret_cast<const float4*>(&b[d][n]);
      const float us[4] = {u.x, u.y, u.z, u.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = __fmaf_rn(us[i], vs[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int m = row0 + t / 16 * 4 + i, n = column0 + t % 16 * 4 + j;
      if (m < e.rows && n < e.columns) p.Store(group, m, n, piece, sums[i][j]);
    }
  }
}

// One element (of one piece) a thread: the same sums.
template <class Product>
__global__ void __launch_bounds__(kThreads)
    DirectProduct(Product p, int64_t total, Quotient columns) {
  const Extents& e = p.e;
  for (int64_t i = GridIndex(); i < total; i += GridStride()) {
    int64_t at;
    const int rest = static_cast<int>(columns.Of(i, &at)), n = static_cast<int>(at);
    const int m = rest % e.rows, group = rest / e.rows % e.groups;
    const int piece = rest / e.rows / e.groups;
    const int begin = piece * e.piece, end = min(e.inner, begin + e.piece);
    const typename Product::Column column = p.ColumnAt(group, n);
    typename Product::Inner inner = p.InnerAt(begin);
    float sum = 0.0f;
    for (int k = begin; k < end; ++k, p.Next(&inner)) {
      sum = __fmaf_rn(p.A(group, m, inner), p.B(inner, column), sum);
    }
    p.Store(group, m, n, piece, sum);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    AddPieces(T* out, const float* partial, int64_t elements, int pieces) {
  for (int64_t i = GridIndex(); i < elements; i += GridStride()) {
    float sum = partial[i];
    for (int piece = 1; piece < pieces; ++piece) sum += partial[piece * elements + i];
    FromFloat(sum, out + i);
  }
}

// Below this many rows or columns most of a tile would be empty.
bool IsNarrow(const Extents& e) { return e.rows < 8 || e.columns < 8; }

template <class Product>
cudaError_t Run(const Product& p, cudaStream_t stream) {
  const Extents& e = p.e;
  if (int64_t{e.rows} * e.columns == 0) return cudaSuccess;
  if (IsNarrow(e)) {
    const int64_t total = int64_t{e.pieces} * e.groups * e.rows * e.columns;
    return Launch(DirectProduct<Product>, BlocksFor(total, kThreads), kThreads, 0, stream, p, total,
                  Quotient(e.columns));
  }
  const int64_t tiles = int64_t{(e.rows + kTile - 1) / kTile} * ((e.columns + kTile - 1) / kTile) *
                        e.pieces * e.groups;
  if (tiles > INT32_MAX) return static_cast<cudaError_t>(TANDEM_CUDA_UNSUPPORTED);
  return Launch(TiledProduct<Product>, static_cast<unsigned>(tiles), kThreads, 0, stream, p);
}

ConvShape ShapeOf(const tandem_cuda_conv_params& p) {
  return {MakeWindow(p.window), static_cast<int>(p.batch), static_cast<int>(p.groups),
          static_cast<int>(p.in_channels / p.groups), static_cast<int>(p.out_channels / p.groups)};
}

Extents WholeSums(int64_t rows, int64_t columns, int64_t inner, int groups) {
  return {static_cast<int>(rows), static_cast<int>(columns), static_cast<int>(inner), groups, 1,
          static_cast<int>(inner)};
}

// Few elements and long sums: pieces keep the device busy.
Extents WeightGradExtents(const ConvShape& s) {
  const int taps = s.window.h.kernel * s.window.w.kernel;
  Extents e = WholeSums(s.out_channels, int64_t{s.in_channels} * taps, s.batch * s.window.Outputs(),
                        s.groups);
  const bool narrow = IsNarrow(e);
  const int64_t least = narrow ? 256 : 1024;
  const int64_t work =
      narrow ? int64_t{e.rows} * e.columns * e.groups
             : int64_t{(e.rows + kTile - 1) / kTile} * ((e.columns + kTile - 1) / kTile) * e.groups;
  const int64_t wanted = ((narrow ? 1 << 17 : 512) + work - 1) / (work < 1 ? 1 : work);
  int64_t pieces = (e.inner + least - 1) / least;
  pieces = pieces < wanted ? pieces : wanted;
  pieces = pieces < 256 ? pieces : 256;
  pieces = pieces < 1 ? 1 : pieces;
  e.piece = static_cast<int>((e.inner + pieces - 1) / pieces);
  e.pieces = e.piece == 0 ? 1 : (e.inner + e.piece - 1) / e.piece;
  return e;
}

template <typename T>
cudaError_t RunForward(void* y, const void* x, const void* weight, const void* bias,
                       const ConvShape& s, cudaStream_t stream) {
  const int taps = s.window.h.kernel * s.window.w.kernel;
  const Forward<T> product{s,
                           static_cast<T*>(y),
                           static_cast<const T*>(x),
                           static_cast<const T*>(weight),
                           static_cast<const T*>(bias),
                           WholeSums(s.out_channels, s.batch * s.window.Outputs(),
                                     int64_t{s.in_channels} * taps, s.groups)};
  return Run(product, stream);
}

template <typename T>
cudaError_t RunInputGrad(void* dx, const void* dy, const void* weight, const ConvShape& s,
                         cudaStream_t stream) {
  const int taps = s.window.h.kernel * s.window.w.kernel;
  const InputGrad<T> product{s, static_cast<T*>(dx), static_cast<const T*>(dy),
                             static_cast<const T*>(weight),
                             WholeSums(s.in_channels, s.batch * s.window.Inputs(),
                                       int64_t{s.out_channels} * taps, s.groups)};
  return Run(product, stream);
}

template <typename T>
cudaError_t RunWeightGrad(void* dweight, const void* dy, const void* x, const ConvShape& s,
                          void* scratch, cudaStream_t stream) {
  const Extents e = WeightGradExtents(s);
  auto* const partial = e.pieces > 1 ? static_cast<float*>(scratch) : nullptr;
  const WeightGrad<T> product{
      s, static_cast<T*>(dweight), partial, static_cast<const T*>(dy), static_cast<const T*>(x), e};
  const cudaError_t error = Run(product, stream);
  if (error != cudaSuccess || partial == nullptr) return error;
  const int64_t elements = int64_t{e.groups} * e.rows * e.columns;
  return Launch(AddPieces<T>, BlocksFor(elements, kThreads), kThreads, 0, stream,
                static_cast<T*>(dweight), partial, elements, e.pieces);
}

}  // namespace
}  // namespace tandem::cuda

#define FLOATS(dtype, call)           \
  switch (dtype) {                    \
    case TANDEM_CUDA_F32: {           \
      using T = float;                \
      return call;                    \
    }                                 \
    case TANDEM_CUDA_F16: {           \
      using T = tandem::cuda::F16;    \
      return call;                    \
    }                                 \
    case TANDEM_CUDA_BF16: {          \
      using T = tandem::cuda::Bf16;   \
      return call;                    \
    }                                 \
    default:                          \
      return TANDEM_CUDA_UNSUPPORTED; \
  }

int tandem_cuda_conv(void* y, const void* x, const void* weight, const void* bias,
                     const struct tandem_cuda_conv_params* params, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const ConvShape s = ShapeOf(*params);
  FLOATS(params->dtype, RunForward<T>(y, x, weight, bias, s, static_cast<cudaStream_t>(stream)))
}

int tandem_cuda_conv_input_grad(void* dx, const void* dy, const void* weight,
                                const struct tandem_cuda_conv_params* params,
                                tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const ConvShape s = ShapeOf(*params);
  FLOATS(params->dtype, RunInputGrad<T>(dx, dy, weight, s, static_cast<cudaStream_t>(stream)))
}

int64_t tandem_cuda_conv_weight_grad_scratch_bytes(const struct tandem_cuda_conv_params* params) {
  using namespace tandem::cuda;
  const Extents e = WeightGradExtents(ShapeOf(*params));
  return e.pieces == 1 ? 0 : int64_t{4} * e.pieces * e.groups * e.rows * e.columns;
}

int tandem_cuda_conv_weight_grad(void* dweight, const void* dy, const void* x,
                                 const struct tandem_cuda_conv_params* params, void* scratch,
                                 tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  const ConvShape s = ShapeOf(*params);
  FLOATS(params->dtype,
         RunWeightGrad<T>(dweight, dy, x, s, scratch, static_cast<cudaStream_t>(stream)))
}
