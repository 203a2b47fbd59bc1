#include "engine/base/threads.h"

#include <unistd.h>

#include <cstdlib>

namespace tandem {

void EnsureThreadPolicy(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  // About 20 us of spinning: longer than the gap between two kernels of one plan.
  setenv("GOMP_SPINCOUNT", "10000", 1);
  execv("/proc/self/exe", argv);
  // No /proc: go on with the default policy, slower under load but correct.
}

}  // namespace tandem
