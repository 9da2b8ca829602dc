// after_restore of agent.yaml.
#ifndef RB_AGENT_ADAPTERS_RESTORE_AFTER_RESTORE_H_
#define RB_AGENT_ADAPTERS_RESTORE_AFTER_RESTORE_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "agent/core/ports/after_restore.h"
#include "agent/core/ports/supervisor.h"
#include "agent/core/service.h"
#include "common/clock.h"

namespace rb::agent {

struct AfterRestoreOptions {
  ServiceTree tree;
  // Globs of folders whose content goes.
  std::vector<std::string> clear;
  // Units, and how each is reached.
  std::vector<std::string> restart;
  std::function<std::unique_ptr<Supervisor>(const std::string& unit)> supervisor_of;
  absl::Duration restart_timeout = absl::Seconds(30);
  // For all folders together: the service is stopped meanwhile.
  absl::Duration clear_timeout = absl::Seconds(10);
};

// Folders are opened beneath the tree, without following links, and never on another filesystem. Data, and what a
// folder of data holds, is left alone unless a glob names it: unless what stands before its first wildcard is data.
std::unique_ptr<AfterRestore> MakeAfterRestore(AfterRestoreOptions options, Clock& clock);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_RESTORE_AFTER_RESTORE_H_
