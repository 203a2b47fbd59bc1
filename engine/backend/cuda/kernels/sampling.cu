// Drawing tokens.
//
// A block a row. Where nothing is cut, the row is read twice: for its maximum, and for the draw.
// Otherwise a bound below which nothing can be kept leaves a short list, which is sorted in shared
// memory and cut exactly; a row too flat for that is bisected instead. Tokens are ordered by a key
// of 64 bits: the logit's order, then the token's, the first being the larger.
#include "engine/backend/cuda/kernels/philox.h"
#include "engine/backend/cuda/kernels/rows.h"

namespace tandem::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kList = 8192;      // keys in shared memory
constexpr int kThresholds = 16;  // nats below the maximum at which BoundByMass looks
// Scores in f32 noise are this near to those in double, and nearer.
constexpr double kScoreMargin = 1e-4;

using Key = unsigned long long;

struct Best {
  double score;
  Key order;  // of equal scores the smallest wins
  float logit;
  int token;
};

__device__ __forceinline__ Best Better(const Best& a, const Best& b) {
  return b.score > a.score || (b.score == a.score && b.order < a.order) ? b : a;
}

// v combined over the block's threads in a tree; every thread gets it.
template <typename T, typename Combine>
__device__ T Reduce(T v, char* shared, Combine combine) {
  T* const all = reinterpret_cast<T*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  all[thread] = v;
#pragma unroll 1
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) all[thread] = combine(all[thread], all[thread + half]);
  }
  __syncthreads();
  const T result = all[0];
  __syncthreads();
  return result;
}
template <typename T>
__device__ T ReduceSum(T v, char* shared) {
  return Reduce(v, shared, [](T a, T b) { return a + b; });
}

// A row and how it is drawn from.
struct Row {
  const float* logits;
  int vocabulary, id_bits;
  bool vectors;  // starts on 16 bytes
  float temperature;
  uint64_t seed, stream, position;

  // -0 becomes 0: they are equal.
  __device__ __forceinline__ float Scaled(float logit) const {
    return __fdiv_rn(logit, temperature) + 0.0f;
  }
  // Tokens 4 group .. 4 group + 3 before scaling, as far as there are any.
  __device__ __forceinline__ float4 Four(int group) const {
    const int token = 4 * group, left = vocabulary - token;
    if (vectors && left >= 4) return *reinterpret_cast<const float4*>(logits + token);
    return make_float4(left > 0 ? logits[token] : 0, left > 1 ? logits[token + 1] : 0,
                       left > 2 ? logits[token + 2] : 0, left > 3 ? logits[token + 3] : 0);
  }
  __device__ __forceinline__ Key Order(float logit, int token) const {
    return First(logit) | static_cast<Key>(((1u << id_bits) - 1) - static_cast<unsigned>(token));
  }
  // Below the keys of that logit, above those of smaller ones.
  __device__ __forceinline__ static Key First(float logit) {
    const unsigned bits = __float_as_uint(logit);
    return static_cast<Key>((bits >> 31) != 0 ? ~bits : bits | 0x80000000u) << 32;
  }
  __device__ __forceinline__ static float LogitOf(Key key) {
    const auto bits = static_cast<unsigned>(key >> 32);
    return __uint_as_float((bits >> 31) != 0 ? bits & 0x7fffffffu : ~bits);
  }
  __device__ __forceinline__ int TokenOf(Key key) const {
    return static_cast<int>(((1u << id_bits) - 1) - static_cast<unsigned>(key));
  }
  // The word of uniform noise of tokens 4 group .. 4 group + 3.
  __device__ __forceinline__ PhiloxWords Noise(int group) const {
    return Philox(seed, stream, position << 32 | static_cast<unsigned>(group));
  }
};

__device__ __forceinline__ double Gumbel(unsigned word) {
  return -log(-log(static_cast<double>(PhiloxUniform(word))));
}

