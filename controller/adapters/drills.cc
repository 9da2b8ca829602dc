#include "controller/adapters/drills.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/adapters/proto_time.h"
#include "common/failpoint.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/status.h"
#include "controller/adapters/drill_wire.h"
#include "controller/adapters/wire.h"

namespace rb::controller {
namespace {

constexpr char kPrefix[] = "drill-";
constexpr absl::Duration kStoreRetry = absl::Seconds(2);
// After a start of ours. They dial again every five seconds at least.
constexpr absl::Duration kAgentsComeBack = absl::Seconds(15);
constexpr absl::Duration kLookForAgents = absl::Milliseconds(100);
constexpr size_t kMostRunning = 20;
constexpr size_t kLongestKey = 64;
constexpr size_t kDrillsListed = 50;
constexpr size_t kMostDrillsListed = 1000;

std::string NewDrillId(absl::Time now) { return absl::StrCat(kPrefix, absl::StripPrefix(NewOperationId(now), "op-")); }

std::string KeyOf(const std::string& drill_id, DrillRole role) {
  return absl::StrCat(drill_id, "/", static_cast<int>(role));
}

// Of the drill in the environment that follows.
std::string KeyOfNext(const std::string& drill_id) { return absl::StrCat(drill_id, "/then"); }

bool IsAbout(const OperationSpec& spec, const DrillSpec& drill) {
  // Not named: the only one of the environment, or it is refused.
  if (!spec.service.empty() && spec.service != drill.service) return false;
  const std::vector<std::string> environments = EnvironmentsOf(spec);
  return std::find(environments.begin(), environments.end(), drill.environment) != environments.end();
}

bool WaitsForPerson(const Drill& drill) {
  return drill.spec.by_hand && (drill.state == DrillState::kDetecting || drill.state == DrillState::kRecovering);
}

// The failure that says most; null when none does yet.
const v1::ProbeResult* TellingFailure(const v1::ServiceReport& report, bool is_disk_full = false) {
  const auto weight = [is_disk_full](const v1::ProbeResult& probe) {
    // A full disk makes no host unhealthy, and yet somebody is told of it.
    if (is_disk_full && probe.kind() == "disk" && !probe.passed()) return 4;
    if (probe.passed() || probe.external() || probe.waiting()) return 0;
    if (LooksInside(probe.kind())) return 3;
    return probe.kind() == "unit" || probe.kind() == "recovery" ? 2 : 1;
  };
  const v1::ProbeResult* first = nullptr;
  for (const v1::ProbeResult& probe : report.probes()) {
    if (weight(probe) > (first == nullptr ? 0 : weight(*first))) first = &probe;
  }
  return first;
}

std::string TextOf(const v1::ProbeResult* probe) {
  return probe == nullptr ? "" : absl::StrCat(probe->name(), ": ", probe->observed());
}

}  // namespace

Drills::Drills(Fleet fleet, DrillStore& store, Driver& driver, AgentSender& sender, EventLoop& loop, Clock& clock)
    : fleet_(std::move(fleet)), store_(store), driver_(driver), sender_(sender), loop_(loop), clock_(clock) {
  driver_.AddObserver(this);
}

void Drills::Fold(Running* running, const DrillEventRecord& event, std::vector<DrillEffect>* effects) {
  DrillDecision decision = DecideDrill(running->drill, event);
  running->drill = std::move(decision.drill);
  for (const auto& [host, text] : decision.notes) {
    v1::DrillEvent line;
    line.set_sequence(running->history.size() + 1);
    *line.mutable_at() = ToProto(event.at);
    line.set_host(host);
    line.set_text(text);
    line.set_state(ToWire(running->drill.state));
    running->history.push_back(std::move(line));
  }
  *effects = std::move(decision.effects);
}

absl::StatusOr<std::unique_ptr<Drills::Running>> Drills::Load(const std::string& id) {
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> events, store_.Events(id));
  auto running = std::make_unique<Running>();
  absl::Duration elapsed;
  absl::Time at = clock_.Now();
  for (const std::string& bytes : events) {
    RB_ASSIGN_OR_RETURN(const DrillEventRecord event, DecodeDrillEvent(bytes));
    std::vector<DrillEffect> dropped;
    Fold(running.get(), event, &dropped);
    elapsed = event.elapsed;
    at = event.at;
  }
  // Time went on while no controller ran; the wall clock is all there is to tell by how much.
  const absl::Duration away = std::max(absl::ZeroDuration(), clock_.Now() - at);
  running->accepted_monotonic = clock_.Monotonic() - elapsed - away;
  return running;
}

