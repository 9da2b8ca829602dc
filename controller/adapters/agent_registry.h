// What is known of the agents: who is connected, and what they said of their services last.
#ifndef RB_CONTROLLER_ADAPTERS_AGENT_REGISTRY_H_
#define RB_CONTROLLER_ADAPTERS_AGENT_REGISTRY_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "controller/adapters/metrics.h"
#include "controller/core/fleet.h"
#include "controller/core/plan.h"
#include "rb/v1/agent_link.pb.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// Sends to connected agents. Called on the loop.
class AgentSender {
 public:
  virtual ~AgentSender() = default;
  // False when the agent is not connected, or its queue is full: what matters is sent again when it connects.
  virtual bool Send(const std::string& agent, v1::ConnectResponse message) = 0;
};

// All methods are called on the loop.
class AgentRegistry {
 public:
  // Nothing is owned.
  AgentRegistry(const Fleet& fleet, Clock& clock) : fleet_(fleet), clock_(clock) {}

  void OnConnected(const std::string& agent, const v1::Hello& hello, absl::Time certificate_expires_at);
  void OnLost(const std::string& agent);
  // False when it is not taken: the agent reports too many services.
  bool OnReport(const std::string& agent, const v1::ServiceReport& report);
  // What a result says of a fault is newer than the last report.
  void OnFaultResult(const std::string& agent, const v1::TaskResult& result);

  bool IsConnected(const std::string& agent) const;
  // Counts the agent's connections.
  uint64_t Connection(const std::string& agent) const;
  // Null when there is none.
  const v1::ServiceReport* ReportOf(const std::string& agent, const std::string& service) const;
  Verdict LastVerdict(const std::string& host, const std::string& service) const;

  v1::ListAgentsResponse List() const;
  v1::ListReleasesResponse Releases(const v1::ListReleasesRequest& request, absl::Status* status) const;
  void Measure(const EndedOperations& ended, MetricSamples* samples) const;
  // What the fleet file says of the services on the agent's host.
  void FillPolicies(const std::string& agent, v1::Welcome* welcome) const;

 private:
  struct AgentInfo {
    bool connected = false;
    uint64_t connection = 0;
    v1::Hello hello;
    absl::Time last_seen_at = absl::InfinitePast();
    absl::Time connected_at;
    absl::Time certificate_expires_at;
    std::map<std::string, v1::ServiceReport> reports;
  };

  const Fleet& fleet_;
  Clock& clock_;
  std::map<std::string, AgentInfo> agents_;
  size_t connected_ = 0;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_AGENT_REGISTRY_H_
