// Is oneDNN's f32 matrix product batch-invariant? Prints a table; decides nothing by itself.
//
// Every row of A holds the same numbers, so every row of every C = A B must hold the same bits if a
// row's result depends on nothing but that row. For each primitive, weight layout and (K, N) it
// runs all M of kRows with 1 and 2 threads, in one process.
//
// How to read a line:
//   op      matmul or inner (product); B is how the weights are stored, kn or nk (transposed)
//   inv     yes: one bit pattern for row 0 over all M and both thread counts
//   place   yes: within each call all rows carry the same bits
//   chain   yes: the bits are those of one f32 fma chain over k in order, the contract of
//           engine/backend/cpu/kernels/gemm.h
//   groups  the (M, threads) that agree with one another, each set in braces as t<threads>:M,M,...;
//           only printed where there is more than one set
//   impl    the implementations that oneDNN chose
//
// Run it as is, and with ONEDNN_MAX_CPU_ISA=AVX2 (or SSE41, AVX512_CORE): the answer is a property
// of the kernels for one instruction set, of one oneDNN version, and of nothing wider.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dnnl.hpp>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

using dnnl::memory;

constexpr int64_t kRows[] = {1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 64, 100, 128, 257, 768};
constexpr std::pair<int64_t, int64_t> kShapes[] = {{64, 64},   {64, 172},   {172, 64},   {128, 384},
                                                   {128, 512}, {512, 128},  {128, 65},   {64, 512},
                                                   {768, 768}, {768, 3072}, {768, 32000}};

struct Case {
  bool inner;       // inner product instead of matmul
  bool transposed;  // weights stored (n,k) instead of (k,n)
  int64_t k, n;
};

struct Buffers {
  std::vector<float> a, b, c;
};

// Same numbers on every machine: the bits are compared between runs too.
float Pseudorandom(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return static_cast<float>(static_cast<int32_t>(*state >> 8) - (1 << 23)) * 0x1p-23f;
}

memory::desc Desc(const memory::dims& dims, memory::format_tag tag) {
  return {dims, memory::data_type::f32, tag};
}

// oneDNN 2 describes an operation in two steps, oneDNN 3 in one.
template <typename Primitive, typename... Args>
typename Primitive::primitive_desc Describe(const dnnl::engine& engine, Args&&... args) {
#if DNNL_VERSION_MAJOR >= 3
  return typename Primitive::primitive_desc(engine, args...);
#else
  return typename Primitive::primitive_desc(typename Primitive::desc(args...), engine);
#endif
}

// Runs one product; returns the implementation's name.
std::string Run(const Case& test, int64_t m, Buffers* buffers) {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  static dnnl::stream stream(engine);
  using Tag = memory::format_tag;
  const memory::desc a = Desc({m, test.k}, Tag::ab);
  const memory::desc b = test.inner ? Desc({test.n, test.k}, test.transposed ? Tag::ab : Tag::ba)
                                    : Desc({test.k, test.n}, test.transposed ? Tag::ba : Tag::ab);
  const memory::desc c = Desc({m, test.n}, Tag::ab);
  const std::unordered_map<int, memory> arguments = {
      {DNNL_ARG_SRC, memory(a, engine, buffers->a.data())},
      {DNNL_ARG_WEIGHTS, memory(b, engine, buffers->b.data())},
      {DNNL_ARG_DST, memory(c, engine, buffers->c.data())}};
  std::string name;
  if (test.inner) {
    const auto desc =
        Describe<dnnl::inner_product_forward>(engine, dnnl::prop_kind::forward_inference, a, b, c);
    dnnl::inner_product_forward(desc).execute(stream, arguments);
    name = desc.impl_info_str();
  } else {
    const auto desc = Describe<dnnl::matmul>(engine, a, b, c);
    dnnl::matmul(desc).execute(stream, arguments);
    name = desc.impl_info_str();
  }
  stream.wait();
  return name;
}

std::vector<float> Chain(const Case& test, const Buffers& buffers) {
  std::vector<float> row(test.n);
  for (int64_t j = 0; j < test.n; ++j) {
    float sum = 0.0f;
    for (int64_t k = 0; k < test.k; ++k) {
      const float b = test.transposed ? buffers.b[j * test.k + k] : buffers.b[k * test.n + j];
      sum = std::fma(buffers.a[k], b, sum);
    }
    row[j] = sum;
  }
  return row;
}

bool Report(const Case& test) {
  constexpr int64_t kMaxRows = 768;
  Buffers buffers;
  uint32_t seed = 7;
  std::vector<float> row(test.k);
  for (float& value : row) value = Pseudorandom(&seed);
  for (int64_t i = 0; i < kMaxRows; ++i) {
    buffers.a.insert(buffers.a.end(), row.begin(), row.end());
  }
  buffers.b.resize(test.k * test.n);
  for (float& value : buffers.b) value = Pseudorandom(&seed);
  buffers.c.resize(kMaxRows * test.n);

  std::map<std::vector<float>, std::map<int, std::string>> groups;  // row 0 -> threads -> Ms
  std::set<std::string> implementations;
  bool same_place = true;
  for (int threads : {1, 2}) {
    omp_set_num_threads(threads);
    for (int64_t m : kRows) {
      std::fill(buffers.c.begin(), buffers.c.end(), 0.0f);
      implementations.insert(Run(test, m, &buffers));
      const auto first = buffers.c.begin();
      for (int64_t i = 1; i < m; ++i) {
        same_place &= std::equal(first, first + test.n, first + i * test.n);
      }
      std::string& members = groups[{first, first + test.n}][threads];
      members += (members.empty() ? "" : ",") + std::to_string(m);
    }
  }
  const bool invariant = groups.size() == 1;
  const bool chain = invariant && groups.begin()->first == Chain(test, buffers);
  std::printf("%-6s %s %5ld %6ld  %-4s %-5s %-5s ", test.inner ? "inner" : "matmul",
              test.transposed ? "nk" : "kn", static_cast<long>(test.k), static_cast<long>(test.n),
              invariant ? "yes" : "NO", same_place ? "yes" : "NO", chain ? "yes" : "no");
  for (const std::string& name : implementations) std::printf(" %s", name.c_str());
  if (!invariant) {
    for (const auto& [bits, members] : groups) {
      std::printf("\n        {");
      for (const auto& [threads, list] : members) std::printf(" t%d:%s", threads, list.c_str());
      std::printf(" }");
    }
  }
  std::printf("\n");
  std::fflush(stdout);
  return invariant && same_place;
}

}  // namespace

int main() {
  const dnnl_version_t* version = dnnl_version();
  std::printf("oneDNN %d.%d.%d, instruction set limit %d\n", version->major, version->minor,
              version->patch, static_cast<int>(dnnl::get_effective_cpu_isa()));
  std::printf("op     B      K      N  inv  place chain  impl\n");
  int invariant = 0, total = 0;
  for (bool inner : {false, true}) {
    for (bool transposed : {false, true}) {
      for (const auto& [k, n] : kShapes) {
        invariant += Report({inner, transposed, k, n});
        ++total;
      }
    }
  }
  std::printf("%d of %d invariant in M, place and thread count\n", invariant, total);
  return 0;
}
