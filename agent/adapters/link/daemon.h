// The agent as a whole: takes tasks from the link (or from nobody), decides, keeps the journal, runs steps.
#ifndef RB_AGENT_ADAPTERS_LINK_DAEMON_H_
#define RB_AGENT_ADAPTERS_LINK_DAEMON_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "agent/core/fault/fault_keeper.h"
#include "agent/core/task/step_runner.h"
#include "common/adapters/metrics/metrics_server.h"
#include "common/clock.h"

namespace rb::v1 {
class AgentConfig;
class AgentServiceConfig;
}  // namespace rb::v1

namespace rb::agent {

// A payload of the status that Service::Open gives when recovery has failed: the tree, or a database, is not whole yet.
inline constexpr char kInRecovery[] = "rb/in-recovery";

// A service with all its ports, as agent.yaml says. Also used without a daemon (rb-agent local).
class Service {
 public:
  // Opens the engine and lets it recover (before anything else may touch or start the service), then the rest. What
  // recovery did is put in `recovered`; when it fails, the status has the payload kInRecovery. `with_supervisor` false:
  // nothing is started or probed.
  // `config_path` is agent.yaml itself, for whoever asks what is wrong with it now; may be empty.
  static absl::StatusOr<std::unique_ptr<Service>> Open(const std::string& name, const v1::AgentServiceConfig& config,
                                                       const std::string& state_folder, Clock& clock,
                                                       bool with_supervisor, std::string* recovered,
                                                       const std::string& config_path = "");
  virtual ~Service() = default;
  virtual StepRunner& runner() = 0;
  virtual Engine& engine() = 0;
  // Makes the engine's long work stop at its next safe point; cleared by the next step.
  virtual std::atomic<bool>& cancelled() = 0;
  // A step waits for what is being looked at meanwhile.
  virtual std::atomic<bool>& step_waits() = 0;
  // What drills break here; needs a supervisor.
  virtual FaultKeeper& faults() = 0;
};

struct DaemonOptions {
  std::string state_folder;
  MetricsServerOptions metrics;
  std::string config_path;
  // How long a tree that was changed by other means has to stay as it is before it is captured.
  absl::Duration external_settle = absl::Seconds(20);
};

// Runs until SIGTERM or SIGINT. `config` passed the checks.
absl::Status RunDaemon(const v1::AgentConfig& config, const DaemonOptions& options, Clock& clock);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LINK_DAEMON_H_
