#ifndef RB_AGENT_ADAPTERS_LINK_SERVICE_SETUP_H_
#define RB_AGENT_ADAPTERS_LINK_SERVICE_SETUP_H_

#include <string>

#include "rb/v1/agent_config.pb.h"
#include "rb/v1/agent_link.pb.h"

namespace rb::agent {

// What of the host's own file a person has to know to do a recovery by hand.
v1::ServiceSetup SetupOf(const v1::AgentServiceConfig& config, const std::string& state_folder);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LINK_SERVICE_SETUP_H_
