// The matrix product, on emulated devices of both kinds (mma.sync and wgmma), against sums in
// double.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <random>

#include "engine/base/dtype.h"
#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

template <typename T>
constexpr int kDType = -1;
template <>
constexpr int kDType<float> = TANDEM_CUDA_F32;
template <>
constexpr int kDType<BF16> = TANDEM_CUDA_BF16;
template <>
constexpr int kDType<F16> = TANDEM_CUDA_F16;
template <>
constexpr int kDType<double> = TANDEM_CUDA_F64;
template <>
constexpr int kDType<int32_t> = TANDEM_CUDA_I32;
template <>
constexpr int kDType<uint64_t> = TANDEM_CUDA_U64;

struct Case {
  int64_t m, n, k, batch = 1;
  bool transpose_a = false, transpose_b = false;
  int64_t pad = 0;     // of every leading dimension
  int64_t offset = 0;  // of every pointer, in elements
  bool share_a = false, share_b = false;
  bool bias = false, residual = false, dual = false;
  int activation = 0;
  bool tf32 = false;
};

std::string Describe(const Case& c) {
  std::string text = "m " + std::to_string(c.m) + " n " + std::to_string(c.n) + " k " +
                     std::to_string(c.k) + " batch " + std::to_string(c.batch);
  text += (c.transpose_a ? " ta" : "") + std::string(c.transpose_b ? " tb" : "");
  return text + " pad " + std::to_string(c.pad) + " offset " + std::to_string(c.offset) +
         " activation " + std::to_string(c.activation);
}

void SetCapability(int capability) {
  setenv("TANDEM_CUDA_EMULATION_SM", std::to_string(capability).c_str(), 1);
}

// Values in (-1, 1), exact in T.
template <typename T>
std::vector<T> Random(int64_t n, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<T> x(n);
  for (T& v : x) {
    if constexpr (std::is_integral_v<T>) {
      v = static_cast<T>(random());
    } else {
      v = static_cast<T>(uniform(random));
    }
  }
  return x;
}

template <typename T>
double AsDouble(T x) {
  return static_cast<double>(static_cast<float>(x));
}
template <>
double AsDouble(double x) {
  return x;
}

double Activated(int activation, double x) {
  switch (activation) {
    case TANDEM_CUDA_ACTIVATION_RELU:
      return std::max(x, 0.0);
    case TANDEM_CUDA_ACTIVATION_SILU:
      return x / (1 + std::exp(-x));
    case TANDEM_CUDA_ACTIVATION_GELU:
      return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
    case TANDEM_CUDA_ACTIVATION_GELU_TANH:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    default:
      return x;
  }
}

// The operands of a case, and where their elements are. What is between the rows (padding) and in
// front (offset) is NaN, which any use of would spread.
template <typename T, typename Out>
struct Operands {
  Case c;
  int64_t lda, ldb, ld_out, size_a, size_b, size_out;
  std::vector<T> a, b, b2, bias;
  std::vector<Out> residual;

  explicit Operands(const Case& given, int seed = 1) : c(given) {
    lda = (c.transpose_a ? c.m : c.k) + c.pad;
    ldb = (c.transpose_b ? c.k : c.n) + c.pad;
    ld_out = c.n + c.pad;
    size_a = lda * (c.transpose_a ? c.k : c.m);
    size_b = ldb * (c.transpose_b ? c.n : c.k);
    size_out = ld_out * c.m;
    a = Matrices(size_a * (c.share_a ? 1 : c.batch), lda, lda - c.pad, seed);
    b = Matrices(size_b * (c.share_b ? 1 : c.batch), ldb, ldb - c.pad, seed + 1);
    b2 = Matrices(size_b * (c.share_b ? 1 : c.batch), ldb, ldb - c.pad, seed + 2);
    bias = Random<T>(c.n + c.offset, seed + 3);
    residual = Random<Out>(size_out * c.batch + c.offset, seed + 4);
  }
  std::vector<T> Matrices(int64_t size, int64_t ld, int64_t used, int seed) const {
    std::vector<T> x = Random<T>(size + c.offset, seed);
    for (int64_t i = 0; i < static_cast<int64_t>(x.size()); ++i) {
      if (i < c.offset || (i - c.offset) % ld >= used) x[i] = std::bit_cast<T>(Poison());
    }
    return x;
  }
  static std::array<unsigned char, sizeof(T)> Poison() {
    std::array<unsigned char, sizeof(T)> bytes;
    bytes.fill(0xff);
    return bytes;
  }
  T A(int64_t batch, int64_t i, int64_t l) const {
    return a[c.offset + (c.share_a ? 0 : batch) * size_a +
             (c.transpose_a ? l * lda + i : i * lda + l)];
  }
  T B(const std::vector<T>& x, int64_t batch, int64_t l, int64_t j) const {
    return x[c.offset + (c.share_b ? 0 : batch) * size_b +
             (c.transpose_b ? j * ldb + l : l * ldb + j)];
  }
  int64_t OutAt(int64_t batch, int64_t i, int64_t j) const {
    return c.offset + batch * size_out + i * ld_out + j;
  }

