// From a request to the hosts that it is about.
#include <algorithm>
#include <functional>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/edit_distance.h"
#include "common/text.h"
#include "controller/core/plan.h"

namespace rb::controller {
namespace {

constexpr size_t kLongestReason = 500;

Refusal Refuse(Refusal::Code code, const std::string& message, const std::string& next = "") {
  Refusal refusal;
  refusal.code = code;
  refusal.message = absl::StrCat(message, ". Nothing was changed");
  refusal.next_command = next;
  return refusal;
}

std::string DidYouMean(const std::string& word, const std::vector<std::string>& names) {
  const std::string nearest = NearestSpelling(word, names);
  if (!nearest.empty()) return absl::StrCat("; did you mean ", nearest, "?");
  return names.empty() ? "" : absl::StrCat("; there are: ", absl::StrJoin(names, ", "));
}

bool NeedsReason(const OperationSpec& spec, const Fleet& fleet) {
  if (spec.force || spec.emergency || !spec.override_gates.empty()) return true;
  if (!ChangesHosts(spec.kind) || fleet.environments.empty()) return false;
  return fleet.environments.back().name == spec.environment;
}

// What is wrong with the list of environments; refused() is false if nothing.
Refusal CheckEnvironments(const OperationSpec& spec, const Fleet& fleet) {
  std::vector<std::string> names;
  for (const Environment& environment : fleet.environments) names.push_back(environment.name);
  std::vector<size_t> orders;
  for (const std::string& environment : EnvironmentsOf(spec)) {
    const auto found = std::find(names.begin(), names.end(), environment);
    if (found == names.end()) {
      return Refuse(
          Refusal::Code::kUnknownEnvironment,
          absl::StrCat("there is no environment '", Printable(environment), "'", DidYouMean(environment, names)),
          "rbctl status");
    }
    orders.push_back(static_cast<size_t>(found - names.begin()));
  }
  if (spec.through.empty()) return Refusal();
  if (!ChangesHosts(spec.kind)) {
    return Refuse(Refusal::Code::kBadRequest, "only what changes hosts goes through several environments");
  }
  const bool rises = std::adjacent_find(orders.begin(), orders.end(), std::greater_equal<>()) == orders.end();
  if (!rises || spec.through.back() != spec.environment) {
    return Refuse(Refusal::Code::kBadRequest,
                  absl::StrCat("--through goes from an earlier environment to a later one and ends with ",
                               spec.environment, "; the order is ", absl::StrJoin(names, ",")));
  }
  return Refusal();
}

Refusal CheckOverrides(const OperationSpec& spec) {
  const std::vector<std::string> gates = {std::string(kGateApproval), std::string(kGatePassedIn),
                                          std::string(kGateWindow)};
  for (const std::string& gate : spec.override_gates) {
    if (std::find(gates.begin(), gates.end(), gate) == gates.end()) {
      return Refuse(Refusal::Code::kBadRequest,
                    absl::StrCat("there is no gate '", Printable(gate), "'", DidYouMean(gate, gates)));
    }
  }
  return Refusal();
}

}  // namespace

std::vector<std::string> EnvironmentsOf(const OperationSpec& spec) {
  return spec.through.empty() ? std::vector<std::string>{spec.environment} : spec.through;
}

bool ChangesHosts(OperationKind kind) {
  return kind != OperationKind::kBackup && kind != OperationKind::kVerification && kind != OperationKind::kLocal &&
         kind != OperationKind::kExternal && kind != OperationKind::kPrune;
}

bool BringsCode(const OperationSpec& spec) {
  return spec.components.empty() ||
         std::find(spec.components.begin(), spec.components.end(), Component::kCode) != spec.components.end();
}

void LearnPassed(const OperationSpec& spec, const std::string& commit, absl::Time ended_at, PlanningHistory* history) {
  if (!ChangesHosts(spec.kind) || !BringsCode(spec) || spec.emergency) return;
  for (const std::string& environment : EnvironmentsOf(spec))
    history->passed[environment].push_back({commit, ended_at});
}

Scope ResolveScope(const OperationSpec& spec, const Fleet& fleet) {
  Scope scope;
  scope.spec = spec;
  if (spec.kind == OperationKind::kLocal || spec.kind == OperationKind::kExternal) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest, "what is done on a host by other means cannot be asked for");
    return scope;
  }
  scope.refusal = CheckEnvironments(spec, fleet);
  if (!scope.refusal.refused()) scope.refusal = CheckOverrides(spec);
  if (scope.refusal.refused()) return scope;
  std::vector<std::string> services;
  for (const auto& [name, service] : fleet.services) {
    if (service.hosts.count(spec.environment) != 0) services.push_back(name);
  }
  if (spec.service.empty()) {
    if (services.size() != 1) {
      scope.refusal = Refuse(Refusal::Code::kUnknownService,
                             services.empty() ? absl::StrCat(spec.environment, " has no services")
                                              : absl::StrCat("say which service: ", absl::StrJoin(services, ", ")));
      return scope;
    }
    scope.spec.service = services[0];
  } else if (std::find(services.begin(), services.end(), spec.service) == services.end()) {
    scope.refusal = Refuse(Refusal::Code::kUnknownService,
                           absl::StrCat(spec.environment, " has no service '", Printable(spec.service), "'",
                                        DidYouMean(spec.service, services)));
    return scope;
  }
  const FleetService& service = fleet.services.at(scope.spec.service);
  std::vector<std::string> all;
  for (const std::string& environment : EnvironmentsOf(spec)) {
    const auto hosts = service.hosts.find(environment);
    if (hosts == service.hosts.end() || hosts->second.empty()) {
      scope.refusal =
          Refuse(Refusal::Code::kUnknownService, absl::StrCat(scope.spec.service, " does not run in ", environment));
      return scope;
    }
    for (const std::string& host : hosts->second) {
      all.push_back(host);
      scope.environment_of_host[host] = environment;
    }
  }
  for (const std::string& host : spec.hosts) {
    if (std::find(all.begin(), all.end(), host) == all.end()) {
      scope.refusal =
          Refuse(Refusal::Code::kUnknownHost, absl::StrCat(scope.spec.service, " does not run on '", Printable(host),
                                                           "' in ", spec.environment, DidYouMean(host, all)));
      scope.refusal.hosts.push_back(host);
      return scope;
    }
  }
  for (const std::string& host : all) {
    if (spec.hosts.empty() || std::find(spec.hosts.begin(), spec.hosts.end(), host) != spec.hosts.end()) {
      scope.hosts.push_back(host);
    }
  }
  if (scope.hosts.empty()) {
    scope.refusal = Refuse(Refusal::Code::kUnknownHost, absl::StrCat(spec.environment, " has no hosts"));
    return scope;
  }
  if (spec.reason.size() > kLongestReason || Printable(spec.reason) != spec.reason) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest,
                           absl::StrCat("a reason is one line of at most ", kLongestReason, " bytes of readable text"));
    return scope;
  }
  if (spec.kind == OperationKind::kDeploy &&
      (spec.target.kind != TargetReference::Kind::kNamed || spec.target.name.empty())) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest, "a deploy needs a commit or a tag",
                           absl::StrCat("rbctl deploy ", spec.environment, " --to COMMIT"));
    return scope;
  }
  if (spec.kind == OperationKind::kDeploy && spec.method == Method::kBackup) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest, "a deploy comes from git; to go to a release, roll back to it");
    return scope;
  }
  if (spec.method == Method::kRedeploy && spec.kind != OperationKind::kRollback) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest, "only a rollback goes through CI (--method redeploy)");
    return scope;
  }
  if (spec.skip_offline && spec.kind == OperationKind::kRepair) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest, "a repair is of one host, which has to be there");
    return scope;
  }
  if (spec.kind == OperationKind::kUndo && spec.undo_operation_id.empty()) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest, "say which operation to undo", "rbctl history");
    return scope;
  }
  if (spec.announcement.size() > kLongestReason || Printable(spec.announcement) != spec.announcement) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest, absl::StrCat("an announcement is one line of at most ",
                                                                    kLongestReason, " bytes of readable text"));
    return scope;
  }
  if (!spec.announcement.empty() &&
      std::find(fleet.announces_in.begin(), fleet.announces_in.end(), spec.environment) == fleet.announces_in.end()) {
    scope.refusal = Refuse(Refusal::Code::kBadRequest,
                           absl::StrCat("nobody would hear an announcement about ", spec.environment,
                                        ": no rule under notifications in the fleet file takes \"announcement\""),
                           "the same command without --announce");
    return scope;
  }
  // Last: a plan is made without a reason, and all else has to be right for it.
  if (absl::StripAsciiWhitespace(spec.reason).empty() && NeedsReason(spec, fleet)) {
    scope.refusal = Refuse(Refusal::Code::kReasonRequired,
                           absl::StrCat(spec.force                     ? "--force"
                                        : spec.emergency               ? "--emergency"
                                        : !spec.override_gates.empty() ? "--override-gate"
                                                                       : spec.environment,
                                        " needs a reason, which is kept in the history"),
                           "the same command with --reason \"...\"");
    return scope;
  }
  return scope;
}

