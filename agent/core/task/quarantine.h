// What an agent knows of the fleet's quarantine. Pure; adapters keep the list.
#ifndef RB_AGENT_CORE_TASK_QUARANTINE_H_
#define RB_AGENT_CORE_TASK_QUARANTINE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "agent/core/release.h"

namespace rb::agent {

struct QuarantineEntry {
  std::string service;
  std::string commit;
  std::string version;
  std::string reason;
  bool released = false;
  std::string release_reason;
  // Of its last change; higher than that of every change before it.
  uint64_t number = 0;
};

// Why `reference` (a commit, 7 digits or more of one, or a version) must not be deployed; empty when it may.
std::string WhyQuarantined(const std::vector<QuarantineEntry>& list, const std::string& service,
                           const std::string& reference);

// What a newer list means for a host's releases of those commits: bad while quarantined, so that none of them is the
// last good one; unknown again once released.
struct StandingChange {
  std::string service;
  std::string commit;
  Standing standing = Standing::kUnknown;
  std::string reason;
};
std::vector<StandingChange> StandingChanges(const std::vector<QuarantineEntry>& before,
                                            const std::vector<QuarantineEntry>& after);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_TASK_QUARANTINE_H_