  // Runs the kernel; fresh output is poisoned.
  std::vector<Out> Run() const {
    const DeviceArray<T> da(a), db(b), db2(b2), dbias(bias);
    const DeviceArray<Out> dresidual(residual), out(size_out * c.batch + c.offset);
    tandem_cuda_matmul_params p{};
    p.a = da.get() + c.offset;
    p.b = db.get() + c.offset;
    p.b2 = c.dual ? db2.get() + c.offset : nullptr;
    p.bias = c.bias ? dbias.get() + c.offset : nullptr;
    p.residual = c.residual ? dresidual.get() + c.offset : nullptr;
    p.out = out.get() + c.offset;
    p.batch = c.batch;
    p.m = c.m;
    p.n = c.n;
    p.k = c.k;
    p.lda = lda;
    p.ldb = ldb;
    p.ld_out = ld_out;
    p.a_stride = c.share_a ? 0 : size_a;
    p.b_stride = c.share_b ? 0 : size_b;
    p.out_stride = size_out;
    p.dtype = kDType<T>;
    p.out_dtype = kDType<Out>;
    p.transpose_a = c.transpose_a;
    p.transpose_b = c.transpose_b;
    p.activation = c.activation;
    p.tf32 = c.tf32;
    EXPECT_EQ(tandem_cuda_matmul(&p, nullptr), 0) << Describe(c);
    return out.Get();
  }
};

// Within rounding of the double result; padding untouched.
template <typename T, typename Out = T>
void Check(const Case& c) {
  SCOPED_TRACE(Describe(c));
  const Operands<T, Out> x(c);
  const std::vector<Out> out = x.Run();
  const double output_unit = std::is_same_v<Out, BF16>  ? 0x1p-8
                             : std::is_same_v<Out, F16> ? 0x1p-11
                                                        : 0x1p-23;
  const double operand_unit = c.tf32 ? 0x1p-10 : 0;
  std::vector<bool> written(out.size());
  for (int64_t batch = 0; batch < c.batch; ++batch) {
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        double sum = 0, sum2 = 0, magnitude = 1e-3;
        for (int64_t l = 0; l < c.k; ++l) {
          const double a = AsDouble(x.A(batch, i, l));
          sum += a * AsDouble(x.B(x.b, batch, l, j));
          sum2 += a * AsDouble(x.B(x.b2, batch, l, j));
          magnitude += std::fabs(a);
        }
        if (c.bias) sum += AsDouble(x.bias[c.offset + j]);
        double expected = Activated(c.activation, sum), error = magnitude;
        if (c.dual) {
          expected = Activated(TANDEM_CUDA_ACTIVATION_SILU, sum) * sum2;
          error = magnitude * (1 + std::fabs(sum) + std::fabs(sum2));
        }
        const int64_t at = x.OutAt(batch, i, j);
        // Results are rounded on the way, too: the sums, and what the epilogue makes of them.
        const double rounded =
            1.2 * std::fabs(sum) * (c.dual ? std::fabs(sum2) : 1) + 2 * std::fabs(expected);
        if (c.residual) expected += AsDouble(x.residual[at]);
        written[at] = true;
        const double tolerance =
            (0x1p-22 + operand_unit) * error + output_unit * (rounded + std::fabs(expected)) + 1e-6;
        ASSERT_NEAR(AsDouble(out[at]), expected, tolerance) << batch << " " << i << " " << j;
      }
    }
  }
  for (size_t at = 0; at < out.size(); ++at) {
    std::array<unsigned char, sizeof(Out)> poison;
    poison.fill(0xff);
    if (!written[at]) {
      ASSERT_EQ((std::bit_cast<std::array<unsigned char, sizeof(Out)>>(out[at])), poison) << at;
    }
  }
}

class MatMulTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override { SetCapability(GetParam()); }
};

// The promise of engine/backend/cpu/kernels/gemm.h, bit by bit.
void CheckChain(const Case& c) {
  SCOPED_TRACE(Describe(c));
  const Operands<float, float> x(c);
  const std::vector<float> out = x.Run();
  for (int64_t batch = 0; batch < c.batch; ++batch) {
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        float sum = 0;
        for (int64_t l = 0; l < c.k; ++l) {
          sum = std::fma(x.A(batch, i, l), x.B(x.b, batch, l, j), sum);
        }
        if (c.bias) sum += x.bias[c.offset + j];
        ASSERT_EQ(std::bit_cast<uint32_t>(out[x.OutAt(batch, i, j)]), std::bit_cast<uint32_t>(sum))
            << batch << " " << i << " " << j;
      }
    }
  }
}

TEST(MatMulF32Test, OneChainOfFusedMultiplyAdds) {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const int64_t offset : {0, 1}) {
        Case c{.m = 70, .n = 67, .k = 37, .transpose_a = ta, .transpose_b = tb, .pad = 3};
        c.offset = offset;
        CheckChain(c);
        CheckChain({.m = 1, .n = 1, .k = 1, .transpose_a = ta, .transpose_b = tb});
        CheckChain({.m = 5,
                    .n = 260,
                    .k = 64,
                    .batch = 2,
                    .transpose_a = ta,
                    .transpose_b = tb,
                    .share_b = true,
                    .bias = true});
      }
    }
  }
  CheckChain({.m = 256, .n = 260, .k = 20, .transpose_b = true, .bias = true});
  CheckChain({.m = 130, .n = 258, .k = 20, .batch = 2, .transpose_a = true, .share_a = true});
  CheckChain({.m = 3, .n = 5, .k = 0, .bias = true});
}

TEST(MatMulF32Test, NegativeZeroSurvivesTheTail) {
  // fma(-tiny, tiny, 0) underflows to -0, to which nothing must be added.
  const DeviceArray<float> a(std::vector<float>{-1e-30f}), b(std::vector<float>{1e-30f}), out(1);
  tandem_cuda_matmul_params p{};
  p.a = a.get();
  p.b = b.get();
  p.out = out.get();
  p.batch = p.m = p.n = p.k = p.lda = p.ldb = p.ld_out = 1;
  ASSERT_EQ(tandem_cuda_matmul(&p, nullptr), 0);
  EXPECT_EQ(std::bit_cast<uint32_t>(out.Get()[0]), 0x80000000u);
}

TEST(MatMulF32Test, Epilogues) {
  for (int activation = 0; activation <= TANDEM_CUDA_ACTIVATION_GELU_TANH; ++activation) {
    Check<float>(
        {.m = 33, .n = 70, .k = 20, .bias = true, .residual = true, .activation = activation});
  }
  Check<float>(
      {.m = 66, .n = 70, .k = 20, .batch = 2, .transpose_b = true, .residual = true, .dual = true});
  Check<float>({.m = 7, .n = 130, .k = 20, .pad = 1, .dual = true});
}

