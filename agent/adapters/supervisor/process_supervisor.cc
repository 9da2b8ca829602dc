#include "agent/adapters/supervisor/process_supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr absl::Duration kLookAgain = absl::Milliseconds(5);
constexpr absl::Duration kKernelPatience = absl::Seconds(5);

struct RunFile {
  bool wanted = false;
  ProcessIdentity process;
  std::string invocation;
  uint32_t restarts = 0;
};

std::string Format(const RunFile& run) {
  return absl::StrCat("wanted=", run.wanted ? 1 : 0, "\npid=", run.process.pid,
                      "\nstart_ticks=", run.process.start_ticks, "\nboot_id=", run.process.boot_id,
                      "\ninvocation=", run.invocation, "\nrestarts=", run.restarts, "\nend=1\n");
}

absl::StatusOr<RunFile> Parse(absl::string_view text) {
  std::map<std::string, std::string> values;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits('=', 1));
    if (parts.size() == 2) values[parts[0]] = parts[1];
  }
  RunFile run;
  run.wanted = values["wanted"] == "1";
  run.process.boot_id = values["boot_id"];
  run.invocation = values["invocation"];
  if (values["end"] != "1" || !absl::SimpleAtoi(values["pid"], &run.process.pid) ||
      !absl::SimpleAtoi(values["start_ticks"], &run.process.start_ticks) ||
      !absl::SimpleAtoi(values["restarts"], &run.restarts)) {
    return absl::DataLossError("the run file is damaged");
  }
  return run;
}

}  // namespace

ProcessSupervisor::ProcessSupervisor(Options options, Clock& clock, FileLock lock)
    : options_(std::move(options)),
      clock_(clock),
      lock_(std::move(lock)),
      run_path_(absl::StrCat(options_.state_folder, "/", options_.service, ".run")) {}

absl::StatusOr<std::unique_ptr<ProcessSupervisor>> ProcessSupervisor::Create(Options options, Clock& clock) {
  if (options.command.empty()) return absl::InvalidArgumentError("there is no command");
  RB_RETURN_IF_ERROR(MakeFolders(options.state_folder));
  absl::StatusOr<FileLock> lock =
      FileLock::TryAcquire(absl::StrCat(options.state_folder, "/", options.service, ".lock"));
  if (!lock.ok()) {
    return Annotate(lock.status(), absl::StrCat(options.service, " is supervised by another process"));
  }
  std::unique_ptr<ProcessSupervisor> supervisor(new ProcessSupervisor(std::move(options), clock, *std::move(lock)));
  supervisor->wake_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!supervisor->wake_.valid()) return ErrnoStatus(errno, "eventfd");
  RB_RETURN_IF_ERROR(supervisor->TakeUp());
  supervisor->thread_ = std::thread([raw = supervisor.get()] { raw->Run(); });
  return supervisor;
}

ProcessSupervisor::~ProcessSupervisor() {
  {
    MutexLock lock(mutex_);
    quitting_ = true;
  }
  if (wake_.valid()) Wake();
  if (thread_.joinable()) thread_.join();
}

void ProcessSupervisor::Wake() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then it is readable already.
  [[maybe_unused]] const ssize_t ignored = write(wake_.get(), &one, sizeof one);
}

absl::Status ProcessSupervisor::TakeUp() {
  const absl::StatusOr<std::string> text = ReadFile(run_path_, 65536);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  RB_RETURN_IF_ERROR(text.status());
  absl::StatusOr<RunFile> run = Parse(*text);
  if (!run.ok()) {
    return absl::DataLossError(
        absl::StrCat(run_path_, ": the run file is damaged, so it is not known whether ", options_.service,
                     " runs. Nothing was started or stopped. End what runs of it by hand, then type: rm ", run_path_));
  }
  MutexLock lock(mutex_);
  stop_patience_ = options_.stop_timeout;
  wanted_ = run->wanted;
  if (run->process.pid <= 1) {
    fresh_ = wanted_;
    return absl::OkStatus();
  }
  if (run->process.boot_id != BootId()) {
    // The machine was started anew: nothing of ours runs.
    fresh_ = wanted_;
    return absl::OkStatus();
  }
  process_ = run->process;
  invocation_ = run->invocation;
  restarts_ = run->restarts;
  pidfd_.Reset(static_cast<int>(syscall(SYS_pidfd_open, process_.pid, 0)));
  // After the pidfd was opened: from here on it is this process, or none.
  const absl::StatusOr<ProcessIdentity> found = IdentifyProcess(process_.pid);
  if (pidfd_.valid() && found.ok() && found->start_ticks == process_.start_ticks) {
    phase_ = Phase::kRunning;
    reaped_ = false;
    LogInfo("supervisor", options_.service, " still runs as process ", process_.pid);
    // An earlier agent died while it stopped the service: go on with that.
    if (!wanted_) BeginEnding();
    return absl::OkStatus();
  }
  pidfd_.Reset();
  reaped_ = true;
  last_failure_ = "ended while no agent watched it";
  if (!GroupMembers(process_).empty()) {
    BeginEnding();
  } else {
    process_ = ProcessIdentity();
    if (wanted_) phase_ = Phase::kWaiting;
    restart_at_ = clock_.Monotonic();
  }
  return absl::OkStatus();
}

