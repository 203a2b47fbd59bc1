#include "engine/backend/cpu/kernels/interleave.h"

#include <cstddef>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/backend/cpu/kernels/interleave.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using U32 = hn::ScalableTag<uint32_t>;

void InterleaveRun(const uint32_t* in, int64_t stride, int64_t streams, int64_t n, uint32_t* out) {
  const U32 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  const auto load = [&](int64_t k) HWY_ATTR { return hn::LoadU(d, in + k * stride + i); };
  for (; i + lanes <= n; i += lanes) {
    uint32_t* to = out + i * streams;
    if (streams == 2) {
      hn::StoreInterleaved2(load(0), load(1), d, to);
    } else if (streams == 3) {
      hn::StoreInterleaved3(load(0), load(1), load(2), d, to);
    } else {
      hn::StoreInterleaved4(load(0), load(1), load(2), load(3), d, to);
    }
  }
  for (; i < n; ++i) {
    for (int64_t k = 0; k < streams; ++k) out[i * streams + k] = in[k * stride + i];
  }
}

void DeinterleaveRun(const uint32_t* in, int64_t streams, int64_t stride, int64_t n,
                     uint32_t* out) {
  const U32 d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  hn::Vec<U32> v[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  for (; i + lanes <= n; i += lanes) {
    const uint32_t* from = in + i * streams;
    if (streams == 2) {
      hn::LoadInterleaved2(d, from, v[0], v[1]);
    } else if (streams == 3) {
      hn::LoadInterleaved3(d, from, v[0], v[1], v[2]);
    } else {
      hn::LoadInterleaved4(d, from, v[0], v[1], v[2], v[3]);
    }
    for (int64_t k = 0; k < streams; ++k) hn::StoreU(v[k], d, out + k * stride + i);
  }
  for (; i < n; ++i) {
    for (int64_t k = 0; k < streams; ++k) out[k * stride + i] = in[i * streams + k];
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace tandem::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {

HWY_EXPORT(InterleaveRun);
HWY_EXPORT(DeinterleaveRun);

void Interleave(const uint32_t* in, int64_t stride, int64_t streams, int64_t n, uint32_t* out) {
  HWY_DYNAMIC_DISPATCH(InterleaveRun)(in, stride, streams, n, out);
}
void Deinterleave(const uint32_t* in, int64_t streams, int64_t stride, int64_t n, uint32_t* out) {
  HWY_DYNAMIC_DISPATCH(DeinterleaveRun)(in, streams, stride, n, out);
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
