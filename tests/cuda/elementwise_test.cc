// The elementwise kernels against double precision.
#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "engine/tensor/dispatch.h"
#include "tests/cuda/device_array.h"

namespace tandem::cuda::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Extended precision: what double makes of the arguments would be amplified in the tails.
double Sigmoid(double x) {
  return static_cast<double>(1 / (1 + std::exp(-static_cast<long double>(x))));
}
double Gelu(double x) {
  return static_cast<double>(x * 0.5L * std::erfc(-x * 0.70710678118654752440084L));
}
double GeluTanh(double x) {
  const long double u = 1.59576912160573071175978L * (x + 0.044715L * x * x * x);
  return static_cast<double>(x / (1 + std::exp(-u)));
}

struct UnaryCase {
  int op;
  double (*f)(double);
  double ulps;           // of f32's arithmetic
  bool specials = true;  // infinities and NaN follow f
};
const std::vector<UnaryCase>& UnaryCases() {
  static const auto* const cases = new std::vector<UnaryCase>{
      {TANDEM_CUDA_UNARY_Neg, [](double x) { return -x; }, 0},
      {TANDEM_CUDA_UNARY_Abs, [](double x) { return std::fabs(x); }, 0},
      {TANDEM_CUDA_UNARY_Sign,
       [](double x) { return std::isnan(x) ? x : double(x > 0) - double(x < 0); }, 0},
      {TANDEM_CUDA_UNARY_Exp, [](double x) { return std::exp(x); }, 2},
      {TANDEM_CUDA_UNARY_Log, [](double x) { return std::log(x); }, 2},
      {TANDEM_CUDA_UNARY_Sqrt, [](double x) { return std::sqrt(x); }, 1},
      {TANDEM_CUDA_UNARY_Rsqrt, [](double x) { return 1 / std::sqrt(x); }, 2},
      {TANDEM_CUDA_UNARY_Reciprocal, [](double x) { return 1 / x; }, 1},
      {TANDEM_CUDA_UNARY_Tanh, [](double x) { return std::tanh(x); }, 2},
      {TANDEM_CUDA_UNARY_Sigmoid, Sigmoid, 3},
      {TANDEM_CUDA_UNARY_Erf, [](double x) { return std::erf(x); }, 2},
      {TANDEM_CUDA_UNARY_Relu, [](double x) { return x < 0 ? 0 : x; }, 0},
      {TANDEM_CUDA_UNARY_Gelu, Gelu, 100, false},
      {TANDEM_CUDA_UNARY_GeluTanh, GeluTanh, 100, false},
      {TANDEM_CUDA_UNARY_Silu, [](double x) { return x * Sigmoid(x); }, 4, false},
      {TANDEM_CUDA_UNARY_Softplus,
       [](double x) { return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))) + 0 * x; }, 3,
       false},
      {TANDEM_CUDA_UNARY_Sin, [](double x) { return std::sin(x); }, 2},
      {TANDEM_CUDA_UNARY_Cos, [](double x) { return std::cos(x); }, 2},
      {TANDEM_CUDA_UNARY_Floor, [](double x) { return std::floor(x); }, 0},
      {TANDEM_CUDA_UNARY_Ceil, [](double x) { return std::ceil(x); }, 0},
      {TANDEM_CUDA_UNARY_Round, [](double x) { return std::nearbyint(x); }, 0},
      {TANDEM_CUDA_UNARY_Square, [](double x) { return x * x; }, 1},
      {TANDEM_CUDA_UNARY_Log1p, [](double x) { return std::log1p(x); }, 2},
      {TANDEM_CUDA_UNARY_Expm1, [](double x) { return std::expm1(x); }, 2},
  };
  return *cases;
}
constexpr double kSpecials[] = {0,    -0.0,  0.5,       1.5,        2.5, -2.5,
                                1e30, -1e30, kInfinity, -kInfinity, kNaN};

