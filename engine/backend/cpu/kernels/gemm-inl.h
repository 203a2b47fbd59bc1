// One thread's piece of a matrix product: packing, blocking and the direct paths of gemm.cc.
// Compiled once per instruction set: include it after hwy/foreach_target.h.
#if defined(TANDEM_CPU_KERNELS_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_KERNELS_GEMM_INL_H_
#undef TANDEM_CPU_KERNELS_GEMM_INL_H_
#else
#define TANDEM_CPU_KERNELS_GEMM_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "engine/backend/cpu/kernels/gemm.h"
#include "engine/backend/cpu/kernels/gemm_blocks.h"
#include "engine/backend/cpu/kernels/gemm_tile-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// One product of the batch.
struct Operands {
  const float* a;
  const float* b;
  float* c;
};

// Packs B (k, columns) into vectors * kLanes columns, the missing ones 0. to: (k, vectors, kLanes).
inline void PackColumns(const float* HWY_RESTRICT b, int64_t ldb, int64_t k, int64_t columns,
                        int64_t vectors, float* HWY_RESTRICT to) {
  const int64_t width = vectors * kLanes;
  const int64_t full = columns / kLanes * kLanes;
  for (int64_t p = 0; p < k; ++p, to += width) {
    const float* HWY_RESTRICT row = b + p * ldb;
    for (int64_t j = 0; j < full; j += kLanes) {
      hn::StoreU(hn::LoadU(kTag, row + j), kTag, to + j);
    }
    for (int64_t j = full; j < width; ++j) to[j] = j < columns ? row[j] : 0.0f;
  }
}

// The same from B stored (columns, k).
inline void PackTurned(const float* HWY_RESTRICT b, int64_t ldb, int64_t k, int64_t columns,
                       int64_t vectors, float* HWY_RESTRICT to) {
  const int64_t width = vectors * kLanes;
  for (int64_t j = 0; j < width; j += kLanes) {
    const float* HWY_RESTRICT rows = b + j * ldb;
    float* HWY_RESTRICT out = to + j;
    int64_t p = 0;
    if (j + kLanes <= columns) {
      const bool more = j + 2 * kLanes <= columns;
      for (; p + 4 <= k; p += 4) {
        if (more && p % kLineFloats == 0) PrefetchRows(rows + kLanes * ldb + p, ldb, kLanes);
        Quad quad;
        LoadQuads<1>(rows + p, ldb, &quad);
        quad = quad.Turned();
        hn::StoreU(quad.v0, kTag, out + p * width);
        hn::StoreU(quad.v1, kTag, out + (p + 1) * width);
        hn::StoreU(quad.v2, kTag, out + (p + 2) * width);
        hn::StoreU(quad.v3, kTag, out + (p + 3) * width);
      }
    }
    const int64_t valid = std::min<int64_t>(columns - j, kLanes);
    for (; p < k; ++p) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        out[p * width + lane] = lane < valid ? rows[lane * ldb + p] : 0.0f;
      }
    }
  }
}

// Vectors in the next panel of B: never one after a three where two and two will do.
inline int64_t NextVectors(int64_t left) {
  return left == 4 ? 2 : std::min<int64_t>(left, kTileVectors);
}

// to: panels one after another, each (depth, its vectors, kLanes).
inline void PackB(const GemmParams& g, const float* b, int64_t column, int64_t columns, int64_t p,
                  int64_t depth, float* to) {
  const int64_t all_vectors = (columns + kLanes - 1) / kLanes;
  for (int64_t v = 0; v < all_vectors;) {
    const int64_t vectors = NextVectors(all_vectors - v);
    const int64_t j = v * kLanes;
    const int64_t valid = std::min(vectors * kLanes, columns - j);
    if (g.transpose_b) {
      PackTurned(b + (column + j) * g.ldb + p, g.ldb, depth, valid, vectors, to + j * depth);
    } else {
      PackColumns(b + p * g.ldb + column + j, g.ldb, depth, valid, vectors, to + j * depth);
    }
    v += vectors;
  }
}

