#include "tests/engine/op_cases.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/base/philox.h"

namespace tandem::testing {
namespace {

constexpr double kMargin = 0.05;

double Draw(const CaseInput& input, uint64_t seed, uint64_t stream, uint64_t position) {
  const double u = Philox::Uniform(Philox::Block(seed, stream, position)[0]);
  double value = input.low + (input.high - input.low) * u;
  if (!IsFloat(input.dtype)) return std::round(value);
  for (double kink : input.avoid) {
    if (std::abs(value - kink) < kMargin) value = kink + (value < kink ? -kMargin : kMargin);
  }
  return value;
}

}  // namespace

std::vector<Tensor> MakeInputs(const std::vector<CaseInput>& inputs, std::string_view seed) {
  std::vector<Tensor> tensors;
  const uint64_t key = std::hash<std::string_view>()(seed);
  for (size_t k = 0; k < inputs.size(); ++k) {
    const CaseInput& input = inputs[k];
    Tensor wide(DType::kF64, input.shape);
    const std::span<double> values = wide.data<double>();
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = input.values.empty() ? Draw(input, key, k, i) : input.values.at(i);
    }
    tensors.push_back(CastTensor(wide, input.dtype));
  }
  return tensors;
}

Ref ToRef(const Tensor& tensor) {
  Ref ref(tensor.shape());
  for (size_t i = 0; i < ref.v.size(); ++i) {
    ref.v[i] = ElementAsDouble(tensor, static_cast<int64_t>(i));
  }
  return ref;
}

Ref Map(const Ref& x, const std::function<double(double)>& f) {
  Ref out(x.shape);
  std::transform(x.v.begin(), x.v.end(), out.v.begin(), f);
  return out;
}

Ref Expand(const Ref& x, const Shape& shape) {
  Ref out(shape);
  const int added = shape.rank() - x.shape.rank();
  for (size_t i = 0; i < out.v.size(); ++i) {
    const std::vector<int64_t> at = Coordinates(shape, static_cast<int64_t>(i));
    std::vector<int64_t> from;
    for (int d = 0; d < x.shape.rank(); ++d) from.push_back(x.shape[d] == 1 ? 0 : at[d + added]);
    out.v[i] = x.v[Offset(x.shape, from)];
  }
  return out;
}

Ref Zip(const Ref& x, const Ref& y, const std::function<double(double, double)>& f) {
  const Shape shape = *BroadcastShapes(x.shape, y.shape);
  Ref out = Expand(x, shape);
  const Ref right = Expand(y, shape);
  std::transform(out.v.begin(), out.v.end(), right.v.begin(), out.v.begin(), f);
  return out;
}

std::vector<int64_t> Coordinates(const Shape& shape, int64_t i) {
  std::vector<int64_t> at(shape.rank());
  for (int d = shape.rank(); d-- > 0;) {
    at[d] = i % shape[d];
    i /= shape[d];
  }
  return at;
}

int64_t Offset(const Shape& shape, const std::vector<int64_t>& coordinates) {
  int64_t offset = 0;
  for (int d = 0; d < shape.rank(); ++d) offset = offset * shape[d] + coordinates[d];
  return offset;
}

const std::vector<OpCase>& AllCases() {
  static const auto* const cases = [] {
    auto* all = new std::vector<OpCase>;
    for (const auto& family :
         {ElementwiseCases(), BroadcastCases(), RandomCases(), ReduceCases(), ShapeCases(),
          LinearCases(), SpatialCases(), ResizeCases(), NormalizationCases(), LossCases(),
          SequenceCases(), OptimizerCases()}) {
      all->insert(all->end(), family.begin(), family.end());
    }
    return all;
  }();
  return *cases;
}

}  // namespace tandem::testing
