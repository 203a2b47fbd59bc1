#include "engine/backend/cpu/onednn.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace tandem::cpu {

// Neither is destroyed: kernels may outlive static destruction.
const dnnl::engine& OneDnnEngine() {
  static const auto* const engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);
  return *engine;
}

const dnnl::stream& OneDnnStream() {
  static const auto* const stream = new dnnl::stream(OneDnnEngine());
  return *stream;
}

dnnl::primitive_attr UserScratchpad() {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

absl::Status OneDnnStatus(const dnnl::error& error) {
  switch (error.status) {
    case dnnl_unimplemented:
      return Unimplemented("oneDNN has no implementation: ", error.what());
    case dnnl_out_of_memory:
      return ResourceExhausted("oneDNN is out of memory: ", error.what());
    default:
      return Internal("oneDNN status ", static_cast<int>(error.status), ": ", error.what());
  }
}

Execution::Execution(const dnnl::primitive& primitive, const std::vector<Argument>& arguments)
    : primitive_(primitive), addresses_(arguments.size(), nullptr) {
  for (const auto& [kind, desc] : arguments) {
    if (desc.get_size() == 0) {
      memories_.emplace_back();
      continue;
    }
    memories_.emplace_back(desc, OneDnnEngine(), nullptr);
    arguments_.push_back({kind, memories_.back().get()});
  }
}

void Execution::Run(std::initializer_list<const void*> addresses) {
  dnnl_status_t status =
      addresses.size() == memories_.size() ? dnnl_success : dnnl_invalid_arguments;
  size_t i = 0;
  for (const void* address : addresses) {
    if (status != dnnl_success) break;
    if (dnnl_memory_t memory = memories_[i].get(true);
        memory != nullptr && address != addresses_[i]) {
      // oneDNN's memory objects know no const; inputs are only read.
      status = dnnl_memory_set_data_handle(memory, const_cast<void*>(address));
      addresses_[i] = address;
    }
    ++i;
  }
  if (status == dnnl_success) {
    status = dnnl_primitive_execute(primitive_.get(), OneDnnStream().get(),
                                    static_cast<int>(arguments_.size()), arguments_.data());
  }
  if (status != dnnl_success) {
    std::fprintf(stderr, "CHECK: oneDNN execution failed with status %d\n",
                 static_cast<int>(status));
    std::abort();
  }
}

Execution MakeReorder(const dnnl::memory::desc& from, const dnnl::memory::desc& to,
                      int64_t* scratch_bytes) {
  if (from == to) return {};
  const dnnl::reorder::primitive_desc desc(OneDnnEngine(), from, OneDnnEngine(), to,
                                           UserScratchpad());
  const dnnl::memory::desc scratch = desc.scratchpad_desc();
  *scratch_bytes = std::max(*scratch_bytes, static_cast<int64_t>(scratch.get_size()));
  return Execution(dnnl::reorder(desc),
                   {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}, {DNNL_ARG_SCRATCHPAD, scratch}});
}

}  // namespace tandem::cpu
