// tandem.v1.ModelService over the model store.
#pragma once

#include <memory>

#include "server/dependencies.h"

namespace grpc {
class Service;
}

namespace tandem::server {

std::unique_ptr<grpc::Service> MakeModelService(const Dependencies& dependencies);

}  // namespace tandem::server