absl::Status Drills::Resume() {
  resumed_ = clock_.Monotonic();
  RB_RETURN_IF_ERROR(LearnEnded());
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> ids, store_.Unfinished());
  for (const std::string& id : ids) {
    RB_ASSIGN_OR_RETURN(std::unique_ptr<Running> running, Load(id));
    LogInfo("controller", "resuming ", id, ", ", std::string(NameOf(running->drill.state)));
    const std::vector<DrillEffect> effects = OutstandingDrillEffects(running->drill, "", Elapsed(*running));
    std::vector<std::string> operations;
    for (const auto& [role, operation] : running->drill.operations) operations.push_back(operation.id);
    if (on_change_) on_change_(running->drill);
    running_[id] = std::move(running);
    // On the loop: it does not run yet.
    loop_.PostResult([this, id, effects, operations] {
      CarryOut(id, effects);
      for (const std::string& operation : operations) SeeOperation(id, operation);
    });
  }
  return absl::OkStatus();
}

absl::Status Drills::TellAgain(const std::string& id) {
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<Running> running, Load(id));
  if (on_change_ && !running->drill.id.empty()) on_change_(running->drill);
  return absl::OkStatus();
}

template <typename Body>
absl::Status Drills::Take(const std::string& id, Body body) {
  const auto found = running_.find(id);
  if (found == running_.end()) return absl::OkStatus();
  DrillEventRecord event;
  event.sequence = found->second->drill.last_sequence + 1;
  event.at = clock_.Now();
  event.elapsed = Elapsed(*found->second);
  event.body = std::move(body);
  const absl::Status taken = TakeEvent(found->second.get(), event);
  if (!taken.ok()) LogError("controller", id, ": ", taken.message());
  return taken;
}

absl::Status Drills::TakeEvent(Running* running, const DrillEventRecord& event) {
  Running next = *running;
  std::vector<DrillEffect> effects;
  Fold(&next, event, &effects);
  StoredDrill stored;
  stored.id = next.drill.id;
  stored.environment = next.drill.spec.environment;
  stored.service = next.drill.spec.service;
  stored.ended = IsFinal(next.drill.state);
  v1::Drill snapshot = ToWire(next.drill);
  snapshot.set_last_sequence(next.history.size());
  stored.snapshot = snapshot.SerializeAsString();
  RB_RETURN_IF_ERROR(store_.AppendEvent(stored, event.sequence, EncodeDrillEvent(event), next.drill.idempotency_key));
  *running = std::move(next);
  const Drill drill = running->drill;
  if (stored.ended) running_.erase(drill.id);
  if (on_change_) on_change_(drill);
  CarryOut(drill.id, effects);
  if (stored.ended) Ended(drill);
  return absl::OkStatus();
}