// Copies A, never turning it: rows follow one another at kGemmDepth if A is stored (m, k); groups
// of kTileRows are (k, kTileRows) if it is stored (k, m). Missing rows of the last group are 0.
inline void PackA(const GemmParams& g, const float* a, int64_t row, int64_t rows, int64_t p,
                  int64_t depth, float* to) {
  for (int64_t i = 0; i < rows; i += kTileRows, to += kTileRows * kGemmDepth) {
    const int64_t valid = std::min<int64_t>(kTileRows, rows - i);
    if (!g.transpose_a) {
      for (int64_t r = 0; r < valid; ++r) {
        std::memcpy(to + r * kGemmDepth, a + (row + i + r) * g.lda + p, depth * sizeof(float));
      }
      for (int64_t r = valid; r < kTileRows; ++r) {
        std::memset(to + r * kGemmDepth, 0, depth * sizeof(float));
      }
      continue;
    }
    for (int64_t q = 0; q < depth; ++q) {
      const float* in = a + (p + q) * g.lda + row + i;
      float* out = to + q * kTileRows;
      if (valid == kTileRows) {
        std::memcpy(out, in, kTileRows * sizeof(float));
      } else {
        for (int64_t r = 0; r < kTileRows; ++r) out[r] = r < valid ? in[r] : 0.0f;
      }
    }
  }
}

template <int V>
HWY_NOINLINE void PackedTile(bool transpose_a, const float* a, const float* b, int64_t depth,
                             float* c, int64_t ldc, TileEnds ends) {
  if (transpose_a) {
    Tile<kTileRows, V>(a, 1, kTileRows, b, V * kLanes, depth, c, ldc, ends);
  } else {
    Tile<kTileRows, V>(a, kGemmDepth, 1, b, V * kLanes, depth, c, ldc, ends);
  }
}
constexpr decltype(&PackedTile<1>) kPackedTiles[kTileVectors] = {PackedTile<1>, PackedTile<2>,
                                                                 PackedTile<3>};

// A tile that hangs over C's edge: computed whole in a buffer, of which C's part is kept.
inline void EdgeTile(int64_t vectors, bool transpose_a, const float* a, const float* b,
                     int64_t depth, float* c, int64_t ldc, int64_t rows, int64_t columns,
                     TileEnds ends) {
  HWY_ALIGN float tile[kTileRows * kTileVectors * kLanes];
  HWY_ALIGN float bias[kTileVectors * kLanes];
  const int64_t width = vectors * kLanes;
  if (ends.from_c) {
    std::memset(tile, 0, sizeof(tile));
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(tile + i * width, c + i * ldc, columns * sizeof(float));
    }
  }
  if (ends.bias != nullptr) {
    std::memset(bias, 0, sizeof(bias));
    std::memcpy(bias, ends.bias, columns * sizeof(float));
    ends.bias = bias;
  }
  kPackedTiles[vectors - 1](transpose_a, a, b, depth, tile, width, ends);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(c + i * ldc, tile + i * width, columns * sizeof(float));
  }
}

// The rows of one packed A block by the columns of one packed B block, into c.
inline void MultiplyBlock(const GemmParams& g, const float* packed_a, const float* packed_b,
                          int64_t depth, float* c, int64_t rows, int64_t columns, TileEnds ends) {
  const int64_t all_vectors = (columns + kLanes - 1) / kLanes;
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t tile_rows = std::min<int64_t>(kTileRows, rows - i);
    for (int64_t v = 0; v < all_vectors;) {
      const int64_t vectors = NextVectors(all_vectors - v);
      const int64_t j = v * kLanes;
      const int64_t tile_columns = std::min(vectors * kLanes, columns - j);
      const TileEnds tile_ends = {ends.from_c, ends.bias == nullptr ? nullptr : ends.bias + j};
      const float* a = packed_a + i * kGemmDepth;
      const float* b = packed_b + j * depth;
      float* out = c + i * g.ldc + j;
      if (tile_rows == kTileRows && tile_columns == vectors * kLanes) {
        kPackedTiles[vectors - 1](g.transpose_a, a, b, depth, out, g.ldc, tile_ends);
      } else {
        EdgeTile(vectors, g.transpose_a, a, b, depth, out, g.ldc, tile_rows, tile_columns,
                 tile_ends);
      }
      v += vectors;
    }
  }
}

