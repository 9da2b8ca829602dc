#include "controller/core/operation.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/text.h"

namespace rb::controller {
namespace {

absl::string_view NameOfStep(StepKind kind) {
  switch (kind) {
    case StepKind::kInspect:
      return "inspect";
    case StepKind::kBackup:
      return "backup";
    case StepKind::kPrepare:
      return "prepare";
    case StepKind::kCommit:
      return "commit";
    case StepKind::kVerify:
      return "verify";
    case StepKind::kRevert:
      return "revert";
    case StepKind::kKeep:
      return "keep";
  }
  return "";
}

bool Changes(const HostProgress& host) { return !host.plan.already_there; }
// Holds, or may hold, the new state.
bool MayBeNew(const HostProgress& host) { return host.state == HostState::kCommitted || host.state_unknown; }
// Has something to take back: staging, the new state, or a service that a failed commit may have left stopped.
bool HasToRevert(const HostProgress& host) {
  return host.state == HostState::kPrepared || MayBeNew(host) ||
         (host.failed && host.step_kind == StepKind::kCommit && host.state != HostState::kReverted);
}

std::string NamesOf(const std::vector<std::string>& hosts) { return absl::StrJoin(hosts, ", "); }

std::string WhatIsSaid(const StepResult& result) {
  if (!result.message.empty()) return result.message;
  for (const ProbeResult& probe : result.probes) {
    if (!probe.passed) return absl::StrCat(probe.name, ": ", probe.observed);
  }
  return "no reason was given";
}

std::string TargetText(const HostPlan& plan) {
  if (!plan.version.empty() && !plan.commit.empty())
    return absl::StrCat(plan.version, " (", plan.commit.substr(0, 7), ")");
  if (!plan.commit.empty()) return plan.commit.substr(0, 7);
  return plan.release_name;
}

StartStep BuildStep(const Operation& operation, const HostProgress& host) {
  static const StepDeadlines deadlines;
  const Plan& plan = operation.plan;
  const std::vector<Component>& components = plan.spec.components;
  const bool has_data = std::find(components.begin(), components.end(), Component::kData) != components.end();
  const absl::Duration for_data = has_data ? deadlines.with_data : absl::ZeroDuration();
  StartStep step;
  step.host = host.plan.host;
  step.step_id = host.step_id;
  step.kind = host.step_kind;
  step.reason = plan.spec.reason;
  step.verify_deadline = plan.verify_deadline;
  step.verify_soak = plan.verify_soak;
  switch (host.step_kind) {
    case StepKind::kInspect:
      break;
    case StepKind::kBackup:
      step.deadline = deadlines.backup;
      step.pin = plan.spec.pin;
      break;
    case StepKind::kPrepare: {
      step.deadline = deadlines.prepare + for_data;
      step.method = host.plan.method;
      step.release_name = host.plan.release_name;
      step.commit = host.plan.commit;
      if (host.candidate > 0) {
        const Candidate& fallback = host.plan.fallbacks[host.candidate - 1];
        step.method = fallback.method;
        step.release_name = fallback.release.has_value() ? fallback.release->name : "";
        step.commit = fallback.commit;
      }
      step.deploy = plan.spec.kind == OperationKind::kDeploy;
      // A release that was good here has shown that its config works; --force goes past the check.
      step.check_config = !plan.spec.force;
      break;
    }
    case StepKind::kCommit:
      step.deadline = deadlines.commit + for_data;
      step.undo_when_unhealthy = plan.on_failure != OnFailure::kHold;
      step.undo_when_unconfirmed = plan.on_failure != OnFailure::kHold && plan.spec.kind == OperationKind::kDeploy;
      break;
    case StepKind::kVerify:
      step.deadline = plan.verify_deadline + plan.verify_soak + deadlines.verify_margin;
      break;
    case StepKind::kRevert:
      step.deadline = plan.verify_deadline + deadlines.revert_margin + for_data;
      step.verify_soak = absl::ZeroDuration();
      break;
    case StepKind::kKeep:
      step.deadline = deadlines.keep;
      step.good = host.verdict == Verdict::kHealthy;
      step.replaced_is_bad = plan.spec.kind == OperationKind::kRollback && step.good;
      break;
  }
  return step;
}

class Machine {
 public:
  Machine(const Operation& operation, const Event& event) : event_(event) {
    decision_.operation = operation;
    op().last_sequence = event.sequence;
  }

