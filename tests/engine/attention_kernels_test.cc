#include <gmock/gmock.h>
#include <gtest/gtest.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/backend/cpu/kernels/attention.h"
#include "engine/base/threads.h"
#include "hwy/targets.h"

namespace tandem::cpu {
namespace {

using ::testing::Each;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  std::vector<int> lengths;
  int64_t heads, kv_heads, dim;
  bool fused = false;  // q, k, v and their gradients are columns of one matrix each
  float scale = 0;     // 0: 1 / sqrt(dim)
};

// The operands of one packed batch, and room for every result. Buffers end where the contract says,
// so that a sanitizer sees a read beyond.
struct Batch {
  Shape shape;
  int64_t tokens = 0, q_width, kv_width, stride_q, stride_kv;
  float scale;
  std::vector<int32_t> start = {0};
  std::vector<float> data, grads;         // q, k and v
  std::vector<float> out, lse, grad_out;  // (N, H, D), (N, H), (N, H, D)

  Batch(const Shape& s, uint64_t seed)
      : shape(s), q_width(s.heads * s.dim), kv_width(s.kv_heads * s.dim) {
    for (int length : s.lengths) start.push_back(start.back() + length);
    tokens = start.back();
    stride_q = s.fused ? q_width + 2 * kv_width : q_width;
    stride_kv = s.fused ? stride_q : kv_width;
    scale = s.scale != 0 ? s.scale : 1 / std::sqrt(static_cast<float>(s.dim));
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    data.resize(tokens * (q_width + 2 * kv_width));
    grad_out.resize(tokens * q_width);
    for (float& x : data) x = normal(random);
    for (float& x : grad_out) x = normal(random);
    out.assign(tokens * q_width, kNaN);
    lse.assign(tokens * s.heads, kNaN);
    grads.assign(data.size(), kNaN);
  }

  template <typename T>
  T* Q(T* base) const {
    return base;
  }
  template <typename T>
  T* K(T* base) const {
    return base + (shape.fused ? q_width : tokens * q_width);
  }
  template <typename T>
  T* V(T* base) const {
    return K(base) + (shape.fused ? kv_width : tokens * kv_width);
  }

  AttentionParams Params() {
    const float* at = data.data();
    return {tokens,      static_cast<int64_t>(shape.lengths.size()),
            shape.heads, shape.kv_heads,
            shape.dim,   start.data(),
            Q(at),       K(at),
            V(at),       stride_q,
            stride_kv,   stride_kv,
            scale,       out.data(),
            lse.data()};
  }
  void Forward() {
    const AttentionParams params = Params();
    std::vector<char> scratch(AttentionScratchBytes(params), '\x7f');
    AttentionForward(params, scratch.data());
  }
  void Backward() {
    float* at = grads.data();
    const AttentionBackwardParams params = {Params(), grad_out.data(), Q(at),     K(at),
                                            V(at),    stride_q,        stride_kv, stride_kv};
    std::vector<char> scratch(AttentionBackwardScratchBytes(params), '\x7f');
    AttentionBackward(params, scratch.data());
  }
};

struct Reference {
  std::vector<double> out, lse, grads;
};

// softmax(scale Q K^T) V and its gradients, one query at a time, in double.
Reference Compute(Batch& b) {
  const AttentionParams p = b.Params();
  const int64_t D = p.head_dim, H = p.heads;
  Reference r;
  r.out.resize(b.out.size());
  r.lse.resize(b.lse.size());
  r.grads.resize(b.grads.size());
  double *gq = b.Q(r.grads.data()), *gk = b.K(r.grads.data()), *gv = b.V(r.grads.data());
  for (int64_t s = 0; s < p.sequences; ++s) {
    for (int64_t t = p.query_start[s]; t < p.query_start[s + 1]; ++t) {
      for (int64_t h = 0; h < H; ++h) {
        const int64_t column = h / (H / p.kv_heads) * D, row = (t * H + h) * D;
        const int64_t first = p.query_start[s], count = t - first + 1;
        std::vector<double> w(count), dp(count);
        const float* q = p.q + t * p.q_stride + h * D;
        double max = -INFINITY, sum = 0, delta = 0;
        for (int64_t j = 0; j < count; ++j) {
          const float* k = p.k + (first + j) * p.k_stride + column;
          for (int64_t d = 0; d < D; ++d) w[j] += static_cast<double>(q[d]) * k[d];
          max = std::max(max, w[j] *= static_cast<double>(p.scale));
        }
        for (double& x : w) sum += x = std::exp(x - max);
        r.lse[t * H + h] = max + std::log(sum);
        for (int64_t j = 0; j < count; ++j) {
          const float* v = p.v + (first + j) * p.v_stride + column;
          w[j] /= sum;
          for (int64_t d = 0; d < D; ++d) {
            r.out[row + d] += w[j] * v[d];
            dp[j] += static_cast<double>(b.grad_out[row + d]) * v[d];
          }
          delta += w[j] * dp[j];
        }
        for (int64_t j = 0; j < count; ++j) {
          const double ds = w[j] * (dp[j] - delta) * static_cast<double>(p.scale);
          const int64_t key = (first + j) * b.stride_kv + column;
          for (int64_t d = 0; d < D; ++d) {
            gq[t * b.stride_q + h * D + d] += ds * p.k[key + d];
            gk[key + d] += ds * q[d];
            gv[key + d] += w[j] * b.grad_out[row + d];
          }
        }
      }
    }
  }
  return r;
}

void ExpectClose(const std::vector<float>& actual, const std::vector<double>& expected,
                 double tolerance, const char* what) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const double bound = tolerance * (1 + std::abs(expected[i]));
    ASSERT_LE(std::abs(actual[i] - expected[i]), bound)
        << what << "[" << i << "] = " << actual[i] << ", expected " << expected[i];
    ASSERT_FALSE(std::isnan(actual[i])) << what << "[" << i << "]";
  }
}

