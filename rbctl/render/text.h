// Messages → text for people. Pure. Everything that came over the wire is made safe for a terminal.
#ifndef RB_RBCTL_RENDER_TEXT_H_
#define RB_RBCTL_RENDER_TEXT_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::cli {

struct Style {
  bool colour = false;
};

std::string RenderStatus(const v1::GetStatusResponse& response, const Style& style);
std::string RenderHistory(const v1::ListOperationsResponse& response, const Style& style);
std::string RenderPlan(const v1::Plan& plan, const Style& style);
// `show`: what was asked, its events, and the report.
std::string RenderShow(const v1::GetOperationResponse& response, const Style& style);
// The recovery report: a line per host, what went wrong, the summary, the next commands.
std::string RenderReport(const v1::Operation& operation, const Style& style);
std::string RenderReleases(const v1::ListReleasesResponse& response, const Style& style);
std::string RenderAudit(const v1::ListAuditRecordsResponse& response, const Style& style);
std::string RenderAuditCheck(const v1::VerifyAuditResponse& response, const Style& style);
std::string RenderAgents(const v1::ListAgentsResponse& response, const Style& style);
std::string RenderRefusal(const v1::Refusal& refusal, const Style& style);
// "p50 0.90 s, p95 1.40 s (40 measured: backup in prod)".
std::string DescribePrediction(const v1::Prediction& prediction);
// "TIME OPERATION-STATE HOST TEXT"; HOST is "-" when it is about all of them. One line whatever is in it.
std::string RenderEvent(const v1::OperationEvent& event);
// "rollback of prod/rosey-bot to v1.1.0".
std::string Describe(const v1::OperationSpec& spec);
// The table that is redrawn in place.
std::vector<std::string> LiveLines(const v1::Operation& operation, absl::Time now, const Style& style);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_TEXT_H_