  void operator()(const Accepted& accepted) {
    if (!op().id.empty()) return;
    op().id = accepted.id;
    op().plan = accepted.plan;
    op().requested_by = accepted.requested_by;
    op().idempotency_key = accepted.idempotency_key;
    op().fencing_number = accepted.fencing_number;
    op().accepted_at = event_.at;
    for (const HostPlan& plan : accepted.plan.hosts) {
      HostProgress host;
      host.plan = plan;
      host.target = accepted.plan.target;
      if (plan.already_there) host.verdict = Verdict::kHealthy;
      op().hosts.push_back(std::move(host));
    }
    Note("", absl::StrCat("accepted from ", accepted.requested_by, accepted.plan.spec.reason.empty() ? "" : ": ",
                          accepted.plan.spec.reason));
    decision_.effects.emplace_back(TakeLock{});
  }

  void operator()(const LockTaken&) {
    if (op().state != OperationState::kPlanned) return;
    Go(OperationState::kLocked);
    if (std::none_of(op().hosts.begin(), op().hosts.end(), Changes)) {
      op().already_there = true;
      End(OperationState::kSucceeded, "every host was already there and healthy; nothing was done");
      return;
    }
    if (op().abort_requested) {
      End(OperationState::kAborted, "nothing has changed anywhere: aborted");
      return;
    }
    Go(OperationState::kPreparing);
    const StepKind kind = op().plan.spec.kind == OperationKind::kBackup ? StepKind::kBackup : StepKind::kPrepare;
    for (HostProgress& host : op().hosts) {
      if (Changes(host)) Start(&host, kind);
    }
  }

  void operator()(const StepEnded& ended) {
    HostProgress* host = FindHost(ended.host);
    if (host == nullptr) return;
    if (host->step_id != ended.result.step_id) {
      if (ended.result.done_alone) DoneAlone(host, ended.result);
      return;
    }
    if (IsFinal(op().state)) return;
    const StepResult& result = ended.result;
    host->step_id.clear();
    // An answer came: what it says is what is.
    host->state_unknown = false;
    if (result.state != HostState::kUnspecified) host->state = result.state;
    const bool ok = result.code == StatusCode::kOk;
    switch (host->step_kind) {
      case StepKind::kInspect:
        break;
      case StepKind::kBackup:
        if (ok) {
          host->to_release = result.release.name;
          host->times.prepare = result.times.prepare;
          host->verdict = result.verdict;
          Note(host->plan.host, absl::StrCat("backup ", result.release.name));
        } else {
          Fail(host, absl::StrCat("backup failed: ", WhatIsSaid(result)));
        }
        break;
      case StepKind::kPrepare:
        Prepared(host, result, ok);
        break;
      case StepKind::kCommit:
        Committed(host, result, ok);
        break;
      case StepKind::kVerify:
        Verified(host, result, ok);
        break;
      case StepKind::kRevert:
        Reverted(host, result, ok);
        break;
      case StepKind::kKeep:
        if (ok) {
          host->to_release = result.release.name;
          Note(host->plan.host, absl::StrCat("kept as ", result.release.name));
        } else {
          Fail(host, absl::StrCat("the new state could not be recorded: ", WhatIsSaid(result)));
        }
        break;
    }
    Advance();
  }

  void operator()(const StepTimedOut& timed_out) {
    HostProgress* host = FindHost(timed_out.host);
    if (host == nullptr || host->step_id != timed_out.step_id || IsFinal(op().state)) return;
    host->step_id.clear();
    // A lost report is not a failure of the host: what it holds is not known until it answers.
    const bool could_change = host->step_kind == StepKind::kCommit || host->step_kind == StepKind::kRevert ||
                              host->step_kind == StepKind::kPrepare || host->step_kind == StepKind::kVerify;
    host->state_unknown = host->state_unknown || could_change;
    Fail(host, absl::StrCat("no answer to ", NameOfStep(host->step_kind), " in time"));
    decision_.effects.emplace_back(CancelStep{timed_out.host, timed_out.step_id});
    Advance();
  }