void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(b[i]))
        << what << "[" << i << "]: " << a[i] << " and " << b[i];
  }
}

void CheckAgainstReference(const Shape& shape, uint64_t seed, double tolerance = 2e-5) {
  Batch b(shape, seed);
  const Reference expected = Compute(b);
  b.Forward();
  b.Backward();
  ExpectClose(b.out, expected.out, tolerance, "out");
  ExpectClose(b.lse, expected.lse, tolerance, "lse");
  ExpectClose(b.grads, expected.grads, 5 * tolerance, "grads");
}

// A paged cache for the sequences of a batch, its pages in random order and full of NaN, and the
// outputs of the tokens that went through it.
class Server {
 public:
  Server(Batch& batch, uint64_t seed) : b_(batch), done_(batch.shape.lengths.size()) {
    const int longest = *std::max_element(b_.shape.lengths.begin(), b_.shape.lengths.end());
    blocks_ = longest / kAttentionBlock + 2;
    const int64_t pages = blocks_ * static_cast<int64_t>(done_.size());
    table_.resize(pages);
    std::iota(table_.begin(), table_.end(), 0);
    std::shuffle(table_.begin(), table_.end(), std::mt19937_64(seed));
    k_cache_.assign(pages * b_.kv_width * kAttentionBlock, kNaN);
    v_cache_ = k_cache_;
    out_.assign(b_.out.size(), kNaN);
  }

