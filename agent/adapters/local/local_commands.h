// `rb-agent local …`: the same engine and steps, by hand, with no controller.
#ifndef RB_AGENT_ADAPTERS_LOCAL_LOCAL_COMMANDS_H_
#define RB_AGENT_ADAPTERS_LOCAL_LOCAL_COMMANDS_H_

#include <string>

#include "common/clock.h"

namespace rb::v1 {
class AgentConfig;
}

namespace rb::agent {

struct LocalRequest {
  // "backup", "list", "plan", "rollback", "verify", "prune", "recover" or "status".
  std::string verb;
  std::string service;  // may be empty when there is only one
  std::string to;       // plan, rollback: a reference; empty: the last good release. verify: a release
  std::string reason;
  bool with_data = false;
  bool force = false;
  unsigned keep_good = 10;
};

// Prints to standard output, errors to standard error; returns the exit code (0 done, 1 failed and nothing changed,
// 2 usage, 3 needs attention, 5 refused, 6 reverted).
int RunLocal(const v1::AgentConfig& config, const std::string& state_folder, const LocalRequest& request, Clock& clock);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LOCAL_LOCAL_COMMANDS_H_
