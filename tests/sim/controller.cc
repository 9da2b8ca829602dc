#include "tests/sim/controller.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "tests/sim/monitor.h"
#include "tests/sim/translate.h"

namespace rb::sim {
namespace {

constexpr absl::Duration kInspectPatience = absl::Seconds(20);
constexpr absl::Duration kFetchPatience = absl::Minutes(5);
constexpr absl::Duration kStoreRetry = absl::Seconds(2);

}  // namespace

void SimController::After(absl::Duration delay, World::Action action) {
  world_.After(absl::ToInt64Nanoseconds(delay), [this, process = process_, action = std::move(action)]() mutable {
    if (up_ && process == process_) action();
  });
}

bool SimController::DiesHere(absl::string_view place) {
  if (!world_.faults() || !world_.random().PerMille(world_.scenario().crash_per_mille)) return false;
  world_.Log("controller: FAULT: dies ", place);
  Crash(world_.random().Between(100 * kMillisecond, 60 * kSecond));
  return true;
}

const SimController::Stored* SimController::Find(const std::string& id) const {
  for (const Stored& stored : store_) {
    if (stored.id == id) return &stored;
  }
  return nullptr;
}

controller::Operation SimController::Stored::Read() const {
  controller::Operation operation;
  for (const controller::Event& event : events) operation = controller::Decide(std::move(operation), event).operation;
  return operation;
}

void SimController::Crash(Nanos away) {
  if (!up_) return;
  world_.Log("controller: FAULT: killed, back in ", away / kMillisecond, " ms");
  up_ = false;
  running_.clear();
  inspecting_.clear();
  world_.ControllerIsGone(world_.random().Percent(30));
  world_.After(away, [this] {
    if (!up_) Boot();
  });
}

void SimController::Boot() {
  ++process_;
  up_ = true;
  world_.Log("controller: starts, process ", process_);
  for (std::string& lock : locks_) {
    const Stored* holder = Find(lock);
    if (holder == nullptr || holder->ended()) lock.clear();
  }
  world_.monitor().OnControllerReplayed();
  std::vector<std::pair<std::string, std::vector<controller::Effect>>> outstanding;
  for (size_t i = 0; i < store_.size(); ++i) {
    const Stored& stored = store_[i];
    controller::Operation operation = stored.Read();
    if (Fingerprint(operation) != Fingerprint(stored.replayed)) {
      world_.Violate("the journal gives the same state again",
                     absl::StrCat("the controller reads another ", stored.id));
      return;
    }
    if (controller::IsFinal(operation.state)) continue;
    Running running;
    running.stored = i;
    const controller::Event& last = stored.events.back();
    // As the driver does it: its clock is all there is to tell how long no controller ran.
    const absl::Duration away = std::max(absl::ZeroDuration(), world_.Now(World::kController) - last.at);
    running.accepted_at = world_.now() - absl::ToInt64Nanoseconds(last.elapsed) - absl::ToInt64Nanoseconds(away);
    running.operation = std::move(operation);
    outstanding.emplace_back(stored.id, controller::OutstandingEffects(running.operation, ""));
    running_[stored.id] = std::move(running);
  }
  const uint64_t process = process_;
  for (const auto& [id, effects] : outstanding) {
    CarryOut(id, effects);
    if (process != process_ || !up_) return;
  }
}

controller::Event SimController::NewEvent(const Running& running) const {
  controller::Event event;
  event.sequence = running.operation.last_sequence + 1;
  event.at = world_.Now(World::kController);
  event.elapsed = absl::Nanoseconds(world_.now() - running.accepted_at);
  return event;
}

bool SimController::Append(Running* running, const controller::Event& event) {
  if (store_full_) return false;
  if (const auto* accepted = std::get_if<controller::Accepted>(&event.body)) {
    for (const Stored& stored : store_) {
      if (!accepted->idempotency_key.empty() && stored.key == accepted->idempotency_key) return false;
    }
    Stored stored;
    stored.id = accepted->id;
    stored.service = world_.ServiceNumber(accepted->plan.spec.service);
    stored.key = accepted->idempotency_key;
    running->stored = store_.size();
    store_.push_back(std::move(stored));
  } else if (world_.bug() == Bug::kControllerRecordLost && world_.random().Percent(2)) {
    return true;
  }
  Stored& stored = store_[running->stored];
  stored.events.push_back(event);
  stored.replayed = controller::Decide(std::move(stored.replayed), event).operation;
  if (std::holds_alternative<controller::Accepted>(event.body)) world_.monitor().OnAccepted(stored.replayed);
  if (stored.ended()) world_.monitor().OnEnded(stored.replayed);
  return true;
}

bool SimController::Take(const std::string& id, const controller::Event& event) {
  Running& running = running_.at(id);
  const uint64_t process = process_;
  if (DiesHere("before it writes down")) return false;
  controller::Decision decision = controller::Decide(running.operation, event);
  if (world_.bug() == Bug::kControllerActsBeforePersisting) {
    CarryOut(id, decision.effects);
    if (process != process_ || !up_ || DiesHere("before it writes down, too late")) return false;
  }
  if (!Append(&running, event)) {
    world_.Log("controller: cannot store what happened to ", id);
    return false;
  }
  if (world_.logging()) {
    for (const auto& [host, text] : decision.notes) world_.Log("controller: ", id, " ", host, " ", text);
  }
  if (DiesHere("after it has written down")) return false;
  running.operation = std::move(decision.operation);
  CheckReplay(running);
  const bool ended = controller::IsFinal(running.operation.state);
  if (world_.bug() != Bug::kControllerActsBeforePersisting) CarryOut(id, decision.effects);
  if (process != process_ || !up_) return false;
  if (ended) running_.erase(id);
  return true;
}

void SimController::CheckReplay(const Running& running) {
  const Stored& stored = store_[running.stored];
  if (Fingerprint(stored.replayed) != Fingerprint(running.operation)) {
    world_.Violate("the journal gives the same state again",
                   absl::StrCat("the controller believes something of ", stored.id, " that its journal does not say"));
  }
}

void SimController::SendStep(const controller::Operation& operation, const controller::StartStep& step) {
  world_.Log("controller: sends ", step.step_id);
  world_.Send(world_.HostNumber(step.host), TaskFor(operation, step));
}

void SimController::SendAfterDelay(const controller::Operation& operation, const controller::StartStep& step) {
  if (step.delay == absl::ZeroDuration()) {
    SendStep(operation, step);
    return;
  }
  After(step.delay, [this, id = operation.id, step] {
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    for (const controller::HostProgress& host : found->second.operation.hosts) {
      if (host.step_id == step.step_id) SendStep(found->second.operation, step);
    }
  });
}

void SimController::ArmWait(const std::string& id, const controller::ArmWait& wait, absl::Duration after) {
  After(after, [this, id, wait] {
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    controller::Event event = NewEvent(found->second);
    event.body = controller::WaitEnded{wait.number};
    const uint64_t process = process_;
    if (!Take(id, event) && process == process_ && up_) ArmWait(id, wait, kStoreRetry);
  });
}

void SimController::CarryOut(const std::string& id, const std::vector<controller::Effect>& effects) {
  const uint64_t process = process_;
  for (const controller::Effect& effect : effects) {
    const controller::Operation& operation = running_.at(id).operation;
    if (const auto* step = std::get_if<controller::StartStep>(&effect)) {
      if (!step->has_begun) SendAfterDelay(operation, *step);
      if (world_.bug() != Bug::kDeadlineForgotten) ArmDeadline(id, *step, step->delay + step->deadline);
      if (world_.bug() == Bug::kLockReleasedEarly && step->kind == controller::StepKind::kCommit) ReleaseLock(id);
      if ((world_.bug() == Bug::kCommitBeforeAllPrepared && step->kind == controller::StepKind::kPrepare) ||
          (world_.bug() == Bug::kWaveGateSkipped && step->kind == controller::StepKind::kVerify)) {
        TakeSentForDone(id, *step);
      }
    } else if (const auto* cancel = std::get_if<controller::CancelStep>(&effect)) {
      world_.Send(world_.HostNumber(cancel->host), CancelMessage{cancel->step_id});
    } else if (const auto* wait = std::get_if<controller::ArmWait>(&effect)) {
      ArmWait(id, *wait, wait->after);
    } else if (std::holds_alternative<controller::TakeLock>(effect)) {
      After(absl::ZeroDuration(), [this, id] { RecordLock(id); });
    } else if (std::holds_alternative<controller::ReleaseLock>(effect)) {
      ReleaseLock(id);
    }
    if (DiesHere("between effects") || process != process_) return;
  }
}

void SimController::TakeSentForDone(const std::string& id, const controller::StartStep& step) {
  After(absl::Milliseconds(1), [this, id, step] {
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    controller::Event event = NewEvent(found->second);
    controller::StepResult result;
    result.step_id = step.step_id;
    const bool is_prepare = step.kind == controller::StepKind::kPrepare;
    result.state = is_prepare ? controller::HostState::kPrepared : controller::HostState::kCommitted;
    result.verdict = is_prepare ? controller::Verdict::kUnknown : controller::Verdict::kHealthy;
    event.body = controller::StepEnded{step.host, result};
    Take(id, event);
  });
}

void SimController::RecordLock(const std::string& id) {
  const auto found = running_.find(id);
  if (found == running_.end() || found->second.operation.state != controller::OperationState::kPlanned) return;
  bool taken = TakeLock(store_[found->second.stored].service, id);
  if (taken) {
    controller::Event event = NewEvent(found->second);
    event.body = controller::LockTaken{};
    const uint64_t process = process_;
    taken = Take(id, event);
    if (process != process_ || !up_) return;
  }
  if (!taken) After(kStoreRetry, [this, id] { RecordLock(id); });
}

bool SimController::TakeLock(int service, const std::string& id) {
  if (store_full_ || (!locks_[service].empty() && locks_[service] != id)) return false;
  locks_[service] = id;
  return true;
}

void SimController::ReleaseLock(const std::string& id) {
  if (store_full_) return;
  for (std::string& lock : locks_) {
    if (lock == id) lock.clear();
  }
}

void SimController::ArmDeadline(const std::string& id, const controller::StartStep& step, absl::Duration after) {
  const absl::Time due = world_.Now(World::kController) + after;
  After(after, [this, id, step, due] {
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    if (world_.bug() == Bug::kDeadlineByWallClock && world_.Now(World::kController) < due) {
      return ArmDeadline(id, step, due - world_.Now(World::kController));
    }
    const auto& hosts = found->second.operation.hosts;
    const bool waits = std::any_of(hosts.begin(), hosts.end(),
                                   [&](const controller::HostProgress& host) { return host.step_id == step.step_id; });
    if (!waits) return;
    world_.Log("controller: no answer to ", step.step_id, " in time");
    controller::Event event = NewEvent(found->second);
    event.body = controller::StepTimedOut{step.host, step.step_id};
    const uint64_t process = process_;
    if (!Take(id, event) && process == process_ && up_) ArmDeadline(id, step, kStoreRetry);
  });
}

// ---- planning

controller::PlanningHistory SimController::HistoryFor(const controller::Scope& scope) {
  controller::PlanningHistory history;
  history.now = world_.Now(World::kController);
  history.lock_holder = locks_[world_.ServiceNumber(scope.spec.service)];
  history.locked_environment = scope.spec.environment;
  if (scope.spec.kind != controller::OperationKind::kUndo) return history;
  if (const Stored* stored = Find(scope.spec.undo_operation_id); stored != nullptr) {
    history.undo_releases.emplace();
    for (const controller::HostProgress& host : stored->replayed.hosts) {
      if (!host.replaced_release.empty()) (*history.undo_releases)[host.plan.host] = host.replaced_release;
    }
  }
  return history;
}

void SimController::MakePlanFor(const controller::OperationSpec& spec, std::function<void(controller::Plan)> done) {
  Inspecting inspecting;
  inspecting.scope = controller::ResolveScope(spec, world_.fleet());
  inspecting.done = std::move(done);
  const std::string key = absl::StrCat("plan-", ++plans_);
  if (!inspecting.scope.refusal.refused()) inspecting.history = HistoryFor(inspecting.scope);
  if (!inspecting.scope.refusal.refused() && inspecting.history.lock_holder.empty()) {
    for (const std::string& host : inspecting.scope.hosts) {
      std::string undo_release;
      if (spec.kind == controller::OperationKind::kUndo) {
        if (!inspecting.history.undo_releases.has_value() || inspecting.history.undo_releases->count(host) == 0) {
          inspecting.inspections[host].connected = true;
          continue;
        }
        undo_release = inspecting.history.undo_releases->at(host);
      }
      if (world_.Send(world_.HostNumber(host),
                      InspectTask(inspecting.scope.spec, absl::StrCat(key, "/", host), undo_release))) {
        inspecting.waiting.insert(host);
      } else {
        inspecting.inspections[host].connected = false;
      }
    }
  }
  const bool wait = !inspecting.waiting.empty();
  inspecting_[key] = std::move(inspecting);
  if (!wait) {
    FinishInspecting(key);
    return;
  }
  After(spec.kind == controller::OperationKind::kDeploy ? kFetchPatience : kInspectPatience,
        [this, key] { FinishInspecting(key); });
}

void SimController::FinishInspecting(const std::string& key) {
  const auto found = inspecting_.find(key);
  if (found == inspecting_.end()) return;
  Inspecting inspecting = std::move(found->second);
  inspecting_.erase(found);
  for (const std::string& host : inspecting.waiting) {
    inspecting.inspections[host].connected = true;
    inspecting.inspections[host].error = "the agent did not answer in time";
  }
  if (!inspecting.scope.refusal.refused()) {
    inspecting.history.lock_holder = locks_[world_.ServiceNumber(inspecting.scope.spec.service)];
  }
  inspecting.done(controller::MakePlan(inspecting.scope, world_.fleet(), inspecting.inspections, inspecting.history));
}

void SimController::Start(const controller::OperationSpec& spec, const std::string& key,
                          std::function<void(const Answer&)> done) {
  const auto known = [this, key](Answer* answer) {
    for (const Stored& stored : store_) {
      if (stored.key == key) answer->id = stored.id;
    }
    return !answer->id.empty();
  };
  if (Answer again; known(&again)) {
    done(again);
    return;
  }
  MakePlanFor(spec, [this, key, known, done = std::move(done)](controller::Plan plan) {
    Answer answer;
    if (known(&answer)) {
      done(answer);
      return;
    }
    if (plan.refusal.refused()) {
      answer.refusal = std::move(plan.refusal);
      done(answer);
      return;
    }
    answer.refusal.code = controller::Refusal::Code::kStoreFull;
    if (store_full_) {
      done(answer);
      return;
    }
    if (world_.bug() != Bug::kFencingNumberUsedTwice || fencing_number_ == 0) ++fencing_number_;
    controller::Accepted accepted;
    accepted.id = absl::StrCat("op-", ++operations_);
    accepted.plan = std::move(plan);
    accepted.requested_by = "operator";
    accepted.idempotency_key = key;
    accepted.fencing_number = fencing_number_;
    const std::string id = accepted.id;
    const int service = world_.ServiceNumber(accepted.plan.spec.service);
    if (!TakeLock(service, id)) {
      answer.refusal.code = controller::Refusal::Code::kLocked;
      answer.refusal.holder_operation_id = locks_[service];
      done(answer);
      return;
    }
    Running running;
    running.accepted_at = world_.now();
    controller::Event event = NewEvent(running);
    event.body = std::move(accepted);
    running_[id] = std::move(running);
    const uint64_t process = process_;
    const bool taken = Take(id, event);
    if (process != process_ || !up_) return;
    if (!taken) {
      running_.erase(id);
      ReleaseLock(id);
      done(answer);
      return;
    }
    answer.refusal = controller::Refusal();
    answer.id = id;
    done(answer);
  });
}

bool SimController::Ask(const std::string& id, const controller::OperatorRequest& request) {
  const auto found = running_.find(id);
  if (found == running_.end() || !controller::WhyRefused(found->second.operation, request).empty()) return false;
  controller::Event event = NewEvent(found->second);
  std::visit([&event](const auto& body) { event.body = body; }, request);
  return Take(id, event);
}

// ---- agents

void SimController::OnAgentConnected(int host) {
  world_.Log("controller: ", World::HostName(host), " is connected");
  ++connections_[host];
  for (const auto& [id, running] : running_) {
    for (const controller::Effect& effect : controller::OutstandingEffects(running.operation, World::HostName(host))) {
      if (const auto* step = std::get_if<controller::StartStep>(&effect)) SendStep(running.operation, *step);
    }
  }
}

void SimController::OnAgentLost(int host) {
  world_.Log("controller: ", World::HostName(host), " is lost");
  std::vector<std::string> ready;
  for (auto& [key, inspecting] : inspecting_) {
    if (inspecting.waiting.erase(World::HostName(host)) == 0) continue;
    inspecting.inspections[World::HostName(host)].connected = false;
    if (inspecting.waiting.empty()) ready.push_back(key);
  }
  for (const std::string& key : ready) FinishInspecting(key);
}

void SimController::OnReport(int host, const Report& report) {
  if (running_.count(report.open_operation_id) == 0) world_.Send(host, OverMessage{report.open_operation_id});
}

void SimController::OnResult(int host, const agent::TaskResult& result) {
  const std::string& id = result.operation_id;
  const std::string name = World::HostName(host);
  if (const size_t slash = id.find('/'); slash != std::string::npos) {
    const auto found = inspecting_.find(id.substr(0, slash));
    if (found != inspecting_.end() && found->second.waiting.erase(name) != 0) {
      found->second.inspections[name] = InspectionFor(result);
      if (found->second.waiting.empty()) FinishInspecting(id.substr(0, slash));
    }
    return;
  }
  world_.Log("controller: gets the result of ", result.step_id);
  const uint64_t process = process_;
  const auto found = running_.find(id);
  if (found != running_.end()) {
    if (world_.bug() == Bug::kAcknowledgedBeforeStored) {
      world_.monitor().OnResultAcknowledged(host, id, result.step_id);
      world_.Send(host, ResultStoredMessage{result.step_id});
    }
    controller::Event event = NewEvent(found->second);
    event.body = controller::StepEnded{name, ResultFor(result)};
    if (!Take(id, event)) {
      if (process != process_ || !up_) return;
      After(kStoreRetry, [this, host, result, connection = connections_[host]] {
        if (connections_[host] != connection) return;
        agent::TaskResult again = result;
        again.began_step_id.clear();
        OnResult(host, again);
      });
      return;
    }
  }
  if (DiesHere("before it acknowledges")) return;
  world_.monitor().OnResultAcknowledged(host, id, result.step_id);
  world_.Send(host, ResultStoredMessage{result.step_id});
}

}  // namespace rb::sim
