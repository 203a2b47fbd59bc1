// tandem activations: the catalogue of activation functions, as a table and as pictures.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command/command.h"
#include "client/command/svg.h"

namespace tandem::command {
namespace {

constexpr double kCellWidth = 248, kCellHeight = 206, kMargin = 16, kPlotTop = 40, kPlotLeft = 30;
constexpr double kPlotWidth = kCellWidth - kPlotLeft - 8, kPlotHeight = 124;
constexpr char kValueColour[] = "#1f77b4", kDerivativeColour[] = "#d62728";

std::string NameText(const v1::Activation& activation) {
  std::vector<std::string> parameters;
  for (const auto& p : activation.parameters()) {
    parameters.push_back(absl::StrFormat("%s=%.3g", p.name(), p.value()));
  }
  if (parameters.empty()) return activation.name();
  return StrCat(activation.name(), "(", absl::StrJoin(parameters, ", "), ")");
}

std::string Shortened(std::string text, size_t longest) {
  if (text.size() > longest) text = text.substr(0, longest - 3) + "...";
  return text;
}

// The range of both curves, cut to what is interesting around the origin: [-3, 3] at the most
// unless the curves are larger everywhere.
std::pair<double, double> Range(const v1::Activation& activation) {
  double low = 0, high = 0;
  for (const auto* curve : {&activation.y(), &activation.dy()}) {
    for (const float v : *curve) {
      if (!std::isfinite(v)) continue;
      low = std::min<double>(low, v);
      high = std::max<double>(high, v);
    }
  }
  low = std::max(low, -3.0);
  high = std::min(high, 3.0);
  const double room = 0.08 * std::max(high - low, 0.5);
  return {low - room, high + room};
}

// Where a curve jumps, its pen lifts: a straight line would show values that are none.
Svg::Points Curve(const v1::ListActivationsResponse& response,
                  const google::protobuf::RepeatedField<float>& values,
                  const v1::Activation& activation) {
  Svg::Points points;
  for (int i = 0; i < values.size(); ++i) {
    if (i > 0) {
      for (const double kink : activation.kinks()) {
        const double step = std::abs(static_cast<double>(values[i]) - values[i - 1]);
        const double width = static_cast<double>(response.x(i)) - response.x(i - 1);
        if (response.x(i - 1) <= kink && kink <= response.x(i) && step > 2.5 * width) {
          points.emplace_back(kink, NAN);
        }
      }
    }
    points.emplace_back(response.x(i), values[i]);
  }
  return points;
}

void DrawCell(Svg& svg, double x, double y, const v1::ListActivationsResponse& response,
              const v1::Activation& activation) {
  const double left = x + kPlotLeft, top = y + kPlotTop;
  const double from = response.x(0), to = response.x(response.x_size() - 1);
  const auto [low, high] = Range(activation);
  const auto column = [&, from = from](double v) {
    return left + (v - from) / (to - from) * kPlotWidth;
  };
  const auto row = [&, low = low, high = high](double v) {
    return top + (high - v) / (high - low) * kPlotHeight;
  };
  svg.Text(x + 8, y + 16, Shortened(NameText(activation), 34), 11.5, Svg::Anchor::kStart,
           "font-weight=\"bold\"");
  svg.Text(x + 8, y + 31, Shortened(activation.formula(), 40), 10, Svg::Anchor::kStart,
           "fill=\"#555\"");
  svg.Rect(left, top, kPlotWidth, kPlotHeight, "fill=\"#fafafa\" stroke=\"#ccc\"");
  for (const double tick : Ticks(from, to, 5)) {
    svg.Line(column(tick), top, column(tick), top + kPlotHeight,
             tick == 0 ? "stroke=\"#999\"" : "stroke=\"#e6e6e6\"");
    svg.Text(column(tick), top + kPlotHeight + 12, absl::StrFormat("%g", tick), 9,
             Svg::Anchor::kMiddle, "fill=\"#555\"");
  }
  for (const double tick : Ticks(low, high, 5)) {
    svg.Line(left, row(tick), left + kPlotWidth, row(tick),
             tick == 0 ? "stroke=\"#999\"" : "stroke=\"#e6e6e6\"");
    svg.Text(left - 4, row(tick) + 3, absl::StrFormat("%g", tick), 9, Svg::Anchor::kEnd,
             "fill=\"#555\"");
  }
  const auto draw = [&, low = low, high = high](const auto& values, const std::string& style) {
    Svg::Points points = Curve(response, values, activation);
    for (auto& [px, py] : points) {
      const bool inside = py >= low - (high - low) && py <= high + (high - low);
      py = inside ? std::clamp(row(py), top - 1.0, top + kPlotHeight + 1.0) : NAN;
      px = column(px);
      if (py <= top - 1.0 || py >= top + kPlotHeight + 1.0) py = NAN;
    }
    svg.Curve(points, style);
  };
  draw(activation.dy(), StrCat("stroke=\"", kDerivativeColour, "\" stroke-width=\"1.4\""));
  draw(activation.y(), StrCat("stroke=\"", kValueColour, "\" stroke-width=\"2\""));
  svg.Text(x + 8, top + kPlotHeight + 27, Shortened(absl::StrJoin(activation.operators(), " "), 40),
           9, Svg::Anchor::kStart, "fill=\"#777\"");
}

std::string Picture(const v1::ListActivationsResponse& response) {
  const int count = response.activations_size();
  const int columns = std::min(count, 6), rows = (count + columns - 1) / columns;
  const double width = std::max(columns * kCellWidth, 460.0) + 2 * kMargin;
  Svg svg(width, rows * kCellHeight + 52 + kMargin);
  svg.Text(kMargin + 8, 30, "Activations", 17, Svg::Anchor::kStart, "font-weight=\"bold\"");
  const auto legend = [&](double x, const char* colour, const char* text) {
    svg.Line(x, 25, x + 26, 25, StrCat("stroke=\"", colour, "\" stroke-width=\"2\""));
    svg.Text(x + 32, 29, text, 12);
  };
  legend(kMargin + 140, kValueColour, "value");
  legend(kMargin + 230, kDerivativeColour, "derivative");
  for (int i = 0; i < count; ++i) {
    DrawCell(svg, kMargin + i % columns * kCellWidth, 46 + i / columns * kCellHeight, response,
             response.activations(i));
  }
  return svg.Finish();
}

void PrintCatalogue(const v1::ListActivationsResponse& response) {
  std::vector<std::vector<std::string>> rows = {
      {"ACTIVATION", "FORMULA", "OPERATORS", "ONNX", "SOURCE"}};
  for (const v1::Activation& activation : response.activations()) {
    rows.push_back(
        {NameText(activation), activation.formula(), absl::StrJoin(activation.operators(), " "),
         activation.onnx_operators().empty() ? "-"
                                             : absl::StrJoin(activation.onnx_operators(), " "),
         activation.source()});
  }
  PrintTable(rows);
  std::printf("\n");
  for (const v1::Activation& activation : response.activations()) {
    if (activation.note().empty()) continue;
    std::printf("%s: %s\n", activation.name().c_str(), activation.note().c_str());
  }
}

struct Options {
  std::vector<std::string> names, set;
  double from = -5, to = 5;
  int32_t points = 401;
  std::string svg;
};

absl::Status ListActivations(const Session& session, const Options& o) {
  v1::ListActivationsRequest request;
  for (const std::string& name : o.names) request.add_names(name);
  for (const std::string& text : o.set) {
    TANDEM_ASSIGN_OR_RETURN(const auto named, SplitArgument("--set ", text, "NAME=NUMBER"));
    double value = 0;
    if (!CLI::detail::lexical_cast(named.second, value)) {
      return InvalidArgument("--set '", text, "' is not NAME=NUMBER");
    }
    (*request.mutable_parameters())[named.first] = value;
  }
  const bool curves = session.json || !o.svg.empty();
  request.set_from(o.from);
  request.set_to(o.to);
  request.set_points(curves ? o.points : 0);
  TANDEM_ASSIGN_OR_RETURN(const v1::ListActivationsResponse response,
                          session.client().ListActivations(request));
  if (!o.svg.empty()) {
    if (response.x_size() == 0) return InvalidArgument("--points 0 leaves nothing to draw");
    TANDEM_RETURN_IF_ERROR(WriteFile(o.svg, Picture(response)));
  }
  if (session.json) {
    PrintJson(response);
  } else {
    PrintCatalogue(response);
  }
  return absl::OkStatus();
}

}  // namespace

void AddActivationsCommand(CLI::App& app, Session& session) {
  auto o = std::make_shared<Options>();
  CLI::App* activations = app.add_subcommand(
      "activations", "The catalogue of activations: formulas, operators, curves");
  activations->add_option("name", o->names, "which; default: all");
  activations->add_option("--svg", o->svg, "draw value and derivative of each: a file");
  activations->add_option("--from", o->from, "x of the first point")->capture_default_str();
  activations->add_option("--to", o->to, "x of the last point")->capture_default_str();
  activations->add_option("--points", o->points, "points of a curve")->capture_default_str();
  activations->add_option("--set", o->set, "NAME=NUMBER: a parameter (may be repeated)");
  activations->callback(
      [&session, o] { session.Run([&] { return ListActivations(session, *o); }); });
}

}  // namespace tandem::command
