#include "tests/sim/monitor.h"

#include <algorithm>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/sim/agent.h"

namespace rb::sim {
namespace {

class Digest {
 public:
  Digest& Add(uint64_t word) {
    value_ = (value_ ^ word) * 0x9e3779b97f4a7c15;
    value_ ^= value_ >> 32;
    return *this;
  }
  Digest& Add(absl::string_view text) {
    Add(text.size());
    for (; text.size() >= 8; text.remove_prefix(8)) {
      uint64_t word = 0;
      __builtin_memcpy(&word, text.data(), 8);
      Add(word);
    }
    uint64_t word = 0;
    for (const char c : text) word = (word << 8) | static_cast<unsigned char>(c);
    return text.empty() ? *this : Add(word);
  }
  Digest& Add(const std::string& text) { return Add(absl::string_view(text)); }
  Digest& Add(absl::Duration duration) { return Add(static_cast<uint64_t>(absl::ToInt64Nanoseconds(duration))); }
  template <typename Enum>
  requires std::is_enum_v<Enum> Digest& Add(Enum value) { return Add(static_cast<uint64_t>(value)); }
  Digest& Add(const agent::Task& task) {
    return Add(task.operation_id).Add(task.step_id).Add(task.fencing_number).Add(task.service).Add(task.step.index());
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

bool ReadsOnly(const agent::Task& task) { return std::holds_alternative<agent::InspectStep>(task.step); }
bool IsAlone(const std::string& step_id) { return absl::StartsWith(step_id, agent::kAlonePrefix); }
// "op-1/h2/prepare/3" → 3.
uint32_t AttemptOf(const std::string& step_id) {
  uint32_t attempt = 0;
  const std::vector<absl::string_view> parts = absl::StrSplit(step_id, '/');
  return absl::SimpleAtoi(parts.back(), &attempt) ? attempt : 0;
}
bool EndsClean(controller::OperationState state) {
  return state == controller::OperationState::kSucceeded || state == controller::OperationState::kAborted ||
         state == controller::OperationState::kReverted;
}

}  // namespace

uint64_t Fingerprint(const agent::TaskResult& result) {
  return Digest()
      .Add(result.operation_id)
      .Add(result.step_id)
      .Add(result.service)
      .Add(static_cast<uint64_t>(result.status.code()))
      .Add(absl::string_view(result.status.message()))
      .Add(result.state)
      .Add(result.verdict)
      .Add(result.times.prepare)
      .Add(result.times.downtime)
      .Add(result.release.name)
      .Add(static_cast<uint64_t>(result.done_alone))
      .value();
}

uint64_t Fingerprint(const agent::AgentState& state) {
  Digest digest;
  digest.Add(state.unattended_count);
  for (const std::string& step_id : state.owed) digest.Add(step_id);
  for (const auto& [name, service] : state.services) {
    // One that only looked here leaves an empty service behind.
    if (service.highest_fencing_number == 0) continue;
    digest.Add(name).Add(service.highest_fencing_number);
    if (service.running.has_value()) digest.Add(*service.running);
    digest.Add(service.next.has_value() ? 1u : 0u);
    if (service.next.has_value()) digest.Add(*service.next);
    for (const agent::TaskResult& result : service.ended) digest.Add(Fingerprint(result));
    if (service.unattended.has_value()) {
      digest.Add(service.unattended->operation_id).Add(service.unattended->number);
      digest.Add(static_cast<uint64_t>(service.unattended->over));
      digest.Add(static_cast<uint64_t>(service.unattended->policy.undo_when_unhealthy));
      digest.Add(static_cast<uint64_t>(service.unattended->policy.undo_when_unconfirmed));
    }
  }
  return digest.value();
}

uint64_t Fingerprint(const controller::Operation& operation) {
  Digest digest;
  digest.Add(operation.id)
      .Add(operation.state)
      .Add(operation.summary)
      .Add(static_cast<uint64_t>(operation.already_there))
      .Add(operation.requested_by)
      .Add(operation.idempotency_key)
      .Add(absl::ToUnixNanos(operation.accepted_at) == 0 ? 0u : 1u)
      .Add(operation.recovery)
      .Add(static_cast<uint64_t>(operation.target_met))
      .Add(operation.wave)
      .Add(static_cast<uint64_t>(operation.abort_requested))
      .Add(operation.abort_reason)
      .Add(operation.fencing_number)
      .Add(operation.last_sequence)
      .Add(operation.logged_hosts)
      .Add(operation.next_commands.size());
  for (const controller::HostProgress& host : operation.hosts) {
    digest.Add(host.plan.host)
        .Add(host.plan.wave)
        .Add(host.plan.release_name)
        .Add(host.plan.commit)
        .Add(host.plan.fallbacks.size())
        .Add(host.state)
        .Add(host.step_id)
        .Add(host.step_kind)
        .Add(host.attempt)
        .Add(host.candidate)
        .Add(host.times.prepare)
        .Add(host.times.downtime)
        .Add(host.times.recovery)
        .Add(host.verdict)
        .Add(host.error)
        .Add(host.replaced_release)
        .Add(host.to_release)
        .Add(static_cast<uint64_t>(host.failed))
        .Add(static_cast<uint64_t>(host.state_unknown))
        .Add(host.committed_at);
  }
  return digest.value();
}

Monitor::Truth* Monitor::Find(const std::string& operation) {
  const auto found = truths_.find(operation);
  return found == truths_.end() ? nullptr : &found->second;
}

Monitor::Truth::Host* Monitor::Find(const std::string& operation, int host) {
  Truth* truth = Find(operation);
  if (truth == nullptr) return nullptr;
  for (Truth::Host& one : truth->hosts) {
    if (one.number == host) return &one;
  }
  return nullptr;
}

// ---- hosts

void Monitor::OnTaskArrived(int host, const agent::Task& task, bool recorded) {
  if (ReadsOnly(task) || !recorded) return;
  OnHost& at = At(host, world_.ServiceNumber(task.service));
  if (at.accepted.count(task.step_id) != 0) return;
  if (task.fencing_number < at.highest_fencing_number) {
    at.stale.insert(task.step_id);
    return;
  }
  at.highest_fencing_number = task.fencing_number;
  at.accepted.insert(task.step_id);
  if (const auto* commit = std::get_if<agent::CommitStep>(&task.step)) at.follows.insert(commit->next_step_id);
}

void Monitor::OnStepBegins(int host, const agent::Task& task) {
  if (ReadsOnly(task)) return;
  const int service = world_.ServiceNumber(task.service);
  OnHost& at = At(host, service);
  Truth::Host* truth = Find(task.operation_id, host);
  if (IsAlone(task.step_id)) {
    if (truth != nullptr) truth->acted_alone = true;
    return;
  }
  const std::string where = absl::StrCat(World::HostName(host), " begins ", task.step_id);
  if (at.stale.count(task.step_id) != 0) {
    world_.Violate("nothing is done for a stale fencing number",
                   absl::StrCat(where, " of ", task.fencing_number, ", and has seen ", at.highest_fencing_number));
  }
  const bool follows = at.follows.count(task.step_id) != 0;
  if (at.accepted.count(task.step_id) == 0 && !follows) {
    world_.Violate("no step begins that is not written down", absl::StrCat(where, ", which its journal does not have"));
  }
  if (at.ended.count(task.step_id) != 0) {
    world_.Violate("a step that has ended is not run again", where);
  }
  const SimController::Stored* stored = world_.controller().Find(task.operation_id);
  bool is_known = false;
  if (stored != nullptr) {
    for (const controller::HostProgress& progress : stored->replayed.hosts) {
      // What follows the commit is the attempt after it.
      const uint32_t newest = progress.attempt + (follows ? 1 : 0);
      is_known = is_known || (progress.plan.host == World::HostName(host) && newest >= AttemptOf(task.step_id));
    }
  }
  if (!is_known) {
    world_.Violate("no step begins that is not written down",
                   absl::StrCat(where, ", which the controller's journal does not have"));
  }
  if (truth != nullptr && std::holds_alternative<agent::VerifyStep>(task.step)) truth->healthy = false;
}

void Monitor::OnStepEnded(int host, const agent::Task& task, const agent::TaskResult& result) {
  if (ReadsOnly(task)) return;
  Truth::Host* truth = Find(task.operation_id, host);
  if (truth != nullptr && std::holds_alternative<agent::VerifyStep>(task.step) && !absl::IsCancelled(result.status)) {
    truth->healthy = result.status.ok() && result.verdict == agent::Verdict::kHealthy;
  }
}

void Monitor::OnResultSent(int host, const agent::TaskResult& result, bool recorded) {
  if (!recorded) return;
  OnHost& at = At(host, world_.ServiceNumber(result.service));
  const uint64_t fingerprint = Fingerprint(result);
  // What an agent does by its own hand has the same name each time.
  if (!IsAlone(result.step_id)) {
    at.ended.insert(result.step_id);
    const auto [found, is_new] = at.answers.try_emplace(result.step_id, fingerprint);
    if (!is_new && found->second != fingerprint) {
      world_.Violate("a repeated step has one answer",
                     absl::StrCat(World::HostName(host), " gives another one to ", result.step_id));
    }
  }
}

void Monitor::OnAgentReplayed(int host, const agent::AgentState& state) {
  for (int service = 0; service < world_.scenario().services; ++service) {
    const OnHost& at = At(host, service);
    const auto found = state.services.find(std::string(World::ServiceName(service)));
    for (const std::string& step_id : at.ended) {
      const bool is_there = found != state.services.end() &&
                            std::any_of(found->second.ended.begin(), found->second.ended.end(),
                                        [&](const agent::TaskResult& result) { return result.step_id == step_id; });
      if (!is_there) {
        world_.Violate("what was acknowledged is not forgotten",
                       absl::StrCat(World::HostName(host), " has forgotten that it did ", step_id));
      }
    }
  }
}

void Monitor::OnPrepared(int host, int service, const std::string& operation) {
  Truth* truth = Find(operation);
  Truth::Host* at = Find(operation, host);
  if (at == nullptr) {
    world_.Violate("no step begins that is not written down",
                   absl::StrCat(World::HostName(host), " prepares ", operation, ", which nobody accepted"));
    return;
  }
  // A message that overtakes or outlives others may stage what nobody asks for any more; the next operation clears it.
  if (EndsClean(truth->end) && !world_.scenario().datagrams) {
    world_.Violate("what has ended is not begun again",
                   absl::StrCat(World::HostName(host), " prepares ", operation, ", which has ended"));
  }
  at->prepared = true;
  const Disk& disk = world_.agent(host).service(service).disk();
  at->replaced = disk.transaction.replaced;
  at->target = disk.transaction.target;
}

void Monitor::OnSwapBegins(int host, int /*service*/, const std::string& operation) {
  Truth* truth = Find(operation);
  const Truth::Host* at = Find(operation, host);
  if (at == nullptr) return;
  if (EndsClean(truth->end)) {
    world_.Violate("what has ended is not begun again",
                   absl::StrCat(World::HostName(host), " commits ", operation, ", which has ended"));
  }
  for (const Truth::Host& other : truth->hosts) {
    if (!other.changes) continue;
    if (!other.prepared) {
      world_.Violate("no host commits before all have prepared",
                     absl::StrCat(World::HostName(host), " commits ", operation, ", and ",
                                  World::HostName(other.number), " has not prepared"));
    }
    // One that went back by its own hand was verified before that; the controller may not have heard of it yet.
    if (other.wave < at->wave && !other.healthy && !other.acted_alone) {
      world_.Violate("no wave begins before the one before is verified",
                     absl::StrCat(World::HostName(host), " commits ", operation, " in wave ", at->wave, ", and ",
                                  World::HostName(other.number), " is not verified"));
    }
  }
}

void Monitor::OnUndoBegins(int /*host*/, int /*service*/, const std::string& /*operation*/) {}

void Monitor::OnServiceStarts(int host, int service) {
  const Disk& disk = world_.agent(host).service(service).disk();
  if (disk.Version() == 0) {
    world_.Violate("every tree is wholly old or wholly new",
                   absl::StrCat(World::HostName(host), " starts ", World::ServiceName(service), " on a mixed tree"));
  }
}

// ---- the controller

void Monitor::OnAccepted(const controller::Operation& operation) {
  Truth truth;
  truth.fencing_number = operation.fencing_number;
  truth.service = world_.ServiceNumber(operation.plan.spec.service);
  truth.changes_nothing = !controller::ChangesHosts(operation.plan.spec.kind);
  for (const controller::HostProgress& host : operation.hosts) {
    Truth::Host one;
    one.number = world_.HostNumber(host.plan.host);
    one.wave = host.plan.wave;
    one.changes = !host.plan.already_there;
    one.ran_before = world_.agent(one.number).service(truth.service).unit().runs;
    truth.hosts.push_back(one);
  }
  for (const auto& [id, other] : truths_) {
    if (other.fencing_number >= truth.fencing_number) {
      world_.Violate("each operation has a higher fencing number than any before",
                     absl::StrCat(operation.id, " has ", truth.fencing_number, ", and so has ", id));
    }
  }
  truths_.emplace(operation.id, std::move(truth));
}

void Monitor::OnEnded(const controller::Operation& operation) {
  Truth* truth = Find(operation.id);
  truth->end = operation.state;
  if (operation.abort_requested && !operation.already_there &&
      operation.state == controller::OperationState::kSucceeded) {
    world_.Violate("an operation says what is true", absl::StrCat(operation.id, " was aborted, and says it succeeded"));
  }
  // A verification waits for no slow host.
  bool could_succeed = world_.scenario().faults_end == 0 && !operation.abort_requested &&
                       operation.plan.spec.kind != controller::OperationKind::kVerification;
  for (const Truth::Host& host : truth->hosts) {
    could_succeed = could_succeed && world_.agent(host.number).service(truth->service).in_order();
  }
  if (could_succeed && operation.state != controller::OperationState::kSucceeded) {
    world_.Violate("what nothing disturbs succeeds",
                   absl::StrCat(operation.id, " ", controller::NameOf(operation.state), ": ", operation.summary));
  }
  if (truth->changes_nothing) return;
  for (size_t i = 0; i < operation.hosts.size(); ++i) {
    const controller::HostProgress& said = operation.hosts[i];
    const Truth::Host& at = truth->hosts[i];
    if (!at.changes) continue;
    const SimService& service = world_.agent(at.number).service(truth->service);
    const Disk& disk = service.disk();
    const bool is_open = disk.transaction.open && disk.transaction.operation_id == operation.id;
    const std::string where =
        absl::StrCat(operation.id, " says ", controller::NameOf(operation.state), ", and ", said.plan.host, " ");
    const auto untrue = [&](absl::string_view what) {
      world_.Violate("an operation says what is true", absl::StrCat(where, what));
    };
    if (EndsClean(operation.state) && at.ran_before && world_.agent(at.number).up() && !service.unit().runs) {
      untrue("does not run its service any more");
    }
    // Half undone, which is said; its journal knows the rest.
    if (disk.Version() == 0) continue;
    switch (operation.state) {
      case controller::OperationState::kSucceeded:
        if (!at.healthy) untrue("was not verified");
        if (disk.Version() != at.target) untrue("is not on the target");
        if (is_open) untrue("has not kept it");
        break;
      case controller::OperationState::kAborted:
      case controller::OperationState::kReverted:
        if (at.prepared && disk.Version() != at.replaced) untrue("is not on what it had");
        if (is_open) untrue("still holds it open");
        break;
      default:
        if (!absl::StrContains(operation.summary, said.plan.host)) untrue("is not named");
        // A revert that failed half-way may be finished by the host's own recovery, later.
        if (said.state_unknown || at.acted_alone || (said.failed && said.step_kind == controller::StepKind::kRevert)) {
          break;
        }
        if (said.state == controller::HostState::kKept && (is_open || disk.Version() != at.target)) {
          untrue("has not kept it, as is said");
        }
        if ((said.state == controller::HostState::kUntouched || said.state == controller::HostState::kReverted) &&
            ((is_open && !world_.scenario().datagrams) || (at.prepared && disk.Version() != at.replaced))) {
          untrue("is not back, as is said");
        }
        if (said.state == controller::HostState::kCommitted && disk.Version() != at.target) {
          untrue("is not on the target, as is said");
        }
        break;
    }
  }
}

void Monitor::OnAnswered(const std::string& operation, const std::string& key) {
  const auto [found, is_new] = answered_.try_emplace(key, operation);
  if (!is_new && found->second != operation) {
    world_.Violate("one request gives one operation", absl::StrCat(key, " gave ", found->second, " and ", operation));
  }
  const SimController::Stored* stored = world_.controller().Find(operation);
  if (stored == nullptr || stored->events.empty()) {
    world_.Violate("what was acknowledged is not forgotten", absl::StrCat(operation, " was promised, and not stored"));
  }
}

void Monitor::OnResultAcknowledged(int host, const std::string& operation, const std::string& step_id) {
  const SimController::Stored* stored = world_.controller().Find(operation);
  if (stored == nullptr) {
    world_.Violate("what was acknowledged is not forgotten", absl::StrCat(step_id, " of nobody's was acknowledged"));
    return;
  }
  if (stored->ended()) return;
  for (auto event = stored->events.rbegin(); event != stored->events.rend(); ++event) {
    const auto* ended = std::get_if<controller::StepEnded>(&event->body);
    if (ended != nullptr && ended->result.step_id == step_id && ended->host == World::HostName(host)) return;
  }
  world_.Violate("what was acknowledged is not forgotten",
                 absl::StrCat("the result of ", step_id, " was acknowledged, and not stored"));
}

void Monitor::OnControllerReplayed() {
  for (const auto& [key, operation] : answered_) {
    if (world_.controller().Find(operation) == nullptr) {
      world_.Violate("what was acknowledged is not forgotten", absl::StrCat(operation, " was promised, and is gone"));
    }
  }
}

void Monitor::AfterEvent() {
  for (int host = 0; host < world_.scenario().hosts; ++host) {
    SimAgent& agent = world_.agent(host);
    for (int number = 0; number < world_.scenario().services; ++number) {
      const SimService& service = agent.service(number);
      if (service.disk().Version() != 0) continue;
      const bool is_known = service.disk().transaction.open && service.disk().transaction.commit_begun;
      if (service.unit().runs || !is_known) {
        world_.Violate("every tree is wholly old or wholly new",
                       absl::StrCat(agent.name(), " has a mixed tree, and ",
                                    service.unit().runs ? "the service runs" : "its journal does not know"));
      }
    }
  }
  const SimController::Stored* active[2] = {nullptr, nullptr};
  for (const SimController::Stored& stored : world_.controller().store()) {
    if (stored.ended()) continue;
    if (active[stored.service] != nullptr) {
      world_.Violate("one operation at a time on a service",
                     absl::StrCat(active[stored.service]->id, " and ", stored.id, " are at work"));
    }
    active[stored.service] = &stored;
    if (stored.replayed.state != controller::OperationState::kPlanned &&
        world_.controller().lock(stored.service) != stored.id) {
      world_.Violate("one operation at a time on a service",
                     absl::StrCat(stored.id, " is at work, and does not hold the lock"));
    }
  }
}

void Monitor::AtTheEnd() {
  for (int host = 0; host < world_.scenario().hosts; ++host) {
    const SimAgent& agent = world_.agent(host);
    if (Fingerprint(agent.ReadJournal()) != Fingerprint(agent.state())) {
      world_.Violate("the journal gives the same state again",
                     absl::StrCat("read anew, ", agent.name(), " is another"));
    }
  }
  for (const SimController::Stored& stored : world_.controller().store()) {
    if (!stored.ended()) {
      world_.Violate("every operation ends", absl::StrCat(stored.id, " is still ", NameOf(stored.replayed.state)));
    }
    if (Fingerprint(stored.Read()) != Fingerprint(stored.replayed)) {
      world_.Violate("the journal gives the same state again", absl::StrCat("read anew, ", stored.id, " is another"));
    }
  }
  for (int number = 0; number < world_.scenario().services; ++number) {
    if (const std::string& lock = world_.controller().lock(number); !lock.empty()) {
      world_.Violate("every operation ends", absl::StrCat(lock, " still holds the lock"));
    }
    for (int host = 0; host < world_.scenario().hosts; ++host) {
      SimAgent& agent = world_.agent(host);
      if (!agent.idle()) {
        world_.Violate("everything comes to rest", absl::StrCat(agent.name(), " is still at work"));
      }
      if (!agent.attended()) {
        world_.Violate("everything comes to rest", absl::StrCat(agent.name(), " waits for somebody to come back"));
      }
      const Disk& disk = agent.service(number).disk();
      const Truth* truth = disk.transaction.open ? Find(disk.transaction.operation_id) : nullptr;
      if (truth != nullptr && EndsClean(truth->end) &&
          (disk.transaction.commit_begun || !world_.scenario().datagrams)) {
        world_.Violate("what has ended is not begun again",
                       absl::StrCat(agent.name(), " still holds ", disk.transaction.operation_id, " open, which ",
                                    controller::NameOf(truth->end)));
      }
    }
  }
}

}  // namespace rb::sim
