#include "agent/adapters/database/hook_runner.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/adapters/supervisor/spawn.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status.h"
#include "common/text.h"
#include "common/unique_fd.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

// What of the last words is kept, and what of that goes into a message.
constexpr size_t kTailBytes = 4096;
constexpr size_t kToldBytes = 600;
constexpr size_t kPieceBytes = 256 << 10;
// The most that an unprivileged user may ask for: fewer turns between us and the program.
constexpr int kPipeBytes = 1 << 20;
// How often is_cancelled is asked while a program is silent.
constexpr absl::Duration kAskAgain = absl::Milliseconds(200);
constexpr absl::Duration kPatienceWithLeftover = absl::Seconds(30);
constexpr absl::Duration kLookAgain = absl::Milliseconds(10);

struct Pipe {
  UniqueFd read_end;
  UniqueFd write_end;
};

// `ours`: the end that we use, which must not block us. Each end has a file description of its own, so the program's
// end blocks as programs expect.
absl::StatusOr<Pipe> MakePipe(UniqueFd Pipe::*ours) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "no pipe can be made");
  Pipe pipe;
  pipe.read_end.Reset(ends[0]);
  pipe.write_end.Reset(ends[1]);
  fcntl(ends[1], F_SETPIPE_SZ, kPipeBytes);
  if (fcntl((pipe.*ours).get(), F_SETFL, O_NONBLOCK) != 0) return ErrnoStatus(errno, "fcntl");
  return pipe;
}

void WaitUntilEnded(int pidfd) {
  pollfd ended = {pidfd, POLLIN, 0};
  while (poll(&ended, 1, -1) < 0 && errno == EINTR) {
  }
}

}  // namespace

// One run of one program.
class HookRunner::Run {
 public:
  Run(const HookRunner& runner, const DatabaseHook& hook, absl::string_view verb,
      const std::vector<std::string>& command)
      : runner_(runner),
        hook_(hook),
        command_(command),
        what_(absl::StrCat("database ", hook.name, ": its ", verb, " command (", Printable(Truncate(command[0], 100)),
                           ")")) {}

  absl::Status Dump(const Sink& sink) {
    RB_ASSIGN_OR_RETURN(Pipe data, MakePipe(&Pipe::read_end));
    output_ = std::move(data.read_end);
    std::string piece(kPieceBytes, '\0');
    RB_RETURN_IF_ERROR(Start(-1, data.write_end.get()));
    data.write_end.Reset();
    // Its last process may end before, or after, what it has written is read: both have to be over.
    while (!ended_ || output_.valid()) {
      RB_RETURN_IF_ERROR(Wait(output_.get(), POLLIN, true));
      const ssize_t got = output_.valid() ? read(output_.get(), piece.data(), piece.size()) : -1;
      if (got > 0) {
        bytes_ += static_cast<uint64_t>(got);
        const absl::Status taken = sink(absl::string_view(piece).substr(0, static_cast<size_t>(got)));
        if (!taken.ok()) return End(taken);
      } else if (got == 0) {
        output_.Reset();
      }
    }
    RB_RETURN_IF_ERROR(End(absl::OkStatus()));
    if (bytes_ == 0) return absl::InternalError(WithLastWords(absl::StrCat(what_, " ended well, but wrote nothing")));
    return absl::OkStatus();
  }

