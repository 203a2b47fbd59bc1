// Tokenizers: real goldens, every kind's rules on small vocabularies, streams, hostile files.
#include "engine/formats/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "engine/formats/bpe_tokenizer.h"
#include "engine/formats/character_tokenizer.h"
#include "engine/formats/pretokenize.h"
#include "engine/formats/sentencepiece_tokenizer.h"
#include "engine/formats/utf8.h"
#include "nlohmann/json.hpp"
#include "tests/engine/material.h"

namespace tandem {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  DecodeStream stream(tokenizer, /*at_start=*/true);
  std::string text;
  for (int32_t id : ids) {
    const auto piece = stream.Add(id);
    EXPECT_TRUE(piece.ok()) << piece.status();
    text += *piece;
  }
  return text + stream.Finish();
}

// The goldens of the folder's tokenizer, with only the files that `keep` names.
void CheckGoldens(const std::string& keep) {
  TANDEM_NEED_MATERIAL("llama/stories260K");
  const TemporaryFolder folder;
  for (const std::string& name : {keep, std::string("tokenizer_config.json")}) {
    std::filesystem::copy_file(MaterialPath("llama/stories260K/hf-f32/" + name), folder / name);
  }
  const auto tokenizer = LoadTokenizer(folder.path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 512);
  EXPECT_EQ((*tokenizer)->bos_id(), 1);
  EXPECT_EQ((*tokenizer)->eos_id(), 2);
  EXPECT_TRUE((*tokenizer)->adds_bos());
  const Json golden =
      Json::parse(ReadFile(MaterialPath("llama/stories260K/reference/tokenizer_golden.json")));
  ASSERT_GE(golden["cases"].size(), 10u);
  for (const Json& item : golden["cases"]) {
    const std::string text = item["text"];
    const std::vector<int32_t> expected = item["ids"];
    const auto ids = (*tokenizer)->Encode(text, /*add_bos=*/true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, expected) << text;
    const auto decoded = (*tokenizer)->Decode(expected);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, item["decoded"].get<std::string>());
    EXPECT_EQ(Streamed(**tokenizer, expected), *decoded);
    const auto without = (*tokenizer)->Encode(text, /*add_bos=*/false);
    ASSERT_TRUE(without.ok());
    EXPECT_EQ(*without, std::vector<int32_t>(expected.begin() + 1, expected.end()));
  }
}

TEST(Tokenizer, GoldensOfSentencePieceModel) { CheckGoldens("tokenizer.model"); }
TEST(Tokenizer, GoldensOfTokenizerJson) { CheckGoldens("tokenizer.json"); }

TEST(Tokenizer, BothFormsAgreeOnAnyText) {
  TANDEM_NEED_MATERIAL("llama/stories260K");
  const std::string folder = MaterialPath("llama/stories260K/hf-f32/");
  const auto model = SentencePieceTokenizer::FromModel(ReadFile(folder + "tokenizer.model"), "");
  const auto json = BpeTokenizer::FromJson(ReadFile(folder + "tokenizer.json"), "");
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_TRUE(json.ok()) << json.status();
  std::mt19937 random(7);
  const std::u32string alphabet = U"abcdefghinorstuwy    .,'\n\u00e9\u4e16\U0001F600\u0301AZ09";
  for (int round = 0; round < 500; ++round) {
    std::string text;
    const int length = std::uniform_int_distribution<int>(0, 60)(random);
    for (int i = 0; i < length; ++i) {
      AppendUtf8(alphabet[std::uniform_int_distribution<size_t>(0, alphabet.size() - 1)(random)],
                 text);
    }
    const auto a = (*model)->Encode(text, false), b = (*json)->Encode(text, false);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(*a, *b) << text;
    EXPECT_EQ((*model)->Decode(*a).value(), text);
    EXPECT_EQ(Streamed(**json, *b), text);
  }
}

