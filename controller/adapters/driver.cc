#include "controller/adapters/driver.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "common/failpoint.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/status.h"
#include "common/text.h"
#include "controller/adapters/history.h"
#include "controller/adapters/wire.h"

namespace rb::controller {
namespace {

constexpr absl::Duration kStoreRetry = absl::Seconds(2);
constexpr absl::Duration kGiveWayPatience = absl::Minutes(2);
// Whose end may not have been told before the controller died.
constexpr size_t kHistoryForObservers = 50;
constexpr size_t kMostRunning = 200;
constexpr size_t kHistoryForIntents = 500;
constexpr size_t kMostListed = 10000;
constexpr size_t kMostInOneCommit = 500;
constexpr absl::Duration kAcknowledgeAfter = absl::Milliseconds(500);
constexpr absl::Duration kAcknowledgeAtLast = absl::Seconds(10);
constexpr absl::Duration kAcknowledgePause = absl::Milliseconds(20);
constexpr size_t kAcknowledgedAtOnce = 50;
constexpr size_t kLongestKey = 64;

}  // namespace

Driver::Driver(Fleet fleet, Store& store, AgentSender& sender, EventLoop& loop, Clock& clock,
               ControllerMetrics& metrics)
    : fleet_(std::move(fleet)),
      store_(store),
      sender_(sender),
      loop_(loop),
      clock_(clock),
      metrics_(metrics),
      agents_(fleet_, clock_),
      quarantine_(fleet_, store_, sender_, clock_),
      planning_(fleet_, store_, sender_, loop_, clock_, agents_, intents_, quarantine_.all()),
      queue_(store_, loop_, clock_, [this](StartRequest request) { TryToStart(std::move(request)); }),
      watchers_(loop_, clock_, [this](const std::string& id) { return ViewOf(id); }),
      doctor_(fleet_, store_, sender_, loop_, clock_, agents_) {}

void Driver::Fold(Running* running, const Event& event, std::vector<Effect>* effects) {
  Decision decision = Decide(std::move(running->operation), event);
  running->operation = std::move(decision.operation);
  for (const auto& [host, text] : decision.notes) {
    v1::OperationEvent line;
    line.set_sequence(running->history.size() + 1);
    *line.mutable_at() = ToProto(event.at);
    line.set_host(host);
    line.set_text(text);
    line.set_state(ToWire(running->operation.state));
    running->history.push_back(std::move(line));
  }
  *effects = std::move(decision.effects);
}

absl::StatusOr<std::unique_ptr<Driver::Running>> Driver::Load(const std::string& id) {
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> events, store_.Events(id));
  auto running = std::make_unique<Running>();
  absl::Duration elapsed;
  absl::Time at;
  for (const std::string& bytes : events) {
    RB_ASSIGN_OR_RETURN(const Event event, DecodeEvent(bytes));
    std::vector<Effect> dropped;
    Fold(running.get(), event, &dropped);
    elapsed = event.elapsed;
    at = event.at;
  }
  // Time went on while no controller ran; the wall clock is all there is to tell by how much.
  const absl::Duration away = std::max(absl::ZeroDuration(), clock_.Now() - at);
  running->accepted_monotonic = clock_.Monotonic() - elapsed - away;
  return running;
}

absl::Status Driver::Resume() {
  RB_RETURN_IF_ERROR(quarantine_.Load());
  RB_RETURN_IF_ERROR(store_.ReleaseStaleLocks());
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> ids, store_.Unfinished());
  for (const std::string& id : ids) {
    RB_ASSIGN_OR_RETURN(std::unique_ptr<Running> running, Load(id));
    LogInfo("controller", "resuming ", id, ", ", std::string(NameOf(running->operation.state)));
    Running* const raw = running.get();
    running_[id] = std::move(running);
    CarryOut(raw, OutstandingEffects(raw->operation, ""));
    // The last event was written, and how it ended was not.
    if (IsFinal(raw->operation.state)) Finish(id);
  }
  if (!observers_.empty()) {
    RB_ASSIGN_OR_RETURN(const std::vector<ListedOperation> newest, store_.List("", "", "", kHistoryForObservers));
    for (auto stored = newest.rbegin(); stored != newest.rend(); ++stored) {
      RB_ASSIGN_OR_RETURN(const std::unique_ptr<Running> one, Load(stored->id));
      for (DriverObserver* observer : observers_) observer->OnState(one->operation);
    }
  }
  return LearnIntents();
}

