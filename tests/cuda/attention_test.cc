// Attention through the C interface: against double arithmetic, and the promise that a row's bits
// are the same in decode, in prefill cut anywhere and in a packed training batch.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>

#include "engine/base/dtype.h"
#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

constexpr int kPage = 32;

struct Model {
  int dtype, capability, heads, kv_heads, head_dim;
  float scale = 0.0f;  // 0: 1 / sqrt(head_dim)

  float Scale() const {
    return scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
  }
  std::string Name() const {
    return std::string(dtype == TANDEM_CUDA_F32   ? "f32"
                       : dtype == TANDEM_CUDA_F16 ? "f16"
                                                  : "bf16") +
           " sm_" + std::to_string(capability) + " heads " + std::to_string(heads) + "/" +
           std::to_string(kv_heads) + " D " + std::to_string(head_dim);
  }
};

// A tensor of any of the three types: bytes on the device, floats here.
int Bytes(int dtype) { return dtype == TANDEM_CUDA_F32 ? 4 : 2; }
std::vector<uint8_t> Encode(int dtype, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * Bytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == TANDEM_CUDA_F32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const uint16_t bits = dtype == TANDEM_CUDA_F16 ? F16(values[i]).bits : BF16(values[i]).bits;
      std::memcpy(&bytes[2 * i], &bits, 2);
    }
  }
  return bytes;
}
std::vector<float> Decode(int dtype, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / Bytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == TANDEM_CUDA_F32) {
      std::memcpy(&values[i], &bytes[4 * i], 4);
    } else {
      F16 half;
      BF16 brain;
      std::memcpy(&half.bits, &bytes[2 * i], 2);
      brain.bits = half.bits;
      values[i] = dtype == TANDEM_CUDA_F16 ? float{half} : float{brain};
    }
  }
  return values;
}
std::vector<float> Random(int dtype, int64_t n, unsigned seed, float spread = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return Decode(dtype, Encode(dtype, values));
}

// Sequences in their packed form, and their heads.
struct Batch {
  Model model;
  std::vector<int> start;  // (S + 1)
  std::vector<float> q, k, v;

  Batch(const Model& m, const std::vector<int>& lengths, unsigned seed = 1) : model(m), start{0} {
    for (int n : lengths) start.push_back(start.back() + n);
    q = Random(m.dtype, int64_t{Tokens()} * m.heads * m.head_dim, seed, 1.5f);
    k = Random(m.dtype, int64_t{Tokens()} * m.kv_heads * m.head_dim, seed + 100, 1.5f);
    v = Random(m.dtype, int64_t{Tokens()} * m.kv_heads * m.head_dim, seed + 200);
  }
  int Tokens() const { return start.back(); }
  int Sequences() const { return static_cast<int>(start.size()) - 1; }
};

struct Result {
  std::vector<uint8_t> out;
  std::vector<float> lse;
};

tandem_cuda_attention_params ParamsOf(const Model& m, int tokens, int sequences) {
  tandem_cuda_attention_params p{};
  p.dtype = m.dtype;
  p.capability = m.capability;
  p.tokens = tokens;
  p.sequences = sequences;
  p.heads = m.heads;
  p.kv_heads = m.kv_heads;
  p.head_dim = m.head_dim;
  p.scale = m.Scale();
  return p;
}

Result Train(const Batch& b) {
  const Model& m = b.model;
  tandem_cuda_attention_params p = ParamsOf(m, b.Tokens(), b.Sequences());
  const DeviceArray<int> start(b.start);
  const DeviceArray<uint8_t> q(Encode(m.dtype, b.q)), k(Encode(m.dtype, b.k)),
      v(Encode(m.dtype, b.v)), out(q.size());
  const DeviceArray<float> lse(int64_t{b.Tokens()} * m.heads);
  p.query_start = start.get();
  p.q = q.get();
  p.k = k.get();
  p.v = v.get();
  p.out = out.get();
  p.lse = lse.get();
  EXPECT_EQ(tandem_cuda_attention(&p, nullptr), 0);
  return {out.Get(), lse.Get()};
}