TEST(Tokenizer, StreamHoldsBackIncompleteCharacters) {
  TANDEM_NEED_MATERIAL("llama/stories260K");
  const auto loaded = LoadTokenizer(MaterialPath("llama/stories260K/hf-f32"));
  ASSERT_TRUE(loaded.ok());
  const Tokenizer& tokenizer = **loaded;
  // Byte b is token 3 + b; U+20AC is E2 82 AC.
  DecodeStream stream(tokenizer, /*at_start=*/false);
  EXPECT_EQ(stream.Add(3 + 0xE2).value(), "");
  EXPECT_EQ(stream.Add(3 + 0x82).value(), "");
  EXPECT_EQ(stream.Add(3 + 0xAC).value(), "\u20ac");
  EXPECT_EQ(stream.Add(3 + 0xE2).value(), "");
  EXPECT_EQ(stream.Add(261).value(), "\uFFFD a");  // what was begun cannot go on with a space
  EXPECT_EQ(stream.Add(3 + 0xF0).value(), "");
  EXPECT_EQ(stream.Finish(), "\uFFFD");
  EXPECT_EQ(stream.Finish(), "");
  // The space that marks a word is not shown where a text begins, and is where it goes on.
  EXPECT_EQ(DecodeStream(tokenizer, true).Add(261).value(), "a");
  EXPECT_EQ(DecodeStream(tokenizer, false).Add(261).value(), " a");
  EXPECT_THAT(std::string(stream.Add(512).status().message()), HasSubstr("token id 512"));
  EXPECT_FALSE(stream.Add(-1).ok());
}

TEST(CharacterTokenizer, EncodesByPositionAndNamesWhatItLacks) {
  const auto characters = CharactersOf("hello \u20ac\n");
  ASSERT_TRUE(characters.ok());
  EXPECT_EQ(*characters, U"\n ehlo\u20ac");
  const TemporaryFolder folder;
  WriteFile(folder / "tandem_characters.json", WriteCharacters(*characters));
  const auto loaded = LoadTokenizer(folder.path());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Tokenizer& tokenizer = **loaded;
  EXPECT_EQ(tokenizer.vocab_size(), 7);
  EXPECT_FALSE(tokenizer.bos_id().has_value());
  EXPECT_THAT(tokenizer.Encode("hell\u20ac", true).value(), ElementsAre(3, 2, 4, 4, 6));
  EXPECT_EQ(tokenizer.Decode(std::vector<int32_t>{3, 2, 4, 4, 6}).value(), "hell\u20ac");
  EXPECT_EQ(Streamed(tokenizer, {1, 6, 1}), " \u20ac ");
  const absl::Status unknown = tokenizer.Encode("h\u00e9", true).status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("'\u00e9' (U+00e9) at byte 1"));
  EXPECT_THAT(std::string(tokenizer.Encode("h\xFF", true).status().message()),
              HasSubstr("byte 1 is not UTF-8"));
}

TEST(CharacterTokenizer, RefusesBadVocabularies) {
  for (const char* json :
       {"[]", "{}", "{\"characters\":[]}", "{\"characters\":[\"ab\"]}", "{\"characters\":[\"\"]}",
        "{\"characters\":[1]}", "{\"characters\":[\"a\",\"a\"]}",
        "{\"characters\":[\"a\"],\"x\":1}", "{\"characters\":\"ab\"}", "nonsense",
        "{\"characters\":[\"a\"],\"characters\":[\"b\"]}"}) {
    EXPECT_EQ(CharacterTokenizer::FromJson(json).status().code(),
              absl::StatusCode::kInvalidArgument)
        << json;
  }
}

// --- SentencePiece on small models, written here in the wire format ------------------------------

void PutVarint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}
void PutBytes(std::string& out, int field, const std::string& bytes) {
  PutVarint(out, field << 3 | 2);
  PutVarint(out, bytes.size());
  out += bytes;
}
void PutNumber(std::string& out, int field, uint64_t value) {
  PutVarint(out, field << 3);
  PutVarint(out, value);
}

struct TestPiece {
  std::string text;
  float score = 0;
  int type = 1;
};

