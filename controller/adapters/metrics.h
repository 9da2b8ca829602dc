// What Prometheus scrapes from the controller (docs/metrics.md lists it), and where it finds the agents.
#ifndef RB_CONTROLLER_ADAPTERS_METRICS_H_
#define RB_CONTROLLER_ADAPTERS_METRICS_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/adapters/metrics/metric_set.h"
#include "common/adapters/metrics/metrics_server.h"
#include "common/event_loop.h"
#include "common/mutex.h"
#include "controller/core/fleet.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// Where Prometheus finds an agent's own metrics.
struct MetricsTarget {
  std::string address;
  bool tls = false;

  friend bool operator==(const MetricsTarget&, const MetricsTarget&) = default;
};

// An agent's address as Prometheus has to write it; empty when it cannot be reached: loopback of another machine than
// this. `peer` is the other end of its link as gRPC writes it; a wildcard stands for the agent's own name.
std::string ReachableMetrics(const std::string& address, const std::string& peer, const std::string& agent);

// What ended operations say. On the loop only, but for the counting into `values`.
class EndedOperations {
 public:
  // Makes the counters of all that the fleet names, so that the first rollback is seen as one. Nothing is owned.
  EndedOperations(const Fleet& fleet, MetricSet& values);
  // One that ended just now: it is counted, and learnt.
  void Count(const v1::Operation& operation);
  // One of the past, oldest first: when things were last done outlives a restart of the controller.
  void Learn(const v1::Operation& operation);
  void Measure(MetricSamples* samples) const;
  // Of a backup that was asked for, not of the release: a backup of an unchanged tree makes no new one.
  absl::Time LastBackup(const std::string& environment, const std::string& service, const std::string& host) const;

 private:
  struct LastRecovery {
    absl::Duration slowest;
    absl::Time at;
  };
  const Fleet& fleet_;
  MetricSet& values_;
  std::map<LabelValues, absl::Time> ended_;
  std::map<LabelValues, LastRecovery> recoveries_;
  std::map<LabelValues, bool> needs_attention_;
  std::map<LabelValues, absl::Time> backups_;
};

// Thread-safe, but for ended().
class ControllerMetrics {
 public:
  struct Options {
    MetricsServerOptions server;
    std::string folder;
    // Prometheus' file service discovery.
    std::string targets_file;
  };
  // `fleet` is copied.
  static absl::StatusOr<std::unique_ptr<ControllerMetrics>> Create(const Options& options, const Fleet& fleet);
  ~ControllerMetrics();

  EndedOperations& ended() { return ended_; }
  void SetCertificateExpiry(const std::string& certificate, absl::Time when);

  // From now on each scrape asks `measure`, which runs on the loop; when the loop does not answer soon, what it said
  // last is shown again. Nothing is owned; until StopAsking has returned.
  void AskOn(EventLoop& loop, Clock& clock, std::function<void(MetricSamples*)> measure);
  void StopAsking();

  // On the loop. Written a little later, so that a fleet that connects at once is written once; what was known of
  // agents before a restart stays.
  void SetTarget(const std::string& agent, const MetricsTarget& target);

 private:
  struct Answer;
  ControllerMetrics(Options options, const Fleet& fleet);
  std::string Text();
  void LoadTargets();
  void WriteTargets();

  const Options options_;
  const Fleet fleet_;
  MetricSet values_{MetricProgram::kController};
  EndedOperations ended_;
  // On the loop.
  std::map<std::string, MetricsTarget> targets_;
  bool write_waits_ = false;
  // Held while a scrape waits for the loop.
  Mutex asking_;
  EventLoop* loop_ ABSL_GUARDED_BY(asking_) = nullptr;
  std::function<void(MetricSamples*)> measure_ ABSL_GUARDED_BY(asking_);
  MetricSamples last_ ABSL_GUARDED_BY(asking_);
  EventLoop* timers_ = nullptr;
  Clock* clock_ = nullptr;
  // The last member: it is destroyed first, and with it its threads.
  std::unique_ptr<MetricsServer> server_;
};

// "rollback", "needs_attention": the words of metrics for those of the wire.
std::string KindLabel(v1::OperationKind kind);
std::string StateLabel(v1::OperationState state);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_METRICS_H_
