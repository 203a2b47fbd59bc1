// Files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "engine/base/error.h"

namespace tandem {

// Writes to a temporary file beside `path`; Commit() syncs it to the disk and renames it over
// `path`, so a reader sees the old file or the new one, also after a crash. Without Commit() the
// destructor removes it. Not thread-safe.
class AtomicFile {
 public:
  static absl::StatusOr<AtomicFile> Create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  absl::Status Write(std::span<const std::byte> bytes);
  absl::Status Write(std::string_view text) { return Write(std::as_bytes(std::span(text))); }
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string temporary, int fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

  std::string path_, temporary_;
  int fd_ = -1;
};

absl::Status WriteFileAtomically(const std::string& path, std::string_view content);
// The whole regular file, of at most max_bytes. Errors: NOT_FOUND, or what was wrong.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t max_bytes);

}  // namespace tandem