  // Runs the next counts[i] tokens of sequence sequences[i], in one packed batch.
  void Step(const std::vector<int>& sequences, const std::vector<int>& counts) {
    std::vector<int32_t> start = {0}, past, table;
    std::vector<float> rows;  // (n, q k v)
    const int64_t width = b_.q_width + 2 * b_.kv_width;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int s = sequences[i];
      past.push_back(done_[s]);
      start.push_back(start.back() + counts[i]);
      table.insert(table.end(), table_.begin() + s * blocks_, table_.begin() + (s + 1) * blocks_);
      const float* at = b_.data.data();
      for (int n = 0; n < counts[i]; ++n) {
        const int64_t t = b_.start[s] + done_[s] + n;
        const float *q = b_.Q(at) + t * b_.stride_q, *k = b_.K(at) + t * b_.stride_kv,
                    *v = b_.V(at) + t * b_.stride_kv;
        rows.insert(rows.end(), q, q + b_.q_width);
        rows.insert(rows.end(), k, k + b_.kv_width);
        rows.insert(rows.end(), v, v + b_.kv_width);
      }
    }
    std::vector<float> out(start.back() * b_.q_width, kNaN);
    const PagedAttentionParams p = {start.back(),
                                    static_cast<int64_t>(sequences.size()),
                                    b_.shape.heads,
                                    b_.shape.kv_heads,
                                    b_.shape.dim,
                                    start.data(),
                                    past.data(),
                                    table.data(),
                                    blocks_,
                                    rows.data(),
                                    rows.data() + b_.q_width,
                                    rows.data() + b_.q_width + b_.kv_width,
                                    width,
                                    width,
                                    width,
                                    k_cache_.data(),
                                    v_cache_.data(),
                                    b_.scale,
                                    out.data()};
    std::vector<char> scratch(PagedAttentionScratchBytes(p), '\x7f');
    PagedAttentionForward(p, scratch.data());
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int64_t to = (b_.start[sequences[i]] + done_[sequences[i]]) * b_.q_width;
      std::copy(out.begin() + start[i] * b_.q_width, out.begin() + start[i + 1] * b_.q_width,
                out_.begin() + to);
      done_[sequences[i]] += counts[i];
    }
  }

  int Left(int s) const { return b_.shape.lengths[s] - done_[s]; }
  const std::vector<float>& out() const { return out_; }

 private:
  Batch& b_;
  std::vector<int> done_;  // tokens in the cache, by sequence
  int64_t blocks_;
  std::vector<int32_t> table_;
  std::vector<float> k_cache_, v_cache_, out_;
};

std::vector<int> AllOf(const Shape& s) {
  std::vector<int> result(s.lengths.size());
  std::iota(result.begin(), result.end(), 0);
  return result;
}

// Random subsets of the sequences advance by random counts until all are done.
void ServeInRandomChunks(Server& server, const Shape& shape, std::mt19937_64& random, int longest) {
  std::vector<int> order = AllOf(shape);
  while (std::any_of(order.begin(), order.end(), [&](int s) { return server.Left(s) > 0; })) {
    std::shuffle(order.begin(), order.end(), random);
    std::vector<int> sequences, counts;
    for (int s : order) {
      if (random() % 2 == 0) continue;
      sequences.push_back(s);
      counts.push_back(
          static_cast<int>(std::min<uint64_t>(random() % (longest + 1), server.Left(s))));
    }
    if (!sequences.empty()) server.Step(sequences, counts);
  }
}

// Training, prefill, random chunks and decode give the same bits.
void CheckServing(const Shape& shape, uint64_t seed) {
  Batch b(shape, seed);
  b.Forward();
  std::mt19937_64 random(seed);
  Server prefill(b, seed + 1);
  prefill.Step(AllOf(shape), shape.lengths);
  ExpectSameBits(b.out, prefill.out(), "prefill");
  Server alone(b, seed + 2);
  for (int s : AllOf(shape)) alone.Step({s}, {shape.lengths[s]});
  ExpectSameBits(b.out, alone.out(), "prefill alone");
  Server chunks(b, seed + 3);
  ServeInRandomChunks(chunks, shape, random, 50);
  ExpectSameBits(b.out, chunks.out(), "chunked prefill");
  Server decode(b, seed + 4);
  ServeInRandomChunks(decode, shape, random, 1);
  ExpectSameBits(b.out, decode.out(), "decode");
}

const std::vector<Shape>& Shapes() {
  static const auto* shapes = new std::vector<Shape>{
      {{1}, 1, 1, 8},
      {{5, 0, 1, 33}, 2, 1, 8, true},
      {{32, 31, 64}, 4, 2, 20},
      {{100, 0, 17}, 3, 3, 32, true},
      {{65, 1, 40}, 8, 2, 64, true},
      {{37, 70}, 6, 2, 80},
      {{0, 129}, 4, 1, 128, true},
      {{40}, 12, 1, 31, true},
      {{33, 2}, 40, 2, 16},
      {{50}, 2, 2, 1},
      {{45}, 2, 1, 256},
  };
  return *shapes;
}