template <typename T>
double Value(T x) {
  return ConvertElement<double>(x);
}
// The distance from x to its neighbour in T, of results that were computed in R.
template <typename T>
double Ulp(double x) {
  const double least = std::is_same_v<T, F16>      ? 0x1p-24
                       : std::is_same_v<T, BF16>   ? 0x1p-133
                       : std::is_same_v<T, double> ? 0x1p-1074
                                                   : 0x1p-149;
  const int digits = std::is_same_v<T, double>  ? 53
                     : std::is_same_v<T, float> ? 24
                     : std::is_same_v<T, F16>   ? 11
                                                : 8;
  return std::fmax(std::ldexp(1.0, std::ilogb(x == 0 ? least : x) + 1 - digits), least);
}

// got is `want` rounded to T, after an error of `ulps` of the arithmetic's type.
template <typename T>
void ExpectClose(T got, double want, double ulps, const std::string& what) {
  const double y = Value(got), rounded = Value(ConvertElement<T>(want));
  if (std::isnan(want)) {
    EXPECT_TRUE(std::isnan(y)) << what << ": " << y;
  } else if (std::isinf(rounded)) {
    EXPECT_EQ(y, rounded) << what;
  } else if (rounded == 0) {
    EXPECT_LE(std::fabs(y - rounded), ulps * Ulp<T>(0)) << what << ": " << y;
  } else {
    const double allowed =
        kIsHalf<T> ? 0.5 * Ulp<T>(want) + ulps * Ulp<float>(want) : (0.501 + ulps) * Ulp<T>(want);
    EXPECT_LE(std::fabs(y - want), allowed) << what << ": " << y << ", expected " << want;
  }
}

template <typename T>
std::vector<T> Inputs(int64_t n, double scale, uint64_t seed, bool specials) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, scale);
  std::vector<T> x(n);
  for (int64_t i = 0; i < n; ++i) {
    const double v = specials && i < 11 ? kSpecials[i] : normal(random);
    x[i] = ConvertElement<T>(v);
  }
  return x;
}

template <typename T>
class FloatTest : public ::testing::Test {};
using Floats = ::testing::Types<float, double, F16, BF16>;
TYPED_TEST_SUITE(FloatTest, Floats);

TYPED_TEST(FloatTest, Unary) {
  using T = TypeParam;
  for (const UnaryCase& c : UnaryCases()) {
    for (const int64_t n : {1, 7, 31, 1033}) {
      const std::vector<T> x = Inputs<T>(n, 3, 17, c.specials);
      const DeviceArray<T> in(x), out(n);
      ASSERT_EQ(
          tandem_cuda_unary(c.op, static_cast<int>(TypeOf<T>()), out.get(), in.get(), n, nullptr),
          0);
      const std::vector<T> y = out.Get();
      for (int64_t i = 0; i < n; ++i) {
        ExpectClose<T>(y[i], c.f(Value(x[i])), c.ulps,
                       "op " + std::to_string(c.op) + " of " + std::to_string(Value(x[i])));
      }
    }
  }
}

// In tails, where e^x over- and underflows, every result stays a number.
TYPED_TEST(FloatTest, GatesSaturate) {
  using T = TypeParam;
  const std::vector<T> x = {ConvertElement<T>(-900.0), ConvertElement<T>(-90.0),
                            ConvertElement<T>(90.0), ConvertElement<T>(900.0)};
  const DeviceArray<T> in(x), one(std::vector<T>(4, ConvertElement<T>(1.0))), out(4);
  for (int op : {TANDEM_CUDA_UNARY_Sigmoid, TANDEM_CUDA_UNARY_Gelu, TANDEM_CUDA_UNARY_GeluTanh,
                 TANDEM_CUDA_UNARY_Silu, TANDEM_CUDA_UNARY_Softplus}) {
    ASSERT_EQ(tandem_cuda_unary(op, static_cast<int>(TypeOf<T>()), out.get(), in.get(), 4, nullptr),
              0);
    const std::vector<T> y = out.Get();
    for (int i = 0; i < 4; ++i) {
      const double v = Value(x[i]), want = v < 0 ? 0 : op == TANDEM_CUDA_UNARY_Sigmoid ? 1 : v;
      EXPECT_NEAR(Value(y[i]), want, 1e-30) << op << " of " << v;
    }
  }
  for (int op = 0; op < TANDEM_CUDA_UNARY_GRAD_COUNT; ++op) {
    ASSERT_EQ(tandem_cuda_unary_grad(op, static_cast<int>(TypeOf<T>()), out.get(), in.get(),
                                     one.get(), 4, nullptr),
              0);
    const std::vector<T> y = out.Get();
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(Value(y[i]), i >= 2, 1e-30) << op << " at " << i;
  }
}