void Drills::CarryOut(const std::string& id, const std::vector<DrillEffect>& effects) {
  for (const DrillEffect& effect : effects) {
    if (const auto* begin = std::get_if<BeginOperation>(&effect)) {
      loop_.PostResult([this, id, effect = *begin] { Begin(id, effect); });
    } else if (const auto* abort = std::get_if<AbortOperation>(&effect)) {
      loop_.PostResult([this, id, effect = *abort] {
        const absl::StatusOr<v1::Operation> operation = driver_.Get(effect.operation_id, nullptr);
        // What has begun to commit is at its end in a moment, and taking it back would take longer.
        const bool is_early =
            operation.ok() &&
            (operation->state() == v1::OPERATION_STATE_PLANNED || operation->state() == v1::OPERATION_STATE_LOCKED ||
             operation->state() == v1::OPERATION_STATE_PREPARING || operation->state() == v1::OPERATION_STATE_WAITING);
        if (is_early) driver_.Ask(effect.operation_id, AbortRequested{id, effect.reason}).status().IgnoreError();
      });
    } else if (const auto* send = std::get_if<SendFault>(&effect)) {
      if (send->delay == absl::ZeroDuration()) {
        Send(id, *send);
      } else {
        loop_.PostAt(clock_.Monotonic() + send->delay, [this, id, effect = *send] { Send(id, effect); });
      }
    } else if (const auto* timer = std::get_if<ArmDrillTimer>(&effect)) {
      loop_.PostAt(clock_.Monotonic() + timer->after, [this, id, number = timer->timer] {
        if (!Take(id, DrillTimeUp{number}).ok()) CarryOut(id, {ArmDrillTimer{number, kStoreRetry}});
      });
    } else if (std::holds_alternative<KillThisController>(effect)) {
      LogWarning("controller", id, ": the controller kills itself, as this drill asks for");
      kill(getpid(), SIGKILL);
    }
  }
}

bool Drills::WaitsForAgents(const Drill& drill) const {
  return clock_.Monotonic() - resumed_ < kAgentsComeBack &&
         std::any_of(drill.hosts.begin(), drill.hosts.end(),
                     [this](const DrillHost& host) { return !driver_.agents().IsConnected(host.host); });
}

void Drills::Begin(const std::string& id, const BeginOperation& effect) {
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  if (WaitsForAgents(found->second->drill)) {
    // No drill is to fail because we were back before them. What is outstanding then may be something else.
    loop_.PostAt(clock_.Monotonic() + kLookForAgents, [this, id, role = effect.role] {
      const auto still = running_.find(id);
      if (still == running_.end()) return;
      for (const DrillEffect& outstanding :
           OutstandingDrillEffects(still->second->drill, "", Elapsed(*still->second))) {
        const auto* begin = std::get_if<BeginOperation>(&outstanding);
        if (begin != nullptr && begin->role == role) Begin(id, *begin);
      }
    });
    return;
  }
  RB_FAILPOINT("controller.drills.before-begin");
  driver_.Start(
      effect.spec, found->second->drill.requested_by, KeyOf(id, effect.role), nullptr,
      [this, id, role = effect.role](const Driver::Started& started) {
        if (started.status.ok() && !started.refusal.refused()) {
          Take(id, OperationBegan{role, started.operation.id(), started.operation.requested_by()}).IgnoreError();
          SeeOperation(id, started.operation.id());
          return;
        }
        OperationRefused refused{role, std::string(started.status.message()),
                                 started.refusal.code == Refusal::Code::kHostProblem};
        if (started.status.ok()) refused.why = started.refusal.message;
        Take(id, refused).IgnoreError();
      });
}

// It may have ended while nobody looked.
void Drills::SeeOperation(const std::string& drill_id, const std::string& operation_id) {
  const absl::StatusOr<v1::Operation> operation = driver_.Get(operation_id, nullptr);
  if (!operation.ok() || !operation->has_ended_at()) return;
  Take(drill_id, OperationEnded{DrillOperationOf(*operation)}).IgnoreError();
}

void Drills::Send(const std::string& id, const SendFault& effect) {
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  v1::ConnectResponse message;
  *message.mutable_task() = FaultTask(found->second->drill, effect);
  // Where the agent is not connected: sent again when it is.
  sender_.Send(effect.host, std::move(message));
}

