// tandem.v1.SamplingService over the model store's token samplers.
#pragma once

#include <memory>

#include "server/dependencies.h"

namespace grpc {
class Service;
}

namespace tandem::server {

std::unique_ptr<grpc::Service> MakeSamplingService(const Dependencies& dependencies);

}  // namespace tandem::server
