#ifndef RB_CONTROLLER_ADAPTERS_CI_MAKE_CI_H_
#define RB_CONTROLLER_ADAPTERS_CI_MAKE_CI_H_

#include <map>
#include <string>

#include "controller/adapters/ci/ci_runner.h"
#include "rb/v1/fleet_config.pb.h"

namespace rb::controller {

// The CI of each service that has one. The file has passed CheckCi. Asks nobody. `folder`: for what is kept.
std::map<std::string, CiService> MakeCiServices(const v1::FleetConfig& fleet, const std::string& folder);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_CI_MAKE_CI_H_
