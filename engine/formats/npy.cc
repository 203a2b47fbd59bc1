#include "engine/formats/npy.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <vector>

#include "engine/base/error.h"

namespace tandem {
namespace {

constexpr std::string_view kMagic("\x93NUMPY", 6);
// Far above any header of a numeric array.
constexpr size_t kMaxHeaderBytes = 65536;

struct Descr {
  std::string_view text;
  DType dtype;
};
constexpr Descr kDescrs[] = {
    {"f4", DType::kF32}, {"f8", DType::kF64}, {"f2", DType::kF16}, {"i1", DType::kI8},
    {"i2", DType::kI16}, {"i4", DType::kI32}, {"i8", DType::kI64}, {"u1", DType::kU8},
    {"u2", DType::kU16}, {"u4", DType::kU32}, {"u8", DType::kU64}, {"b1", DType::kBool},
};

absl::StatusOr<DType> ParseDescr(std::string_view descr) {
  if (descr.size() == 3 && (descr[0] == '<' || descr[0] == '|')) {
    for (const Descr& known : kDescrs) {
      if (known.text == descr.substr(1)) return known.dtype;
    }
  }
  return Unimplemented("npy: dtype '", descr, "' is not supported (little-endian numbers are)");
}

// The header is a Python literal, {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }; this
// reads that much of Python.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  absl::Status Parse() {
    if (!Eat("{")) return Malformed("'{'");
    while (!Eat("}")) {
      TANDEM_ASSIGN_OR_RETURN(const std::string_view key, Quoted());
      if (!Eat(":")) return Malformed("':'");
      TANDEM_RETURN_IF_ERROR(ParseValue(key));
      if (!Eat(",") && Peek() != '}') return Malformed("',' or '}'");
    }
    SkipSpace();
    if (!text_.empty()) return Malformed("the end");
    if (!descr || !fortran_order || !shape) {
      return InvalidArgument("npy: the header lacks 'descr', 'fortran_order' or 'shape'");
    }
    return absl::OkStatus();
  }

  std::optional<std::string_view> descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;

 private:
  absl::Status Malformed(std::string_view expected) const {
    return InvalidArgument("npy: malformed header: expected ", expected, ", ", text_.size(),
                           " characters before its end");
  }
  void SkipSpace() {
    while (!text_.empty() && (text_[0] == ' ' || text_[0] == '\n')) text_.remove_prefix(1);
  }
  char Peek() {
    SkipSpace();
    return text_.empty() ? '\0' : text_[0];
  }
  bool Eat(std::string_view token) {
    SkipSpace();
    if (text_.substr(0, token.size()) != token) return false;
    text_.remove_prefix(token.size());
    return true;
  }
  absl::StatusOr<std::string_view> Quoted() {
    const char quote = Peek();
    if (quote != '\'' && quote != '"') return Malformed("a string");
    const size_t end = text_.find(quote, 1);
    if (end == std::string_view::npos) return Malformed("a closing quote");
    const std::string_view value = text_.substr(1, end - 1);
    text_.remove_prefix(end + 1);
    return value;
  }
  absl::Status ParseValue(std::string_view key) {
    if (key == "descr" && !descr) {
      if (Peek() == '[') return Unimplemented("npy: structured arrays are not supported");
      TANDEM_ASSIGN_OR_RETURN(descr, Quoted());
      return absl::OkStatus();
    }
    if (key == "fortran_order" && !fortran_order) {
      if (Eat("False")) {
        fortran_order = false;
      } else if (Eat("True")) {
        fortran_order = true;
      } else {
        return Malformed("True or False");
      }
      return absl::OkStatus();
    }
    if (key == "shape" && !shape) return ParseShape();
    return InvalidArgument("npy: unknown or repeated header key '", key.substr(0, 40), "'");
  }
  absl::Status ParseShape() {
    if (!Eat("(")) return Malformed("'('");
    shape.emplace();
    while (!Eat(")")) {
      SkipSpace();
      const size_t digits = std::min(text_.find_first_not_of("0123456789"), text_.size());
      int64_t dim = 0;
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + digits, dim);
      if (error != std::errc() || end != text_.data() + digits) return Malformed("a dimension");
      text_.remove_prefix(digits);
      shape->push_back(dim);
      if (shape->size() > kMaxRank) {
        return Unimplemented("npy: more than ", kMaxRank, " dimensions");
      }
      if (!Eat(",") && Peek() != ')') return Malformed("',' or ')'");
    }
    return absl::OkStatus();
  }

  std::string_view text_;
};