std::string Describe(const Shape& s) {
  return "lengths " + testing::PrintToString(s.lengths) + " heads " + std::to_string(s.heads) +
         "/" + std::to_string(s.kv_heads) + " dim " + std::to_string(s.dim) +
         (s.fused ? " fused" : "");
}

TEST(AttentionKernels, MatchDoubleReference) {
  for (const Shape& shape : Shapes()) {
    SCOPED_TRACE(Describe(shape));
    CheckAgainstReference(shape, 1);
  }
}

TEST(AttentionKernels, LargeScoresNeitherOverflowNorVanish) {
  // Scores up to some hundreds: exp overflows without the running maximum.
  CheckAgainstReference({{70, 40}, 2, 1, 64, true, 5.0f}, 2, 1e-3);
}

TEST(AttentionKernels, NoSequencesAndNoTokens) {
  CheckAgainstReference({{}, 2, 1, 8}, 3);
  CheckAgainstReference({{0, 0}, 2, 1, 8}, 3);
}

TEST(AttentionKernels, LseMayBeNull) {
  Batch b({{40, 7}, 4, 2, 20}, 4);
  b.Forward();
  const std::vector<float> with = b.out;
  b.lse.assign(b.lse.size(), 7.0f);
  AttentionParams params = b.Params();
  params.lse = nullptr;
  std::vector<char> scratch(AttentionScratchBytes(params));
  AttentionForward(params, scratch.data());
  ExpectSameBits(with, b.out, "out");
  EXPECT_THAT(b.lse, Each(7.0f));
}

TEST(AttentionKernels, StridesLeaveTheGapsAlone) {
  Batch b({{40, 7}, 4, 2, 20}, 5), wide({{40, 7}, 4, 2, 20}, 5);
  b.Forward();
  b.Backward();
  const int64_t stride = b.q_width + 3;
  std::vector<float> q(b.tokens * stride, kNaN), k = q, v = q, gq = q, gk = q, gv = q;
  const auto widen = [&](const float* from, int64_t width, std::vector<float>& to) {
    for (int64_t t = 0; t < b.tokens; ++t) std::copy_n(from + t * width, width, &to[t * stride]);
  };
  widen(b.Q(b.data.data()), b.q_width, q);
  widen(b.K(b.data.data()), b.kv_width, k);
  widen(b.V(b.data.data()), b.kv_width, v);
  AttentionParams p = wide.Params();
  p.q = q.data(), p.k = k.data(), p.v = v.data();
  p.q_stride = p.k_stride = p.v_stride = stride;
  std::vector<char> scratch(AttentionScratchBytes(p));
  AttentionForward(p, scratch.data());
  ExpectSameBits(b.out, wide.out, "out");
  const AttentionBackwardParams g = {
      p, b.grad_out.data(), gq.data(), gk.data(), gv.data(), stride, stride, stride};
  scratch.resize(AttentionBackwardScratchBytes(g));
  AttentionBackward(g, scratch.data());
  std::vector<float> eq(q.size(), kNaN), ek = eq, ev = eq;
  widen(b.Q(b.grads.data()), b.q_width, eq);
  widen(b.K(b.grads.data()), b.kv_width, ek);
  widen(b.V(b.grads.data()), b.kv_width, ev);
  ExpectSameBits(eq, gq, "grad_q");
  ExpectSameBits(ek, gk, "grad_k");
  ExpectSameBits(ev, gv, "grad_v");
}

TEST(AttentionKernels, GradientsMatchFiniteDifferences) {
  Batch b({{45, 3}, 4, 2, 20, true}, 6);
  b.Forward();
  b.Backward();
  const auto loss = [&] {
    b.Forward();
    return std::inner_product(b.out.begin(), b.out.end(), b.grad_out.begin(), 0.0);
  };
  std::mt19937_64 random(6);
  for (int n = 0; n < 60; ++n) {
    const size_t i = random() % b.data.size();
    const float x = b.data[i], step = 0x1p-6f;
    b.data[i] = x + step;
    const double above = loss();
    b.data[i] = x - step;
    const double below = loss();
    b.data[i] = x;
    EXPECT_NEAR((above - below) / (2 * step), b.grads[i], 3e-3) << "element " << i;
  }
}

