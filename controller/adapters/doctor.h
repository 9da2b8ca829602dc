// Asks every host of an environment to look at itself, and gives the findings; and what a runbook is written from.
#ifndef RB_CONTROLLER_ADAPTERS_DOCTOR_H_
#define RB_CONTROLLER_ADAPTERS_DOCTOR_H_

#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/event_loop.h"
#include "controller/adapters/agent_registry.h"
#include "controller/adapters/store.h"
#include "controller/core/doctor.h"
#include "controller/core/fleet.h"
#include "rb/v1/doctor_service.pb.h"

namespace rb::controller {

// All methods are called on the loop, and all callbacks run on it. Nothing is owned.
class DoctorDesk {
 public:
  using Done = std::function<void(v1::DiagnoseResponse)>;

  DoctorDesk(const Fleet& fleet, Store& store, AgentSender& sender, EventLoop& loop, Clock& clock,
             AgentRegistry& agents)
      : fleet_(fleet), store_(store), sender_(sender), loop_(loop), clock_(clock), agents_(agents) {}

  // NOT_FOUND for an environment or service that the fleet file does not name; `done` is then not called.
  // RESOURCE_EXHAUSTED while too many ask.
  absl::Status Diagnose(const std::string& environment, const std::string& service, Done done);
  absl::StatusOr<v1::GetRunbookResponse> Runbook(const std::string& environment, const std::string& service);

  void OnAgentLost(const std::string& agent);
  // Whether it was the answer to a question of ours.
  bool OnResult(const std::string& agent, const v1::TaskResult& result);

 private:
  struct Round {
    // By step id.
    std::map<std::string, Examined> hosts;
    std::set<std::string> waiting;
    uint32_t asked = 0;
    DoctorContext context;
    Done done;
  };
  void Finish(const std::string& key);

  const Fleet& fleet_;
  Store& store_;
  AgentSender& sender_;
  EventLoop& loop_;
  Clock& clock_;
  AgentRegistry& agents_;
  std::map<std::string, Round> rounds_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DOCTOR_H_