void ProcessSupervisor::Run() {
  for (;;) {
    absl::Duration timeout;
    pollfd polled[2] = {{wake_.get(), POLLIN, 0}, {-1, POLLIN, 0}};
    {
      MutexLock lock(mutex_);
      if (quitting_) return;
      timeout = Step();
      // Only this thread changes pidfd_. Once reaped, it would be readable for ever.
      if (pidfd_.valid() && !reaped_) polled[1].fd = pidfd_.get();
      changed_.NotifyAll();
    }
    const int64_t milliseconds = timeout == absl::InfiniteDuration()
                                     ? -1
                                     : std::clamp<int64_t>(absl::ToInt64Milliseconds(timeout) + 1, 1, 60'000);
    poll(polled, 2, static_cast<int>(milliseconds));
    uint64_t drained = 0;
    [[maybe_unused]] const ssize_t ignored = read(wake_.get(), &drained, sizeof drained);
  }
}

absl::Duration ProcessSupervisor::Step() {
  for (;;) {
    const absl::Duration now = clock_.Monotonic();
    switch (phase_) {
      case Phase::kIdle:
        if (!wanted_) return absl::InfiniteDuration();
        Launch();
        break;
      case Phase::kRunning:
        if (wanted_ && !LeaderEnded()) return absl::InfiniteDuration();
        if (LeaderEnded() && wanted_) Reap();
        BeginEnding();
        break;
      case Phase::kEnding:
        if (LeaderEnded()) {
          if (!reaped_) Reap();
          if (GroupMembers(process_).empty()) {
            Ended();
            break;
          }
        }
        if (now >= kill_at_) {
          if (!GroupMembers(process_).empty()) kill(-process_.pid, SIGKILL);
          return kLookAgain;
        }
        return LeaderEnded() ? std::min(kLookAgain, kill_at_ - now) : kill_at_ - now;
      case Phase::kWaiting:
        if (!wanted_) {
          phase_ = Phase::kIdle;
          break;
        }
        if (!fresh_ && now < restart_at_) return restart_at_ - now;
        Launch();
        break;
    }
  }
}

bool ProcessSupervisor::LeaderEnded() const {
  if (reaped_ || !pidfd_.valid()) return true;
  pollfd polled = {pidfd_.get(), POLLIN, 0};
  return poll(&polled, 1, 0) > 0;
}

void ProcessSupervisor::Launch() {
  SpawnOptions spawn;
  spawn.command = options_.command;
  spawn.environment = CleanEnvironment(options_.user);
  for (const auto& [name, value] : options_.environment) spawn.environment[name] = value;
  spawn.folder = options_.folder;
  spawn.log_path = options_.log_path;
  spawn.open_log_as_user = options_.open_log_as_user;
  spawn.switch_user = options_.switch_user;
  spawn.user = options_.user;
  if (fresh_) {
    restarts_ = 0;
    last_failure_.clear();
  } else {
    ++restarts_;
  }
  fresh_ = false;
  invocation_ = RandomHex(16);
  reaped_ = false;
  absl::StatusOr<Spawned> spawned =
      Spawn(spawn, [this](const ProcessIdentity& identity) ABSL_NO_THREAD_SAFETY_ANALYSIS {  // called while we hold it
        process_ = identity;
        return SaveRunFile();
      });
  ++launches_;
  launch_status_ = spawned.status();
  if (!spawned.ok()) {
    process_ = ProcessIdentity();
    pidfd_.Reset();
    last_failure_ = Printable(spawned.status().message());
    phase_ = Phase::kWaiting;
    restart_at_ = clock_.Monotonic() + options_.restart_delay;
    LogWarning("supervisor", options_.service, ": ", last_failure_);
    return;
  }
  pidfd_ = std::move(spawned->pidfd);
  phase_ = Phase::kRunning;
  LogInfo("supervisor", options_.service, " runs as process ", process_.pid, restarts_ > 0 ? ", restart " : "",
          restarts_ > 0 ? absl::StrCat(restarts_) : "");
}

void ProcessSupervisor::BeginEnding() {
  phase_ = Phase::kEnding;
  kill_at_ = clock_.Monotonic() + (wanted_ ? options_.stop_timeout : stop_patience_);
  // The leader has not been reaped while we are the ones who stop it, so its number is still its own.
  if (!GroupMembers(process_).empty()) kill(-process_.pid, SIGTERM);
}

void ProcessSupervisor::Reap() {
  reaped_ = true;
  const absl::StatusOr<ChildEnd> end = ReapChild(pidfd_.get());
  if (!wanted_) return;
  last_failure_ = end.ok() ? end->text : "ended (its status is not known: an earlier agent had started it)";
  LogWarning("supervisor", options_.service, ": process ", process_.pid, " ", last_failure_);
}

void ProcessSupervisor::Ended() {
  pidfd_.Reset();
  process_ = ProcessIdentity();
  invocation_.clear();
  phase_ = wanted_ ? Phase::kWaiting : Phase::kIdle;
  restart_at_ = clock_.Monotonic() + options_.restart_delay;
}

absl::Status ProcessSupervisor::SaveRunFile() {
  return WriteFileDurably(run_path_, Format({wanted_, process_, invocation_, restarts_}));
}

absl::Status ProcessSupervisor::Stop(absl::Duration timeout) {
  const absl::Duration patience = std::min(options_.stop_timeout, std::max(timeout, absl::ZeroDuration()));
  const absl::Duration deadline = clock_.Monotonic() + std::max(timeout, patience + kKernelPatience);
  MutexLock lock(mutex_);
  const bool was_wanted = wanted_;
  wanted_ = false;
  fresh_ = false;
  stop_patience_ = patience;
  // Even when it was written before: what is on the disk decides what the next agent does.
  const absl::Status saved = SaveRunFile();
  if (!saved.ok()) {
    wanted_ = was_wanted;
    return Annotate(saved, absl::StrCat("cannot record that ", options_.service, " is to stop, so it was not stopped"));
  }
  if (phase_ == Phase::kEnding) kill_at_ = std::min(kill_at_, clock_.Monotonic() + patience);
  Wake();
  while (phase_ != Phase::kIdle) {
    const absl::Duration left = deadline - clock_.Monotonic();
    if (left <= absl::ZeroDuration()) {
      std::string pids;
      for (const pid_t pid : GroupMembers(process_)) absl::StrAppend(&pids, pids.empty() ? "" : ", ", pid);
      return absl::DeadlineExceededError(
          absl::StrCat(options_.service, " did not end, not even by SIGKILL; still there: process ", pids));
    }
    changed_.WaitFor(mutex_, left);
  }
  return absl::OkStatus();
}

absl::Status ProcessSupervisor::Start(absl::Duration timeout) {
  const absl::Duration deadline = clock_.Monotonic() + timeout;
  MutexLock lock(mutex_);
  if (wanted_ && phase_ == Phase::kRunning && !LeaderEnded()) return absl::OkStatus();
  wanted_ = true;
  fresh_ = true;
  const uint64_t before = launches_;
  Wake();
  while (launches_ == before) {
    const absl::Duration left = deadline - clock_.Monotonic();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(
          absl::StrCat(options_.service, " was not started in time: an earlier run has not ended yet"));
    }
    changed_.WaitFor(mutex_, left);
  }
  return launch_status_;
}

absl::StatusOr<UnitState> ProcessSupervisor::GetState() {
  MutexLock lock(mutex_);
  UnitState state;
  const bool runs = phase_ == Phase::kRunning && !LeaderEnded();
  switch (phase_) {
    case Phase::kIdle:
      state.activity = wanted_ ? UnitState::Activity::kActivating : UnitState::Activity::kInactive;
      break;
    case Phase::kRunning:
      state.activity = runs ? UnitState::Activity::kActive : UnitState::Activity::kActivating;
      break;
    case Phase::kEnding:
      state.activity = wanted_ ? UnitState::Activity::kActivating : UnitState::Activity::kDeactivating;
      break;
    case Phase::kWaiting:
      state.activity = UnitState::Activity::kActivating;
      break;
  }
  state.main_pid = runs ? process_.pid : 0;
  state.invocation = runs ? invocation_ : "";
  state.restarts = restarts_;
  state.last_failure = last_failure_;
  return state;
}

}  // namespace rb::agent
