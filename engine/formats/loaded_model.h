// What a loader returns: how to build the model's graph, and its parameters' initial values.
#pragma once

#include <memory>

#include "engine/exec/model.h"

namespace tandem {

struct LoadedModel {
  std::shared_ptr<const GraphSource> source;
  ParameterStore parameters;  // of source->parameters()
};

}  // namespace tandem
