// tandem analyze: what a model costs, as a table and as a picture of its receptive field.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command/command.h"
#include "client/command/svg.h"

namespace tandem::command {
namespace {

using Response = v1::AnalyzeModelResponse;
using Layer = v1::AnalyzeModelResponse::Layer;
using Field = v1::ReceptiveField;

// "19x19", "19x19 (all)" where it is the whole input, "?" where it is not known.
std::string SizeText(const Field& field) {
  std::string text;
  bool whole = false;
  for (const Field::Dimension& d : field.dimensions()) {
    text += text.empty() ? "" : "x";
    text += d.extent() == Field::EXTENT_UNKNOWN ? "?" : std::to_string(d.size());
    whole = whole || d.extent() == Field::EXTENT_WHOLE_INPUT;
  }
  return whole ? text + " (all)" : text;
}

template <typename Get>
std::string WindowText(const Field& field, Get get) {
  std::vector<std::string> texts;
  for (const Field::Dimension& d : field.dimensions()) {
    if (d.extent() == Field::EXTENT_WINDOW) texts.push_back(absl::StrFormat("%.4g", get(d)));
  }
  const bool same = std::equal(texts.begin() + (texts.empty() ? 0 : 1), texts.end(), texts.begin());
  if (same && !texts.empty()) texts.resize(1);
  return absl::StrJoin(texts, "x");
}

std::string Seconds(double seconds) {
  if (seconds < 1e-3) return absl::StrFormat("%.1f us", seconds * 1e6);
  return seconds < 1 ? absl::StrFormat("%.2f ms", seconds * 1e3)
                     : absl::StrFormat("%.2f s", seconds);
}

void PrintLayers(const Response& response) {
  const bool fields = !response.spatial_input().empty();
  const bool times = response.measured_repetitions() > 0;
  std::vector<std::vector<std::string>> rows = {{"LAYER", "OPERATOR", "OUTPUT", "PARAMETERS",
                                                 "BIASES", "MACS", "FLOPS", "MEMORY", "FLOP/BYTE"}};
  if (fields) rows[0].insert(rows[0].end(), {"FIELD", "STRIDE", "OFFSET"});
  if (times) rows[0].insert(rows[0].end(), {"TIME", "GFLOP/S"});
  for (const Layer& layer : response.layers()) {
    std::vector<std::string>& row = rows.emplace_back();
    row = {layer.name(),
           layer.op() + (layer.fused_bias() ? "+bias" : ""),
           ShapeText(layer.output_shape()),
           layer.parameters() > 0 ? WithCommas(layer.parameters()) : "",
           layer.bias_parameters() > 0 ? WithCommas(layer.bias_parameters()) : "",
           layer.macs() > 0 ? Quantity(layer.macs()) : "",
           layer.flops() > 0 ? Quantity(layer.flops()) : "",
           layer.output_bytes() > 0 ? Bytes(layer.output_bytes()) : "",
           layer.flops() > 0 ? absl::StrFormat("%.2f", layer.arithmetic_intensity()) : ""};
    if (fields) {
      const Field& field = layer.receptive_field();
      row.push_back(SizeText(field));
      row.push_back(WindowText(field, [](const Field::Dimension& d) { return d.stride(); }));
      row.push_back(WindowText(field, [](const Field::Dimension& d) { return d.offset(); }));
    }
    if (times) {
      row.push_back(layer.seconds() > 0 ? Seconds(layer.seconds()) : "");
      row.push_back(layer.seconds() > 0 && layer.flops() > 0
                        ? absl::StrFormat("%.2f", layer.flops() / layer.seconds() * 1e-9)
                        : "");
    }
  }
  PrintTable(rows);
}

void PrintVerification(const Response& response) {
  const auto& v = response.verification();
  const auto range = [](const auto& low, const auto& high) {
    std::vector<std::string> texts;
    for (int i = 0; i < low.size(); ++i) {
      texts.push_back(low[i] > high[i] ? "none" : StrCat("[", low[i], ", ", high[i], "]"));
    }
    return absl::StrJoin(texts, " x ");
  };
  const Layer& layer = response.layers(v.layer());
  PrintTable({{"receptive field of",
               StrCat(layer.op(), " ", layer.name(), ", position ", ShapeText(v.position()))},
              {"  by recursion", range(v.expected_low(), v.expected_high())},
              {"  by gradients", range(v.measured_low(), v.measured_high())},
              {"  they", v.agrees() ? "agree" : "differ"}});
}

void PrintTotals(const Response& r) {
  std::printf("\n");
  std::vector<std::vector<std::string>> rows = {
      {"parameters", StrCat(WithCommas(r.parameters()), " (", Bytes(r.parameter_bytes()), ")")},
      {"  without biases", WithCommas(r.parameters() - r.bias_parameters())},
      {"  biases", StrCat(WithCommas(r.bias_parameters()), " (", Bytes(r.bias_bytes()), "), ",
                          Quantity(r.bias_flops()), " of the FLOPs")},
      {"multiply-accumulates", Quantity(r.macs())},
      {"FLOPs", Quantity(r.flops())},
      {"bytes moved", StrCat(Bytes(static_cast<int64_t>(r.bytes_moved())), ", ",
                             absl::StrFormat("%.2f FLOPs a byte", r.arithmetic_intensity()))},
      {"activations", Bytes(r.activation_bytes())},
      {"peak memory, forward", Bytes(r.forward_peak_bytes())}};
  if (r.training_error().empty()) {
    rows.push_back({"peak memory, training",
                    StrCat(Bytes(r.training_peak_bytes()), " and ", Bytes(r.training_state_bytes()),
                           " of gradients and optimizer state")});
  } else {
    rows.push_back({"training", r.training_error()});
  }
  double seconds = 0;
  for (const Layer& layer : r.layers()) seconds += layer.seconds();
  if (r.measured_repetitions() > 0) {
    rows.push_back({"time of a forward pass",
                    StrCat(Seconds(seconds), ", mean of ", r.measured_repetitions())});
  }
  PrintTable(rows);
  std::string notes;
  for (const Layer& layer : r.layers()) {
    const std::string& note = layer.receptive_field().note();
    if (!note.empty() && notes.find(note) == std::string::npos) {
      notes += StrCat("receptive field not known: ", note, "\n");
    }
  }
  if (r.has_verification()) PrintVerification(r);
  std::printf("%s", notes.c_str());
}

// --- the picture ---------------------------------------------------------------------------------

// A layer at which the field changes.
struct Step {
  std::string label;
  std::vector<const Field::Dimension*> dims;
};

bool Same(const Field& a, const Field& b) {
  if (a.dimensions_size() != b.dimensions_size()) return false;
  for (int i = 0; i < a.dimensions_size(); ++i) {
    const auto &x = a.dimensions(i), &y = b.dimensions(i);
    if (x.extent() != y.extent() || x.size() != y.size() || x.stride() != y.stride() ||
        x.offset() != y.offset()) {
      return false;
    }
  }
  return true;
}

std::vector<Step> Steps(const Response& response) {
  std::vector<Step> steps;
  const Field* last = nullptr;
  for (const Layer& layer : response.layers()) {
    const Field& field = layer.receptive_field();
    if (!layer.has_receptive_field() || (last != nullptr && Same(*last, field))) continue;
    last = &field;
    Step& step = steps.emplace_back();
    std::string name = layer.name();
    if (name.size() > 24) name = "..." + name.substr(name.size() - 21);
    step.label = name.empty() ? layer.op() : StrCat(layer.op(), " ", name);
    for (const auto& d : field.dimensions()) step.dims.push_back(&d);
  }
  return steps;
}

constexpr double kRow = 22, kLabels = 260, kPanel = 460, kNumbers = 170, kTop = 92, kBottom = 44;

// One spatial dimension: a bar a layer, as wide as the layer's field, around the same centre.
void DrawPanel(Svg& svg, double left, const std::vector<Step>& steps, int dim, int64_t input,
               const std::string& title) {
  double widest = static_cast<double>(input);
  for (const Step& step : steps) {
    widest = std::max(widest, static_cast<double>(step.dims[dim]->size()));
  }
  const double height = kRow * static_cast<double>(steps.size());
  const double middle = left + kPanel / 2, scale = kPanel / (widest * 1.04);
  const auto at = [&](double position) { return middle + position * scale; };
  svg.Text(left, kTop - 32, title, 13, Svg::Anchor::kStart, "font-weight=\"bold\"");
  const double half = static_cast<double>(input) / 2;
  svg.Rect(at(-half), kTop, 2 * half * scale, height, "fill=\"#f2f2f2\"");
  for (const double edge : {-half, half}) {
    svg.Line(at(edge), kTop - 4, at(edge), kTop + height + 4, "stroke=\"#999\"");
  }
  svg.Text(middle, kTop - 10, StrCat("the input's ", input), 10, Svg::Anchor::kMiddle,
           "fill=\"#777\"");
  for (const double tick : Ticks(-widest / 2, widest / 2, 10)) {
    svg.Line(at(tick), kTop, at(tick), kTop + height + 4, "stroke=\"#ddd\"");
    svg.Text(at(tick), kTop + height + 18, absl::StrFormat("%g", tick), 10, Svg::Anchor::kMiddle,
             "fill=\"#555\"");
  }
  svg.Text(middle, kTop + height + 34, "input positions from the centre of the field", 10,
           Svg::Anchor::kMiddle, "fill=\"#555\"");
  double below = 0, below_y = 0;  // half width and foot of the bar above
  for (size_t i = 0; i < steps.size(); ++i) {
    const Field::Dimension& d = *steps[i].dims[dim];
    const double y = kTop + kRow * static_cast<double>(i);
    const bool window = d.extent() == Field::EXTENT_WINDOW;
    const double reach = static_cast<double>(d.size()) / 2;
    std::string numbers = "not known";
    if (d.extent() == Field::EXTENT_UNKNOWN) below = 0;
    if (d.extent() != Field::EXTENT_UNKNOWN) {
      if (i > 0 && below > 0) {
        svg.Polygon(
            {{at(-below), below_y}, {at(below), below_y}, {at(reach), y + 4}, {at(-reach), y + 4}},
            "fill=\"#1f77b4\" fill-opacity=\"0.18\"");
      }
      svg.Rect(at(-reach), y + 4, std::max(2 * reach * scale, 1.5), kRow - 8,
               window ? "fill=\"#1f77b4\"" : "fill=\"#ff7f0e\"");
      numbers = window ? absl::StrFormat("%d, stride %.4g", d.size(), d.stride())
                       : std::string("whole input");
      below = reach;
      below_y = y + kRow - 4;
    }
    svg.Text(left + kPanel + 8, y + kRow - 7, numbers, 11, Svg::Anchor::kStart, "fill=\"#333\"");
  }
}

absl::StatusOr<std::string> Picture(const std::string& model, const Response& response) {
  const std::vector<Step> steps = Steps(response);
  if (steps.empty()) {
    return FailedPrecondition("model '", model,
                              "' has no input with spatial dimensions, so no "
                              "receptive field to draw");
  }
  // One panel does for dimensions that are alike in everything drawn.
  const int dims = response.spatial_sizes_size();
  bool alike = true;
  for (int d = 1; d < dims; ++d) {
    alike = alike && response.spatial_sizes(d) == response.spatial_sizes(0);
    for (const Step& step : steps) {
      alike = alike && step.dims[d]->size() == step.dims[0]->size() &&
              step.dims[d]->stride() == step.dims[0]->stride() &&
              step.dims[d]->extent() == step.dims[0]->extent();
    }
  }
  const int panels = alike ? 1 : dims;
  const double width = kLabels + panels * (kPanel + kNumbers) + 10;
  const double height = kTop + kRow * static_cast<double>(steps.size()) + kBottom;
  Svg svg(width, height);
  svg.Text(12, 24, StrCat("Receptive field of ", model), 16, Svg::Anchor::kStart,
           "font-weight=\"bold\"");
  for (size_t i = 0; i < steps.size(); ++i) {
    svg.Text(kLabels - 10, kTop + kRow * static_cast<double>(i + 1) - 7, steps[i].label, 11,
             Svg::Anchor::kEnd);
  }
  for (int d = 0; d < panels; ++d) {
    const std::string title = dims == 1 ? std::string("the spatial dimension")
                              : alike   ? StrCat("each of ", dims, " spatial dimensions")
                                        : StrCat("spatial dimension ", d + 1, " of ", dims);
    DrawPanel(svg, kLabels + d * (kPanel + kNumbers), steps, d, response.spatial_sizes(d), title);
  }
  return svg.Finish();
}

absl::Status Analyze(const Session& session, const v1::AnalyzeModelRequest& request,
                     const std::string& svg) {
  TANDEM_ASSIGN_OR_RETURN(const Response response, session.client().AnalyzeModel(request));
  if (!svg.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const std::string picture, Picture(request.model(), response));
    TANDEM_RETURN_IF_ERROR(WriteFile(svg, picture));
  }
  if (session.json) {
    PrintJson(response);
    return absl::OkStatus();
  }
  PrintLayers(response);
  PrintTotals(response);
  return absl::OkStatus();
}

absl::Status ParseShape(const std::string& text, v1::TensorSpec* spec) {
  TANDEM_ASSIGN_OR_RETURN(const auto named, SplitArgument("--input ", text, "NAME=2,3,4"));
  spec->set_name(named.first);
  for (const std::string& size : CLI::detail::split(named.second, ',')) {
    int64_t dim = 0;
    if (!CLI::detail::lexical_cast(size, dim)) {
      return InvalidArgument("--input '", text, "': '", size, "' is no size");
    }
    spec->add_shape(dim);
  }
  return absl::OkStatus();
}

}  // namespace

