// Elementwise kernels against double-precision formulas, and their promise that an element's bits
// depend on its operands alone.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/cpu/kernels/elementwise.h"
#include "engine/base/threads.h"

namespace tandem::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

using Floats = std::vector<float>;

double SigmoidOf(double x) { return 1 / (1 + std::exp(-x)); }
double GeluTanhOf(double x) {
  return x * SigmoidOf(2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
}
double GeluOf(double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }
double SiluOf(double x) { return x * SigmoidOf(x); }

struct UnaryCase {
  const char* name;
  Unary op;
  double low, high;          // the range swept
  double ulps, absolute;     // either suffices
  double (*oracle)(double);  // exact to double
};

// ulps hold for the FMA targets and, with the absolute bound, for the others.
const UnaryCase kUnaryCases[] = {
    {"neg", Unary::kNeg, -9, 9, 0, 0, [](double x) { return -x; }},
    {"abs", Unary::kAbs, -9, 9, 0, 0, [](double x) { return std::fabs(x); }},
    {"sign", Unary::kSign, -9, 9, 0, 0,
     [](double x) { return std::isnan(x) ? x : static_cast<double>((x > 0) - (x < 0)); }},
    {"exp", Unary::kExp, -104, 89, 1.01, 0, [](double x) { return std::exp(x); }},
    {"log", Unary::kLog, 0, 4, 2, 0, [](double x) { return std::log(x); }},
    {"log large", Unary::kLog, 1, 3e38, 2, 0, [](double x) { return std::log(x); }},
    {"sqrt", Unary::kSqrt, 0, 100, 0.5, 0, [](double x) { return std::sqrt(x); }},
    {"rsqrt", Unary::kRsqrt, 0.001, 100, 1.5, 0, [](double x) { return 1 / std::sqrt(x); }},
    {"reciprocal", Unary::kReciprocal, -7, 7, 0.5, 0, [](double x) { return 1 / x; }},
    {"tanh", Unary::kTanh, -10, 10, 3, 0, [](double x) { return std::tanh(x); }},
    {"tanh small", Unary::kTanh, -1e-3, 1e-3, 3, 0, [](double x) { return std::tanh(x); }},
    {"sigmoid", Unary::kSigmoid, -87, 30, 3, 0, SigmoidOf},
    {"erf", Unary::kErf, -5, 5, 3, 0, [](double x) { return std::erf(x); }},
    {"erf small", Unary::kErf, -1e-3, 1e-3, 3, 0, [](double x) { return std::erf(x); }},
    {"relu", Unary::kRelu, -9, 9, 0, 0, [](double x) { return x < 0 ? 0 : x; }},
    {"gelu", Unary::kGelu, -1, 10, 4, 3e-8, GeluOf},
    {"gelu tail", Unary::kGelu, -5, -1, 200, 0, GeluOf},  // relative digits, where 1 + erf has none
    {"gelu tanh", Unary::kGeluTanh, -3, 10, 10, 1e-8, GeluTanhOf},
    {"silu", Unary::kSilu, -80, 30, 4, 0, SiluOf},
    {"softplus", Unary::kSoftplus, -80, 30, 3, 0,
     [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }},
    {"sin", Unary::kSin, -100, 100, 3, 1e-7, [](double x) { return std::sin(x); }},
    {"cos", Unary::kCos, -100, 100, 3, 1e-7, [](double x) { return std::cos(x); }},
    {"sin far", Unary::kSin, -1e6, 1e6, 3, 1e-6, [](double x) { return std::sin(x); }},
    {"cos far", Unary::kCos, -1e6, 1e6, 3, 1e-6, [](double x) { return std::cos(x); }},
    {"floor", Unary::kFloor, -9, 9, 0, 0, [](double x) { return std::floor(x); }},
    {"ceil", Unary::kCeil, -9, 9, 0, 0, [](double x) { return std::ceil(x); }},
    {"round", Unary::kRound, -9, 9, 0, 0, [](double x) { return std::nearbyint(x); }},
    {"square", Unary::kSquare, -9, 9, 0.5, 0, [](double x) { return x * x; }},
    {"log1p", Unary::kLog1p, -0.999, 1e6, 3, 0, [](double x) { return std::log1p(x); }},
    {"log1p small", Unary::kLog1p, -1e-3, 1e-3, 3, 0, [](double x) { return std::log1p(x); }},
    {"expm1", Unary::kExpm1, -20, 88.5, 3, 0, [](double x) { return std::expm1(x); }},
    {"expm1 small", Unary::kExpm1, -1e-3, 1e-3, 3, 0, [](double x) { return std::expm1(x); }},
};

// |got - want| in units of want's last f32 place.
double Ulps(float got, double want) {
  const float w = std::fabs(static_cast<float>(want));
  const float next = std::nextafter(w, kInf);
  const double ulp = std::isinf(next) ? static_cast<double>(w) - std::nextafter(w, 0.0f)
                                      : static_cast<double>(next) - w;
  return std::fabs(static_cast<double>(got) - want) / ulp;
}

// Both NaN, the same infinity or zero, or near enough.
bool Near(float got, double want, double ulps, double absolute) {
  const float w = static_cast<float>(want);
  if (std::isnan(w)) return std::isnan(got);
  if (std::isinf(w) || std::isinf(got)) return got == w;
  return Ulps(got, want) <= ulps || std::fabs(got - want) <= absolute;
}

Floats Uniform(size_t n, float low, float high, uint32_t seed = 1) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<float> draw(low, high);
  Floats x(n);
  for (float& v : x) v = draw(rng);
  return x;
}