TYPED_TEST(FloatTest, UnaryGradIsTheSlope) {
  using T = TypeParam;
  const double tolerance = std::is_same_v<T, double>  ? 1e-8
                           : std::is_same_v<T, float> ? 1e-6
                           : std::is_same_v<T, F16>   ? 2e-3
                                                      : 1.2e-2;
  double (*const functions[])(double) = {[](double x) { return x < 0 ? 0 : x; }, Gelu, GeluTanh,
                                         [](double x) { return x * Sigmoid(x); }};
  for (int op = 0; op < TANDEM_CUDA_UNARY_GRAD_COUNT; ++op) {
    for (const int64_t n : {1, 9, 515}) {
      const std::vector<T> x = Inputs<T>(n, 2, 3, false), dy = Inputs<T>(n, 1, 4, false);
      const DeviceArray<T> in(x), cotangent(dy), out(n);
      ASSERT_EQ(tandem_cuda_unary_grad(op, static_cast<int>(TypeOf<T>()), out.get(), in.get(),
                                       cotangent.get(), n, nullptr),
                0);
      const std::vector<T> dx = out.Get();
      constexpr double h = 1e-6;
      for (int64_t i = 0; i < n; ++i) {
        const double v = Value(x[i]);
        if (std::fabs(v) < h) continue;
        const double slope = (functions[op](v + h) - functions[op](v - h)) / (2 * h);
        const double want = Value(dy[i]) * slope;
        EXPECT_NEAR(Value(dx[i]), want, tolerance * std::fmax(1, std::fabs(want)))
            << op << " " << v;
      }
    }
  }
}

TYPED_TEST(FloatTest, SwiGluAndItsGradient) {
  using T = TypeParam;
  const auto dtype = static_cast<int>(TypeOf<T>());
  for (const int64_t n : {1, 8, 33, 1000}) {
    const std::vector<T> gate = Inputs<T>(n, 2, 1, false), up = Inputs<T>(n, 1, 2, false),
                         dy = Inputs<T>(n, 1, 3, false);
    const DeviceArray<T> g(gate), u(up), d(dy), out(n), dgate(n), dup(n);
    if (std::is_same_v<T, double>) {
      EXPECT_EQ(tandem_cuda_swiglu(dtype, out.get(), g.get(), u.get(), n, nullptr),
                TANDEM_CUDA_UNSUPPORTED);
      return;
    }
    ASSERT_EQ(tandem_cuda_swiglu(dtype, out.get(), g.get(), u.get(), n, nullptr), 0);
    ASSERT_EQ(tandem_cuda_swiglu_grad(dtype, dgate.get(), dup.get(), g.get(), u.get(), d.get(), n,
                                      nullptr),
              0);
    const std::vector<T> y = out.Get(), dg = dgate.Get(), du = dup.Get();
    for (int64_t i = 0; i < n; ++i) {
      const double a = Value(gate[i]), b = Value(up[i]), c = Value(dy[i]), s = Sigmoid(a);
      ExpectClose<T>(y[i], a * s * b, 6, "swiglu");
      ExpectClose<T>(du[i], a * s * c, 6, "dup");
      const double want = c * b * s * (1 + a * (1 - s));
      EXPECT_NEAR(Value(dg[i]), want,
                  (kIsHalf<T> ? 0.5 * Ulp<T>(want) : 0) + 1e-6 * std::fmax(1, std::fabs(want)));
    }
  }
}

