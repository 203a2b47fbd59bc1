// Who may include whom, checked: the rules of CONTRIBUTING.md over every source file.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace tandem {
namespace {

namespace fs = std::filesystem;

// The folders that each folder's files may include from, besides its own.
const std::map<std::string, std::set<std::string>>& Allowed() {
  static const auto* const rules = [] {
    auto* r = new std::map<std::string, std::set<std::string>>;
    (*r)["engine/base"] = {};
    (*r)["engine/tensor"] = {"engine/base"};
    (*r)["engine/graph"] = {"engine/base", "engine/tensor"};
    (*r)["engine/ops"] = {"engine/base", "engine/tensor", "engine/graph"};
    (*r)["engine/backend"] = {"engine/base", "engine/tensor", "engine/graph"};
    (*r)["engine/backend/cpu/kernels"] = {"engine/base"};
    (*r)["engine/backend/cpu"] = {"engine/base", "engine/tensor",  "engine/graph",
                                  "engine/ops",  "engine/backend", "engine/backend/cpu/kernels"};
    // Device and host code of one library: each needs the other's headers.
    (*r)["engine/backend/cuda/emulation"] = {};
    (*r)["engine/backend/cuda/kernels/probe"] = {};
    (*r)["engine/backend/cuda/kernels"] = {"engine/backend/cuda/emulation"};
    (*r)["engine/backend/cuda"] = {"engine/base", "engine/tensor",  "engine/graph",
                                   "engine/ops",  "engine/backend", "engine/backend/cuda/kernels"};
    (*r)["engine/exec"] = {"engine/base", "engine/tensor", "engine/graph", "engine/ops",
                           "engine/backend"};
    std::set<std::string> upper = {"engine/base", "engine/tensor", "engine/graph", "engine/ops",
                                   "engine/exec"};
    (*r)["engine/nn"] = upper;
    upper.insert("engine/nn");
    (*r)["engine/formats"] = upper;
    upper.insert("engine/formats");
    (*r)["engine/train"] = upper;
    (*r)["engine/sample"] = upper;
    upper.insert({"engine/train", "engine/sample", "tandem/v1", "inference"});
    (*r)["server"] = upper;
    (*r)["client"] = {"tandem/v1", "inference"};
    (*r)["client/command"] = {"client",      "tandem/v1",     "inference",
                              "engine/base", "engine/tensor", "engine/formats"};
    return r;
  }();
  return *rules;
}

// Headers of others that only some places may know.
struct Confined {
  const char* pattern;
  std::vector<std::string> places;  // prefixes of paths
};
const std::vector<Confined>& ConfinedHeaders() {
  static const auto* const confined =
      new std::vector<Confined>{{"(oneapi/dnnl/|dnnl).*", {"engine/backend/cpu/"}},
                                {"onnx/.*", {"engine/formats/onnx"}},
                                {"prometheus/.*", {"server/metrics"}},
                                {"cuda[A-Za-z0-9_]*\\.h", {"engine/backend/cuda/kernels/"}},
                                {"(grpcpp|grpc)/.*", {"server/", "client/"}},
                                {"tandem/v1/.*", {"server/", "client/"}},
                                {"spdlog/.*", {"server/"}},
                                {"CLI/.*", {"server/main", "client/command/"}},
                                {"hwy/.*", {"engine/backend/cpu/kernels/"}}};
  return *confined;
}

TEST(LayeringTest, IncludesFollowTheRules) {
  const char* const env = std::getenv("TANDEM_SOURCE_DIR");
  const fs::path root = env != nullptr ? env : ".";
  const std::regex include(R"re(^\s*#\s*include\s+["<]([^">]+)[">])re");
  int files = 0, includes = 0;
  for (const char* top : {"engine", "server", "client"}) {
    ASSERT_TRUE(fs::is_directory(root / top)) << root / top;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string ending = entry.path().extension();
      if (ending != ".h" && ending != ".cc" && ending != ".cu") continue;
      const std::string file = entry.path().lexically_relative(root).generic_string();
      const std::string folder = fs::path(file).parent_path().generic_string();
      ASSERT_TRUE(Allowed().count(folder)) << file << " is in a folder without a rule";
      ++files;
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) {
        std::smatch match;
        if (!std::regex_search(line, match, include)) continue;
        ++includes;
        const std::string target = match[1];
        const std::string target_folder = fs::path(target).parent_path().generic_string();
        const bool ours = Allowed().count(target_folder) > 0 || target_folder == "tandem/v1" ||
                          target_folder == "inference";
        if (ours && target_folder != folder) {
          EXPECT_TRUE(Allowed().at(folder).count(target_folder)) << file << " includes " << target;
        }
        for (const Confined& c : ConfinedHeaders()) {
          if (!std::regex_match(target, std::regex(c.pattern))) continue;
          bool allowed = false;
          for (const std::string& place : c.places) allowed |= file.rfind(place, 0) == 0;
          EXPECT_TRUE(allowed) << file << " includes " << target;
        }
      }
    }
  }
  EXPECT_GT(files, 50);
  EXPECT_GT(includes, 200);
}

}  // namespace
}  // namespace tandem
