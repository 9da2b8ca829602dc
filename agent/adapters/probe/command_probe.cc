#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <regex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/adapters/probe/probes.h"
#include "agent/adapters/supervisor/spawn.h"
#include "common/text.h"

namespace rb::agent {
namespace {

// What of its output is kept, from the end.
constexpr size_t kTailBytes = 65536;
// Longer lines are matched as far as this: std::regex takes stack by the character.
constexpr size_t kLineBytes = 2048;

class CommandProbe final : public Probe {
 public:
  CommandProbe(CommandProbeOptions options, Clock& clock) : options_(std::move(options)), clock_(clock) {}

  ProbeResult Run(const ProbeContext&) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.kind = "command";
    result.name = "command";
    for (const std::string& argument : options_.argv) absl::StrAppend(&result.name, " ", argument);
    result.name = OneLine(result.name, 200);
    result.expected = "exit status 0";
    if (!options_.expect.empty())
      absl::StrAppend(&result.expected, ", a line with /", OneLine(options_.expect, 200), "/");
    RunCommand(begun + options_.timeout, &result);
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  void RunCommand(absl::Duration deadline, ProbeResult* result) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
      result->observed = "no pipe can be made";
      return;
    }
    const UniqueFd output(ends[0]);
    UniqueFd input(ends[1]);
    fcntl(output.get(), F_SETFL, O_NONBLOCK);
    SpawnOptions spawn;
    spawn.command = options_.argv;
    spawn.environment = CleanEnvironment(options_.user);
    spawn.folder = options_.folder;
    spawn.output = input.get();
    spawn.switch_user = options_.switch_user;
    spawn.user = options_.user;
    const absl::StatusOr<Spawned> spawned = Spawn(spawn, nullptr);
    input.Reset();
    if (!spawned.ok()) {
      result->observed = OneLine(spawned.status().message());
      return;
    }
    std::string tail;
    bool timed_out = false;
    pollfd polled[2] = {{output.get(), POLLIN, 0}, {spawned->pidfd.get(), POLLIN, 0}};
    for (;;) {
      const absl::Duration left = deadline - clock_.Monotonic();
      if (left <= absl::ZeroDuration()) {
        timed_out = true;
        break;
      }
      if (poll(polled, 2, static_cast<int>(absl::ToInt64Milliseconds(left) + 1)) < 0 && errno != EINTR) break;
      const bool open = Drain(output.get(), &tail);
      if (!open) polled[0].fd = -1;
      if ((polled[1].revents & POLLIN) != 0) break;
    }
    // Whatever it left behind goes with it. It is not reaped yet, so the number is still its own.
    kill(-spawned->identity.pid, SIGKILL);
    pollfd ended = {spawned->pidfd.get(), POLLIN, 0};
    while (poll(&ended, 1, -1) < 0 && errno == EINTR) {
    }
    Drain(output.get(), &tail);
    const absl::StatusOr<ChildEnd> end = ReapChild(spawned->pidfd.get());
    result->passed = !timed_out && end.ok() && end->exited && end->code == 0;
    result->observed = timed_out  ? absl::StrCat("did not end within ", FormatSeconds(options_.timeout))
                       : end.ok() ? end->text
                                  : OneLine(end.status().message());
    if (!options_.expect.empty() && result->passed && !HasExpectedLine(tail)) {
      result->passed = false;
      absl::StrAppend(&result->observed, ", no such line");
    }
    const std::string said = OneLine(tail.substr(tail.size() - std::min<size_t>(tail.size(), 300)));
    if (!said.empty()) absl::StrAppend(&result->observed, ": ", said);
  }

  bool HasExpectedLine(const std::string& output) const {
    try {
      const std::regex pattern(options_.expect, std::regex::ECMAScript);
      for (const absl::string_view line : absl::StrSplit(output, '\n')) {
        const absl::string_view piece = line.substr(0, kLineBytes);
        if (std::regex_search(piece.begin(), piece.end(), pattern)) return true;
      }
    } catch (const std::regex_error&) {
      // too complex for what is there
    }
    return false;
  }

  // Reads what is there, at most 1 MiB at a time. False at the end.
  static bool Drain(int fd, std::string* tail) {
    char buffer[4096];
    for (int i = 0; i < 256; ++i) {
      const ssize_t n = read(fd, buffer, sizeof buffer);
      if (n <= 0) return n < 0;
      tail->append(buffer, static_cast<size_t>(n));
      if (tail->size() > 2 * kTailBytes) tail->erase(0, tail->size() - kTailBytes);
    }
    return true;
  }

  const CommandProbeOptions options_;
  Clock& clock_;
};

}  // namespace

std::unique_ptr<Probe> MakeCommandProbe(CommandProbeOptions options, Clock& clock) {
  return std::make_unique<CommandProbe>(std::move(options), clock);
}

}  // namespace rb::agent
