#include "engine/formats/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

namespace tandem {
namespace {

absl::Status SystemError(std::string_view action, const std::string& path) {
  const int error = errno;
  const std::string message = StrCat(action, " ", path, ": ", strerror(error));
  if (error == ENOENT) return NotFound(message);
  if (error == ENOSPC || error == EDQUOT) return ResourceExhausted(message);
  return FailedPrecondition(message);
}

// A rename is durable once its directory is.
absl::Status SyncDirectory(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const std::string directory = parent.empty() ? std::string(1, '.') : parent.string();
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError("cannot open", directory);
  const int result = fsync(fd);
  close(fd);
  // Some file systems cannot sync a directory; their renames are as durable as they get.
  if (result != 0 && errno != EINVAL) return SystemError("cannot sync", directory);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  std::string temporary = path + ".tmp-XXXXXX";
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return SystemError("cannot create a file beside", path);
  // mkostemp's 0600 would hide the file from other users of the model repository.
  const mode_t mask = umask(0);
  umask(mask);
  if (fchmod(fd, 0666 & ~mask) != 0) {
    const absl::Status status = SystemError("cannot set the mode of", temporary);
    close(fd);
    unlink(temporary.c_str());
    return status;
  }
  return AtomicFile(path, std::move(temporary), fd);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)) {}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

absl::Status AtomicFile::Write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return SystemError("cannot write", temporary_);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  if (fsync(fd_) != 0) return SystemError("cannot sync", temporary_);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return SystemError("cannot replace", path_);
  close(std::exchange(fd_, -1));
  return SyncDirectory(path_);
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view content) {
  TANDEM_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  TANDEM_RETURN_IF_ERROR(file.Write(content));
  return file.Commit();
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, int64_t max_bytes) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError("cannot open", path);
  struct stat info = {};
  absl::Status status;
  std::string content;
  if (fstat(fd, &info) != 0) {
    status = SystemError("cannot stat", path);
  } else if (!S_ISREG(info.st_mode)) {
    status = InvalidArgument(path, ": not a regular file");
  } else if (info.st_size > max_bytes) {
    status =
        InvalidArgument(path, ": ", info.st_size, " bytes, at most ", max_bytes, " are expected");
  } else {
    content.resize(static_cast<size_t>(info.st_size));
    size_t done = 0;
    while (done < content.size()) {
      const ssize_t got = read(fd, content.data() + done, content.size() - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) status = SystemError("cannot read", path);
      if (got <= 0) break;
      done += static_cast<size_t>(got);
    }
    content.resize(done);
  }
  close(fd);
  if (!status.ok()) return status;
  return content;
}

}  // namespace tandem
