// The CPU's kernel of every operator: one line an operator, defined in the family's file beside
// this one as `constinit const Kernel kConvKernel = {.bind = BindConv};`.
#pragma once

#include "engine/backend/backend.h"
#include "engine/ops/definitions.h"

// Operators that have a CPU kernel; one without is lowered.
#define TANDEM_CPU_KERNELS(OP) TANDEM_KERNEL_OPS(OP)

namespace tandem::cpu {

#define OP(name) extern const Kernel k##name##Kernel;
TANDEM_CPU_KERNELS(OP)
#undef OP

}  // namespace tandem::cpu