  void operator()(const AbortRequested& abort) {
    if (IsFinal(op().state) || op().abort_requested) return;
    if (op().state == OperationState::kKeeping || op().state == OperationState::kReverting) {
      Note("", absl::StrCat(abort.by, " asked to abort; too late, it is ",
                            NameOf(op().state) == "keeping" ? "healthy and being kept" : "being reverted already"));
      return;
    }
    op().abort_requested = true;
    op().abort_reason = abort.reason;
    Note("", absl::StrCat("abort asked for by ", abort.by, abort.reason.empty() ? "" : ": ", abort.reason));
    for (const HostProgress& host : op().hosts) {
      // A swap that has begun is finished; all else gives way.
      if (host.busy() && host.step_kind != StepKind::kCommit) {
        decision_.effects.emplace_back(CancelStep{host.plan.host, host.step_id});
      }
    }
    if (op().state == OperationState::kPlanned) return;
    Advance();
  }

  Decision Take() { return std::move(decision_); }

 private:
  Operation& op() { return decision_.operation; }

  void Note(const std::string& host, std::string text) { decision_.notes.emplace_back(host, std::move(text)); }

  void Go(OperationState state) {
    if (op().state == state) return;
    op().state = state;
    Note("", absl::StrCat(NameOf(state),
                          op().wave > 0 && (state == OperationState::kCommitting || state == OperationState::kVerifying)
                              ? absl::StrCat(" wave ", op().wave, " of ", op().plan.wave_count)
                              : ""));
  }

  HostProgress* FindHost(const std::string& name) {
    for (HostProgress& host : op().hosts) {
      if (host.plan.host == name) return &host;
    }
    return nullptr;
  }

  void Start(HostProgress* host, StepKind kind) {
    host->step_kind = kind;
    ++host->attempt;
    host->step_id = absl::StrCat(op().id, "/", host->plan.host, "/", NameOfStep(kind), "/", host->attempt);
    decision_.effects.emplace_back(BuildStep(op(), *host));
  }

  void Fail(HostProgress* host, std::string why) {
    host->failed = true;
    host->error = why;
    Note(host->plan.host, std::move(why));
  }

  bool AnyBusy() {
    return std::any_of(op().hosts.begin(), op().hosts.end(), [](const HostProgress& host) { return host.busy(); });
  }
  std::vector<std::string> Names(const std::function<bool(const HostProgress&)>& wanted) {
    std::vector<std::string> names;
    for (const HostProgress& host : op().hosts) {
      if (wanted(host)) names.push_back(host.plan.host);
    }
    return names;
  }

  void Prepared(HostProgress* host, const StepResult& result, bool ok) {
    host->times.prepare += result.times.prepare;
    if (ok) {
      host->replaced_release = result.release.name;
      if (!result.from_release.empty()) host->plan.from_release = result.from_release;
      host->plan.delta = result.delta;
      Note(host->plan.host,
           absl::StrCat("prepared in ", FormatSeconds(result.times.prepare), ", ",
                        result.delta.files_changed + result.delta.files_added + result.delta.files_removed,
                        " files change"));
      return;
    }
    if (!op().abort_requested && host->candidate < host->plan.fallbacks.size()) {
      Note(host->plan.host, absl::StrCat("could not be prepared (", WhatIsSaid(result), "); trying the next source"));
      ++host->candidate;
      const Candidate& fallback = host->plan.fallbacks[host->candidate - 1];
      host->plan.method_because = absl::StrCat("the first choice failed: ", WhatIsSaid(result));
      host->plan.version = fallback.version;
      Start(host, StepKind::kPrepare);
      return;
    }
    Fail(host, absl::StrCat("could not be prepared: ", WhatIsSaid(result)));
    // The others need not go on: none will commit.
    for (const HostProgress& other : op().hosts) {
      if (other.busy()) decision_.effects.emplace_back(CancelStep{other.plan.host, other.step_id});
    }
  }

  void Committed(HostProgress* host, const StepResult& result, bool ok) {
    host->times.stop = result.times.stop;
    host->times.swap = result.times.swap;
    host->times.start = result.times.start;
    host->committed_at = event_.elapsed;
    if (!ok || result.state != HostState::kCommitted) {
      Fail(host, absl::StrCat("could not commit: ", WhatIsSaid(result)));
      return;
    }
    Note(host->plan.host,
         absl::StrCat("committed: stop ", FormatSeconds(result.times.stop), ", swap ", FormatSeconds(result.times.swap),
                      ", start ", FormatSeconds(result.times.start)));
    // Each host is watched from the moment it is started; the wave goes on when all of it is healthy.
    if (!op().abort_requested) Start(host, StepKind::kVerify);
  }