  absl::Status Restore(const Source& source) {
    RB_ASSIGN_OR_RETURN(Pipe data, MakePipe(&Pipe::write_end));
    // Its end of the pipe is kept open here too: what it leaves unread can be counted, and writing to what nobody reads
    // waits for its end instead of being an error of its own.
    RB_RETURN_IF_ERROR(Start(data.read_end.get(), -1));
    std::string piece;
    size_t written = 0;
    while (!ended_) {
      if (data.write_end.valid() && written == piece.size()) {
        absl::StatusOr<std::string> next = source();
        if (!next.ok()) return End(next.status());
        piece = *std::move(next);
        written = 0;
        if (piece.empty()) data.write_end.Reset();
      }
      RB_RETURN_IF_ERROR(Wait(data.write_end.get(), POLLOUT, false));
      if (ended_ || !data.write_end.valid()) continue;
      const ssize_t put = write(data.write_end.get(), piece.data() + written, piece.size() - written);
      if (put > 0) written += static_cast<size_t>(put);
      if (put > 0) bytes_ += static_cast<uint64_t>(put);
    }
    int unread = 0;
    if (ioctl(data.read_end.get(), FIONREAD, &unread) != 0) unread = 0;
    RB_RETURN_IF_ERROR(End(absl::OkStatus()));
    bool has_all = !data.write_end.valid();
    if (!has_all && written == piece.size()) {
      // It may have known from the dump itself where that ends.
      RB_ASSIGN_OR_RETURN(const std::string rest, source());
      has_all = rest.empty();
    }
    if (!has_all || unread > 0) {
      return absl::InternalError(
          WithLastWords(absl::StrCat(what_, " ended well, but did not read all of the dump: it took ",
                                     FormatBytes(bytes_ - static_cast<uint64_t>(unread)), " and left the rest")));
    }
    return absl::OkStatus();
  }

  uint64_t bytes() const { return bytes_; }

 private:
  // `output` -1: both outputs are last words.
  absl::Status Start(int input, int output) {
    RB_ASSIGN_OR_RETURN(Pipe words, MakePipe(&Pipe::read_end));
    words_ = std::move(words.read_end);
    SpawnOptions spawn;
    if (hook_.user) {
      const absl::StatusOr<UserAndGroup> user = hook_.user();
      RB_RETURN_IF_ERROR(Annotate(user.status(), what_));
      spawn.user = *user;
      spawn.switch_user = user->uid != geteuid() || user->gid != getegid();
    } else {
      spawn.user = LookUpUid(geteuid(), getegid());
    }
    spawn.command = command_;
    spawn.environment = CleanEnvironment(spawn.user);
    spawn.folder = "/";
    spawn.input = input;
    spawn.output = output >= 0 ? output : words.write_end.get();
    spawn.error_output = words.write_end.get();
    begun_ = runner_.clock_.Monotonic();
    const std::string path = runner_.RunningPath();
    absl::StatusOr<Spawned> spawned = Spawn(spawn, [&](const ProcessIdentity& identity) {
      return WriteFileDurably(path, absl::StrCat(identity.pid, " ", identity.start_ticks, " ", identity.boot_id, "\n"));
    });
    RB_RETURN_IF_ERROR(Annotate(spawned.status(), what_));
    spawned_ = *std::move(spawned);
    return absl::OkStatus();
  }

  // Waits until `fd` is ready, or the program has printed something or ended, or some time is over; reads what it has
  // printed. When its time is over it is ended, and the error is why.
  absl::Status Wait(int fd, short events, bool may_be_cancelled) {
    const absl::Duration left = begun_ + hook_.timeout - runner_.clock_.Monotonic();
    if (left <= absl::ZeroDuration()) {
      // It may have ended meanwhile.
      if (!ended_) Look(-1, 0, absl::ZeroDuration());
      std::string text = absl::StrCat(what_, " did not end within ", FormatSeconds(hook_.timeout), " and was ended");
      if (ended_) absl::StrAppend(&text, ": a process that it left behind still held its output open");
      const absl::Status over = End(absl::DeadlineExceededError(text));
      return absl::Status(over.code(), WithLastWords(std::string(over.message())));
    }
    if (may_be_cancelled && runner_.options_.is_cancelled && runner_.options_.is_cancelled()) {
      return End(absl::CancelledError(absl::StrCat(what_, " was stopped as asked")));
    }
    Look(fd, events, may_be_cancelled ? std::min(left, kAskAgain) : left);
    return absl::OkStatus();
  }

