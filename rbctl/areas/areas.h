// Groups of commands, each in a file of its own: what is typed, the call, and its rendering.
#ifndef RB_RBCTL_AREAS_AREAS_H_
#define RB_RBCTL_AREAS_AREAS_H_

#include <vector>

#include "rbctl/commands/command.h"

namespace rb::cli {

// In the order in which --help lists them.
std::vector<AddArea> AllAreas();

void AddDocuments(CLI::App& app, Command& command);

}  // namespace rb::cli

#endif  // RB_RBCTL_AREAS_AREAS_H_
