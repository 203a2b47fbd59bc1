#include "engine/backend/loop.h"

namespace tandem {

std::vector<int64_t> BroadcastStrides(const Shape& shape, const Shape& out) {
  const auto own = shape.Strides();
  const int added = out.rank() - shape.rank();
  std::vector<int64_t> strides(out.rank(), 0);
  for (int i = 0; i < shape.rank(); ++i) {
    if (shape[i] == out[i + added]) strides[i + added] = own[i];
  }
  return strides;
}

}  // namespace tandem
