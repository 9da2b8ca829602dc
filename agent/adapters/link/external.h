// Notices what other means have done to a tree: captures it as a release, and owes the controller a record of it.
#ifndef RB_AGENT_ADAPTERS_LINK_EXTERNAL_H_
#define RB_AGENT_ADAPTERS_LINK_EXTERNAL_H_

#include <string>

#include "absl/time/time.h"
#include "agent/adapters/link/daemon.h"
#include "agent/core/task/external.h"

namespace rb::agent {

// For one service, on its own worker.
class ExternalDeploys {
 public:
  ExternalDeploys(std::string name, std::string tree, std::string state_folder, absl::Duration settle, Clock& clock)
      : name_(std::move(name)),
        tree_(std::move(tree)),
        state_folder_(std::move(state_folder)),
        settle_(settle),
        clock_(clock),
        watch_(settle) {}

  // `current`: from CheckDrift just now; brought up to date when a release was captured. True when there is something
  // to look at again after settle().
  bool Look(Service& service, bool operation_is_open, Current* current);
  // What was captured is good once the probes have passed on it.
  static void Judge(Service& service, const Current& current, bool is_healthy);
  absl::Duration settle() const { return settle_; }

 private:
  const std::string name_;
  const std::string tree_;
  const std::string state_folder_;
  const absl::Duration settle_;
  Clock& clock_;
  ExternalWatch watch_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LINK_EXTERNAL_H_
