// `rb-agent guard before|after`: one line each in a CI job that deploys by its own means (rsync, git pull). They work
// without the controller, and while the daemon runs.
#ifndef RB_AGENT_ADAPTERS_LOCAL_GUARD_H_
#define RB_AGENT_ADAPTERS_LOCAL_GUARD_H_

#include <string>

#include "absl/time/time.h"
#include "common/clock.h"

namespace rb::v1 {
class AgentConfig;
}

namespace rb::agent {

struct GuardRequest {
  // "before" or "after".
  std::string verb;
  // May be empty when there is only one.
  std::string service;
  // What is deployed; empty: not said.
  std::string commit;
  std::string reason;
  bool force = false;
  bool json = false;
  // For whatever else is at work on the service: the daemon, an operation.
  absl::Duration patience = absl::Minutes(2);
};

// Prints what it did; errors to standard error. Exit: 0 done, 1 failed and nothing was changed, 2 usage, 3 needs
// attention, 5 refused.
int RunGuard(const v1::AgentConfig& config, const std::string& state_folder, const GuardRequest& request, Clock& clock);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LOCAL_GUARD_H_
