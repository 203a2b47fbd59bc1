#include "server/stop_text.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace tandem::server {
namespace {

struct Outcome {
  std::string text;
  bool found = false;
  bool operator==(const Outcome&) const = default;
};

Outcome Feed(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopText stop(stops);
  Outcome outcome;
  for (const std::string& piece : pieces) {
    outcome.text += stop.Add(piece, &outcome.found);
    if (outcome.found) return outcome;
  }
  outcome.text += stop.Finish();
  return outcome;
}

TEST(StopText, NothingToFind) {
  EXPECT_EQ(Feed({}, {"a", "bc"}), (Outcome{"abc", false}));
  EXPECT_EQ(Feed({"xyz"}, {"ax", "yx", "y"}), (Outcome{"axyxy", false}));
}

TEST(StopText, FoundAcrossPieces) {
  EXPECT_EQ(Feed({"END"}, {"to E", "N", "D of it"}), (Outcome{"to ", true}));
  EXPECT_EQ(Feed({"\n\n"}, {"line\n", "\nnext"}), (Outcome{"line", true}));
}

TEST(StopText, AFalseStartIsGivenBack) {
  EXPECT_EQ(Feed({"aab"}, {"a", "a", "a", "b", "c"}), (Outcome{"a", true}));
  EXPECT_EQ(Feed({"aab"}, {"aa", "c"}), (Outcome{"aac", false}));
}

TEST(StopText, HoldsBackOnlyWhatMayBecomeOne) {
  StopText stop({"STOP", "TAP"});
  bool found = false;
  EXPECT_EQ(stop.Add("go S", &found), "go ");
  EXPECT_EQ(stop.Add("T", &found), "");
  EXPECT_EQ(stop.Add("A", &found), "S");  // "TA" may become TAP
  EXPECT_EQ(stop.Add("R", &found), "TAR");
  EXPECT_FALSE(found);
  EXPECT_EQ(stop.Finish(), "");
}

TEST(StopText, TheSameHoweverItIsCut) {
  const std::string text = "abcabdabcabc-stop-abcd";
  const std::vector<std::string> stops = {"abcabc", "bca", "-stop", "c-"};
  const Outcome whole = Feed(stops, {text});
  EXPECT_TRUE(whole.found);
  for (size_t a = 0; a <= text.size(); ++a) {
    for (size_t b = a; b <= text.size(); ++b) {
      EXPECT_EQ(Feed(stops, {text.substr(0, a), text.substr(a, b - a), text.substr(b)}), whole)
          << a << " " << b;
    }
  }
}

}  // namespace
}  // namespace tandem::server
