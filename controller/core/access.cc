#include "controller/core/access.h"

namespace rb::controller {
namespace {

struct Rule {
  absl::string_view method;
  Role least;
};

// proto/rb/v1/fleet_service.proto says the same beside each call.
constexpr Rule kRules[] = {
    {"/rb.v1.FleetService/PlanOperation", Role::kViewer},      {"/rb.v1.FleetService/StartOperation", Role::kOperator},
    {"/rb.v1.FleetService/GetOperation", Role::kViewer},       {"/rb.v1.FleetService/ListOperations", Role::kViewer},
    {"/rb.v1.FleetService/WatchOperation", Role::kViewer},     {"/rb.v1.FleetService/AbortOperation", Role::kOperator},
    {"/rb.v1.FleetService/PauseOperation", Role::kOperator},   {"/rb.v1.FleetService/ResumeOperation", Role::kOperator},
    {"/rb.v1.FleetService/ApproveOperation", Role::kOperator}, {"/rb.v1.FleetService/ListReleases", Role::kViewer},
    {"/rb.v1.FleetService/ListAgents", Role::kViewer},         {"/rb.v1.FleetService/GetStatus", Role::kViewer},
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