absl::Status Driver::LearnIntents() {
  RB_ASSIGN_OR_RETURN(std::vector<ListedOperation> newest, store_.List("", "", "", kHistoryForIntents));
  std::reverse(newest.begin(), newest.end());
  for (const ListedOperation& stored : newest) {
    v1::Operation operation;
    if (!stored.ended || !operation.ParseFromString(stored.brief)) continue;
    // Older ones nobody can mean any more; when they ended is in what is kept of them in brief.
    if (FromProto(operation.ended_at()) + kIntentLife >= clock_.Now()) {
      RB_ASSIGN_OR_RETURN(const StoredOperation whole, store_.Find(stored.id));
      if (!operation.ParseFromString(whole.snapshot)) continue;
      if (const std::optional<OperationEnd> end = EndOf(operation)) LearnEnd(*end, &intents_);
    }
    metrics_.ended().Learn(operation);
  }
  return absl::OkStatus();
}

Event Driver::NewEvent(const Running& running) const {
  Event event;
  event.sequence = running.operation.last_sequence + 1;
  event.at = clock_.Now();
  event.elapsed = clock_.Monotonic() - running.accepted_monotonic;
  return event;
}

void Driver::SetCi(CiRunner* ci) {
  ci_ = ci;
  planning_.SetCi(ci);
  if (ci == nullptr) return;
  ci->SetSink([this](const std::string& id, const CiRunner::Happened& happened) { return OnCi(id, happened); });
}

bool Driver::OnCi(const std::string& id, const CiRunner::Happened& happened) {
  const auto found = running_.find(id);
  if (found == running_.end()) return true;
  EventBody body;
  std::visit([&body](const auto& one) { body = one; }, happened);
  const absl::Status taken = TakeNow(*found->second, std::move(body));
  if (!taken.ok()) LogError("controller", id, ": ", taken.message(), "; trying again");
  return taken.ok();
}

void Driver::TakeSoon(const Running& running, EventBody body, std::function<void(const absl::Status&)> done) {
  Pending pending;
  pending.id = running.operation.id;
  pending.event = NewEvent(running);
  pending.event.body = std::move(body);
  pending.done = std::move(done);
  pending_.push_back(std::move(pending));
  if (pending_.size() >= kMostInOneCommit) {
    Flush();
  } else if (!flush_posted_) {
    flush_posted_ = true;
    loop_.PostResult([this] {
      flush_posted_ = false;
      Flush();
    });
  }
}

absl::Status Driver::TakeNow(const Running& running, EventBody body) {
  // What came before is not to fail with it, nor the other way round.
  Flush();
  absl::Status taken;
  Pending pending;
  pending.event = NewEvent(running);
  pending.event.body = std::move(body);
  const auto* accepted = std::get_if<Accepted>(&pending.event.body);
  pending.id = accepted != nullptr ? accepted->id : running.operation.id;
  pending.done = [&taken](const absl::Status& status) { taken = status; };
  pending_.push_back(std::move(pending));
  Flush();
  return taken;
}

void Driver::Flush() {
  if (pending_.empty()) return;
  RB_FAILPOINT("controller.driver.before-append");
  std::vector<Pending> batch = std::exchange(pending_, {});
  std::map<std::string, uint64_t> sequences;
  std::vector<StoredEvent> events;
  events.reserve(batch.size());
  for (Pending& pending : batch) {
    const auto found = running_.find(pending.id);
    // Over meanwhile: it changes nothing any more.
    if (found == running_.end()) continue;
    const Operation& operation = found->second->operation;
    uint64_t& sequence = sequences.try_emplace(pending.id, operation.last_sequence).first->second;
    pending.event.sequence = ++sequence;
    StoredEvent stored;
    stored.operation.id = pending.id;
    stored.sequence = sequence;
    stored.event = EncodeEvent(pending.event);
    if (const auto* accepted = std::get_if<Accepted>(&pending.event.body)) {
      const Operation begun = Decide(Operation(), pending.event).operation;
      stored.operation.environment = accepted->plan.spec.environment;
      stored.operation.service = accepted->plan.spec.service;
      const v1::Operation shown = ToWire(begun);
      stored.operation.snapshot = shown.SerializeAsString();
      stored.operation.brief = Brief(shown).SerializeAsString();
      stored.idempotency_key = accepted->idempotency_key;
    }
    events.push_back(std::move(stored));
  }
  if (const absl::Status appended = events.empty() ? absl::OkStatus() : store_.AppendEvents(events); !appended.ok()) {
    for (const Pending& pending : batch) pending.done(appended);
    return;
  }
  RB_FAILPOINT("controller.driver.after-append");
  std::vector<std::vector<Effect>> effects(batch.size());
  std::set<std::string> touched;
  for (size_t i = 0; i < batch.size(); ++i) {
    const auto found = running_.find(batch[i].id);
    if (found == running_.end()) continue;
    const OperationState before = found->second->operation.state;
    Fold(found->second.get(), batch[i].event, &effects[i]);
    const Operation& now = found->second->operation;
    const bool is_new = std::holds_alternative<Accepted>(batch[i].event.body);
    for (DriverObserver* observer : observers_) {
      observer->OnOperation(now, is_new);
      if (is_new || now.state != before) observer->OnState(now);
    }
    touched.insert(batch[i].id);
    if (const auto* ended = std::get_if<StepEnded>(&batch[i].event.body)) {
      watchers_.Touch(batch[i].id, ended->host);
    } else if (const auto* late = std::get_if<StepTimedOut>(&batch[i].event.body)) {
      watchers_.Touch(batch[i].id, late->host);
    } else {
      watchers_.Touch(batch[i].id);
    }
  }
  for (size_t i = 0; i < batch.size(); ++i) {
    const auto found = running_.find(batch[i].id);
    if (found != running_.end()) CarryOut(found->second.get(), effects[i]);
  }
  for (const Pending& pending : batch) pending.done(absl::OkStatus());
  for (const std::string& id : touched) {
    const auto found = running_.find(id);
    if (found != running_.end() && IsFinal(found->second->operation.state)) Finish(id);
  }
}

