// A simulated controller: plan and operation unchanged, around them a small driver that does what the daemon does, on a
// store and with a process that can die at any moment.
#ifndef RB_TESTS_SIM_CONTROLLER_H_
#define RB_TESTS_SIM_CONTROLLER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "agent/core/task/task.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"
#include "tests/sim/world.h"

namespace rb::sim {

class SimController {
 public:
  struct Stored {
    std::string id;
    int service = 0;
    std::string key;
    std::vector<controller::Event> events;
    // The events folded.
    controller::Operation replayed;
    // The same, from the beginning.
    controller::Operation Read() const;
    bool ended() const { return controller::IsFinal(replayed.state); }
  };
  struct Answer {
    // Empty: refused.
    std::string id;
    controller::Refusal refusal;
  };

  explicit SimController(World& world) : world_(world) {}

  void Boot();
  void Crash(Nanos away);
  void SetStoreFull(bool full) { store_full_ = full; }
  bool up() const { return up_; }
  uint64_t process() const { return process_; }

  // No answer when the process dies first.
  void Start(const controller::OperationSpec& spec, const std::string& key, std::function<void(const Answer&)> done);
  // False when it is refused, or could not be recorded.
  bool Ask(const std::string& id, const controller::OperatorRequest& request);

  void OnAgentConnected(int host);
  void OnAgentLost(int host);
  void OnReport(int host, const Report& report);
  void OnResult(int host, const agent::TaskResult& result);

  const std::vector<Stored>& store() const { return store_; }
  const Stored* Find(const std::string& id) const;
  const std::string& lock(int service) const { return locks_[service]; }
  bool idle() const { return up_ && running_.empty() && inspecting_.empty(); }

 private:
  struct Running {
    controller::Operation operation;
    size_t stored = 0;
    Nanos accepted_at = 0;
  };
  struct Inspecting {
    controller::Scope scope;
    std::map<std::string, controller::Inspection> inspections;
    std::set<std::string> waiting;
    controller::PlanningHistory history;
    std::function<void(controller::Plan)> done;
  };

  void MakePlanFor(const controller::OperationSpec& spec, std::function<void(controller::Plan)> done);
  void FinishInspecting(const std::string& key);
  controller::PlanningHistory HistoryFor(const controller::Scope& scope);
  // Decides, appends, then carries out. False: nothing was done, or the process has died.
  bool Take(const std::string& id, const controller::Event& event);
  bool Append(Running* running, const controller::Event& event);
  void CarryOut(const std::string& id, const std::vector<controller::Effect>& effects);
  // For the planted bugs that do not wait for an answer.
  void TakeSentForDone(const std::string& id, const controller::StartStep& step);
  void RecordLock(const std::string& id);
  void ArmDeadline(const std::string& id, const controller::StartStep& step, absl::Duration after);
  controller::Event NewEvent(const Running& running) const;
  bool TakeLock(int service, const std::string& id);
  void ReleaseLock(const std::string& id);
  void SendStep(const controller::Operation& operation, const controller::StartStep& step);
  void SendAfterDelay(const controller::Operation& operation, const controller::StartStep& step);
  void ArmWait(const std::string& id, const controller::ArmWait& wait, absl::Duration after);
  bool DiesHere(absl::string_view place);
  // Runs `action` later, unless the process has died by then.
  void After(absl::Duration delay, World::Action action);
  void CheckReplay(const Running& running);

  World& world_;
  // What survives.
  std::vector<Stored> store_;
  std::string locks_[2];
  uint64_t fencing_number_ = 0;
  bool store_full_ = false;
  // Ids are random in life; here they only have to be new.
  uint64_t operations_ = 0;
  uint64_t plans_ = 0;
  // What does not.
  bool up_ = false;
  uint64_t process_ = 0;
  std::map<std::string, Running> running_;
  std::map<int, uint64_t> connections_;
  std::map<std::string, Inspecting> inspecting_;
};

}  // namespace rb::sim

#endif  // RB_TESTS_SIM_CONTROLLER_H_