inline void PackedProduct(const GemmParams& g, const Operands& x, const GemmPiece& piece,
                          float* packed_b, float* packed_a) {
  const int64_t most_columns = BlockSize(piece.columns, kGemmColumns, kGemmMaxLanes);
  const int64_t most_depth = BlockSize(g.k, kGemmDepth, 4);
  for (int64_t jb = 0; jb < piece.columns; jb += most_columns) {
    const int64_t columns = std::min(most_columns, piece.columns - jb);
    const int64_t column = piece.column + jb;
    for (int64_t p = 0; p < g.k; p += most_depth) {
      const int64_t depth = std::min(most_depth, g.k - p);
      const bool add_bias = p + depth == g.k && g.bias != nullptr;
      const TileEnds ends = {g.accumulate || p > 0, add_bias ? g.bias + column : nullptr};
      PackB(g, x.b, column, columns, p, depth, packed_b);
      for (int64_t ib = 0; ib < piece.rows; ib += kGemmRows) {
        const int64_t rows = std::min(kGemmRows, piece.rows - ib);
        const int64_t row = piece.row + ib;
        PackA(g, x.a, row, rows, p, depth, packed_a);
        MultiplyBlock(g, packed_a, packed_b, depth, x.c + row * g.ldc + column, rows, columns,
                      ends);
      }
    }
  }
}

// The direct path, for few rows: B is used where it lies, A is packed: groups of up to kTileRows
// rows, each (depth, its rows). Sums go on from C at each block of k.
inline void PackFewRows(const GemmParams& g, const float* a, int64_t p, int64_t depth, float* to) {
  const int64_t row_stride = g.transpose_a ? 1 : g.lda, col_stride = g.transpose_a ? g.lda : 1;
  for (int64_t i = 0; i < g.m; i += kTileRows) {
    const int64_t rows = std::min<int64_t>(kTileRows, g.m - i);
    for (int64_t q = 0; q < depth; ++q) {
      for (int64_t r = 0; r < rows; ++r) *to++ = a[(i + r) * row_stride + (p + q) * col_stride];
    }
  }
}

// B (k, n): a few rows of B at a time stream by; the block of C's columns that they meet stays in
// L1.
constexpr int64_t kStreamWidth = kTileVectors * kLanes;
static_assert(kStreamWidth <= kGemmDirectRest);
constexpr int64_t kStreamColumns = 1024 / kStreamWidth * kStreamWidth;

// R rows by `columns` columns, a multiple of kStreamWidth. ahead: how many of the rows of B after
// these to prefetch.
template <int R>
HWY_NOINLINE void StreamRows(const float* a, const float* b, int64_t ldb, int64_t depth, float* c,
                             int64_t ldc, int64_t columns, int64_t ahead, TileEnds ends) {
  const float* bias = ends.bias;
  for (int64_t j = 0; j < columns; j += kStreamWidth) {
    for (int64_t q = depth; q < depth + ahead; ++q) {
      PrefetchRows(b + q * ldb + j, kLineFloats, kStreamWidth / kLineFloats);
    }
    Tile<R, kTileVectors>(a, 1, R, b + j, ldb, depth, c + j, ldc,
                          {ends.from_c, bias == nullptr ? nullptr : bias + j});
  }
}

// B (n, k): rows of B, turned in registers. R rows by kTurnWidth columns.
constexpr int kTurnVectors = kLanes == kGemmMaxLanes ? 1 : 2;
constexpr int64_t kTurnWidth = kTurnVectors * kLanes;
static_assert(kTurnWidth <= kGemmDirectRest);

template <int R>
HWY_NOINLINE void TurnRows(const float* a, const float* b, const float* next, int64_t ldb,
                           int64_t depth, float* c, int64_t ldc, TileEnds ends) {
  TurningTile<R, kTurnVectors>(a, b, next, ldb, depth, c, ldc, ends);
}

