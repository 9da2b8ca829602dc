#include "controller/adapters/doctor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/adapters/proto_time.h"
#include "common/edit_distance.h"
#include "common/ids.h"
#include "common/text.h"

namespace rb::controller {
namespace {

// Longer than the agent takes at most.
constexpr absl::Duration kPatience = absl::Seconds(25);
constexpr size_t kMostRounds = 20;
constexpr int kReleasesInRunbook = 5;

Release ReleaseOf(const v1::Release& wire) {
  Release release;
  release.name = wire.name();
  release.captured_at = FromProto(wire.captured_at());
  release.durability = wire.durability() == v1::DURABILITY_PROVED ? Durability::kProved : Durability::kDurable;
  release.standing = wire.standing() == v1::STANDING_GOOD  ? Standing::kGood
                     : wire.standing() == v1::STANDING_BAD ? Standing::kBad
                                                           : Standing::kUnknown;
  if (wire.has_last_proved_at()) release.last_proved_at = FromProto(wire.last_proved_at());
  release.content_bytes = wire.content_bytes();
  return release;
}

DiskFacts DiskOf(const v1::DiskFacts& wire) {
  return {wire.free_bytes(), wire.total_bytes(), wire.free_inodes(), wire.total_inodes()};
}

HostFacts FactsOf(const v1::HostFacts& wire) {
  HostFacts facts;
  facts.clock_at = FromProto(wire.clock_at());
  facts.tree_disk = DiskOf(wire.tree_disk());
  facts.state_disk = DiskOf(wire.state_disk());
  facts.expected_owner = wire.expected_owner();
  facts.tree_owner = wire.tree_owner();
  facts.foreign_entries = wire.foreign_entries();
  facts.foreign_samples.assign(wire.foreign_samples().begin(), wire.foreign_samples().end());
  facts.exposed_folders.assign(wire.exposed_folders().begin(), wire.exposed_folders().end());
  facts.unit_needs_reload = wire.unit_needs_reload();
  facts.unit_problem = wire.unit_problem();
  if (wire.has_git_fetched_at()) facts.git_fetched_at = FromProto(wire.git_fetched_at());
  facts.has_git = wire.has_git();
  facts.git_problem = wire.git_problem();
  facts.config_problems.assign(wire.config_problems().begin(), wire.config_problems().end());
  facts.probe_problems.assign(wire.probe_problems().begin(), wire.probe_problems().end());
  facts.looked_at_all = wire.looked_at_all();
  return facts;
}

void FillFromReport(const v1::ServiceReport& report, Examined* host) {
  host->tree = report.tree();
  host->state_folder = report.setup().state_folder();
  host->unit = report.setup().unit();
  for (const v1::Release& release : report.releases()) host->releases.push_back(ReleaseOf(release));
  host->current_release = report.current_release();
  host->drifted = report.drifted();
  for (const v1::ProbeResult& probe : report.probes()) {
    host->probes.push_back({probe.name(), probe.kind(), probe.passed(), probe.observed(), probe.expected(),
                            FromProto(probe.took()), probe.external()});
  }
}

absl::Status CheckNames(const Fleet& fleet, const std::string& environment, const std::string& service) {
  std::vector<std::string> environments;
  for (const Environment& each : fleet.environments) environments.push_back(each.name);
  if (!environment.empty() && std::find(environments.begin(), environments.end(), environment) == environments.end()) {
    const std::string nearest = NearestSpelling(environment, environments);
    return absl::NotFoundError(absl::StrCat("there is no environment '", Printable(environment), "'",
                                            nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"),
                                            " There are: ", absl::StrJoin(environments, ", ")));
  }
  if (service.empty()) return absl::OkStatus();
  const auto found = fleet.services.find(service);
  if (found == fleet.services.end()) {
    std::vector<std::string> services;
    for (const auto& [name, each] : fleet.services) services.push_back(name);
    return absl::NotFoundError(
        absl::StrCat("there is no service '", Printable(service), "'. There are: ", absl::StrJoin(services, ", ")));
  }
  if (!environment.empty() && found->second.hosts.count(environment) == 0) {
    return absl::NotFoundError(absl::StrCat(service, " does not run in ", environment));
  }
  return absl::OkStatus();
}

v1::Finding ToWire(const Finding& finding) {
  v1::Finding wire;
  wire.set_severity(static_cast<v1::Severity>(static_cast<int>(finding.severity) + 1));
  wire.set_code(finding.code);
  wire.set_environment(finding.environment);
  wire.set_service(finding.service);
  wire.set_host(finding.host);
  wire.set_seen(finding.seen);
  wire.set_mend(finding.mend);
  return wire;
}

}  // namespace

absl::Status DoctorDesk::Diagnose(const std::string& environment, const std::string& service, Done done) {
  if (const absl::Status known = CheckNames(fleet_, environment, service); !known.ok()) return known;
  if (rounds_.size() >= kMostRounds) return absl::ResourceExhaustedError("too many ask at the same time; try again");
  const std::string key = absl::StrCat("doctor-", RandomHex(6));
  Round round;
  round.done = std::move(done);
  round.context.controller_version = RB_VERSION;
  std::map<std::string, v1::Agent> agents;
  const v1::ListAgentsResponse known_agents = agents_.List();
  for (const v1::Agent& agent : known_agents.agents()) agents[agent.name()] = agent;
  std::vector<std::pair<std::string, v1::ConnectResponse>> questions;
  for (const auto& [name, each] : fleet_.services) {
    if (!service.empty() && name != service) continue;
    for (const auto& [where, hosts] : each.hosts) {
      if (!environment.empty() && where != environment) continue;
      const absl::StatusOr<std::string> holder = store_.LockHolder(name, where);
      if (holder.ok() && !holder->empty()) round.context.busy.push_back(absl::StrCat(where, "/", name));
      for (const std::string& host : hosts) {
        const std::string step = absl::StrCat(key, "/", where, "/", name, "/", host);
        Examined& examined = round.hosts[step];
        examined.environment = where;
        examined.service = name;
        examined.host = host;
        ++round.asked;
        if (const v1::ServiceReport* report = agents_.ReportOf(host, name); report != nullptr) {
          FillFromReport(*report, &examined);
        }
        const auto agent = agents.find(host);
        if (agent == agents.end()) continue;
        examined.connected = agent->second.connected();
        if (agent->second.has_last_seen_at()) examined.last_seen_at = FromProto(agent->second.last_seen_at());
        if (agent->second.has_certificate_expires_at()) {
          examined.certificate_expires_at = FromProto(agent->second.certificate_expires_at());
        }
        examined.program_version = agent->second.program_version();
        examined.knows_service = std::find(agent->second.services().begin(), agent->second.services().end(), name) !=
                                 agent->second.services().end();
        if (!examined.connected || !examined.knows_service) continue;
        v1::ConnectResponse message;
        v1::Task* task = message.mutable_task();
        task->set_operation_id(step);
        task->set_step_id(step);
        task->set_service(name);
        task->mutable_inspect()->set_examine(true);
        questions.emplace_back(host, std::move(message));
      }
    }
  }
  for (auto& [host, message] : questions) {
    const std::string step = message.task().step_id();
    Examined& examined = round.hosts[step];
    examined.asked_at = clock_.Now();
    if (sender_.Send(host, std::move(message))) {
      round.waiting.insert(step);
    } else {
      examined.failure = "its queue is full";
    }
  }
  const bool wait = !round.waiting.empty();
  rounds_[key] = std::move(round);
  if (!wait) {
    Finish(key);
  } else {
    loop_.PostAt(clock_.Monotonic() + kPatience, [this, key] { Finish(key); });
  }
  return absl::OkStatus();
}

bool DoctorDesk::OnResult(const std::string& agent, const v1::TaskResult& result) {
  const std::string& step = result.step_id();
  if (!absl::StartsWith(step, "doctor-")) return false;
  const auto found = rounds_.find(step.substr(0, step.find('/')));
  if (found == rounds_.end()) return true;
  Round& round = found->second;
  const auto host = round.hosts.find(step);
  if (host == round.hosts.end() || host->second.host != agent || round.waiting.erase(step) == 0) return true;
  host->second.answered_at = clock_.Now();
  if (result.code() != 0) {
    host->second.failure = result.message();
  } else if (result.has_facts()) {
    host->second.facts = FactsOf(result.facts());
  } else {
    host->second.failure = "it is older than this question";
  }
  if (round.waiting.empty()) Finish(std::string(found->first));
  return true;
}

void DoctorDesk::OnAgentLost(const std::string& agent) {
  std::vector<std::string> ready;
  for (auto& [key, round] : rounds_) {
    const bool waited = !round.waiting.empty();
    for (auto& [step, host] : round.hosts) {
      if (host.host == agent && round.waiting.erase(step) != 0) host.failure = "the connection was lost meanwhile";
    }
    if (waited && round.waiting.empty()) ready.push_back(key);
  }
  for (const std::string& key : ready) Finish(key);
}

void DoctorDesk::Finish(const std::string& key) {
  const auto found = rounds_.find(key);
  if (found == rounds_.end()) return;
  Round round = std::move(found->second);
  rounds_.erase(found);
  round.context.now = clock_.Now();
  v1::DiagnoseResponse response;
  std::vector<Examined> hosts;
  for (auto& [step, host] : round.hosts) {
    if (host.facts.has_value()) response.set_hosts_answered(response.hosts_answered() + 1);
    hosts.push_back(std::move(host));
  }
  response.set_hosts_asked(round.asked);
  for (const Finding& finding : rb::controller::Diagnose(hosts, round.context)) {
    *response.add_findings() = ToWire(finding);
  }
  round.done(std::move(response));
}

absl::StatusOr<v1::GetRunbookResponse> DoctorDesk::Runbook(const std::string& environment, const std::string& service) {
  if (environment.empty()) return absl::InvalidArgumentError("a runbook is of one environment: name it");
  if (const absl::Status known = CheckNames(fleet_, environment, service); !known.ok()) return known;
  v1::GetRunbookResponse response;
  response.set_environment(environment);
  *response.mutable_at() = ToProto(clock_.Now());
  for (const Environment& each : fleet_.environments) {
    if (each.name != environment) continue;
    response.set_reason_required(each.order == fleet_.environments.back().order);
    if (!each.gate_passed_in.empty()) {
      response.add_gates(absl::StrCat("the same target has passed in ", each.gate_passed_in, " before"));
    }
    if (each.gate_approval) response.add_gates("a second operator approves (rbctl approve OP)");
    if (!each.gate_windows.empty()) response.add_gates("a window of the fleet file is open");
  }
  for (const auto& [name, each] : fleet_.services) {
    const auto hosts = each.hosts.find(environment);
    if ((!service.empty() && name != service) || hosts == each.hosts.end()) continue;
    v1::RunbookService* added = response.add_services();
    added->set_service(name);
    *added->mutable_target_backup() = ToProto(each.target_backup);
    *added->mutable_target_redeploy() = ToProto(each.target_redeploy);
    *added->mutable_target_git() = ToProto(each.target_git);
    for (const std::string& host : hosts->second) {
      v1::RunbookHost* on = added->add_hosts();
      on->set_host(host);
      on->set_connected(agents_.IsConnected(host));
      const v1::ServiceReport* report = agents_.ReportOf(host, name);
      if (report == nullptr) continue;
      *on->mutable_report() = *report;
      on->mutable_report()->clear_releases();
      for (const v1::Release& release : report->releases()) {
        if (release.standing() != v1::STANDING_GOOD || on->report().releases_size() >= kReleasesInRunbook) continue;
        *on->mutable_report()->add_releases() = release;
      }
    }
  }
  return response;
}

}  // namespace rb::controller
