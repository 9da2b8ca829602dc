#include "controller/adapters/agent_registry.h"

#include <algorithm>
#include <set>

#include "common/adapters/proto_time.h"

namespace rb::controller {
namespace {

constexpr size_t kMostReports = 100;

}  // namespace

void AgentRegistry::OnConnected(const std::string& agent, const v1::Hello& hello, absl::Time certificate_expires_at) {
  AgentInfo& info = agents_[agent];
  if (!info.connected) ++connected_;
  info.connected = true;
  ++info.connection;
  info.hello = hello;
  info.last_seen_at = info.connected_at = clock_.Now();
  info.certificate_expires_at = certificate_expires_at;
}

void AgentRegistry::OnLost(const std::string& agent) {
  AgentInfo& info = agents_[agent];
  if (info.connected) --connected_;
  info.connected = false;
  info.last_seen_at = clock_.Now();
}

bool AgentRegistry::OnReport(const std::string& agent, const v1::ServiceReport& report) {
  AgentInfo& info = agents_[agent];
  info.last_seen_at = clock_.Now();
  if (info.reports.size() > kMostReports && info.reports.count(report.service()) == 0) return false;
  info.reports[report.service()] = report;
  return true;
}

void AgentRegistry::OnFaultResult(const std::string& agent, const v1::TaskResult& result) {
  const auto found = agents_.find(agent);
  if (found == agents_.end() || !result.has_fault()) return;
  const auto report = found->second.reports.find(result.service());
  if (report != found->second.reports.end()) *report->second.mutable_fault() = result.fault();
}

bool AgentRegistry::IsConnected(const std::string& agent) const {
  const auto found = agents_.find(agent);
  return found != agents_.end() && found->second.connected;
}

uint64_t AgentRegistry::Connection(const std::string& agent) const {
  const auto found = agents_.find(agent);
  return found == agents_.end() ? 0 : found->second.connection;
}

const v1::ServiceReport* AgentRegistry::ReportOf(const std::string& agent, const std::string& service) const {
  const auto found = agents_.find(agent);
  if (found == agents_.end()) return nullptr;
  const auto report = found->second.reports.find(service);
  return report == found->second.reports.end() ? nullptr : &report->second;
}

Verdict AgentRegistry::LastVerdict(const std::string& host, const std::string& service) const {
  const v1::ServiceReport* report = ReportOf(host, service);
  if (report == nullptr) return Verdict::kUnknown;
  return report->verdict() == v1::VERDICT_HEALTHY     ? Verdict::kHealthy
         : report->verdict() == v1::VERDICT_UNHEALTHY ? Verdict::kUnhealthy
                                                      : Verdict::kUnknown;
}

v1::ListAgentsResponse AgentRegistry::List() const {
  v1::ListAgentsResponse response;
  std::map<std::string, std::set<std::string>> environments;
  for (const auto& [name, service] : fleet_.services) {
    for (const auto& [environment, hosts] : service.hosts) {
      for (const std::string& host : hosts) environments[host].insert(environment);
    }
  }
  for (const auto& [name, agent] : agents_) environments[name];
  for (const auto& [name, of] : environments) {
    v1::Agent* added = response.add_agents();
    added->set_name(name);
    added->mutable_environments()->Add(of.begin(), of.end());
    const auto found = agents_.find(name);
    if (found == agents_.end()) continue;
    added->set_connected(found->second.connected);
    *added->mutable_last_seen_at() = ToProto(found->second.last_seen_at);
    added->set_program_version(found->second.hello.program_version());
    *added->mutable_services() = found->second.hello.services();
    *added->mutable_certificate_expires_at() = ToProto(found->second.certificate_expires_at);
  }
  return response;
}

v1::ListReleasesResponse AgentRegistry::Releases(const v1::ListReleasesRequest& request, absl::Status* status) const {
  v1::ListReleasesResponse response;
  OperationSpec spec;
  spec.kind = OperationKind::kBackup;
  spec.environment = request.environment();
  spec.service = request.service();
  const Scope scope = ResolveScope(spec, fleet_);
  if (scope.refusal.refused()) {
    *status = absl::NotFoundError(scope.refusal.message);
    return response;
  }
  for (const std::string& host : scope.hosts) {
    v1::HostReleases* added = response.add_hosts();
    added->set_host(host);
    added->set_connected(IsConnected(host));
    const v1::ServiceReport* report = ReportOf(host, scope.spec.service);
    if (report == nullptr) continue;
    added->set_current_release(report->current_release());
    *added->mutable_releases() = report->releases();
  }
  return response;
}

void AgentRegistry::FillPolicies(const std::string& agent, v1::Welcome* welcome) const {
  for (const auto& [name, service] : fleet_.services) {
    for (const auto& [environment, hosts] : service.hosts) {
      if (std::find(hosts.begin(), hosts.end(), agent) == hosts.end()) continue;
      v1::ServicePolicy* policy = welcome->add_policies();
      policy->set_service(name);
      policy->set_retain_releases(service.retain_releases);
      break;
    }
  }
}

}  // namespace rb::controller
