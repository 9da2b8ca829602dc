#include "agent/adapters/supervisor/systemd_supervisor.h"

#include <sdbus-c++/sdbus-c++.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr char kDestination[] = "org.freedesktop.systemd1";
constexpr char kManagerPath[] = "/org/freedesktop/systemd1";
constexpr char kManager[] = "org.freedesktop.systemd1.Manager";
constexpr char kUnit[] = "org.freedesktop.systemd1.Unit";
constexpr char kService[] = "org.freedesktop.systemd1.Service";
constexpr char kProperties[] = "org.freedesktop.DBus.Properties";
// Also for a unit that has a file, but is not loaded because it does not run.
constexpr char kNoSuchUnit[] = "org.freedesktop.systemd1.NoSuchUnit";
constexpr std::chrono::seconds kCallTimeout{5};
// Results of jobs of other units, kept until somebody asks: ours ends among them.
constexpr size_t kMostResults = 256;

using PropertyMap = std::map<std::string, sdbus::Variant>;

absl::Status ToStatus(const sdbus::Error& error, absl::string_view what) {
  const std::string text = absl::StrCat(what, ": ", Printable(Truncate(error.getMessage(), 300)));
  const std::string& name = error.getName();
  if (name == kNoSuchUnit || name == "org.freedesktop.systemd1.LoadFailed") {
    return absl::NotFoundError(text);
  }
  if (name == "org.freedesktop.DBus.Error.AccessDenied" ||
      name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired") {
    return absl::PermissionDeniedError(text);
  }
  if (name == "org.freedesktop.DBus.Error.NoReply" || name == "org.freedesktop.DBus.Error.Timeout") {
    return absl::DeadlineExceededError(text);
  }
  return absl::UnavailableError(text);
}

// A property, or `fallback` when it is absent or has another type (another version of systemd).
template <typename T>
T Get(const PropertyMap& properties, const char* name, T fallback) {
  const auto it = properties.find(name);
  if (it == properties.end()) return fallback;
  try {
    return it->second.get<T>();
  } catch (const sdbus::Error&) {
    return fallback;
  }
}

std::string Hex(const std::vector<uint8_t>& bytes) {
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

}  // namespace

// One connection with its own thread for signals. Throws sdbus::Error.
class SystemdSupervisor::Bus {
 public:
  Bus() : connection_(sdbus::createSystemBusConnection()) {
    manager_ = sdbus::createProxy(*connection_, kDestination, kManagerPath);
    manager_->uponSignal("JobRemoved")
        .onInterface(kManager)
        .call([this](uint32_t, const sdbus::ObjectPath& job, const std::string&, const std::string& result) {
          MutexLock lock(mutex_);
          if (results_.size() >= kMostResults) results_.clear();
          results_[job] = result;
          changed_.NotifyAll();
        });
    manager_->finishRegistration();
    connection_->enterEventLoopAsync();
    // Without it systemd sends no signals.
    manager_->callMethod("Subscribe").onInterface(kManager).withTimeout(kCallTimeout);
  }
  ~Bus() {
    try {
      manager_.reset();
      connection_->leaveEventLoop();
    } catch (const sdbus::Error& e) {
      LogWarning("supervisor", "leaving the bus: ", e.getMessage());
    }
  }
  Bus(const Bus&) = delete;
  Bus& operator=(const Bus&) = delete;

  void ResetFailed(const std::string& unit) {
    manager_->callMethod("ResetFailedUnit").onInterface(kManager).withTimeout(kCallTimeout).withArguments(unit);
  }

  // Starts a job and returns its path. Results of earlier jobs are forgotten: one caller at a time.
  std::string Begin(const char* method, const std::string& unit) {
    {
      MutexLock lock(mutex_);
      results_.clear();
    }
    sdbus::ObjectPath job;
    manager_->callMethod(method)
        .onInterface(kManager)
        .withTimeout(kCallTimeout)
        .withArguments(unit, std::string("replace"))
        .storeResultsTo(job);
    return job;
  }

  // "done", "failed", "canceled", "timeout", "dependency", "skipped"; "" when the time ran out. The signal may have
  // come before the reply did.
  std::string Await(const std::string& job, Clock& clock, absl::Duration deadline) {
    MutexLock lock(mutex_);
    for (;;) {
      const auto it = results_.find(job);
      if (it != results_.end()) return it->second;
      const absl::Duration left = deadline - clock.Monotonic();
      if (left <= absl::ZeroDuration()) return "";
      changed_.WaitFor(mutex_, left);
    }
  }