bool SameBits(const float* a, const float* b, size_t n) {
  return std::memcmp(a, b, n * sizeof(float)) == 0;
}

// f(1 thread) and f(2 threads) leave the same bits in what they return.
template <class F>
void ExpectSameForAnyThreads(F f) {
  const int before = ThreadCount();
  SetThreadCount(1);
  const Floats one = f();
  SetThreadCount(2);
  const Floats two = f();
  SetThreadCount(before);
  ASSERT_EQ(one.size(), two.size());
  EXPECT_TRUE(SameBits(one.data(), two.data(), one.size()));
}

TEST(UnaryTest, MatchesDoubleOverItsRange) {
  for (const UnaryCase& c : kUnaryCases) {
    const Floats x = Uniform(30000, static_cast<float>(c.low), static_cast<float>(c.high));
    Floats y(x.size());
    RunUnary(c.op, x.data(), y.data(), static_cast<int64_t>(x.size()));
    double worst = 0;
    float at = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = c.oracle(x[i]);
      if (!Near(y[i], want, c.ulps, c.absolute) && Ulps(y[i], want) > worst) {
        worst = Ulps(y[i], want);
        at = x[i];
      }
    }
    EXPECT_EQ(worst, 0) << c.name << "(" << at << ") is off by " << worst << " ulp";
  }
}

TEST(UnaryTest, SpecialValues) {
  const float max = std::numeric_limits<float>::max();
  const Floats x = {0.0f,   -0.0f, kInf,   -kInf,  kNaN,    1e-40f, -1e-40f, max,   -max,  40.0f,
                    -40.0f, 1e4f,  -1e4f,  89.0f,  -104.0f, 0.5f,   1.5f,    2.5f,  -0.5f, -2.5f,
                    8.5e6f, 1e30f, -1e30f, 103.9f, -103.9f, 1e-8f,  -1e-8f,  1e20f, -88.5f};
  for (const UnaryCase& c : kUnaryCases) {
    if (std::string_view(c.name).find("tail") != std::string_view::npos) continue;
    Floats y(x.size());
    RunUnary(c.op, x.data(), y.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = c.oracle(x[i]);
      // Far arguments and tails that vanish: absolute.
      EXPECT_TRUE(Near(y[i], want, c.ulps + 1, std::max(c.absolute, 2e-38)))
          << c.name << "(" << x[i] << ") = " << y[i] << ", not " << want;
    }
  }
}

