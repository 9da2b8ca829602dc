#include "agent/core/task/agent_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace rb::agent {
namespace {

bool ReadsOnly(const Task& task) { return std::holds_alternative<InspectStep>(task.step); }

// Waits for somebody to take it over, and was not told yet that nobody will.
bool Holds(const ServiceState& service, const std::string& operation_id) {
  return service.unattended.has_value() && service.unattended->operation_id == operation_id &&
         !service.unattended->over;
}

// One that failed leaves the tree to the controller, which says when the operation is over.
bool EndsRedeploy(const Task& task, const TaskResult& result) {
  if (std::holds_alternative<PrepareStep>(task.step)) return !result.status.ok();
  return result.status.ok() &&
         (std::holds_alternative<KeepStep>(task.step) || std::holds_alternative<RevertStep>(task.step));
}

TaskResult Refused(const Task& task, const absl::Status& status) {
  TaskResult result;
  result.operation_id = task.operation_id;
  result.step_id = task.step_id;
  result.service = task.service;
  result.status = status;
  return result;
}

class Decider {
 public:
  Decider(AgentState state, const std::vector<std::string>& services) : state_(std::move(state)), services_(services) {}

  void operator()(const TaskArrived& event) {
    const Task& task = event.task;
    if (std::find(services_.begin(), services_.end(), task.service) == services_.end()) {
      Send(Refused(task, absl::NotFoundError(absl::StrCat("this host has no service ", task.service,
                                                          ". Nothing was changed. Add it to agent.yaml"))));
      return;
    }
    ServiceState& service = state_.services[task.service];
    for (const TaskResult& result : service.ended) {
      if (result.step_id == task.step_id) {
        Send(result);
        return;
      }
    }
    if (service.running.has_value() && service.running->step_id == task.step_id) return;
    if (service.next.has_value() && service.next->step_id == task.step_id) return;
    if (ReadsOnly(task)) {
      Look(&service, task);
      return;
    }
    if (task.fencing_number < service.highest_fencing_number) {
      Send(Refused(task, absl::FailedPreconditionError(absl::StrCat("fencing number ", task.fencing_number,
                                                                    " is older than ", service.highest_fencing_number,
                                                                    ", which a newer operation holds. Nothing "
                                                                    "was changed"))));
      return;
    }
    service.highest_fencing_number = task.fencing_number;
    if (service.running.has_value()) {
      // A revert does not wait for a verification or a preparation; and whoever asks for the next step has given up
      // waiting for a verdict, or does not know of ours.
      const bool is_revert = std::holds_alternative<RevertStep>(task.step);
      const bool only_looks = std::holds_alternative<VerifyStep>(service.running->step) ||
                              std::holds_alternative<AwaitStep>(service.running->step);
      if (is_revert || (only_looks && !service.next.has_value())) {
        effects_.emplace_back(CancelRunning{task.service});
        service.next = task;
      } else {
        Refuse(service, task);
      }
      return;
    }
    // A proof or an inspection gives way.
    if (!service.looking.empty()) effects_.emplace_back(CancelRunning{task.service});
    Begin(&service, task);
  }

  void operator()(const StepEnded& event) {
    const auto found = state_.services.find(event.result.service);
    if (found == state_.services.end()) return;
    ServiceState& service = found->second;
    const auto looked = std::find_if(service.looking.begin(), service.looking.end(),
                                     [&](const Task& task) { return task.step_id == event.result.step_id; });
    if (looked != service.looking.end()) {
      service.looking.erase(looked);
      Send(event.result);
      return;
    }
    if (!service.running.has_value() || service.running->step_id != event.result.step_id) return;
    const Task task = *std::exchange(service.running, std::nullopt);
    const bool alone = absl::StartsWith(task.step_id, kAlonePrefix);
    TaskResult result = event.result;
    result.done_alone = alone;
    service.ended.push_back(result);
    if (service.ended.size() > kResultsKept) service.ended.pop_front();
    state_.owed.push_back(result.step_id);
    if (state_.owed.size() > kResultsKept) state_.owed.pop_front();
    const auto* commit = std::get_if<CommitStep>(&task.step);
    const bool committed = commit != nullptr && result.status.ok() && result.state == HostState::kCommitted;
    // Whoever waits comes first.
    const bool goes_on = committed && !commit->next_step_id.empty() && !service.next.has_value();
    if (goes_on) result.began_step_id = commit->next_step_id;
    Send(result);
    if (commit != nullptr && result.state == HostState::kCommitted) {
      Unattended unattended;
      unattended.operation_id = task.operation_id;
      unattended.policy = commit->unattended;
      unattended.number = ++state_.unattended_count;
      service.unattended = unattended;
      effects_.emplace_back(ArmPatience{task.service, unattended.policy.patience, unattended.number});
    }
    if (goes_on) {
      Task verification;
      verification.operation_id = task.operation_id;
      verification.step_id = commit->next_step_id;
      verification.fencing_number = task.fencing_number;
      verification.service = task.service;
      verification.step = VerifyStep{commit->unattended.verify, false};
      Begin(&service, verification);
    }
    if (service.awaits_ci_for == task.operation_id && EndsRedeploy(task, result)) service.awaits_ci_for.clear();
    if (alone) AfterAlone(&service, task, result);
    if (service.next.has_value()) Begin(&service, *std::exchange(service.next, std::nullopt));
  }

