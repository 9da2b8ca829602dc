// Runs one service where there is no systemd: starts its command, watches it, restarts it when it dies, stops it.
#ifndef RB_AGENT_ADAPTERS_SUPERVISOR_PROCESS_SUPERVISOR_H_
#define RB_AGENT_ADAPTERS_SUPERVISOR_PROCESS_SUPERVISOR_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "agent/adapters/config/agent_config.h"
#include "agent/adapters/supervisor/spawn.h"
#include "agent/core/ports/supervisor.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/mutex.h"
#include "common/unique_fd.h"

namespace rb::agent {

// The service outlives the agent: it has a session of its own, and when the agent ends, however it ends, the service
// goes on. A durable run file says what was wanted and what ran (process id, its start time, boot id), so that the next
// agent takes it up again, or starts it again when it should run and does not. Since "not wanted" is on the disk before
// the first signal is sent, nothing that this agent stopped is ever started by the next one on its own.
//
// All work is done by one thread of this object; Start and Stop tell it what is wanted and wait. GetState may be called
// from any thread; Start and Stop by one caller at a time.
//
// Bounds: one restart per restart_delay. Processes that leave the service's process group (a daemon of its own) are not
// seen: there is no cgroup here. Where the agent itself runs under systemd, its unit needs KillMode=process.
class ProcessSupervisor final : public Supervisor {
 public:
  struct Options {
    std::string service;
    // Program and arguments; a program without a slash is looked up in the environment's PATH, one with a slash is
    // relative to `folder`.
    std::vector<std::string> command;
    // Added to a small clean environment: PATH, HOME, USER, LOGNAME, LANG.
    std::map<std::string, std::string> environment;
    // Where the command runs: the tree.
    std::string folder;
    // Both outputs are appended here.
    std::string log_path;
    // The log was chosen in agent.yaml, maybe where the service's user can plant links: open it as that user.
    bool open_log_as_user = false;
    // The run file and the lock lie here.
    std::string state_folder;
    // SIGTERM → SIGKILL.
    absl::Duration stop_timeout = absl::Seconds(10);
    absl::Duration restart_delay = absl::Seconds(1);
    bool switch_user = false;
    UserAndGroup user;
  };

  // Takes up what runs. UNAVAILABLE when another process holds the service. `clock` is not owned, and has to be one
  // that runs by itself.
  static absl::StatusOr<std::unique_ptr<ProcessSupervisor>> Create(Options options, Clock& clock);
  // Leaves the service as it is.
  ~ProcessSupervisor() override;
  ProcessSupervisor(const ProcessSupervisor&) = delete;
  ProcessSupervisor& operator=(const ProcessSupervisor&) = delete;

  // SIGTERM to the group; SIGKILL after stop_timeout, or after `timeout` when that is shorter. DEADLINE_EXCEEDED when
  // processes are left 5 s after that or after `timeout`, whichever is later.
  absl::Status Stop(absl::Duration timeout) override;
  // When the command cannot be run (it is not there, the folder is gone) the error says so, and the supervisor goes on
  // trying, as it does when the service dies.
  absl::Status Start(absl::Duration timeout) override;
  absl::StatusOr<UnitState> GetState() override;

 private:
  enum class Phase { kIdle, kRunning, kEnding, kWaiting };

  ProcessSupervisor(Options options, Clock& clock, FileLock lock);
  absl::Status TakeUp();
  void Run();
  // What the thread does next; returns how long it may sleep, at most.
  absl::Duration Step() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Launch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void BeginEnding() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Reap() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Ended() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool LeaderEnded() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status SaveRunFile() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Wake();

  const Options options_;
  Clock& clock_;
  const FileLock lock_;
  const std::string run_path_;
  UniqueFd wake_;

  Mutex mutex_;
  CondVar changed_;
  bool quitting_ ABSL_GUARDED_BY(mutex_) = false;
  bool wanted_ ABSL_GUARDED_BY(mutex_) = false;
  // Somebody asked for a start: no delay, and restarts count from zero.
  bool fresh_ ABSL_GUARDED_BY(mutex_) = false;
  // Counts launches, so that Start can tell its own from an earlier one.
  uint64_t launches_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status launch_status_ ABSL_GUARDED_BY(mutex_);
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kIdle;
  ProcessIdentity process_ ABSL_GUARDED_BY(mutex_);
  UniqueFd pidfd_ ABSL_GUARDED_BY(mutex_);
  bool reaped_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration kill_at_ ABSL_GUARDED_BY(mutex_);
  absl::Duration stop_patience_ ABSL_GUARDED_BY(mutex_);
  absl::Duration restart_at_ ABSL_GUARDED_BY(mutex_);
  std::string invocation_ ABSL_GUARDED_BY(mutex_);
  uint32_t restarts_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string last_failure_ ABSL_GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_SUPERVISOR_PROCESS_SUPERVISOR_H_
