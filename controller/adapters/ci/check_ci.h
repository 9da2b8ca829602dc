#ifndef RB_CONTROLLER_ADAPTERS_CI_CHECK_CI_H_
#define RB_CONTROLLER_ADAPTERS_CI_CHECK_CI_H_

#include <string>
#include <utility>
#include <vector>

#include "rb/v1/fleet_config.pb.h"

namespace rb::controller {

// What is wrong with a service's `ci` in the fleet file: (".key.key", what). Opens no file and asks nobody.
std::vector<std::pair<std::string, std::string>> CheckCi(const v1::CiConfig& config);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_CI_CHECK_CI_H_
