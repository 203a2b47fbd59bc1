// The tandem-server program: its options, its log, its end.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tests/server/http_get.h"

namespace tandem::server {
namespace {

using testing::HasSubstr;

class Program {
 public:
  explicit Program(std::vector<std::string> arguments) {
    const char* const binaries = std::getenv("TANDEM_BINARY_DIR");
    const std::string path =
        (std::filesystem::path(binaries != nullptr ? binaries : ".") / "server/tandem-server")
            .string();
    arguments.insert(arguments.begin(), path);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    int ends[2];
    if (pipe(ends) != 0) return;
    pid_ = fork();
    if (pid_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      execv(path.c_str(), argv.data());
      _exit(127);
    }
    close(ends[1]);
    out_ = ends[0];
  }
  ~Program() {
    if (pid_ > 0) Exit(SIGKILL);
    close(out_);
  }

  // Reads the log until `text` is in it, or until the program ends.
  bool WaitFor(const std::string& text) {
    char buffer[512];
    while (log_.find(text) == std::string::npos) {
      const ssize_t n = read(out_, buffer, sizeof(buffer));
      if (n <= 0) return false;
      log_.append(buffer, n);
    }
    return true;
  }
  // Sends the signal (0: none) and waits; the exit status, or 1000 + the signal that ended it.
  int Exit(int signal) {
    if (signal != 0) kill(pid_, signal);
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    WaitFor("\x01");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  // The port at the end of the line that begins so.
  int Port(const std::string& line) const {
    const size_t at = log_.find(line);
    return at == std::string::npos ? 0 : std::atoi(log_.c_str() + at + line.size());
  }
  const std::string& log() const { return log_; }

 private:
  pid_t pid_ = -1;
  int out_ = -1;
  std::string log_;
};

const std::vector<std::string> kFreePorts = {"--listen", "127.0.0.1:0", "--metrics-listen",
                                             "127.0.0.1:0"};

TEST(ProgramTest, LogsItsPortsAndEndsOnSigterm) {
  for (int signal : {SIGTERM, SIGINT}) {
    Program program(kFreePorts);
    ASSERT_TRUE(program.WaitFor("listening on 127.0.0.1:")) << program.log();
    EXPECT_TRUE(program.WaitFor("\n"));
    const int metrics = program.Port("metrics on http://127.0.0.1:");
    EXPECT_GT(program.Port("listening on 127.0.0.1:"), 0);
    EXPECT_THAT(HttpGet(metrics, "/metrics"), HasSubstr("tandem_build_info"));
    EXPECT_EQ(program.Exit(signal), 0);
    EXPECT_THAT(program.log(), HasSubstr("stopped"));
  }
}

TEST(ProgramTest, TheMetricsPortCanBeTurnedOff) {
  Program program({"--listen", "127.0.0.1:0", "--metrics-listen", ""});
  ASSERT_TRUE(program.WaitFor("listening on")) << program.log();
  EXPECT_EQ(program.Exit(SIGTERM), 0);
  EXPECT_EQ(program.log().find("metrics on"), std::string::npos);
}

TEST(ProgramTest, BadOptionsAreNamed) {
  const auto fails = [](std::vector<std::string> arguments, const char* text) {
    Program program(std::move(arguments));
    EXPECT_NE(program.Exit(0), 0);
    EXPECT_THAT(program.log(), HasSubstr(text));
  };
  fails({"--nonsense"}, "nonsense");
  fails({"--log-level", "loud"}, "log-level");
  fails({"--models", "/nonexistent/folder", "--listen", "127.0.0.1:0"}, "/nonexistent/folder");
  fails({"--max-queue", "0"}, "max-queue");
  fails({"--max-message-bytes", "12"}, "max-message-bytes");
  fails({"--threads", "-1"}, "threads");
  fails({"--kv-cache-mib", "0"}, "kv-cache-mib");
  fails({"--drain-seconds", "-1"}, "drain-seconds");
}

TEST(ProgramTest, AnotherServersPortIsAnError) {
  Program first(kFreePorts);
  ASSERT_TRUE(first.WaitFor("listening on 127.0.0.1:") && first.WaitFor("\n"));
  const std::string taken = "127.0.0.1:" + std::to_string(first.Port("listening on 127.0.0.1:"));
  Program second({"--listen", taken, "--metrics-listen", ""});
  EXPECT_EQ(second.Exit(0), 1);
  EXPECT_THAT(second.log(), HasSubstr("cannot listen on " + taken));
}

}  // namespace
}  // namespace tandem::server