std::string Model(const std::vector<TestPiece>& pieces, int algorithm, bool byte_fallback,
                  const std::string& normalizer) {
  std::string model;
  for (const TestPiece& piece : pieces) {
    std::string bytes;
    PutBytes(bytes, 1, piece.text);
    PutVarint(bytes, 2 << 3 | 5);
    bytes.append(reinterpret_cast<const char*>(&piece.score), 4);
    PutNumber(bytes, 3, piece.type);
    PutBytes(model, 1, bytes);
  }
  std::string trainer;
  PutNumber(trainer, 3, algorithm);
  PutNumber(trainer, 35, byte_fallback);
  PutBytes(model, 2, trainer);
  PutBytes(model, 3, normalizer);
  return model;
}

std::string Normalizer(bool dummy_prefix, bool remove_extra, const std::string& charsmap = "") {
  std::string bytes;
  if (!charsmap.empty()) PutBytes(bytes, 2, charsmap);
  PutNumber(bytes, 3, dummy_prefix);
  PutNumber(bytes, 4, remove_extra);
  PutNumber(bytes, 5, 1);
  return bytes;
}

constexpr int kUnigram = 1, kBpe = 2;
constexpr int kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5;

std::vector<int32_t> Ids(const std::string& model, const std::string& text) {
  const auto tokenizer = SentencePieceTokenizer::FromModel(model, "");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? (*tokenizer)->Encode(text, false).value() : std::vector<int32_t>{};
}

TEST(SentencePiece, UnigramTakesTheMostLikelySegmentation) {
  const std::vector<TestPiece> pieces = {
      {"<unk>", 0, kUnknown}, {"<s>", 0, kControl}, {"a", -1}, {"b", -2},
      {"ab", -2.5},           {"abc", -9},          {"c", -4}, {"<x>", 0, kUserDefined}};
  const std::string model = Model(pieces, kUnigram, false, Normalizer(false, false));
  EXPECT_THAT(Ids(model, "ab"), ElementsAre(4));      // -2.5 > -1 - 2
  EXPECT_THAT(Ids(model, "abc"), ElementsAre(4, 6));  // -6.5 > -9
  EXPECT_THAT(Ids(model, "ba"), ElementsAre(3, 2));
  EXPECT_THAT(Ids(model, "azzb"), ElementsAre(2, 0, 3));  // unknown characters make one token
  EXPECT_THAT(Ids(model, "a<x>b"), ElementsAre(2, 7, 3));
  EXPECT_THAT(Ids(model, ""), ElementsAre());
}

TEST(SentencePiece, AUserDefinedPieceAlwaysWins) {
  const std::vector<TestPiece> pieces = {
      {"<unk>", 0, kUnknown}, {"c", -0.5f}, {"d", -0.5f}, {"cd", 0, kUserDefined}};
  const std::string model = Model(pieces, kUnigram, false, Normalizer(false, false));
  EXPECT_THAT(Ids(model, "dcd"), ElementsAre(2, 3));
}

TEST(SentencePiece, MarksAtTheBeginningAreNotShown) {
  const std::vector<TestPiece> pieces = {{"<unk>", 0, kUnknown}, {"\u2581", -1}, {"a", -1}};
  const auto decode = [&](const std::string& normalizer) {
    const auto tokenizer =
        SentencePieceTokenizer::FromModel(Model(pieces, kBpe, false, normalizer), "");
    return (*tokenizer)->Decode(std::vector<int32_t>{1, 1, 2, 1, 2}).value();
  };
  EXPECT_EQ(decode(Normalizer(true, true)), "a a");
  EXPECT_EQ(decode(Normalizer(true, false)), " a a");
  EXPECT_EQ(decode(Normalizer(false, false)), "  a a");
}

TEST(SentencePiece, BpeMergesTheBestPairFirst) {
  const std::vector<TestPiece> pieces = {{"<unk>", 0, kUnknown},
                                         {"a", -10},
                                         {"b", -11},
                                         {"ab", -2},
                                         {"ba", -1},
                                         {"zz", -3},
                                         {"c", -12},
                                         {"bc", -4, kUnused},
                                         {"<y>", 0, kUserDefined}};
  const std::string model = Model(pieces, kBpe, false, Normalizer(false, false));
  EXPECT_THAT(Ids(model, "aba"), ElementsAre(1, 4));  // "ba" before "ab"
  EXPECT_THAT(Ids(model, "ab"), ElementsAre(3));
  EXPECT_THAT(Ids(model, "bc"), ElementsAre(2, 6));  // an unused piece falls apart again
  EXPECT_THAT(Ids(model, "a<y>b"), ElementsAre(1, 8, 2));
}

