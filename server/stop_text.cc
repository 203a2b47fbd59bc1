#include "server/stop_text.h"

#include <algorithm>
#include <utility>

namespace tandem::server {

std::string StopText::Add(std::string_view piece, bool* found) {
  *found = false;
  const size_t known = held_.size();  // no stop text ends within this
  std::string text = std::exchange(held_, {}) + std::string(piece);
  for (size_t end = known + 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops_) {
      if (std::string_view(text).substr(0, end).ends_with(stop)) {
        longest = std::max(longest, stop.size());
      }
    }
    if (longest != 0) {
      *found = true;
      text.resize(end - longest);
      return text;
    }
  }
  size_t hold = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, text.size()); length > hold; --length) {
      if (text.ends_with(std::string_view(stop).substr(0, length))) hold = length;
    }
  }
  held_ = text.substr(text.size() - hold);
  text.resize(text.size() - hold);
  return text;
}

std::string StopText::Finish() { return std::exchange(held_, {}); }

}  // namespace tandem::server