TEST(UnaryTest, BitsDependOnTheElementAlone) {
  const Floats x = Uniform(140, -6, 6);
  for (const UnaryCase& c : kUnaryCases) {
    Floats alone(x.size());
    for (size_t i = 0; i < x.size(); ++i) RunUnary(c.op, &x[i], &alone[i], 1);
    for (size_t n = 1; n <= 70; ++n) {
      const size_t offset = n % 13;
      Floats y(n + 2, 77.0f);
      RunUnary(c.op, x.data() + offset, y.data() + 1, static_cast<int64_t>(n));
      ASSERT_TRUE(SameBits(y.data() + 1, alone.data() + offset, n)) << c.name << " n=" << n;
      ASSERT_EQ(y.front(), 77.0f);
      ASSERT_EQ(y.back(), 77.0f) << c.name << " wrote past the end";
      Floats in_place(x.begin(), x.begin() + static_cast<int64_t>(n));
      RunUnary(c.op, in_place.data(), in_place.data(), static_cast<int64_t>(n));
      ASSERT_TRUE(SameBits(in_place.data(), alone.data(), n)) << c.name << " in place";
    }
  }
}

TEST(UnaryTest, ThreadsChangeNothing) {
  const Floats x = Uniform(100003, -20, 20);
  for (const Unary op : {Unary::kGelu, Unary::kTanh, Unary::kSin, Unary::kLog}) {
    ExpectSameForAnyThreads([&] {
      Floats y(x.size());
      RunUnary(op, x.data(), y.data(), static_cast<int64_t>(x.size()));
      return y;
    });
  }
}

TEST(UnaryTest, EmptyDoesNothing) {
  RunUnary(Unary::kExp, nullptr, nullptr, 0);
  RunBinary(Binary::kPow, nullptr, nullptr, nullptr, 0);
  RunBinaryRows(Binary::kAdd, nullptr, nullptr, Side::kLeft, nullptr, 0, 5);
  RunBinaryColumns(Binary::kAdd, nullptr, nullptr, Side::kLeft, nullptr, 5, 0);
}

struct GradCase {
  const char* name;
  UnaryGrad op;
  double (*f)(double);
};
const GradCase kGradCases[] = {
    {"gelu", UnaryGrad::kGelu, GeluOf},
    {"gelu tanh", UnaryGrad::kGeluTanh, GeluTanhOf},
    {"silu", UnaryGrad::kSilu, SiluOf},
    {"relu", UnaryGrad::kRelu, [](double x) { return std::max(x, 0.0); }},
};

TEST(UnaryGradTest, MatchesCentralDifferences) {
  for (const GradCase& c : kGradCases) {
    Floats x = Uniform(5000, -9, 9);
    x.insert(x.end(), {40, -40, 11.9f, -12.1f, 1e4f, -1e4f});
    const Floats dy = Uniform(x.size(), -2, 2, 7);
    Floats dx(x.size());
    RunUnaryGrad(c.op, x.data(), dy.data(), dx.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double h = 1e-5;
      const double want = dy[i] * (c.f(x[i] + h) - c.f(x[i] - h)) / (2 * h);
      ASSERT_NEAR(dx[i], want, 1e-6) << c.name << "'(" << x[i] << ")";
    }
  }
}

TEST(UnaryGradTest, FarArgumentsAndNaN) {
  const Floats x = {1e30f, -1e30f, 3e38f, -3e38f, 0.0f, kNaN};
  const Floats dy(x.size(), 2.0f);
  for (const GradCase& c : kGradCases) {
    Floats dx(x.size());
    RunUnaryGrad(c.op, x.data(), dy.data(), dx.data(), static_cast<int64_t>(x.size()));
    EXPECT_FLOAT_EQ(dx[0], 2.0f) << c.name;
    EXPECT_NEAR(dx[1], 0, 1e-30) << c.name;
    EXPECT_FLOAT_EQ(dx[2], 2.0f) << c.name;
    EXPECT_NEAR(dx[3], 0, 1e-30) << c.name;
    EXPECT_EQ(dx[4], c.op == UnaryGrad::kRelu ? 0.0f : 1.0f) << c.name;
    EXPECT_EQ(std::isnan(dx[5]), c.op != UnaryGrad::kRelu) << c.name;
  }
}