  void Verified(HostProgress* host, const StepResult& result, bool ok) {
    host->probes = result.probes;
    host->verdict = result.verdict;
    if (!ok || result.verdict != Verdict::kHealthy) {
      Fail(host, absl::StrCat("not healthy: ", WhatIsSaid(result)));
      return;
    }
    host->times.downtime = result.times.downtime;
    // The agent knows how long after the stop the probes began to pass; the controller knows when the started service
    // was reported. Where the agent was restarted in between, the verdict's arrival is the honest upper bound.
    const absl::Duration since_stop = host->times.stop + host->times.swap + host->times.start;
    host->times.recovery = result.times.downtime > absl::ZeroDuration()
                               ? host->committed_at - since_stop + result.times.downtime
                               : event_.elapsed - op().plan.verify_soak;
    host->target_met = host->times.recovery <= host->target;
    Note(host->plan.host, absl::StrCat("healthy; downtime ", FormatSeconds(host->times.downtime), ", recovery ",
                                       FormatSeconds(host->times.recovery)));
  }

  void Reverted(HostProgress* host, const StepResult& result, bool ok) {
    host->probes = result.probes;
    host->verdict = result.verdict;
    const bool back = result.state == HostState::kReverted || result.state == HostState::kUntouched;
    if (!ok || !back) {
      host->state_unknown = !back && result.state != HostState::kCommitted;
      Fail(host, absl::StrCat("could not be reverted: ", WhatIsSaid(result)));
      return;
    }
    host->failed = false;
    const bool was_stopped = result.state == HostState::kReverted;
    Note(host->plan.host,
         absl::StrCat("back on what it had", !was_stopped                          ? ""
                                             : result.verdict == Verdict::kHealthy ? ", healthy"
                                                                                   : ", and not healthy on that"));
  }

  // The agent judged by itself after a commit, and may have gone back. Its report may come late, or again: it changes
  // nothing that was kept or reverted since.
  void DoneAlone(HostProgress* host, const StepResult& result) {
    if (IsFinal(op().state) || host->state == HostState::kKept || host->state == HostState::kReverted) return;
    Note(host->plan.host, absl::StrCat("acted alone while the controller was away: ", WhatIsSaid(result)));
    if (absl::EndsWith(result.step_id, "/revert")) {
      if (result.code == StatusCode::kOk) {
        host->state = HostState::kReverted;
        host->state_unknown = false;
        host->verdict = Verdict::kUnknown;
        // It is on what it had; the wave that it belongs to has failed.
        Fail(host, "went back by its own hand while the controller was away");
      } else {
        // What is left to do for it is done when it is told to revert.
        Fail(host, absl::StrCat("could not go back by its own hand: ", WhatIsSaid(result)));
      }
      return;
    }
    // A verification that was asked for is newer, or will be.
    if (host->busy() || host->state != HostState::kCommitted || result.verdict != Verdict::kUnhealthy) return;
    host->verdict = Verdict::kUnhealthy;
    Fail(host, absl::StrCat("not healthy any more: ", WhatIsSaid(result)));
  }

  void Advance() {
    if (AnyBusy()) return;
    switch (op().state) {
      case OperationState::kPreparing:
        AfterPreparing();
        break;
      case OperationState::kCommitting:
      case OperationState::kVerifying:
        AfterWave();
        break;
      case OperationState::kReverting:
        AfterReverting();
        break;
      case OperationState::kKeeping:
        AfterKeeping();
        break;
      default:
        break;
    }
  }

  void AfterPreparing() {
    const std::vector<std::string> failed = Names([](const HostProgress& host) { return host.failed; });
    if (op().plan.spec.kind == OperationKind::kBackup) {
      if (failed.empty() && !op().abort_requested) {
        End(OperationState::kSucceeded, absl::StrCat("backed up on ", op().hosts.size(), " hosts"));
      } else {
        End(OperationState::kAborted,
            failed.empty() ? std::string("aborted; backups that were taken stay")
                           : absl::StrCat("no backup on ", NamesOf(failed), ": ", FindHost(failed[0])->error));
      }
      return;
    }
    if (failed.empty() && !op().abort_requested) {
      CommitWave(1);
      return;
    }
    StartReverting([](const HostProgress& host) { return HasToRevert(host); });
  }

