// Ends a text at the first of some stop texts, as it arrives piece by piece.
//
// Whatever the pieces, the text given out is the same: up to where the stop text begins that is
// complete first. Text that could be the beginning of one is held back until it is known.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tandem::server {

class StopText {
 public:
  // None is empty.
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // The text that is certain after this piece; `found` says that a stop text was, and then there is
  // no more.
  std::string Add(std::string_view piece, bool* found);
  // What was held back, when the text ends otherwise.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace tandem::server