TEST(UnaryGradTest, BitsDependOnTheElementAlone) {
  const Floats x = Uniform(70, -6, 6), dy = Uniform(70, -1, 1, 2);
  for (const GradCase& c : kGradCases) {
    for (size_t n = 1; n <= 70; ++n) {
      Floats dx(dy.begin(), dy.begin() + static_cast<int64_t>(n));  // over dy
      RunUnaryGrad(c.op, x.data(), dx.data(), dx.data(), static_cast<int64_t>(n));
      float last;
      RunUnaryGrad(c.op, &x[n - 1], &dy[n - 1], &last, 1);
      ASSERT_TRUE(SameBits(&last, &dx[n - 1], 1)) << c.name << " n=" << n;
    }
  }
}

struct BinaryCase {
  const char* name;
  Binary op;
  double ulps;
  double (*oracle)(double, double);
};
const BinaryCase kBinaryCases[] = {
    {"add", Binary::kAdd, 0.5, [](double a, double b) { return a + b; }},
    {"sub", Binary::kSub, 0.5, [](double a, double b) { return a - b; }},
    {"mul", Binary::kMul, 0.5, [](double a, double b) { return a * b; }},
    {"div", Binary::kDiv, 0.5, [](double a, double b) { return a / b; }},
    {"max", Binary::kMax, 0, [](double a, double b) { return std::isnan(a) || a > b ? a : b; }},
    {"min", Binary::kMin, 0, [](double a, double b) { return std::isnan(a) || a < b ? a : b; }},
    {"pow", Binary::kPow, 0.51, [](double a, double b) { return std::pow(a, b); }},
};

TEST(BinaryTest, MatchesDouble) {
  const Floats a = Uniform(20000, 0.01f, 9), b = Uniform(20000, -9, 9, 5);
  for (const BinaryCase& c : kBinaryCases) {
    Floats out(a.size());
    RunBinary(c.op, a.data(), b.data(), out.data(), static_cast<int64_t>(a.size()));
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_TRUE(Near(out[i], c.oracle(a[i], b[i]), c.ulps, 0))
          << c.name << "(" << a[i] << ", " << b[i] << ") = " << out[i];
    }
  }
}

TEST(BinaryTest, SpecialPairs) {
  const Floats values = {0.0f,   -0.0f,  1.0f,   -1.0f, 2.0f,  -2.0f,      0.5f,
                         -0.5f,  3.0f,   -3.0f,  kInf,  -kInf, kNaN,       1e30f,
                         -1e30f, 1e-30f, 1e-40f, 33.0f, -8.5f, 16777217.0f};
  Floats a, b;
  for (const float x : values) {
    for (const float y : values) a.push_back(x), b.push_back(y);
  }
  for (const BinaryCase& c : kBinaryCases) {
    Floats out(a.size());
    RunBinary(c.op, a.data(), b.data(), out.data(), static_cast<int64_t>(a.size()));
    for (size_t i = 0; i < a.size(); ++i) {
      const bool either_nan = std::isnan(a[i]) || std::isnan(b[i]);
      const double want = either_nan && c.op != Binary::kPow ? kNaN : c.oracle(a[i], b[i]);
      EXPECT_TRUE(Near(out[i], want, c.ulps, 0))
          << c.name << "(" << a[i] << ", " << b[i] << ") = " << out[i] << ", not " << want;
      if (c.op == Binary::kPow && want == 0) {
        EXPECT_EQ(std::signbit(out[i]), std::signbit(want)) << a[i] << "^" << b[i];
      }
    }
  }
}