  void CommitWave(uint32_t wave) {
    op().wave = wave;
    Go(OperationState::kCommitting);
    for (HostProgress& host : op().hosts) {
      if (Changes(host) && host.plan.wave == wave) Start(&host, StepKind::kCommit);
    }
  }

  void AfterWave() {
    // Reached when no step is under way: all of the wave is verified, or something failed.
    if (op().abort_requested) {
      Go(OperationState::kVerifying);
      StartReverting([](const HostProgress& host) { return HasToRevert(host); });
      return;
    }
    Go(OperationState::kVerifying);
    const std::vector<std::string> failed = Names([](const HostProgress& host) { return host.failed; });
    if (failed.empty()) {
      if (op().wave < op().plan.wave_count) {
        CommitWave(op().wave + 1);
      } else {
        StartKeeping();
      }
      return;
    }
    switch (op().plan.on_failure) {
      case OnFailure::kHold:
        StartKeeping();
        break;
      case OnFailure::kRevertWave:
        StartReverting(
            [wave = op().wave](const HostProgress& host) { return HasToRevert(host) && host.plan.wave >= wave; });
        break;
      case OnFailure::kRevertAll:
        StartReverting([](const HostProgress& host) { return HasToRevert(host); });
        break;
    }
  }

  void StartReverting(const std::function<bool(const HostProgress&)>& wanted) {
    Go(OperationState::kReverting);
    bool any = false;
    for (HostProgress& host : op().hosts) {
      if (!Changes(host) || !wanted(host)) continue;
      Start(&host, StepKind::kRevert);
      any = true;
    }
    if (!any) AfterReverting();
  }

  void AfterReverting() {
    const std::vector<std::string> stuck = Names([](const HostProgress& host) {
      return host.state_unknown || (host.failed && (MayBeNew(host) || host.step_kind == StepKind::kRevert));
    });
    // Earlier waves that stay on the new state (revert-wave).
    const std::vector<std::string> stay =
        Names([](const HostProgress& host) { return host.state == HostState::kCommitted && !host.failed; });
    if (!stay.empty() && op().plan.on_failure == OnFailure::kRevertWave && !op().abort_requested) {
      StartKeeping();
      return;
    }
    std::string cause = op().abort_requested ? "aborted" : "";
    if (cause.empty()) {
      for (const HostProgress& host : op().hosts) {
        if (!host.error.empty()) {
          cause = absl::StrCat(host.plan.host, " ", host.error);
          break;
        }
      }
    }
    if (!stuck.empty()) {
      NeedAttention(cause);
      return;
    }
    if (op().wave == 0) {
      End(OperationState::kAborted, absl::StrCat("nothing has changed anywhere: ", cause));
    } else {
      End(OperationState::kReverted, absl::StrCat("every host is back on what it had: ", cause));
    }
  }

  void StartKeeping() {
    Go(OperationState::kKeeping);
    bool any = false;
    for (HostProgress& host : op().hosts) {
      if (!Changes(host)) continue;
      if (host.state == HostState::kCommitted) {
        Start(&host, StepKind::kKeep);
        any = true;
      } else if (HasToRevert(host)) {
        Start(&host, StepKind::kRevert);
        any = true;
      }
    }
    if (!any) AfterKeeping();
  }

  void AfterKeeping() {
    const bool all_new = std::all_of(op().hosts.begin(), op().hosts.end(), [](const HostProgress& host) {
      return !Changes(host) || (host.state == HostState::kKept && host.verdict == Verdict::kHealthy);
    });
    if (!all_new) {
      NeedAttention("");
      return;
    }
    const HostProgress* first = nullptr;
    for (const HostProgress& host : op().hosts) {
      if (!Changes(host)) continue;
      if (first == nullptr) first = &host;
      op().recovery = std::max(op().recovery, host.times.recovery);
    }
    op().target_met = op().recovery <= op().plan.target;
    End(OperationState::kSucceeded,
        absl::StrCat(op().plan.spec.environment, " is healthy on ", TargetText(first->plan), "; recovery ",
                     FormatSeconds(op().recovery), op().target_met ? ", within " : ", OVER ", "the target of ",
                     FormatSeconds(op().plan.target)));
  }