// Element R - 1 handles R rows.
template <size_t... I>
constexpr std::array<decltype(&StreamRows<1>), sizeof...(I)> StreamTable(
    std::index_sequence<I...>) {
  return {StreamRows<static_cast<int>(I) + 1>...};
}
template <size_t... I>
constexpr std::array<decltype(&TurnRows<1>), sizeof...(I)> TurnTable(std::index_sequence<I...>) {
  return {TurnRows<static_cast<int>(I) + 1>...};
}
constexpr auto kStreamRows = StreamTable(std::make_index_sequence<kTileRows>());
constexpr auto kTurnRows = TurnTable(std::make_index_sequence<kTileRows>());

// All rows of C by the columns [begin, end), a multiple of kStreamWidth, over one block of k. bias:
// (n) if this block is the last, or null.
inline void StreamProduct(const GemmParams& g, const Operands& x, int64_t begin, int64_t end,
                          int64_t p, int64_t depth, const float* packed_a, const float* bias) {
  const int64_t most_steps = g.m <= 4 ? 8 : 16;
  for (int64_t j = begin; j < end; j += kStreamColumns) {
    const int64_t columns = std::min(kStreamColumns, end - j);
    for (int64_t q = 0; q < depth; q += most_steps) {
      const int64_t steps = std::min(most_steps, depth - q);
      const float* column_bias = bias == nullptr || q + steps < depth ? nullptr : bias + j;
      for (int64_t i = 0; i < g.m; i += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, g.m - i);
        const int64_t ahead = i == 0 ? std::min(most_steps, g.k - p - q - steps) : 0;
        kStreamRows[rows - 1](packed_a + i * depth + q * rows, x.b + (p + q) * g.ldb + j, g.ldb,
                              steps, x.c + i * g.ldc + j, g.ldc, columns, ahead,
                              {g.accumulate || p + q > 0, column_bias});
      }
    }
  }
}

// The same; the columns are a multiple of kTurnWidth.
inline void TurnProduct(const GemmParams& g, const Operands& x, int64_t begin, int64_t end,
                        int64_t p, int64_t depth, const float* packed_a, const float* bias) {
  for (int64_t j = begin; j < end; j += kTurnWidth) {
    const float* b = x.b + j * g.ldb + p;
    for (int64_t i = 0; i < g.m; i += kTileRows) {
      const int64_t rows = std::min<int64_t>(kTileRows, g.m - i);
      const float* next = i == 0 && j + kTurnWidth < end ? b + kTurnWidth * g.ldb : nullptr;
      kTurnRows[rows - 1](packed_a + i * depth, b, next, g.ldb, depth, x.c + i * g.ldc + j, g.ldc,
                          {g.accumulate || p > 0, bias == nullptr ? nullptr : bias + j});
    }
  }
}

inline void DirectProduct(const GemmParams& g, const Operands& x, int64_t begin, int64_t end,
                          float* packed_a) {
  const int64_t most_depth = DirectDepth(g);
  for (int64_t p = 0; p < g.k; p += most_depth) {
    const int64_t depth = std::min(most_depth, g.k - p);
    const float* bias = p + depth == g.k ? g.bias : nullptr;
    PackFewRows(g, x.a, p, depth, packed_a);
    if (g.transpose_b) {
      TurnProduct(g, x, begin, end, p, depth, packed_a, bias);
    } else {
      StreamProduct(g, x, begin, end, p, depth, packed_a, bias);
    }
  }
}

// One piece of product number `index`. Where rows are few, only the columns that do not fill a tile
// are packed.
inline void GemmPieceProduct(const GemmParams& g, int64_t index, const GemmPiece& piece,
                             float* packed_b, float* packed_a) {
  const Operands x = {g.a + index * g.a_batch_stride, g.b + index * g.b_batch_stride,
                      g.c + index * g.c_batch_stride};
  GemmPiece rest = piece;
  if (IsDirect(g)) {
    const int64_t width = g.transpose_b ? kTurnWidth : kStreamWidth;
    const int64_t direct = piece.columns / width * width;
    rest.column += direct;
    rest.columns -= direct;
    if (direct > 0) DirectProduct(g, x, piece.column, rest.column, packed_a);
  }
  if (rest.columns > 0) PackedProduct(g, x, rest, packed_b, packed_a);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_KERNELS_GEMM_INL_H_
