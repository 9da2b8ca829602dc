// Which drills may begin.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/failpoint.h"
#include "controller/core/drill.h"

namespace rb::controller {
namespace {

Refusal Refuse(Refusal::Code code, std::string message, std::string next) {
  Refusal refusal;
  refusal.code = code;
  refusal.message = std::move(message);
  refusal.next_command = std::move(next);
  return refusal;
}

const Environment* Find(const Fleet& fleet, const std::string& name) {
  for (const Environment& environment : fleet.environments) {
    if (environment.name == name) return &environment;
  }
  return nullptr;
}

// Whether the fleet file lets the fault into the environment.
Refusal CheckEnvironment(const Fleet& fleet, const Environment& environment, FaultKind fault) {
  const std::string path = absl::StrCat("environments.", environment.name);
  if (environment.name == fleet.environments.back().name && !environment.allow_drills &&
      !RB_PLANTED_BUG("drill-not-allowed")) {
    return Refuse(Refusal::Code::kGate,
                  absl::StrCat("drills are not allowed in ", environment.name,
                               ". Nothing was changed. Whoever keeps the "
                               "fleet file can write allow_drills: true under ",
                               path),
                  "");
  }
  const std::vector<std::string>& allowed = environment.drill_faults;
  if (std::find(allowed.begin(), allowed.end(), NameOf(fault)) == allowed.end()) {
    return Refuse(Refusal::Code::kGate,
                  absl::StrCat("the fleet file does not allow ", NameOf(fault), " in ", environment.name,
                               ". Nothing was changed. ", path, ".drills.allow has ",
                               allowed.empty() ? "nothing" : absl::StrJoin(allowed, ", ")),
                  "");
  }
  return Refusal();
}

}  // namespace

DrillScope ResolveDrill(const DrillSpec& asked, const Fleet& fleet, const std::map<std::string, DrillCandidate>& hosts,
                        absl::string_view busy, absl::Time now) {
  DrillScope result;
  result.spec = asked;
  OperationSpec spec;
  spec.kind = OperationKind::kVerification;
  spec.environment = asked.environment;
  spec.service = asked.service;
  spec.hosts = asked.hosts;
  const Scope scope = ResolveScope(spec, fleet);
  if (scope.refusal.refused()) {
    result.refusal = scope.refusal;
    return result;
  }
  result.spec.service = scope.spec.service;
  const Environment& environment = *Find(fleet, asked.environment);
  result.refusal = CheckEnvironment(fleet, environment, asked.fault);
  if (result.refusal.refused()) return result;
  uint32_t order = environment.order;
  for (const std::string& name : asked.then) {
    const Environment* const later = Find(fleet, name);
    const auto service = fleet.services.find(result.spec.service);
    if (later == nullptr || service->second.hosts.count(name) == 0 || later->order <= order) {
      result.refusal = Refuse(Refusal::Code::kBadRequest,
                              absl::StrCat(name, " is no environment of ", result.spec.service,
                                           " that comes after the one before it. Nothing was changed"),
                              "rbctl status");
      return result;
    }
    order = later->order;
    result.refusal = CheckEnvironment(fleet, *later, asked.fault);
    if (result.refusal.refused()) return result;
  }
  const bool is_last = environment.name == fleet.environments.back().name;
  if (is_last && asked.reason.empty()) {
    result.refusal = Refuse(Refusal::Code::kReasonRequired,
                            absl::StrCat("a drill in ", environment.name, " needs a reason. Nothing was changed"),
                            "the same command with --reason \"...\"");
    return result;
  }
  if (!busy.empty()) {
    result.refusal = Refuse(
        Refusal::Code::kLocked,
        absl::StrCat(busy, " is at work on ", result.spec.service, " in ", environment.name, ". Nothing was changed"),
        absl::StrCat("rbctl ", busy.substr(0, 6) == "drill-" ? "drill show " : "watch ", busy));
    result.refusal.holder_operation_id = std::string(busy);
    return result;
  }
  // A power cut or a kill is for one host: the others are the control.
  bool strike = true;
  for (const std::string& name : scope.hosts) {
    const auto found = hosts.find(name);
    const DrillCandidate host = found == hosts.end() ? DrillCandidate() : found->second;
    std::string why;
    if (!host.connected) {
      why = "is not connected";
    } else if (host.verdict != Verdict::kHealthy) {
      why = absl::StrCat("is not healthy", host.failing.empty() ? "" : absl::StrCat(": ", host.failing));
    } else if (host.has_fault) {
      why = "still has the fault of another drill";
    }
    const bool has_fault = strike;
    if (StrikesDuringRecovery(asked.fault)) strike = false;
    if (why.empty() && has_fault && asked.fault != FaultKind::kControllerKilled &&
        std::find(host.allowed.begin(), host.allowed.end(), asked.fault) == host.allowed.end()) {
      why = absl::StrCat("does not allow ", NameOf(asked.fault), " (drills.allow in its own agent.yaml)");
    }
    if (!why.empty()) {
      result.refusal = Refuse(host.connected ? Refusal::Code::kHostProblem : Refusal::Code::kHostOffline,
                              absl::StrCat(name, " ", why, ". Nothing was changed"),
                              absl::StrCat("rbctl status ", environment.name));
      result.refusal.hosts = {name};
      return result;
    }
    result.hosts.emplace_back(name, has_fault);
  }
  const bool is_open = !environment.drill_windows.empty() && IsOpen(environment.drill_windows, now);
  if (is_last) {
    result.policy.needs_approval = !is_open;
  } else if (!environment.drill_windows.empty() && !is_open) {
    result.refusal =
        Refuse(Refusal::Code::kGate,
               absl::StrCat("drills are for windows of ", environment.name, "; the next one opens at ",
                            FormatUtc(NextOpening(environment.drill_windows, now)), ". Nothing was changed"),
               "");
    return result;
  }
  const FleetService& service = fleet.services.at(result.spec.service);
  result.policy.longest = environment.drill_longest;
  result.policy.detect = environment.drill_detect;
  result.policy.decide = environment.drill_decide > absl::ZeroDuration() ? environment.drill_decide
                         : asked.by_hand                                 ? absl::Minutes(5)
                                                                         : absl::Seconds(30);
  result.policy.verify = environment.drill_verify;
  result.policy.start = service.verify_deadline;
  return result;
}

}  // namespace rb::controller
