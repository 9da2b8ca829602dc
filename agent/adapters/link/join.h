#ifndef RB_AGENT_ADAPTERS_LINK_JOIN_H_
#define RB_AGENT_ADAPTERS_LINK_JOIN_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rb::agent {

// Trades a join token for a certificate and writes <state>/identity. Returns the agent's name. ALREADY_EXISTS when this
// host has joined before: nothing is overwritten. On any error nothing is left behind, and the token is not used up
// unless the controller has answered.
absl::StatusOr<std::string> JoinController(const std::string& token_line, const std::string& state_folder);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LINK_JOIN_H_
