#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command/command.h"

namespace tandem::command {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string Duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  return absl::StrFormat("%d:%02d", s / 60, s % 60);
}

}  // namespace

void Session::Run(const std::function<absl::Status()>& body) {
  const absl::Status status = body();
  if (status.ok()) return;
  std::fflush(stdout);
  std::fprintf(stderr, "error: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(),
               std::string(status.message()).c_str());
  exit_code = 1;
}

void PrintJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string text;
  (void)google::protobuf::util::MessageToJsonString(message, &text, options);
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

void PrintTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - row[i].size() + 2, ' ');
    }
    std::printf("%s\n", line.c_str());
  }
}

std::string WithCommas(int64_t value) {
  std::string digits = std::to_string(value);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) {
    digits.insert(at, ",");
  }
  return digits;
}

std::string Quantity(double value) {
  if (value < 1000) return absl::StrFormat("%.4g", value);
  const char* unit = "";
  for (const char* next : {"k", "M", "G", "T", "P"}) {
    if (value < 999.5) break;
    value /= 1000;
    unit = next;
  }
  return absl::StrFormat("%.3g %s", value, unit);
}

std::string Bytes(int64_t bytes) {
  if (bytes < 1024) return absl::StrFormat("%d B", bytes);
  double value = static_cast<double>(bytes);
  const char* unit = "B";
  for (const char* next : {"KiB", "MiB", "GiB", "TiB"}) {
    if (value < 1024) break;
    value /= 1024;
    unit = next;
  }
  return absl::StrFormat("%.1f %s", value, unit);
}

std::string ShapeText(const google::protobuf::RepeatedField<int64_t>& dims) {
  return StrCat("(", absl::StrJoin(dims, ","), ")");
}

Progress::Progress(int64_t total, std::string unit)
    : total_(total), unit_(std::move(unit)), terminal_(isatty(STDERR_FILENO) == 1), start_(Now()) {}

double Progress::Elapsed() const { return Now() - start_; }

void Progress::Update(int64_t done, const std::string& detail) {
  done_ = done;
  detail_ = detail;
  const double interval = terminal_ ? 0.1 : 5;
  if ((done < total_ || total_ == 0) && Elapsed() - last_drawn_ < interval) return;
  Draw();
}

void Progress::Draw() {
  last_drawn_ = Elapsed();
  constexpr int kWidth = 24;
  std::string line;
  if (total_ > 0) {
    const double share = static_cast<double>(done_) / static_cast<double>(total_);
    const int filled = static_cast<int>(share * kWidth);
    const double eta = done_ > 0 ? last_drawn_ / share - last_drawn_ : 0;
    line = absl::StrFormat("[%s%s] %s %d/%d  %s  %s, %s left", std::string(filled, '#'),
                           std::string(kWidth - filled, '.'), unit_, done_, total_, detail_,
                           Duration(last_drawn_), Duration(eta));
  } else {
    line = StrCat(unit_, " ", WithCommas(done_), "  ", detail_, "  ", Duration(last_drawn_));
  }
  if (terminal_) {
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
}

void Progress::Note(const std::string& text) {
  if (terminal_) std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
  if (terminal_) Draw();
}

void Progress::Finish() {
  if (terminal_) std::fprintf(stderr, "\n");
}

}  // namespace tandem::command
