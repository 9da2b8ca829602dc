#include "agent/core/fault/fault_keeper.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "common/status.h"

namespace rb::agent {
namespace {

constexpr size_t kDrillsRemembered = 50;

}  // namespace

absl::string_view NameOf(FaultKind kind) {
  static constexpr absl::string_view kNames[] = {"bad-code",     "bad-database",      "bad-config", "host-power-cut",
                                                 "agent-killed", "controller-killed", "disk-full"};
  return kNames[static_cast<int>(kind)];
}

bool ParseFaultKind(absl::string_view text, FaultKind* kind) {
  for (const FaultKind one : kAllFaultKinds) {
    if (NameOf(one) != text) continue;
    *kind = one;
    return true;
  }
  return false;
}

bool StrikesDuringRecovery(FaultKind kind) {
  return kind == FaultKind::kHostPowerCut || kind == FaultKind::kAgentKilled || kind == FaultKind::kControllerKilled;
}

bool RestartsTheService(FaultKind kind) { return !StrikesDuringRecovery(kind) && kind != FaultKind::kDiskFull; }

bool IsOpen(const FaultRecord& record) {
  return record.state == FaultState::kRecorded || record.state == FaultState::kIn ||
         record.state == FaultState::kEnding;
}

bool HasStruck(const FaultRecord& record) { return record.struck && record.away > absl::ZeroDuration(); }

bool IsTimeUp(const FaultRecord& record, absl::Time now, absl::Duration monotonic) {
  return IsOpen(record) &&
         (record.state == FaultState::kEnding || now >= record.ends_at || monotonic >= record.ends_at_monotonic);
}

absl::Duration DeadlineAfterRestart(const FaultRecord& record, absl::Duration monotonic) {
  return std::min(record.ends_at_monotonic, monotonic + record.longest);
}

absl::Status FaultKeeper::Save() { return ports_.records->Save(record_); }

absl::Status FaultKeeper::Recover() {
  absl::StatusOr<FaultRecord> loaded = ports_.records->Load();
  if (absl::IsNotFound(loaded.status())) return absl::OkStatus();
  RB_RETURN_IF_ERROR(loaded.status());
  record_ = *std::move(loaded);
  if (!IsOpen(record_)) return absl::OkStatus();
  record_.ends_at_monotonic = DeadlineAfterRestart(record_, ports_.clock->Monotonic());
  if (record_.struck && record_.away == absl::ZeroDuration()) {
    record_.away = std::max(absl::Milliseconds(1), ports_.clock->Now() - record_.struck_at);
  }
  // Killed in the middle of injecting: nobody was told that it is in, so it is put back at once.
  if (record_.state == FaultState::kRecorded && !RB_PLANTED_BUG("half-injected-left"))
    record_.state = FaultState::kEnding;
  return Save();
}

absl::Status FaultKeeper::Inject(FaultKind kind, const std::string& drill_id, absl::Duration duration) {
  if (std::find(ports_.allowed.begin(), ports_.allowed.end(), kind) == ports_.allowed.end()) {
    return absl::FailedPreconditionError(absl::StrCat("this host does not allow ", NameOf(kind),
                                                      ": drills.allow in its agent.yaml does not name it. Nothing was "
                                                      "changed"));
  }
  if (IsOpen(record_) && record_.drill_id == drill_id && record_.state == FaultState::kIn) return absl::OkStatus();
  if (IsOpen(record_)) {
    return absl::FailedPreconditionError(
        absl::StrCat("the fault of ", record_.drill_id, " has not ended here. Nothing was changed"));
  }
  const auto& ended = record_.ended_drills;
  if (std::find(ended.begin(), ended.end(), drill_id) != ended.end()) {
    return absl::FailedPreconditionError(absl::StrCat("the fault of ", drill_id, " has ended. Nothing was changed"));
  }
  if (const std::string open = ports_.open_operation(); !open.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(open, " is open on this host. Nothing was changed"));
  }
  const bool strikes = StrikesDuringRecovery(kind);
  const bool restarts = RestartsTheService(kind);
  FaultRecord next;
  next.drill_id = drill_id;
  next.ended_drills = record_.ended_drills;
  next.plan.kind = kind;
  next.plan.what = absl::StrCat(NameOf(kind), " at the next swap");
  if (!strikes) {
    if (restarts) RB_RETURN_IF_ERROR(ports_.stop());
    absl::StatusOr<FaultPlan> plan = ports_.tools->Plan(kind, drill_id);
    if (!plan.ok()) {
      const absl::Status started = restarts ? ports_.start() : absl::OkStatus();
      return Annotate(plan.status(), started.ok() ? "nothing was changed"
                                                  : "nothing was changed, but the service did "
                                                    "not start again");
    }
    next.plan = *std::move(plan);
  }
  next.longest = std::min(duration, ports_.longest);
  next.injected_at = ports_.clock->Now();
  next.ends_at = next.injected_at + next.longest;
  next.ends_at_monotonic = ports_.clock->Monotonic() + next.longest;
  next.state = strikes ? FaultState::kIn : FaultState::kRecorded;
  std::swap(record_, next);
  RB_FAILPOINT("agent.fault.before-record");
  const bool undo_comes_late = RB_PLANTED_BUG("undo-recorded-late");
  absl::Status done = undo_comes_late ? absl::OkStatus() : Save();
  if (!done.ok()) {
    // Not on record: so nothing was broken.
    std::swap(record_, next);
    if (restarts) ports_.start().IgnoreError();
    return Annotate(done, "the undo of the fault could not be recorded; nothing was changed");
  }
  if (strikes) return absl::OkStatus();
  RB_FAILPOINT("agent.fault.after-record");
  done = ports_.tools->Break(record_.plan);
  RB_FAILPOINT("agent.fault.after-inject");
  if (done.ok()) done = ports_.tools->CheckBroken(record_.plan);
  if (done.ok()) {
    record_.state = FaultState::kIn;
    record_.injected_at = ports_.clock->Now();
    done = Save();
  }
  if (!done.ok()) {
    record_.state = FaultState::kEnding;
    const absl::Status mended = End(drill_id);
    return Annotate(done, mended.ok() ? "all was put back" : "it is put back as soon as that can be done");
  }
  if (!restarts) return absl::OkStatus();
  // That it does not start is what most faults are about.
  if (const absl::Status started = ports_.start(); !started.ok()) {
    LogInfo("agent", drill_id, ": with the fault in: ", started.message());
  }
  return absl::OkStatus();
}