std::string Drills::Busy(const std::string& service, const std::string& environment) {
  for (const auto& [id, running] : running_) {
    if (running->drill.spec.service == service) return id;
  }
  return driver_.HolderOf(service, environment);
}

Drills::Started Drills::Start(const DrillSpec& spec, const std::string& by, const std::string& idempotency_key,
                              const std::string& after_drill_id) {
  Started answer;
  if (idempotency_key.size() > kLongestKey) {
    answer.status = absl::InvalidArgumentError("the idempotency key is too long. Nothing was changed");
    return answer;
  }
  if (const absl::StatusOr<std::string> known =
          idempotency_key.empty() ? std::string() : store_.DrillOfKey(idempotency_key);
      known.ok() && !known->empty()) {
    absl::StatusOr<v1::GetDrillResponse> got = Get(*known, 0);
    answer.status = got.status();
    if (got.ok()) answer.drill = got->drill();
    return answer;
  }
  if (running_.size() >= kMostRunning) {
    answer.status = absl::ResourceExhaustedError("too many drills are running. Nothing was changed");
    return answer;
  }
  std::map<std::string, DrillCandidate> candidates;
  std::string service = spec.service;
  for (const auto& [name, one] : fleet_.services) {
    const auto hosts = one.hosts.find(spec.environment);
    if (hosts == one.hosts.end() || (!spec.service.empty() && spec.service != name)) continue;
    service = name;
    for (const std::string& host : hosts->second) {
      DrillCandidate& candidate = candidates[host];
      candidate.host = host;
      candidate.connected = driver_.agents().IsConnected(host);
      candidate.verdict = driver_.agents().LastVerdict(host, name);
      const v1::ServiceReport* report = driver_.agents().ReportOf(host, name);
      if (report == nullptr) continue;
      candidate.failing = TextOf(TellingFailure(*report));
      for (const int kind : report->allowed_faults()) {
        if (kind >= v1::FAULT_KIND_BAD_CODE && kind <= v1::FAULT_KIND_DISK_FULL) {
          candidate.allowed.push_back(static_cast<FaultKind>(kind - 1));
        }
      }
      candidate.has_fault = report->has_fault() && report->fault().state() != v1::FaultReport::STATE_ENDED &&
                            report->fault().state() != v1::FaultReport::STATE_UNSPECIFIED;
    }
  }
  DrillScope scope = ResolveDrill(spec, fleet_, candidates, Busy(service, spec.environment), clock_.Now());
  if (scope.refusal.refused()) {
    answer.refusal = std::move(scope.refusal);
    return answer;
  }
  DrillAccepted accepted;
  accepted.id = NewDrillId(clock_.Now());
  accepted.spec = scope.spec;
  accepted.policy = scope.policy;
  accepted.requested_by = by;
  accepted.idempotency_key = idempotency_key;
  accepted.after_drill_id = after_drill_id;
  accepted.hosts = scope.hosts;
  const std::string id = accepted.id;
  auto running = std::make_unique<Running>();
  running->accepted_monotonic = clock_.Monotonic();
  DrillEventRecord event;
  event.sequence = 1;
  event.at = clock_.Now();
  event.body = std::move(accepted);
  Running* const raw = running.get();
  running_[id] = std::move(running);
  if (const absl::Status taken = TakeEvent(raw, event); !taken.ok()) {
    running_.erase(id);
    answer.refusal.code = Refusal::Code::kStoreFull;
    answer.refusal.message =
        absl::StrCat("the drill could not be recorded: ", taken.message(), ". Nothing was changed");
    return answer;
  }
  answer.drill = ToWire(raw->drill);
  return answer;
}