void AddAnalyzeCommand(CLI::App& app, Session& session) {
  struct Options {
    std::string model, svg;
    std::vector<std::string> shapes;
    bool measure = false, verify = false;
  };
  auto o = std::make_shared<Options>();
  CLI::App* analyze = app.add_subcommand(
      "analyze", "Shapes, parameters, operations, memory and receptive fields, layer by layer");
  analyze->add_option("model", o->model, "the model")->required();
  analyze->add_option("--input", o->shapes, "NAME=2,3,4: an input's shape (may be repeated)");
  analyze->add_flag("--measure", o->measure, "run it a few times: the time of each layer");
  analyze->add_flag("--verify", o->verify,
                    "compare the receptive field with the gradients that are not zero");
  analyze->add_option("--svg", o->svg, "draw the receptive field growing layer by layer: a file");
  analyze->callback([&session, o] {
    session.Run([&]() -> absl::Status {
      v1::AnalyzeModelRequest request;
      request.set_model(o->model);
      request.set_measure(o->measure);
      request.set_verify_receptive_field(o->verify);
      for (const std::string& text : o->shapes) {
        TANDEM_RETURN_IF_ERROR(ParseShape(text, request.add_inputs()));
      }
      return Analyze(session, request, o->svg);
    });
  });
}

}  // namespace tandem::command
