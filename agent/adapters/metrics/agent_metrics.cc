#include "agent/adapters/metrics/agent_metrics.h"

#include <algorithm>
#include <array>
#include <utility>

#include "common/adapters/metrics/metric_set.h"
#include "common/mutex.h"
#include "common/status.h"

namespace rb::agent {
namespace {

// A word of a fixed list, or "other": whatever is passed, the number of series stays bounded.
template <size_t N>
std::string OneOf(absl::string_view word, const std::array<absl::string_view, N>& words) {
  return std::find(words.begin(), words.end(), word) != words.end() ? std::string(word) : "other";
}
constexpr std::array<absl::string_view, 3> kMethods = {"backup", "git", "redeploy"};
constexpr std::array<absl::string_view, 3> kOutcomes = {"kept", "reverted", "unhealthy"};
constexpr std::array<absl::string_view, 9> kSteps = {"inspect", "backup", "prepare", "commit", "verify",
                                                     "revert",  "keep",   "await",   "prune"};
constexpr std::array<absl::string_view, 11> kProbes = {"unit",    "http",   "log",     "journal", "tcp",     "command",
                                                       "version", "sqlite", "metrics", "disk",    "recovery"};

const char* StandingName(Standing standing) {
  switch (standing) {
    case Standing::kUnknown:
      return "unknown";
    case Standing::kGood:
      return "good";
    case Standing::kBad:
      return "bad";
  }
  return "unknown";
}

double Seconds(absl::Time time) { return static_cast<double>(absl::ToUnixMillis(time)) / 1000; }

}  // namespace

struct AgentMetrics::Impl {
  MetricSet values{MetricProgram::kAgent};
  Mutex mutex;
  std::function<size_t()> queue_depth ABSL_GUARDED_BY(mutex);
  // The last member: it is destroyed first, and with it its threads.
  std::unique_ptr<MetricsServer> server;
};

AgentMetrics::AgentMetrics(std::unique_ptr<Impl> impl) : impl_(std::move(impl)), address_(impl_->server->address()) {}
AgentMetrics::~AgentMetrics() = default;

absl::StatusOr<std::unique_ptr<AgentMetrics>> AgentMetrics::Create(const MetricsServerOptions& options,
                                                                   const std::string& state_folder) {
  auto impl = std::make_unique<Impl>();
  impl->values.Set(Metric::kAgentLink, {}, 0);
  RB_ASSIGN_OR_RETURN(impl->server, MetricsServer::Start(options, state_folder, [raw = impl.get()] {
                        MetricSamples samples;
                        MutexLock lock(raw->mutex);
                        if (raw->queue_depth) {
                          samples.Set(Metric::kAgentQueue, {"loop"}, static_cast<double>(raw->queue_depth()));
                        }
                        return raw->values.Text(samples);
                      }));
  return std::unique_ptr<AgentMetrics>(new AgentMetrics(std::move(impl)));
}

void AgentMetrics::OnRecovery(absl::string_view service, absl::string_view method, absl::string_view outcome,
                              absl::Duration downtime) {
  impl_->values.Observe(Metric::kAgentDowntime,
                        {std::string(service), OneOf(method, kMethods), OneOf(outcome, kOutcomes)},
                        std::max(0.0, absl::ToDoubleSeconds(downtime)));
}
void AgentMetrics::OnReleaseProved(absl::string_view service, absl::Time when) {
  impl_->values.Set(Metric::kAgentProofLast, {std::string(service)}, Seconds(when));
}
void AgentMetrics::OnBackup(absl::string_view service, absl::Time when) {
  impl_->values.Set(Metric::kAgentBackupLast, {std::string(service)}, Seconds(when));
}
void AgentMetrics::SetReleases(absl::string_view service, Standing standing, uint64_t count) {
  impl_->values.Set(Metric::kAgentReleases, {std::string(service), StandingName(standing)}, static_cast<double>(count));
}
void AgentMetrics::SetProbe(absl::string_view service, absl::string_view kind, bool passed) {
  impl_->values.Set(Metric::kAgentProbePassed, {std::string(service), OneOf(kind, kProbes)}, passed ? 1 : 0);
}
void AgentMetrics::SetDrifted(absl::string_view service, bool drifted) {
  impl_->values.Set(Metric::kAgentDrifted, {std::string(service)}, drifted ? 1 : 0);
}
void AgentMetrics::SetStore(uint64_t stored_bytes, uint64_t content_bytes) {
  const auto stored = static_cast<double>(stored_bytes);
  const auto content = static_cast<double>(content_bytes);
  impl_->values.Set(Metric::kAgentStoreSize, {}, stored);
  impl_->values.Set(Metric::kAgentStoreContent, {}, content);
  if (stored > 0) impl_->values.Set(Metric::kAgentStoreRatio, {}, content / stored);
}
void AgentMetrics::OnPruned(absl::string_view service, uint64_t removed, uint64_t freed_bytes) {
  impl_->values.Count(Metric::kAgentReleasesPruned, {std::string(service)}, static_cast<double>(removed));
  impl_->values.Count(Metric::kAgentPrunedBytes, {std::string(service)}, static_cast<double>(freed_bytes));
}
void AgentMetrics::SetLinkConnected(bool connected, absl::Time now) {
  impl_->values.Set(Metric::kAgentLink, {}, connected ? 1 : 0);
  impl_->values.Set(Metric::kAgentLinkSince, {}, Seconds(now));
}
void AgentMetrics::SetCertificateExpiry(absl::Time when) {
  impl_->values.Set(Metric::kAgentOwnCertificate, {}, Seconds(when));
}
void AgentMetrics::SetQueueDepth(std::function<size_t()> depth) {
  MutexLock lock(impl_->mutex);
  impl_->queue_depth = std::move(depth);
}
void AgentMetrics::OnStep(absl::string_view kind, bool ok) {
  impl_->values.Count(Metric::kAgentSteps, {OneOf(kind, kSteps), ok ? "ok" : "error"});
}

}  // namespace rb::agent