struct BinaryCase {
  int op;
  double (*f)(double, double);
  double ulps;
};
const std::vector<BinaryCase>& BinaryCases() {
  static const auto* const cases = new std::vector<BinaryCase>{
      {TANDEM_CUDA_BINARY_Add, [](double a, double b) { return a + b; }, 0},
      {TANDEM_CUDA_BINARY_Sub, [](double a, double b) { return a - b; }, 0},
      {TANDEM_CUDA_BINARY_Mul, [](double a, double b) { return a * b; }, 0},
      {TANDEM_CUDA_BINARY_Div, [](double a, double b) { return a / b; }, 0},
      {TANDEM_CUDA_BINARY_Pow, [](double a, double b) { return std::pow(a, b); }, 4},
      {TANDEM_CUDA_BINARY_Max,
       [](double a, double b) { return std::isnan(a) || std::isnan(b) ? kNaN : std::fmax(a, b); },
       0},
      {TANDEM_CUDA_BINARY_Min,
       [](double a, double b) { return std::isnan(a) || std::isnan(b) ? kNaN : std::fmin(a, b); },
       0},
      {TANDEM_CUDA_BINARY_Mod, [](double a, double b) { return std::fmod(a, b); }, 0},
      {TANDEM_CUDA_BINARY_Equal, [](double a, double b) { return double(a == b); }, 0},
      {TANDEM_CUDA_BINARY_Less, [](double a, double b) { return double(a < b); }, 0},
      {TANDEM_CUDA_BINARY_LessOrEqual, [](double a, double b) { return double(a <= b); }, 0},
  };
  return *cases;
}

// A loop over `sizes` whose operands are dense but for the dimensions in their mask, along which
// they are broadcast; elements[k] is what operand k needs.
struct Broadcast {
  tandem_cuda_loop loop = {};
  std::vector<int64_t> elements;

  Broadcast(const std::vector<int64_t>& sizes, const std::vector<unsigned>& stretched) {
    loop.dims = static_cast<int32_t>(sizes.size());
    for (size_t i = 0; i < sizes.size(); ++i) loop.size[i] = sizes[i];
    for (size_t k = 0; k < stretched.size(); ++k) {
      int64_t stride = 1;
      for (size_t i = sizes.size(); i-- > 0;) {
        const bool flat = (stretched[k] >> i & 1) != 0;
        loop.stride[k][i] = flat ? 0 : stride;
        if (!flat) stride *= sizes[i];
      }
      elements.push_back(stride);
    }
  }
  // Operand k's element at the i-th position.
  int64_t At(int k, int64_t i) const {
    int64_t offset = 0;
    for (int d = loop.dims - 1; d >= 0; --d) {
      offset += i % loop.size[d] * loop.stride[k][d];
      i /= loop.size[d];
    }
    return offset;
  }
};

std::vector<Broadcast> Broadcasts() {
  std::vector<Broadcast> all;
  all.emplace_back(std::vector<int64_t>{}, std::vector<unsigned>{0, 0, 0});
  all.emplace_back(std::vector<int64_t>{1}, std::vector<unsigned>{0, 0, 0});
  all.emplace_back(std::vector<int64_t>{1037}, std::vector<unsigned>{0, 0, 0});
  all.emplace_back(std::vector<int64_t>{67}, std::vector<unsigned>{0, 0, 1});
  all.emplace_back(std::vector<int64_t>{64}, std::vector<unsigned>{0, 1, 0});
  all.emplace_back(std::vector<int64_t>{9, 24}, std::vector<unsigned>{0, 0, 1});  // rows
  all.emplace_back(std::vector<int64_t>{9, 24}, std::vector<unsigned>{0, 2, 0});  // columns
  all.emplace_back(std::vector<int64_t>{5, 7}, std::vector<unsigned>{0, 1, 2});   // outer product
  all.emplace_back(std::vector<int64_t>{0, 7}, std::vector<unsigned>{0, 1, 0});
  all.emplace_back(std::vector<int64_t>{2, 3, 2, 1, 3, 2, 2, 8},
                   std::vector<unsigned>{0, 0b01010101, 0b00101010});
  all.emplace_back(std::vector<int64_t>{3, 5, 3}, std::vector<unsigned>{0, 0b101, 0b010});
  return all;
}

