// The archives that a state's or an options struct's fields pass through: writing, reading, and
// looking for numbers that are not finite. Little-endian, as every machine that this runs on.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace tandem {

// FNV-1a, 64 bits: finds damage, not malice.
inline uint64_t Fnv1a(std::string_view bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (char c : bytes) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

class TokenWriter {
 public:
  template <typename... Fields>
  void operator()(const Fields&... fields) {
    (Write(fields), ...);
  }
  std::string bytes;

 private:
  template <typename T>
  void Write(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void Write(const std::vector<double>& values) {
    Write(static_cast<uint64_t>(values.size()));
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
  }
};

// After the first field that the bytes do not hold, nothing more is read and ok() is false.
class TokenReader {
 public:
  explicit TokenReader(std::string_view bytes) : bytes_(bytes) {}
  template <typename... Fields>
  void operator()(Fields&... fields) {
    (Read(fields), ...);
  }
  bool ok() const { return ok_; }
  bool at_end() const { return bytes_.empty(); }

 private:
  bool Take(void* to, size_t size) {
    ok_ = ok_ && size <= bytes_.size();
    if (!ok_) return false;
    if (size > 0) std::memcpy(to, bytes_.data(), size);
    bytes_.remove_prefix(size);
    return true;
  }
  template <typename T>
  void Read(T& value) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_same_v<T, bool>);
    Take(&value, sizeof(T));
  }
  // Any byte is a value of an enum, checked by those who know it, but not of bool.
  void Read(bool& value) {
    uint8_t byte = 0;
    if (!Take(&byte, 1)) return;
    ok_ = byte <= 1;
    value = byte == 1;
  }
  void Read(std::vector<double>& values) {
    uint64_t size = 0;
    Read(size);
    ok_ = ok_ && size <= bytes_.size() / sizeof(double);
    if (!ok_) return;
    values.resize(size);
    Take(values.data(), size * sizeof(double));
  }

  std::string_view bytes_;
  bool ok_ = true;
};

class FiniteCheck {
 public:
  template <typename... Fields>
  void operator()(const Fields&... fields) {
    (Check(fields), ...);
  }
  bool finite() const { return finite_; }

 private:
  void Check(double value) { finite_ = finite_ && std::isfinite(value); }
  void Check(const std::vector<double>& values) {
    for (double value : values) Check(value);
  }
  template <typename T>
  requires(std::is_integral_v<T> || std::is_enum_v<T>) void Check(T) {}

  bool finite_ = true;
};

}  // namespace tandem
