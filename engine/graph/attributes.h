// An operator's attributes: a small sorted list of named values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace tandem {

class Attributes {
 public:
  using Value =
      std::variant<int64_t, double, std::string, std::vector<int64_t>, std::vector<double>>;

  Attributes() = default;
  Attributes(std::initializer_list<std::pair<std::string_view, Value>> items) {
    for (const auto& [name, value] : items) Set(name, value);
  }
  void Set(std::string_view name, Value value);

  // Reads; an operator asks only for attributes that its builder function sets, so a missing one
  // or one of another type is a bug and aborts. The forms with a default allow a missing one.
  int64_t Int(std::string_view name) const;
  int64_t Int(std::string_view name, int64_t otherwise) const;
  double Float(std::string_view name) const;
  double Float(std::string_view name, double otherwise) const;
  const std::string& String(std::string_view name) const;
  const std::vector<int64_t>& Ints(std::string_view name) const;
  const std::vector<double>& Floats(std::string_view name) const;
  bool Has(std::string_view name) const { return Find(name) != nullptr; }

  bool operator==(const Attributes&) const = default;
  // "axis=1 keep=0": for messages and as part of a key.
  std::string ToString() const;

 private:
  const Value* Find(std::string_view name) const;
  std::vector<std::pair<std::string, Value>> items_;  // sorted by name
};

}  // namespace tandem
