// From a request to a plan: asks the hosts in scope to look, collects what they say, and lets the core plan.
#ifndef RB_CONTROLLER_ADAPTERS_PLANNING_H_
#define RB_CONTROLLER_ADAPTERS_PLANNING_H_

#include <functional>
#include <map>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/event_loop.h"
#include "controller/adapters/agent_registry.h"
#include "controller/adapters/ci/ci_runner.h"
#include "controller/adapters/store.h"
#include "controller/core/fleet.h"
#include "controller/core/intent.h"
#include "controller/core/plan.h"
#include "controller/core/quarantine.h"
#include "rb/v1/agent_link.pb.h"

namespace rb::controller {

// The operation that holds a lock which the request needs, and in which environment; empty if none.
absl::StatusOr<std::string> LockHolder(Store& store, const OperationSpec& spec, std::string* environment);

// All methods are called on the loop, and all callbacks run on it.
class Planning {
 public:
  using Done = std::function<void(Plan)>;

  // Nothing is owned.
  Planning(const Fleet& fleet, Store& store, AgentSender& sender, EventLoop& loop, Clock& clock,
           const AgentRegistry& agents, const Intents& intents, const Quarantine& quarantine)
      : fleet_(fleet),
        store_(store),
        sender_(sender),
        loop_(loop),
        clock_(clock),
        agents_(agents),
        intents_(intents),
        quarantine_(quarantine) {}

  // Not owned; null: no service has CI.
  void SetCi(CiRunner* ci) { ci_ = ci; }

  // `only_plan`: nobody means to carry it out. `done` is called once, soon or within the patience for hosts.
  void Make(const OperationSpec& asked, bool only_plan, Done done);
  void OnAgentLost(const std::string& agent);
  // False when the result is none of an inspection.
  bool OnResult(const std::string& agent, const v1::TaskResult& result);

 private:
  struct Inspecting {
    Scope scope;
    std::map<std::string, Inspection> inspections;
    std::set<std::string> waiting;
    // Hosts that looked no further, because another operation's step came in between.
    std::set<std::string> gave_way;
    // Monotonic. What is not known by then is not waited for.
    absl::Duration until;
    PlanningHistory history;
    Done done;
  };

  // What a plan by way of CI has to know of it: looked at anew where it was asked for, else what is known.
  void LookAtCi(const OperationSpec& spec, const std::string& key, Inspecting* inspecting);
  // The host is waited for, or known to be offline.
  void Look(const std::string& key, const std::string& host, Inspecting* inspecting);
  // Hosts that gave way are asked again a little later, as long as nobody holds the lock and there is time.
  bool LooksAgain(const std::string& key, Inspecting* inspecting);
  void Finish(const std::string& key);
  // That hosts were not healthy when it was asked for, and why: how it was detected is of use later.
  void NoteWhatWasSeen(const Scope& scope, rb::controller::Plan* plan) const;
  absl::StatusOr<PlanningHistory> HistoryFor(const Scope& scope);

  const Fleet& fleet_;
  Store& store_;
  AgentSender& sender_;
  EventLoop& loop_;
  Clock& clock_;
  const AgentRegistry& agents_;
  const Intents& intents_;
  const Quarantine& quarantine_;
  CiRunner* ci_ = nullptr;
  std::map<std::string, Inspecting> inspecting_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_PLANNING_H_
