#include "server/metrics_collectors.h"

#include <dirent.h>
#include <prometheus/metric_family.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include "engine/exec/executor.h"

namespace tandem::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

MetricFamily Family(std::string name, std::string help, MetricType type) {
  MetricFamily family;
  family.name = std::move(name);
  family.help = std::move(help);
  family.type = type;
  return family;
}

void Add(MetricFamily& family, double value, std::vector<ClientMetric::Label> labels = {}) {
  ClientMetric metric;
  metric.label = std::move(labels);
  (family.type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
  family.metric.push_back(std::move(metric));
}

// The numbers of /proc/self/stat after the command's name, which may hold spaces and brackets.
std::vector<double> ReadStat() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t end = line.rfind(')');
  if (end == std::string::npos || end + 2 >= line.size()) return {};
  std::istringstream rest(line.substr(end + 2));
  std::string state;
  rest >> state;
  std::vector<double> numbers;
  for (double number; rest >> number;) numbers.push_back(number);
  return numbers;
}

std::optional<double> BootTimeSeconds() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    double seconds = 0;
    if (std::sscanf(line.c_str(), "btime %lf", &seconds) == 1) return seconds;
  }
  return std::nullopt;
}

std::optional<double> OpenFileDescriptors() {
  DIR* directory = opendir("/proc/self/fd");
  if (directory == nullptr) return std::nullopt;
  double count = -3;  // ".", ".." and this directory's own
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

}  // namespace

void ExecutorCollector::Watch(const Executor* executor) {
  std::lock_guard lock(mutex_);
  executor_ = executor;
}

std::vector<MetricFamily> ExecutorCollector::Collect() const {
  std::lock_guard lock(mutex_);
  if (executor_ == nullptr) return {};
  MetricFamily depth =
      Family("tandem_queue_depth", "Tasks that wait for the compute thread", MetricType::Gauge);
  MetricFamily busy = Family("tandem_compute_seconds_total", "Time that the compute thread worked",
                             MetricType::Counter);
  for (const auto& [lane, name] : {std::pair(Executor::Lane::kServing, "serving"),
                                   std::pair(Executor::Lane::kTraining, "training")}) {
    Add(depth, static_cast<double>(executor_->QueueDepth(lane)), {{"lane", name}});
    Add(busy, executor_->BusySeconds(lane), {{"lane", name}});
  }
  return {depth, busy};
}

std::vector<MetricFamily> ProcessCollector::Collect() const {
  std::vector<MetricFamily> families;
  const auto add = [&](const char* name, const char* help, MetricType type, double value) {
    Add(families.emplace_back(Family(name, help, type)), value);
  };
  // Fields 14, 15, 22, 23 and 24 of proc(5)'s stat; field 4 is the first number here.
  const std::vector<double> stat = ReadStat();
  if (stat.size() > 20) {
    const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    add("process_cpu_seconds_total", "User and system CPU time", MetricType::Counter,
        (stat[10] + stat[11]) / ticks);
    add("process_virtual_memory_bytes", "Virtual memory", MetricType::Gauge, stat[19]);
    add("process_resident_memory_bytes", "Resident memory", MetricType::Gauge,
        stat[20] * static_cast<double>(sysconf(_SC_PAGESIZE)));
    if (const auto boot = BootTimeSeconds()) {
      add("process_start_time_seconds", "Start, in seconds since 1970", MetricType::Gauge,
          *boot + stat[18] / ticks);
    }
  }
  if (const auto count = OpenFileDescriptors()) {
    add("process_open_fds", "Open file descriptors", MetricType::Gauge, *count);
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    add("process_max_fds", "Limit of open file descriptors", MetricType::Gauge,
        static_cast<double>(limit.rlim_cur));
  }
  return families;
}

}  // namespace tandem::server
