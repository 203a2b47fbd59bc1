// The safetensors format: what is accepted, what is refused and why, and that files survive a round
// trip with their bits.
#include "engine/formats/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>
#include <random>

#include "nlohmann/json.hpp"
#include "tests/engine/material.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A file with this header and `data` zero bytes.
std::string File(const std::string& header, size_t data) {
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(header.size() >> (8 * i)));
  return file + header + std::string(data, '\0');
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)), file.size());
}

std::string ErrorOf(const std::string& header, size_t data) {
  return std::string(Parse(File(header, data)).status().message());
}

TEST(Safetensors, VerdictsOfTheMaterial) {
  TANDEM_NEED_MATERIAL("bad-inputs/safetensors/expectations.json");
  const std::string folder = MaterialPath("bad-inputs/safetensors/");
  const auto cases = nlohmann::json::parse(ReadFile(folder + "expectations.json"));
  ASSERT_GE(cases.size(), 20u);
  for (const auto& item : cases) {
    const std::string name = item["file"], expect = item["expect"];
    const auto file = SafetensorsFile::Open(folder + name);
    if (expect == "accept") {
      EXPECT_TRUE(file.ok()) << name << ": " << file.status();
    } else {
      ASSERT_EQ(expect, "reject");
      EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << name;
      EXPECT_THAT(std::string(file.status().message()), HasSubstr(name));
    }
  }
}

TEST(Safetensors, HeaderTellsTensorsAndMetadata) {
  const auto header = Parse(File(R"({"b":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]},)"
                                 R"("__metadata__":{"format":"pt"},)"
                                 R"("a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})",
                                 8));
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "a");  // in the order of the data
  EXPECT_EQ(header->tensors[0].file_type, "F8_E4M3");
  EXPECT_EQ(header->tensors[0].dtype, std::nullopt);
  EXPECT_EQ(header->tensors[1].dtype, DType::kF16);
  EXPECT_THAT(header->tensors[1].shape, ElementsAre(2, 1));
  EXPECT_EQ(header->tensors[1].begin, 4u);
  EXPECT_EQ(header->metadata.at("format"), "pt");
}

TEST(Safetensors, ErrorsNameWhatIsWrong) {
  const std::string a = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  EXPECT_THAT(ErrorOf("{" + a + "," + a + "}", 4), HasSubstr("duplicate key a"));
  EXPECT_THAT(ErrorOf("{" + a + "}", 5), HasSubstr("5 bytes of data, the header describes 4"));
  EXPECT_THAT(ErrorOf("{" + a + "}x", 4), HasSubstr("byte"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[1]}})", 4), HasSubstr("no data_offsets"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4),
              HasSubstr("unknown dtype F33"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4),
              HasSubstr("unknown field x"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4),
              HasSubstr("a negative number"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4),
              HasSubstr("a fraction"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}})", 4),
              HasSubstr("a number at key 'data_offsets'"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4),
              HasSubstr("not two numbers"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
              HasSubstr("has 4 bytes, its dtype and shape need 8"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1),
              HasSubstr("12 bits are not whole bytes"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2),
              HasSubstr("expected to begin at 0"));
  EXPECT_THAT(ErrorOf(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1),
              HasSubstr("lies at [1, 0)"));
  EXPECT_THAT(ErrorOf(R"({"__metadata__":{"a":1}})", 0), HasSubstr("a number at key 'a'"));
  EXPECT_THAT(ErrorOf(R"(["a"])", 0), HasSubstr("an array"));
  EXPECT_THAT(ErrorOf(std::string(100000, '{'), 0), HasSubstr("byte"));
  EXPECT_THAT(ErrorOf(R"({"a":)" + std::string(100000, '['), 0), HasSubstr("an array"));
}

