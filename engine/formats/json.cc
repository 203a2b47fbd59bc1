#include "engine/formats/json.h"

#include <set>
#include <string>
#include <vector>

namespace tandem {
namespace {

constexpr int kMaxDepth = 64;

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view what) {
  using Event = nlohmann::json::parse_event_t;
  std::string duplicate;
  bool has_duplicate = false;
  bool too_deep = false;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  auto callback = [&](int depth, Event event, nlohmann::json& parsed) {
    if (too_deep || depth > kMaxDepth) {
      too_deep = true;
      return false;
    }
    if (event == Event::object_start) {
      keys.emplace_back();
    } else if (event == Event::object_end) {
      keys.pop_back();
    } else if (event == Event::key && !has_duplicate) {
      const std::string& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        has_duplicate = true;
        duplicate = key;
      }
    }
    return true;
  };
  nlohmann::json value = nlohmann::json::parse(text.begin(), text.end(), callback,
                                               /*allow_exceptions=*/false);
  if (too_deep) return InvalidArgument(what, ": nested deeper than ", kMaxDepth);
  if (value.is_discarded()) return InvalidArgument(what, ": not valid JSON");
  if (has_duplicate) return InvalidArgument(what, ": key '", duplicate, "' appears twice");
  return value;
}

std::string DescribeJson(const nlohmann::json& value) {
  if (value.is_structured()) return value.type_name();
  // Scalars only: dump() recurses.
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace tandem
