// Measures every operator case that gives `bench` inputs (tests/engine/op_cases.h), planned and run
// as in a model. GB/s counts each input and output once; GFLOP/s is the operators' own count.
//
//   op_bench --benchmark_filter=MatMul
#include <benchmark/benchmark.h>

#include "engine/backend/backend.h"
#include "engine/exec/plan.h"
#include "engine/graph/builder.h"
#include "tests/engine/op_cases.h"

namespace tandem::testing {
namespace {

double Flops(const Graph& graph) {
  double sum = 0;
  for (const Node& node : graph.nodes()) {
    std::vector<const TensorType*> inputs;
    std::vector<TensorType> outputs;
    for (Value v : node.inputs) inputs.push_back(v.valid() ? &graph.type(v) : nullptr);
    for (Value v : node.outputs) outputs.push_back(graph.type(v));
    sum += node.op->flops == nullptr ? static_cast<double>(outputs[0].shape.num_elements())
                                     : node.op->flops(inputs, outputs, node.attributes);
  }
  return sum;
}

void Measure(benchmark::State& state, const OpCase& c) {
  const std::vector<Tensor> inputs = MakeInputs(c.bench, c.name);
  Builder b;
  Values values;
  for (const Tensor& t : inputs) values.push_back(b.Input("x", t.type()));
  for (Value v : c.build(b, values)) b.Output(v);
  absl::StatusOr<Graph> graph = b.Finish();
  if (!graph.ok()) {
    state.SkipWithError(graph.status().ToString().c_str());
    return;
  }
  const double flops = Flops(*graph);
  auto plan = Plan::Compile(*std::move(graph), CpuBackend());
  if (!plan.ok()) {
    state.SkipWithError(plan.status().ToString().c_str());
    return;
  }
  std::vector<Tensor> outputs;
  std::vector<Address> in, out;
  int64_t bytes = 0;
  for (const Tensor& t : inputs) {
    in.push_back(OnHost(t));
    bytes += t.bytes();
  }
  for (const TensorType& t : (*plan)->output_types()) outputs.emplace_back(t);
  for (Tensor& t : outputs) {
    out.push_back(OnHost(t));
    bytes += t.bytes();
  }
  absl::Status status = (*plan)->Run(in, {}, out);  // memory is there from its first touch on
  for (auto _ : state) {
    status.Update((*plan)->Run(in, {}, out));
    benchmark::ClobberMemory();
  }
  if (!status.ok()) state.SkipWithError(std::string(status.message()).c_str());
  using benchmark::Counter;
  const auto rate = Counter::kIsIterationInvariantRate;
  state.counters["GB/s"] = Counter(static_cast<double>(bytes) * 1e-9, rate);
  state.counters["GFLOP/s"] = Counter(flops * 1e-9, rate);
}

const bool kRegistered = [] {
  for (const OpCase& c : AllCases()) {
    if (c.bench.empty()) continue;
    benchmark::RegisterBenchmark(c.name.c_str(), Measure, c)
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace
}  // namespace tandem::testing
