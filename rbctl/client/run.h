// Carries out one command: calls, renders, and gives the exit status.
#ifndef RB_RBCTL_CLIENT_RUN_H_
#define RB_RBCTL_CLIENT_RUN_H_

#include <functional>
#include <string>

#include "rbctl/client/fleet_client.h"
#include "rbctl/commands/command.h"
#include "rbctl/render/text.h"

namespace rb::cli {

struct TerminalSize {
  size_t columns = 80;
  size_t rows = 24;
};

// Where a command reads and writes. Called from one thread at a time.
struct Terminal {
  std::function<void(const std::string&)> out;
  std::function<void(const std::string&)> err;
  // Asks one line of a person. Unset when nobody is there.
  std::function<std::string(const std::string& question)> ask;
  // Set when stdout is a terminal: progress is redrawn in place.
  std::function<TerminalSize()> size;
  Style style;
  // Told when a request that may change something is under way, and when it was refused: an interrupt in between leaves
  // it unknown whether it was taken.
  std::function<void(bool is_under_way)> on_asking;
  // Told the operation's id from when it is watched.
  std::function<void(const std::string& operation_id)> on_watching;
};

int Run(const Command& command, FleetClient& client, const Terminal& terminal);

}  // namespace rb::cli

#endif  // RB_RBCTL_CLIENT_RUN_H_
