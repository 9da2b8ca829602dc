#include "controller/adapters/schedules.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "common/digest.h"
#include "common/log.h"
#include "common/status.h"

namespace rb::controller {
namespace {

// The wall clock may jump, so it is looked at rather than waited for.
constexpr absl::Duration kLookEvery = absl::Seconds(1);
// Agents find a controller that has just started within that; a run that is due waits for those of its hosts.
constexpr absl::Duration kAgentsComeBack = absl::Minutes(1);
constexpr char kRunning[] = "running";
constexpr char kRegistered[] = "registered";

}  // namespace

Schedules::Schedules(Fleet fleet, DrillStore& store, Driver& driver, Drills& drills, EventLoop& loop, Clock& clock)
    : fleet_(std::move(fleet)), store_(store), driver_(driver), drills_(drills), loop_(loop), clock_(clock) {
  for (const ScheduleEntry& entry : fleet_.schedules) {
    Entry& one = entries_[entry.name];
    one.entry = entry;
    ParseCron(entry.cron, &one.cron, &one.problem);
  }
}

absl::Status Schedules::Resume() {
  RB_ASSIGN_OR_RETURN(const std::vector<ScheduleRun> runs, store_.LastRuns());
  for (const ScheduleRun& run : runs) {
    const auto found = entries_.find(run.schedule);
    if (found != entries_.end()) found->second.last = run;
  }
  for (auto& [name, one] : entries_) {
    if (one.last.schedule.empty()) {
      // From now on: what was due before anybody wrote it down is not made up.
      one.last = {name, clock_.Now(), clock_.Now(), kRegistered, ""};
      RB_RETURN_IF_ERROR(store_.BeginRun(one.last));
    } else if (one.last.outcome == kRunning) {
      // Its keys find what it had begun: nothing begins twice.
      one.resumes = true;
    }
  }
  began_ = clock_.Monotonic();
  if (!entries_.empty()) loop_.PostResult([this] { Look(); });
  return absl::OkStatus();
}

void Schedules::Look() {
  for (auto& [name, one] : entries_) {
    if (one.last.outcome != kRunning) {
      BeginDue(&one);
    } else if (!one.resumes) {
      SeeEnds(&one);
    } else if (HostsAreKnown(one)) {
      one.resumes = false;
      Execute(name);
    }
  }
  loop_.PostAt(clock_.Monotonic() + kLookEvery, [this] { Look(); });
}

void Schedules::BeginDue(Entry* one) {
  const ScheduleDecision decision = DecideSchedule(one->entry, one->cron, one->last.due_at, clock_.Now());
  if (!decision.due.has_value() || !HostsAreKnown(*one)) return;
  ScheduleRun run;
  run.schedule = one->entry.name;
  run.due_at = *decision.due;
  run.began_at = clock_.Now();
  run.outcome = kRunning;
  if (decision.is_late || decision.missed > 0) {
    const uint32_t missed = decision.missed + (decision.is_late ? 1 : 0);
    one->missed += missed;
    run.message = absl::StrCat(missed, " missed");
    if (one->entry.only_report_missed && decision.is_late) run.outcome = "missed";
  }
  // On record first: a run that is on record does not begin again.
  if (const absl::Status begun = store_.BeginRun(run); !begun.ok() && !absl::IsAlreadyExists(begun)) {
    LogError("controller", "schedule ", one->entry.name, ": ", begun.message());
    return;
  }
  one->last = run;
  if (run.outcome == kRunning) {
    LogInfo("controller", "schedule ", one->entry.name, ": ", one->entry.kind, " is due");
    Execute(one->entry.name);
  } else {
    LogWarning("controller", "schedule ", one->entry.name, ": missed, and not made up");
  }
}

bool Schedules::HostsAreKnown(const Entry& one) const {
  if (clock_.Monotonic() - began_ > kAgentsComeBack) return true;
  for (const auto& [name, service] : fleet_.services) {
    if (!one.entry.service.empty() && one.entry.service != name) continue;
    for (const std::string& environment : one.entry.environments) {
      const auto hosts = service.hosts.find(environment);
      if (hosts == service.hosts.end()) continue;
      for (const std::string& host : hosts->second) {
        if (!driver_.agents().IsConnected(host) || driver_.agents().ReportOf(host, name) == nullptr) return false;
      }
    }
  }
  return true;
}

void Schedules::Execute(const std::string& name) {
  Entry& one = entries_.at(name);
  one.operations.clear();
  one.drill.clear();
  one.waiting = 0;
  const std::string key = Sha256Of(absl::StrCat(name, "/", absl::ToUnixMicros(one.last.due_at))).ToHex().substr(0, 32);
  const std::string by = absl::StrCat("schedule ", name);
  if (one.entry.kind == "drill") {
    DrillSpec spec;
    ParseFaultKind(one.entry.fault, &spec.fault);
    spec.environment = one.entry.environments.front();
    spec.then.assign(one.entry.environments.begin() + 1, one.entry.environments.end());
    spec.service = one.entry.service;
    spec.method = one.entry.method == "git"      ? Method::kGit
                  : one.entry.method == "backup" ? Method::kBackup
                                                 : Method::kAuto;
    spec.reason = by;
    spec.schedule = name;
    const Drills::Started started = drills_.Start(spec, by, key);
    if (!started.status.ok() || started.refusal.refused()) {
      End(&one, "refused", started.status.ok() ? started.refusal.message : std::string(started.status.message()));
    } else {
      one.drill = started.drill.id();
    }
    return;
  }
  for (size_t i = 0; i < one.entry.environments.size(); ++i) {
    OperationSpec spec;
    // A proof is a backup of what runs now, which is really restored before it ends: an unchanged tree gives the
    // release that there is, proved anew.
    spec.kind = one.entry.kind == "prune" ? OperationKind::kPrune : OperationKind::kBackup;
    spec.prove = one.entry.kind == "proof";
    spec.environment = one.entry.environments[i];
    spec.service = one.entry.service;
    spec.reason = absl::StrCat(by, " (", one.entry.kind, ")");
    spec.wait_for_lock = absl::Minutes(30);
    ++one.waiting;
    driver_.Start(spec, by, absl::StrCat(key, "/", i + 1), nullptr, [this, name](const Driver::Started& started) {
      Entry& begun = entries_.at(name);
      --begun.waiting;
      if (started.status.ok() && !started.refusal.refused()) {
        begun.operations.push_back(started.operation.id());
        return;
      }
      End(&begun, "refused", started.status.ok() ? started.refusal.message : std::string(started.status.message()));
    });
  }
}

void Schedules::SeeEnds(Entry* one) {
  if (one->waiting > 0) return;
  if (!one->drill.empty()) {
    const absl::StatusOr<v1::GetDrillResponse> got = drills_.Get(one->drill, UINT64_MAX);
    if (!got.ok() || !got->drill().has_ended_at()) return;
    const bool passed = got->drill().state() == v1::DRILL_STATE_PASSED;
    if (passed && !got->drill().spec().then().empty()) {
      // One after the other: the run is over with the last environment.
      std::string why;
      const std::string next = drills_.NextOf(one->drill, &why);
      if (next.empty()) {
        End(one, "failed",
            absl::StrCat(one->drill, " passed; it did not go on in ", got->drill().spec().then(0), ": ", why));
      }
      one->drill = next;
      return;
    }
    End(one, passed ? "done" : "failed", absl::StrCat(one->drill, ": ", got->drill().summary()));
    return;
  }
  if (one->operations.empty()) return;
  std::string failed;
  std::string done;
  for (const std::string& id : one->operations) {
    const absl::StatusOr<v1::Operation> operation = driver_.Get(id, nullptr);
    if (!operation.ok() || !operation->has_ended_at()) return;
    const std::string said = absl::StrCat(id, ": ", operation->summary());
    if (operation->state() != v1::OPERATION_STATE_SUCCEEDED) failed = said;
    absl::StrAppend(&done, done.empty() ? "" : "; ", said);
  }
  End(one, failed.empty() ? "done" : "failed", failed.empty() ? done : failed);
}

void Schedules::End(Entry* one, const std::string& outcome, const std::string& message) {
  const std::string missed = one->last.message;
  one->last.outcome = outcome;
  one->last.message = missed.empty() ? message : absl::StrCat(message, " (", missed, " before it)");
  if (outcome != "done") LogWarning("controller", "schedule ", one->entry.name, ": ", outcome, ": ", message);
  if (const absl::Status ended = store_.EndRun(one->last); !ended.ok()) {
    LogError("controller", "schedule ", one->entry.name, ": ", ended.message());
  }
}

bool Schedules::IsOverdue(const Entry& one) const {
  const std::string& outcome = one.last.outcome;
  if (outcome == "failed" || outcome == "refused" || outcome == "missed") return true;
  const ScheduleDecision decision = DecideSchedule(one.entry, one.cron, one.last.due_at, clock_.Now());
  return decision.due.has_value() && decision.is_late;
}

void Schedules::Measure(MetricSamples* samples) const {
  const auto seconds = [](absl::Time time) { return static_cast<double>(absl::ToUnixMillis(time)) / 1000; };
  for (const auto& [name, one] : entries_) {
    const LabelValues labels = {name, one.entry.kind};
    const absl::Time next = DecideSchedule(one.entry, one.cron, one.last.due_at, clock_.Now()).next;
    if (next != absl::InfiniteFuture()) samples->Set(Metric::kScheduleNext, labels, seconds(next));
    samples->Set(Metric::kScheduleOverdue, labels, IsOverdue(one) ? 1 : 0);
    samples->Set(Metric::kScheduleMissedRuns, labels, static_cast<double>(one.missed));
    if (one.last.outcome == kRegistered) continue;
    samples->Set(Metric::kScheduleLastBegan, labels, seconds(one.last.began_at));
    for (const char* outcome : {kRunning, "done", "failed", "refused", "missed"}) {
      samples->Set(Metric::kScheduleLastOutcome, {name, one.entry.kind, outcome}, one.last.outcome == outcome ? 1 : 0);
    }
  }
}

v1::ListSchedulesResponse Schedules::List() const {
  v1::ListSchedulesResponse response;
  for (const auto& [name, one] : entries_) {
    v1::Schedule* added = response.add_schedules();
    added->set_name(name);
    added->set_kind(one.entry.kind);
    added->set_cron(one.entry.cron);
    added->mutable_environments()->Add(one.entry.environments.begin(), one.entry.environments.end());
    added->set_service(one.entry.service);
    const ScheduleDecision decision = DecideSchedule(one.entry, one.cron, one.last.due_at, clock_.Now());
    if (decision.next != absl::InfiniteFuture()) *added->mutable_next_at() = ToProto(decision.next);
    if (one.last.outcome != kRegistered) {
      *added->mutable_last_due_at() = ToProto(one.last.due_at);
      *added->mutable_last_began_at() = ToProto(one.last.began_at);
      added->set_last_outcome(one.last.outcome);
      added->set_last_message(one.last.message);
    }
    added->set_overdue(IsOverdue(one));
  }
  return response;
}

}  // namespace rb::controller
