#include "engine/formats/sentencepiece_model.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace tandem {
namespace {

using PieceType = SentencePieceModel::PieceType;

// Protocol Buffers' wire format, as far as this message uses it.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}

  // Reads the next field; false at the end or when malformed (then ok() is false).
  bool Next() {
    if (bytes_.empty() || !ok_) return false;
    const uint64_t tag = Varint();
    field_ = static_cast<uint32_t>(tag >> 3);
    wire_type_ = static_cast<uint32_t>(tag & 7);
    switch (wire_type_) {
      case 0:
        number_ = Varint();
        break;
      case 1:
        text_ = Take(8);
        break;
      case 2:
        text_ = Take(Varint());
        break;
      case 5:
        text_ = Take(4);
        break;
      default:
        ok_ = false;
    }
    if (tag >> 3 == 0 || tag >> 3 > UINT32_MAX) ok_ = false;
    return ok_;
  }
  bool ok() const { return ok_; }
  uint32_t field() const { return field_; }

  uint64_t Number() { return Expect(0) ? number_ : 0; }
  bool Bool() { return Number() != 0; }
  std::string_view Bytes() { return Expect(2) ? text_ : std::string_view(); }
  float Float() {
    if (!Expect(5)) return 0;
    uint32_t bits = 0;
    for (int i = 3; i >= 0; --i) bits = bits << 8 | static_cast<uint8_t>(text_[i]);
    return std::bit_cast<float>(bits);
  }

 private:
  bool Expect(uint32_t wire_type) {
    if (wire_type_ != wire_type) ok_ = false;
    return ok_;
  }
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (bytes_.empty()) break;
      const uint8_t byte = static_cast<uint8_t>(bytes_[0]);
      bytes_.remove_prefix(1);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    ok_ = false;
    return 0;
  }
  std::string_view Take(uint64_t size) {
    if (size > bytes_.size()) {
      ok_ = false;
      return {};
    }
    const std::string_view taken = bytes_.substr(0, static_cast<size_t>(size));
    bytes_.remove_prefix(static_cast<size_t>(size));
    return taken;
  }

  std::string_view bytes_, text_;
  uint64_t number_ = 0;
  uint32_t field_ = 0, wire_type_ = 0;
  bool ok_ = true;
};

absl::Status Malformed(std::string_view message) {
  return InvalidArgument("SentencePiece model: malformed ", message);
}

absl::Status ParsePiece(std::string_view bytes, SentencePieceModel& model) {
  SentencePieceModel::Piece piece;
  WireReader reader(bytes);
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        piece.text = reader.Bytes();
        break;
      case 2:
        piece.score = reader.Float();
        break;
      case 3: {
        const uint64_t type = reader.Number();
        if (type < 1 || type > 6) {
          return InvalidArgument("SentencePiece model: piece ", model.pieces.size(), " has type ",
                                 type);
        }
        piece.type = static_cast<PieceType>(type);
        break;
      }
      default:
        break;
    }
  }
  if (!reader.ok()) return Malformed("piece");
  if (piece.text.empty() || !std::isfinite(piece.score)) {
    return InvalidArgument("SentencePiece model: piece ", model.pieces.size(),
                           " is empty or its score is not finite");
  }
  model.pieces.push_back(std::move(piece));
  return absl::OkStatus();
}

absl::Status ParseTrainerSpec(std::string_view bytes, SentencePieceModel& model) {
  WireReader reader(bytes);
  while (reader.Next()) {
    switch (reader.field()) {
      case 3: {
        const uint64_t algorithm = reader.Number();
        if (algorithm != 1 && algorithm != 2) {
          return Unimplemented("SentencePiece model: model_type ", algorithm,
                               "; 1 (unigram) and 2 (BPE) are supported");
        }
        model.algorithm = static_cast<SentencePieceModel::Algorithm>(algorithm);
        break;
      }
      case 24:
        if (reader.Bool()) {
          return Unimplemented("SentencePiece model: treat_whitespace_as_suffix");
        }
        break;
      case 35:
        model.byte_fallback = reader.Bool();
        break;
      case 44:
        model.unk_surface = reader.Bytes();
        break;
      case 46:
        model.bos_piece = reader.Bytes();
        break;
      case 47:
        model.eos_piece = reader.Bytes();
        break;
      default:
        break;
    }
  }
  return reader.ok() ? absl::OkStatus() : Malformed("trainer_spec");
}

absl::Status ParseNormalizerSpec(std::string_view bytes, SentencePieceModel& model) {
  WireReader reader(bytes);
  while (reader.Next()) {
    switch (reader.field()) {
      case 2:
        model.charsmap = reader.Bytes();
        break;
      case 3:
        model.add_dummy_prefix = reader.Bool();
        break;
      case 4:
        model.remove_extra_whitespaces = reader.Bool();
        break;
      case 5:
        model.escape_whitespaces = reader.Bool();
        break;
      default:
        break;
    }
  }
  return reader.ok() ? absl::OkStatus() : Malformed("normalizer_spec");
}

}  // namespace

absl::StatusOr<SentencePieceModel> ParseSentencePieceModel(std::string_view bytes) {
  SentencePieceModel model;
  WireReader reader(bytes);
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        TANDEM_RETURN_IF_ERROR(ParsePiece(reader.Bytes(), model));
        break;
      case 2:
        TANDEM_RETURN_IF_ERROR(ParseTrainerSpec(reader.Bytes(), model));
        break;
      case 3:
        TANDEM_RETURN_IF_ERROR(ParseNormalizerSpec(reader.Bytes(), model));
        break;
      case 5: {
        // A denormalizer would change decoded text; an empty one does nothing.
        SentencePieceModel denormalizer;
        TANDEM_RETURN_IF_ERROR(ParseNormalizerSpec(reader.Bytes(), denormalizer));
        if (!denormalizer.charsmap.empty()) {
          return Unimplemented("SentencePiece model: denormalizer_spec");
        }
        break;
      }
      default:
        break;  // self-test data, extensions
    }
  }
  if (!reader.ok()) return Malformed("message");
  if (model.pieces.empty()) return InvalidArgument("SentencePiece model: no pieces");
  return model;
}

}  // namespace tandem
