// The agent's side of operations: which step may run, which was run, what is owed. Pure: the adapters keep the journal
// and carry the effects out.
//
//   event → Decide(state, event) → append the event to the journal (where IsJournalled) → effects
//
// Recovery feeds the journal through the same function, drops the effects, and then decides Restarted.
#ifndef RB_AGENT_CORE_TASK_AGENT_STATE_H_
#define RB_AGENT_CORE_TASK_AGENT_STATE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "agent/core/task/task.h"

namespace rb::agent {

// A committed state that nobody has taken over yet: the dead-man's timer.
struct Unattended {
  std::string operation_id;
  UnattendedPolicy policy;
  // Timers that were armed for an earlier commit do not count.
  uint64_t number = 0;
  // The controller has ended the operation without coming back to this host, and will not.
  bool over = false;
};

struct ServiceState {
  uint64_t highest_fencing_number = 0;
  // The step that runs, or that the worker runs next, after what only looks; at most one.
  std::optional<Task> running;
  // Inspections that were begun. They are not in the journal, so nothing that is may depend on them.
  std::vector<Task> looking;
  // A revert that waits for the running step to stop, or another step that waits for a verification to stop.
  std::optional<Task> next;
  // Ended steps, oldest first; bounded. A repeated step is answered from here.
  std::deque<TaskResult> ended;
  std::optional<Unattended> unattended;
  // Method B: the operation for which CI may be changing the tree, from its preparation until it is kept or reverted
  // here, or over. Empty if none. What is seen in the tree meanwhile is nobody else's deploy.
  std::string awaits_ci_for;
};

struct AgentState {
  std::map<std::string, ServiceState> services;
  // Step ids whose result the controller has not said to have stored, oldest first.
  std::deque<std::string> owed;
  uint64_t unattended_count = 0;
};

// Events.
struct TaskArrived {
  Task task;
};
struct StepEnded {
  TaskResult result;
};
struct ResultStored {
  std::string step_id;
};
// The controller does not run it any more.
struct OperationIsOver {
  std::string operation_id;
};
struct CancelArrived {
  std::string step_id;
};
struct LinkOpened {};
struct PatienceEnded {
  std::string service;
  uint64_t number = 0;
  // See IsAttended.
  bool attended = false;
};
struct Restarted {};
using AgentEvent = std::variant<TaskArrived, StepEnded, ResultStored, OperationIsOver, CancelArrived, LinkOpened,
                                PatienceEnded, Restarted>;
// `state`: the one before the event. Looking leaves no trace, nor does a timer that nobody needs.
bool IsJournalled(const AgentState& state, const AgentEvent& event);

// Effects.
struct RunStep {
  Task task;
};
struct CancelRunning {
  std::string service;
};
struct SendResult {
  TaskResult result;
};
struct ArmPatience {
  std::string service;
  absl::Duration after;
  uint64_t number = 0;
};
using AgentEffect = std::variant<RunStep, CancelRunning, SendResult, ArmPatience>;

struct AgentDecision {
  AgentState state;
  std::vector<AgentEffect> effects;
};

// Whether the controller can be trusted to come back to a committed host: it is connected, and has not said that the
// operation is over. It may have other hosts to wait for, for as long as a deploy takes.
bool IsAttended(const AgentState& state, const std::string& service, bool connected);

// True when the event begins something, now or next: that must not happen unless it is in the journal. Where it cannot
// be written, a step that is known already is still answered as ever.
bool BeginsSomething(const AgentDecision& decision);

// The operation that is not over on this host: it holds a committed state, or waits for CI. Empty if none.
std::string OpenOperation(const AgentState& state, const std::string& service);

inline constexpr size_t kResultsKept = 100;
inline constexpr size_t kMostLooking = 16;

// Total. `services`: what the local file names; a task for another one is refused. Whoever carries RunStep out runs the
// steps of a service one after another.
AgentDecision Decide(AgentState state, const AgentEvent& event, const std::vector<std::string>& services);

// Steps that the agent takes by its own hand carry ids that begin like this: "alone/OPERATION/verify".
inline constexpr char kAlonePrefix[] = "alone/";

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_TASK_AGENT_STATE_H_
