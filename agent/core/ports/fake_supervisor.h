// For tests: a service without a process, that fails on demand.
#ifndef RB_AGENT_CORE_PORTS_FAKE_SUPERVISOR_H_
#define RB_AGENT_CORE_PORTS_FAKE_SUPERVISOR_H_

#include <functional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "agent/core/ports/supervisor.h"
#include "common/mutex.h"

namespace rb::agent {

// Behaves as the port says. Thread-safe, so that a test can change it while it is used.
class FakeSupervisor final : public Supervisor {
 public:
  // The next calls give this instead of doing anything, until it is set to OK again.
  void FailStop(absl::Status status) {
    MutexLock lock(mutex_);
    stop_status_ = std::move(status);
  }
  void FailStart(absl::Status status) {
    MutexLock lock(mutex_);
    start_status_ = std::move(status);
  }
  void FailGetState(absl::Status status) {
    MutexLock lock(mutex_);
    state_status_ = std::move(status);
  }
  // What the service does right after it was started, as a release does that cannot run: "" runs.
  void DieAtStart(std::string failure) {
    MutexLock lock(mutex_);
    dies_at_start_ = std::move(failure);
  }
  // Called in Start and Stop, before they take effect and without any lock: to look at the tree, or to end the test's
  // "agent" right there.
  void OnStart(std::function<void()> hook) { on_start_ = std::move(hook); }
  void OnStop(std::function<void()> hook) { on_stop_ = std::move(hook); }

  // The service dies and is started again by itself.
  void Crash(const std::string& failure) {
    MutexLock lock(mutex_);
    if (state_.activity != UnitState::Activity::kActive) return;
    NewRun();
    ++state_.restarts;
    state_.last_failure = failure;
  }
  void SetState(UnitState state) {
    MutexLock lock(mutex_);
    state_ = std::move(state);
  }

  int stops() const {
    MutexLock lock(mutex_);
    return stops_;
  }
  int starts() const {
    MutexLock lock(mutex_);
    return starts_;
  }

  absl::Status Stop(absl::Duration /*timeout*/) override {
    if (on_stop_) on_stop_();
    MutexLock lock(mutex_);
    ++stops_;
    if (!stop_status_.ok()) return stop_status_;
    state_.activity = UnitState::Activity::kInactive;
    state_.main_pid = 0;
    state_.invocation.clear();
    state_.restarts = 0;
    return absl::OkStatus();
  }
  absl::Status Start(absl::Duration /*timeout*/) override {
    if (on_start_) on_start_();
    MutexLock lock(mutex_);
    ++starts_;
    if (!start_status_.ok()) return start_status_;
    if (state_.activity == UnitState::Activity::kActive) return absl::OkStatus();
    state_.restarts = 0;
    state_.last_failure.clear();
    NewRun();
    if (!dies_at_start_.empty()) {
      state_.activity = UnitState::Activity::kActivating;
      state_.main_pid = 0;
      state_.restarts = 1;
      state_.last_failure = dies_at_start_;
    }
    return absl::OkStatus();
  }
  absl::StatusOr<UnitState> GetState() override {
    MutexLock lock(mutex_);
    if (!state_status_.ok()) return state_status_;
    return state_;
  }

 private:
  void NewRun() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ++runs_;
    state_.activity = UnitState::Activity::kActive;
    // Above what the kernel gives out: no such process exists.
    state_.main_pid = 100'000'000 + runs_;
    state_.invocation = absl::StrCat("run-", runs_);
  }

  std::function<void()> on_start_;
  std::function<void()> on_stop_;
  mutable Mutex mutex_;
  absl::Status stop_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status start_status_ ABSL_GUARDED_BY(mutex_);
  absl::Status state_status_ ABSL_GUARDED_BY(mutex_);
  std::string dies_at_start_ ABSL_GUARDED_BY(mutex_);
  UnitState state_ ABSL_GUARDED_BY(mutex_);
  int64_t runs_ ABSL_GUARDED_BY(mutex_) = 0;
  int stops_ ABSL_GUARDED_BY(mutex_) = 0;
  int starts_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_FAKE_SUPERVISOR_H_
