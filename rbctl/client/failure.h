// How a command that did not do what it was asked for says so: what happened, what state everything is in, what to type
// next.
#ifndef RB_RBCTL_CLIENT_FAILURE_H_
#define RB_RBCTL_CLIENT_FAILURE_H_

#include <string>

#include "absl/status/status.h"
#include "rbctl/client/run.h"
#include "rbctl/commands/command.h"

namespace rb::cli {

// A call failed, or was refused. `may_have_begun`: it would change something, and nobody knows whether it arrived.
// Gives the exit status.
int Failed(const Command& command, const absl::Status& status, bool may_have_begun, const Terminal& terminal);

// In text on stderr, or as JSON on stdout. Gives `code`.
int Error(const Command& command, const std::string& outcome, int code, const std::string& message,
          const std::string& state, const std::string& next, const Terminal& terminal);

}  // namespace rb::cli

#endif  // RB_RBCTL_CLIENT_FAILURE_H_
