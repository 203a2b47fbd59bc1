// The whole server in one object: executors, models, services, ports.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tandem::server {

struct ServerOptions {
  std::string models;                             // the repository's folder; empty: none
  std::string listen = "127.0.0.1:8500";          // port 0 picks one
  std::string metrics_listen = "127.0.0.1:9464";  // port 0 picks one; empty: no metrics port
  std::string device = "cpu";                     // of models: "cpu" or "cuda:N"
  int threads = 0;                                // of the compute thread's team; 0: the cores
  int64_t max_message_bytes = int64_t{64} << 20;  // of a request
  int64_t max_queue = 256;                        // calls that may wait in one lane
  int64_t kv_cache_bytes = int64_t{256} << 20;    // of each language model that generates
  bool reflection = true;
  double drain_seconds = 10;  // how long Stop lets calls run on
  // Asked between two models while they load; true makes Start return CANCELLED.
  std::function<bool()> stop_loading;
};

class Server {
 public:
  // Opens the ports, loads the repository's models, then reports SERVING. Models that fail to load
  // are listed as failed, and the server starts without them. Errors: bad options, no repository,
  // a port that cannot be opened.
  static absl::StatusOr<std::unique_ptr<Server>> Start(ServerOptions options);
  // Stops, if Stop was not called.
  ~Server();

  int port() const;
  int metrics_port() const;  // 0: none
  // NOT_SERVING, no new calls, the running ones may go on until the deadline and are then
  // cancelled; returns when all have ended. Call once, from any thread.
  void Stop();

 private:
  struct State;
  explicit Server(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace tandem::server
