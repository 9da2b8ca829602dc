#include "agent/adapters/metrics/agent_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

// Loopback answers one scraper; more threads would only be more to keep.
constexpr std::size_t kThreads = 2;

bool IsLoopback(absl::string_view host) {
  if (host == "localhost" || host == "[::1]") return true;
  // 127.0.0.0/8, written out.
  absl::string_view rest = host;
  if (!absl::ConsumePrefix(&rest, "127.")) return false;
  return std::count(rest.begin(), rest.end(), '.') == 2 &&
         rest.find_first_not_of("0123456789.") == absl::string_view::npos;
}

// A word of a fixed list, or "other": whatever is passed, the number of series stays bounded.
template <size_t N>
std::string OneOf(absl::string_view word, const std::array<absl::string_view, N>& words) {
  return std::find(words.begin(), words.end(), word) != words.end() ? std::string(word) : "other";
}
constexpr std::array<absl::string_view, 3> kMethods = {"backup", "git", "redeploy"};
constexpr std::array<absl::string_view, 3> kOutcomes = {"kept", "reverted", "unhealthy"};
constexpr std::array<absl::string_view, 7> kSteps = {"inspect", "backup", "prepare", "commit",
                                                     "verify",  "revert", "keep"};
constexpr std::array<absl::string_view, 8> kProbes = {"unit", "http",    "log",     "journal",
                                                      "tcp",  "command", "version", "sqlite"};

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
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  // From what a tiny service needs to the longest target.
  const prometheus::Histogram::BucketBoundaries downtime_seconds = {0.1, 0.25, 0.5, 1,   2.5, 5,   10,
                                                                    20,  30,   60,  120, 180, 300, 600};
  prometheus::Family<prometheus::Histogram>& downtime =
      prometheus::BuildHistogram()
          .Name("rb_downtime_seconds")
          .Help("From the stop of a service until all its probes passed.")
          .Register(*registry);
  prometheus::Family<prometheus::Gauge>& proved = prometheus::BuildGauge()
                                                      .Name("rb_release_last_proved_timestamp_seconds")
                                                      .Help("When a release was last really restored and compared.")
                                                      .Register(*registry);
  prometheus::Family<prometheus::Gauge>& backup = prometheus::BuildGauge()
                                                      .Name("rb_backup_last_success_timestamp_seconds")
                                                      .Help("When the tree was last captured as a release.")
                                                      .Register(*registry);
  prometheus::Family<prometheus::Gauge>& releases =
      prometheus::BuildGauge().Name("rb_releases").Help("Releases on this host by standing.").Register(*registry);
  prometheus::Family<prometheus::Gauge>& probes = prometheus::BuildGauge()
                                                      .Name("rb_probe_passed")
                                                      .Help("1 when all probes of this kind passed at the last look.")
                                                      .Register(*registry);
  prometheus::Gauge& link = prometheus::BuildGauge()
                                .Name("rb_agent_link_connected")
                                .Help("1 while the agent has a stream to its controller.")
                                .Register(*registry)
                                .Add({});
  prometheus::Family<prometheus::Counter>& steps = prometheus::BuildCounter()
                                                       .Name("rb_steps_total")
                                                       .Help("Steps of operations that this agent has ended.")
                                                       .Register(*registry);
  // The last member: it is destroyed first, and with it its threads.
  std::unique_ptr<prometheus::Exposer> exposer;
};

AgentMetrics::AgentMetrics(std::unique_ptr<Impl> impl, std::string address)
    : impl_(std::move(impl)), address_(std::move(address)) {}
AgentMetrics::~AgentMetrics() = default;

absl::StatusOr<std::unique_ptr<AgentMetrics>> AgentMetrics::Create(const std::string& address,
                                                                   const std::string& state_folder) {
  const size_t colon = address.rfind(':');
  const std::string host = address.substr(0, colon == std::string::npos ? 0 : colon);
  if (!IsLoopback(host)) {
    return absl::InvalidArgumentError(absl::StrCat("metrics_address ", Printable(address),
                                                   " is not a loopback address and port, such as 127.0.0.1:9400"));
  }
  auto impl = std::make_unique<Impl>();
  // civetweb wants numbers.
  const std::string bound = host == "localhost" ? absl::StrCat("127.0.0.1", address.substr(colon)) : address;
  try {
    impl->exposer = std::make_unique<prometheus::Exposer>(bound, kThreads);
    impl->exposer->RegisterCollectable(impl->registry);
    const std::vector<int> ports = impl->exposer->GetListeningPorts();
    if (ports.empty()) return absl::UnavailableError(absl::StrCat("metrics_address ", bound, " cannot be served"));
    const std::string real = absl::StrCat(bound.substr(0, bound.rfind(':')), ":", ports[0]);
    impl->link.Set(0);
    RB_RETURN_IF_ERROR(WriteFileDurably(absl::StrCat(state_folder, "/metrics.address"), real + "\n", 0644));
    return std::unique_ptr<AgentMetrics>(new AgentMetrics(std::move(impl), real));
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("metrics_address ", bound, " cannot be served: is the port taken? (",
                                               Printable(Truncate(e.what(), 200)), ")"));
  }
}

void AgentMetrics::OnRecovery(absl::string_view service, absl::string_view method, absl::string_view outcome,
                              absl::Duration downtime) {
  impl_->downtime
      .Add({{"service", std::string(service)},
            {"method", OneOf(method, kMethods)},
            {"outcome", OneOf(outcome, kOutcomes)}},
           impl_->downtime_seconds)
      .Observe(std::max(0.0, absl::ToDoubleSeconds(downtime)));
}
void AgentMetrics::OnReleaseProved(absl::string_view service, absl::Time when) {
  impl_->proved.Add({{"service", std::string(service)}}).Set(Seconds(when));
}
void AgentMetrics::OnBackup(absl::string_view service, absl::Time when) {
  impl_->backup.Add({{"service", std::string(service)}}).Set(Seconds(when));
}
void AgentMetrics::SetReleases(absl::string_view service, Standing standing, uint64_t count) {
  impl_->releases.Add({{"service", std::string(service)}, {"standing", StandingName(standing)}})
      .Set(static_cast<double>(count));
}
void AgentMetrics::SetProbe(absl::string_view service, absl::string_view kind, bool passed) {
  impl_->probes.Add({{"service", std::string(service)}, {"probe", OneOf(kind, kProbes)}}).Set(passed ? 1 : 0);
}
void AgentMetrics::SetLinkConnected(bool connected) { impl_->link.Set(connected ? 1 : 0); }
void AgentMetrics::OnStep(absl::string_view kind, bool ok) {
  impl_->steps.Add({{"kind", OneOf(kind, kSteps)}, {"result", ok ? "ok" : "error"}}).Increment();
}

}  // namespace rb::agent