  std::pair<PropertyMap, PropertyMap> Read(const std::string& unit) {
    sdbus::ObjectPath path;
    manager_->callMethod("LoadUnit")
        .onInterface(kManager)
        .withTimeout(kCallTimeout)
        .withArguments(unit)
        .storeResultsTo(path);
    // No signals are wanted of it: it shares the connection, and lives for two calls.
    const std::unique_ptr<sdbus::IProxy> proxy = sdbus::createProxy(*connection_, kDestination, path);
    std::pair<PropertyMap, PropertyMap> properties;
    proxy->callMethod("GetAll")
        .onInterface(kProperties)
        .withTimeout(kCallTimeout)
        .withArguments(std::string(kUnit))
        .storeResultsTo(properties.first);
    proxy->callMethod("GetAll")
        .onInterface(kProperties)
        .withTimeout(kCallTimeout)
        .withArguments(std::string(kService))
        .storeResultsTo(properties.second);
    return properties;
  }

  // Process ids that the unit's control group still holds.
  std::vector<uint32_t> Processes(const std::string& unit) {
    std::vector<sdbus::Struct<std::string, uint32_t, std::string>> processes;
    try {
      manager_->callMethod("GetUnitProcesses")
          .onInterface(kManager)
          .withTimeout(kCallTimeout)
          .withArguments(unit)
          .storeResultsTo(processes);
    } catch (const sdbus::Error& e) {
      // systemd forgets a unit as soon as nothing of it is left.
      if (e.getName() != kNoSuchUnit) throw;
    }
    std::vector<uint32_t> pids;
    for (const auto& process : processes) pids.push_back(std::get<1>(process));
    std::sort(pids.begin(), pids.end());
    return pids;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<std::string, std::string> results_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<sdbus::IConnection> connection_;
  std::unique_ptr<sdbus::IProxy> manager_;
};

struct SystemdSupervisor::Connection {
  Mutex mutex;
  // Shared, so that a call that is under way in another thread ends before its bus does.
  std::shared_ptr<Bus> bus ABSL_GUARDED_BY(mutex);

