#include "controller/adapters/metrics.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/status.h"

namespace rb::controller {
namespace {

constexpr absl::Duration kLoopPatience = absl::Seconds(2);
constexpr absl::Duration kWriteTargetsAfter = absl::Milliseconds(500);
constexpr size_t kLargestTargetsFile = 16 << 20;
constexpr const char* kMethods[] = {"backup", "git", "redeploy"};
constexpr const char* kKinds[] = {"rollback", "deploy", "backup",   "undo", "verification",
                                  "repair",   "local",  "external", "prune"};
constexpr const char* kOutcomes[] = {"succeeded", "aborted", "reverted", "needs_attention"};

double Seconds(absl::Time time) { return static_cast<double>(absl::ToUnixMillis(time)) / 1000; }

std::string WithoutPrefix(const std::string& name, absl::string_view prefix) {
  return absl::AsciiStrToLower(absl::StartsWith(name, prefix) ? name.substr(prefix.size()) : name);
}

std::string MethodLabel(v1::Method method) { return WithoutPrefix(v1::Method_Name(method), "METHOD_"); }

bool Recovers(v1::OperationKind kind) {
  return kind == v1::OPERATION_KIND_ROLLBACK || kind == v1::OPERATION_KIND_UNDO || kind == v1::OPERATION_KIND_REPAIR;
}

// Of what it touched; of what it was asked for when it came to no host.
std::set<std::string> EnvironmentsOf(const v1::Operation& operation) {
  std::set<std::string> environments;
  for (const v1::HostProgress& host : operation.hosts()) environments.insert(host.environment());
  environments.erase("");
  if (environments.empty()) environments.insert(operation.spec().environment());
  return environments;
}

std::string DrillLabel(const v1::Operation& operation) {
  return operation.spec().drill_id().empty() ? "false" : "true";
}

}  // namespace

std::string KindLabel(v1::OperationKind kind) { return WithoutPrefix(v1::OperationKind_Name(kind), "OPERATION_KIND_"); }
std::string StateLabel(v1::OperationState state) {
  return WithoutPrefix(v1::OperationState_Name(state), "OPERATION_STATE_");
}

std::string ReachableMetrics(const std::string& address, const std::string& peer, const std::string& agent) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return "";
  if (IsLoopbackAddress(address)) {
    const bool is_here =
        absl::StartsWith(peer, "ipv4:127.") || absl::StrContains(peer, "[::1]") || absl::StrContains(peer, "%5B::1%5D");
    return is_here ? address : "";
  }
  const std::string host = address.substr(0, colon);
  if (host == "0.0.0.0" || host == "[::]") return absl::StrCat(agent, address.substr(colon));
  return address;
}

// ---- what has ended

EndedOperations::EndedOperations(const Fleet& fleet, MetricSet& values) : fleet_(fleet), values_(values) {
  for (const auto& [name, service] : fleet.services) {
    for (const auto& [environment, hosts] : service.hosts) {
      for (const char* kind : kKinds) {
        for (const char* outcome : kOutcomes) {
          values.Count(Metric::kOperations, {environment, name, kind, outcome, "false"}, 0);
        }
      }
      for (const char* outcome : kOutcomes) {
        values.Count(Metric::kOperations, {environment, name, "rollback", outcome, "true"}, 0);
      }
      for (const char* method : kMethods) {
        for (const char* drill : {"false", "true"}) {
          for (const char* target : {"met", "missed"}) {
            values.Count(Metric::kRecoveries, {environment, name, method, drill, target}, 0);
          }
        }
      }
      const std::pair<const char*, absl::Duration> targets[] = {
          {"backup", service.target_backup}, {"git", service.target_git}, {"redeploy", service.target_redeploy}};
      for (const auto& [method, target] : targets) {
        values.Set(Metric::kRecoveryTarget, {environment, name, method}, absl::ToDoubleSeconds(target));
      }
    }
  }
}

