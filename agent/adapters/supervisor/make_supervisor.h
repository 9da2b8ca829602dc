#ifndef RB_AGENT_ADAPTERS_SUPERVISOR_MAKE_SUPERVISOR_H_
#define RB_AGENT_ADAPTERS_SUPERVISOR_MAKE_SUPERVISOR_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "agent/core/ports/supervisor.h"
#include "common/clock.h"

namespace rb::v1 {
class AgentServiceConfig;
}  // namespace rb::v1

namespace rb::agent {

// The supervisor that agent.yaml asks for: systemd for `unit`, otherwise the agent's own for `process`, which takes up
// at once what it left running (see ProcessSupervisor). `config` passed the checks of LoadAgentConfig. `state_folder`
// is the agent's own and exists; `clock` is not owned. UNAVAILABLE when another process supervises the service.
absl::StatusOr<std::unique_ptr<Supervisor>> MakeSupervisor(const std::string& service,
                                                           const v1::AgentServiceConfig& config,
                                                           const std::string& state_folder, Clock& clock);

// Where a service under `process` logs: the configured file, or <state>/<service>.log.
std::string ProcessLogPath(const std::string& service, const v1::AgentServiceConfig& config,
                           const std::string& state_folder);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_SUPERVISOR_MAKE_SUPERVISOR_H_
