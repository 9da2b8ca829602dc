#ifndef RB_AGENT_ADAPTERS_PROBE_MAKE_PROBES_H_
#define RB_AGENT_ADAPTERS_PROBE_MAKE_PROBES_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/core/ports/probe.h"
#include "agent/core/ports/supervisor.h"
#include "agent/core/service.h"
#include "common/clock.h"

namespace rb::v1 {
class AgentServiceConfig;
}  // namespace rb::v1

namespace rb::agent {

// The health checks of agent.yaml, in its order; a unit probe when it names none. `config` passed the checks of
// LoadAgentConfig, `tree` is the same service's. `supervisor` and `clock` are not owned and outlive the probes.
// <state_folder>/probes remembers where logs ended, so that an agent that was restarted can go on checking.
absl::StatusOr<std::vector<std::unique_ptr<Probe>>> MakeProbes(const v1::AgentServiceConfig& config,
                                                               Supervisor& supervisor, const ServiceTree& tree,
                                                               const std::string& state_folder, Clock& clock);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_PROBE_MAKE_PROBES_H_