TEST(AttentionKernels, ServingHasTheBitsOfTraining) {
  for (const Shape& shape : Shapes()) {
    SCOPED_TRACE(Describe(shape));
    CheckServing(shape, 7);
  }
}

TEST(AttentionKernels, NeighboursAndPlaceDoNotMatter) {
  Batch together({{70, 33, 1, 90}, 4, 2, 20, true}, 8);
  together.Forward();
  together.Backward();
  const int64_t width = together.stride_q;
  for (int s = 0; s < 4; ++s) {
    Batch one({{together.shape.lengths[s]}, 4, 2, 20, true}, 9);
    const int64_t first = together.start[s], end = together.start[s + 1];
    one.data.assign(&together.data[first * width], together.data.data() + end * width);
    const int64_t q = together.q_width;
    one.grad_out.assign(&together.grad_out[first * q], together.grad_out.data() + end * q);
    one.Forward();
    one.Backward();
    ExpectSameBits(one.out, {&together.out[first * q], together.out.data() + end * q}, "out");
    ExpectSameBits(one.grads, {&together.grads[first * width], together.grads.data() + end * width},
                   "grads");
  }
}

TEST(AttentionKernels, LaterTokensDoNotReachEarlierOnes) {
  for (const float poison : {kNaN, INFINITY, -INFINITY}) {
    Batch clean({{100}, 4, 2, 32, true}, 10), poisoned({{100}, 4, 2, 32, true}, 10);
    const int64_t cut = 45;  // inside a block and inside a tile
    std::fill(poisoned.data.begin() + cut * clean.stride_q, poisoned.data.end(), poison);
    clean.Forward();
    poisoned.Forward();
    clean.out.resize(cut * clean.q_width);
    poisoned.out.resize(cut * clean.q_width);
    ExpectSameBits(clean.out, poisoned.out, "out");
  }
}

TEST(AttentionKernels, NaNReachesEveryQueryThatSeesIt) {
  Batch b({{80}, 1, 1, 8, true}, 11);
  b.data[40 * b.stride_q + 8] = kNaN;  // in token 40's key
  b.Forward();
  for (int64_t t = 0; t < b.tokens; ++t) EXPECT_EQ(std::isnan(b.out[t * 8]), t >= 40) << t;
}

class Threads {  // for the length of a test
 public:
  Threads() : before_(ThreadCount()) {}
  ~Threads() { SetThreadCount(before_); }

 private:
  int before_;
};

TEST(AttentionKernels, ThreadCountDoesNotMatter) {
  const Threads restore;
  // The last has fewer (sequence, kv_head) pairs than threads: the gradients' other schedule.
  for (const Shape& shape : {Shape{{300, 200, 0, 70}, 4, 2, 64, true}, Shape{{500}, 4, 1, 32}}) {
    SetThreadCount(1);
    Batch one(shape, 12);
    one.Forward();
    one.Backward();
    for (const int threads : {2, 3, 8}) {
      SCOPED_TRACE(threads);
      SetThreadCount(threads);
      Batch many(shape, 12);
      many.Forward();
      many.Backward();
      ExpectSameBits(one.out, many.out, "out");
      ExpectSameBits(one.lse, many.lse, "lse");
      ExpectSameBits(one.grads, many.grads, "grads");
      Server server(many, 13);
      server.Step(AllOf(shape), shape.lengths);
      ExpectSameBits(one.out, server.out(), "prefill");
    }
  }
}

TEST(AttentionKernels, EveryInstructionSetIsRight) {
  struct Restore {
    ~Restore() { Select(0); }
    static void Select(int64_t target) {
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    }
  } restore;
  const Shape shape = {{70, 33}, 4, 2, 52, true};
  std::vector<float> fused;  // the output where multiply-add is fused: the same for any width
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    Restore::Select(target);
    CheckAgainstReference(shape, 14);
    CheckServing(shape, 14);
    if (target > HWY_AVX2) continue;  // the better a target, the lower its bit
    Batch b(shape, 14);
    b.Forward();
    if (fused.empty()) fused = b.out;
    ExpectSameBits(fused, b.out, "out");
  }
}