absl::Status FaultKeeper::MendNow(bool may_be_stopped, uint32_t* put_back) {
  *put_back = 0;
  if (StrikesDuringRecovery(record_.plan.kind)) return absl::OkStatus();
  RB_ASSIGN_OR_RETURN(const uint32_t broken, ports_.tools->CountBroken(record_.plan));
  // An earlier try may have been killed between stop and start.
  const bool restart = RestartsTheService(record_.plan.kind);
  if (broken == 0) return may_be_stopped && restart ? ports_.start() : absl::OkStatus();
  if (restart) RB_RETURN_IF_ERROR(ports_.stop());
  const absl::StatusOr<uint32_t> mended = ports_.tools->Mend(record_.plan);
  if (mended.ok()) *put_back = *mended;
  if (restart) {
    const absl::Status started = ports_.start();
    if (mended.ok() && !started.ok()) return Annotate(started, "all is put back, but the service did not start");
  }
  return mended.status();
}

absl::Status FaultKeeper::End(const std::string& drill_id) {
  if (!IsOpen(record_)) {
    if (record_.drill_id == drill_id) return absl::OkStatus();
    // Never in, or long over: an inject that is still on its way is not to come true.
    record_.ended_drills.push_back(drill_id);
    if (record_.ended_drills.size() > kDrillsRemembered) record_.ended_drills.erase(record_.ended_drills.begin());
    return Save();
  }
  if (record_.drill_id != drill_id) return absl::OkStatus();
  // On record first: an end that is cut off is gone on with, and the service started. Where it cannot be recorded (the
  // disk may be full by this very fault), mending is still right.
  const bool is_first = record_.state != FaultState::kEnding;
  if (is_first) {
    record_.state = FaultState::kEnding;
    Save().IgnoreError();
  }
  uint32_t put_back = 0;
  RB_RETURN_IF_ERROR(MendNow(!is_first, &put_back));
  RB_FAILPOINT("agent.fault.after-undo");
  record_.put_back += put_back;
  if (const std::string open = ports_.open_operation(); !open.empty()) {
    RB_RETURN_IF_ERROR(Save());
    return absl::UnavailableError(absl::StrCat(open, " is open on this host; the fault is watched until that is over"));
  }
  FaultRecord ended = record_;
  ended.state = FaultState::kEnded;
  ended.ended_drills.push_back(drill_id);
  if (ended.ended_drills.size() > kDrillsRemembered) ended.ended_drills.erase(ended.ended_drills.begin());
  // Not on record: it is tried again, and nobody is told that it is over.
  RB_RETURN_IF_ERROR(ports_.records->Save(ended));
  record_ = std::move(ended);
  return absl::OkStatus();
}

void FaultKeeper::Tick() {
  if (!IsTimeUp(record_, ports_.clock->Now(), ports_.clock->Monotonic())) return;
  if (RB_PLANTED_BUG("fault-never-ends")) return;
  record_.ended_alone = true;
  const absl::Status ended = End(record_.drill_id);
  if (ended.ok()) {
    LogWarning("agent", "the fault of ", record_.drill_id, " has ended by itself: its time was up");
  } else if (!absl::IsUnavailable(ended)) {
    LogError("agent", "the fault of ", record_.drill_id, " could not be ended yet: ", ended.message());
  }
}

void FaultKeeper::OnSwapping() {
  if (record_.state != FaultState::kIn || record_.struck || !StrikesDuringRecovery(record_.plan.kind)) return;
  record_.struck = true;
  record_.struck_at = ports_.clock->Now();
  // Not on record: it would strike again after it, for ever.
  if (!RB_PLANTED_BUG("strike-not-recorded") && !Save().ok()) return;
  LogWarning("agent", record_.drill_id, ": ", std::string(NameOf(record_.plan.kind)), " now");
  const absl::Status failed = ports_.tools->Strike(record_.plan.kind);
  LogError("agent", record_.drill_id, ": ", failed.message());
  // Not tried again: who rehearses is told why nothing happened.
  absl::StrAppend(&record_.plan.what, ", which failed: ", failed.message());
  Save().IgnoreError();
}

}  // namespace rb::agent
