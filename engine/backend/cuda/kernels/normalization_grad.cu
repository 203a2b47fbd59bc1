// Gradients of RmsNorm and LayerNorm.
//
// Rows up to 512 threads x 2 vectors go once through memory: a block takes a chunk of rows, keeps
// its columns' dgamma and dbeta in registers and loads a row while it works on the one before.
// Longer rows go three times: dx by rows, then the columns' sums. Either way each chunk leaves its
// partial sums in scratch, and a last kernel adds the chunks in order.
#include "engine/backend/cuda/kernels/rows.h"

namespace tandem::cuda {
namespace {

constexpr int kVectors = 2;       // a thread's, of a row
constexpr int64_t kChunks = 264;  // about two blocks a multiprocessor of an H100 or H200
constexpr int kSumLanes = 8;      // chunks that SumChunks adds at once

struct GradParams {
  const void *x, *dy, *gamma;
  const float *mean, *rstd;
  void* dx;
  float *dgamma, *dbeta;  // (chunks, cols)
  int64_t rows;
  int cols, chunk;     // rows a chunk
  float inverse_cols;  // 1 / cols
};

// Rows a chunk, for `together` chunks a block.
int64_t ChunkRows(int64_t rows, int64_t together) {
  const int64_t chunks = kChunks * together;
  return rows <= chunks ? 1 : (rows + chunks - 1) / chunks;
}
int64_t CountOf(int64_t rows, int64_t chunk) { return (rows + chunk - 1) / chunk; }

struct GradGeometry {
  RowGeometry row;
  int64_t chunk, chunks;
  GradGeometry(int64_t rows, int64_t cols, int vector)
      : row(GeometryOf(cols, vector, kVectors)),
        chunk(ChunkRows(rows, row.rows)),
        chunks(CountOf(rows, chunk)) {}
};

// Both inputs of a row, a thread's vectors of them.
template <typename T, bool kAligned, int N>
struct RowPair {
  uint4 x[N], dy[N];
  float mean = 0, rstd = 0;

  __device__ __forceinline__ void Load(const GradParams& p, int64_t row, int at, bool layer) {
    const int cols = row < p.rows ? p.cols : 0;
    LoadRow<T, kAligned>(static_cast<const T*>(p.x) + row * p.cols, at, cols, 0.0f, x);
    LoadRow<T, kAligned>(static_cast<const T*>(p.dy) + row * p.cols, at, cols, 0.0f, dy);
    if (cols > 0) {
      rstd = p.rstd[row];
      if (layer) mean = p.mean[row];
    }
  }
  __device__ __forceinline__ float Normalized(int i, int j) const {
    return (Element<T>(x[i], j) - mean) * rstd;
  }
};

// gamma from vector i of those at `at` on; ones where there is none.
template <typename T, bool kAligned>
__device__ __forceinline__ uint4 LoadGamma(const GradParams& p, int at, int i) {
  uint4 gamma[1] = {FillVector<T>(1.0f)};
  if (p.gamma != nullptr) {
    LoadRow<T, kAligned>(static_cast<const T*>(p.gamma),
                         at + i * static_cast<int>(blockDim.x) * kVector<T>, p.cols, 0.0f, gamma);
  }
  return gamma[0];
}

// Adds a row's sums of g and of g h.
template <typename T, bool kAligned, int N>
__device__ __forceinline__ void AddRowSums(const GradParams& p, const RowPair<T, kAligned, N>& row,
                                           int at, float (&sums)[2]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const uint4 gamma = LoadGamma<T, kAligned>(p, at, i);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float g = Element<T>(row.dy[i], j) * Element<T>(gamma, j);
      sums[0] = fmaf(g, row.Normalized(i, j), sums[0]);
      sums[1] += g;
    }
  }
}

// The sums become means; RmsNorm has no use for the second.
template <bool kLayer>
__device__ __forceinline__ void Means(RowReducer& reducer, float inverse_cols, float (&sums)[2]) {
  if (kLayer) {
    reducer.Sum(sums);
    sums[1] *= inverse_cols;
  } else {
    sums[0] = reducer.Sum(sums[0]);
    sums[1] = 0;
  }
  sums[0] *= inverse_cols;
}