  void operator()(const ResultStored& event) {
    state_.owed.erase(std::remove(state_.owed.begin(), state_.owed.end(), event.step_id), state_.owed.end());
  }

  void operator()(const OperationIsOver& event) {
    for (auto& [name, service] : state_.services) {
      if (Holds(service, event.operation_id)) service.unattended->over = true;
      if (service.awaits_ci_for == event.operation_id) service.awaits_ci_for.clear();
    }
  }

  void operator()(const CancelArrived& event) {
    for (const auto& [name, service] : state_.services) {
      if (service.running.has_value() && service.running->step_id == event.step_id) {
        effects_.emplace_back(CancelRunning{name});
      }
    }
  }

  void operator()(const LinkOpened&) {
    for (const std::string& step_id : state_.owed) {
      for (const auto& [name, service] : state_.services) {
        for (const TaskResult& result : service.ended) {
          if (result.step_id == step_id) Send(result);
        }
      }
    }
  }

  void operator()(const PatienceEnded& event) {
    const auto found = state_.services.find(event.service);
    if (found == state_.services.end()) return;
    ServiceState& service = found->second;
    if (!service.unattended.has_value() || service.unattended->number != event.number) return;
    if (service.running.has_value() || event.attended) {
      // Somebody is at work after all; look again later.
      effects_.emplace_back(ArmPatience{event.service, service.unattended->policy.patience, event.number});
      return;
    }
    Task task;
    task.operation_id = service.unattended->operation_id;
    task.step_id = absl::StrCat(kAlonePrefix, task.operation_id, "/verify");
    task.fencing_number = service.highest_fencing_number;
    task.service = event.service;
    task.step = VerifyStep{service.unattended->policy.verify, false};
    Begin(&service, task);
  }

  void operator()(const Restarted&) {
    for (auto& [name, service] : state_.services) {
      // What was accepted is finished: every step can be repeated. Inspections are asked for again by who wants them.
      if (service.running.has_value()) {
        effects_.emplace_back(RunStep{*service.running});
      } else if (service.next.has_value()) {
        Begin(&service, *std::exchange(service.next, std::nullopt));
      }
      if (service.unattended.has_value()) {
        effects_.emplace_back(ArmPatience{name, service.unattended->policy.patience, service.unattended->number});
      }
    }
  }

  AgentDecision Take() { return {std::move(state_), std::move(effects_)}; }

 private:
  void Refuse(const ServiceState& service, const Task& task) {
    Send(Refused(task, absl::UnavailableError(absl::StrCat("step ", service.running->step_id,
                                                           " is running on this host; it was not disturbed"))));
  }

  // Looking changes nothing: no number is too old for it, and it raises none.
  void Look(ServiceState* service, const Task& task) {
    for (const Task& looking : service->looking) {
      if (looking.step_id == task.step_id) return;
    }
    if (service->running.has_value()) {
      Refuse(*service, task);
      return;
    }
    if (service->looking.size() >= kMostLooking) {
      Send(Refused(task, absl::UnavailableError("too many are looking at this service already")));
      return;
    }
    // Whoever looks last waits for it.
    if (!service->looking.empty()) effects_.emplace_back(CancelRunning{task.service});
    service->looking.push_back(task);
    effects_.emplace_back(RunStep{task});
  }

  void Send(TaskResult result) { effects_.emplace_back(SendResult{std::move(result)}); }

