// f32 elementwise kernels, in the widest vectors that the CPU has (Highway, run-time dispatch).
//
// All pointers are to contiguous f32 unless said otherwise; an output may be the same array as an
// input of its shape, but must not overlap one otherwise. An element's bits depend on its operands
// alone, never on its place, the length or the thread count. Nothing allocates or throws; n <= 0
// does nothing. Large arrays are split over threads (engine/base/threads.h says who may call).
#pragma once

#include <cstdint>

#include "engine/base/dtype.h"

namespace tandem::cpu {

// NaN in, NaN out, for all. Errors in ulp of f32 against the exact value.
enum class Unary : uint8_t {
  kNeg,
  kAbs,
  kSign,        // +-0 -> 0
  kExp,         // 1 ulp; subnormal results kept
  kLog,         // 2 ulp; -inf at 0, NaN below
  kSqrt,        // correctly rounded
  kRsqrt,       // 1 / sqrt(x), both correctly rounded
  kReciprocal,  // correctly rounded
  kTanh,        // 3 ulp
  kSigmoid,     // 3 ulp
  kErf,         // 3 ulp
  kRelu,
  kGelu,      // x Phi(x), Phi the normal distribution function (exact, not the tanh form)
  kGeluTanh,  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
  kSilu,      // x sigmoid(x)
  kSoftplus,  // ln(1 + e^x), 3 ulp
  kSin,       // 3 ulp, or 1e-7 absolute near the zeros; any finite argument
  kCos,
  kFloor,
  kCeil,
  kRound,  // half to even
  kSquare,
  kLog1p,  // 3 ulp; -inf at -1, NaN below
  kExpm1,  // 3 ulp
};
void RunUnary(Unary op, const float* x, float* y, int64_t n);

// kMax and kMin pass NaN on, from either side. kPow follows C99's pow, within 1 ulp.
enum class Binary : uint8_t { kAdd, kSub, kMul, kDiv, kMax, kMin, kPow };

// out[i] = a[i] op b[i].
void RunBinary(Binary op, const float* a, const float* b, float* out, int64_t n);

// Which side of the operator the broadcast operand stands on.
enum class Side : uint8_t { kLeft, kRight };

// out[i] = x[i] op value (kRight) or value op x[i] (kLeft).
void RunBinaryScalar(Binary op, const float* x, float value, Side side, float* out, int64_t n);

// x, out (outer, inner); row (inner): out[i,j] = x[i,j] op row[j], or row[j] op x[i,j].
void RunBinaryRows(Binary op, const float* x, const float* row, Side side, float* out,
                   int64_t outer, int64_t inner);

// x, out (outer, inner); column (outer): out[i,j] = x[i,j] op column[i], or column[i] op x[i,j].
void RunBinaryColumns(Binary op, const float* x, const float* column, Side side, float* out,
                      int64_t outer, int64_t inner);

// dx[i] = dy[i] f'(x[i]). The kink: relu'(0) = 0.
enum class UnaryGrad : uint8_t { kGelu, kGeluTanh, kSilu, kRelu };
void RunUnaryGrad(UnaryGrad op, const float* x, const float* dy, float* dx, int64_t n);

// out = silu(gate) * up (Shazeer, "GLU variants improve transformer", 2020). The backward pass may
// write dgate and dup over gate, up or dy.
void SwiGlu(const float* gate, const float* up, float* out, int64_t n);
void SwiGluBackward(const float* gate, const float* up, const float* dy, float* dgate, float* dup,
                    int64_t n);

// y += alpha * x, one rounding where the CPU has fused multiply-add.
void Axpy(float alpha, const float* x, float* y, int64_t n);
// y += x.
void AddTo(const float* x, float* y, int64_t n);

// The conversions of engine/base/dtype.h, bit for bit: to nearest even, subnormals kept, overflow
// to infinity. The arrays must not overlap.
void ConvertF32ToBF16(const float* x, BF16* y, int64_t n);
void ConvertBF16ToF32(const BF16* x, float* y, int64_t n);
void ConvertF32ToF16(const float* x, F16* y, int64_t n);
void ConvertF16ToF32(const F16* x, float* y, int64_t n);

}  // namespace tandem::cpu