TYPED_TEST(FloatTest, BinaryBroadcasts) {
  using T = TypeParam;
  for (const Broadcast& c : Broadcasts()) {
    const std::vector<T> a = Inputs<T>(c.elements[1], 3, 5, true),
                         b = Inputs<T>(c.elements[2], 3, 6, false);
    const DeviceArray<T> x(a), y(b);
    for (const BinaryCase& op : BinaryCases()) {
      const bool compares = op.op >= TANDEM_CUDA_BINARY_Equal;
      const DeviceArray<T> out(c.elements[0]);
      const DeviceArray<uint8_t> flags(c.elements[0]);
      ASSERT_EQ(tandem_cuda_binary(op.op, static_cast<int>(TypeOf<T>()),
                                   compares ? static_cast<void*>(flags.get()) : out.get(), x.get(),
                                   y.get(), &c.loop, nullptr),
                0);
      const std::vector<T> z = out.Get();
      const std::vector<uint8_t> flag = flags.Get();
      for (int64_t i = 0; i < (c.loop.dims > 0 && c.loop.size[0] == 0 ? 0 : c.elements[0]); ++i) {
        const double u = Value(a[c.At(1, i)]), v = Value(b[c.At(2, i)]), want = op.f(u, v);
        if (compares) {
          EXPECT_EQ(flag[i], want) << op.op << " " << u << " " << v;
        } else {
          ExpectClose<T>(z[i], want, op.ulps,
                         "op " + std::to_string(op.op) + " of " + std::to_string(u) + ", " +
                             std::to_string(v));
        }
      }
    }
  }
}

TYPED_TEST(FloatTest, NaNOnEitherSideOfMaxAndMin) {
  using T = TypeParam;
  const std::vector<T> a = {ConvertElement<T>(kNaN), ConvertElement<T>(1.0)}, b = {a[1], a[0]};
  const Broadcast c({2}, {0, 0, 0});
  const DeviceArray<T> x(a), y(b), out(2);
  for (int op : {TANDEM_CUDA_BINARY_Max, TANDEM_CUDA_BINARY_Min}) {
    ASSERT_EQ(tandem_cuda_binary(op, static_cast<int>(TypeOf<T>()), out.get(), x.get(), y.get(),
                                 &c.loop, nullptr),
              0);
    for (T v : out.Get()) EXPECT_TRUE(std::isnan(Value(v)));
  }
}

template <typename T>
class IntegerTest : public ::testing::Test {};
using Integers =
    ::testing::Types<int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t>;
TYPED_TEST_SUITE(IntegerTest, Integers);

TYPED_TEST(IntegerTest, UnaryWrapsAround) {
  using T = TypeParam;
  using Limits = std::numeric_limits<T>;
  const std::vector<T> x = {Limits::min(), Limits::max(),      T{0},  T{1},
                            T{7},          static_cast<T>(-3), T{100}};
  const auto n = static_cast<int64_t>(x.size());
  const DeviceArray<T> in(x), out(n);
  const auto dtype = static_cast<int>(TypeOf<T>());
  const auto expect = [&](int op, const std::function<T(T)>& f) {
    ASSERT_EQ(tandem_cuda_unary(op, dtype, out.get(), in.get(), n, nullptr), 0);
    const std::vector<T> y = out.Get();
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(y[i], f(x[i])) << op << " of " << +x[i];
  };
  expect(TANDEM_CUDA_UNARY_Neg,
         [](T v) { return static_cast<T>(uint64_t{0} - static_cast<uint64_t>(v)); });
  expect(TANDEM_CUDA_UNARY_Abs,
         [](T v) { return v < 0 ? static_cast<T>(uint64_t{0} - static_cast<uint64_t>(v)) : v; });
  expect(TANDEM_CUDA_UNARY_Sign, [](T v) { return static_cast<T>((v > 0) - (v < 0)); });
  expect(TANDEM_CUDA_UNARY_Relu, [](T v) { return v < 0 ? T{0} : v; });
  expect(TANDEM_CUDA_UNARY_Square,
         [](T v) { return static_cast<T>(static_cast<uint64_t>(v) * static_cast<uint64_t>(v)); });
  EXPECT_EQ(tandem_cuda_unary(TANDEM_CUDA_UNARY_Exp, dtype, out.get(), in.get(), n, nullptr),
            TANDEM_CUDA_UNSUPPORTED);
}

