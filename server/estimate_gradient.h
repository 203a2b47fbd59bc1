// SamplingService.EstimateGradient.
#pragma once

#include "server/call.h"
#include "tandem/v1/estimation.pb.h"

namespace tandem::server {

grpc::ServerWriteReactor<v1::EstimateGradientResponse>* StartEstimateGradient(
    const Method& method, grpc::CallbackServerContext* context,
    const v1::EstimateGradientRequest& request, uint64_t seed);

}  // namespace tandem::server
