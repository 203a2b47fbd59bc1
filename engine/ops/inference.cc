#include "engine/ops/inference.h"

#include "engine/base/error.h"

namespace tandem::ops {
namespace {

absl::Status Unexpected(const InferArgs& args, int i, std::string_view what,
                        const std::string& expected) {
  return InvalidArgument(what, " is ", args.type(i).ToString(), ", expected ", expected);
}

}  // namespace

absl::Status RequireDType(const InferArgs& args, int i, std::string_view what, DType dtype) {
  if (args.type(i).dtype == dtype) return absl::OkStatus();
  return Unexpected(args, i, what, std::string(DTypeName(dtype)));
}

absl::Status RequireFloat(const InferArgs& args, int i, std::string_view what) {
  if (IsFloat(args.type(i).dtype)) return absl::OkStatus();
  return Unexpected(args, i, what, "a floating-point type");
}

absl::Status RequireNumber(const InferArgs& args, int i, std::string_view what) {
  if (args.type(i).dtype != DType::kBool) return absl::OkStatus();
  return Unexpected(args, i, what, "numbers");
}

absl::Status RequireIndex(const InferArgs& args, int i, std::string_view what) {
  const DType dtype = args.type(i).dtype;
  if (dtype == DType::kI32 || dtype == DType::kI64) return absl::OkStatus();
  return Unexpected(args, i, what, "i32 or i64");
}

absl::Status RequireRank(const InferArgs& args, int i, std::string_view what, int rank) {
  if (args.shape(i).rank() == rank) return absl::OkStatus();
  return Unexpected(args, i, what, absl::StrCat("rank ", rank));
}

absl::Status RequireShape(const InferArgs& args, int i, std::string_view what, const Shape& shape) {
  if (args.shape(i) == shape) return absl::OkStatus();
  return Unexpected(args, i, what, absl::StrCat("shape ", shape.ToString()));
}

absl::Status RequireSameDType(const InferArgs& args, int i, int j) {
  if (args.type(i).dtype == args.type(j).dtype) return absl::OkStatus();
  return InvalidArgument("inputs ", i, " and ", j, " are ", args.type(i).ToString(), " and ",
                         args.type(j).ToString(), ": the types differ");
}

DType StatisticsDType(DType dtype) {
  return dtype == DType::kBF16 || dtype == DType::kF16 ? DType::kF32 : dtype;
}

absl::Status RequireStatistic(const InferArgs& args, int i, std::string_view what) {
  return RequireDType(args, i, what, StatisticsDType(args.type(0).dtype));
}

Types InferFloat(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "input"));
  return std::vector<TensorType>{args.type(0)};
}

Types InferNumber(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireNumber(args, 0, "input"));
  return std::vector<TensorType>{args.type(0)};
}

Types InferFloatPair(const InferArgs& args) {
  TANDEM_RETURN_IF_ERROR(RequireFloat(args, 0, "input 0"));
  TANDEM_RETURN_IF_ERROR(RequireSameDType(args, 0, 1));
  TANDEM_RETURN_IF_ERROR(RequireShape(args, 1, "input 1", args.shape(0)));
  return std::vector<TensorType>{args.type(0)};
}

std::vector<int64_t> DimsOf(const Shape& shape) { return {shape.begin(), shape.end()}; }

Shape ShapeAttribute(const Attributes& attributes, std::string_view name) {
  return Shape(std::span<const int64_t>(attributes.Ints(name)));
}

Shape Rows(const Shape& shape) { return Shape(shape.dims().first(shape.rank() - 1)); }

double NoFlops(std::span<const TensorType* const>, std::span<const TensorType>, const Attributes&) {
  return 0;
}

}  // namespace tandem::ops
