// CI that is asked by programs on the controller's host (CommandCiConfig in proto/rb/v1/fleet_config.proto).
#ifndef RB_CONTROLLER_ADAPTERS_CI_COMMAND_CI_H_
#define RB_CONTROLLER_ADAPTERS_CI_COMMAND_CI_H_

#include <memory>

#include "controller/core/ports/ci.h"
#include "rb/v1/fleet_config.pb.h"

namespace rb::controller {

std::unique_ptr<CiProvider> MakeCommandCi(const v1::CommandCiConfig& config);

// {commit}, {version}, {environment}, {service}, {key}, {reason} and {run} in a text. Unknown ones stay.
std::string FillIn(const std::string& text, const CiRequest& request, const std::string& run);
// "queued", "running", "succeeded", "failed" or "cancelled".
absl::StatusOr<CiRunStatus::State> ParseCiState(absl::string_view word);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_CI_COMMAND_CI_H_