absl::StatusOr<v1::GetDrillResponse> Drills::Get(const std::string& id, uint64_t after_sequence) {
  RB_ASSIGN_OR_RETURN(const StoredDrill stored, store_.Find(id));
  const auto found = running_.find(stored.id);
  std::unique_ptr<Running> ended;
  if (found == running_.end()) {
    RB_ASSIGN_OR_RETURN(ended, Load(stored.id));
  }
  const Running& running = found == running_.end() ? *ended : *found->second;
  v1::GetDrillResponse response;
  *response.mutable_drill() = ToWire(running.drill);
  response.mutable_drill()->set_last_sequence(running.history.size());
  // What an alert would not say is told when it is over.
  const bool secret = running.drill.spec.by_hand && !IsFinal(running.drill.state);
  for (const v1::DrillEvent& event : running.history) {
    if (event.sequence() <= after_sequence) continue;
    *response.add_events() = event;
    if (secret && absl::StartsWith(event.text(), "injecting")) {
      response.mutable_events()->rbegin()->set_text("injecting the fault");
    }
  }
  return response;
}

absl::StatusOr<v1::ListDrillsResponse> Drills::List(const v1::ListDrillsRequest& request) {
  const size_t limit = request.limit() == 0 ? kDrillsListed : std::min<size_t>(request.limit(), kMostDrillsListed);
  RB_ASSIGN_OR_RETURN(const std::vector<StoredDrill> stored,
                      store_.List(request.environment(), request.service(), limit));
  v1::ListDrillsResponse response;
  for (const StoredDrill& one : stored) {
    if (!response.add_drills()->ParseFromString(one.snapshot)) {
      return absl::DataLossError(absl::StrCat("the record of ", one.id, " is damaged"));
    }
  }
  return response;
}

absl::Status Drills::LearnEnded() {
  RB_ASSIGN_OR_RETURN(const std::vector<StoredDrill> stored, store_.List("", "", kMostDrillsListed));
  for (const StoredDrill& one : stored) {
    v1::Drill drill;
    if (!one.ended || !drill.ParseFromString(one.snapshot)) continue;
    RB_ASSIGN_OR_RETURN(const DrillSpec spec, FromWire(drill.spec()));
    LastDrill last = {one.id,
                      one.environment,
                      one.service,
                      spec.fault,
                      static_cast<DrillState>(static_cast<int>(drill.state()) - 1),
                      FromProto(drill.ended_at()),
                      {}};
    for (const v1::DrillPhase& phase : drill.phases()) {
      DrillPhase& added = last.phases.emplace_back();
      added.name = phase.name();
      if (phase.has_took()) added.took = FromProto(phase.took());
      added.target = FromProto(phase.target());
      added.met = phase.met();
    }
    ended_.Learn(last);
  }
  return absl::OkStatus();
}

void Drills::Measure(MetricSamples* samples) const {
  std::map<LabelValues, double> running;
  for (const auto& [name, service] : fleet_.services) {
    for (const auto& [environment, hosts] : service.hosts) running[{environment, name}] = 0;
  }
  for (const auto& [id, one] : running_) ++running[{one->drill.spec.environment, one->drill.spec.service}];
  for (const auto& [labels, count] : running) samples->Set(Metric::kDrillsRunning, labels, count);
  ended_.Measure(samples);
}

absl::StatusOr<v1::Drill> Drills::Stop(const std::string& id, const std::string& by, const std::string& reason) {
  RB_ASSIGN_OR_RETURN(const StoredDrill stored, store_.Find(id));
  if (running_.count(stored.id) == 0) {
    return absl::FailedPreconditionError(absl::StrCat(stored.id, " has ended. Nothing was changed"));
  }
  RB_RETURN_IF_ERROR(Take(stored.id, StopAsked{by, reason}));
  RB_ASSIGN_OR_RETURN(const v1::GetDrillResponse got, Get(stored.id, 0));
  return got.drill();
}

