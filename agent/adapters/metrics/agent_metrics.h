// What Prometheus scrapes from an agent. docs/metrics.md lists it.
#ifndef RB_AGENT_ADAPTERS_METRICS_AGENT_METRICS_H_
#define RB_AGENT_ADAPTERS_METRICS_AGENT_METRICS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "agent/core/ports/probe.h"
#include "agent/core/release.h"
#include "common/adapters/metrics/metrics_server.h"

namespace rb::agent {

// Thread-safe; no call blocks on the network. Labels are bounded: names of services and probe kinds from the local
// file, and the fixed words below; never reasons, ids or commits.
class AgentMetrics {
 public:
  // Serves /metrics as MetricsServer::Start says; the real address is written to <state_folder>/metrics.address.
  static absl::StatusOr<std::unique_ptr<AgentMetrics>> Create(const MetricsServerOptions& options,
                                                              const std::string& state_folder);
  ~AgentMetrics();
  AgentMetrics(const AgentMetrics&) = delete;
  AgentMetrics& operator=(const AgentMetrics&) = delete;

  // "127.0.0.1:PORT".
  const std::string& address() const { return address_; }

  // A recovery ended: the service stopped, and all its probes passed (or they did not). `method`: "backup", "git",
  // "redeploy"; `outcome`: "kept", "reverted", "unhealthy"; anything else becomes "other".
  // rb_downtime_seconds{service,method,outcome}.
  void OnRecovery(absl::string_view service, absl::string_view method, absl::string_view outcome,
                  absl::Duration downtime);
  // rb_release_last_proved_timestamp_seconds{service}.
  void OnReleaseProved(absl::string_view service, absl::Time when);
  // rb_backup_last_success_timestamp_seconds{service}.
  void OnBackup(absl::string_view service, absl::Time when);
  // rb_releases{service,standing}: how many there are now.
  void SetReleases(absl::string_view service, Standing standing, uint64_t count);
  // rb_probe_passed{service,probe}: 1 or 0 by kind of probe; of several of a kind, call it with all of them passed.
  void SetProbe(absl::string_view service, absl::string_view kind, bool passed);
  void SetDrifted(absl::string_view service, bool drifted);
  // What the releases take on the disk, and what copies of them would take, for one service; the host's is their sum.
  void SetStore(uint64_t stored_bytes, uint64_t content_bytes);
  // rb_releases_pruned_total{service}, rb_store_pruned_bytes_total{service}.
  void OnPruned(absl::string_view service, uint64_t removed, uint64_t freed_bytes);
  // rb_agent_link_connected: 1 while the controller is reached; and since when that is so.
  void SetLinkConnected(bool connected, absl::Time now);
  void SetCertificateExpiry(absl::Time when);
  // Asked for with each scrape, from another thread: how many events wait. Until it is set anew.
  void SetQueueDepth(std::function<size_t()> depth);
  // rb_steps_total{kind,result}: `kind` is "inspect", "backup", "prepare", "commit", "verify", "revert", "keep",
  // "await" or "prune".
  void OnStep(absl::string_view kind, bool ok);

 private:
  struct Impl;
  explicit AgentMetrics(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
  const std::string address_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_METRICS_AGENT_METRICS_H_