TEST(AttentionKernels, Fuzz) {
  const char* given = std::getenv("TANDEM_FUZZ_SEED");
  uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  int cases = 0;
  for (; std::chrono::steady_clock::now() < end && !testing::Test::HasFailure(); ++seed, ++cases) {
    std::mt19937_64 random(seed);
    Shape shape;
    shape.kv_heads = 1 + random() % 3;
    shape.heads = shape.kv_heads * (1 + random() % (random() % 4 == 0 ? 12 : 3));
    shape.dim = 1 + random() % (random() % 4 == 0 ? 256 : 70);
    shape.fused = random() % 2 == 0;
    for (uint64_t n = 1 + random() % 5; n > 0; --n) {
      shape.lengths.push_back(static_cast<int>(random() % (random() % 3 == 0 ? 140 : 40)));
    }
    SCOPED_TRACE("TANDEM_FUZZ_SEED=" + std::to_string(seed) + ": " + Describe(shape));
    CheckAgainstReference(shape, seed, 5e-5);
    CheckServing(shape, seed);
    if (given != nullptr) break;
  }
  EXPECT_GT(cases, given != nullptr ? -1 : 0);
}

#if defined(__x86_64__) && defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)

// The thread's own time: the machine may be busy with other things.
double Now() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double Seconds(const auto& body) {
  const double before = Now();
  body();
  return Now() - before;
}

// The fused multiply-adds a core can do, 256 bits wide: ten chains hide their latency.
__attribute__((target("avx2,fma"))) double PeakFlops() {
  constexpr int kChains = 10, kSteps = 100000;
  double best = 1e9;
  for (int repeat = 0; repeat < 20; ++repeat) {
    __m256 sum[kChains];
    for (__m256& x : sum) x = _mm256_set1_ps(1.0f);
    const __m256 a = _mm256_set1_ps(0.999f), c = _mm256_set1_ps(0.001f);
    const double before = Now();
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 10
      for (int i = 0; i < kChains; ++i) sum[i] = _mm256_fmadd_ps(sum[i], a, c);
    }
    const double after = Now();
    for (int i = 1; i < kChains; ++i) sum[0] = _mm256_add_ps(sum[0], sum[i]);
    [[maybe_unused]] volatile float used = _mm256_cvtss_f32(sum[0]);
    best = std::min(best, after - before);
  }
  return 2.0 * 8 * kChains * kSteps / best;
}

TEST(AttentionKernels, Efficiency) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    GTEST_SKIP() << "needs AVX2 and FMA for the peak probe";
  }
  const Threads restore;
  SetThreadCount(1);
  const double peak = PeakFlops();
  for (const Shape& shape :
       {Shape{std::vector<int>(12, 64), 4, 4, 32, true}, Shape{{512}, 8, 8, 64, true}}) {
    Batch b(shape, 15);
    double forward = 1e9, backward = 1e9, flops = 0;
    for (int length : shape.lengths) {
      flops += 2.0 * length * (length + 1) * static_cast<double>(shape.heads * shape.dim);
    }
    for (int repeat = 0; repeat < 10; ++repeat) {
      forward = std::min(forward, Seconds([&] { b.Forward(); }));
      backward = std::min(backward, Seconds([&] { b.Backward(); }));
    }
    std::printf("%zu x %d tokens: forward %.1f GFLOP/s (%.2f of peak), backward %.1f (%.2f)\n",
                shape.lengths.size(), shape.lengths[0], flops / forward * 1e-9,
                flops / forward / peak, 2.5 * flops / backward * 1e-9,
                2.5 * flops / backward / peak);
    // Far below what a quiet machine reaches, far above what a scalar loop would.
    EXPECT_GT(flops / forward / peak, 0.12);
    EXPECT_GT(2.5 * flops / backward / peak, 0.12);
  }
}
#endif

}  // namespace
}  // namespace tandem::cpu