TEST(BinaryTest, BroadcastFormsEqualTheExpandedOnes) {
  for (const BinaryCase& c : kBinaryCases) {
    for (const auto& [outer, inner] : {std::pair<int64_t, int64_t>{1, 1},
                                       {7, 1},
                                       {1, 9},
                                       {5, 3},
                                       {40, 70},
                                       {3, 255},
                                       {2, 256},
                                       {3, 300},
                                       {700, 5},
                                       {2, 20000}}) {
      const size_t n = static_cast<size_t>(outer * inner);
      const Floats x = Uniform(n, -3, 3);
      const Floats row = Uniform(static_cast<size_t>(inner), -3, 3, 2);
      const Floats column = Uniform(static_cast<size_t>(outer), -3, 3, 3);
      Floats rows(n), columns(n), ones(n, 1.75f);
      for (size_t i = 0; i < n; ++i) {
        rows[i] = row[i % static_cast<size_t>(inner)];
        columns[i] = column[i / static_cast<size_t>(inner)];
      }
      for (const Side side : {Side::kLeft, Side::kRight}) {
        Floats want(n), got(n);
        const auto expand = [&](const Floats& other) {
          const bool right = side == Side::kRight;
          RunBinary(c.op, right ? x.data() : other.data(), right ? other.data() : x.data(),
                    want.data(), outer * inner);
        };
        const std::string what = std::string(c.name) + " (" + std::to_string(outer) + "," +
                                 std::to_string(inner) + ") side " +
                                 std::to_string(static_cast<int>(side));
        expand(rows);
        RunBinaryRows(c.op, x.data(), row.data(), side, got.data(), outer, inner);
        EXPECT_TRUE(SameBits(got.data(), want.data(), n)) << what << " rows";
        expand(columns);
        got = x;  // in place
        RunBinaryColumns(c.op, got.data(), column.data(), side, got.data(), outer, inner);
        EXPECT_TRUE(SameBits(got.data(), want.data(), n)) << what << " columns";
        expand(ones);
        RunBinaryScalar(c.op, x.data(), 1.75f, side, got.data(), outer * inner);
        EXPECT_TRUE(SameBits(got.data(), want.data(), n)) << what << " scalar";
      }
    }
  }
}

TEST(BinaryTest, SquareByPowIsExactInEveryForm) {
  const Floats x = Uniform(1000, -50, 50), two(1000, 2.0f);
  Floats square(1000), by_scalar(1000), by_array(1000);
  RunUnary(Unary::kSquare, x.data(), square.data(), 1000);
  RunBinaryScalar(Binary::kPow, x.data(), 2.0f, Side::kRight, by_scalar.data(), 1000);
  RunBinary(Binary::kPow, x.data(), two.data(), by_array.data(), 1000);
  EXPECT_TRUE(SameBits(square.data(), by_scalar.data(), 1000));
  EXPECT_TRUE(SameBits(square.data(), by_array.data(), 1000));
}

TEST(BinaryTest, ThreadsAndPlaceChangeNothing) {
  const Floats a = Uniform(50001, -3, 3), b = Uniform(50001, -3, 3, 9);
  for (const BinaryCase& c : kBinaryCases) {
    ExpectSameForAnyThreads([&] {
      Floats out(a.size());
      RunBinary(c.op, a.data(), b.data(), out.data(), static_cast<int64_t>(a.size()));
      return out;
    });
    for (size_t n = 1; n <= 70; ++n) {
      Floats out(n), last(1);
      RunBinary(c.op, a.data(), b.data(), out.data(), static_cast<int64_t>(n));
      RunBinary(c.op, &a[n - 1], &b[n - 1], last.data(), 1);
      ASSERT_TRUE(SameBits(&out[n - 1], last.data(), 1)) << c.name << " n=" << n;
    }
  }
}

TEST(SwiGluTest, ForwardAndBackwardMatchDouble) {
  for (const size_t n : {size_t{1}, size_t{15}, size_t{33}, size_t{5000}, size_t{40000}}) {
    const Floats gate = Uniform(n, -12, 12), up = Uniform(n, -3, 3, 2), dy = Uniform(n, -2, 2, 3);
    Floats out(n), dgate = gate, dup = up;  // written over the inputs
    SwiGlu(gate.data(), up.data(), out.data(), static_cast<int64_t>(n));
    SwiGluBackward(dgate.data(), dup.data(), dy.data(), dgate.data(), dup.data(),
                   static_cast<int64_t>(n));
    for (size_t i = 0; i < n; ++i) {
      const double h = 1e-5;
      ASSERT_NEAR(out[i], SiluOf(gate[i]) * up[i], 1e-5);
      ASSERT_NEAR(dup[i], dy[i] * SiluOf(gate[i]), 1e-5);
      const double slope = (SiluOf(gate[i] + h) - SiluOf(gate[i] - h)) / (2 * h);
      ASSERT_NEAR(dgate[i], dy[i] * up[i] * slope, 3e-6);
    }
  }
}