TEST(SentencePiece, NormalizesSpaces) {
  const std::vector<TestPiece> pieces = {
      {"<unk>", 0, kUnknown}, {"\u2581", -1}, {"a", -1}, {"b", -1}};
  const std::string keep = Model(pieces, kBpe, false, Normalizer(true, false));
  EXPECT_THAT(Ids(keep, " a  b "), ElementsAre(1, 1, 2, 1, 1, 3, 1));
  const std::string remove = Model(pieces, kBpe, false, Normalizer(true, true));
  EXPECT_THAT(Ids(remove, "  a   b  "), ElementsAre(1, 2, 1, 3));
  EXPECT_THAT(Ids(remove, "   "), ElementsAre());
  const std::string plain = Model(pieces, kBpe, false, Normalizer(false, false));
  EXPECT_THAT(Ids(plain, "a b"), ElementsAre(2, 1, 3));
}

TEST(SentencePiece, CharsmapReplaces) {
  // A double array with one key, "B" (0x42) -> "a": root offset 1; node 1 ^ 0x42 = 0x43 has a leaf
  // at offset 1, and the leaf at 0x42 holds the value 0.
  std::string trie(4 * 0x50, '\0');
  auto put = [&](size_t i, uint32_t unit) { std::memcpy(trie.data() + 4 * i, &unit, 4); };
  put(0, 1u << 10);
  put(0x43, 0x42 | 1u << 8 | 1u << 10);
  put(0x42, 1u << 31);
  std::string charsmap(4, '\0');
  const uint32_t size = static_cast<uint32_t>(trie.size());
  std::memcpy(charsmap.data(), &size, 4);
  charsmap += trie + std::string("a\0", 2);
  const std::vector<TestPiece> pieces = {{"<unk>", 0, kUnknown}, {"a", -1}, {"b", -1}};
  EXPECT_THAT(Ids(Model(pieces, kBpe, false, Normalizer(false, false, charsmap)), "aBb"),
              ElementsAre(1, 1, 2));
  EXPECT_THAT(Ids(Model(pieces, kBpe, false, Normalizer(false, false)), "aBb"),
              ElementsAre(1, 0, 2));
  for (const std::string& bad :
       {std::string("abc"), charsmap.substr(0, 20), std::string(8, '\xFF')}) {
    EXPECT_FALSE(SentencePieceTokenizer::FromModel(
                     Model(pieces, kBpe, false, Normalizer(false, false, bad)), "")
                     .ok());
  }
}

TEST(SentencePiece, RefusesBadModels) {
  const std::string normalizer = Normalizer(false, false);
  const auto error = [](const std::string& model) {
    return std::string(SentencePieceTokenizer::FromModel(model, "").status().message());
  };
  EXPECT_THAT(error(""), HasSubstr("no pieces"));
  EXPECT_THAT(error("nonsense"), HasSubstr("malformed"));
  EXPECT_THAT(error(Model({{"a", 0}}, kBpe, false, normalizer)), HasSubstr("no unknown piece"));
  const std::vector<TestPiece> twice = {{"<unk>", 0, kUnknown}, {"a", 0}, {"a", 0}};
  EXPECT_THAT(error(Model(twice, kBpe, false, normalizer)), HasSubstr("'a' is there twice"));
  const std::vector<TestPiece> one = {{"<unk>", 0, kUnknown}, {"a", 0}};
  EXPECT_THAT(error(Model(one, kBpe, true, normalizer)), HasSubstr("a piece for every byte"));
  EXPECT_THAT(error(Model(one, 4, false, normalizer)), HasSubstr("model_type 4"));
  const std::string good = Model(one, kBpe, false, normalizer);
  for (size_t size = 0; size < good.size(); ++size) {
    // A cut model may be a smaller one; it must not do worse.
    (void)SentencePieceTokenizer::FromModel(good.substr(0, size), "");
  }
}

// --- tokenizer.json
// -------------------------------------------------------------------------------

