#include "engine/backend/cuda/library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

namespace tandem::cuda {
namespace {

constexpr char kFile[] = "libtandem_cuda.so";

// Where to look, in this order.
std::vector<std::string> Places(const std::string& path) {
  if (!path.empty()) return {path};
  if (const char* set = std::getenv("TANDEM_CUDA_LIBRARY"); set != nullptr && *set != 0) {
    return {set};
  }
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  std::vector<std::string> places;
  for (const fs::path& place : {folder / kFile, folder / ".." / kFile, folder / "../lib" / kFile}) {
    if (!error && fs::exists(place)) places.push_back(place.string());
  }
  places.emplace_back(kFile);  // by the dynamic linker's own rules
  return places;
}

}  // namespace

absl::StatusOr<const Library*> Library::Open(const std::string& path) {
  std::string tried;
  for (const std::string& place : Places(path)) {
    void* const handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* const why = dlerror();
      tried += StrCat(tried.empty() ? "" : "; ", why != nullptr ? why : place.c_str());
      continue;
    }
    // Never closed: kernels and their module stay as long as the process.
    auto* const library = new Library;
    library->path_ = place;
    library->handle_ = handle;
    auto* const version = library->Find<int32_t()>("tandem_cuda_abi_version");
    if (version == nullptr || version() != TANDEM_CUDA_ABI_VERSION) {
      const std::string found = version == nullptr ? "none" : StrCat(version());
      delete library;
      return absl::UnavailableError(StrCat(place, " has interface version ", found,
                                           ", this program ", "needs ", TANDEM_CUDA_ABI_VERSION,
                                           ": install the library that came with the program"));
    }
    return library;
  }
  return absl::UnavailableError(
      StrCat("the CUDA library cannot be loaded (", tried,
             "): build Tandem where nvcc is installed, or set TANDEM_CUDA_LIBRARY to its path"));
}

std::string Library::ErrorString(int error) const {
  auto* const text = Find<const char*(int)>("tandem_cuda_error_string");
  return text == nullptr ? StrCat("error ", error) : std::string(text(error));
}

void* Library::Symbol(const char* name) const { return dlsym(handle_, name); }

}  // namespace tandem::cuda
