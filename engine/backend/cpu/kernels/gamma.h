// The gamma function's family, and draws of the gamma distribution, in double.
//
// Thread-safe (the library's lgamma is not: it sets signgam). Nothing allocates or throws.
#pragma once

#include <cstdint>

#include "engine/backend/cpu/kernels/random.h"

namespace tandem::cpu {

// ln |Gamma(x)|, its derivative psi, and psi': asymptotic series (Abramowitz and Stegun 6.1.41,
// 6.3.18, 6.4.12) after a shift to x >= 10, reflected below 0. Absolute error about 1e-14, relative
// 1e-13 away from the zeros. At 0 and the negative integers: +inf; NaN (-inf at 0); +inf.
double Lgamma(double x);
double Digamma(double x);
double Trigamma(double x);

// The logarithm of element `i`'s draw of Gamma(concentration, 1): Marsaglia and Tsang, "A simple
// method for generating gamma variables" (2000); below 1 as a draw for concentration + 1 times
// U^(1 / concentration). Philox's counter is (element, attempt, stream), so stream < 2^32. The same
// bits on every machine. NaN unless concentration > 0.
double DrawLogGamma(double concentration, const NoiseStream& stream, uint64_t i);

// d log z / d concentration of z = e^log_z at a fixed quantile: -(dF / d concentration) / (z f(z))
// (Figurnov et al. 2018), F and f the distribution function and density. Relative error below 1e-7
// for quantiles that are ever drawn.
double LogGammaGradient(double concentration, double log_z);

}  // namespace tandem::cpu