__device__ __forceinline__ float Lane(const float4& x, int j) {
  return j == 0 ? x.x : j == 1 ? x.y : j == 2 ? x.z : x.w;
}

// f(token, logit) for the thread's tokens; several loads are on their way at once.
template <typename F>
__device__ __forceinline__ void ForLogits(const Row& row, F f) {
  constexpr int kGroups = 4;
  for (int first = static_cast<int>(threadIdx.x); 4 * first < row.vocabulary;
       first += kGroups * kThreads) {
    float4 x[kGroups];
#pragma unroll
    for (int i = 0; i < kGroups; ++i) x[i] = row.Four(first + i * kThreads);
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int token = 4 * (first + i * kThreads) + j;
        if (token < row.vocabulary) f(token, row.Scaled(Lane(x[i], j)));
      }
    }
  }
}

struct Cuts {
  int top_k;  // 0: off
  double top_p, min_p;
  __device__ __forceinline__ bool any() const { return top_k > 0 || top_p < 1 || min_p > 0; }
};

// What is kept, and what of it is already in the list, in order.
struct Kept {
  Key low = 0;       // keys from here on
  double min_p = 0;  // of these, those with this share of the likeliest's probability
  int listed = -1;   // so many at the list's start are all of them; -1: look at the row
};

// --- The bound ----------------------------------------------------------------------------------

// The k-th largest of the threads' largest keys: at least k keys are not below it. k <= kThreads.
__device__ Key BoundByRank(Key own, int k, char* shared) {
  Key* const all = reinterpret_cast<Key*>(shared);
  const int thread = static_cast<int>(threadIdx.x);
  all[thread] = own;
  __syncthreads();
  int larger = 0;
#pragma unroll 4
  for (int i = 0; i < kThreads; ++i) larger += all[i] > own || (all[i] == own && i < thread);
  __syncthreads();
  if (larger == k - 1) all[0] = own;
  __syncthreads();
  const Key bound = all[0];
  __syncthreads();
  return bound;
}

// A key below which the likeliest tokens with top_p of the probability need nothing.
__device__ Key BoundByMass(const Row& row, float top, double top_p, char* shared) {
  float above[kThresholds] = {};  // within 1, 2, ... nats of the maximum
  double total = 0;
  ForLogits(row, [&](int, float logit) {
    const float down = top - logit, e = expf(-down);
    total += static_cast<double>(e);
#pragma unroll
    for (int i = 0; i < kThresholds; ++i) above[i] += down <= static_cast<float>(i + 1) ? e : 0.0f;
  });
  total = ReduceSum(total, shared);
  Key bound = 0;
  bool found = false;
#pragma unroll 1
  for (int i = 0; i < kThresholds && !found; ++i) {
    float mine = 0;
#pragma unroll
    for (int j = 0; j < kThresholds; ++j) mine = i == j ? above[j] : mine;
    found = ReduceSum(static_cast<double>(mine), shared) > (top_p + 2e-5) * total;
    // A little lower than where the subtraction may have rounded to.
    const float low = top - static_cast<float>(i + 1);
    if (found) bound = Row::First(low - fabsf(top) * 1e-6f - 1e-3f);
  }
  return bound;
}

// --- The list -----------------------------------------------------------------------------------

// The keys from `bound` on, in any order, and the probability of the others to that of the
// likeliest; returns how many there are, of which the list holds at most kList.
__device__ int Gather(const Row& row, float top, Key bound, Key* list, double* rest, char* shared) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  double others = 0;
  ForLogits(row, [&](int token, float logit) {
    const Key key = row.Order(logit, token);
    if (key >= bound) {
      const int at = atomicAdd(&count, 1);
      if (at < kList) list[at] = key;
    } else {
      others += static_cast<double>(expf(logit - top));
    }
  });
  *rest = ReduceSum(others, shared);
  return count;
}

