// What agents and operations look like now, as gauges: all of them are made anew for each scrape, so that what is no
// longer there leaves nothing behind.
#include <algorithm>

#include "common/adapters/proto_time.h"
#include "controller/adapters/driver.h"
#include "controller/adapters/wire.h"

namespace rb::controller {
namespace {

double Seconds(absl::Time time) { return static_cast<double>(absl::ToUnixMillis(time)) / 1000; }

void MeasureReport(const std::string& environment, const std::string& service, const std::string& host,
                   const v1::ServiceReport& report, absl::Time last_backup, MetricSamples* samples) {
  const LabelValues labels = {environment, service, host};
  absl::Time captured = last_backup;
  absl::Time proved = absl::InfinitePast();
  std::map<std::string, int> standings = {{"unknown", 0}, {"good", 0}, {"bad", 0}};
  int proved_count = 0;
  for (const v1::Release& release : report.releases()) {
    captured = std::max(captured, FromProto(release.captured_at()));
    if (release.has_last_proved_at()) proved = std::max(proved, FromProto(release.last_proved_at()));
    const bool is_bad = release.standing() == v1::STANDING_BAD;
    ++standings[is_bad ? "bad" : release.standing() == v1::STANDING_GOOD ? "good" : "unknown"];
    if (release.has_last_proved_at() && !is_bad) ++proved_count;
  }
  if (captured > absl::InfinitePast()) samples->Set(Metric::kBackupLast, labels, Seconds(captured));
  if (proved > absl::InfinitePast()) samples->Set(Metric::kProofLast, labels, Seconds(proved));
  for (const auto& [standing, count] : standings) {
    samples->Set(Metric::kReleases, {environment, service, host, standing}, count);
  }
  samples->Set(Metric::kReleasesProved, labels, proved_count);
  samples->Set(Metric::kHealthy, labels, report.verdict() == v1::VERDICT_HEALTHY ? 1 : 0);
  samples->Set(Metric::kDrifted, labels, report.drifted() ? 1 : 0);
  std::map<std::string, bool> probes;
  for (const v1::ProbeResult& probe : report.probes()) {
    probes.try_emplace(probe.kind(), true).first->second &= probe.passed();
  }
  for (const auto& [kind, passed] : probes) {
    samples->Set(Metric::kProbePassed, {environment, service, host, kind}, passed ? 1 : 0);
  }
}

}  // namespace

void AgentRegistry::Measure(const EndedOperations& ended, MetricSamples* samples) const {
  std::set<std::string> expected;
  for (const auto& [name, service] : fleet_.services) {
    for (const auto& [environment, hosts] : service.hosts) {
      for (const std::string& host : hosts) {
        expected.insert(host);
        if (const v1::ServiceReport* report = ReportOf(host, name); report != nullptr) {
          MeasureReport(environment, name, host, *report, ended.LastBackup(environment, name, host), samples);
        }
      }
    }
  }
  samples->Set(Metric::kAgentsExpected, {}, static_cast<double>(expected.size()));
  samples->Set(Metric::kAgentsConnected, {}, static_cast<double>(connected_));
  for (const std::string& host : expected) {
    const auto found = agents_.find(host);
    const bool connected = found != agents_.end() && found->second.connected;
    samples->Set(Metric::kAgentConnected, {host}, connected ? 1 : 0);
    if (found == agents_.end()) continue;
    const AgentInfo& agent = found->second;
    samples->Set(Metric::kAgentLastSeen, {host}, Seconds(agent.last_seen_at));
    samples->Set(Metric::kAgentCertificate, {host}, Seconds(agent.certificate_expires_at));
    if (connected) samples->Set(Metric::kAgentLinkOpened, {host}, Seconds(agent.connected_at));
    const v1::StoreUsage* store = nullptr;
    absl::Time newest = absl::InfinitePast();
    for (const auto& [service, report] : agent.reports) {
      if (!report.has_store() || FromProto(report.reported_at()) <= newest) continue;
      newest = FromProto(report.reported_at());
      store = &report.store();
    }
    if (store == nullptr) continue;
    const auto stored = static_cast<double>(store->stored_bytes());
    const auto content = static_cast<double>(store->content_bytes());
    samples->Set(Metric::kStoreSize, {host}, stored);
    samples->Set(Metric::kStoreContent, {host}, content);
    if (stored > 0) samples->Set(Metric::kStoreRatio, {host}, content / stored);
  }
}

void Driver::Measure(MetricSamples* samples) {
  EndedOperations& ended = metrics_.ended();
  ended.Measure(samples);
  agents_.Measure(ended, samples);
  for (const auto& [name, service] : fleet_.services) {
    for (const auto& [environment, hosts] : service.hosts) {
      for (const std::string& host : hosts) {
        samples->Set(Metric::kMissed, {environment, name, host}, intents_.count({name, host}) != 0 ? 1 : 0);
      }
    }
  }
  std::map<std::string, int> states;
  for (const OperationState state : kAllOperationStates) {
    if (!IsFinal(state)) states[StateLabel(ToWire(state))] = 0;
  }
  std::map<LabelValues, std::pair<absl::Time, absl::Time>> oldest;
  for (const auto& [id, running] : running_) {
    const OperationSpec& spec = running->operation.plan.spec;
    const std::string state = StateLabel(ToWire(running->operation.state));
    ++states[state];
    const absl::Time accepted = running->operation.accepted_at;
    const absl::Time progress = running->history.empty() ? accepted : FromProto(running->history.back().at());
    const LabelValues labels = {spec.environment, spec.service, KindLabel(ToWire(spec).kind()), state};
    const auto [entry, is_new] = oldest.try_emplace(labels, accepted, progress);
    entry->second = {std::min(entry->second.first, accepted), std::min(entry->second.second, progress)};
  }
  for (const auto& [state, count] : states) samples->Set(Metric::kOperationsRunning, {state}, count);
  for (const auto& [labels, times] : oldest) {
    samples->Set(Metric::kOperationAccepted, labels, Seconds(times.first));
    samples->Set(Metric::kOperationProgress, labels, Seconds(times.second));
  }
  samples->Set(Metric::kControllerQueue, {"loop"}, static_cast<double>(loop_.depth()));
  samples->Set(Metric::kControllerQueue, {"lock"}, static_cast<double>(queue_.size()));
}

}  // namespace rb::controller