absl::StatusOr<v1::Drill> Drills::Approve(const std::string& id, const std::string& by, const std::string& reason) {
  RB_ASSIGN_OR_RETURN(const StoredDrill stored, store_.Find(id));
  const auto found = running_.find(stored.id);
  if (found == running_.end() || found->second->drill.state != DrillState::kPlanned) {
    return absl::FailedPreconditionError(absl::StrCat(stored.id, " waits for no approval. Nothing was changed"));
  }
  if (found->second->drill.requested_by == by) {
    return absl::FailedPreconditionError(
        absl::StrCat("another operator than ", by, ", who asked for it, has to approve. Nothing was changed"));
  }
  RB_RETURN_IF_ERROR(Take(stored.id, DrillApproved{by, reason}));
  RB_ASSIGN_OR_RETURN(const v1::GetDrillResponse got, Get(stored.id, 0));
  return got.drill();
}

// ---- what happens meanwhile

void Drills::OnOperation(const Operation& operation, bool is_new) {
  for (const auto& [id, running] : running_) {
    const Drill& drill = running->drill;
    const OperationSpec& spec = operation.plan.spec;
    const bool is_ours = spec.drill_id == id;
    // The driver is in the middle of its own event: what comes of this waits.
    if (is_ours && is_new && drill.spec.by_hand && spec.kind != OperationKind::kBackup &&
        spec.kind != OperationKind::kVerification) {
      loop_.PostResult([this, id = id, operation_id = operation.id, by = operation.requested_by] {
        Take(id, OperationBegan{DrillRole::kRecovery, operation_id, by}).IgnoreError();
      });
    }
    if (is_ours && operation.state == OperationState::kCommitting) {
      loop_.PostResult(
          [this, id = id, operation_id = operation.id] { Take(id, OperationCommits{operation_id}).IgnoreError(); });
    }
    if (is_ours && IsFinal(operation.state)) {
      loop_.PostResult([this, id = id, ended = DrillOperationOf(ToWire(operation))] {
        Take(id, OperationEnded{ended}).IgnoreError();
      });
    }
    const bool is_real = is_new && spec.drill_id.empty() && spec.service == drill.spec.service &&
                         (spec.emergency || (ChangesHosts(spec.kind) && IsAbout(spec, drill.spec)));
    if (is_real) {
      loop_.PostResult([this, id = id, what = absl::StrCat(operation.requested_by, " has begun ", operation.id)] {
        Take(id, IncidentSeen{what}).IgnoreError();
      });
    }
  }
}

void Drills::OnAgentConnected(const std::string& agent) {
  std::vector<std::pair<std::string, std::vector<DrillEffect>>> owed;
  for (const auto& [id, running] : running_) {
    owed.emplace_back(id, OutstandingDrillEffects(running->drill, agent, Elapsed(*running)));
  }
  for (const auto& [id, effects] : owed) CarryOut(id, effects);
}

void Drills::OnReport(const std::string& agent, const v1::ServiceReport& report) {
  std::vector<std::string> ids;
  for (const auto& [id, running] : running_) {
    if (running->drill.spec.service == report.service()) ids.push_back(id);
  }
  for (const std::string& id : ids) {
    Running& running = *running_.at(id);
    const Drill& drill = running.drill;
    const bool healthy = report.verdict() == v1::VERDICT_HEALTHY;
    const DrillHost* host = nullptr;
    for (const DrillHost& one : drill.hosts) {
      if (one.host == agent) host = &one;
    }
    const bool is_disk_full = drill.spec.fault == FaultKind::kDiskFull;
    const v1::ProbeResult* const failure = TellingFailure(report, is_disk_full);
    const bool is_watching = drill.state == DrillState::kInjecting || drill.state == DrillState::kDetecting;
    if (host == nullptr || !host->has_fault) {
      if (healthy) {
        running.healthy.insert(agent);
      } else if (is_watching && running.healthy.count(agent) != 0) {
        Take(id, IncidentSeen{absl::StrCat(agent, ", which has no fault, is unhealthy: ", TextOf(failure))})
            .IgnoreError();
      }
      continue;
    }
    const bool ended =
        report.has_fault() && report.fault().drill_id() == id && report.fault().state() == v1::FaultReport::STATE_ENDED;
    if (ended && !host->ended && (drill.state == DrillState::kUndoing || report.fault().ended_alone())) {
      FaultAnswered answer;
      answer.host = agent;
      answer.of_end = drill.state == DrillState::kUndoing;
      answer.ok = true;
      answer.report = FromWire(report.fault());
      Take(id, std::move(answer)).IgnoreError();
      continue;
    }
    if (!is_watching || !host->injected || host->detected_after.has_value()) continue;
    const bool is_well = healthy && (!is_disk_full || failure == nullptr);
    if (is_well ? !host->suspect_since.has_value() : failure == nullptr) continue;
    HostSeen seen;
    seen.host = agent;
    seen.healthy = is_well;
    seen.probe_kind = is_well ? "" : failure->kind();
    seen.probe = is_well ? "" : TextOf(failure);
    Take(id, std::move(seen)).IgnoreError();
  }
}

