// Formulas over a Builder, written as formulas: Expr(b, x) * 2 + Log(y).
//
// An Expr is a value and its builder; every operation appends nodes. Operands broadcast as NumPy
// does; a double takes the other operand's dtype. Expressions of different builders do not mix.
#pragma once

#include "engine/ops/ops.h"

namespace tandem::ops {

class Expr {
 public:
  Expr(Builder& b, Value v) : b_(&b), v_(v) {}
  Builder& builder() const { return *b_; }
  Value value() const { return v_; }
  DType dtype() const { return b_->dtype(v_); }
  Shape shape() const { return b_->shape(v_); }
  // A scalar of this expression's dtype.
  Expr Like(double value) const { return {*b_, b_->Scalar(value, dtype())}; }

 private:
  Builder* b_;
  Value v_;
};

#define TANDEM_EXPR_OPERATOR(symbol, Op)                                       \
  inline Expr operator symbol(Expr x, Expr y) {                                \
    return {x.builder(), Op(x.builder(), x.value(), y.value())};               \
  }                                                                            \
  inline Expr operator symbol(Expr x, double y) { return x symbol x.Like(y); } \
  inline Expr operator symbol(double x, Expr y) { return y.Like(x) symbol y; }
TANDEM_EXPR_OPERATOR(+, Add)
TANDEM_EXPR_OPERATOR(-, Sub)
TANDEM_EXPR_OPERATOR(*, Mul)
TANDEM_EXPR_OPERATOR(/, Div)
TANDEM_EXPR_OPERATOR(<, Less)
TANDEM_EXPR_OPERATOR(<=, LessOrEqual)
#undef TANDEM_EXPR_OPERATOR

inline Expr operator&&(Expr x, Expr y) {
  return {x.builder(), And(x.builder(), x.value(), y.value())};
}
#define TANDEM_EXPR_UNARY(Op) \
  inline Expr Op(Expr x) { return {x.builder(), Op(x.builder(), x.value())}; }
TANDEM_EXPR_UNARY(Neg)
TANDEM_EXPR_UNARY(Abs)
TANDEM_EXPR_UNARY(Exp)
TANDEM_EXPR_UNARY(Log)
TANDEM_EXPR_UNARY(Log1p)
TANDEM_EXPR_UNARY(Sqrt)
TANDEM_EXPR_UNARY(Square)
TANDEM_EXPR_UNARY(Sigmoid)
TANDEM_EXPR_UNARY(Softplus)
TANDEM_EXPR_UNARY(Lgamma)
TANDEM_EXPR_UNARY(Digamma)
#undef TANDEM_EXPR_UNARY
inline Expr operator-(Expr x) { return Neg(x); }
inline Expr Max(Expr x, double y) {
  return {x.builder(), Max(x.builder(), x.value(), x.Like(y).value())};
}
inline Expr Min(Expr x, double y) {
  return {x.builder(), Min(x.builder(), x.value(), x.Like(y).value())};
}
inline Expr Where(Expr condition, Expr x, Expr y) {
  Builder& b = x.builder();
  return {b, Where(b, condition.value(), x.value(), y.value())};
}
// Over the last dimension, which goes unless `keep`.
inline Expr SumLast(Expr x, bool keep = false) {
  return {x.builder(), ReduceSum(x.builder(), x.value(), {-1}, keep)};
}
// log(sum(exp(x))) over the last dimension, which stays as size 1.
inline Expr LogSumExp(Expr x) {
  const Expr top{x.builder(), ReduceMax(x.builder(), x.value(), {-1}, true)};
  return Log(SumLast(Exp(x - top), /*keep=*/true)) + top;
}

}  // namespace tandem::ops