TEST(AxpyTest, MatchesDoubleAndAddTo) {
  for (size_t n = 1; n <= 70; ++n) {
    const Floats x = Uniform(n, -3, 3), y = Uniform(n, -3, 3, 2);
    Floats scaled = y, added = y;
    Axpy(-0.37f, x.data(), scaled.data(), static_cast<int64_t>(n));
    AddTo(x.data(), added.data(), static_cast<int64_t>(n));
    for (size_t i = 0; i < n; ++i) {
      ASSERT_NEAR(scaled[i], y[i] - double{0.37f} * x[i], 3e-7);
      ASSERT_EQ(added[i], x[i] + y[i]);
    }
  }
}

// Every 16-bit pattern widens as dtype.h widens it.
TEST(ConvertTest, WideningIsDtypesForEveryPattern) {
  std::vector<BF16> bf16(65536);
  std::vector<F16> f16(65536);
  for (size_t i = 0; i < 65536; ++i) bf16[i].bits = f16[i].bits = static_cast<uint16_t>(i);
  Floats from_bf16(65536), from_f16(65536);
  ConvertBF16ToF32(bf16.data(), from_bf16.data(), 65536);
  ConvertF16ToF32(f16.data(), from_f16.data(), 65536);
  for (size_t i = 0; i < 65536; ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(from_bf16[i]),
              std::bit_cast<uint32_t>(static_cast<float>(bf16[i])));
    ASSERT_EQ(std::bit_cast<uint32_t>(from_f16[i]),
              std::bit_cast<uint32_t>(static_cast<float>(f16[i])))
        << std::hex << i;
  }
}

TEST(ConvertTest, NarrowingIsDtypes) {
  Floats x;
  for (uint64_t u = 0; u < (uint64_t{1} << 32); u += 9973) {
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(u)));
  }
  // Halfway cases and their neighbours, for both formats.
  for (uint32_t u = 0; u < 65536; ++u) {
    for (const uint32_t below : {0x7fffu, 0x8000u, 0x8001u}) {
      x.push_back(std::bit_cast<float>((u << 16) | below));
    }
    F16 h;
    h.bits = static_cast<uint16_t>(u);
    const uint32_t widened = std::bit_cast<uint32_t>(static_cast<float>(h));
    for (const uint32_t up : {0xfffu, 0x1000u, 0x1001u}) {
      x.push_back(std::bit_cast<float>(widened + up));
    }
  }
  std::vector<BF16> bf16(x.size());
  std::vector<F16> f16(x.size());
  ConvertF32ToBF16(x.data(), bf16.data(), static_cast<int64_t>(x.size()));
  ConvertF32ToF16(x.data(), f16.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(bf16[i].bits, BF16(x[i]).bits) << std::hex << std::bit_cast<uint32_t>(x[i]);
    ASSERT_EQ(f16[i].bits, F16(x[i]).bits) << std::hex << std::bit_cast<uint32_t>(x[i]);
  }
}

TEST(ConvertTest, ShortArraysAndTheirEnds) {
  const Floats x = Uniform(70, -9, 9);
  for (int64_t n = 1; n <= 70; ++n) {
    std::vector<BF16> bf16(static_cast<size_t>(n) + 1);
    std::vector<F16> f16(static_cast<size_t>(n) + 1);
    bf16.back().bits = f16.back().bits = 0xabcd;
    ConvertF32ToBF16(x.data(), bf16.data(), n);
    ConvertF32ToF16(x.data(), f16.data(), n);
    Floats back(static_cast<size_t>(n) + 1, 77.0f);
    ConvertF16ToF32(f16.data(), back.data(), n);
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      ASSERT_EQ(bf16[i].bits, BF16(x[i]).bits);
      ASSERT_EQ(f16[i].bits, F16(x[i]).bits);
      ASSERT_EQ(back[i], static_cast<float>(F16(x[i])));
    }
    ASSERT_EQ(bf16.back().bits, 0xabcd);
    ASSERT_EQ(f16.back().bits, 0xabcd);
    ASSERT_EQ(back.back(), 77.0f);
  }
}

}  // namespace
}  // namespace tandem::cpu