bool Drills::OnFaultResult(const std::string& agent, const v1::TaskResult& result) {
  if (!absl::StartsWith(result.operation_id(), kPrefix)) return false;
  FaultAnswered answer;
  answer.host = agent;
  answer.of_end = absl::StrContains(result.step_id(), "/end/");
  answer.ok = result.code() == 0;
  answer.message = result.message();
  if (result.has_fault()) answer.report = FromWire(result.fault());
  if (Take(result.operation_id(), answer).ok()) return true;
  loop_.PostAt(clock_.Monotonic() + kStoreRetry, [this, agent, result] { OnFaultResult(agent, result); });
  return true;
}

std::string Drills::DrillOf(const OperationSpec& spec) {
  if (!ChangesHosts(spec.kind) || spec.emergency) return "";
  for (const auto& [id, running] : running_) {
    if (WaitsForPerson(running->drill) && IsAbout(spec, running->drill.spec)) return id;
  }
  return "";
}

bool Drills::GiveWay(const std::string& holder_operation_id, const OperationSpec& spec) {
  for (const auto& [id, running] : running_) {
    for (const auto& [role, operation] : running->drill.operations) {
      if (operation.id != holder_operation_id || !ChangesHosts(spec.kind)) continue;
      loop_.PostResult(
          [this, id = id] { Take(id, IncidentSeen{"an operator wants to change the same service"}).IgnoreError(); });
      return true;
    }
  }
  return false;
}

void Drills::Ended(const Drill& drill) {
  LogInfo("controller", drill.id, " ", std::string(NameOf(drill.state)), ": ", drill.summary);
  ended_.Count({drill.id, drill.spec.environment, drill.spec.service, drill.spec.fault, drill.state, drill.ended_at,
                PhasesOf(drill)});
  if (drill.state != DrillState::kPassed || drill.spec.then.empty()) return;
  DrillSpec next = drill.spec;
  next.environment = drill.spec.then.front();
  next.then.erase(next.then.begin());
  next.hosts.clear();
  const Started started = Start(next, drill.requested_by, KeyOfNext(drill.id), drill.id);
  if (started.status.ok() && !started.refusal.refused()) return;
  const std::string why = started.status.ok() ? started.refusal.message : std::string(started.status.message());
  LogWarning("controller", drill.id, " does not go on in ", next.environment, ": ", why);
  // Their ids sort by time.
  stuck_[drill.id] = why;
  if (stuck_.size() > kMostRunning) stuck_.erase(stuck_.begin());
}

std::string Drills::NextOf(const std::string& id, std::string* why) {
  const absl::StatusOr<std::string> next = store_.DrillOfKey(KeyOfNext(id));
  if (next.ok() && !next->empty()) return *next;
  const auto stuck = stuck_.find(id);
  *why = !next.ok()              ? std::string(next.status().message())
         : stuck != stuck_.end() ? stuck->second
                                 : "the controller was ended at that moment";
  return "";
}

}  // namespace rb::controller