TYPED_TEST(IntegerTest, BinaryEdges) {
  using T = TypeParam;
  using Limits = std::numeric_limits<T>;
  const std::vector<T> values = {Limits::min(), Limits::max(),      T{0},
                                 T{1},          static_cast<T>(-1), T{2},
                                 T{7},          static_cast<T>(-7), T{3}};
  const auto n = static_cast<int64_t>(values.size());
  const Broadcast c({n, n}, {0, 2, 1});
  const DeviceArray<T> x(values), out(n * n);
  const DeviceArray<uint8_t> flags(n * n);
  const auto dtype = static_cast<int>(TypeOf<T>());
  const auto wrap = [](auto v) { return static_cast<T>(static_cast<uint64_t>(v)); };
  for (int op = 0; op < TANDEM_CUDA_BINARY_And; ++op) {
    const bool compares = op >= TANDEM_CUDA_BINARY_Equal;
    ASSERT_EQ(tandem_cuda_binary(op, dtype, compares ? static_cast<void*>(flags.get()) : out.get(),
                                 x.get(), x.get(), &c.loop, nullptr),
              0);
    const std::vector<T> y = out.Get();
    const std::vector<uint8_t> flag = flags.Get();
    for (int64_t i = 0; i < n * n; ++i) {
      const T a = values[i / n], b = values[i % n];
      __extension__ using Wide = __int128;
      const Wide u = a, v = b;
      Wide want = 0;
      switch (op) {
        case TANDEM_CUDA_BINARY_Add:
          want = u + v;
          break;
        case TANDEM_CUDA_BINARY_Sub:
          want = u - v;
          break;
        case TANDEM_CUDA_BINARY_Mul:
          want = wrap(static_cast<uint64_t>(u) * static_cast<uint64_t>(v));
          break;
        case TANDEM_CUDA_BINARY_Div:
          want = v == 0 ? 0 : u / v;
          break;
        case TANDEM_CUDA_BINARY_Mod:
          want = v == 0 ? 0 : ((u % v) + v) % v;
          break;
        case TANDEM_CUDA_BINARY_Max:
          want = u > v ? u : v;
          break;
        case TANDEM_CUDA_BINARY_Min:
          want = u < v ? u : v;
          break;
        case TANDEM_CUDA_BINARY_Equal:
          want = u == v;
          break;
        case TANDEM_CUDA_BINARY_Less:
          want = u < v;
          break;
        case TANDEM_CUDA_BINARY_LessOrEqual:
          want = u <= v;
          break;
        default:
          if (v < 0) {
            want = u == 1 ? 1 : u == -1 ? (v % 2 == 0 ? 1 : -1) : 0;
          } else {
            uint64_t power = 1;
            for (int64_t k = 0; k < static_cast<int64_t>(v % 64); ++k)
              power *= static_cast<uint64_t>(u);
            if (v >= 64 && u != 0 && u != 1 && u != -1 && u % 2 != 0) continue;  // not by hand
            if (v >= 64 && u % 2 == 0) power = 0;
            if (v >= 64 && u == -1) power = v % 2 == 0 ? 1 : ~uint64_t{0};
            want = static_cast<Wide>(power);
          }
      }
      if (compares) {
        EXPECT_EQ(flag[i], want != 0) << op << " " << +a << " " << +b;
      } else {
        EXPECT_EQ(y[i], wrap(want)) << op << " " << +a << " " << +b;
      }
    }
  }
  EXPECT_EQ(tandem_cuda_binary(TANDEM_CUDA_BINARY_And, dtype, out.get(), x.get(), x.get(), &c.loop,
                               nullptr),
            TANDEM_CUDA_UNSUPPORTED);
}

