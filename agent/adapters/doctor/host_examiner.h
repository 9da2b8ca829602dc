// What `rbctl doctor` asks a host about itself.
#ifndef RB_AGENT_ADAPTERS_DOCTOR_HOST_EXAMINER_H_
#define RB_AGENT_ADAPTERS_DOCTOR_HOST_EXAMINER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "agent/adapters/config/agent_config.h"
#include "agent/core/ports/host_examiner.h"
#include "agent/core/ports/supervisor.h"
#include "agent/core/service.h"
#include "common/clock.h"

namespace rb::v1 {
class AgentServiceConfig;
}  // namespace rb::v1

namespace rb::agent {

struct HostExaminerOptions {
  std::string service;
  std::string state_folder;
  // agent.yaml, as it lies on the disk now; empty: not looked at.
  std::string config_path;
  // Not owned; null: the unit is not asked for.
  Supervisor* supervisor = nullptr;
  // At most so many entries of the tree, and so long for them.
  size_t most_entries = 300000;
  absl::Duration scan_timeout = absl::Seconds(3);
  // Longest wait for names to be resolved, and for the git remote to answer.
  absl::Duration network_timeout = absl::Seconds(8);
};

// `config` is copied, and passed the checks. Nothing is owned.
std::unique_ptr<HostExaminer> MakeHostExaminer(const v1::AgentServiceConfig& config, HostExaminerOptions options,
                                               Clock& clock);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_DOCTOR_HOST_EXAMINER_H_
