// What the services share. All of it outlives them and every call.
#pragma once

#include <cstdint>

namespace tandem {
class Executor;
}

namespace tandem::server {

class Metrics;
class ModelStore;

struct Dependencies {
  Executor& compute;  // weights, plans, caches
  // Reading files and making models, so that a load does not hold up the compute thread. It has one
  // thread and no OpenMP team.
  Executor& loader;
  ModelStore& models;
  Metrics& metrics;
  // Calls that may wait in one lane; more are refused. The executors' own limit lies above, so that
  // work that has begun (the next decode step, a cancellation) always finds room.
  int64_t max_queue;
};

}  // namespace tandem::server
