// Integers as bits, by arithmetic.
#include <array>
#include <utility>

#include "engine/base/error.h"
#include "engine/formats/onnx_compose.h"
#include "engine/formats/onnx_ops.h"
#include "engine/formats/onnx_tensor.h"
#include "engine/ops/ops.h"

namespace tandem {
namespace {

absl::Status CheckIntegers(NodeContext& c) {
  for (int i = 0; i < c.count(); ++i) {
    const DType dtype = c.dtype(i);
    if (IsFloat(dtype) || dtype == DType::kBool || dtype != c.dtype(0)) {
      return InvalidArgument("input ", i, " is ", DTypeName(dtype),
                             ", expected integers of one type");
    }
  }
  return absl::OkStatus();
}

// All ones less x: -1 - x of two's complement.
Outputs BitwiseNot(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckIntegers(c));
  const Value ones = c.b.Constant(CastTensor(Tensor::Scalar<int64_t>(-1), c.dtype(0)));
  return One(ops::Sub(c.b, ones, c.In(0)));
}

// Four bits at a time, by a table of 16 x 16.
template <uint64_t (*kFunction)(uint64_t, uint64_t)>
Outputs Bitwise(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckIntegers(c));
  Builder& b = c.b;
  std::array<uint64_t, 256> table;
  for (uint64_t i = 0; i < table.size(); ++i) table[i] = kFunction(i / 16, i % 16);
  const Value results = b.Constant(Tensor::Of<uint64_t>({256}, std::span<const uint64_t>(table)));
  const auto number = [&](uint64_t n) { return b.Constant(Tensor::Scalar<uint64_t>(n)); };
  const Value x = ops::Cast(b, c.In(0), DType::kU64), y = ops::Cast(b, c.In(1), DType::kU64);
  Value sum;
  for (int shift = 0; shift < 8 * SizeOf(c.dtype(0)); shift += 4) {
    const Value unit = number(uint64_t{1} << shift), sixteen = number(16);
    const auto digit = [&](Value v) { return ops::Mod(b, ops::Div(b, v, unit), sixteen); };
    const Value index = ops::Add(b, ops::Mul(b, digit(x), sixteen), digit(y));
    const Value part =
        ops::Mul(b, ops::Gather(b, results, ops::Cast(b, index, DType::kI64), 0), unit);
    sum = shift == 0 ? part : ops::Add(b, sum, part);
  }
  return One(ops::Cast(b, sum, c.dtype(0)));
}

uint64_t And(uint64_t x, uint64_t y) { return x & y; }
uint64_t Or(uint64_t x, uint64_t y) { return x | y; }
uint64_t Xor(uint64_t x, uint64_t y) { return x ^ y; }

// Of unsigned integers; shifting by the width or more gives 0.
Outputs BitShift(NodeContext& c) {
  TANDEM_RETURN_IF_ERROR(CheckIntegers(c));
  Builder& b = c.b;
  const DType dtype = c.dtype(0);
  const auto width = static_cast<double>(8 * SizeOf(dtype));
  std::array<uint64_t, 64> powers;
  for (size_t i = 0; i < powers.size(); ++i) powers[i] = uint64_t{1} << i;
  const Value table = b.Constant(Tensor::Of<uint64_t>({64}, std::span<const uint64_t>(powers)));
  const Value limit = compose::Like(b, width, c.In(1));
  const Value places = ops::Min(b, c.In(1), compose::Like(b, width - 1, c.In(1)));
  const Value power =
      ops::Cast(b, ops::Gather(b, table, ops::Cast(b, places, DType::kI64), 0), dtype);
  const std::string direction = c.String("direction", "");
  Value y;
  if (direction == "LEFT") {
    y = ops::Mul(b, c.In(0), power);
  } else if (direction == "RIGHT") {
    y = ops::Div(b, c.In(0), power);
  } else {
    return InvalidArgument("attribute direction='", direction, "' is neither LEFT nor RIGHT");
  }
  return One(ops::Where(b, ops::Less(b, c.In(1), limit), y, compose::Like(b, 0, y)));
}

// The same bits as another type: between integers of one size, which is a cast.
Outputs BitCast(NodeContext& c) {
  const int64_t type = c.Int("to", 0);
  if (type < 0 || type > 1000) return InvalidArgument("attribute to=", type);
  TANDEM_ASSIGN_OR_RETURN(const DType to,
                          DTypeFromOnnx(static_cast<int32_t>(type), "attribute 'to'"));
  const DType from = c.dtype(0);
  const auto is_integer = [](DType d) { return !IsFloat(d) && d != DType::kBool; };
  if (from == to && from == ComputeDType(from)) return One(c.In(0));
  if (!is_integer(from) || !is_integer(to) || SizeOf(from) != SizeOf(to)) {
    return Unimplemented("from ", DTypeName(from), " to ", DTypeName(to), " is not supported");
  }
  return One(ops::Cast(c.b, c.In(0), to));
}

constexpr OnnxOp Op2(std::string_view name, Outputs (*convert)(NodeContext&)) {
  return {.name = name, .convert = convert, .min_inputs = 2, .max_inputs = 2};
}

constexpr OnnxOp kOps[] = {
    {.name = "BitCast", .convert = BitCast}, Op2("BitShift", BitShift),
    Op2("BitwiseAnd", Bitwise<And>),         {.name = "BitwiseNot", .convert = BitwiseNot},
    Op2("BitwiseOr", Bitwise<Or>),           Op2("BitwiseXor", Bitwise<Xor>),
};

}  // namespace

std::span<const OnnxOp> OnnxBitOps() { return kOps; }

}  // namespace tandem
