// The rules that made a plan, or an operation, what it is.
#ifndef RB_RBCTL_RENDER_REASONS_H_
#define RB_RBCTL_RENDER_REASONS_H_

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "rb/v1/fleet_service.pb.h"

namespace rb::cli {

// "Hosts:", "Source:", … with their reasons below, in the order in which it was decided; empty for none.
std::string RenderReasons(const std::vector<const v1::Reason*>& reasons);
// [{"rule", "text", "hosts", "host_count"}, …] as they come.
nlohmann::ordered_json ReasonsJson(const std::vector<const v1::Reason*>& reasons);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_REASONS_H_