  // Names every host that is not where it should be, with its state and what to type.
  void NeedAttention(const std::string& cause) {
    std::vector<std::string> parts;
    if (!cause.empty()) parts.push_back(cause);
    for (const HostProgress& host : op().hosts) {
      if (!Changes(host)) continue;
      const std::string& name = host.plan.host;
      if (host.state_unknown) {
        parts.push_back(absl::StrCat(name, ": state not known, it did not answer"));
        op().next_commands.push_back(absl::StrCat("rbctl status ", op().plan.spec.environment));
        op().next_commands.push_back(absl::StrCat("on ", name, ": rb-agent local status"));
      } else if (host.state == HostState::kKept || host.state == HostState::kCommitted) {
        if (host.verdict == Verdict::kHealthy) {
          parts.push_back(absl::StrCat(name, ": on the new state, healthy"));
        } else {
          parts.push_back(absl::StrCat(name, ": on the new state, NOT healthy (", host.error, ")"));
          op().next_commands.push_back(absl::StrCat("rbctl rollback ", op().plan.spec.environment));
        }
      } else {
        parts.push_back(
            absl::StrCat(name, ": on the old state", host.error.empty() ? "" : absl::StrCat(" (", host.error, ")")));
      }
    }
    std::vector<std::string> unique;
    for (const std::string& command : op().next_commands) {
      if (std::find(unique.begin(), unique.end(), command) == unique.end()) unique.push_back(command);
    }
    op().next_commands = std::move(unique);
    End(OperationState::kNeedsAttention, absl::StrJoin(parts, "; "));
  }

  void End(OperationState state, const std::string& summary) {
    op().summary = Truncate(summary, 2000);
    op().ended_at = event_.at;
    if (state == OperationState::kReverted || state == OperationState::kAborted) {
      op().next_commands.push_back(absl::StrCat("rbctl show ", op().id));
    }
    Go(state);
    Note("", op().summary);
    decision_.effects.emplace_back(ReleaseLock{});
  }

  const Event& event_;
  Decision decision_;
};

}  // namespace

bool IsFinal(OperationState state) {
  return state == OperationState::kSucceeded || state == OperationState::kAborted ||
         state == OperationState::kReverted || state == OperationState::kNeedsAttention;
}

bool IsLegalTransition(OperationState from, OperationState to) {
  using S = OperationState;
  switch (from) {
    case S::kPlanned:
      return to == S::kLocked;
    case S::kLocked:
      return to == S::kPreparing || to == S::kSucceeded || to == S::kAborted;
    case S::kPreparing:
      return to == S::kCommitting || to == S::kReverting || to == S::kSucceeded || to == S::kAborted;
    case S::kCommitting:
      return to == S::kVerifying;
    case S::kVerifying:
      return to == S::kCommitting || to == S::kKeeping || to == S::kReverting;
    case S::kReverting:
      return to == S::kReverted || to == S::kAborted || to == S::kNeedsAttention || to == S::kKeeping;
    case S::kKeeping:
      return to == S::kSucceeded || to == S::kNeedsAttention;
    default:
      return false;
  }
}

absl::string_view NameOf(OperationState state) {
  switch (state) {
    case OperationState::kPlanned:
      return "planned";
    case OperationState::kLocked:
      return "locked";
    case OperationState::kPreparing:
      return "preparing";
    case OperationState::kCommitting:
      return "committing";
    case OperationState::kVerifying:
      return "verifying";
    case OperationState::kKeeping:
      return "keeping";
    case OperationState::kReverting:
      return "reverting";
    case OperationState::kSucceeded:
      return "succeeded";
    case OperationState::kAborted:
      return "aborted";
    case OperationState::kReverted:
      return "reverted";
    case OperationState::kNeedsAttention:
      return "needs attention";
  }
  return "";
}

Decision Decide(const Operation& operation, const Event& event) {
  Machine machine(operation, event);
  std::visit(machine, event.body);
  return machine.Take();
}

std::vector<Effect> OutstandingEffects(const Operation& operation, absl::string_view host) {
  std::vector<Effect> effects;
  if (operation.id.empty()) return effects;
  if (IsFinal(operation.state)) {
    if (host.empty()) effects.emplace_back(ReleaseLock{});
    return effects;
  }
  if (operation.state == OperationState::kPlanned) {
    if (host.empty()) effects.emplace_back(TakeLock{});
    return effects;
  }
  for (const HostProgress& progress : operation.hosts) {
    if (!progress.busy() || (!host.empty() && progress.plan.host != host)) continue;
    effects.emplace_back(BuildStep(operation, progress));
  }
  return effects;
}

}  // namespace rb::controller
