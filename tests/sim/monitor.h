// Watches a simulated world and says when something that must always hold does not. It looks at what really happens on
// disks and in journals, never at what somebody says of it.
#ifndef RB_TESTS_SIM_MONITOR_H_
#define RB_TESTS_SIM_MONITOR_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "agent/core/task/agent_state.h"
#include "controller/core/operation.h"
#include "tests/sim/controller.h"
#include "tests/sim/world.h"

namespace rb::sim {

// Equal for equal states.
uint64_t Fingerprint(const controller::Operation& operation);
uint64_t Fingerprint(const agent::AgentState& state);
uint64_t Fingerprint(const agent::TaskResult& result);

class Monitor {
 public:
  explicit Monitor(World& world) : world_(world) {}

  // ---- what really happens on a host
  void OnTaskArrived(int host, const agent::Task& task, bool recorded);
  void OnStepBegins(int host, const agent::Task& task);
  void OnStepEnded(int host, const agent::Task& task, const agent::TaskResult& result);
  // `recorded`: it can be given again, and was not refused.
  void OnResultSent(int host, const agent::TaskResult& result, bool recorded);
  void OnAgentReplayed(int host, const agent::AgentState& state);
  void OnPrepared(int host, int service, const std::string& operation);
  void OnSwapBegins(int host, int service, const std::string& operation);
  void OnUndoBegins(int host, int service, const std::string& operation);
  void OnServiceStarts(int host, int service);

  // ---- and in the controller
  void OnAccepted(const controller::Operation& operation);
  void OnEnded(const controller::Operation& operation);
  // To whoever asked for the operation.
  void OnAnswered(const std::string& operation, const std::string& key);
  void OnResultAcknowledged(int host, const std::string& operation, const std::string& step_id);
  void OnControllerReplayed();

  void AfterEvent();
  // Nothing goes wrong any more, and everything had the time to end.
  void AtTheEnd();

 private:
  struct Truth {
    uint64_t fencing_number = 0;
    int service = 0;
    bool changes_nothing = false;
    // Names in the order of the plan.
    struct Host {
      int number = 0;
      uint32_t wave = 0;
      bool changes = false;
      bool prepared = false;
      bool healthy = false;
      bool acted_alone = false;
      bool ran_before = false;
      // Of the tree, as it was when it was prepared.
      int replaced = 0;
      int target = 0;
    };
    std::vector<Host> hosts;
    controller::OperationState end = controller::OperationState::kPlanned;
  };
  struct OnHost {
    uint64_t highest_fencing_number = 0;
    std::set<std::string> accepted;
    // Begun by the host itself after a commit that was accepted.
    std::set<std::string> follows;
    std::set<std::string> stale;
    std::set<std::string> ended;
    std::map<std::string, uint64_t> answers;
  };
  Truth* Find(const std::string& operation);
  Truth::Host* Find(const std::string& operation, int host);
  OnHost& At(int host, int service) { return on_hosts_[host * 2 + service]; }

  World& world_;
  std::map<std::string, Truth> truths_;
  std::map<int, OnHost> on_hosts_;
  std::map<std::string, std::string> answered_;
  std::set<std::string> acknowledged_;
};

}  // namespace rb::sim

#endif  // RB_TESTS_SIM_MONITOR_H_
