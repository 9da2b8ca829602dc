// Messages → the documented JSON documents (docs/rbctl.md). Pure. snake_case, seconds as numbers, RFC 3339 UTC times.
// Every function returns one document with a newline at its end.
#ifndef RB_RBCTL_RENDER_JSON_H_
#define RB_RBCTL_RENDER_JSON_H_

#include <string>

#include "rb/v1/drill_service.pb.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::cli {

// Null: without what is overdue.
std::string JsonStatus(const v1::GetStatusResponse& response, const v1::ListSchedulesResponse* schedules = nullptr);
std::string JsonHistory(const v1::ListOperationsResponse& response);
std::string JsonPlan(const v1::Plan& plan);
std::string JsonOperation(const v1::Operation& operation, int exit_code);
std::string JsonShow(const v1::GetOperationResponse& response);
std::string JsonReleases(const v1::ListReleasesResponse& response);
std::string JsonAudit(const v1::ListAuditRecordsResponse& response);
std::string JsonAuditCheck(const v1::VerifyAuditResponse& response);
std::string JsonAgents(const v1::ListAgentsResponse& response);
std::string JsonRefusal(const v1::OperationSpec& spec, const v1::Refusal& refusal, int exit_code);
// What could not be done at all. `outcome`: "refused", "unreachable", "unknown" or "failed".
std::string JsonError(const std::string& outcome, int exit_code, const std::string& message, const std::string& state,
                      const std::string& next_command);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_JSON_H_
