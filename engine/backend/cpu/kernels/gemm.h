// Batch-invariant single-precision matrix product, C = A B (+ bias) or C += A B (+ bias).
//
// Contract. Every element of C is one chain of f32 fused multiply-adds over k = 0 .. K-1, in that
// order, starting from +0 (or from C's value, to accumulate), to which the bias is then added:
//   c = fma(a[k], b[k], c) for each k;  c = c + bias
// whatever the code path. So the bits of a row of C depend on that row of A, on B and on the bias,
// and on nothing else: not on m, the row's place, the batch, strides, storage order, thread count
// or vector length. Nothing is skipped, so NaN and infinity propagate as the chain says; which NaN
// (its payload) is not part of the promise. Instruction sets without a fused multiply-add (x86
// before AVX2) round product and sum separately: the same order and invariance, other bits.
//
// The loops and the packing follow Goto and van de Geijn, "Anatomy of High-Performance Matrix
// Multiplication" (ACM TOMS 34, 2008); K is cut into blocks, each going on from the sums in C.
#pragma once

#include <cstdint>

namespace tandem::cpu {

// Pointers are to f32, row-major; a leading dimension (ld) and a batch stride are in elements. The
// caller answers for sizes and strides: nothing outside the described elements is touched.
struct GemmParams {
  int64_t batch = 1;  // independent products; a batch stride of 0 shares that operand
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;

  const float* a = nullptr;  // A (m, k), or stored (k, m) if transpose_a
  int64_t lda = 0;
  bool transpose_a = false;
  int64_t a_batch_stride = 0;

  const float* b = nullptr;  // B (k, n), or stored (n, k) if transpose_b
  int64_t ldb = 0;
  bool transpose_b = false;
  int64_t b_batch_stride = 0;

  float* c = nullptr;  // C (m, n); may overlap no input. One product per batch: no stride of 0
  int64_t ldc = 0;
  int64_t c_batch_stride = 0;

  const float* bias = nullptr;  // (n), shared by all rows and products; null: none
  bool accumulate = false;      // go on from C
};

// Bytes of scratch that Gemm needs for these sizes (at most about 0.5 MiB a core). Does not depend
// on the thread count in force.
int64_t GemmScratchBytes(const GemmParams& params);

// Computes the product(s). scratch: GemmScratchBytes(params) bytes of any alignment, which no other
// call uses meanwhile; may be null where that is 0. Runs on ThreadCount() threads by ParallelFor;
// neither allocates nor fails. A product without m, n or batch does nothing; one without k gives
// 0 or C, plus bias.
void Gemm(const GemmParams& params, void* scratch);

}  // namespace tandem::cpu