void Driver::Finish(const std::string& id) {
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  const Running& running = *found->second;
  StoredOperation stored;
  stored.id = id;
  stored.ended = true;
  const v1::Operation shown = Shown(running, nullptr);
  stored.snapshot = shown.SerializeAsString();
  stored.brief = Brief(shown).SerializeAsString();
  absl::Status kept;
  if (!running.end_is_kept) {
    const std::vector<QuarantineChange> changes = quarantine_.ChangesOf(running.operation);
    kept = store_.PutSnapshot(stored, TimesOf(running.operation), kMostTimeSamples, changes);
    if (kept.ok()) {
      found->second->end_is_kept = true;
      quarantine_.Take(changes);
    }
  }
  if (kept.ok() && !RB_PLANTED_BUG("lock-kept")) kept = store_.ReleaseLock(id);
  if (!kept.ok()) {
    LogError("controller", id, " has ended, which cannot be written: ", kept.message(), "; trying again");
    loop_.PostAt(clock_.Monotonic() + kStoreRetry, [this, id] { Finish(id); });
    return;
  }
  watchers_.End(id);
  const std::unique_ptr<Running> over = std::move(found->second);
  running_.erase(found);
  Ended(*over);
}

void Driver::CarryOut(Running* running, const std::vector<Effect>& effects) {
  const std::string id = running->operation.id;
  for (const Effect& effect : effects) {
    if (const auto* step = std::get_if<StartStep>(&effect)) {
      RB_FAILPOINT("controller.driver.before-send");
      if (!step->has_begun) SendStep(running->operation, *step);
      if (step->kind == StepKind::kCommit) RB_FAILPOINT("controller.driver.after-send-commit");
      if (step->kind == StepKind::kVerify) RB_FAILPOINT("controller.driver.after-send-verify");
      if (step->kind == StepKind::kPrepare) RB_FAILPOINT("controller.driver.after-send-prepare");
      if (step->kind == StepKind::kKeep) RB_FAILPOINT("controller.driver.after-send-keep");
      if (step->kind == StepKind::kRevert) RB_FAILPOINT("controller.driver.after-send-revert");
      ArmDeadline(running, *step);
    } else if (const auto* cancel = std::get_if<CancelStep>(&effect)) {
      v1::ConnectResponse message;
      message.mutable_cancel_task()->set_operation_id(id);
      message.mutable_cancel_task()->set_step_id(cancel->step_id);
      sender_.Send(cancel->host, std::move(message));
    } else if (const auto* ask = std::get_if<AskCi>(&effect)) {
      RB_FAILPOINT("controller.driver.before-ask-ci");
      if (ci_ != nullptr) ci_->Ask(id, *ask);
    } else if (const auto* leave = std::get_if<CancelCi>(&effect)) {
      if (ci_ != nullptr) ci_->Cancel(*leave);
    } else if (const auto* wait = std::get_if<ArmWait>(&effect)) {
      loop_.PostAt(clock_.Monotonic() + wait->after, [this, id, number = wait->number] { EndWait(id, number); });
    } else if (std::holds_alternative<TakeLock>(effect)) {
      // The lock was taken when the operation was accepted; this records it.
      loop_.PostResult([this, id] { RecordLock(id); });
    } else if (std::holds_alternative<ReleaseLock>(effect)) {
      RB_FAILPOINT("controller.driver.before-unlock");
      if (const absl::Status released = store_.ReleaseLock(id); !released.ok()) {
        LogError("controller", id, ": ", released.message());
      }
    }
  }
}

void Driver::RecordLock(const std::string& id) {
  const auto found = running_.find(id);
  if (found == running_.end() || found->second->operation.state != OperationState::kPlanned) return;
  const auto again = [this, id](const absl::Status& status) {
    if (status.ok()) return;
    LogError("controller", id, ": ", status.message(), "; trying again");
    loop_.PostAt(clock_.Monotonic() + kStoreRetry, [this, id] { RecordLock(id); });
  };
  const absl::Status taken = TakeLocks(found->second->operation.plan.spec, id, nullptr);
  RB_FAILPOINT("controller.driver.after-lock");
  if (taken.ok()) {
    TakeSoon(*found->second, LockTaken{}, again);
  } else {
    again(taken);
  }
}

