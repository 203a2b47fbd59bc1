// How a sum over the rows of a (rows, cols) matrix is split: by the shape alone, so that its bits
// do not depend on the thread count.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/base/threads.h"

namespace tandem::cpu {

class RowChunks {
 public:
  RowChunks(int64_t rows, int64_t cols)
      : rows_(rows), cols_(cols), chunk_(std::max<int64_t>(64, (rows + 31) / 32)) {}

  // At most 32.
  int64_t Count() const { return (rows_ + chunk_ - 1) / chunk_; }
  // For one partial sum (cols) of each chunk; none is needed where one chunk covers the rows.
  int64_t ScratchBytes() const {
    return Count() <= 1 ? 0 : Count() * cols_ * static_cast<int64_t>(sizeof(float));
  }

  // body(chunk, first row, rows, first column, columns) over chunks and column tiles, in parallel.
  template <class Body>
  void ForEach(Body body) const {
    constexpr int64_t kTile = 1024;
    const int64_t tiles = (cols_ + kTile - 1) / kTile;
    const int64_t elements = std::min(chunk_, rows_) * std::min(kTile, cols_);
    ParallelFor(Count() * tiles, (16384 + elements - 1) / elements,
                [&](int64_t begin, int64_t end) {
                  for (int64_t t = begin; t < end; ++t) {
                    const int64_t row = t / tiles * chunk_, column = t % tiles * kTile;
                    body(t / tiles, row, std::min(chunk_, rows_ - row), column,
                         std::min(kTile, cols_ - column));
                  }
                });
  }

 private:
  int64_t rows_, cols_, chunk_;
};

}  // namespace tandem::cpu
