// JSON from outside, parsed once and for all its readers in the same strict way.
#pragma once

#include <string_view>

#include "engine/base/error.h"
#include "nlohmann/json.hpp"

namespace tandem {

// The value of `text`. Errors, beginning with `what`: malformed, nested deeper than 64, or an
// object with a key twice (of which parsers keep whichever they like).
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, std::string_view what);

// A value for a message: a scalar as it is, else its kind.
std::string DescribeJson(const nlohmann::json& value);

}  // namespace tandem