// Serves the batch from a cache in steps: sequence s is `cuts[s]` new tokens at a time, as many
// sequences together as still have some.
std::vector<uint8_t> Serve(const Batch& b, const std::vector<int>& cuts, bool whole_rows) {
  const Model& m = b.model;
  const int sequences = b.Sequences();
  int longest = 0;
  for (int s = 0; s < sequences; ++s) longest = std::max(longest, b.start[s + 1] - b.start[s]);
  const int pages_each = (longest + kPage - 1) / kPage;
  const int pages = pages_each * sequences;
  // Page ids in a scattered order; the caches are poisoned.
  std::vector<int> ids(pages);
  for (int i = 0; i < pages; ++i) ids[i] = i;
  std::shuffle(ids.begin(), ids.end(), std::mt19937(7));
  const int64_t cache_bytes = int64_t{pages} * kPage * m.kv_heads * m.head_dim * Bytes(m.dtype);
  const DeviceArray<uint8_t> k_cache(cache_bytes), v_cache(cache_bytes);
  std::vector<int> done(sequences, 0);
  std::vector<uint8_t> all(b.q.size() * Bytes(m.dtype));
  const auto row_of = [&](const std::vector<float>& from, int heads, int token) {
    const auto width = static_cast<std::ptrdiff_t>(heads) * m.head_dim;
    return std::vector<float>(from.begin() + token * width, from.begin() + (token + 1) * width);
  };
  for (;;) {
    std::vector<int> start{0}, past, table, tokens;
    std::vector<float> q, k, v;
    for (int s = 0; s < sequences; ++s) {
      const int n = std::min(cuts[s], b.start[s + 1] - b.start[s] - done[s]);
      if (n == 0) continue;
      for (int i = 0; i < n; ++i) {
        const int token = b.start[s] + done[s] + i;
        tokens.push_back(token);
        for (auto [to, from, heads] :
             {std::tuple{&q, &b.q, m.heads}, std::tuple{&k, &b.k, m.kv_heads},
              std::tuple{&v, &b.v, m.kv_heads}}) {
          const std::vector<float> row = row_of(*from, heads, token);
          to->insert(to->end(), row.begin(), row.end());
        }
      }
      start.push_back(start.back() + n);
      past.push_back(done[s]);
      table.insert(table.end(), ids.begin() + s * pages_each, ids.begin() + (s + 1) * pages_each);
      done[s] += n;
    }
    if (tokens.empty()) return all;
    const auto count = static_cast<int>(tokens.size());
    tandem_cuda_attention_params p = ParamsOf(m, count, static_cast<int>(past.size()));
    const DeviceArray<int> d_start(start), d_past(past), d_table(table);
    const DeviceArray<uint8_t> d_q(Encode(m.dtype, q)), d_k(Encode(m.dtype, k)),
        d_v(Encode(m.dtype, v)), out(d_q.size());
    p.query_start = d_start.get();
    p.past_length = d_past.get();
    p.block_table = d_table.get();
    p.blocks_per_sequence = pages_each;
    p.pages = pages;
    p.q = d_q.get();
    p.k = d_k.get();
    p.v = d_v.get();
    p.k_cache = k_cache.get();
    p.v_cache = v_cache.get();
    p.out = out.get();
    p.whole_rows = whole_rows ? 1 : 0;
    int64_t scratch_bytes = 0;
    EXPECT_EQ(tandem_cuda_paged_attention_scratch(&p, &scratch_bytes), 0);
    EXPECT_EQ(scratch_bytes > 0, !whole_rows && longest > 2048);
    const DeviceArray<uint8_t> scratch(scratch_bytes);
    p.scratch = scratch.get();
    EXPECT_EQ(tandem_cuda_paged_attention(&p, nullptr), 0);
    const std::vector<uint8_t> got = out.Get();
    const int64_t width = int64_t{m.heads} * m.head_dim * Bytes(m.dtype);
    for (int i = 0; i < count; ++i) {
      std::copy_n(got.begin() + i * width, width, all.begin() + tokens[i] * width);
    }
  }
}

