// A fault that a drill has put in, and how it is undone. Mirrors proto/rb/v1/agent_link.proto, where each field of the
// report is explained.
#ifndef RB_AGENT_CORE_FAULT_FAULT_H_
#define RB_AGENT_CORE_FAULT_FAULT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb::agent {

// In the wire's order, which is one higher.
enum class FaultKind { kBadCode, kBadDatabase, kBadConfig, kHostPowerCut, kAgentKilled, kControllerKilled, kDiskFull };
inline constexpr FaultKind kAllFaultKinds[] = {
    FaultKind::kBadCode,     FaultKind::kBadDatabase,      FaultKind::kBadConfig, FaultKind::kHostPowerCut,
    FaultKind::kAgentKilled, FaultKind::kControllerKilled, FaultKind::kDiskFull};
// "bad-code".
absl::string_view NameOf(FaultKind kind);
bool ParseFaultKind(absl::string_view text, FaultKind* kind);
// Armed, and let loose in the middle of the recovery.
bool StrikesDuringRecovery(FaultKind kind);
// The service is stopped for it, and started again: a full disk is for one that runs.
bool RestartsTheService(FaultKind kind);

// Bytes of a file that are overwritten, or appended when `before` is shorter than `after`.
struct FaultEdit {
  // Relative to the tree.
  std::string path;
  uint64_t offset = 0;
  std::string before;
  std::string after;
  // Given back with the bytes.
  int64_t mtime_ns = 0;
};

struct FaultPlan {
  FaultKind kind = FaultKind::kBadCode;
  std::vector<FaultEdit> edits;
  // A database among `edits`, relative to the tree; empty if none.
  std::string database;
  // A file that takes up space; empty if none. Absolute path.
  std::string filler;
  uint64_t filler_bytes = 0;
  // For a person.
  std::string what;
};

enum class FaultState { kNone, kRecorded, kIn, kEnding, kEnded };

struct FaultRecord {
  std::string drill_id;
  FaultPlan plan;
  FaultState state = FaultState::kNone;
  absl::Time injected_at;
  absl::Duration longest;
  // Its time is up when either clock says so: UTC after a reboot, the monotonic one when somebody moves the clock.
  absl::Time ends_at;
  absl::Duration ends_at_monotonic;
  bool struck = false;
  absl::Time struck_at;
  absl::Duration away;
  bool ended_alone = false;
  uint32_t put_back = 0;
  // Faults of these drills have ended; the newest last. Asking again for one of them injects nothing.
  std::vector<std::string> ended_drills;
};

bool IsOpen(const FaultRecord& record);
// It has struck, and whoever it struck is back: until then nobody can tell, and one that is still there was not struck.
bool HasStruck(const FaultRecord& record);
// As far as it is open.
bool IsTimeUp(const FaultRecord& record, absl::Time now, absl::Duration monotonic);
// The monotonic clock has begun anew when the host was started since: no more than `longest` can be left.
absl::Duration DeadlineAfterRestart(const FaultRecord& record, absl::Duration monotonic);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_FAULT_FAULT_H_