  void Look(int fd, short events, absl::Duration patience) {
    pollfd polled[3] = {{fd, events, 0}, {words_.get(), POLLIN, 0}, {ended_ ? -1 : spawned_.pidfd.get(), POLLIN, 0}};
    const auto wait = static_cast<int>(absl::ToInt64Milliseconds(std::min(patience, absl::Hours(1))) + 1);
    if (poll(polled, 3, wait) < 0) return;  // interrupted: the caller looks at its conditions, and comes again
    if (polled[2].revents != 0) ended_ = true;
    if (polled[1].revents != 0) Listen();
  }

  // Reads what it has printed, at most 1 MiB at a time: it may print for ever.
  void Listen() {
    char buffer[4096];
    for (int i = 0; i < 256; ++i) {
      const ssize_t got = read(words_.get(), buffer, sizeof buffer);
      if (got == 0) words_.Reset();
      if (got <= 0) return;
      tail_.append(buffer, static_cast<size_t>(got));
      if (tail_.size() > 2 * kTailBytes) tail_.erase(0, tail_.size() - kTailBytes);
    }
  }

  // Ends the program when it has not ended, reaps it, and says how it went: `failure` if that is one.
  absl::Status End(const absl::Status& failure) {
    const pid_t group = spawned_.identity.pid;  // its own until it is reaped
    if (!failure.ok()) {
      kill(-group, SIGTERM);
      const absl::Duration until = runner_.clock_.Monotonic() + runner_.options_.grace;
      while (!ended_ && runner_.clock_.Monotonic() < until) {
        // What it still writes is thrown away: a full pipe would keep it from ending.
        Discard();
        Look(output_.get(), POLLIN, std::min(kAskAgain, until - runner_.clock_.Monotonic()));
      }
    }
    kill(-group, SIGKILL);
    WaitUntilEnded(spawned_.pidfd.get());
    if (words_.valid()) Listen();
    const absl::StatusOr<ChildEnd> end = ReapChild(spawned_.pidfd.get());
    RemoveFileDurably(runner_.RunningPath()).IgnoreError();  // what it names is gone, and is known to be
    RB_RETURN_IF_ERROR(failure);
    RB_RETURN_IF_ERROR(Annotate(end.status(), what_));
    if (end->exited && end->code == 0) return absl::OkStatus();
    return absl::InternalError(WithLastWords(absl::StrCat(what_, " ", end->text)));
  }

  void Discard() {
    if (!output_.valid()) return;
    char buffer[4096];
    for (int i = 0; i < 256; ++i) {
      const ssize_t got = read(output_.get(), buffer, sizeof buffer);
      if (got == 0) output_.Reset();
      if (got <= 0) return;
    }
  }

  std::string WithLastWords(const std::string& text) const {
    const absl::string_view tail = tail_;
    const std::string words =
        Printable(absl::StripAsciiWhitespace(tail.substr(tail.size() - std::min(tail.size(), kToldBytes))));
    return words.empty() ? absl::StrCat(text, "; it printed nothing")
                         : absl::StrCat(text, "; it last printed: ", words);
  }

  const HookRunner& runner_;
  const DatabaseHook& hook_;
  const std::vector<std::string>& command_;
  const std::string what_;
  absl::Duration begun_;
  Spawned spawned_;
  bool ended_ = false;
  UniqueFd output_;
  UniqueFd words_;
  std::string tail_;
  uint64_t bytes_ = 0;
};

HookRunner::HookRunner(Options options, Clock& clock) : options_(std::move(options)), clock_(clock) {
  std::sort(options_.hooks.begin(), options_.hooks.end(),
            [](const DatabaseHook& a, const DatabaseHook& b) { return a.name < b.name; });
}

std::vector<std::string> HookRunner::Names() const {
  std::vector<std::string> names;
  for (const DatabaseHook& hook : options_.hooks) names.push_back(hook.name);
  return names;
}

absl::StatusOr<const DatabaseHook*> HookRunner::Find(const std::string& name) const {
  for (const DatabaseHook& hook : options_.hooks) {
    if (hook.name == name) return &hook;
  }
  return absl::NotFoundError(
      absl::StrCat("database ", name, ": ", options_.service, " has no hook for it in database_hooks of agent.yaml"));
}

