// Where tests find material that is not part of the project.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace tandem {

// $TANDEM_MATERIAL, else ../shared/material beside the source tree.
inline std::string MaterialPath(const std::string& relative) {
  const char* material = std::getenv("TANDEM_MATERIAL");
  const char* source = std::getenv("TANDEM_SOURCE_DIR");
  const std::filesystem::path root =
      material != nullptr
          ? std::filesystem::path(material)
          : std::filesystem::path(source != nullptr ? source : ".") / ".." / "shared" / "material";
  return (root / relative).string();
}

#define TANDEM_NEED_MATERIAL(relative)                                  \
  if (!std::filesystem::exists(::tandem::MaterialPath(relative))) {     \
    GTEST_SKIP() << ::tandem::MaterialPath(relative)                    \
                 << " is not there; set TANDEM_MATERIAL to its folder"; \
  }                                                                     \
  static_assert(true)

inline std::string ReadFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << path;
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

inline void WriteFile(const std::string& path, const std::string& content) {
  std::ofstream stream(path, std::ios::binary);
  stream << content;
  ASSERT_TRUE(stream.good()) << path;
}

// A folder that is gone with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string path = (std::filesystem::temp_directory_path() / "tandem-XXXXXX").string();
    EXPECT_NE(mkdtemp(path.data()), nullptr);
    path_ = path;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  std::string path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace tandem
