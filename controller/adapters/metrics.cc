#include "controller/adapters/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <exception>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/status.h"

namespace rb::controller {
namespace {

const prometheus::Histogram::BucketBoundaries kSeconds = {0.1, 0.25, 0.5, 1,   2.5, 5,   10,
                                                          20,  30,   60,  120, 180, 300, 600};

class ControllerMetricsImpl final : public ControllerMetrics {
 public:
  explicit ControllerMetricsImpl(const std::string& address)
      : exposer_(address, 1), registry_(std::make_shared<prometheus::Registry>()) {
    exposer_.RegisterCollectable(registry_);
    recovery_ = &prometheus::BuildHistogram()
                     .Name("rb_recovery_seconds")
                     .Help("Request accepted until all probes pass.")
                     .Register(*registry_);
    downtime_ = &prometheus::BuildHistogram()
                     .Name("rb_downtime_seconds")
                     .Help("Service stopped until all probes pass.")
                     .Register(*registry_);
    target_ = &prometheus::BuildGauge()
                   .Name("rb_recovery_target_seconds")
                   .Help("What recovery has to stay under.")
                   .Register(*registry_);
    ended_ =
        &prometheus::BuildCounter().Name("rb_operations_total").Help("Operations that ended.").Register(*registry_);
    proved_ = &prometheus::BuildGauge()
                   .Name("rb_release_last_proved_timestamp_seconds")
                   .Help("When a release was last really restored and compared.")
                   .Register(*registry_);
    running_ = &prometheus::BuildGauge()
                    .Name("rb_operations_running")
                    .Help("Operations under way.")
                    .Register(*registry_)
                    .Add({});
    connected_ = &prometheus::BuildGauge()
                      .Name("rb_agents_connected")
                      .Help("Agents with an open link.")
                      .Register(*registry_)
                      .Add({});
  }

  int Port() const { return exposer_.GetListeningPorts().at(0); }

  void OnRecovery(const std::string& environment, const std::string& service, const std::string& method,
                  const std::string& outcome, absl::Duration recovery, absl::Duration downtime,
                  absl::Duration target) override {
    const prometheus::Labels labels = {{"environment", environment},
                                       {"service", service},
                                       {"method", method},
                                       {"outcome", outcome},
                                       {"drill", "false"}};
    recovery_->Add(labels, kSeconds).Observe(absl::ToDoubleSeconds(recovery));
    if (downtime > absl::ZeroDuration()) downtime_->Add(labels, kSeconds).Observe(absl::ToDoubleSeconds(downtime));
    target_->Add({{"environment", environment}, {"service", service}, {"method", method}})
        .Set(absl::ToDoubleSeconds(target));
  }
  void OnEnded(const std::string& environment, const std::string& service, const std::string& kind,
               const std::string& outcome) override {
    ended_->Add({{"environment", environment}, {"service", service}, {"kind", kind}, {"outcome", outcome}}).Increment();
  }
  void SetRunning(size_t count) override { running_->Set(static_cast<double>(count)); }
  void SetAgentsConnected(size_t count) override { connected_->Set(static_cast<double>(count)); }
  void SetLastProved(const std::string& environment, const std::string& service, const std::string& host,
                     absl::Time when) override {
    proved_->Add({{"environment", environment}, {"service", service}, {"host", host}})
        .Set(absl::ToDoubleSeconds(when - absl::UnixEpoch()));
  }

 private:
  prometheus::Exposer exposer_;
  const std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Family<prometheus::Histogram>* recovery_;
  prometheus::Family<prometheus::Histogram>* downtime_;
  prometheus::Family<prometheus::Gauge>* target_;
  prometheus::Family<prometheus::Counter>* ended_;
  prometheus::Family<prometheus::Gauge>* proved_;
  prometheus::Gauge* running_;
  prometheus::Gauge* connected_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ControllerMetrics>> ControllerMetrics::Create(const std::string& address,
                                                                             const std::string& folder) {
  if (!absl::StartsWith(address, "127.") && !absl::StartsWith(address, "[::1]:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics are served without TLS, so only on a loopback address; not on ", address));
  }
  try {
    auto metrics = std::make_unique<ControllerMetricsImpl>(address);
    const std::string real = absl::StrCat(address.substr(0, address.rfind(':')), ":", metrics->Port());
    RB_RETURN_IF_ERROR(WriteFileDurably(folder + "/metrics.address", real + "\n", 0644));
    return metrics;
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("metrics cannot be served on ", address, ": ", error.what()));
  }
}

}  // namespace rb::controller
