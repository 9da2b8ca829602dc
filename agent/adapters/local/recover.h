// `rb-agent recover`: makes half-done swaps whole; asked by systemd before a service starts, and by people.
#ifndef RB_AGENT_ADAPTERS_LOCAL_RECOVER_H_
#define RB_AGENT_ADAPTERS_LOCAL_RECOVER_H_

#include <string>

#include "common/clock.h"

namespace rb::agent {

struct RecoverRequest {
  std::string config_path;
  std::string state_folder;
  std::string service;  // empty: all of them
  // Asked on behalf of a unit that is about to start. Says nothing when there is nothing to do; waits a while for a
  // swap that is going on; lets a whole tree start even when agent.yaml cannot be read.
  bool before_start = false;
};

// Prints what was done; returns the exit code, 0 when the service may start.
int RunRecover(const RecoverRequest& request, Clock& clock);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LOCAL_RECOVER_H_
