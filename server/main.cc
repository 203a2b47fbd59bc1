// tandem-server: trains and serves models over gRPC.
#include <signal.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <string>
#include <thread>

#include "engine/base/threads.h"
#include "server/server.h"
#include "server/status.h"

namespace {

// Waits for SIGTERM and SIGINT on a thread of its own, so that none is lost, also while models
// load, and no handler runs in the middle of anything. Make it before any other thread: they
// inherit the blocked signals.
class SignalWatch {
 public:
  SignalWatch() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGTERM);
    sigaddset(&signals_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
    signal(SIGPIPE, SIG_IGN);
    std::thread([this] { Watch(); }).detach();  // main outlives its use
  }
  bool received() const { return received_; }
  void Wait() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return received_.load(); });
  }

 private:
  void Watch() {
    for (bool again = false;; again = true) {
      int number = 0;
      if (sigwait(&signals_, &number) != 0) continue;
      if (again) {
        spdlog::warn("signal {} again: leaving at once", number);
        std::_Exit(128 + number);
      }
      spdlog::info("signal {}: shutting down", number);
      const std::lock_guard lock(mutex_);
      received_ = true;
      wake_.notify_all();
    }
  }

  sigset_t signals_{};
  std::atomic<bool> received_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
};

int Run(tandem::server::ServerOptions options, SignalWatch& signals) {
  const auto begin = std::chrono::steady_clock::now();
  options.stop_loading = [&] { return signals.received(); };
  auto server = tandem::server::Server::Start(options);
  if (!server.ok()) {
    if (signals.received() && absl::IsCancelled(server.status())) return 0;
    spdlog::critical("{}", tandem::server::Printable(std::string(server.status().message())));
    return 1;
  }
  const auto with_port = [](const std::string& address, int port) {
    return address.substr(0, address.rfind(':') + 1) + std::to_string(port);
  };
  if ((*server)->metrics_port() != 0) {
    spdlog::info("metrics on http://{}/metrics",
                 with_port(options.metrics_listen, (*server)->metrics_port()));
  }
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  spdlog::info("ready after {:.3f} s", taken.count());
  spdlog::info("listening on {}", with_port(options.listen, (*server)->port()));
  signals.Wait();
  (*server)->Stop();
  spdlog::info("stopped");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  tandem::EnsureThreadPolicy(argv);
  tandem::server::ServerOptions options;
  std::string log_level = "info";
  int64_t kv_cache_mib = options.kv_cache_bytes >> 20;

  CLI::App app("Trains and serves models over gRPC, with one set of weights for both.");
  app.set_version_flag("--version", TANDEM_VERSION);
  app.add_option("--models", options.models, "Folder of models to load and save");
  app.add_option("--listen", options.listen, "Address of the gRPC port; port 0 picks one")
      ->capture_default_str();
  app.add_option("--metrics-listen", options.metrics_listen,
                 "Address of the metrics port; port 0 picks one; empty: none")
      ->capture_default_str();
  app.add_option("--device", options.device, "Where models run: cpu, cuda:0, cuda:1 ...")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Threads that compute; 0: as many as cores")
      ->capture_default_str();
  app.add_option("--log-level", log_level, "trace, debug, info, warn, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
  app.add_option("--max-message-bytes", options.max_message_bytes, "Largest request")
      ->capture_default_str();
  app.add_option("--max-queue", options.max_queue, "Calls that may wait, of each lane")
      ->capture_default_str();
  app.add_option("--kv-cache-mib", kv_cache_mib, "Memory for keys and values, of each model")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--drain-seconds", options.drain_seconds, "How long calls run on after SIGTERM")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  app.add_flag("--reflection,!--no-reflection", options.reflection, "Serve gRPC's reflection");
  CLI11_PARSE(app, argc, argv);

  options.kv_cache_bytes = kv_cache_mib << 20;
  spdlog::set_level(spdlog::level::from_str(log_level));
  spdlog::flush_on(spdlog::level::trace);  // also into a pipe: somebody waits for the port's number
  SignalWatch signals;
  const int result = Run(options, signals);
  spdlog::shutdown();
  std::fflush(nullptr);
  // Not through exit(): the signal thread may be in the middle of its wait.
  std::_Exit(result);
}
