#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

TEST(ElementwiseTest, NegateCoversMoreThanAGrid) {
  std::vector<float> x(3000001);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  const DeviceArray<float> in(x), out(in.size());
  ASSERT_EQ(tandem_cuda_negate(out.get(), in.get(), in.size(), nullptr), 0);
  const std::vector<float> y = out.Get();
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], -x[i]) << i;
}

}  // namespace
}  // namespace tandem::cuda::testing
