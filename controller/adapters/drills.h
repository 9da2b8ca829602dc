// Carries drills out: keeps their journal, begins their operations through the driver, asks agents for faults, and
// watches what agents and operators do meanwhile.
#ifndef RB_CONTROLLER_ADAPTERS_DRILLS_H_
#define RB_CONTROLLER_ADAPTERS_DRILLS_H_

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/event_loop.h"
#include "controller/adapters/drill_metrics.h"
#include "controller/adapters/drill_store.h"
#include "controller/adapters/driver.h"
#include "controller/core/drill.h"
#include "controller/core/fleet.h"
#include "rb/v1/drill_service.pb.h"

namespace rb::controller {

// All methods are called on the loop, and all callbacks run on it.
class Drills final : public DriverObserver {
 public:
  struct Started {
    absl::Status status;  // of the request itself
    Refusal refusal;
    v1::Drill drill;
  };

  // Nothing is owned; `fleet` is copied.
  Drills(Fleet fleet, DrillStore& store, Driver& driver, AgentSender& sender, EventLoop& loop, Clock& clock);

  // Takes up what an earlier controller left unfinished; after the driver's own Resume.
  absl::Status Resume();

  Started Start(const DrillSpec& spec, const std::string& by, const std::string& idempotency_key,
                const std::string& after_drill_id = "");
  // Events with a number > `after_sequence`.
  absl::StatusOr<v1::GetDrillResponse> Get(const std::string& id, uint64_t after_sequence);
  absl::StatusOr<v1::ListDrillsResponse> List(const v1::ListDrillsRequest& request);
  absl::StatusOr<v1::Drill> Stop(const std::string& id, const std::string& by, const std::string& reason);
  absl::StatusOr<v1::Drill> Approve(const std::string& id, const std::string& by, const std::string& reason);

  // As they are now.
  void Measure(MetricSamples* samples) const;

  // The drill that a passed one has begun in the environment after it; empty, and `why` not.
  std::string NextOf(const std::string& id, std::string* why);
  // Each time that something has happened to a drill; by Resume, for those that go on.
  void OnChange(std::function<void(const Drill&)> tell) { on_change_ = std::move(tell); }
  // Tells that again of one that may have ended.
  absl::Status TellAgain(const std::string& id);

  // DriverObserver
  void OnOperation(const Operation& operation, bool is_new) override;
  void OnAgentConnected(const std::string& agent) override;
  void OnReport(const std::string& agent, const v1::ServiceReport& report) override;
  bool OnFaultResult(const std::string& agent, const v1::TaskResult& result) override;
  std::string DrillOf(const OperationSpec& spec) override;
  bool GiveWay(const std::string& holder_operation_id, const OperationSpec& spec) override;

 private:
  struct Running {
    Drill drill;
    std::vector<v1::DrillEvent> history;
    absl::Duration accepted_monotonic;
    // Hosts that were seen healthy while it ran.
    std::set<std::string> healthy;
  };

  absl::StatusOr<std::unique_ptr<Running>> Load(const std::string& id);
  absl::Status LearnEnded();
  static void Fold(Running* running, const DrillEventRecord& event, std::vector<DrillEffect>* effects);
  template <typename Body>
  absl::Status Take(const std::string& id, Body body);
  absl::Status TakeEvent(Running* running, const DrillEventRecord& event);
  void CarryOut(const std::string& id, const std::vector<DrillEffect>& effects);
  // After a restart, until they have had the time to connect again.
  bool WaitsForAgents(const Drill& drill) const;
  void Begin(const std::string& id, const BeginOperation& effect);
  void Send(const std::string& id, const SendFault& effect);
  void SeeOperation(const std::string& drill_id, const std::string& operation_id);
  void Ended(const Drill& drill);
  std::string Busy(const std::string& service, const std::string& environment);
  absl::Duration Elapsed(const Running& running) const { return clock_.Monotonic() - running.accepted_monotonic; }

  std::function<void(const Drill&)> on_change_;
  const Fleet fleet_;
  DrillStore& store_;
  Driver& driver_;
  AgentSender& sender_;
  EventLoop& loop_;
  Clock& clock_;
  absl::Duration resumed_ = -absl::InfiniteDuration();
  std::map<std::string, std::unique_ptr<Running>> running_;
  EndedDrills ended_{fleet_};
  // Passed drills that could not go on in their next environment, and why; the newest.
  std::map<std::string, std::string> stuck_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DRILLS_H_