template <typename T>
void CheckHalf() {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      // Large tiles, whole and ragged; small ones; few rows; what no 16-byte access can read.
      Check<T>({.m = 256, .n = 256, .k = 64, .transpose_a = ta, .transpose_b = tb});
      Check<T>({.m = 264, .n = 264, .k = 72, .transpose_a = ta, .transpose_b = tb, .bias = true});
      Check<T>({.m = 65, .n = 67, .k = 39, .batch = 3, .transpose_a = ta, .transpose_b = tb});
      Check<T>({.m = 1, .n = 136, .k = 200, .transpose_a = ta, .transpose_b = tb, .pad = 8});
      Check<T>({.m = 3,
                .n = 5,
                .k = 7,
                .batch = 2,
                .transpose_a = ta,
                .transpose_b = tb,
                .pad = 1,
                .offset = 1});
      Check<T>({.m = 1, .n = 1, .k = 1, .transpose_a = ta, .transpose_b = tb});
      Check<T, float>({.m = 40,
                       .n = 72,
                       .k = 56,
                       .batch = 2,
                       .transpose_a = ta,
                       .transpose_b = tb,
                       .share_a = true,
                       .residual = true});
      Check<T, float>({.m = 20,
                       .n = 24,
                       .k = 320,
                       .batch = 2,
                       .transpose_a = ta,
                       .transpose_b = tb,
                       .share_b = true,
                       .bias = true});
    }
  }
  Check<T>({.m = 3, .n = 5, .k = 0, .bias = true});
}

TEST_P(MatMulTest, BF16) { CheckHalf<BF16>(); }
TEST_P(MatMulTest, F16) { CheckHalf<F16>(); }

TEST_P(MatMulTest, Tf32) {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      Check<float>(
          {.m = 264, .n = 264, .k = 36, .transpose_a = ta, .transpose_b = tb, .tf32 = true});
      Check<float>({.m = 65,
                    .n = 67,
                    .k = 19,
                    .batch = 3,
                    .transpose_a = ta,
                    .transpose_b = tb,
                    .bias = true,
                    .tf32 = true});
      Check<float>({.m = 1,
                    .n = 136,
                    .k = 200,
                    .transpose_a = ta,
                    .transpose_b = tb,
                    .pad = 1,
                    .offset = 1,
                    .residual = true,
                    .tf32 = true});
    }
  }
  Check<float>({.m = 70, .n = 72, .k = 40, .dual = true, .tf32 = true});
  // Operands are rounded, to nearest with ties away from zero: 1 + 2^-11 to 1 + 2^-10.
  const DeviceArray<float> x(std::vector<float>{1 + 0x1p-11f}), one(std::vector<float>{1}), out(1);
  tandem_cuda_matmul_params p{};
  p.a = x.get();
  p.b = one.get();
  p.out = out.get();
  p.batch = p.m = p.n = p.k = p.lda = p.ldb = p.ld_out = p.tf32 = 1;
  ASSERT_EQ(tandem_cuda_matmul(&p, nullptr), 0);
  EXPECT_EQ(out.Get()[0], 1 + 0x1p-10f);
}

// What can be read in 16-byte pieces and what cannot take different ways to the same bits.
TEST_P(MatMulTest, AlignmentDoesNotChangeBits) {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      Case c{.m = 136, .n = 72, .k = 200, .transpose_a = ta, .transpose_b = tb, .bias = true};
      const Operands<BF16, float> aligned(c);
      c.pad = 3;
      c.offset = 1;
      Operands<BF16, float> unaligned(c);
      const auto repack = [&](const std::vector<BF16>& from, int64_t ld, std::vector<BF16>* to) {
        for (int64_t i = 0; i < static_cast<int64_t>(from.size()); ++i) {
          (*to)[1 + i / ld * (ld + 3) + i % ld] = from[i];
        }
      };
      repack(aligned.a, aligned.lda, &unaligned.a);
      repack(aligned.b, aligned.ldb, &unaligned.b);
      repack(aligned.bias, c.n, &unaligned.bias);
      const std::vector<float> expected = aligned.Run(), got = unaligned.Run();
      for (int64_t i = 0; i < c.m; ++i) {
        for (int64_t j = 0; j < c.n; ++j) {
          ASSERT_EQ(got[unaligned.OutAt(0, i, j)], expected[aligned.OutAt(0, i, j)])
              << i << " " << j;
        }
      }
    }
  }
}

TEST_P(MatMulTest, Epilogues) {
  for (int activation = 0; activation <= TANDEM_CUDA_ACTIVATION_GELU_TANH; ++activation) {
    Check<BF16>(
        {.m = 17, .n = 72, .k = 40, .bias = true, .residual = true, .activation = activation});
  }
  for (const bool tb : {false, true}) {
    Check<BF16>(
        {.m = 66, .n = 72, .k = 40, .batch = 2, .transpose_b = tb, .residual = true, .dual = true});
    Check<F16, float>({.m = 7, .n = 130, .k = 20, .transpose_b = tb, .pad = 1, .dual = true});
  }
}