TEST(BoolTest, Logic) {
  const std::vector<uint8_t> a = {0, 0, 1, 1}, b = {0, 1, 0, 1};
  const Broadcast c({4}, {0, 0, 0});
  const DeviceArray<uint8_t> x(a), y(b), out(4);
  const auto run = [&](int op) {
    EXPECT_EQ(
        tandem_cuda_binary(op, TANDEM_CUDA_BOOL, out.get(), x.get(), y.get(), &c.loop, nullptr), 0);
    return out.Get();
  };
  using Bytes = std::vector<uint8_t>;
  EXPECT_EQ(run(TANDEM_CUDA_BINARY_And), (Bytes{0, 0, 0, 1}));
  EXPECT_EQ(run(TANDEM_CUDA_BINARY_Or), (Bytes{0, 1, 1, 1}));
  EXPECT_EQ(run(TANDEM_CUDA_BINARY_Xor), (Bytes{0, 1, 1, 0}));
  EXPECT_EQ(run(TANDEM_CUDA_BINARY_Equal), (Bytes{1, 0, 0, 1}));
  EXPECT_EQ(
      tandem_cuda_unary(TANDEM_CUDA_UNARY_Not, TANDEM_CUDA_BOOL, out.get(), x.get(), 4, nullptr),
      0);
  EXPECT_EQ(out.Get(), (Bytes{1, 1, 0, 0}));
  EXPECT_EQ(tandem_cuda_binary(TANDEM_CUDA_BINARY_Add, TANDEM_CUDA_BOOL, out.get(), x.get(),
                               y.get(), &c.loop, nullptr),
            TANDEM_CUDA_UNSUPPORTED);
}

template <typename T>
void TestWhere() {
  for (const std::vector<unsigned>& stretched :
       {std::vector<unsigned>{0, 0, 0, 0}, {0, 2, 0, 1}, {0, 1, 3, 0}, {0, 3, 2, 2}}) {
    for (const int64_t inner : {5, 16}) {
      const Broadcast c({6, inner}, stretched);
      std::vector<uint8_t> condition(c.elements[1]);
      for (size_t i = 0; i < condition.size(); ++i) condition[i] = i * 7 % 3 == 0;
      std::vector<T> x(c.elements[2]), y(c.elements[3]);
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(i);
      for (size_t i = 0; i < y.size(); ++i) y[i] = static_cast<T>(200 - i);
      const DeviceArray<uint8_t> a(condition);
      const DeviceArray<T> b(x), d(y), out(6 * inner);
      ASSERT_EQ(
          tandem_cuda_where(sizeof(T), out.get(), a.get(), b.get(), d.get(), &c.loop, nullptr), 0);
      const std::vector<T> z = out.Get();
      for (int64_t i = 0; i < 6 * inner; ++i) {
        EXPECT_EQ(z[i], condition[c.At(1, i)] != 0 ? x[c.At(2, i)] : y[c.At(3, i)]) << i;
      }
    }
  }
}
TEST(WhereTest, EveryElementSize) {
  TestWhere<uint8_t>();
  TestWhere<uint16_t>();
  TestWhere<uint32_t>();
  TestWhere<uint64_t>();
}