// Largest first; `count` keys, then zeros up to a power of two (Batcher's bitonic sort).
__device__ void Sort(Key* list, int count) {
  int size = 2;
  while (size < count) size *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < size; i += kThreads) list[i] = 0;
#pragma unroll 1
  for (int run = 2; run <= size; run *= 2) {
#pragma unroll 1
    for (int apart = run / 2; apart > 0; apart /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < size / 2; i += kThreads) {
        const int low = i / apart * 2 * apart + i % apart, high = low + apart;
        const Key a = list[low], b = list[high];
        if ((a < b) == ((low & run) == 0)) {
          list[low] = b;
          list[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

__device__ __forceinline__ double MassOf(Key key, float top) {
  return exp(static_cast<double>(Row::LogitOf(key)) - static_cast<double>(top));
}

// How many of the first `count` reach `target` together; all if they never do.
__device__ int CountToMass(const Key* list, int count, double target, float top, char* shared) {
  double* const before = reinterpret_cast<double*>(shared);
  const int thread = static_cast<int>(threadIdx.x), each = (count + kThreads - 1) / kThreads;
  const int first = min(thread * each, count), last = min(first + each, count);
  double mass = 0;
  for (int i = first; i < last; ++i) mass += MassOf(list[i], top);
  before[thread] = mass;
  __syncthreads();
  if (thread == 0) {
    double sum = 0;
    for (int i = 0; i < kThreads; ++i) {
      const double own = before[i];
      before[i] = sum;
      sum += own;
    }
  }
  __syncthreads();
  double sum = before[thread];
  int kept = 0;
  for (int i = first; i < last && sum < target; ++i, ++kept) sum += MassOf(list[i], top);
  __syncthreads();
  return ReduceSum(kept, shared);
}

__device__ Kept CutList(const Key* list, int count, const Cuts& cuts, float top, double rest,
                        char* shared) {
  int kept = cuts.top_k > 0 ? min(count, cuts.top_k) : count;
  if (cuts.top_p < 1) {
    double mass = 0;
    for (int i = static_cast<int>(threadIdx.x); i < kept; i += kThreads) {
      mass += MassOf(list[i], top);
    }
    const double total = ReduceSum(mass, shared) + (cuts.top_k > 0 ? 0 : rest);
    kept = max(1, CountToMass(list, kept, cuts.top_p * total, top, shared));
  }
  if (cuts.min_p > 0) {
    int likely = 0;
    for (int i = static_cast<int>(threadIdx.x); i < kept; i += kThreads) {
      likely += MassOf(list[i], top) >= cuts.min_p ? 1 : 0;
    }
    kept = max(1, ReduceSum(likely, shared));
  }
  return {.low = list[kept - 1], .min_p = 0, .listed = kept};
}

// --- Bisection ----------------------------------------------------------------------------------

struct Tally {
  double mass;
  int count;
};

// Of the keys from `low` on.
__device__ Tally TallyFrom(const Row& row, float top, Key low, char* shared) {
  Tally own = {0, 0};
  ForLogits(row, [&](int token, float logit) {
    if (row.Order(logit, token) < low) return;
    own.mass += static_cast<double>(expf(logit - top));
    ++own.count;
  });
  return Reduce(own, shared, [](const Tally& a, const Tally& b) {
    return Tally{a.mass + b.mass, a.count + b.count};
  });
}

// The largest key from `floor` on such that enough(tally of the keys from it on); `floor` if there
// is none.
template <typename Enough>
__device__ Key Bisect(const Row& row, float top, Key floor, char* shared, Enough enough) {
  Key key = 0;
#pragma unroll 1
  for (int bit = 63; bit >= 0; --bit) {
    if (bit < 32 && bit >= row.id_bits) continue;
    const Key trial = key | Key{1} << bit;
    if (trial <= floor || enough(TallyFrom(row, top, trial, shared))) key = trial;
  }
  return key > floor ? key : floor;
}

__device__ Kept CutRow(const Row& row, const Cuts& cuts, float top, char* shared) {
  Kept kept;
  kept.min_p = cuts.min_p;
  if (cuts.top_k > 0) {
    kept.low =
        Bisect(row, top, 0, shared, [&](const Tally& tally) { return tally.count >= cuts.top_k; });
  }
  if (cuts.top_p < 1) {
    const double target = cuts.top_p * TallyFrom(row, top, kept.low, shared).mass;
    kept.low = Bisect(row, top, kept.low, shared,
                      [&](const Tally& tally) { return tally.mass >= target; });
  }
  return kept;
}

// --- Drawing ------------------------------------------------------------------------------------

struct Drawn {
  Best best;
  double mass;  // of what was drawn from, to the likeliest's
};

__device__ Drawn DrawFromList(const Row& row, const Key* list, int count, float top, char* shared) {
  Best best = {-INFINITY, ~Key{0}, top, row.TokenOf(list[0])};
  double mass = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const float logit = Row::LogitOf(list[i]);
    const int token = row.TokenOf(list[i]);
    const unsigned word = row.Noise(token / 4).word[token % 4];
    best = Better(best,
                  {static_cast<double>(logit) + Gumbel(word), static_cast<Key>(i), logit, token});
    mass += MassOf(list[i], top);
  }
  const double total = ReduceSum(mass, shared);
  return {Reduce(best, shared, Better), total};
}

// The score in f32 noise: cheap, and near enough to tell which few scores to take in double.
__device__ __forceinline__ double RoughScore(float logit, unsigned word) {
  return static_cast<double>(logit) - static_cast<double>(logf(-logf(PhiloxUniform(word))));
}

// f(token, logit, noise) for the kept tokens of the thread's groups of four.
template <typename F>
__device__ __forceinline__ void ForKept(const Row& row, const Kept& kept, float top, F f) {
  const int groups = (row.vocabulary + 3) / 4;
#pragma unroll 2
  for (int group = static_cast<int>(threadIdx.x); group < groups; group += kThreads) {
    const float4 x = row.Four(group);
    const PhiloxWords noise = row.Noise(group);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = 4 * group + j;
      const float logit = row.Scaled(Lane(x, j));
      const Key key = row.Order(logit, token);
      if (token >= row.vocabulary || key < kept.low) continue;
      if (kept.min_p > 0 && logit < top && MassOf(key, top) < kept.min_p) continue;
      f(token, logit, noise.word[j]);
    }
  }
}

__device__ Drawn DrawFromRow(const Row& row, const Kept& kept, bool cut, Key top_key,
                             char* shared) {
  const float top = Row::LogitOf(top_key);
  double rough = -INFINITY, second = -INFINITY, mass = 0;
  int likeliest = -1;
  ForKept(row, kept, top, [&](int token, float logit, unsigned word) {
    const double score = RoughScore(logit, word);
    mass += static_cast<double>(expf(logit - top));
    if (score > rough) {
      second = rough;
      rough = score;
      likeliest = token;
    } else {
      second = fmax(second, score);
    }
  });
  const double total = ReduceSum(mass, shared);
  const double enough =
      Reduce(rough, shared, [](double a, double b) { return fmax(a, b); }) - kScoreMargin;
  Best best = {-INFINITY, ~Key{0}, top, cut ? row.TokenOf(top_key) : 0};
  const auto compete = [&](int token, float logit, unsigned word) {
    const Key order = cut ? ~row.Order(logit, token) : static_cast<Key>(token);
    best = Better(best, {static_cast<double>(logit) + Gumbel(word), order, logit, token});
  };
  if (second >= enough) {
    // Two of this thread's may be the best: all that may be are looked at.
    ForKept(row, kept, top, [&](int token, float logit, unsigned word) {
      if (RoughScore(logit, word) >= enough) compete(token, logit, word);
    });
  } else if (rough >= enough && likeliest >= 0) {
    const unsigned word = row.Noise(likeliest / 4).word[likeliest % 4];
    compete(likeliest, row.Scaled(row.logits[likeliest]), word);
  }
  return {Reduce(best, shared, Better), total};
}

__global__ void __launch_bounds__(kThreads, 1)
    SampleTokens(tandem_cuda_sample_params p, int id_bits, int vectors) {
  const int64_t index = blockIdx.x;
  Key* const list = reinterpret_cast<Key*>(DynamicShared());
  char* const shared = DynamicShared() + kList * sizeof(Key);
  const float given = p.temperature[index];
  const Row row = {.logits = p.logits + index * p.vocabulary,
                   .vocabulary = static_cast<int>(p.vocabulary),
                   .id_bits = id_bits,
                   .vectors = vectors != 0,
                   .temperature = given == 0 ? 1.0f : given,
                   .seed = p.seed[index],
                   .stream = p.stream[index],
                   .position = p.position[index]};
  Key own = 0;
  ForLogits(row, [&](int token, float logit) {
    const Key key = row.Order(logit, token);
    own = key > own ? key : own;
  });
  const Key top_key = Reduce(own, shared, [](Key a, Key b) { return a > b ? a : b; });
  const float top = Row::LogitOf(top_key);
  int token = row.TokenOf(top_key);
  float sampling_logprob = 0;
  if (given != 0) {
    const int k = p.top_k[index];
    const Cuts cuts = {k < row.vocabulary ? k : 0, p.top_p[index], p.min_p[index]};
    Kept kept;
    if (cuts.any()) {
      Key bound = 0;
      if (cuts.top_k > 0 && cuts.top_k <= kThreads) bound = BoundByRank(own, cuts.top_k, shared);
      if (cuts.top_k <= 0 && cuts.top_p < 1) bound = BoundByMass(row, top, cuts.top_p, shared);
      if (cuts.min_p > 0 && !(cuts.top_k > 0 && cuts.top_p < 1)) {
        // A little lower than where the exponential may have rounded to.
        const float low = top + static_cast<float>(log(cuts.min_p)) - fabsf(top) * 1e-6f - 1e-3f;
        bound = bound > Row::First(low) ? bound : Row::First(low);
      }
      double rest = 0;
      int count = row.vocabulary;
      if (bound > 0 || count <= kList) count = Gather(row, top, bound, list, &rest, shared);
      if (count <= kList) {
        Sort(list, count);
        kept = CutList(list, count, cuts, top, rest, shared);
      } else {
        kept = CutRow(row, cuts, top, shared);
      }
    }
    const Drawn drawn = kept.listed > 0 ? DrawFromList(row, list, kept.listed, top, shared)
                                        : DrawFromRow(row, kept, cuts.any(), top_key, shared);
    token = drawn.best.token;
    sampling_logprob = static_cast<float>(static_cast<double>(drawn.best.logit) -
                                          static_cast<double>(top) - log(drawn.mass));
  }
  if (threadIdx.x == 0) {
    p.token[index] = token;
    p.logprob[index] = p.model_logits[index * p.vocabulary + token] - p.lse[index];
    p.sampling_logprob[index] = sampling_logprob;
  }
}

}  // namespace
}  // namespace tandem::cuda

int tandem_cuda_sample_tokens(const struct tandem_cuda_sample_params* p,
                              tandem_cuda_stream stream) {
  using namespace tandem::cuda;
  if (p->vocabulary > kMaxColumns || p->rows > INT32_MAX) return TANDEM_CUDA_UNSUPPORTED;
  int id_bits = 1;
  while (int64_t{1} << id_bits < p->vocabulary) ++id_bits;
  constexpr size_t kShared = kList * sizeof(Key) + kThreads * sizeof(Best);
  return Launch(SampleTokens, static_cast<unsigned>(p->rows), kThreads, kShared,
                static_cast<cudaStream_t>(stream), *p, id_bits,
                RowsAligned(p->vocabulary * 4, p->logits) ? 1 : 0);
}