// Rows of one product, computed alone, in part, and at other places, are the same bits.
template <typename T>
void CheckInvariance(bool transpose_b, int64_t n, bool dual) {
  const Case whole{.m = 200,
                   .n = n,
                   .k = 120,
                   .transpose_b = transpose_b,
                   .bias = !dual,
                   .dual = dual,
                   .activation = dual ? 0 : int{TANDEM_CUDA_ACTIVATION_GELU}};
  const Operands<T, T> x(whole);
  const std::vector<T> out = x.Run();
  for (const int64_t rows : {1, 3, 64, 65, 150}) {
    for (const int64_t first : {int64_t{0}, int64_t{37}}) {
      Operands<T, T> part = x;
      part.c.m = rows;
      part.size_a = rows * part.lda;
      part.size_out = rows * part.ld_out;
      part.a.assign(x.a.begin() + first * x.lda, x.a.begin() + (first + rows) * x.lda);
      const std::vector<T> got = part.Run();
      for (int64_t i = 0; i < rows * n; ++i) {
        ASSERT_EQ(AsDouble(got[i]), AsDouble(out[first * n + i])) << rows << " rows at " << first;
      }
    }
  }
}

TEST_P(MatMulTest, BitsOfARowDependOnNothingElse) {
  for (const bool tb : {false, true}) {
    CheckInvariance<BF16>(tb, 136, false);
    CheckInvariance<BF16>(tb, 40, true);
    CheckInvariance<F16>(tb, 51, false);
    CheckInvariance<float>(tb, 70, false);
  }
}

INSTANTIATE_TEST_SUITE_P(Capabilities, MatMulTest, ::testing::Values(80, 90));

TEST(MatMulPlainTest, OtherTypes) {
  Check<double>({.m = 5, .n = 7, .k = 9, .batch = 2, .transpose_a = true, .bias = true});
  const Case c{.m = 4, .n = 6, .k = 5, .transpose_b = true, .pad = 2};
  const auto wraps = [&c](auto zero) {
    using T = decltype(zero);
    const Operands<T, T> x(c);
    const std::vector<T> out = x.Run();
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        uint64_t sum = 0;
        for (int64_t l = 0; l < c.k; ++l) {
          sum += static_cast<uint64_t>(x.A(0, i, l)) * static_cast<uint64_t>(x.B(x.b, 0, l, j));
        }
        EXPECT_EQ(out[x.OutAt(0, i, j)], static_cast<T>(sum));
      }
    }
  };
  wraps(int32_t{});
  wraps(uint64_t{});
}

TEST(MatMulPlainTest, NamesWhatItLacks) {
  tandem_cuda_matmul_params p{};
  p.dtype = p.out_dtype = TANDEM_CUDA_I8;
  EXPECT_EQ(tandem_cuda_matmul(&p, nullptr), TANDEM_CUDA_UNSUPPORTED);
  p.dtype = TANDEM_CUDA_F32;
  p.out_dtype = TANDEM_CUDA_BF16;
  EXPECT_EQ(tandem_cuda_matmul(&p, nullptr), TANDEM_CUDA_UNSUPPORTED);
  p.dtype = p.out_dtype = TANDEM_CUDA_F64;
  p.activation = TANDEM_CUDA_ACTIVATION_RELU;
  EXPECT_EQ(tandem_cuda_matmul(&p, nullptr), TANDEM_CUDA_UNSUPPORTED);
  p.dtype = p.out_dtype = TANDEM_CUDA_BF16;
  p.b2 = &p;
  EXPECT_EQ(tandem_cuda_matmul(&p, nullptr), TANDEM_CUDA_UNSUPPORTED);
  p.activation = 0;
  p.transpose_a = 1;
  EXPECT_EQ(tandem_cuda_matmul(&p, nullptr), TANDEM_CUDA_UNSUPPORTED);
  p.transpose_a = 0;
  EXPECT_EQ(tandem_cuda_matmul(&p, nullptr), 0);  // of nothing
}

}  // namespace
}  // namespace tandem::cuda::testing
