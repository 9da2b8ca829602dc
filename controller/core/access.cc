#include "controller/core/access.h"

namespace rb::controller {
namespace {

struct Rule {
  absl::string_view method;
  Role least;
  bool changes;
};

// proto/rb/v1/fleet_service.proto says the same beside each call.
constexpr Rule kRules[] = {
    {"/rb.v1.FleetService/PlanOperation", Role::kViewer, false},
    {"/rb.v1.FleetService/StartOperation", Role::kOperator, true},
    {"/rb.v1.FleetService/GetOperation", Role::kViewer, false},
    {"/rb.v1.FleetService/ListOperations", Role::kViewer, false},
    {"/rb.v1.FleetService/WatchOperation", Role::kViewer, false},
    {"/rb.v1.FleetService/AbortOperation", Role::kOperator, true},
    {"/rb.v1.FleetService/PauseOperation", Role::kOperator, true},
    {"/rb.v1.FleetService/ResumeOperation", Role::kOperator, true},
    {"/rb.v1.FleetService/ApproveOperation", Role::kOperator, true},
    {"/rb.v1.FleetService/ListReleases", Role::kViewer, false},
    {"/rb.v1.FleetService/ListAgents", Role::kViewer, false},
    {"/rb.v1.FleetService/GetStatus", Role::kViewer, false},
    {"/rb.v1.FleetService/ListAuditRecords", Role::kOperator, false},
    {"/rb.v1.FleetService/VerifyAudit", Role::kOperator, false},
    {"/rb.v1.QuarantineService/ListQuarantine", Role::kViewer, false},
    {"/rb.v1.QuarantineService/ReleaseQuarantine", Role::kOperator, true},
    {"/rb.v1.DoctorService/Diagnose", Role::kViewer, false},
    {"/rb.v1.DoctorService/GetRunbook", Role::kViewer, false},
    {"/rb.v1.DrillService/StartDrill", Role::kOperator, true},
    {"/rb.v1.DrillService/GetDrill", Role::kViewer, false},
    {"/rb.v1.DrillService/ListDrills", Role::kViewer, false},
    {"/rb.v1.DrillService/StopDrill", Role::kOperator, true},
    {"/rb.v1.DrillService/ApproveDrill", Role::kOperator, true},
    {"/rb.v1.DrillService/ListSchedules", Role::kViewer, false},
};
constexpr absl::string_view kAgentLink = "/rb.v1.AgentLink/Connect";

}  // namespace

bool IsAllowed(Role role, absl::string_view method) {
  if (role == Role::kNone) return false;
  if (role == Role::kAgent) return method == kAgentLink;
  for (const Rule& rule : kRules) {
    if (rule.method == method) return role >= rule.least;
  }
  return false;
}

bool ChangesSomething(absl::string_view method) {
  for (const Rule& rule : kRules) {
    if (rule.method == method) return rule.changes;
  }
  return method != kAgentLink;
}

bool ParseRole(absl::string_view text, Role* role) {
  for (const Role candidate : {Role::kViewer, Role::kOperator, Role::kAdmin}) {
    if (NameOf(candidate) == text) {
      *role = candidate;
      return true;
    }
  }
  return false;
}

absl::string_view NameOf(Role role) {
  switch (role) {
    case Role::kNone:
      return "none";
    case Role::kAgent:
      return "agent";
    case Role::kViewer:
      return "viewer";
    case Role::kOperator:
      return "operator";
    case Role::kAdmin:
      return "admin";
  }
  return "none";
}

}  // namespace rb::controller