// Splits the file into header text and data.
absl::Status SplitFile(std::string_view bytes, std::string_view& header, std::string_view& data) {
  if (bytes.size() < 10 || bytes.substr(0, 6) != kMagic) {
    return InvalidArgument("npy: not an .npy file: it does not begin with \\x93NUMPY");
  }
  const int major = static_cast<uint8_t>(bytes[6]);
  if (major < 1 || major > 3 || bytes[7] != 0) {
    return Unimplemented("npy: format version ", major, ".", static_cast<int>(bytes[7]));
  }
  const size_t length_bytes = major == 1 ? 2 : 4;
  const size_t start = 8 + length_bytes;
  if (bytes.size() < start) return InvalidArgument("npy: the file ends in its header");
  size_t length = 0;
  for (size_t i = 0; i < length_bytes; ++i) {
    length |= static_cast<size_t>(static_cast<uint8_t>(bytes[8 + i])) << (8 * i);
  }
  if (length > kMaxHeaderBytes || length > bytes.size() - start) {
    return InvalidArgument("npy: a header of ", length, " bytes in a file of ", bytes.size());
  }
  header = bytes.substr(start, length);
  data = bytes.substr(start + length);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Tensor> ReadNpy(std::string_view bytes) {
  std::string_view header, data;
  TANDEM_RETURN_IF_ERROR(SplitFile(bytes, header, data));
  HeaderParser parser(header);
  TANDEM_RETURN_IF_ERROR(parser.Parse());
  TANDEM_ASSIGN_OR_RETURN(const DType dtype, ParseDescr(*parser.descr));
  TANDEM_ASSIGN_OR_RETURN(const Shape shape,
                          Shape::Checked(*parser.shape, SizeOf(dtype), "npy: shape"));
  // One dimension lies the same way in both orders.
  if (*parser.fortran_order && shape.rank() > 1) {
    return Unimplemented("npy: Fortran order is not supported");
  }
  const int64_t expected = shape.num_elements() * SizeOf(dtype);
  if (static_cast<int64_t>(data.size()) != expected) {
    return InvalidArgument("npy: ", DTypeName(dtype), shape.ToString(), " needs ", expected,
                           " bytes of data, there are ", data.size());
  }
  Tensor tensor(dtype, shape);
  std::memcpy(tensor.raw(), data.data(), data.size());
  if (dtype == DType::kBool) {  // any other byte in a C++ bool is undefined behaviour
    auto* values = static_cast<uint8_t*>(tensor.raw());
    std::transform(values, values + expected, values, [](uint8_t byte) { return byte != 0; });
  }
  return tensor;
}

absl::StatusOr<std::string> WriteNpy(const Tensor& tensor) {
  const auto* known = std::find_if(std::begin(kDescrs), std::end(kDescrs), [&](const Descr& descr) {
    return descr.dtype == tensor.dtype();
  });
  if (known == std::end(kDescrs)) {
    return Unimplemented("npy: NumPy has no dtype for ", DTypeName(tensor.dtype()));
  }
  const char order = SizeOf(tensor.dtype()) == 1 ? '|' : '<';
  std::string header = StrCat("{'descr': '", std::string(1, order), known->text,
                              "', 'fortran_order': False, 'shape': (");
  for (const int64_t dim : tensor.shape()) header += StrCat(dim, ",");
  absl::StrAppend(&header, "), }");
  // Spaces and a newline, so that the data begins at a multiple of 64.
  constexpr size_t kPrefix = 10, kAlignment = 64;
  header.append(kAlignment - 1 - (kPrefix + header.size()) % kAlignment, ' ');
  header.push_back('\n');
  std::string file(kMagic);
  file.append({'\x01', '\0', static_cast<char>(header.size() & 0xff),
               static_cast<char>(header.size() >> 8)});
  file += header;
  file.append(static_cast<const char*>(tensor.raw()), static_cast<size_t>(tensor.bytes()));
  return file;
}

}  // namespace tandem