Json ByteLevelJson() {
  // "\u0120" stands for a space, "\u010a" for a newline.
  return Json::parse(R"({
    "added_tokens": [{"id": 300, "content": "<|end|>", "special": true},
                     {"id": 301, "content": "<plain>", "special": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": {"type": "ByteLevel"},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"h": 0, "e": 1, "l": 2, "o": 3, "\u0120": 4, "\u010a": 5,
        "he": 6, "ll": 7, "hell": 8, "\u0120h": 9, "\u00c3": 10, "\u00a9": 11, "lo": 12,
        "<|end|>": 300},
      "merges": ["h e", ["l", "l"], "he ll", "\u0120 h", "l o"]}})");
}

std::unique_ptr<const Tokenizer> FromJson(const Json& json, const std::string& config = "") {
  auto tokenizer = BpeTokenizer::FromJson(json.dump(), config);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

TEST(TokenizerJson, ByteLevel) {
  const auto tokenizer = FromJson(ByteLevelJson(), R"({"eos_token": {"content": "<|end|>"}})");
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->eos_id(), 300);
  EXPECT_FALSE(tokenizer->adds_bos());
  EXPECT_THAT(tokenizer->Encode("hello", false).value(), ElementsAre(8, 3));
  EXPECT_THAT(tokenizer->Encode("hello hello\n", false).value(), ElementsAre(8, 3, 4, 8, 3, 5));
  EXPECT_THAT(tokenizer->Encode("o ho", false).value(), ElementsAre(3, 9, 3));
  EXPECT_THAT(tokenizer->Encode("\u00e9", false).value(), ElementsAre(10, 11));
  EXPECT_THAT(tokenizer->Encode("h<|end|>o<plain>", false).value(), ElementsAre(0, 300, 3, 301));
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{9, 1, 7, 3, 300, 301, 10, 11}).value(),
            " hello<plain>\u00e9");
  EXPECT_FALSE(tokenizer->Find(299).ok());  // a hole
  EXPECT_EQ(tokenizer->vocab_size(), 302);
}

TEST(TokenizerJson, EveryOptionMatters) {
  Json prefix = ByteLevelJson();
  prefix["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_THAT(FromJson(prefix)->Encode("ho", false).value(), ElementsAre(9, 3));
  Json whole = ByteLevelJson();
  whole["pre_tokenizer"]["use_regex"] = false;
  whole["model"]["vocab"]["o\u0120"] = 13;
  whole["model"]["merges"].insert(whole["model"]["merges"].begin(), "o \u0120");
  EXPECT_THAT(FromJson(whole)->Encode("o h", false).value(), ElementsAre(13, 0));
  Json regex = whole;
  regex["pre_tokenizer"]["use_regex"] = true;
  EXPECT_THAT(FromJson(regex)->Encode("o h", false).value(), ElementsAre(3, 9));
  Json ignore = ByteLevelJson();
  ignore["model"]["vocab"]["hello"] = 14;
  EXPECT_THAT(FromJson(ignore)->Encode("hello", false).value(), ElementsAre(8, 3));
  ignore["model"]["ignore_merges"] = true;
  EXPECT_THAT(FromJson(ignore)->Encode("hello", false).value(), ElementsAre(14));
  Json bos = ByteLevelJson();
  bos["post_processor"] = Json::parse(
      R"({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "TemplateProcessing",
          "single": [{"SpecialToken": {"id": "<|end|>"}}, {"Sequence": {"id": "A"}}]}]})");
  EXPECT_TRUE(FromJson(bos)->adds_bos());
  EXPECT_THAT(FromJson(bos)->Encode("o", true).value(), ElementsAre(300, 3));
}