void EndedOperations::Count(const v1::Operation& operation) {
  const v1::OperationKind kind = operation.spec().kind();
  const std::string service = operation.spec().service();
  const std::string outcome = StateLabel(operation.state());
  const std::string drill = DrillLabel(operation);
  for (const std::string& environment : EnvironmentsOf(operation)) {
    values_.Count(Metric::kOperations, {environment, service, KindLabel(kind), outcome, drill});
  }
  const bool succeeded = operation.state() == v1::OPERATION_STATE_SUCCEEDED;
  const bool failed =
      operation.state() == v1::OPERATION_STATE_REVERTED || operation.state() == v1::OPERATION_STATE_NEEDS_ATTENTION;
  for (const v1::HostProgress& host : operation.hosts()) {
    const absl::Duration downtime = FromProto(host.times().downtime());
    const absl::Duration recovery = FromProto(host.times().recovery());
    const LabelValues labels = {host.environment(), service, MethodLabel(host.method()), outcome, drill};
    if (downtime > absl::ZeroDuration()) {
      values_.Observe(Metric::kDowntime, labels, absl::ToDoubleSeconds(downtime));
    }
    if (!Recovers(kind) || host.already_there()) continue;
    if (recovery > absl::ZeroDuration()) {
      values_.Observe(Metric::kRecovery, labels, absl::ToDoubleSeconds(recovery));
    }
    if (failed || (succeeded && recovery > absl::ZeroDuration())) {
      values_.Count(Metric::kRecoveries, {host.environment(), service, MethodLabel(host.method()), drill,
                                          succeeded && host.target_met() ? "met" : "missed"});
    }
  }
  Learn(operation);
}

void EndedOperations::Learn(const v1::Operation& operation) {
  const v1::OperationKind kind = operation.spec().kind();
  const std::string service = operation.spec().service();
  const std::string drill = DrillLabel(operation);
  const absl::Time at = FromProto(operation.ended_at());
  const bool succeeded = operation.state() == v1::OPERATION_STATE_SUCCEEDED;
  for (const std::string& environment : EnvironmentsOf(operation)) {
    ended_[{environment, service, KindLabel(kind), StateLabel(operation.state()), drill}] = at;
    if (kind == v1::OPERATION_KIND_BACKUP || kind == v1::OPERATION_KIND_PRUNE) continue;
    // What was aborted or reverted has left things as they were.
    if (succeeded) needs_attention_[{environment, service}] = false;
    if (operation.state() == v1::OPERATION_STATE_NEEDS_ATTENTION) needs_attention_[{environment, service}] = true;
  }
  if (!succeeded) return;
  std::map<LabelValues, absl::Duration> slowest;
  for (const v1::HostProgress& host : operation.hosts()) {
    if (kind == v1::OPERATION_KIND_BACKUP) backups_[{host.environment(), service, host.host()}] = at;
    const absl::Duration recovery = FromProto(host.times().recovery());
    if (!Recovers(kind) || host.already_there() || recovery <= absl::ZeroDuration()) continue;
    absl::Duration& longest = slowest[{host.environment(), service, MethodLabel(host.method()), drill}];
    longest = std::max(longest, recovery);
  }
  for (const auto& [labels, recovery] : slowest) recoveries_[labels] = {recovery, at};
}

void EndedOperations::Measure(MetricSamples* samples) const {
  const auto is_there = [this](const LabelValues& labels) {
    const auto service = fleet_.services.find(labels[1]);
    return service != fleet_.services.end() && service->second.hosts.count(labels[0]) != 0;
  };
  for (const auto& [labels, at] : ended_) {
    if (is_there(labels)) samples->Set(Metric::kOperationLastEnded, labels, Seconds(at));
  }
  for (const auto& [labels, last] : recoveries_) {
    if (!is_there(labels)) continue;
    samples->Set(Metric::kRecoveryLast, labels, absl::ToDoubleSeconds(last.slowest));
    samples->Set(Metric::kRecoveryLastAt, labels, Seconds(last.at));
  }
  for (const auto& [name, service] : fleet_.services) {
    for (const auto& [environment, hosts] : service.hosts) {
      const auto found = needs_attention_.find({environment, name});
      samples->Set(Metric::kNeedsAttention, {environment, name},
                   found != needs_attention_.end() && found->second ? 1 : 0);
    }
  }
}

absl::Time EndedOperations::LastBackup(const std::string& environment, const std::string& service,
                                       const std::string& host) const {
  const auto found = backups_.find({environment, service, host});
  return found == backups_.end() ? absl::InfinitePast() : found->second;
}

// ---- serving

// Outlives whoever waits for it: the loop may come to it late.
struct ControllerMetrics::Answer {
  Mutex mutex;
  CondVar changed;
  bool is_there ABSL_GUARDED_BY(mutex) = false;
  MetricSamples samples ABSL_GUARDED_BY(mutex);
};