struct Reference {
  std::vector<double> out, lse, dq, dk, dv;
};

Reference InDouble(const Batch& b, const std::vector<float>& dout = {}) {
  const Model& m = b.model;
  const int width = m.head_dim, group = m.heads / m.kv_heads;
  Reference r;
  r.out.assign(b.q.size(), 0);
  r.lse.assign(int64_t{b.Tokens()} * m.heads, 0);
  r.dq.assign(b.q.size(), 0);
  r.dk.assign(b.k.size(), 0);
  r.dv.assign(b.v.size(), 0);
  for (int s = 0; s < b.Sequences(); ++s) {
    for (int i = b.start[s]; i < b.start[s + 1]; ++i) {
      for (int h = 0; h < m.heads; ++h) {
        const int64_t row = (int64_t{i} * m.heads + h) * width;
        const auto key = [&](int j) { return (int64_t{j} * m.kv_heads + h / group) * width; };
        std::vector<double> p;
        double max = -1e300, sum = 0;
        for (int j = b.start[s]; j <= i; ++j) {
          double dot = 0;
          for (int d = 0; d < width; ++d) dot += double{b.q[row + d]} * b.k[key(j) + d];
          p.push_back(dot * m.Scale());
          max = std::max(max, p.back());
        }
        for (double& x : p) sum += x = std::exp(x - max);
        r.lse[int64_t{i} * m.heads + h] = max + std::log(sum);
        double delta = 0;
        std::vector<double> dp(p.size(), 0);
        for (size_t j = 0; j < p.size(); ++j) {
          p[j] /= sum;
          const int64_t at = key(b.start[s] + static_cast<int>(j));
          for (int d = 0; d < width; ++d) {
            r.out[row + d] += p[j] * b.v[at + d];
            if (!dout.empty()) dp[j] += double{dout[row + d]} * b.v[at + d];
          }
          delta += p[j] * dp[j];
        }
        if (dout.empty()) continue;
        for (size_t j = 0; j < p.size(); ++j) {
          const int64_t at = key(b.start[s] + static_cast<int>(j));
          const double ds = p[j] * (dp[j] - delta) * m.Scale();
          for (int d = 0; d < width; ++d) {
            r.dq[row + d] += ds * b.k[at + d];
            r.dk[at + d] += ds * b.q[row + d];
            r.dv[at + d] += p[j] * dout[row + d];
          }
        }
      }
    }
  }
  return r;
}

// Errors relative to the largest value.
template <typename Value>
void ExpectNear(const std::vector<Value>& got, const std::vector<double>& expected,
                double tolerance, const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  double largest = 0;
  for (double x : expected) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - expected[i]);
    // The negation, so that NaN fails.
    ASSERT_TRUE(error <= tolerance * (std::fabs(expected[i]) + 0.25 * largest))
        << what << "[" << i << "] is " << got[i] << ", not " << expected[i];
  }
}
double Tolerance(int dtype) {
  return dtype == TANDEM_CUDA_F32 ? 4e-6 : dtype == TANDEM_CUDA_F16 ? 2e-3 : 1.6e-2;
}

void CheckForward(const Model& m, const std::vector<int>& lengths) {
  SCOPED_TRACE(m.Name());
  const Batch b(m, lengths);
  const Result got = Train(b);
  const Reference expected = InDouble(b);
  ExpectNear(Decode(m.dtype, got.out), expected.out, Tolerance(m.dtype), "out");
  ExpectNear(got.lse, expected.lse, 1e-5, "lse");
}

