// The folder of models: which there are, and where a name's files lie.
//
// Layout: <root>/<name>/model.onnx; <root>/<name>/<number>/model.onnx, of which the highest number
// counts; or <root>/<name>/config.json with its Hugging Face files. Names come from clients, so
// every path is resolved and must stay below the root; a link that leads out of it is refused.
// Immutable and thread-safe.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace tandem::server {

// Letters, digits, '.', '_' and '-'; 1 to 128; begins with a letter or digit.
absl::Status CheckModelName(std::string_view name);

enum class ModelFormat : uint8_t { kOnnx, kHuggingFace };

struct ModelLocation {
  ModelFormat format = ModelFormat::kOnnx;
  std::filesystem::path path;  // the ONNX file, or the Hugging Face folder
  std::string version = "1";   // the numbered folder's, where there is one
};

class Repository {
 public:
  // NOT_FOUND: `root` is no folder.
  static absl::StatusOr<Repository> Open(const std::string& root);

  // Names of the folders that hold a model, sorted.
  std::vector<std::string> List() const;
  // NOT_FOUND: no folder of that name, or none of a known layout. PERMISSION_DENIED: a path leaves
  // the repository.
  absl::StatusOr<ModelLocation> Find(std::string_view name) const;
  // Where a model of that format is saved under `name`: over the one that Find gives, else new.
  // FAILED_PRECONDITION: the name holds a model of another format.
  absl::StatusOr<std::filesystem::path> PlaceFor(std::string_view name, ModelFormat format) const;
  // `path` relative to the root.
  std::string Relative(const std::filesystem::path& path) const;

 private:
  explicit Repository(std::filesystem::path root) : root_(std::move(root)) {}
  absl::Status CheckInside(const std::filesystem::path& path) const;
  absl::Status CheckLinks(const std::filesystem::path& folder) const;

  std::filesystem::path root_;  // canonical
};

}  // namespace tandem::server