template <typename From, typename To>
void TestCast() {
  std::vector<From> x;
  for (double v : {0.0,          1.0,   -1.0,    2.5,     -2.5,    0.3,  127.9, 128.0,
                   255.5,        256.0, -129.0,  32768.0, 65535.9, 1e9,  -1e9,  2147483648.0,
                   4294967295.0, 1e18,  9.3e18,  -9.3e18, 1.9e19,  1e30, -1e30, kInfinity,
                   -kInfinity,   kNaN,  65519.0, 65520.0, 1e-7,    3e-41}) {
    x.push_back(ConvertElement<From>(v));
  }
  for (uint64_t i = 0; i < 300; ++i)
    x.push_back(ConvertElement<From>(static_cast<uint64_t>(i * i * i * 0x9E3779B97F4A7C15u)));
  const auto n = static_cast<int64_t>(x.size());
  using FromBytes = std::conditional_t<std::is_same_v<From, bool>, uint8_t, From>;
  using ToBytes = std::conditional_t<std::is_same_v<To, bool>, uint8_t, To>;
  std::vector<FromBytes> bytes(n);
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<From, bool>)
      bytes[i] = x[i] ? 1 : 0;
    else
      bytes[i] = x[i];
  }
  const DeviceArray<FromBytes> in(bytes);
  const DeviceArray<ToBytes> out(n);
  ASSERT_EQ(tandem_cuda_cast(static_cast<int>(TypeOf<From>()), static_cast<int>(TypeOf<To>()),
                             out.get(), in.get(), n, nullptr),
            0);
  const std::vector<ToBytes> y = out.Get();
  for (int64_t i = 0; i < n; ++i) {
    const To want = ConvertElement<To>(From(x[i]));
    if (std::isnan(ConvertElement<double>(want))) {
      EXPECT_TRUE(std::isnan(ConvertElement<double>(To(y[i]))));
    } else {
      EXPECT_EQ(ConvertElement<double>(To(y[i])), ConvertElement<double>(want))
          << DTypeName(TypeOf<From>()) << " to " << DTypeName(TypeOf<To>()) << " of "
          << ConvertElement<double>(From(x[i]));
    }
  }
}
TEST(CastTest, EveryPair) {
  for (int from = 0; from <= TANDEM_CUDA_BOOL; ++from) {
    for (int to = 0; to <= TANDEM_CUDA_BOOL; ++to) {
      Dispatch(static_cast<DType>(from), [&]<typename From>(From*) {
        Dispatch(static_cast<DType>(to), [&]<typename To>(To*) { TestCast<From, To>(); });
      });
    }
  }
}

TEST(ElementwiseTest, InPlace) {
  const std::vector<float> x = Inputs<float>(100, 1, 1, false);
  const DeviceArray<float> a(x), b(x);
  const Broadcast c({100}, {0, 0, 0});
  ASSERT_EQ(
      tandem_cuda_unary(TANDEM_CUDA_UNARY_Neg, TANDEM_CUDA_F32, a.get(), a.get(), 100, nullptr), 0);
  ASSERT_EQ(tandem_cuda_binary(TANDEM_CUDA_BINARY_Sub, TANDEM_CUDA_F32, b.get(), a.get(), b.get(),
                               &c.loop, nullptr),
            0);
  const std::vector<float> y = b.Get();
  for (int i = 0; i < 100; ++i) EXPECT_EQ(y[i], -2 * x[i]);
}

// Pointers that vectors may not be loaded from, and more elements than one grid has threads.
TEST(ElementwiseTest, MisalignedAndLarge) {
  constexpr int64_t n = 2200001;
  std::vector<float> x(n + 1);
  for (int64_t i = 0; i <= n; ++i) x[i] = static_cast<float>(i);
  const DeviceArray<float> in(x), out(n + 1);
  for (int64_t shift : {0, 1}) {
    ASSERT_EQ(tandem_cuda_unary(TANDEM_CUDA_UNARY_Neg, TANDEM_CUDA_F32, out.get() + shift,
                                in.get() + shift, n, nullptr),
              0);
    const std::vector<float> y = out.Get();
    for (int64_t i = shift; i < n + shift; ++i) ASSERT_EQ(y[i], -x[i]) << i;
  }
}

}  // namespace
}  // namespace tandem::cuda::testing
