#include "server/repository.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <system_error>

#include "engine/base/error.h"

namespace tandem::server {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxNameLength = 128;
// What a model's folder may hold at most: a bound on the search for links.
constexpr int kMaxFiles = 10000;

bool IsAlphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

// The highest numbered subfolder that has a model.onnx.
std::optional<uint64_t> HighestVersion(const fs::path& folder) {
  std::optional<uint64_t> highest;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    uint64_t number = 0;
    const auto [rest, failure] = std::from_chars(name.data(), name.data() + name.size(), number);
    if (failure != std::errc() || rest != name.data() + name.size()) continue;
    // "01" is no version, or two folders could be the same one.
    if (std::to_string(number) != name) continue;
    std::error_code ignored;
    if (!fs::is_regular_file(it->path() / "model.onnx", ignored)) continue;
    if (!highest || number > *highest) highest = number;
  }
  return highest;
}

}  // namespace

absl::Status CheckModelName(std::string_view name) {
  if (name.empty()) return InvalidArgument("the model's name is empty");
  if (name.size() > kMaxNameLength) {
    return InvalidArgument("the model's name has ", name.size(), " bytes, at most ", kMaxNameLength,
                           " are allowed");
  }
  const bool ok = IsAlphanumeric(name[0]) && std::all_of(name.begin(), name.end(), [](char c) {
                    return IsAlphanumeric(c) || c == '.' || c == '_' || c == '-';
                  });
  if (ok) return absl::OkStatus();
  return InvalidArgument("model name '", name,
                         "' is not allowed: it takes letters, digits, '.', '_' and '-', and begins "
                         "with a letter or digit");
}

absl::StatusOr<Repository> Repository::Open(const std::string& root) {
  std::error_code error;
  fs::path canonical = fs::canonical(root, error);
  if (error) return NotFound("model repository '", root, "': ", error.message());
  if (!fs::is_directory(canonical, error)) {
    return NotFound("model repository '", root, "' is not a folder");
  }
  return Repository(std::move(canonical));
}

std::vector<std::string> Repository::List() const {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(root_, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().string();
    if (CheckModelName(name).ok() && !absl::IsNotFound(Find(name).status())) {
      names.push_back(std::move(name));
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<ModelLocation> Repository::Find(std::string_view name) const {
  TANDEM_RETURN_IF_ERROR(CheckModelName(name));
  const fs::path folder = root_ / name;
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    return NotFound("the repository has no folder '", name, "'");
  }
  TANDEM_RETURN_IF_ERROR(CheckInside(folder));
  TANDEM_RETURN_IF_ERROR(CheckLinks(folder));
  ModelLocation location;
  if (fs::is_regular_file(folder / "model.onnx", error)) {
    location.path = folder / "model.onnx";
  } else if (const auto version = HighestVersion(folder)) {
    location.version = std::to_string(*version);
    location.path = folder / location.version / "model.onnx";
  } else if (fs::is_regular_file(folder / "config.json", error)) {
    location.format = ModelFormat::kHuggingFace;
    location.path = folder;
  } else {
    return NotFound("folder '", name,
                    "' of the repository has neither model.onnx, nor <number>/model.onnx, nor "
                    "config.json");
  }
  TANDEM_RETURN_IF_ERROR(CheckInside(location.path));
  return location;
}

absl::StatusOr<fs::path> Repository::PlaceFor(std::string_view name, ModelFormat format) const {
  const absl::StatusOr<ModelLocation> existing = Find(name);
  if (existing.ok()) {
    if (existing->format != format) {
      return FailedPrecondition("the repository's '", name, "' is a model of another format");
    }
    return existing->path;
  }
  if (!absl::IsNotFound(existing.status())) return existing.status();
  const fs::path folder = root_ / name;
  TANDEM_RETURN_IF_ERROR(CheckInside(folder));
  return format == ModelFormat::kOnnx ? folder / "model.onnx" : folder;
}

std::string Repository::Relative(const fs::path& path) const {
  return path.lexically_relative(root_).generic_string();
}

absl::Status Repository::CheckInside(const fs::path& path) const {
  std::error_code error;
  const fs::path resolved = fs::weakly_canonical(path, error);
  const auto [root_end, path_end] =
      std::mismatch(root_.begin(), root_.end(), resolved.begin(), resolved.end());
  if (!error && root_end == root_.end() && path_end != resolved.end()) return absl::OkStatus();
  return absl::PermissionDeniedError(
      StrCat("'", Relative(path), "' leads out of the model repository"));
}

absl::Status Repository::CheckLinks(const fs::path& folder) const {
  std::error_code error;
  int files = 0;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    if (++files > kMaxFiles) {
      return FailedPrecondition("'", Relative(folder), "' has more than ", kMaxFiles, " files");
    }
    std::error_code ignored;
    if (it->is_symlink(ignored)) TANDEM_RETURN_IF_ERROR(CheckInside(it->path()));
  }
  if (error) {
    return FailedPrecondition("'", Relative(folder), "' cannot be read: ", error.message());
  }
  return absl::OkStatus();
}

}  // namespace tandem::server