std::string HookRunner::RunningPath() const { return absl::StrCat(options_.state_folder, "/hooks/", options_.service); }

absl::Status HookRunner::EndLeftover() const {
  RB_RETURN_IF_ERROR(MakeFolders(options_.state_folder + "/hooks"));
  const absl::StatusOr<std::string> text = ReadFile(RunningPath(), 4096);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  RB_RETURN_IF_ERROR(text.status());
  const std::vector<std::string> parts = absl::StrSplit(absl::StripAsciiWhitespace(*text), ' ');
  ProcessIdentity leader;
  if (parts.size() == 3 && absl::SimpleAtoi(parts[0], &leader.pid) && absl::SimpleAtoi(parts[1], &leader.start_ticks) &&
      parts[2] == BootId()) {
    const absl::Duration until = clock_.Monotonic() + kPatienceWithLeftover;
    for (std::vector<pid_t> left = GroupMembers(leader); !left.empty(); left = GroupMembers(leader)) {
      if (clock_.Monotonic() > until) {
        return absl::DeadlineExceededError(
            absl::StrCat("a hook that an earlier agent began does not end: process ", left[0]));
      }
      kill(-leader.pid, SIGKILL);
      clock_.Sleep(kLookAgain);
    }
  }
  return RemoveFileDurably(RunningPath());
}

absl::Status HookRunner::Dump(const std::string& name, const Sink& sink) {
  RB_ASSIGN_OR_RETURN(const DatabaseHook* const hook, Find(name));
  RB_RETURN_IF_ERROR(EndLeftover());
  const absl::Duration begun = clock_.Monotonic();
  Run run(*this, *hook, "dump", hook->dump);
  RB_RETURN_IF_ERROR(run.Dump(sink));
  LogInfo("database", options_.service, ": dumped database ", name, ", ", FormatBytes(run.bytes()), " in ",
          FormatSeconds(clock_.Monotonic() - begun));
  return absl::OkStatus();
}

absl::Status HookRunner::Restore(const std::string& name, const Source& source) {
  RB_ASSIGN_OR_RETURN(const DatabaseHook* const hook, Find(name));
  RB_RETURN_IF_ERROR(EndLeftover());
  const absl::Duration begun = clock_.Monotonic();
  Run run(*this, *hook, "restore", hook->restore);
  RB_RETURN_IF_ERROR(run.Restore(source));
  LogInfo("database", options_.service, ": restored database ", name, ", ", FormatBytes(run.bytes()), " in ",
          FormatSeconds(clock_.Monotonic() - begun));
  return absl::OkStatus();
}

std::unique_ptr<DatabaseHooks> MakeDatabaseHooks(const v1::AgentServiceConfig& config, const ServiceTree& tree,
                                                 const std::string& state_folder, Clock& clock,
                                                 std::function<bool()> is_cancelled) {
  if (config.database_hooks().empty()) return nullptr;
  HookRunner::Options options;
  options.service = tree.service;
  options.state_folder = state_folder;
  options.is_cancelled = std::move(is_cancelled);
  for (const v1::DatabaseHookConfig& wanted : config.database_hooks()) {
    DatabaseHook hook;
    hook.name = wanted.name();
    hook.dump.assign(wanted.dump().begin(), wanted.dump().end());
    hook.restore.assign(wanted.restore().begin(), wanted.restore().end());
    if (wanted.has_timeout()) {
      hook.timeout = absl::Seconds(wanted.timeout().seconds()) + absl::Nanoseconds(wanted.timeout().nanos());
    }
    // Looked up at each run: a tree may be missing, or have changed hands, when the agent starts.
    if (wanted.user().empty()) {
      hook.user = [config, tree] { return UserOfCommands(config, tree); };
    } else {
      hook.user = [user = wanted.user()] { return LookUpUser(user); };
    }
    options.hooks.push_back(std::move(hook));
  }
  return std::make_unique<HookRunner>(std::move(options), clock);
}

}  // namespace rb::agent
