#ifndef RB_CONTROLLER_ADAPTERS_FLEET_CONFIG_H_
#define RB_CONTROLLER_ADAPTERS_FLEET_CONFIG_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/adapters/yaml_message.h"
#include "controller/core/fleet.h"

namespace rb::v1 {
class FleetConfig;
}  // namespace rb::v1

namespace rb::controller {

// Reads fleet.yaml. Everything that is wrong, by line; `fleet` is of use when that is empty. Changes nothing. `file`
// (may be null): the file itself, for what only adapters need.
std::vector<YamlProblem> ParseFleet(absl::string_view yaml, Fleet* fleet, v1::FleetConfig* file = nullptr);
// INVALID_ARGUMENT with all problems, "FILE:LINE: PATH: TEXT" a line.
absl::StatusOr<Fleet> LoadFleet(const std::string& path, v1::FleetConfig* file = nullptr);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_FLEET_CONFIG_H_