ControllerMetrics::ControllerMetrics(Options options, const Fleet& fleet)
    : options_(std::move(options)), fleet_(fleet), ended_(fleet_, values_) {}
ControllerMetrics::~ControllerMetrics() = default;

absl::StatusOr<std::unique_ptr<ControllerMetrics>> ControllerMetrics::Create(const Options& options,
                                                                             const Fleet& fleet) {
  std::unique_ptr<ControllerMetrics> metrics(new ControllerMetrics(options, fleet));
  metrics->LoadTargets();
  RB_ASSIGN_OR_RETURN(metrics->server_, MetricsServer::Start(options.server, options.folder,
                                                             [raw = metrics.get()] { return raw->Text(); }));
  return metrics;
}

void ControllerMetrics::SetCertificateExpiry(const std::string& certificate, absl::Time when) {
  values_.Set(Metric::kControllerCertificate, {certificate}, Seconds(when));
}

void ControllerMetrics::AskOn(EventLoop& loop, Clock& clock, std::function<void(MetricSamples*)> measure) {
  MutexLock lock(asking_);
  loop_ = timers_ = &loop;
  clock_ = &clock;
  measure_ = std::move(measure);
  // What was taken out of the fleet file is taken out of there as well.
  WriteTargets();
}

void ControllerMetrics::StopAsking() {
  MutexLock lock(asking_);
  loop_ = nullptr;
  measure_ = nullptr;
}

std::string ControllerMetrics::Text() {
  MutexLock lock(asking_);
  if (loop_ == nullptr) return values_.Text(last_);
  const auto answer = std::make_shared<Answer>();
  // A loop that is full has better things to do.
  const bool asked = loop_->Post([answer, measure = measure_] {
    MetricSamples samples;
    measure(&samples);
    MutexLock done(answer->mutex);
    answer->samples = std::move(samples);
    answer->is_there = true;
    answer->changed.NotifyAll();
  });
  if (asked) {
    MutexLock wait(answer->mutex);
    while (!answer->is_there) {
      if (answer->changed.WaitFor(answer->mutex, kLoopPatience)) break;
    }
    if (answer->is_there) last_ = std::move(answer->samples);
  }
  return values_.Text(last_);
}

// ---- where Prometheus finds the agents

void ControllerMetrics::SetTarget(const std::string& agent, const MetricsTarget& target) {
  if (target.address.empty() ? targets_.erase(agent) == 0 : targets_[agent] == target) return;
  if (!target.address.empty()) targets_[agent] = target;
  if (write_waits_ || timers_ == nullptr) return;
  write_waits_ = true;
  timers_->PostAt(clock_->Monotonic() + kWriteTargetsAfter, [this] {
    write_waits_ = false;
    WriteTargets();
  });
}

void ControllerMetrics::LoadTargets() {
  const absl::StatusOr<std::string> text = ReadFile(options_.targets_file, kLargestTargetsFile);
  if (!text.ok()) return;
  const nlohmann::json all = nlohmann::json::parse(*text, nullptr, false);
  if (!all.is_array()) return;
  for (const nlohmann::json& one : all) {
    try {
      const nlohmann::json& labels = one.at("labels");
      targets_[labels.at("host").get<std::string>()] = {one.at("targets").at(0).get<std::string>(),
                                                        labels.at("__scheme__").get<std::string>() == "https"};
    } catch (const nlohmann::json::exception&) {
      LogWarning("controller", options_.targets_file, " holds what was not written here; it will be written anew");
    }
  }
}

void ControllerMetrics::WriteTargets() {
  std::map<std::string, std::set<std::string>> environments;
  for (const auto& [name, service] : fleet_.services) {
    for (const auto& [environment, hosts] : service.hosts) {
      for (const std::string& host : hosts) environments[host].insert(environment);
    }
  }
  nlohmann::json all = nlohmann::json::array();
  for (const auto& [agent, target] : targets_) {
    const auto of = environments.find(agent);
    if (of == environments.end()) continue;
    nlohmann::json labels = {{"host", agent}, {"__scheme__", target.tls ? "https" : "http"}};
    if (of->second.size() == 1) labels["environment"] = *of->second.begin();
    all.push_back({{"targets", {target.address}}, {"labels", labels}});
  }
  if (const absl::Status written = WriteFileDurably(options_.targets_file, all.dump(2) + "\n", 0644); !written.ok()) {
    LogWarning("controller", "Prometheus is not told of the agents: ", written.message());
  }
}

}  // namespace rb::controller