void Driver::SendStep(const Operation& operation, const StartStep& step) {
  v1::ConnectResponse message;
  *message.mutable_task() = TaskFor(operation, step);
  if (step.delay == absl::ZeroDuration()) {
    sender_.Send(step.host, std::move(message));
    return;
  }
  loop_.PostAt(clock_.Monotonic() + step.delay, [this, id = operation.id, step, message = std::move(message)] {
    const auto found = running_.find(id);
    if (found == running_.end()) return;
    const HostProgress* host = found->second->operation.Find(step.host);
    if (host != nullptr && host->step_id == step.step_id) sender_.Send(step.host, message);
  });
}

void Driver::EndWait(const std::string& id, uint32_t number) {
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  TakeSoon(*found->second, WaitEnded{number}, [this, id, number](const absl::Status& taken) {
    if (taken.ok()) return;
    LogError("controller", id, ": ", taken.message(), "; trying again");
    loop_.PostAt(clock_.Monotonic() + kStoreRetry, [this, id, number] { EndWait(id, number); });
  });
}

std::string Driver::HolderOf(const std::string& service, const std::string& environment) {
  const absl::StatusOr<std::string> holder = store_.LockHolder(service, environment);
  return holder.ok() ? *holder : "an operation that cannot be read";
}

absl::Status Driver::TakeLocks(const OperationSpec& spec, const std::string& id, std::string* held_environment) {
  for (const std::string& environment : EnvironmentsOf(spec)) {
    const absl::Status taken = store_.TakeLock(spec.service, environment, id);
    if (taken.ok()) continue;
    if (held_environment != nullptr) *held_environment = environment;
    return taken;
  }
  return absl::OkStatus();
}

void Driver::ArmDeadline(Running* running, const StartStep& step) {
  running->deadlines.emplace(clock_.Monotonic() + step.delay + step.deadline,
                             Running::Overdue{step.host, step.step_id, std::nullopt});
  if (!agents_.IsConnected(step.host)) ArmLostDeadline(running, step);
  ArmNextDeadline(running);
}

void Driver::ArmLostDeadline(Running* running, const StartStep& step) {
  if (step.lost_deadline == absl::ZeroDuration()) return;
  running->deadlines.emplace(clock_.Monotonic() + step.delay + step.lost_deadline,
                             Running::Overdue{step.host, step.step_id, agents_.Connection(step.host)});
  ArmNextDeadline(running);
}

// One timer for all of an operation's steps, however many hosts it has.
void Driver::ArmNextDeadline(Running* running) {
  if (running->deadlines.empty() || running->deadlines.begin()->first >= running->armed) return;
  running->armed = running->deadlines.begin()->first;
  loop_.PostAt(running->armed, [this, id = running->operation.id] { LookAtDeadlines(id); });
}

void Driver::LookAtDeadlines(const std::string& id) {
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  Running* const running = found->second.get();
  running->armed = absl::InfiniteDuration();
  const absl::Duration now = clock_.Monotonic();
  while (!running->deadlines.empty() && running->deadlines.begin()->first <= now) {
    const Running::Overdue overdue = std::move(running->deadlines.begin()->second);
    running->deadlines.erase(running->deadlines.begin());
    const HostProgress* progress = running->operation.Find(overdue.host);
    if (progress == nullptr || progress->step_id != overdue.step_id) continue;
    const bool came_back = overdue.lost_after.has_value() && *overdue.lost_after != agents_.Connection(overdue.host);
    if (came_back) continue;
    TakeSoon(*running, StepTimedOut{overdue.host, overdue.step_id}, [this, id, overdue](const absl::Status& taken) {
      const auto still = running_.find(id);
      if (taken.ok() || still == running_.end()) return;
      LogError("controller", id, ": ", taken.message(), "; trying again");
      still->second->deadlines.emplace(clock_.Monotonic() + kStoreRetry, overdue);
      ArmNextDeadline(still->second.get());
    });
  }
  ArmNextDeadline(running);
}

// ---- planning

void Driver::Plan(const OperationSpec& spec, std::function<void(absl::Status, v1::Plan)> done) {
  planning_.Make(spec, true,
                 [done = std::move(done)](const rb::controller::Plan& plan) { done(absl::OkStatus(), ToWire(plan)); });
}

bool Driver::AnswerOfKey(const std::string& idempotency_key, Started* answer) {
  if (idempotency_key.empty()) return false;
  const absl::StatusOr<std::string> id = store_.OperationOfKey(idempotency_key);
  if (!id.ok() || id->empty()) return false;
  absl::StatusOr<v1::Operation> operation = Get(*id, nullptr);
  answer->status = operation.status();
  if (operation.ok()) answer->operation = *std::move(operation);
  if (!answer->operation.has_ended_at()) {
    answer->operation.clear_plan();
    answer->operation.clear_hosts();
  }
  return true;
}

