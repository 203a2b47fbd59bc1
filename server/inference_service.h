// inference.GRPCInferenceService, the Open Inference Protocol, over the model store.
#pragma once

#include <atomic>
#include <memory>

#include "server/dependencies.h"

namespace grpc {
class Service;
}

namespace tandem::server {

// `ready` is what ServerReady answers.
std::unique_ptr<grpc::Service> MakeInferenceService(const Dependencies& dependencies,
                                                    const std::atomic<bool>& ready);

}  // namespace tandem::server
