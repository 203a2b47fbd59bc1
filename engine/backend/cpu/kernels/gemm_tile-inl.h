// The register tiles of gemm-inl.h. Compiled once per instruction set: include it after
// hwy/foreach_target.h.
//
// A tile is R rows by V vectors of n: R * V accumulators, V vectors of B and one broadcast fit the
// registers. Every tile walks k upward with one MulAdd per element and step.
#if defined(TANDEM_CPU_KERNELS_GEMM_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_KERNELS_GEMM_TILE_INL_H_
#undef TANDEM_CPU_KERNELS_GEMM_TILE_INL_H_
#else
#define TANDEM_CPU_KERNELS_GEMM_TILE_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using VectorTag = hn::CappedTag<float, 16>;
using Vector = hn::Vec<VectorTag>;
constexpr VectorTag kTag;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(kTag));

// The largest tile: 8 x 3 where there are 32 vector registers, 4 x 3 where there are 16.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 3;

constexpr int kLineFloats = 16;  // in a cache line

// Prefetches a cache line of each row into L2; in L1 it would push out what is in use.
HWY_INLINE void PrefetchRows(const float* rows, int64_t ld, int count) {
  for (int i = 0; i < count; ++i) __builtin_prefetch(rows + i * ld, 0, 2);
}

// Where a tile's sums begin and what is added at their end.
struct TileEnds {
  bool from_c;        // begin with C, else with +0
  const float* bias;  // (the tile's columns), or null
};

template <int R, int V>
struct Accumulators {
  Vector v[R][V];

  HWY_INLINE void Begin(const float* c, int64_t ldc, bool from_c) {
    HWY_UNROLL(8)
    for (int i = 0; i < R; ++i) {
      HWY_UNROLL(8)
      for (int j = 0; j < V; ++j) v[i][j] = hn::Zero(kTag);
    }
    if (!from_c) return;
    HWY_UNROLL(8)
    for (int i = 0; i < R; ++i) {
      HWY_UNROLL(8)
      for (int j = 0; j < V; ++j) v[i][j] = hn::LoadU(kTag, c + i * ldc + j * kLanes);
    }
  }

  HWY_INLINE void End(float* c, int64_t ldc, const float* bias) {
    HWY_UNROLL(8)
    for (int i = 0; i < R; ++i) {
      HWY_UNROLL(8)
      for (int j = 0; j < V; ++j) {
        if (bias != nullptr) v[i][j] = hn::Add(v[i][j], hn::LoadU(kTag, bias + j * kLanes));
        hn::StoreU(v[i][j], kTag, c + i * ldc + j * kLanes);
      }
    }
  }
};

// C (R, V*kLanes) from B (k, V*kLanes) stored along n. A's element (i, k) is a[i*a_row + k*a_col].
template <int R, int V>
HWY_INLINE void Tile(const float* HWY_RESTRICT a, int64_t a_row, int64_t a_col,
                     const float* HWY_RESTRICT b, int64_t ldb, int64_t k, float* HWY_RESTRICT c,
                     int64_t ldc, TileEnds ends) {
  Accumulators<R, V> sums;
  sums.Begin(c, ldc, ends.from_c);
  for (int64_t p = 0; p < k; ++p) {
    Vector columns[V];
    HWY_UNROLL(8)
    for (int j = 0; j < V; ++j) columns[j] = hn::LoadU(kTag, b + p * ldb + j * kLanes);
    HWY_UNROLL(8)
    for (int i = 0; i < R; ++i) {
      const Vector row = hn::Set(kTag, a[i * a_row + p * a_col]);
      HWY_UNROLL(8)
      for (int j = 0; j < V; ++j) sums.v[i][j] = hn::MulAdd(row, columns[j], sums.v[i][j]);
    }
  }
  sums.End(c, ldc, ends.bias);
}

#if HWY_TARGET != HWY_SCALAR
// Block i (of four lanes) of the result is row[4 * i * ld ..]. A template, so that only the branch
// for this vector length is compiled.
template <int kSize>
HWY_INLINE auto LoadBlocks(const float* row, [[maybe_unused]] int64_t ld) {
  const hn::CappedTag<float, kSize> d;
  if constexpr (kSize <= 4) {
    return hn::LoadU(d, row);
  } else {
    return hn::Combine(d, LoadBlocks<kSize / 2>(row + kSize / 2 * ld, ld),
                       LoadBlocks<kSize / 2>(row, ld));
  }
}
#endif

// Four k of kLanes rows of a matrix stored (n, k).
struct Quad {
  Vector v0, v1, v2, v3;

