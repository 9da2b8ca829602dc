#include "controller/adapters/ci/command_ci.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/adapters/proto_time.h"
#include "common/clock.h"
#include "common/status.h"
#include "common/text.h"
#include "common/unique_fd.h"

extern char** environ;

namespace rb::controller {
namespace {

constexpr absl::Duration kDefaultTimeout = absl::Seconds(60);
constexpr absl::Duration kReapStep = absl::Milliseconds(5);
constexpr size_t kMostOutput = size_t{64} * 1024;
constexpr size_t kLongestRunId = 200;

// What it printed; UNAVAILABLE when it failed or took too long. Its own group is ended with it.
absl::StatusOr<std::string> RunProgram(const std::vector<std::string>& command, absl::Duration timeout) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::UnavailableError("no pipe for a program");
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  std::vector<char*> arguments;
  for (const std::string& argument : command) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  pid_t pid = 0;
  const int failed = posix_spawnp(&pid, arguments[0], &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failed != 0) {
    return absl::FailedPreconditionError(absl::StrCat(command[0], " could not be started: ", std::strerror(failed)));
  }
  write_end.Reset();
  Clock& clock = SystemClock();
  const absl::Duration until = clock.Monotonic() + timeout;
  std::string output;
  bool timed_out = false;
  while (true) {
    const absl::Duration left = until - clock.Monotonic();
    if (left <= absl::ZeroDuration()) {
      timed_out = true;
      break;
    }
    pollfd waiting{read_end.get(), POLLIN, 0};
    const int ready = poll(&waiting, 1, static_cast<int>(absl::ToInt64Milliseconds(left)) + 1);
    if (ready < 0 && errno != EINTR) break;
    if (ready <= 0) continue;
    char buffer[4096];
    const ssize_t got = read(read_end.get(), buffer, sizeof(buffer));
    if (got == 0 || (got < 0 && errno != EINTR)) break;
    if (got > 0 && output.size() < kMostOutput) output.append(buffer, static_cast<size_t>(got));
  }
  int status = 0;
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (clock.Monotonic() >= until) {
      timed_out = true;
      kill(-pid, SIGKILL);
    }
    clock.Sleep(kReapStep);
  }
  if (timed_out) return absl::UnavailableError(absl::StrCat(command[0], " took longer than ", FormatSeconds(timeout)));
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::UnavailableError(absl::StrCat(
        command[0], WIFEXITED(status) ? absl::StrCat(" ended with ", WEXITSTATUS(status)) : std::string(" was killed"),
        output.empty() ? "" : ": ", Truncate(Printable(std::string(absl::StripAsciiWhitespace(output))), 200)));
  }
  return std::string(absl::StripAsciiWhitespace(output));
}

class CommandCi final : public CiProvider {
 public:
  explicit CommandCi(const v1::CommandCiConfig& config)
      : config_(config), timeout_(config.has_timeout() ? FromProto(config.timeout()) : kDefaultTimeout) {}

  bool IsIdempotent() const override { return true; }
  absl::Status Check() override {
    const std::string& program = config_.dispatch(0);
    if (absl::StrContains(program, "/") && access(program.c_str(), X_OK) != 0) {
      return absl::FailedPreconditionError(absl::StrCat(program, " cannot be run: ", std::strerror(errno)));
    }
    return absl::OkStatus();
  }
  // The program itself knows which keys it has begun a run for.
  absl::StatusOr<std::optional<CiRunHandle>> Find(const CiRequest&) override { return std::nullopt; }
  absl::StatusOr<std::optional<CiRunHandle>> Dispatch(const CiRequest& request) override {
    const absl::StatusOr<std::string> output = Run(config_.dispatch(), request, "");
    // Asked again it gives the run of the same key.
    if (absl::IsUnavailable(output.status())) return WithRetryAfter(output.status(), absl::Seconds(1));
    RB_RETURN_IF_ERROR(output.status());
    CiRunHandle handle;
    const std::vector<std::string> lines = absl::StrSplit(*output, absl::MaxSplits('\n', 1));
    handle.id = std::string(absl::StripAsciiWhitespace(lines[0]));
    if (handle.id.empty() || handle.id.size() > kLongestRunId || Printable(handle.id) != handle.id) {
      return absl::FailedPreconditionError(absl::StrCat(config_.dispatch(0), " printed no id of a run"));
    }
    if (lines.size() > 1) handle.url = Truncate(Printable(std::string(absl::StripAsciiWhitespace(lines[1]))), 500);
    return handle;
  }
  absl::StatusOr<CiRunStatus> Look(const CiRequest& request, const CiRunHandle& run) override {
    RB_ASSIGN_OR_RETURN(const std::string output, Run(config_.status(), request, run.id));
    const std::vector<std::string> words = absl::StrSplit(output, absl::MaxSplits(absl::ByAnyChar(" \n\t"), 1));
    CiRunStatus status;
    absl::StatusOr<CiRunStatus::State> state = ParseCiState(words[0]);
    if (!state.ok()) return absl::UnavailableError(absl::StrCat(config_.status(0), ": ", state.status().message()));
    status.state = *state;
    status.text = absl::StrCat("run ", run.id, " ", Truncate(Printable(output), 200));
    return status;
  }
  absl::Status Cancel(const CiRequest& request, const CiRunHandle& run) override {
    return Run(config_.cancel(), request, run.id).status();
  }

 private:
  absl::StatusOr<std::string> Run(const google::protobuf::RepeatedPtrField<std::string>& pattern,
                                  const CiRequest& request, const std::string& run) const {
    std::vector<std::string> command;
    for (const std::string& argument : pattern) command.push_back(FillIn(argument, request, run));
    return RunProgram(command, timeout_);
  }

  const v1::CommandCiConfig config_;
  const absl::Duration timeout_;
};

}  // namespace

std::string FillIn(const std::string& text, const CiRequest& request, const std::string& run) {
  return absl::StrReplaceAll(text, {{"{commit}", request.commit},
                                    {"{version}", request.version},
                                    {"{environment}", request.environment},
                                    {"{service}", request.service},
                                    {"{key}", request.key},
                                    {"{reason}", request.reason},
                                    {"{run}", run}});
}

absl::StatusOr<CiRunStatus::State> ParseCiState(absl::string_view word) {
  if (word == "queued") return CiRunStatus::State::kQueued;
  if (word == "running") return CiRunStatus::State::kRunning;
  if (word == "succeeded") return CiRunStatus::State::kSucceeded;
  if (word == "failed") return CiRunStatus::State::kFailed;
  if (word == "cancelled") return CiRunStatus::State::kCancelled;
  return absl::InvalidArgumentError(absl::StrCat("'", Printable(std::string(word.substr(0, 40))),
                                                 "' is not one of: queued, running, succeeded, failed, cancelled"));
}

std::unique_ptr<CiProvider> MakeCommandCi(const v1::CommandCiConfig& config) {
  return std::make_unique<CommandCi>(config);
}

}  // namespace rb::controller