void CheckBackward(const Model& m, const std::vector<int>& lengths) {
  SCOPED_TRACE(m.Name());
  const Batch b(m, lengths);
  const std::vector<float> dout = Random(m.dtype, static_cast<int64_t>(b.q.size()), 5);
  tandem_cuda_attention_grad_params p{};
  p.forward = ParamsOf(m, b.Tokens(), b.Sequences());
  const Result forward = Train(b);
  const DeviceArray<int> start(b.start);
  const DeviceArray<uint8_t> q(Encode(m.dtype, b.q)), k(Encode(m.dtype, b.k)),
      v(Encode(m.dtype, b.v)), out(forward.out), d(Encode(m.dtype, dout));
  const DeviceArray<float> lse(forward.lse);
  p.forward.query_start = start.get();
  p.forward.q = q.get();
  p.forward.k = k.get();
  p.forward.v = v.get();
  p.forward.out = out.get();
  p.forward.lse = lse.get();
  p.dout = d.get();
  std::vector<std::vector<uint8_t>> first;
  for (int run = 0; run < 2; ++run) {
    const DeviceArray<uint8_t> dq(q.size()), dk(k.size()), dv(v.size());
    const DeviceArray<float> delta(lse.size());
    p.dq = dq.get();
    p.dk = dk.get();
    p.dv = dv.get();
    p.delta = delta.get();
    ASSERT_EQ(tandem_cuda_attention_grad(&p, nullptr), 0);
    const std::vector<std::vector<uint8_t>> now = {dq.Get(), dk.Get(), dv.Get()};
    if (run == 0) {
      first = now;
    } else {
      ASSERT_EQ(first, now);
    }
  }
  const Reference expected = InDouble(b, dout);
  const double tolerance = 4 * Tolerance(m.dtype);
  ExpectNear(Decode(m.dtype, first[0]), expected.dq, tolerance, "dq");
  ExpectNear(Decode(m.dtype, first[1]), expected.dk, tolerance, "dk");
  ExpectNear(Decode(m.dtype, first[2]), expected.dv, tolerance, "dv");
}

// Decode, two cuts of the prompt and training, bit for bit; each sequence alone, too.
void CheckBits(const Model& m, const std::vector<int>& lengths, const std::vector<int>& cut) {
  SCOPED_TRACE(m.Name());
  const Batch b(m, lengths);
  const std::vector<uint8_t> trained = Train(b).out;
  for (int c : cut) {
    std::vector<int> cuts(lengths.size(), c);
    for (size_t s = 0; s < cuts.size(); ++s) cuts[s] += c > 1 ? 3 * static_cast<int>(s) : 0;
    for (const bool whole_rows : {false, true}) {
      ASSERT_TRUE(trained == Serve(b, cuts, whole_rows)) << "cut " << c << " " << whole_rows;
    }
  }
  const int64_t width = int64_t{m.heads} * m.head_dim, kv_width = int64_t{m.kv_heads} * m.head_dim;
  for (int s = 0; s < b.Sequences() && b.Sequences() > 1; ++s) {
    Batch alone = b;
    const auto part = [&](const std::vector<float>& all, int64_t w) {
      return std::vector<float>(all.begin() + b.start[s] * w, all.begin() + b.start[s + 1] * w);
    };
    alone.start = {0, b.start[s + 1] - b.start[s]};
    alone.q = part(b.q, width);
    alone.k = part(b.k, kv_width);
    alone.v = part(b.v, kv_width);
    const std::vector<uint8_t> out = Train(alone).out;
    ASSERT_TRUE(
        std::equal(out.begin(), out.end(), trained.begin() + b.start[s] * width * Bytes(m.dtype)))
        << "sequence " << s;
  }
}

const std::vector<int> kRagged = {1, 2, 31, 0, 127, 128, 129, 300};

TEST(AttentionTest, GenericForward) {
  CheckForward({TANDEM_CUDA_F32, 90, 2, 1, 8}, kRagged);
  CheckForward({TANDEM_CUDA_F32, 80, 3, 3, 33, 0.7f}, {5, 0, 140});
  CheckForward({TANDEM_CUDA_F32, 80, 8, 1, 100}, {5, 70});
  CheckForward({TANDEM_CUDA_BF16, 80, 4, 2, 256}, {37});
  CheckForward({TANDEM_CUDA_F16, 90, 6, 2, 20}, {3, 40});
}