void Driver::Start(const OperationSpec& spec, const std::string& by, const std::string& idempotency_key,
                   std::function<bool()> is_given_up, std::function<void(Started)> done) {
  Started started;
  if (idempotency_key.size() > kLongestKey) {
    started.status = absl::InvalidArgumentError("the idempotency key is too long. Nothing was changed");
    done(std::move(started));
    return;
  }
  if (AnswerOfKey(idempotency_key, &started)) {
    done(std::move(started));
    return;
  }
  if (running_.size() >= kMostRunning) {
    started.status = absl::ResourceExhaustedError("too many operations are running. Nothing was changed");
    done(std::move(started));
    return;
  }
  StartRequest request;
  request.spec = spec;
  request.by = by;
  request.idempotency_key = idempotency_key;
  request.until = clock_.Monotonic() + spec.wait_for_lock;
  request.is_given_up = std::move(is_given_up);
  request.done = std::move(done);
  TryToStart(std::move(request));
}

void Driver::TryToStart(StartRequest request) {
  for (DriverObserver* observer : observers_) {
    if (request.spec.drill_id.empty()) request.spec.drill_id = observer->DrillOf(request.spec);
  }
  const OperationSpec spec = request.spec;
  planning_.Make(spec, false, [this, request = std::move(request)](rb::controller::Plan plan) mutable {
    Started answer;
    // The same request, sent again while the first one was being planned.
    if (AnswerOfKey(request.idempotency_key, &answer)) {
      request.done(std::move(answer));
      return;
    }
    if (request.is_given_up && request.is_given_up()) {
      answer.status = absl::CancelledError("whoever asked is gone. Nothing was changed");
      request.done(std::move(answer));
      return;
    }
    if (!plan.refusal.refused()) {
      answer = Begin(std::move(plan), request.by, request.idempotency_key);
    } else {
      answer.refusal = plan.refusal;
    }
    // A rehearsal makes room for what is real.
    if (answer.refusal.code == Refusal::Code::kLocked && request.spec.drill_id.empty() && !request.gave_way &&
        std::any_of(observers_.begin(), observers_.end(), [&](DriverObserver* observer) {
          return observer->GiveWay(answer.refusal.holder_operation_id, request.spec);
        })) {
      request.gave_way = true;
      request.until = std::max(request.until, clock_.Monotonic() + kGiveWayPatience);
    }
    const bool waits =
        answer.refusal.code == Refusal::Code::kLocked && clock_.Monotonic() < request.until && !queue_.full();
    if (!waits) {
      request.done(std::move(answer));
      return;
    }
    queue_.Add(std::move(request));
  });
}

Driver::Started Driver::Begin(rb::controller::Plan plan, const std::string& by, const std::string& idempotency_key) {
  Started answer;
  const absl::StatusOr<uint64_t> fencing = store_.NextFencingNumber();
  auto running = std::make_unique<Running>();
  running->accepted_monotonic = clock_.Monotonic();
  Accepted accepted;
  accepted.id = NewOperationId(clock_.Now());
  accepted.plan = std::move(plan);
  accepted.requested_by = by;
  accepted.idempotency_key = idempotency_key;
  accepted.fencing_number = fencing.ok() ? *fencing : 0;
  const std::string id = accepted.id;
  const OperationSpec spec = accepted.plan.spec;
  // Nothing new while the room that is left is needed by what runs.
  absl::Status taken = store_.KeepReserve();
  if (taken.ok()) taken = fencing.status();
  // The lock first: of two requests that were planned side by side, one is refused.
  std::string held_environment;
  if (taken.ok()) taken = TakeLocks(spec, id, &held_environment);
  if (absl::IsFailedPrecondition(taken)) {
    store_.ReleaseLock(id).IgnoreError();
    answer.refusal.code = Refusal::Code::kLocked;
    answer.refusal.holder_operation_id = std::string(taken.message());
    answer.refusal.message = absl::StrCat("operation ", taken.message(), " is at work on ", spec.service, " in ",
                                          held_environment, ". Nothing was changed");
    answer.refusal.next_command =
        absl::StrCat("rbctl watch ", taken.message(), ", or the same command with --wait 10m");
    return answer;
  }
  Running* const raw = running.get();
  running_[id] = std::move(running);
  if (taken.ok()) taken = TakeNow(*raw, std::move(accepted));
  if (!taken.ok()) {
    running_.erase(id);
    store_.ReleaseLock(id).IgnoreError();
    answer.refusal.code = Refusal::Code::kStoreFull;
    answer.refusal.message =
        absl::StrCat("the operation could not be recorded: ", taken.message(), ". Nothing was changed");
    return answer;
  }
  const std::set<std::string> no_hosts;
  answer.operation = Shown(*raw, &no_hosts);
  return answer;
}