  void Begin(ServiceState* service, const Task& task) {
    // Whoever verifies, keeps or reverts has taken over from the timer.
    const auto* verification = std::get_if<VerifyStep>(&task.step);
    const bool takes_over = (verification != nullptr && !verification->of_what_runs) ||
                            std::holds_alternative<KeepStep>(task.step) ||
                            std::holds_alternative<RevertStep>(task.step);
    if (takes_over && !absl::StartsWith(task.step_id, kAlonePrefix) && service->unattended.has_value()) {
      if (verification != nullptr) {
        // The verdict has to be acted on as well; the controller may be lost before it does.
        const Unattended& old = *service->unattended;
        Unattended again = old;
        again.number = ++state_.unattended_count;
        service->unattended = again;
        const VerifyPolicy& verify = verification->policy;
        effects_.emplace_back(
            ArmPatience{task.service, verify.deadline + verify.soak + again.policy.patience, again.number});
      } else {
        service->unattended.reset();
      }
    }
    // It supersedes what an earlier operation has left here.
    if (std::holds_alternative<PrepareStep>(task.step) && service->unattended.has_value() &&
        service->unattended->operation_id != task.operation_id) {
      service->unattended.reset();
    }
    if (const auto* prepare = std::get_if<PrepareStep>(&task.step)) {
      service->awaits_ci_for = prepare->method == Method::kRedeploy ? task.operation_id : "";
    }
    service->running = task;
    effects_.emplace_back(RunStep{task});
  }

  void AfterAlone(ServiceState* service, const Task& task, const TaskResult& result) {
    // Who comes next takes over.
    if (!service->unattended.has_value() || service->next.has_value()) return;
    const UnattendedPolicy policy = service->unattended->policy;
    if (!std::holds_alternative<VerifyStep>(task.step)) {
      service->unattended.reset();
      return;
    }
    const bool healthy = result.verdict == Verdict::kHealthy;
    const bool undo = healthy ? policy.undo_when_unconfirmed : policy.undo_when_unhealthy;
    service->unattended.reset();
    // Kept as it is: a lost report alone never undoes a healthy host.
    if (!undo) return;
    Task revert;
    revert.operation_id = task.operation_id;
    revert.step_id = absl::StrCat(kAlonePrefix, task.operation_id, "/revert");
    revert.fencing_number = task.fencing_number;
    revert.service = task.service;
    RevertStep step;
    step.reason = healthy ? "nobody confirmed the deploy in time" : "unhealthy, and the controller was not heard from";
    step.verify = policy.verify;
    revert.step = step;
    Begin(service, revert);
  }

  AgentState state_;
  const std::vector<std::string>& services_;
  std::vector<AgentEffect> effects_;
};

}  // namespace

bool IsJournalled(const AgentState& state, const AgentEvent& event) {
  if (const auto* arrived = std::get_if<TaskArrived>(&event)) return !ReadsOnly(arrived->task);
  if (const auto* patience = std::get_if<PatienceEnded>(&event)) return !patience->attended;
  if (const auto* ended = std::get_if<StepEnded>(&event)) {
    const auto found = state.services.find(ended->result.service);
    return found == state.services.end() ||
           std::none_of(found->second.looking.begin(), found->second.looking.end(),
                        [&](const Task& task) { return task.step_id == ended->result.step_id; });
  }
  if (const auto* over = std::get_if<OperationIsOver>(&event)) {
    return std::any_of(state.services.begin(), state.services.end(), [&](const auto& service) {
      return Holds(service.second, over->operation_id) || service.second.awaits_ci_for == over->operation_id;
    });
  }
  return std::holds_alternative<ResultStored>(event);
}

bool IsAttended(const AgentState& state, const std::string& service, bool connected) {
  const auto found = state.services.find(service);
  if (!connected || found == state.services.end()) return false;
  return !found->second.unattended.has_value() || !found->second.unattended->over;
}

bool BeginsSomething(const AgentDecision& decision) {
  return std::any_of(decision.effects.begin(), decision.effects.end(), [](const AgentEffect& effect) {
    return std::holds_alternative<RunStep>(effect) || std::holds_alternative<CancelRunning>(effect);
  });
}

std::string OpenOperation(const AgentState& state, const std::string& service) {
  const auto found = state.services.find(service);
  if (found == state.services.end()) return "";
  return found->second.unattended.has_value() ? found->second.unattended->operation_id : found->second.awaits_ci_for;
}

AgentDecision Decide(AgentState state, const AgentEvent& event, const std::vector<std::string>& services) {
  Decider decider(std::move(state), services);
  std::visit(decider, event);
  return decider.Take();
}

}  // namespace rb::agent
