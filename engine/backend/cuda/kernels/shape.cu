// Copies through strides, fills and gathers.
#include "engine/backend/cuda/kernels/map.h"
#include "engine/backend/cuda/kernels/types.h"

namespace tandem::cuda {
namespace {

struct Word16 {
  uint4 bits;
};

template <typename T>
struct Identity {
  __device__ __forceinline__ T operator()(T x) const { return x; }
};

template <typename T>
struct Constant {
  T value;
  __device__ __forceinline__ T operator()() const { return value; }
};

// f with a null pointer of a type of that size.
template <typename F>
int WithElement(int32_t bytes, F&& f) {
  switch (bytes) {
    case 1:
      return f(static_cast<uint8_t*>(nullptr));
    case 2:
      return f(static_cast<uint16_t*>(nullptr));
    case 4:
      return f(static_cast<uint32_t*>(nullptr));
    case 8:
      return f(static_cast<uint64_t*>(nullptr));
    case 16:
      return f(static_cast<Word16*>(nullptr));
    default:
      return TANDEM_CUDA_UNSUPPORTED;
  }
}

// Pairs of elements as one, as long as both operands' runs and addresses allow: up to 16 bytes.
void Pair(tandem_cuda_loop* loop, int32_t* element_bytes, const void* out, const void* x) {
  const int last = loop->dims - 1;
  if (last < 0 || loop->stride[0][last] != 1 || loop->stride[1][last] != 1) return;
  while (*element_bytes < 16) {
    const auto wide = static_cast<uintptr_t>(2 * *element_bytes);
    bool even = loop->size[last] % 2 == 0 && reinterpret_cast<uintptr_t>(out) % wide == 0 &&
                reinterpret_cast<uintptr_t>(x) % wide == 0;
    for (int i = 0; i < last; ++i) {
      even = even && loop->stride[0][i] % 2 == 0 && loop->stride[1][i] % 2 == 0;
    }
    if (!even) return;
    loop->size[last] /= 2;
    for (int i = 0; i < last; ++i) {
      for (int k = 0; k < 2; ++k) loop->stride[k][i] /= 2;
    }
    *element_bytes *= 2;
  }
}

constexpr int kTile = 32, kTileRows = 8;

// Of the whole: rows are contiguous in x, columns in out; the other dimensions by `outer`.
struct TransposeSizes {
  int64_t rows, columns;             // the loop's dimensions
  int64_t out_row, x_column;         // strides of a row in out and of a column in x
  uint32_t row_tiles, column_tiles;  // of 32 elements
  uint32_t tiles;                    // in all
  int32_t dims;                      // others
  uint32_t size[TANDEM_CUDA_MAX_DIMS];
  int64_t stride[2][TANDEM_CUDA_MAX_DIMS];
};

// out[r out_row + c] = x[r + c x_column], a tile at a time through shared memory, so that both
// sides' accesses are contiguous.
template <typename T>
__global__ void __launch_bounds__(kTile* kTileRows)
    TransposeKernel(T* out, const T* x, const TransposeSizes s) {
  // A column more: the banks of a column differ.
  auto* const tile = reinterpret_cast<T(*)[kTile + 1]>(DynamicShared());
  const auto tx = static_cast<int>(threadIdx.x), ty = static_cast<int>(threadIdx.y);
  for (uint32_t t = blockIdx.x; t < s.tiles; t += gridDim.x) {
    const int64_t row = static_cast<int64_t>(t % s.row_tiles) * kTile;
    uint32_t rest = t / s.row_tiles;
    const int64_t column = static_cast<int64_t>(rest % s.column_tiles) * kTile;
    rest /= s.column_tiles;
    int64_t to = 0, from = 0;
    for (int i = s.dims - 1; i >= 0; --i) {
      const uint32_t index = rest % s.size[i];
      rest /= s.size[i];
      to += index * s.stride[0][i];
      from += index * s.stride[1][i];
    }
#pragma unroll
    for (int k = 0; k < kTile; k += kTileRows) {
      const int64_t r = row + tx, c = column + ty + k;
      if (r < s.rows && c < s.columns) tile[ty + k][tx] = x[from + r + c * s.x_column];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTile; k += kTileRows) {
      const int64_t r = row + ty + k, c = column + tx;
      if (r < s.rows && c < s.columns) out[to + r * s.out_row + c] = tile[tx][ty + k];
    }
    __syncthreads();
  }
}

// Describes the loop as transposed tiles: its last dimension is contiguous in out, dimension
// `across` in x. False where there is nothing to gain, or too much for 32-bit positions.
bool Tiles(const tandem_cuda_loop& loop, TransposeSizes* s) {
  const int last = loop.dims - 1;
  if (last < 1 || loop.stride[0][last] != 1 || loop.stride[1][last] <= 1) return false;
  int across = -1;
  for (int i = 0; i < last; ++i) {
    if (loop.stride[1][i] == 1 && loop.size[i] >= 8) across = i;
  }
  if (across < 0 || loop.size[last] < 8) return false;
  *s = {};
  s->rows = loop.size[across];
  s->columns = loop.size[last];
  s->out_row = loop.stride[0][across];
  s->x_column = loop.stride[1][last];
  const int64_t row_tiles = (s->rows + kTile - 1) / kTile;
  const int64_t column_tiles = (s->columns + kTile - 1) / kTile;
  int64_t tiles = row_tiles * column_tiles;
  for (int i = 0; i < last; ++i) {
    if (i == across) continue;
    s->size[s->dims] = static_cast<uint32_t>(loop.size[i]);
    for (int k = 0; k < 2; ++k) s->stride[k][s->dims] = loop.stride[k][i];
    ++s->dims;
    tiles *= loop.size[i];
  }
  if (tiles >= int64_t{1} << 30) return false;
  s->row_tiles = static_cast<uint32_t>(row_tiles);
  s->column_tiles = static_cast<uint32_t>(column_tiles);
  s->tiles = static_cast<uint32_t>(tiles);
  return true;
}

struct GatherSizes {
  int64_t outer, axis, n, words;  // words: the pieces of a slice
};

template <typename Word, typename Index>
__global__ void __launch_bounds__(256)
    GatherKernel(Word* out, const Word* x, const Index* indices, const GatherSizes s) {
  const int64_t count = s.outer * s.n * s.words;
  const bool small = count < kMost<int32_t>;
  for (int64_t i = GridIndex(); i < count; i += GridStride()) {
    int64_t slice, word, outer, at;
    if (small) {  // 64-bit division costs more than the copy
      const auto position = static_cast<uint32_t>(i), words = static_cast<uint32_t>(s.words);
      const uint32_t t = position / words, o = t / static_cast<uint32_t>(s.n);
      slice = t;
      word = position - t * words;
      outer = o;
      at = t - o * static_cast<uint32_t>(s.n);
    } else {
      slice = i / s.words;
      word = i - slice * s.words;
      outer = slice / s.n;
      at = slice - outer * s.n;
    }
    int64_t index = static_cast<int64_t>(indices[at]);
    if (index < 0) index += s.axis;
    index = index < 0 ? 0 : index >= s.axis ? s.axis - 1 : index;
    out[slice * s.words + word] = x[(outer * s.axis + index) * s.words + word];
  }
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_copy_strided(int32_t element_bytes, void* out, const void* x,
                             const struct tandem_cuda_loop* loop, tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  for (int i = 0; i < loop->dims; ++i) {
    if (loop->size[i] == 0) return cudaSuccess;
  }
  TransposeSizes sizes;
  if (Tiles(*loop, &sizes)) {
    return WithElement(element_bytes, [&]<typename T>(T*) {
      return Launch(TransposeKernel<T>, BlocksFor(sizes.tiles, 1, 132 * 64), dim3(kTile, kTileRows),
                    sizeof(T) * kTile * (kTile + 1), static_cast<cudaStream_t>(stream),
                    static_cast<T*>(out), static_cast<const T*>(x), sizes);
    });
  }
  tandem_cuda_loop wide = *loop;
  Pair(&wide, &element_bytes, out, x);
  return WithElement(element_bytes, [&]<typename T>(T*) {
    // Where x is broadcast or strided, stores are still of several elements.
    return Map < sizeof(T) <= 4 ? 4
                                : 16 / sizeof(T) > (wide, Identity<T>(), stream,
                                                    static_cast<T*>(out), static_cast<const T*>(x));
  });
}

int tandem_cuda_fill(int32_t element_bytes, void* out, uint64_t bits, int64_t n,
                     tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (element_bytes > 8) return TANDEM_CUDA_UNSUPPORTED;
  return WithElement(element_bytes, [&]<typename T>(T*) -> int {
    if constexpr (std::is_integral_v<T>) {
      return Map < sizeof(T) <= 4 ? 4
                                  : 2 > (Contiguous(n), Constant<T>{static_cast<T>(bits)}, stream,
                                         static_cast<T*>(out));
    } else {
      return TANDEM_CUDA_UNSUPPORTED;
    }
  });
}

int tandem_cuda_gather(int32_t element_bytes, int32_t index_dtype, void* out, const void* x,
                       const void* indices, int64_t outer, int64_t axis, int64_t n, int64_t inner,
                       tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  GatherSizes sizes = {outer, axis, n, inner};
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(out) | reinterpret_cast<uintptr_t>(x);
  while (element_bytes < 16 && sizes.words % 2 == 0 &&
         addresses % static_cast<uintptr_t>(2 * element_bytes) == 0) {
    sizes.words /= 2;
    element_bytes *= 2;
  }
  const unsigned blocks = BlocksFor(outer * n * sizes.words, 256);
  return WithElement(element_bytes, [&]<typename T>(T*) -> int {
    const auto gather = [&]<typename Index>(const Index* index) {
      return Launch(GatherKernel<T, Index>, blocks, 256, 0, static_cast<cudaStream_t>(stream),
                    static_cast<T*>(out), static_cast<const T*>(x), index, sizes);
    };
    if (index_dtype == TANDEM_CUDA_I32) return gather(static_cast<const int32_t*>(indices));
    if (index_dtype == TANDEM_CUDA_I64) return gather(static_cast<const int64_t*>(indices));
    return TANDEM_CUDA_UNSUPPORTED;
  });
}