// What an emergency has left out is caught up with, on the record.
void Driver::VerifyAfterwards(const Operation& operation) {
  OperationSpec spec;
  spec.kind = OperationKind::kVerification;
  spec.environment = operation.plan.spec.environment;
  spec.service = operation.plan.spec.service;
  spec.hosts = operation.plan.spec.hosts;
  spec.reason = absl::StrCat("after the emergency ", operation.id);
  // One that is begun meanwhile is more important: it verifies, too.
  Start(spec, "controller", absl::StrCat("after-", operation.id), nullptr, [id = operation.id](const Started& started) {
    if (started.status.ok() && !started.refusal.refused()) return;
    LogWarning("controller", "no verification after ", id, ": ",
               started.status.ok() ? started.refusal.message : std::string(started.status.message()));
  });
}

// ---- reading

v1::Operation Driver::Shown(const Running& running, const std::set<std::string>* hosts) const {
  v1::Operation operation = hosts == nullptr ? ToWire(running.operation) : ToWire(running.operation, *hosts);
  for (v1::HostProgress& host : *operation.mutable_hosts()) {
    host.set_connected(agents_.IsConnected(host.host()));
    const auto stage = running.stages.find(host.host());
    if (stage != running.stages.end()) host.set_stage(stage->second);
  }
  // The wire's numbers count what people read, not the journal's events.
  operation.set_last_sequence(running.history.size());
  return operation;
}

absl::StatusOr<Watchers::View> Driver::ViewOf(const std::string& id) {
  const auto found = running_.find(id);
  std::shared_ptr<Running> loaded;
  const Running* running = found == running_.end() ? nullptr : found->second.get();
  if (running == nullptr) {
    RB_ASSIGN_OR_RETURN(loaded, Load(id));
    running = loaded.get();
  }
  Watchers::View view;
  view.history = &running->history;
  view.show = [this, running](const std::set<std::string>* hosts) { return Shown(*running, hosts); };
  view.ended = IsFinal(running->operation.state);
  view.keep = loaded;
  return view;
}

absl::StatusOr<v1::Operation> Driver::Get(const std::string& id, std::vector<v1::OperationEvent>* events) {
  RB_ASSIGN_OR_RETURN(const StoredOperation stored, store_.Find(id));
  const auto found = running_.find(stored.id);
  std::unique_ptr<Running> loaded;
  const Running* running = found == running_.end() ? nullptr : found->second.get();
  if (running == nullptr) {
    RB_ASSIGN_OR_RETURN(loaded, Load(stored.id));
    running = loaded.get();
  }
  if (events != nullptr) *events = running->history;
  return Shown(*running, nullptr);
}

absl::StatusOr<std::string> Driver::List(const v1::ListOperationsRequest& request) {
  const size_t limit = request.page_size() == 0 ? 50 : std::min<size_t>(request.page_size(), kMostListed);
  ListWriter writer;
  size_t count = 0;
  std::string last;
  std::string next_page_token;
  const auto add = [&](absl::string_view id, bool /*ended*/, absl::string_view brief) {
    if (count++ == limit) {
      next_page_token = last;
      return absl::OkStatus();
    }
    last.assign(id.data(), id.size());
    // What is stored of one that runs is how it began.
    if (const auto running = running_.find(last); running != running_.end()) {
      writer.Add(Brief(Shown(*running->second, nullptr)));
    } else if (!writer.AddStored(brief)) {
      return absl::DataLossError(absl::StrCat("the record of ", id, " is damaged"));
    }
    return absl::OkStatus();
  };
  RB_RETURN_IF_ERROR(
      store_.ForEachListed(request.environment(), request.service(), request.page_token(), limit + 1, add));
  return std::move(writer).Take(next_page_token);
}

absl::StatusOr<v1::Operation> Driver::Ask(const std::string& id, const OperatorRequest& request) {
  // What the answer rests on is what is in the journal.
  Flush();
  RB_ASSIGN_OR_RETURN(const StoredOperation stored, store_.Find(id));
  const auto found = running_.find(stored.id);
  std::unique_ptr<Running> ended;
  if (found == running_.end()) {
    RB_ASSIGN_OR_RETURN(ended, Load(stored.id));
  }
  const Running& running = found == running_.end() ? *ended : *found->second;
  if (const std::string why = WhyRefused(running.operation, request); !why.empty()) {
    return absl::FailedPreconditionError(why);
  }
  EventBody body;
  std::visit([&body](const auto& asked) { body = asked; }, request);
  RB_RETURN_IF_ERROR(TakeNow(running, std::move(body)));
  return Get(stored.id, nullptr);
}

absl::StatusOr<uint64_t> Driver::Watch(const std::string& id, uint64_t after_sequence, Watcher watcher) {
  RB_ASSIGN_OR_RETURN(const StoredOperation stored, store_.Find(id));
  return watchers_.Add(stored.id, after_sequence, std::move(watcher));
}

