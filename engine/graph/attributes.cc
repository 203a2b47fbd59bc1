#include "engine/graph/attributes.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace tandem {
namespace {

template <typename T>
const T& Get(const Attributes::Value* value, std::string_view name) {
  const T* typed = value == nullptr ? nullptr : std::get_if<T>(value);
  if (typed == nullptr) {
    std::fprintf(stderr, "CHECK: attribute '%.*s' is missing or has another type\n",
                 static_cast<int>(name.size()), name.data());
    std::abort();
  }
  return *typed;
}

}  // namespace

void Attributes::Set(std::string_view name, Value value) {
  auto it = std::lower_bound(items_.begin(), items_.end(), name,
                             [](const auto& item, std::string_view n) { return item.first < n; });
  if (it != items_.end() && it->first == name) {
    it->second = std::move(value);
  } else {
    items_.emplace(it, std::string(name), std::move(value));
  }
}

const Attributes::Value* Attributes::Find(std::string_view name) const {
  for (const auto& [key, value] : items_) {
    if (key == name) return &value;
  }
  return nullptr;
}

int64_t Attributes::Int(std::string_view name) const { return Get<int64_t>(Find(name), name); }
int64_t Attributes::Int(std::string_view name, int64_t otherwise) const {
  return Has(name) ? Int(name) : otherwise;
}
double Attributes::Float(std::string_view name) const { return Get<double>(Find(name), name); }
double Attributes::Float(std::string_view name, double otherwise) const {
  return Has(name) ? Float(name) : otherwise;
}
const std::string& Attributes::String(std::string_view name) const {
  return Get<std::string>(Find(name), name);
}
const std::vector<int64_t>& Attributes::Ints(std::string_view name) const {
  return Get<std::vector<int64_t>>(Find(name), name);
}

const std::vector<double>& Attributes::Floats(std::string_view name) const {
  return Get<std::vector<double>>(Find(name), name);
}

std::string Attributes::ToString() const {
  // All digits: a key must tell two numbers apart.
  const auto append = [](std::string* out, double d) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.17g", d);
    absl::StrAppend(out, text);
  };
  return absl::StrJoin(items_, " ", [&](std::string* out, const auto& item) {
    absl::StrAppend(out, item.first, "=");
    if (const auto* ints = std::get_if<std::vector<int64_t>>(&item.second)) {
      absl::StrAppend(out, "[", absl::StrJoin(*ints, ","), "]");
    } else if (const auto* i = std::get_if<int64_t>(&item.second)) {
      absl::StrAppend(out, *i);
    } else if (const auto* d = std::get_if<double>(&item.second)) {
      append(out, *d);
    } else if (const auto* floats = std::get_if<std::vector<double>>(&item.second)) {
      absl::StrAppend(out, "[", absl::StrJoin(*floats, ",", append), "]");
    } else {
      absl::StrAppend(out, std::get<std::string>(item.second));
    }
  });
}

}  // namespace tandem
