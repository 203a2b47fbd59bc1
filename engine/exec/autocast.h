// Mixed precision: a model's f32 graph, rewritten to compute in bf16 or f16.
//
// Parameters stay f32: the graph reads them through casts, and their gradients are f32. The rules
// follow torch.autocast (PyTorch, "Automatic Mixed Precision package"), for every operator by name:
//   16 bits   matrix products, convolutions, attention: f32 accumulation, one rounding; and rows
//             taken from a parameter (embeddings)
//   f32       softmax, sums, losses, exponentials and powers, random numbers: 16-bit inputs are
//             widened first
//   as given  the rest (activations, additions, norms, moving data): in 16 bits where an operand
//             is, unless one is f32 from an f32 operator or an input of the graph. Constants and
//             parameters take the others' type. Norms of 16-bit inputs compute statistics in f32.
// So, other than under torch.autocast, the residual stream of a transformer is in 16 bits: half the
// memory and traffic, as training in bf16 usually has it, while statistics, the softmax, the logits
// and every weight gradient are f32. A product that only f32 operators read (logits, scores before
// a softmax) is never rounded.
//
// One rewritten graph serves forward passes, generation, scoring and training, which keeps their
// bits equal.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/graph/builder.h"

namespace tandem {

class GraphSource;
struct SequenceModelInfo;

enum class Precision : uint8_t { kF32, kBF16, kF16 };
std::string_view PrecisionName(Precision precision);  // "f32", "bf16", "f16"
DType PrecisionDType(Precision precision);

// Appends `graph`, which computes in f32, to the builder, computing in `dtype` (bf16 or f16).
// `inputs` stand for the graph's inputs; an f32 one may come as `dtype`. Returns the values of the
// graph's outputs, of the types that they have there. Values that are not f32 stay as they are.
absl::StatusOr<std::vector<Value>> Autocast(const Graph& graph, std::span<const Value> inputs,
                                            DType dtype, Builder& builder);

// The source with its graphs rewritten; itself for kF32.
std::shared_ptr<const GraphSource> WithPrecision(std::shared_ptr<const GraphSource> source,
                                                 Precision precision);

// What the KV cache of such a model holds: 16 bits where the backend's attention takes them, else
// f32 (of rounded values: the same bits come out).
DType KvCacheDType(const SequenceModelInfo& info, Precision precision, const Backend& backend);

}  // namespace tandem