TEST(Safetensors, CutAndChangedFilesAreRefusedOrAccepted) {
  // Every cut is refused, and no single changed byte does worse than that.
  std::string file = File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(Parse(file.substr(0, size)).ok()) << size;
  }
  int accepted = 0;
  for (size_t i = 0; i < file.size(); ++i) {
    for (int value = 0; value < 256; ++value) {
      std::string changed = file;
      changed[i] = static_cast<char>(value);
      const auto header = Parse(changed);
      if (!header.ok()) continue;
      ++accepted;
      uint64_t end = 0;
      for (const auto& tensor : header->tensors) end = std::max(end, tensor.end);
      EXPECT_EQ(header->data_begin + end, changed.size());
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(Safetensors, RoundTripKeepsBits) {
  const TemporaryFolder folder;
  std::mt19937 random(1);
  std::vector<float> f32(1000), f16, bf16;
  for (float& x : f32) x = std::normal_distribution<float>()(random);
  f32[0] = -0.0f;
  f32[1] = std::numeric_limits<float>::infinity();
  f32[2] = std::numeric_limits<float>::denorm_min();
  f32[3] = std::numeric_limits<float>::quiet_NaN();
  for (float x : f32) f16.push_back(static_cast<float>(F16(x)));
  for (float x : f32) bf16.push_back(static_cast<float>(BF16(x)));
  const std::string path = folder / "x.safetensors";
  const std::vector<SafetensorsSource> sources = {
      {"half", {10, 100}, DType::kF16, f16},
      {"brain", {1000}, DType::kBF16, bf16},
      {"full \"quoted\" \xC3\xA9", {10, 10, 10}, DType::kF32, f32},
      {"empty", {0, 3}, DType::kF32, {}},
      {"scalar", {}, DType::kF32, std::span(f32).first(1)}};
  ASSERT_TRUE(WriteSafetensors(path, sources, {{"format", "pt"}}).ok());

  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->header().data_begin % 8, 0u);
  EXPECT_EQ(file->header().metadata.at("format"), "pt");
  ASSERT_EQ(file->header().tensors.size(), sources.size());
  for (const SafetensorsSource& source : sources) {
    const auto& tensors = file->header().tensors;
    const auto tensor = std::find_if(tensors.begin(), tensors.end(),
                                     [&](const auto& t) { return t.name == source.name; });
    ASSERT_NE(tensor, tensors.end()) << source.name;
    EXPECT_EQ(tensor->shape, source.shape);
    EXPECT_EQ(tensor->dtype, source.file_dtype);
    EXPECT_EQ((file->header().data_begin + tensor->begin) % SizeOf(source.file_dtype), 0u);
    std::vector<float> values(source.values.size());
    ASSERT_TRUE(file->ReadFloats(*tensor, values).ok());
    EXPECT_TRUE(std::equal(
        values.begin(), values.end(), source.values.begin(),
        [](float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }))
        << source.name;
  }
}

TEST(Safetensors, LargeHalvesAreReadInPieces) {
  const TemporaryFolder folder;
  std::vector<float> values(1'000'003), read(values.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 251) - 125.0f;
  ASSERT_TRUE(
      WriteSafetensors(folder / "x",
                       std::vector<SafetensorsSource>{{"x", {1'000'003}, DType::kBF16, values}}, {})
          .ok());
  const auto file = SafetensorsFile::Open(folder / "x");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->ReadFloats(file->header().tensors[0], read).ok());
  EXPECT_EQ(values, read);
}

TEST(Safetensors, TypesWithoutFloatsAreUnimplementedByName) {
  const TemporaryFolder folder;
  WriteFile(folder / "x", File(R"({"w":{"dtype":"F8_E5M2","shape":[4],"data_offsets":[0,4]}})", 4));
  const auto file = SafetensorsFile::Open(folder / "x");
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<float> values(4);
  const absl::Status status = file->ReadFloats(file->header().tensors[0], values);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("w is F8_E5M2"));
}

TEST(Safetensors, WrongCountsAreErrors) {
  const TemporaryFolder folder;
  const std::vector<float> values(4);
  std::vector<float> three(3);
  EXPECT_THAT(std::string(WriteSafetensors(
                              folder / "x",
                              std::vector<SafetensorsSource>{{"x", {3}, DType::kF32, values}}, {})
                              .message()),
              HasSubstr("x has 4 values for a shape of 3"));
  EXPECT_FALSE(std::filesystem::exists(folder / "x"));
  ASSERT_TRUE(WriteSafetensors(folder / "x",
                               std::vector<SafetensorsSource>{{"x", {4}, DType::kF32, values}}, {})
                  .ok());
  const auto file = SafetensorsFile::Open(folder / "x");
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(std::string(file->ReadFloats(file->header().tensors[0], three).message()),
              HasSubstr("has 4 elements, expected 3"));
}

TEST(Safetensors, NotAFile) {
  const TemporaryFolder folder;
  EXPECT_EQ(SafetensorsFile::Open(folder / "none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(SafetensorsFile::Open(folder.path()).status().message()),
              HasSubstr("not a regular file"));
}

TEST(Safetensors, AWriteLeavesNothingElseBehind) {
  const TemporaryFolder folder;
  const std::vector<float> values(4, 1.0f);
  WriteFile(folder / "x", "old");
  ASSERT_TRUE(WriteSafetensors(folder / "x",
                               std::vector<SafetensorsSource>{{"x", {4}, DType::kF32, values}}, {})
                  .ok());
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    EXPECT_EQ(entry.path().filename(), "x");
    ++files;
  }
  EXPECT_EQ(files, 1);
  EXPECT_TRUE(SafetensorsFile::Open(folder / "x").ok());
}

}  // namespace
}  // namespace tandem