v1::GetStatusResponse Driver::Status(const v1::GetStatusRequest& request, absl::Status* status) {
  v1::GetStatusResponse response;
  bool environment_known = request.environment().empty();
  for (const Environment& environment : fleet_.environments) {
    if (!request.environment().empty() && environment.name != request.environment()) continue;
    environment_known = true;
    for (const auto& [name, service] : fleet_.services) {
      if (!request.service().empty() && name != request.service()) continue;
      const auto hosts = service.hosts.find(environment.name);
      if (hosts == service.hosts.end()) continue;
      const absl::StatusOr<std::string> holder = store_.LockHolder(name, environment.name);
      for (const std::string& host : hosts->second) {
        v1::HostStatus* added = response.add_hosts();
        added->set_environment(environment.name);
        added->set_service(name);
        added->set_host(host);
        if (const auto intent = intents_.find({name, host}); intent != intents_.end()) {
          v1::MissedOperation* missed = added->mutable_missed();
          missed->set_operation_id(intent->second.operation_id);
          missed->set_commit(intent->second.commit);
          missed->set_version(intent->second.version);
          *missed->mutable_expires_at() = ToProto(intent->second.expires_at);
        }
        if (holder.ok() && !holder->empty()) {
          added->set_operation_id(*holder);
          const auto running = running_.find(*holder);
          if (running != running_.end()) added->set_operation_state(ToWire(running->second->operation.state));
        }
        added->set_connected(agents_.IsConnected(host));
        if (const v1::ServiceReport* report = agents_.ReportOf(host, name); report != nullptr) {
          *added->mutable_report() = *report;
          added->mutable_report()->clear_releases();
        }
      }
    }
  }
  if (!environment_known) {
    OperationSpec spec;
    spec.environment = request.environment();
    *status = absl::NotFoundError(ResolveScope(spec, fleet_).refusal.message);
  }
  return response;
}

// ---- agents

void Driver::OnAgentConnected(const std::string& agent, const v1::Hello& hello, absl::Time certificate_expires_at) {
  agents_.OnConnected(agent, hello, certificate_expires_at);
  quarantine_.Tell(agent);
  for (DriverObserver* observer : observers_) observer->OnAgentConnected(agent);
  metrics_.SetTarget(agent, {hello.metrics_address(), hello.metrics_tls()});
  std::vector<std::string> ids;
  for (const auto& [id, running] : running_) ids.push_back(id);
  for (const std::string& id : ids) {
    const auto found = running_.find(id);
    if (found == running_.end()) continue;
    for (const Effect& effect : OutstandingEffects(found->second->operation, agent)) {
      // Deadlines go on as they were armed.
      if (const auto* step = std::get_if<StartStep>(&effect)) {
        v1::ConnectResponse message;
        *message.mutable_task() = TaskFor(found->second->operation, *step);
        sender_.Send(agent, std::move(message));
      }
    }
  }
}

void Driver::OnAgentLost(const std::string& agent) {
  agents_.OnLost(agent);
  planning_.OnAgentLost(agent);
  doctor_.OnAgentLost(agent);
  for (const auto& [id, running] : running_) {
    for (const Effect& effect : OutstandingEffects(running->operation, agent)) {
      if (const auto* step = std::get_if<StartStep>(&effect)) ArmLostDeadline(running.get(), *step);
    }
  }
}

void Driver::OnReport(const std::string& agent, const v1::ServiceReport& report) {
  if (!agents_.OnReport(agent, report)) return;
  if (!report.open_operation_id().empty() && running_.count(report.open_operation_id()) == 0) {
    v1::ConnectResponse over;
    over.mutable_operation_over()->set_operation_id(report.open_operation_id());
    sender_.Send(agent, std::move(over));
  }
  for (DriverObserver* observer : observers_) observer->OnReport(agent, report);
  LearnReport(report.service(), agent, report.current_commit(), report.drifted(), &intents_);
}

void Driver::OnProgress(const std::string& agent, const v1::TaskProgress& progress) {
  const auto found = running_.find(progress.operation_id());
  if (found == running_.end()) return;
  if (found->second->operation.Find(agent) == nullptr) return;
  found->second->stages[agent] = progress.stage();
  watchers_.Touch(progress.operation_id(), agent);
}