template <typename T, bool kAligned, int N>
__device__ __forceinline__ void StoreGrad(const GradParams& p, const RowPair<T, kAligned, N>& row,
                                          const float (&means)[2], int64_t index, int at) {
  T* const dx = static_cast<T*>(p.dx) + index * p.cols;
  const int cols = index < p.rows ? p.cols : 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const uint4 gamma = LoadGamma<T, kAligned>(p, at, i);
    float v[kVector<T>];
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float g = Element<T>(row.dy[i], j) * Element<T>(gamma, j);
      v[j] = row.rstd * fmaf(-row.Normalized(i, j), means[0], g - means[1]);
    }
    StoreVector<T, kAligned>(v, dx, VectorStart<T>(at, i), cols);
  }
}

// The thread's columns of dgamma and dbeta so far.
template <typename T, int N>
struct ColumnSums {
  float dgamma[N][kVector<T>], dbeta[N][kVector<T>];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) dgamma[i][j] = dbeta[i][j] = 0;
    }
  }
  template <bool kAligned>
  __device__ __forceinline__ void Add(const RowPair<T, kAligned, N>& row) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        const float dy = Element<T>(row.dy[i], j);
        dgamma[i][j] = fmaf(dy, row.Normalized(i, j), dgamma[i][j]);
        dbeta[i][j] += dy;
      }
    }
  }
  __device__ __forceinline__ static void Store(const float (&sums)[N][kVector<T>], float* to,
                                               int cols) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) {
        const int column = VectorStart<T>(0, i) + j;
        if (column < cols) to[column] = sums[i][j];
      }
    }
  }
};

// Each of the block's blockDim.y groups of threads takes a chunk of rows, all of it.
template <typename T, int N, bool kAligned, bool kLayer>
__global__ void __launch_bounds__(512) NormGrad(GradParams p) {
  RowReducer reducer;
  const int64_t chunk = blockIdx.x * int64_t{blockDim.y} + threadIdx.y;
  const int64_t first = chunk * p.chunk;
  ColumnSums<T, N> columns;
  columns.Clear();
  RowPair<T, kAligned, N> row, next;
  row.Load(p, first, 0, kLayer);
  for (int r = 0; r < p.chunk; ++r) {
    // Behind the chunk's last row nothing is loaded.
    next.Load(p, r + 1 < p.chunk ? first + r + 1 : p.rows, 0, kLayer);
    float sums[2] = {0, 0};
    AddRowSums(p, row, 0, sums);
    // A row that does not exist is zeros.
    columns.Add(row);
    Means<kLayer>(reducer, p.inverse_cols, sums);
    StoreGrad(p, row, sums, first + r, 0);
    row = next;
  }
  if (first >= p.rows) return;
  columns.Store(columns.dgamma, p.dgamma + chunk * p.cols, p.cols);
  if (kLayer) columns.Store(columns.dbeta, p.dbeta + chunk * p.cols, p.cols);
}

// dx alone, of rows of any length: a block a row, which it reads twice.
template <typename T, bool kAligned, bool kLayer>
__global__ void __launch_bounds__(512) NormGradLong(GradParams p) {
  constexpr int N = kVectors;
  const int step = N * static_cast<int>(blockDim.x) * kVector<T>;
  RowReducer reducer;
  for (int64_t index = blockIdx.x; index < p.rows; index += gridDim.x) {
    RowPair<T, kAligned, N> row;
    float sums[2] = {0, 0};
    for (int at = 0; at < p.cols; at += step) {
      row.Load(p, index, at, kLayer);
      AddRowSums(p, row, at, sums);
    }
    Means<kLayer>(reducer, p.inverse_cols, sums);
    for (int at = 0; at < p.cols; at += step) {
      row.Load(p, index, at, kLayer);
      StoreGrad(p, row, sums, index, at);
    }
  }
}

// The partial sums of a chunk of rows (blockIdx.y), a thread a column.
template <typename T, bool kLayer>
__global__ void __launch_bounds__(256) ColumnPartials(GradParams p) {
  const int column = static_cast<int>(GridIndex());
  if (column >= p.cols) return;
  const int64_t first = blockIdx.y * int64_t{static_cast<unsigned>(p.chunk)};
  const int64_t last = min(first + p.chunk, p.rows);
  float dgamma = 0, dbeta = 0;
#pragma unroll 4
  for (int64_t row = first; row < last; ++row) {
    const float dy = ToFloat(static_cast<const T*>(p.dy)[row * p.cols + column]);
    const float x = ToFloat(static_cast<const T*>(p.x)[row * p.cols + column]);
    dgamma = fmaf(dy, (x - (kLayer ? p.mean[row] : 0.0f)) * p.rstd[row], dgamma);
    dbeta += dy;
  }
  p.dgamma[blockIdx.y * int64_t{static_cast<unsigned>(p.cols)} + column] = dgamma;
  if (kLayer) p.dbeta[blockIdx.y * int64_t{static_cast<unsigned>(p.cols)} + column] = dbeta;
}

