// A drawing as SVG text, in pixels from the top left.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tandem::command {

class Svg {
 public:
  using Points = std::vector<std::pair<double, double>>;
  enum class Anchor { kStart, kMiddle, kEnd };

  Svg(double width, double height);
  void Rect(double x, double y, double width, double height, std::string_view style);
  void Line(double x1, double y1, double x2, double y2, std::string_view style);
  void Polygon(const Points& points, std::string_view style);
  // A curve through the points; it breaks where a point is not finite.
  void Curve(const Points& points, std::string_view style);
  void Text(double x, double y, std::string_view text, double size, Anchor anchor = Anchor::kStart,
            std::string_view style = "");
  std::string Finish() const;

 private:
  std::string body_;
};

// Round numbers, at most `most`, that divide [low, high].
std::vector<double> Ticks(double low, double high, int most);

}  // namespace tandem::command
