#include "engine/base/threads.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace tandem {

void EnsureThreadPolicy(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  // About 20 us of spinning: longer than the gap between two kernels of one plan.
  setenv("GOMP_SPINCOUNT", "10000", 1);
  // By its path, not by /proc/self/exe: the process keeps its name.
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) execv(self.c_str(), argv);
  // No /proc: go on with the default policy, slower under load but correct.
}

}  // namespace tandem