  // From block i of vj holding row 4i + j along k, to vj running along n at k = j.
  HWY_INLINE Quad Turned() const {
#if HWY_TARGET == HWY_SCALAR
    return *this;
#else
    constexpr hn::Repartition<uint64_t, VectorTag> wide;
    const auto lo01 = hn::BitCast(wide, hn::InterleaveLower(kTag, v0, v1));  // r0k0 r1k0 r0k1 r1k1
    const auto hi01 = hn::BitCast(wide, hn::InterleaveUpper(kTag, v0, v1));
    const auto lo23 = hn::BitCast(wide, hn::InterleaveLower(kTag, v2, v3));
    const auto hi23 = hn::BitCast(wide, hn::InterleaveUpper(kTag, v2, v3));
    return {hn::BitCast(kTag, hn::InterleaveLower(wide, lo01, lo23)),
            hn::BitCast(kTag, hn::InterleaveUpper(wide, lo01, lo23)),
            hn::BitCast(kTag, hn::InterleaveLower(wide, hi01, hi23)),
            hn::BitCast(kTag, hn::InterleaveUpper(wide, hi01, hi23))};
#endif
  }
};

// Loads Q * 4 k of kLanes rows, not yet turned, finishing with one row's cache line before going
// to the next: rows whose distance is a large power of two share one set of L1, which cannot hold a
// line of each.
template <int Q>
HWY_INLINE void LoadQuads(const float* rows, [[maybe_unused]] int64_t ld, Quad* quads) {
#if HWY_TARGET == HWY_SCALAR
  for (int q = 0; q < Q; ++q, rows += 4) {
    quads[q] = {hn::LoadU(kTag, rows), hn::LoadU(kTag, rows + 1), hn::LoadU(kTag, rows + 2),
                hn::LoadU(kTag, rows + 3)};
  }
#else
  HWY_UNROLL(4)
  for (int q = 0; q < Q; ++q) quads[q].v0 = LoadBlocks<kLanes>(rows + 4 * q, ld);
  HWY_UNROLL(4)
  for (int q = 0; q < Q; ++q) quads[q].v1 = LoadBlocks<kLanes>(rows + ld + 4 * q, ld);
  HWY_UNROLL(4)
  for (int q = 0; q < Q; ++q) quads[q].v2 = LoadBlocks<kLanes>(rows + 2 * ld + 4 * q, ld);
  HWY_UNROLL(4)
  for (int q = 0; q < Q; ++q) quads[q].v3 = LoadBlocks<kLanes>(rows + 3 * ld + 4 * q, ld);
#endif
}

// Adds Q * 4 steps of k from A stored (k, R) and B stored (V*kLanes, k).
template <int Q, int R, int V>
HWY_INLINE void TurningSteps(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, int64_t ldb,
                             Accumulators<R, V>& sums) {
  HWY_UNROLL(8)
  for (int j = 0; j < V; ++j) {
    Quad quads[Q];
    LoadQuads<Q>(b + j * kLanes * ldb, ldb, quads);
    HWY_UNROLL(4)
    for (int q = 0; q < Q; ++q) {
      const Quad t = quads[q].Turned();
      HWY_UNROLL(8)
      for (int i = 0; i < R; ++i) {
        const float* HWY_RESTRICT row = a + 4 * q * R + i;
        Vector sum = sums.v[i][j];
        sum = hn::MulAdd(hn::Set(kTag, row[0]), t.v0, sum);
        sum = hn::MulAdd(hn::Set(kTag, row[R]), t.v1, sum);
        sum = hn::MulAdd(hn::Set(kTag, row[2 * R]), t.v2, sum);
        sums.v[i][j] = hn::MulAdd(hn::Set(kTag, row[3 * R]), t.v3, sum);
      }
    }
  }
}

// C (R, V*kLanes) from A stored (k, R) and B stored (V*kLanes, k): turned in registers, so that
// weights which do not fit the caches are read once and never written. next: the rows of B wanted
// after these, prefetched meanwhile; or null.
template <int R, int V>
HWY_INLINE void TurningTile(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                            const float* next, int64_t ldb, int64_t k, float* HWY_RESTRICT c,
                            int64_t ldc, TileEnds ends) {
  constexpr int kQuads = kLanes == 16 ? 4 : 1;  // held at once, as registers allow
  Accumulators<R, V> sums;
  sums.Begin(c, ldc, ends.from_c);
  int64_t p = 0;
  for (; p + kLineFloats <= k; p += kLineFloats) {
    if (next != nullptr) PrefetchRows(next + p, ldb, V * kLanes);
    for (int q = 0; q < kLineFloats; q += 4 * kQuads) {
      TurningSteps<kQuads>(a + (p + q) * R, b + p + q, ldb, sums);
    }
  }
  for (; p + 4 <= k; p += 4) TurningSteps<1>(a + p * R, b + p, ldb, sums);
  for (; p < k; ++p) {
    HWY_UNROLL(8)
    for (int j = 0; j < V; ++j) {
      HWY_ALIGN float column[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) column[lane] = b[(j * kLanes + lane) * ldb + p];
      const Vector turned = hn::Load(kTag, column);
      HWY_UNROLL(8)
      for (int i = 0; i < R; ++i) {
        sums.v[i][j] = hn::MulAdd(hn::Set(kTag, a[p * R + i]), turned, sums.v[i][j]);
      }
    }
  }
  sums.End(c, ldc, ends.bias);
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_KERNELS_GEMM_TILE_INL_H_
