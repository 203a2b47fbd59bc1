#include "client/command/svg.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "engine/base/error.h"

namespace tandem::command {
namespace {

std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20) out += c;
    }
  }
  return out;
}

std::string Number(double value) { return absl::StrFormat("%.2f", value); }

}  // namespace

Svg::Svg(double width, double height) {
  body_ = StrCat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", Number(width),
                 "\" height=\"", Number(height), "\" viewBox=\"0 0 ", Number(width), " ",
                 Number(height), "\" font-family=\"sans-serif\">\n",
                 "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n");
}

void Svg::Rect(double x, double y, double width, double height, std::string_view style) {
  body_ += StrCat("<rect x=\"", Number(x), "\" y=\"", Number(y), "\" width=\"", Number(width),
                  "\" height=\"", Number(height), "\" ", style, "/>\n");
}

void Svg::Line(double x1, double y1, double x2, double y2, std::string_view style) {
  body_ += StrCat("<line x1=\"", Number(x1), "\" y1=\"", Number(y1), "\" x2=\"", Number(x2),
                  "\" y2=\"", Number(y2), "\" ", style, "/>\n");
}

void Svg::Polygon(const Points& points, std::string_view style) {
  body_ += "<polygon points=\"";
  for (const auto& [x, y] : points) body_ += StrCat(Number(x), ",", Number(y), " ");
  body_ += StrCat("\" ", style, "/>\n");
}

void Svg::Curve(const Points& points, std::string_view style) {
  std::string path;
  bool pen_down = false;
  for (const auto& [x, y] : points) {
    const bool finite = std::isfinite(x) && std::isfinite(y);
    if (finite) path += StrCat(pen_down ? "L" : "M", Number(x), " ", Number(y), " ");
    pen_down = finite;
  }
  body_ += StrCat("<path fill=\"none\" d=\"", path, "\" ", style, "/>\n");
}

void Svg::Text(double x, double y, std::string_view text, double size, Anchor anchor,
               std::string_view style) {
  const char* const where = anchor == Anchor::kStart    ? "start"
                            : anchor == Anchor::kMiddle ? "middle"
                                                        : "end";
  body_ += StrCat("<text x=\"", Number(x), "\" y=\"", Number(y), "\" font-size=\"", Number(size),
                  "\" text-anchor=\"", where, "\" ", style, ">", Escaped(text), "</text>\n");
}

std::string Svg::Finish() const { return body_ + "</svg>\n"; }

std::vector<double> Ticks(double low, double high, int most) {
  std::vector<double> ticks;
  if (!(high > low) || most < 1) return ticks;
  double step = std::pow(10, std::floor(std::log10((high - low) / most)));
  while ((high - low) / step > most) {
    if ((high - low) / (2 * step) <= most) {
      step *= 2;
    } else if ((high - low) / (5 * step) <= most) {
      step *= 5;
    } else {
      step *= 10;
    }
  }
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + step * 1e-9; ++k) {
    ticks.push_back(k * step + 0.0);  // no -0
  }
  return ticks;
}

}  // namespace tandem::command