TEST(AttentionTest, GenericBackward) {
  CheckBackward({TANDEM_CUDA_F32, 90, 2, 1, 8}, kRagged);
  CheckBackward({TANDEM_CUDA_F32, 80, 3, 3, 33, 0.7f}, {5, 0, 60});
  CheckBackward({TANDEM_CUDA_F32, 80, 8, 1, 100}, {5, 40});
  CheckBackward({TANDEM_CUDA_BF16, 80, 4, 2, 256}, {37});
  CheckBackward({TANDEM_CUDA_F16, 90, 6, 2, 20}, {3, 40});
}

TEST(AttentionTest, GenericServesWhatItTrained) {
  CheckBits({TANDEM_CUDA_F32, 90, 2, 1, 8}, {1, 2, 31, 129, 140}, {64, 200});
  CheckBits({TANDEM_CUDA_F32, 90, 1, 1, 4}, {2100}, {2099});
  CheckBits({TANDEM_CUDA_BF16, 90, 8, 2, 12}, {50, 3}, {1, 7});
}

TEST(AttentionTest, TensorCoreForward) {
  for (const int capability : {80, 90}) {
    CheckForward({TANDEM_CUDA_BF16, capability, 2, 2, 64}, kRagged);
    CheckForward({TANDEM_CUDA_F16, capability, 2, 1, 128}, {3, 130, 70});
    CheckForward({TANDEM_CUDA_BF16, capability, 12, 2, 128, 0.05f}, {33});
    CheckForward({TANDEM_CUDA_F16, capability, 8, 1, 64}, {5, 0, 40});
  }
}

TEST(AttentionTest, TensorCoreBackward) {
  for (const int capability : {80, 90}) {
    CheckBackward({TANDEM_CUDA_BF16, capability, 2, 2, 64}, {1, 2, 31, 0, 129, 70});
    CheckBackward({TANDEM_CUDA_F16, capability, 2, 1, 128}, {3, 130});
    CheckBackward({TANDEM_CUDA_BF16, capability, 12, 2, 128, 0.05f}, {33});
    CheckBackward({TANDEM_CUDA_F16, capability, 8, 1, 64}, {5, 0, 40});
  }
  CheckBackward({TANDEM_CUDA_BF16, 90, 4, 1, 64}, {300, 64});
}

TEST(AttentionTest, TensorCoresServeWhatTheyTrained) {
  CheckBits({TANDEM_CUDA_BF16, 80, 2, 1, 64}, {1, 2, 31, 129}, {64});
  CheckBits({TANDEM_CUDA_F16, 80, 4, 1, 128}, {12, 3}, {1, 7});
  CheckBits({TANDEM_CUDA_BF16, 80, 1, 1, 64}, {2051}, {2049});
}

TEST(AttentionTest, HopperServesWhatItTrained) {
  CheckBits({TANDEM_CUDA_BF16, 90, 2, 1, 64}, {1, 2, 31, 129, 300}, {64, 200});
  CheckBits({TANDEM_CUDA_F16, 90, 4, 1, 128}, {12, 3, 140}, {1, 130});
  CheckBits({TANDEM_CUDA_F16, 90, 8, 1, 64}, {40, 33, 200}, {31});
  CheckBits({TANDEM_CUDA_BF16, 90, 1, 1, 64}, {4100, 7}, {4099});
}

TEST(AttentionTest, NothingToDo) {
  CheckForward({TANDEM_CUDA_F32, 90, 2, 1, 8}, {0, 0});
  const Model m{TANDEM_CUDA_F64, 90, 1, 1, 8};
  const tandem_cuda_attention_params p = ParamsOf(m, 1, 1);
  EXPECT_EQ(tandem_cuda_attention(&p, nullptr), TANDEM_CUDA_UNSUPPORTED);
}

}  // namespace
}  // namespace tandem::cuda::testing
