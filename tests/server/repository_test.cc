#include "server/repository.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace tandem::server {
namespace {

namespace fs = std::filesystem;

class RepositoryTest : public testing::Test {
 protected:
  RepositoryTest() {
    std::string name = (fs::temp_directory_path() / "tandem_repository_XXXXXX").string();
    base_ = mkdtemp(name.data());
    fs::create_directories(root());
  }
  ~RepositoryTest() override { fs::remove_all(base_); }

  fs::path root() const { return base_ / "models"; }
  void Write(const fs::path& path) {
    fs::create_directories(path.parent_path());
    std::ofstream(path) << "x";
  }
  Repository Open() { return *Repository::Open(root()); }

  fs::path base_;
};

TEST(CheckModelName, AllowsWhatTheApiSays) {
  for (const char* name : {"a", "mnist-8", "Llama_3.1", "0", "x..y"}) {
    EXPECT_TRUE(CheckModelName(name).ok()) << name;
  }
  EXPECT_TRUE(CheckModelName(std::string(128, 'a')).ok());
}

TEST(CheckModelName, RefusesPathsAndOddities) {
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("../x"), std::string("a/b"),
        std::string("/etc"), std::string("a\\b"), std::string("-x"), std::string("_x"),
        std::string(".hidden"), std::string("a b"), std::string("a\n"), std::string("h\xC3\xA4"),
        std::string("a\0b", 3), std::string(129, 'a')}) {
    EXPECT_EQ(CheckModelName(name).code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST_F(RepositoryTest, FindsEachLayout) {
  Write(root() / "flat/model.onnx");
  Write(root() / "versions/2/model.onnx");
  Write(root() / "versions/10/model.onnx");
  Write(root() / "versions/11/other.txt");
  Write(root() / "versions/099/model.onnx");
  Write(root() / "folder/config.json");
  Write(root() / "nothing/readme.txt");
  Write(root() / "file.txt");
  const Repository repository = Open();
  EXPECT_THAT(repository.List(), testing::ElementsAre("flat", "folder", "versions"));

  const auto flat = repository.Find("flat");
  ASSERT_TRUE(flat.ok()) << flat.status();
  EXPECT_EQ(flat->format, ModelFormat::kOnnx);
  EXPECT_EQ(repository.Relative(flat->path), "flat/model.onnx");
  EXPECT_EQ(flat->version, "1");

  const auto versions = repository.Find("versions");
  ASSERT_TRUE(versions.ok()) << versions.status();
  EXPECT_EQ(versions->version, "10");
  EXPECT_EQ(repository.Relative(versions->path), "versions/10/model.onnx");

  const auto folder = repository.Find("folder");
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(folder->format, ModelFormat::kHuggingFace);

  EXPECT_TRUE(absl::IsNotFound(repository.Find("nothing").status()));
  EXPECT_TRUE(absl::IsNotFound(repository.Find("absent").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(repository.Find("../models/flat").status()));
}

TEST_F(RepositoryTest, RefusesLinksThatLeaveIt) {
  Write(base_ / "outside/model.onnx");
  fs::create_directory_symlink(base_ / "outside", root() / "folderlink");
  fs::create_directories(root() / "filelink");
  fs::create_symlink(base_ / "outside/model.onnx", root() / "filelink/model.onnx");
  Write(root() / "weights/config.json");
  fs::create_symlink("/etc/passwd", root() / "weights/model.safetensors");
  // A sibling whose name begins like the root's.
  Write(base_ / "models2/model.onnx");
  fs::create_directory_symlink(base_ / "models2", root() / "sibling");
  const Repository repository = Open();
  for (const char* name : {"folderlink", "filelink", "weights", "sibling"}) {
    EXPECT_EQ(repository.Find(name).status().code(), absl::StatusCode::kPermissionDenied) << name;
  }
  EXPECT_EQ(repository.PlaceFor("folderlink", ModelFormat::kOnnx).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(RepositoryTest, FollowsLinksThatStayInside) {
  Write(root() / "a/model.onnx");
  fs::create_directory_symlink(root() / "a", root() / "b");
  EXPECT_TRUE(Open().Find("b").ok());
}

TEST_F(RepositoryTest, PlaceForSaving) {
  Write(root() / "versions/3/model.onnx");
  Write(root() / "folder/config.json");
  const Repository repository = Open();
  const auto place = [&](const char* name, ModelFormat format) -> std::string {
    const auto path = repository.PlaceFor(name, format);
    return path.ok() ? repository.Relative(*path) : std::string(path.status().message());
  };
  EXPECT_EQ(place("new", ModelFormat::kOnnx), "new/model.onnx");
  EXPECT_EQ(place("new", ModelFormat::kHuggingFace), "new");
  EXPECT_EQ(place("versions", ModelFormat::kOnnx), "versions/3/model.onnx");
  EXPECT_EQ(place("folder", ModelFormat::kHuggingFace), "folder");
  EXPECT_EQ(repository.PlaceFor("folder", ModelFormat::kOnnx).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(repository.PlaceFor("..", ModelFormat::kOnnx).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RepositoryTest, TheRootMustBeAFolder) {
  Write(base_ / "file");
  EXPECT_TRUE(absl::IsNotFound(Repository::Open(base_ / "absent").status()));
  EXPECT_TRUE(absl::IsNotFound(Repository::Open(base_ / "file").status()));
}

}  // namespace
}  // namespace tandem::server