  // After an error that may mean that the bus is gone: the next call connects anew.
  void Drop(const std::shared_ptr<Bus>& used) {
    MutexLock lock(mutex);
    if (bus == used) bus.reset();
  }
};

SystemdSupervisor::SystemdSupervisor(std::string unit, Clock& clock, std::vector<std::string> also_restart)
    : unit_(std::move(unit)),
      also_restart_(std::move(also_restart)),
      dependants_(also_restart_),
      clock_(clock),
      connection_(std::make_unique<Connection>()) {}
SystemdSupervisor::~SystemdSupervisor() = default;

absl::StatusOr<std::shared_ptr<SystemdSupervisor::Bus>> SystemdSupervisor::Connect() {
  MutexLock lock(connection_->mutex);
  if (connection_->bus == nullptr) {
    try {
      connection_->bus = std::make_shared<Bus>();
    } catch (const sdbus::Error& e) {
      return absl::UnavailableError(
          absl::StrCat("systemd cannot be reached on the system bus: ", Printable(Truncate(e.getMessage(), 300))));
    }
  }
  return connection_->bus;
}

absl::Status SystemdSupervisor::Stop(absl::Duration timeout) {
  const absl::Duration deadline = clock_.Monotonic() + timeout;
  // Stopping a unit that systemd has not loaded and one that does not exist give the same error: tell them apart.
  RB_RETURN_IF_ERROR(GetState().status());
  RB_ASSIGN_OR_RETURN(const std::shared_ptr<Bus> bus, Connect());
  try {
    std::vector<std::string> running;
    for (const std::string& unit : also_restart_) {
      const std::string active = Get<std::string>(bus->Read(unit).first, "ActiveState", "");
      if (active == "active" || active == "activating" || active == "reloading") running.push_back(unit);
    }
    std::string job;
    try {
      job = bus->Begin("StopUnit", unit_);
    } catch (const sdbus::Error& e) {
      if (e.getName() == kNoSuchUnit) return absl::OkStatus();
      throw;
    }
    // A stop that is asked for again, after one that took too long, finds them stopped.
    if (!knows_dependants_) dependants_.clear();
    knows_dependants_ = true;
    for (std::string& unit : running) {
      if (std::find(dependants_.begin(), dependants_.end(), unit) == dependants_.end()) dependants_.push_back(unit);
    }
    const std::string result = bus->Await(job, clock_, deadline);
    if (result.empty()) {
      return absl::DeadlineExceededError(absl::StrCat(unit_, " has not stopped after ", absl::FormatDuration(timeout),
                                                      "; systemd goes on stopping it"));
    }
    if (result != "done") {
      return absl::AbortedError(absl::StrCat("stopping ", unit_, ": the job ended with \"", result, "\""));
    }
    // With KillMode=process or mixed, or an unkillable process, the job can be done while processes are left.
    for (;;) {
      const std::vector<uint32_t> left = bus->Processes(unit_);
      if (left.empty()) return absl::OkStatus();
      if (clock_.Monotonic() >= deadline) {
        return absl::DeadlineExceededError(
            absl::StrCat(unit_, " is stopped, but left processes behind: ", absl::StrJoin(left, ", ")));
      }
      clock_.Sleep(absl::Milliseconds(20));
    }
  } catch (const sdbus::Error& e) {
    const absl::Status status = ToStatus(e, absl::StrCat("stopping ", unit_));
    if (absl::IsUnavailable(status)) connection_->Drop(bus);
    return status;
  }
}

absl::Status SystemdSupervisor::Start(absl::Duration timeout) {
  const absl::Duration deadline = clock_.Monotonic() + timeout;
  RB_ASSIGN_OR_RETURN(const std::shared_ptr<Bus> bus, Connect());
  try {
    try {
      bus->ResetFailed(unit_);
    } catch (const sdbus::Error& e) {
      // A unit that is not loaded has nothing to reset.
      if (!absl::IsNotFound(ToStatus(e, ""))) throw;
    }
    const std::string result = bus->Await(bus->Begin("StartUnit", unit_), clock_, deadline);
    if (result.empty()) {
      return absl::DeadlineExceededError(absl::StrCat(unit_, " has not started after ", absl::FormatDuration(timeout),
                                                      "; systemd goes on starting it"));
    }
    if (result != "done") {
      return absl::AbortedError(absl::StrCat("starting ", unit_, ": the job ended with \"", result,
                                             "\". Look at: journalctl -u ", unit_, " -n 50"));
    }
    return RestartDependants(*bus, deadline);
  } catch (const sdbus::Error& e) {
    const absl::Status status = ToStatus(e, absl::StrCat("starting ", unit_));
    if (absl::IsUnavailable(status)) connection_->Drop(bus);
    return status;
  }
}

absl::Status SystemdSupervisor::RestartDependants(Bus& bus, absl::Duration deadline) {
  absl::Status first_failure;
  for (const std::string& unit : also_restart_) {
    if (std::find(dependants_.begin(), dependants_.end(), unit) == dependants_.end()) continue;
    const std::string result = bus.Await(bus.Begin("RestartUnit", unit), clock_, deadline);
    if (result != "done" && first_failure.ok()) {
      first_failure = absl::AbortedError(
          absl::StrCat(unit_, " runs, but ", unit, ", which depends on it, was not restarted: ",
                       result.empty() ? "it takes too long" : absl::StrCat("the job ended with \"", result, "\""),
                       ". Look at: journalctl -u ", unit, " -n 50"));
    }
  }
  dependants_.clear();
  knows_dependants_ = true;
  return first_failure;
}

absl::StatusOr<UnitState> SystemdSupervisor::GetState() {
  RB_ASSIGN_OR_RETURN(const std::shared_ptr<Bus> bus, Connect());
  std::pair<PropertyMap, PropertyMap> properties;
  try {
    properties = bus->Read(unit_);
  } catch (const sdbus::Error& e) {
    const absl::Status status = ToStatus(e, absl::StrCat("asking systemd about ", unit_));
    if (absl::IsUnavailable(status)) connection_->Drop(bus);
    return status;
  }
  const PropertyMap& unit = properties.first;
  const PropertyMap& service = properties.second;
  const std::string load_state = Get<std::string>(unit, "LoadState", "");
  if (load_state == "not-found") return absl::NotFoundError(absl::StrCat("systemd knows no unit ", unit_));
  UnitState state;
  const std::string active = Get<std::string>(unit, "ActiveState", "");
  if (active == "active" || active == "reloading") {
    state.activity = UnitState::Activity::kActive;
  } else if (active == "activating") {
    state.activity = UnitState::Activity::kActivating;
  } else if (active == "deactivating") {
    state.activity = UnitState::Activity::kDeactivating;
  } else if (active == "failed") {
    state.activity = UnitState::Activity::kFailed;
  }
  state.main_pid = Get<uint32_t>(service, "MainPID", 0);
  state.restarts = Get<uint32_t>(service, "NRestarts", 0);
  state.needs_reload = Get<bool>(unit, "NeedDaemonReload", false);
  state.invocation = Hex(Get<std::vector<uint8_t>>(unit, "InvocationID", {}));
  // CLD_EXITED, CLD_KILLED and CLD_DUMPED; 0 while the first run goes on. What the unit did when it was last stopped on
  // purpose (SIGTERM) counts as success for systemd.
  const int32_t code = Get<int32_t>(service, "ExecMainCode", 0);
  const int32_t status = Get<int32_t>(service, "ExecMainStatus", 0);
  const std::string result = Get<std::string>(service, "Result", "success");
  if (code == 1 && (result != "success" || status != 0 || state.restarts > 0)) {
    state.last_failure = absl::StrCat("exited with status ", status);
  } else if (code > 1 && (result != "success" || state.restarts > 0)) {
    state.last_failure = absl::StrCat("killed by signal ", status);
  }
  if (result != "success") {
    absl::StrAppend(&state.last_failure, state.last_failure.empty() ? "" : " ", "(", Printable(result), ")");
  }
  if (state.last_failure.empty() && state.restarts > 0) {
    state.last_failure = absl::StrCat("restarted ", state.restarts, " times");
  }
  return state;
}

}  // namespace rb::agent
