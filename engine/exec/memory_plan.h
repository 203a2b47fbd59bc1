// Offsets for blocks of memory with known lifetimes.
#pragma once

#include <cstdint>
#include <vector>

namespace tandem {

struct MemoryBlock {
  int64_t bytes = 0;
  int32_t first = 0, last = 0;  // steps, inclusive, during which it is in use
  int64_t offset = 0;           // the answer, a multiple of 64
};

// Sets every offset so that no two blocks in use at the same step overlap; returns the bytes
// needed. Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net
// inference", 2020): largest first, each at the lowest offset that is free for its whole life.
int64_t AssignOffsets(std::vector<MemoryBlock>& blocks);

}  // namespace tandem
