// Against the CPU's sampler.
#include "engine/sample/token_sampler.h"
#include "tests/cuda/float_array.h"

namespace tandem::cuda::testing {
namespace {

struct Request {
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1, min_p = 0;
};

struct Draws {
  std::vector<int32_t> token;
  std::vector<float> logprob, sampling_logprob;
};

SamplingOptions Options(const Request& r, int64_t row) {
  SamplingOptions options;
  options.temperature = r.temperature;
  options.top_k = r.top_k;
  options.top_p = r.top_p;
  options.min_p = r.min_p;
  options.seed = 0x123456789abcdefULL + static_cast<uint64_t>(row);
  options.stream = static_cast<uint64_t>(row % 3);
  return options;
}
int64_t Position(int64_t row) { return 1 + row * 5; }
float Lse(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(static_cast<double>(x[i]));
  return static_cast<float>(std::log(sum));
}

// Row i of logits by request i of requests.
Draws OnDevice(const std::vector<float>& logits, const std::vector<Request>& requests,
               int64_t first_row = 0, int64_t shift = 0) {
  const auto rows = static_cast<int64_t>(requests.size());
  const int64_t vocabulary = static_cast<int64_t>(logits.size()) / rows;
  std::vector<float> lse, temperature, shifted(shift);
  std::vector<int32_t> top_k;
  std::vector<double> top_p, min_p;
  std::vector<uint64_t> seed, stream, position;
  for (int64_t i = 0; i < rows; ++i) {
    const SamplingOptions options = Options(requests[i], first_row + i);
    lse.push_back(Lse(&logits[i * vocabulary], vocabulary));
    temperature.push_back(static_cast<float>(options.temperature));
    top_k.push_back(static_cast<int32_t>(options.top_k));
    top_p.push_back(options.top_p);
    min_p.push_back(options.min_p);
    seed.push_back(options.seed);
    stream.push_back(options.stream);
    position.push_back(static_cast<uint64_t>(Position(first_row + i)));
  }
  shifted.insert(shifted.end(), logits.begin(), logits.end());
  const DeviceArray<float> d_logits(shifted), d_lse(lse), d_temperature(temperature);
  const DeviceArray<int32_t> d_top_k(top_k);
  const DeviceArray<double> d_top_p(top_p), d_min_p(min_p);
  const DeviceArray<uint64_t> d_seed(seed), d_stream(stream), d_position(position);
  const DeviceArray<int32_t> token(rows);
  const DeviceArray<float> logprob(rows), sampling_logprob(rows);
  const tandem_cuda_sample_params params = {.logits = d_logits.get() + shift,
                                            .model_logits = d_logits.get() + shift,
                                            .lse = d_lse.get(),
                                            .temperature = d_temperature.get(),
                                            .top_k = d_top_k.get(),
                                            .top_p = d_top_p.get(),
                                            .min_p = d_min_p.get(),
                                            .seed = d_seed.get(),
                                            .stream = d_stream.get(),
                                            .position = d_position.get(),
                                            .token = token.get(),
                                            .logprob = logprob.get(),
                                            .sampling_logprob = sampling_logprob.get(),
                                            .rows = rows,
                                            .vocabulary = vocabulary};
  EXPECT_EQ(tandem_cuda_sample_tokens(&params, nullptr), 0);
  return {token.Get(), logprob.Get(), sampling_logprob.Get()};
}

void ExpectAsOnCpu(const std::vector<float>& logits, const std::vector<Request>& requests,
                   const std::string& what) {
  const Draws got = OnDevice(logits, requests);
  const auto rows = static_cast<int64_t>(requests.size());
  const int64_t vocabulary = static_cast<int64_t>(logits.size()) / rows;
  std::vector<float> scratch;
  for (int64_t i = 0; i < rows; ++i) {
    const std::vector<int32_t> tokens(Position(i));
    const TokenHistory history = {
        .tokens = tokens, .prompt_tokens = Position(i), .eos_token_ids = {}};
    const std::span<const float> row(&logits[i * vocabulary], vocabulary);
    const SampledToken expected =
        SampleToken(row, Lse(row.data(), vocabulary), Options(requests[i], i), history, scratch);
    const Request& r = requests[i];
    const std::string name = what + ", row " + std::to_string(i) + ": temperature " +
                             std::to_string(r.temperature) + ", top_k " + std::to_string(r.top_k) +
                             ", top_p " + std::to_string(r.top_p) + ", min_p " +
                             std::to_string(r.min_p);
    EXPECT_EQ(got.token[i], expected.token) << name;
    EXPECT_EQ(got.logprob[i], expected.logprob) << name;
    EXPECT_NEAR(got.sampling_logprob[i], expected.sampling_logprob, 1e-6) << name;
  }
}

std::vector<float> Logits(int64_t n, double spread, uint64_t seed, bool coarse = false) {
  std::vector<float> x;
  for (double v : Numbers(TANDEM_CUDA_F32, n, seed, spread)) {
    x.push_back(static_cast<float>(coarse ? std::round(v) : v));
  }
  return x;
}

// Every combination of cuts, on peaked and flat rows and on rows with many equal logits.
TEST(SampleTokensTest, TheTokensOfTheCpu) {
  std::vector<Request> requests;
  for (int64_t top_k : {0, 5, 60}) {
    for (double top_p : {1.0, 0.9, 1e-9}) {
      for (double min_p : {0.0, 0.02, 1.0}) {
        for (double temperature : {0.6, 0.0}) {
          requests.push_back({temperature, top_k, top_p, min_p});
        }
      }
    }
  }
  const auto rows = static_cast<int64_t>(requests.size());
  for (int64_t vocabulary : {1, 97, 1000}) {
    for (double spread : {0.3, 3.0}) {
      for (bool coarse : {false, true}) {
        ExpectAsOnCpu(Logits(rows * vocabulary, spread, 7, coarse), requests,
                      std::to_string(vocabulary) + " of " + std::to_string(spread));
      }
    }
  }
}

// More than the list holds: bisection, by rank, by mass, and both.
TEST(SampleTokensTest, FlatRowsAreBisected) {
  constexpr int64_t kVocabulary = 9001;
  const std::vector<Request> requests = {
      {1, 700, 1, 0},     {1, 8600, 1, 0},        {1, 0, 0.97, 0},
      {1, 8800, 0.98, 0}, {1, 8800, 1, 0.1},      {1, 0, 1, 0.02},
      {1, 0, 0.99999, 0}, {2, 8990, 0.9999, 0.1}, {1, 0, 1, 0}};
  const auto rows = static_cast<int64_t>(requests.size());
  ExpectAsOnCpu(Logits(rows * kVocabulary, 0.4, 3), requests, "flat");
  ExpectAsOnCpu(Logits(rows * kVocabulary, 0.8, 3, true), requests, "equal");
}

// Alone, elsewhere and unaligned: the same draw.
TEST(SampleTokensTest, ARowsDrawIsItsOwn) {
  constexpr int64_t kVocabulary = 500;
  const std::vector<Request> requests = {{1, 0, 1, 0}, {0.7, 40, 0.9, 0}, {1.3, 0, 0.9, 0.01}};
  const std::vector<float> logits = Logits(3 * kVocabulary, 2, 9);
  const Draws all = OnDevice(logits, requests);
  for (int64_t i = 0; i < 3; ++i) {
    const std::vector<float> row(&logits[i * kVocabulary], &logits[i * kVocabulary] + kVocabulary);
    for (int64_t shift : {0, 1}) {
      const Draws one = OnDevice(row, {requests[i]}, i, shift);
      EXPECT_EQ(one.token[0], all.token[i]);
      EXPECT_EQ(one.logprob[0], all.logprob[i]);
      EXPECT_EQ(one.sampling_logprob[0], all.sampling_logprob[i]);
    }
  }
}

// The draws follow the distribution: frequencies of 1000 draws of three tokens.
TEST(SampleTokensTest, FrequenciesFollowTheProbabilities) {
  constexpr int64_t kDraws = 1000;
  std::vector<float> logits;
  for (int64_t i = 0; i < kDraws; ++i) {
    for (double p : {0.2, 0.5, 0.3}) logits.push_back(static_cast<float>(std::log(p)));
  }
  const Draws draws = OnDevice(logits, std::vector<Request>(kDraws));
  double counts[3] = {};
  for (int32_t t : draws.token) ++counts[t];
  EXPECT_NEAR(counts[0] / kDraws, 0.2, 0.06);
  EXPECT_NEAR(counts[1] / kDraws, 0.5, 0.06);
  EXPECT_NEAR(counts[2] / kDraws, 0.3, 0.06);
}

}  // namespace
}  // namespace tandem::cuda::testing
