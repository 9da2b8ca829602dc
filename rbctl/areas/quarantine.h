// rbctl quarantine list|release.
#ifndef RB_RBCTL_AREAS_QUARANTINE_H_
#define RB_RBCTL_AREAS_QUARANTINE_H_

#include <string>

#include "rb/v1/quarantine_service.pb.h"
#include "rbctl/commands/command.h"
#include "rbctl/render/text.h"

namespace rb::cli {

void AddQuarantine(CLI::App& app, Command& command);

std::string RenderQuarantine(const v1::ListQuarantineResponse& response, const Style& style);
std::string JsonQuarantine(const v1::ListQuarantineResponse& response);

}  // namespace rb::cli

#endif  // RB_RBCTL_AREAS_QUARANTINE_H_
