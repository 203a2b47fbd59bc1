#include "engine/exec/memory_plan.h"

#include <algorithm>
#include <numeric>

namespace tandem {

int64_t AssignOffsets(std::vector<MemoryBlock>& blocks) {
  for (MemoryBlock& block : blocks) block.bytes = (block.bytes + 63) / 64 * 64;
  std::vector<size_t> order(blocks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return blocks[a].bytes > blocks[b].bytes; });
  std::vector<const MemoryBlock*> placed;  // by offset
  int64_t total = 0;
  for (size_t index : order) {
    MemoryBlock& block = blocks[index];
    if (block.bytes == 0) continue;
    int64_t offset = 0;
    for (const MemoryBlock* other : placed) {
      if (other->last < block.first || block.last < other->first) continue;
      if (offset + block.bytes <= other->offset) break;
      offset = std::max(offset, other->offset + other->bytes);
    }
    block.offset = offset;
    total = std::max(total, offset + block.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset,
                                   [](int64_t at, const MemoryBlock* b) { return at < b->offset; }),
                  &block);
  }
  return total;
}

}  // namespace tandem
