#ifndef RB_AGENT_CORE_PORTS_SUPERVISOR_H_
#define RB_AGENT_CORE_PORTS_SUPERVISOR_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace rb::agent {

struct UnitState {
  enum class Activity {
    kInactive,
    kActivating,  // also systemd's "auto-restart": a unit that loops is never active for long, and never failed
    kActive,
    kDeactivating,
    kFailed,
  };
  Activity activity = Activity::kInactive;
  // 0 when there is none.
  int64_t main_pid = 0;
  // Distinguishes two runs that got the same process id.
  std::string invocation;
  // Automatic restarts since the unit was last started by someone.
  uint32_t restarts = 0;
  // For a person: "exited with status 1", "killed by signal 9", "" while it runs for the first time.
  std::string last_failure;
  // The unit's file has changed since it was read: what would be started is not what it says.
  bool needs_reload = false;
};

// Starts and stops one service. Methods block; not thread-safe: one caller at a time, but GetState may be called from
// any thread.
class Supervisor {
 public:
  virtual ~Supervisor() = default;
  // Returns when no process of the service is left, or DEADLINE_EXCEEDED. Stopping what does not run is OK.
  virtual absl::Status Stop(absl::Duration timeout) = 0;
  // Returns when the start has been carried out (systemd: the job ended; process: it was spawned). That the service is
  // healthy is for probes to say. Starting what runs is OK. Start limits are reset first.
  virtual absl::Status Start(absl::Duration timeout) = 0;
  virtual absl::StatusOr<UnitState> GetState() = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_SUPERVISOR_H_