void Driver::OnResult(const std::string& agent, v1::TaskResult result) {
  const std::string id = result.operation_id();
  if (doctor_.OnResult(agent, result) || planning_.OnResult(agent, result)) return;
  agents_.OnFaultResult(agent, result);
  for (DriverObserver* observer : observers_) {
    if (observer->OnFaultResult(agent, result)) return;
  }
  const auto found = running_.find(id);
  if (found != running_.end()) {
    StepEnded ended{agent, FromWire(result)};
    TakeSoon(*found->second, std::move(ended), [this, agent, result = std::move(result)](const absl::Status& taken) {
      if (taken.ok()) {
        Acknowledge(agent, result.step_id());
        return;
      }
      // Not acknowledged. When the agent connects anew it sends what it owes, and is asked again for what it refused:
      // then this one may be out of date.
      LogError("controller", result.operation_id(), ": ", taken.message(), "; the result is taken again in a moment");
      loop_.PostAt(clock_.Monotonic() + kStoreRetry, [this, agent, result, connection = agents_.Connection(agent)] {
        if (agents_.Connection(agent) != connection) return;
        v1::TaskResult again = result;
        // What it went on with may have ended meanwhile, and is asked for.
        again.clear_began_step_id();
        OnResult(agent, std::move(again));
      });
    });
    return;
  }
  Acknowledge(agent, result.step_id());
}

void Driver::Acknowledge(const std::string& agent, const std::string& step_id) {
  RB_FAILPOINT("controller.driver.before-acknowledge");
  last_acknowledgement_ = clock_.Monotonic();
  if (acknowledgements_.empty()) {
    first_acknowledgement_ = last_acknowledgement_;
    loop_.PostAt(last_acknowledgement_ + kAcknowledgeAfter, [this] { SendAcknowledgements(); });
  }
  acknowledgements_[agent].push_back(step_id);
}

void Driver::SendAcknowledgements() {
  const absl::Duration quiet = last_acknowledgement_ + kAcknowledgeAfter;
  const absl::Duration when = std::min(quiet, first_acknowledgement_ + kAcknowledgeAtLast);
  if (when > clock_.Monotonic()) {
    loop_.PostAt(when, [this] { SendAcknowledgements(); });
    return;
  }
  for (size_t i = 0; i < kAcknowledgedAtOnce && !acknowledgements_.empty(); ++i) {
    const auto first = acknowledgements_.begin();
    v1::ConnectResponse stored;
    stored.mutable_result_stored()->mutable_step_ids()->Add(first->second.begin(), first->second.end());
    sender_.Send(first->first, std::move(stored));
    acknowledgements_.erase(first);
  }
  if (!acknowledgements_.empty()) {
    loop_.PostAt(clock_.Monotonic() + kAcknowledgePause, [this] { SendAcknowledgements(); });
  }
}

void Driver::OnHostRecord(const std::string& agent, const v1::HostRecord& record) {
  std::string environment;
  if (const auto service = fleet_.services.find(record.service()); service != fleet_.services.end()) {
    for (const auto& [name, hosts] : service->second.hosts) {
      if (std::find(hosts.begin(), hosts.end(), agent) != hosts.end()) environment = name;
    }
  }
  absl::Status stored;
  if (environment.empty()) {
    LogWarning("controller", agent, " reports something of ", Printable(record.service()),
               ", which the fleet file does not put there; it is not in the history");
  } else {
    Running running;
    Event event;
    event.sequence = 1;
    event.at = clock_.Now();
    Reported reported = ReportedFrom(record, NewOperationId(FromProto(record.began_at())), agent, environment);
    StoredEvent event_stored;
    event_stored.idempotency_key = reported.idempotency_key;
    event.body = std::move(reported);
    std::vector<Effect> none;
    Fold(&running, event, &none);
    const v1::Operation shown = ToWire(running.operation);
    event_stored.operation = {running.operation.id, environment, record.service(), true, shown.SerializeAsString(), ""};
    event_stored.operation.brief = Brief(shown).SerializeAsString();
    event_stored.sequence = 1;
    event_stored.event = EncodeEvent(event);
    event_stored.changes = quarantine_.ChangesOf(running.operation);
    stored = store_.AppendEvents({event_stored});
    if (stored.ok()) quarantine_.Take(event_stored.changes);
    // The same report again: it is there.
    if (absl::IsAlreadyExists(stored)) stored = absl::OkStatus();
  }
  if (!stored.ok()) {
    // Not acknowledged: it comes again.
    LogError("controller", "what ", agent, " reports could not be put into the history: ", stored.message());
    return;
  }
  v1::ConnectResponse answer;
  answer.mutable_host_record_stored()->set_id(record.id());
  sender_.Send(agent, std::move(answer));
}

void Driver::Ended(const Running& running) {
  const Operation& operation = running.operation;
  LogInfo("controller", operation.id, " ", std::string(NameOf(operation.state)), ": ", operation.summary);
  loop_.PostResult([this] { queue_.Serve(); });
  metrics_.ended().Count(ToWire(operation));
  if (!ChangesHosts(operation.plan.spec.kind)) return;
  if (const std::optional<OperationEnd> end = EndOf(ToWire(operation))) LearnEnd(*end, &intents_);
  if (operation.plan.spec.emergency && operation.state == OperationState::kSucceeded) {
    loop_.PostResult([this, operation] { VerifyAfterwards(operation); });
  }
}

}  // namespace rb::controller