void NarrowToUndone(const PlanningHistory& history, Scope* scope) {
  if (scope->spec.kind != OperationKind::kUndo || !history.undo_releases.has_value()) return;
  scope->spec.components = history.undo_components;
  if (!history.undo_operation_id.empty()) scope->spec.undo_operation_id = history.undo_operation_id;
  if (!scope->spec.hosts.empty() || history.undo_releases->empty()) return;
  std::vector<std::string> hosts;
  for (const std::string& host : scope->hosts) {
    if (history.undo_releases->contains(host)) hosts.push_back(host);
  }
  if (!hosts.empty()) scope->hosts = std::move(hosts);
}

std::vector<uint32_t> AssignWaves(const std::vector<bool>& healthy, const WaveSize& size,
                                  const WaveSize& max_unavailable, const std::optional<WaveSize>& canary) {
  const auto count = [&](const WaveSize& of) {
    const size_t hosts = of.count != 0 ? of.count : (healthy.size() * of.percent + 99) / 100;
    return std::max<size_t>(hosts, 1);
  };
  std::vector<uint32_t> waves;
  uint32_t wave = 1;
  size_t in_wave = 0;
  size_t taken_away = 0;
  for (const bool is_healthy : healthy) {
    const size_t most = wave == 1 && canary.has_value() ? std::min(count(*canary), count(size)) : count(size);
    if (in_wave == most || (is_healthy && taken_away == count(max_unavailable))) {
      ++wave;
      in_wave = taken_away = 0;
    }
    ++in_wave;
    if (is_healthy) ++taken_away;
    waves.push_back(wave);
  }
  return waves;
}

bool ParseWaveSize(absl::string_view text, WaveSize* size) {
  const bool is_percent = absl::ConsumeSuffix(&text, "%");
  uint32_t number = 0;
  // Digits alone: no sign, no space.
  const bool digits = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isdigit(static_cast<unsigned char>(c));
  });
  if (!digits || !absl::SimpleAtoi(text, &number) || number == 0 || (is_percent && number > 100)) return false;
  size->count = is_percent ? 0 : number;
  size->percent = is_percent ? number : 0;
  return true;
}

}  // namespace rb::controller
