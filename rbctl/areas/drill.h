#ifndef RB_RBCTL_AREAS_DRILL_H_
#define RB_RBCTL_AREAS_DRILL_H_

#include "rbctl/commands/command.h"

namespace rb::cli {

// rbctl drill run|list|show|stop|approve|report, and rbctl schedule list.
void AddDrills(CLI::App& app, Command& command);

}  // namespace rb::cli

#endif  // RB_RBCTL_AREAS_DRILL_H_
