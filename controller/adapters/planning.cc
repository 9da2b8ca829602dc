#include "controller/adapters/planning.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/text.h"
#include "controller/adapters/history.h"
#include "controller/adapters/wire.h"

namespace rb::controller {
namespace {

constexpr absl::Duration kInspectPatience = absl::Seconds(20);
// A deploy brings the mirror up to date first.
constexpr absl::Duration kFetchPatience = absl::Minutes(5);
// Hosts that gave way to another operation's step are asked again so much later, within the same patience.
constexpr absl::Duration kLookAgainAfter = absl::Milliseconds(250);
constexpr size_t kHistoryForGates = 100;
// Waited for like a host; no host has such a name.
constexpr char kCi[] = "/ci";
// Hosts that are named with what they last said.
constexpr size_t kMostNoted = 10;

}  // namespace

absl::StatusOr<std::string> LockHolder(Store& store, const OperationSpec& spec, std::string* environment) {
  for (const std::string& one : EnvironmentsOf(spec)) {
    RB_ASSIGN_OR_RETURN(const std::string holder, store.LockHolder(spec.service, one));
    if (holder.empty()) continue;
    *environment = one;
    return holder;
  }
  return std::string();
}

absl::StatusOr<PlanningHistory> Planning::HistoryFor(const Scope& scope) {
  PlanningHistory history;
  history.now = clock_.Now();
  history.quarantined = QuarantinedOf(quarantine_, scope.spec.service);
  RB_ASSIGN_OR_RETURN(history.lock_holder, LockHolder(store_, scope.spec, &history.locked_environment));
  RB_ASSIGN_OR_RETURN(const std::vector<ListedOperation> operations,
                      store_.List("", scope.spec.service, "", kHistoryForGates * fleet_.environments.size()));
  for (const ListedOperation& stored : operations) {
    v1::Operation operation;
    if (!operation.ParseFromString(stored.brief) || operation.state() != v1::OPERATION_STATE_SUCCEEDED ||
        operation.hosts().empty()) {
      continue;
    }
    RB_ASSIGN_OR_RETURN(const OperationSpec spec, FromWire(operation.spec()));
    LearnPassed(spec, operation.hosts(0).to_commit(), FromProto(operation.ended_at()), &history);
  }
  if (ChangesHosts(scope.spec.kind)) {
    RB_ASSIGN_OR_RETURN(const std::vector<StoredTime> times, store_.Times(scope.spec.service));
    LearnTimes(times, &history);
  }
  if (scope.spec.kind == OperationKind::kUndo) {
    const absl::StatusOr<StoredOperation> stored = store_.Find(scope.spec.undo_operation_id);
    v1::Operation operation;
    if (stored.ok() && operation.ParseFromString(stored->snapshot) && stored->environment == scope.spec.environment) {
      std::map<std::string, std::string> releases;
      for (const v1::HostProgress& host : operation.hosts()) {
        if (!host.replaced_release().empty()) releases[host.host()] = host.replaced_release();
      }
      history.undo_releases = std::move(releases);
      history.undo_operation_id = stored->id;
      RB_ASSIGN_OR_RETURN(const OperationSpec undone, FromWire(operation.spec()));
      history.undo_components = undone.components;
    }
  }
  return history;
}

void Planning::Make(const OperationSpec& asked, bool only_plan, Done done) {
  OperationSpec spec = asked;
  Inspecting inspecting;
  inspecting.scope.spec = spec;
  if (spec.kind == OperationKind::kRepair) inspecting.scope.refusal = ResolveRepair(intents_, clock_.Now(), &spec);
  if (!inspecting.scope.refusal.refused()) inspecting.scope = ResolveScope(spec, fleet_);
  // Looking needs no reason.
  if (only_plan && inspecting.scope.refusal.code == Refusal::Code::kReasonRequired)
    inspecting.scope.refusal = Refusal();
  inspecting.done = std::move(done);
  const std::string key = absl::StrCat("plan-", RandomHex(6));
  absl::StatusOr<PlanningHistory> history = PlanningHistory();
  if (!inspecting.scope.refusal.refused()) history = HistoryFor(inspecting.scope);
  if (!history.ok()) {
    inspecting.scope.refusal.code = Refusal::Code::kStoreFull;
    inspecting.scope.refusal.message = absl::StrCat(history.status().message(), ". Nothing was changed");
  } else {
    inspecting.history = *std::move(history);
    NarrowToUndone(inspecting.history, &inspecting.scope);
  }
  // Whoever holds the lock is at work on these hosts: they are not to be disturbed by looking.
  const bool look = !inspecting.scope.refusal.refused() && inspecting.history.lock_holder.empty();
  if (look) {
    for (const std::string& host : inspecting.scope.hosts) Look(key, host, &inspecting);
  }
  if (look) LookAtCi(inspecting.scope.spec, key, &inspecting);
  const bool wait = !inspecting.waiting.empty();
  const bool fetches = spec.kind == OperationKind::kDeploy || spec.method == Method::kRedeploy;
  const absl::Duration patience = fetches ? kFetchPatience : kInspectPatience;
  inspecting.until = clock_.Monotonic() + patience;
  loop_.PostAt(inspecting.until, [this, key] { Finish(key); });
  inspecting_[key] = std::move(inspecting);
  if (!wait) Finish(key);
}

void Planning::Look(const std::string& key, const std::string& host, Inspecting* inspecting) {
  std::string undo_release;
  if (inspecting->scope.spec.kind == OperationKind::kUndo) {
    if (!inspecting->history.undo_releases.has_value() || inspecting->history.undo_releases->count(host) == 0) {
      inspecting->inspections[host].connected = true;
      return;
    }
    undo_release = inspecting->history.undo_releases->at(host);
  }
  v1::ConnectResponse message;
  *message.mutable_task() = InspectTask(inspecting->scope.spec, absl::StrCat(key, "/", host), undo_release);
  if (sender_.Send(host, std::move(message))) {
    inspecting->waiting.insert(host);
  } else {
    inspecting->inspections[host].connected = false;
  }
}

bool Planning::LooksAgain(const std::string& key, Inspecting* inspecting) {
  if (inspecting->gave_way.empty() || clock_.Monotonic() + kLookAgainAfter >= inspecting->until) return false;
  std::string environment;
  const absl::StatusOr<std::string> holder = LockHolder(store_, inspecting->scope.spec, &environment);
  if (!holder.ok()) return false;
  if (!holder->empty()) {
    // As if the lock had been held when looking began: nobody is judged by what was seen half.
    for (const std::string& host : inspecting->gave_way) inspecting->inspections.erase(host);
    return false;
  }
  loop_.PostAt(clock_.Monotonic() + kLookAgainAfter, [this, key] {
    const auto found = inspecting_.find(key);
    if (found == inspecting_.end()) return;
    for (const std::string& host : std::exchange(found->second.gave_way, {})) Look(key, host, &found->second);
    if (found->second.waiting.empty()) Finish(key);
  });
  return true;
}

void Planning::LookAtCi(const OperationSpec& spec, const std::string& key, Inspecting* inspecting) {
  if (ci_ == nullptr || spec.kind != OperationKind::kRollback || !ci_->Has(spec.service)) return;
  if (spec.method == Method::kAuto) {
    inspecting->history.ci_unavailable_because = ci_->WhyUnavailable(spec.service);
  } else if (spec.method == Method::kRedeploy) {
    inspecting->waiting.insert(kCi);
    ci_->Check(spec.service, [this, key](const std::string& why) {
      const auto found = inspecting_.find(key);
      if (found == inspecting_.end() || found->second.waiting.erase(kCi) == 0) return;
      found->second.history.ci_unavailable_because = why;
      if (found->second.waiting.empty()) Finish(std::string(found->first));
    });
  }
}

void Planning::Finish(const std::string& key) {
  const auto found = inspecting_.find(key);
  if (found == inspecting_.end() || LooksAgain(key, &found->second)) return;
  Inspecting inspecting = std::move(found->second);
  inspecting_.erase(found);
  if (inspecting.waiting.erase(kCi) != 0) inspecting.history.ci_unavailable_because = "CI did not answer in time";
  for (const std::string& host : inspecting.waiting) {
    inspecting.inspections[host].connected = true;
    inspecting.inspections[host].error = "the agent did not answer in time";
  }
  for (auto& [host, inspection] : inspecting.inspections) {
    if (inspection.verdict == Verdict::kUnknown)
      inspection.verdict = agents_.LastVerdict(host, inspecting.scope.spec.service);
  }
  // Another operation may have taken the lock meanwhile.
  if (const absl::StatusOr<std::string> holder =
          LockHolder(store_, inspecting.scope.spec, &inspecting.history.locked_environment);
      holder.ok()) {
    inspecting.history.lock_holder = *holder;
  }
  Plan plan = MakePlan(inspecting.scope, fleet_, inspecting.inspections, inspecting.history);
  NoteWhatWasSeen(inspecting.scope, &plan);
  inspecting.done(std::move(plan));
}

void Planning::NoteWhatWasSeen(const Scope& scope, Plan* plan) const {
  if (!ChangesHosts(scope.spec.kind)) return;
  size_t noted = 0;
  for (const std::string& host : scope.hosts) {
    const v1::ServiceReport* report = agents_.ReportOf(host, scope.spec.service);
    if (report == nullptr || report->verdict() != v1::VERDICT_UNHEALTHY) continue;
    if (++noted > kMostNoted) {
      plan->notes.push_back("and more hosts were not healthy before this");
      return;
    }
    for (const v1::ProbeResult& probe : report->probes()) {
      if (probe.passed() || probe.external()) continue;
      plan->notes.push_back(absl::StrCat(host, " was not healthy before this, as it last said ",
                                         FormatUtc(FromProto(report->reported_at())), ": ", probe.name(), ": saw ",
                                         Truncate(probe.observed(), 200)));
      break;
    }
  }
}

void Planning::OnAgentLost(const std::string& agent) {
  std::vector<std::string> ready;
  for (auto& [key, inspecting] : inspecting_) {
    if (inspecting.waiting.erase(agent) == 0) continue;
    inspecting.inspections[agent].connected = false;
    if (inspecting.waiting.empty()) ready.push_back(key);
  }
  for (const std::string& key : ready) Finish(key);
}

bool Planning::OnResult(const std::string& agent, const v1::TaskResult& result) {
  // The answer to an inspection: "plan-KEY/HOST".
  const std::string& id = result.operation_id();
  const size_t slash = id.find('/');
  if (slash == std::string::npos) return false;
  const auto found = inspecting_.find(id.substr(0, slash));
  if (found != inspecting_.end() && found->second.waiting.erase(agent) != 0) {
    found->second.inspections[agent] = InspectionFromWire(result);
    if (result.code() == static_cast<int>(absl::StatusCode::kCancelled)) found->second.gave_way.insert(agent);
    if (found->second.waiting.empty()) Finish(std::string(found->first));
  }
  return true;
}

}  // namespace rb::controller
