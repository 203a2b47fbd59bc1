// tandem.v1.TrainingService over the model store's trainers.
#pragma once

#include <memory>

#include "server/dependencies.h"

namespace grpc {
class Service;
}

namespace tandem::server {

std::unique_ptr<grpc::Service> MakeTrainingService(const Dependencies& dependencies);

}  // namespace tandem::server
