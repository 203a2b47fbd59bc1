#include "engine/backend/cpu/strided.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "engine/backend/cpu/kernels/interleave.h"

namespace tandem::cpu {
namespace {

constexpr int64_t kTile = 16;  // a transposed tile of 4-byte elements fills whole cache lines

template <typename T>
void CopyRun(T* out, int64_t out_stride, const T* in, int64_t in_stride, int64_t n) {
  if (out_stride == 1 && in_stride == 1) {
    std::memcpy(out, in, n * sizeof(T));
  } else if (out_stride == 1 && in_stride == 0) {
    std::fill(out, out + n, *in);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i * out_stride] = in[i * in_stride];
  }
}

// out[i * so + j] = in[i + j * si]: rows of the output are columns of the input. A whole tile goes
// through a buffer: a power-of-two stride maps its rows to one cache set, so each line is touched
// once only.
template <typename T>
void TransposeTile(T* out, int64_t so, const T* in, int64_t si, int64_t rows, int64_t cols) {
  if (rows == kTile && cols == kTile) {
    T tile[kTile][kTile];
    for (int64_t j = 0; j < kTile; ++j) {
      for (int64_t i = 0; i < kTile; ++i) tile[i][j] = in[i + j * si];
    }
    for (int64_t i = 0; i < kTile; ++i) std::memcpy(out + i * so, tile[i], sizeof(tile[i]));
    return;
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) out[i * so + j] = in[i + j * si];
  }
}

// Both operands' offsets at the position-th element of the loop.
std::array<int64_t, 2> OffsetsAt(const Loop<2>& dims, int64_t position) {
  std::array<int64_t, 2> offset{};
  for (size_t i = dims.size(); i-- > 0;) {
    const int64_t index = position % dims[i].size;
    position /= dims[i].size;
    for (int k = 0; k < 2; ++k) offset[k] += index * dims[i].stride[k];
  }
  return offset;
}

// The loop with its last dimension contiguous in the output and dimension `across` contiguous in
// the input: tiles of those two, so that both sides touch whole cache lines.
template <typename T>
void CopyTransposed(Loop<2> dims, size_t across, T* out, const T* in) {
  const LoopDim<2> row = dims[across], col = dims.back();
  dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(across));
  dims.pop_back();
  // Strips of kTile rows join the outer loop; the last may be short.
  const int64_t strips = (row.size + kTile - 1) / kTile;
  dims.push_back({strips, {1, 0}});
  const size_t strip_dim = dims.size() - 1;
  LoopDim<2>& strip = dims[strip_dim];
  strip.stride = {kTile * row.stride[0], kTile * row.stride[1]};
  const int64_t last_rows = row.size - (strips - 1) * kTile;
  // Which strip a position is in follows from the count of positions before it.
  const int64_t outer = CountDims<2>(dims, strip_dim);
  const int64_t grain = kParallelGrain / (kTile * col.size) + 1;
  ParallelFor(outer * strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const auto [out_offset, in_offset] = OffsetsAt(dims, position);
      const int64_t rows = position % strips == strips - 1 ? last_rows : kTile;
      for (int64_t j = 0; j < col.size; j += kTile) {
        TransposeTile(out + out_offset + j, row.stride[0], in + in_offset + j * col.stride[1],
                      col.stride[1], rows, std::min(kTile, col.size - j));
      }
    }
  });
}

// The same where one of the two dimensions is a few elements that lie side by side.
void CopyInterleaved(Loop<2> dims, size_t across, bool together, uint32_t* out,
                     const uint32_t* in) {
  const LoopDim<2> row = dims[across], col = dims.back();
  dims.erase(dims.begin() + static_cast<std::ptrdiff_t>(across));
  dims.pop_back();
  const int64_t n = together ? row.size : col.size, streams = together ? col.size : row.size;
  const int64_t stride = together ? col.stride[1] : row.stride[0];
  // Long runs in pieces, so that threads can share one.
  constexpr int64_t kPiece = 4096;
  const int64_t pieces = (n + kPiece - 1) / kPiece, last = n - (pieces - 1) * kPiece;
  dims.push_back({pieces, {kPiece * (together ? streams : 1), kPiece * (together ? 1 : streams)}});
  ParallelFor(CountDims<2>(dims, dims.size()), kParallelGrain / (std::min(n, kPiece) * streams) + 1,
              [&](int64_t begin, int64_t end) {
                for (int64_t position = begin; position < end; ++position) {
                  const auto [to, from] = OffsetsAt(dims, position);
                  const int64_t count = position % pieces == pieces - 1 ? last : kPiece;
                  if (together) {
                    Interleave(in + from, stride, streams, count, out + to);
                  } else {
                    Deinterleave(in + from, streams, stride, count, out + to);
                  }
                }
              });
}

template <typename T>
void CopyTyped(const Loop<2>& dims, void* to, const void* from) {
  T* const out = static_cast<T*>(to);
  const T* const in = static_cast<const T*>(from);
  const LoopDim<2>& last = dims.back();
  if (last.stride[0] == 1 && last.stride[1] > 1) {
    for (size_t i = 0; i + 1 < dims.size(); ++i) {
      const LoopDim<2>& row = dims[i];
      if (row.stride[1] != 1 || row.size <= 1) continue;
      if constexpr (std::is_same_v<T, uint32_t>) {
        const bool together = last.size <= kMaxStreams && row.stride[0] == last.size;
        const bool apart = row.size <= kMaxStreams && last.stride[1] == row.size;
        if (together || apart) return CopyInterleaved(dims, i, together, out, in);
      }
      return CopyTransposed(dims, i, out, in);
    }
  }
  if (dims.size() == 1) {
    ParallelFor(last.size, kParallelGrain, [&](int64_t begin, int64_t end) {
      CopyRun(out + begin * last.stride[0], last.stride[0], in + begin * last.stride[1],
              last.stride[1], end - begin);
    });
    return;
  }
  // Never inner-parallel: a run below is serial however long it is.
  ForOuter<2>(dims, dims.size() - 1, std::min(last.size, kParallelGrain),
              [&](const std::array<int64_t, 2>& offset) {
                CopyRun(out + offset[0], last.stride[0], in + offset[1], last.stride[1], last.size);
              });
}

}  // namespace

void CopyStrided(const Loop<2>& dims, int64_t element_bytes, void* out, const void* in) {
  if (CountDims<2>(dims, dims.size()) == 0) return;
  switch (element_bytes) {
    case 1:
      return CopyTyped<uint8_t>(dims, out, in);
    case 2:
      return CopyTyped<uint16_t>(dims, out, in);
    case 4:
      return CopyTyped<uint32_t>(dims, out, in);
    default:
      return CopyTyped<uint64_t>(dims, out, in);
  }
}

void CopyBytes(void* out, const void* in, int64_t bytes) {
  if (out == in) return;
  ParallelFor(bytes, 4 * kParallelGrain, [&](int64_t begin, int64_t end) {
    std::memcpy(static_cast<char*>(out) + begin, static_cast<const char*>(in) + begin, end - begin);
  });
}

void ZeroBytes(void* out, int64_t bytes) {
  ParallelFor(bytes, 4 * kParallelGrain, [&](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(out) + begin, 0, end - begin);
  });
}

}  // namespace tandem::cpu
