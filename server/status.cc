#include "server/status.h"

#include <algorithm>
#include <cstdint>

namespace tandem::server {
namespace {

// Length of the UTF-8 sequence that begins at text[i], or 0 where none does.
size_t Utf8Length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<uint8_t>(text[k]); };
  const uint8_t lead = byte(i);
  const size_t length = lead < 0x80   ? 1
                        : lead < 0xC2 ? 0
                        : lead < 0xE0 ? 2
                        : lead < 0xF0 ? 3
                        : lead < 0xF5 ? 4
                                      : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t k = 1; k < length; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
  }
  // Overlong forms, surrogates, and beyond U+10FFFF.
  if (lead == 0xE0 && byte(i + 1) < 0xA0) return 0;
  if (lead == 0xED && byte(i + 1) >= 0xA0) return 0;
  if (lead == 0xF0 && byte(i + 1) < 0x90) return 0;
  if (lead == 0xF4 && byte(i + 1) >= 0x90) return 0;
  return length;
}

}  // namespace

std::string Printable(std::string_view text) {
  std::string out;
  out.reserve(std::min(text.size(), kMaxMessageBytes));
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text, i);
    const bool control = length == 1 && (static_cast<uint8_t>(text[i]) < 0x20 || text[i] == 0x7F);
    const std::string_view piece =
        length == 0 || control ? std::string_view("?") : text.substr(i, length);
    if (out.size() + piece.size() > kMaxMessageBytes - 3) return out + "...";
    out += piece;
    i += std::max<size_t>(length, 1);
  }
  return out;
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      Printable(std::string(status.message())));
}

}  // namespace tandem::server
