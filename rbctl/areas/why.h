// `rbctl why OP`: which rules made an operation what it was, and which one refused a request.
#ifndef RB_RBCTL_AREAS_WHY_H_
#define RB_RBCTL_AREAS_WHY_H_

#include <string>

#include "rbctl/commands/command.h"

namespace rb::cli {

void AddWhy(CLI::App& app, Command& command);

std::string RenderWhy(const v1::Operation& operation);
std::string JsonWhy(const v1::Operation& operation);
// Of a request that was refused.
std::string RenderWhy(const v1::AuditRecord& record);
std::string JsonWhy(const v1::AuditRecord& record);

}  // namespace rb::cli

#endif  // RB_RBCTL_AREAS_WHY_H_
