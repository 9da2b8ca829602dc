#ifndef RB_AGENT_CORE_PORTS_AFTER_RESTORE_H_
#define RB_AGENT_CORE_PORTS_AFTER_RESTORE_H_

#include <string>
#include <vector>

namespace rb::agent {

// What has to happen, beside the swap, so that the release that is gone to runs as it did. Both give what went wrong,
// for a person, and are bounded in time; neither decides anything about the swap.
class AfterRestore {
 public:
  virtual ~AfterRestore() = default;
  // While the service is stopped: clears caches.
  virtual std::vector<std::string> BeforeStart() = 0;
  // Once the service was started: restarts what depends on it.
  virtual std::vector<std::string> AfterStart() = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_AFTER_RESTORE_H_