// out[column] = the sum of partial[chunk][column]: lane y adds the chunks y, y + 8, ... in order,
// then the lanes in a tree. blockIdx.y is 1 for the second of the two outputs.
template <typename T>
__global__ void __launch_bounds__(256) SumChunks(const float* partial0, const float* partial1,
                                                  T* out0, T* out1, int64_t chunks, int cols) {
  __shared__ float sums[kSumLanes][33];
  const float* const partial = blockIdx.y == 0 ? partial0 : partial1;
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int column = static_cast<int>(blockIdx.x) * 32 + x;
  float sum = 0;
  if (column < cols) {
#pragma unroll 4
    for (int64_t chunk = y; chunk < chunks; chunk += kSumLanes) {
      sum += partial[chunk * cols + column];
    }
  }
  sums[y][x] = sum;
#pragma unroll
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (y < half) sums[y][x] += sums[y + half][x];
  }
  if (y == 0 && column < cols) (blockIdx.y == 0 ? out0 : out1)[column] = FromFloat<T>(sums[0][x]);
}

// f(kAligned, kLayer) as integral constants.
template <typename F>
int WithFlags(bool aligned, bool layer, F f) {
  using std::false_type, std::true_type;
  if (aligned) return layer ? f(true_type(), true_type()) : f(true_type(), false_type());
  return layer ? f(false_type(), true_type()) : f(false_type(), false_type());
}

template <typename T>
int LaunchGrad(GradParams p, const tandem_cuda_norm_grad_params& given, cudaStream_t stream) {
  const GradGeometry g(p.rows, p.cols, kVector<T>);
  p.chunk = static_cast<int>(g.chunk);
  p.dgamma = static_cast<float*>(given.scratch);
  p.dbeta = p.dgamma + g.chunks * p.cols;
  const bool layer = given.dbeta != nullptr;
  const bool aligned =
      RowsAligned(p.cols * static_cast<int64_t>(sizeof(T)), p.x, p.dy, p.gamma, p.dx);
  const int error = WithFlags(aligned, layer, [&](auto vectored, auto layered) -> int {
    if (g.row.resident) {
      const auto kernel = g.row.vectors == 1 ? NormGrad<T, 1, vectored, layered>
                                             : NormGrad<T, kVectors, vectored, layered>;
      return Launch(kernel, BlocksFor(g.chunks, g.row.rows), g.row.block(), 0, stream, p);
    }
    const cudaError_t rows = Launch(NormGradLong<T, vectored, layered>, g.row.blocks(p.rows),
                                    g.row.block(), 0, stream, p);
    if (rows != cudaSuccess) return rows;
    const dim3 grid(BlocksFor(p.cols, 256, p.cols), static_cast<unsigned>(g.chunks));
    return Launch(ColumnPartials<T, layered>, grid, 256, 0, stream, p);
  });
  if (error != cudaSuccess) return error;
  return Launch(SumChunks<T>, dim3(BlocksFor(p.cols, 32, p.cols), layer ? 2 : 1),
                dim3(32, kSumLanes), 0, stream, p.dgamma, p.dbeta, static_cast<T*>(given.dgamma),
                static_cast<T*>(given.dbeta), g.chunks, p.cols);
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_norm_grad_scratch(int32_t dtype, int64_t rows, int64_t cols, int32_t layer_norm,
                                  int64_t* bytes) {
  const tandem::cuda::GradGeometry g(rows, cols, dtype == TANDEM_CUDA_F32 ? 4 : 8);
  *bytes = g.chunks * cols * static_cast<int64_t>(sizeof(float)) * (layer_norm != 0 ? 2 : 1);
  return 0;
}

int tandem_cuda_norm_grad(const struct tandem_cuda_norm_grad_params* given,
                          tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (given->cols > kMaxColumns) return TANDEM_CUDA_UNSUPPORTED;
  const GradParams p = {.x = given->x,
                        .dy = given->dy,
                        .gamma = given->gamma,
                        .mean = given->mean,
                        .rstd = given->rstd,
                        .dx = given->dx,
                        .dgamma = nullptr,
                        .dbeta = nullptr,
                        .rows = given->rows,
                        .cols = static_cast<int>(given->cols),
                        .chunk = 1,
                        .inverse_cols = 1.0f / static_cast<float>(given->cols)};
  return WithFloat(given->dtype, [&](auto zero) {
    return LaunchGrad<decltype(zero)>(p, *given, static_cast<cudaStream_t>(stream));
  });
}