TEST(TokenizerJson, UnsupportedPartsAreNamed) {
  const auto error = [](const Json& json) {
    return std::string(BpeTokenizer::FromJson(json.dump(), "").status().message());
  };
  Json json = ByteLevelJson();
  json["model"]["type"] = "WordPiece";
  EXPECT_THAT(error(json), HasSubstr("model.type is \"WordPiece\""));
  json = ByteLevelJson();
  json["model"]["dropout"] = 0.1;
  EXPECT_THAT(error(json), HasSubstr("model.dropout is 0.1"));
  json = ByteLevelJson();
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_THAT(error(json), HasSubstr("normalizer is \"NFC\""));
  json = ByteLevelJson();
  json["pre_tokenizer"] = Json::parse(
      R"({"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated", "invert": false})");
  EXPECT_THAT(error(json), HasSubstr("Split pattern is"));
  json = ByteLevelJson();
  json["added_tokens"][0]["lstrip"] = true;
  EXPECT_THAT(error(json), HasSubstr("'<|end|>' has lstrip"));
  json = ByteLevelJson();
  json["model"]["merges"].push_back("h z");
  EXPECT_THAT(error(json), HasSubstr("model.merges[5]"));
  json = ByteLevelJson();
  json["model"]["vocab"]["x"] = 4'000'000'000;
  EXPECT_THAT(error(json), HasSubstr("token 'x' has id 4000000000"));
  json = ByteLevelJson();
  json["model"]["vocab"]["x"] = 2;
  EXPECT_THAT(error(json), HasSubstr("has an id that another has: 2"));
  json = ByteLevelJson();
  json["decoder"] = {{"type", "WordPiece"}};
  EXPECT_THAT(error(json), HasSubstr("decoder is \"WordPiece\""));
}

TEST(Pretokenize, Gpt2) {
  const auto split = [](std::string_view text) { return SplitWords(WordPattern::kGpt2, text); };
  EXPECT_THAT(split("Hello, world! It's 2024."),
              ElementsAre("Hello", ",", " world", "!", " It", "'s", " 2024", "."));
  EXPECT_THAT(split("a   b \n"), ElementsAre("a", "  ", " b", " \n"));
  EXPECT_THAT(split("a\n\n b"), ElementsAre("a", "\n\n", " b"));
  EXPECT_THAT(split("don'T 'tis"), ElementsAre("don", "'", "T", " '", "tis"));
  EXPECT_THAT(split("\u00e9t\u00e9 \u4e16\u754c \u0663\u2153\u3000x"),
              ElementsAre("\u00e9t\u00e9", " \u4e16\u754c", " \u0663\u2153", "\u3000", "x"));
}

TEST(Pretokenize, Llama3) {
  const auto split = [](std::string_view text) { return SplitWords(WordPattern::kLlama3, text); };
  EXPECT_THAT(split("Hello, world! It'S 12345."),
              ElementsAre("Hello", ",", " world", "!", " It", "'S", " ", "123", "45", "."));
  EXPECT_THAT(split("a  b\n  \n c"), ElementsAre("a", " ", " b", "\n  \n", " c"));
  EXPECT_THAT(split("(x)\n\ny  "), ElementsAre("(x", ")\n\n", "y", "  "));
}

TEST(Utf8, TableOfTheStandard) {
  EXPECT_EQ(DecodeUtf8("\xE2\x82\xAC").code, 0x20ACu);
  EXPECT_EQ(DecodeUtf8("\xF0\x9F\x98\x80").code, 0x1F600u);
  for (const char* bad : {"\x80", "\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                          "\xF5\x80\x80\x80", "\xE2\x28\xA1"}) {
    EXPECT_FALSE(DecodeUtf8(bad).valid);
    EXPECT_FALSE(DecodeUtf8(bad).truncated);
  }
  EXPECT_TRUE(DecodeUtf8("\xE2\x82").truncated);
  EXPECT_EQ(DecodeUtf8("\xE2\x82").length, 2);
  for (char32_t code : {0x24u, 0xA2u, 0x20ACu, 0x10348u, 0x10FFFFu}) {
    std::string text;
    AppendUtf8(code, text);
    EXPECT_EQ(DecodeUtf8(text).code, code);
  }
}

TEST(LoadTokenizer, NamesAFolderWithoutOne) {
  const TemporaryFolder folder;
  const absl::Status status = LoadTokenizer(folder.path()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  WriteFile(folder / "tokenizer.json", "{");
  EXPECT_THAT(std::string(LoadTokenizer(folder.path()).status().message()),
              HasSubstr("tokenizer.json"));
}

}  // namespace
}  // namespace tandem
