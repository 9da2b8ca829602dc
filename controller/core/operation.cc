#include "controller/core/operation.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/failpoint.h"
#include "common/text.h"
#include "controller/core/names.h"

namespace rb::controller {

Method MethodOf(const HostProgress& host) {
  return host.candidate == 0 ? host.plan.method : host.plan.fallbacks[host.candidate - 1].method;
}

namespace {

constexpr uint32_t kMostLogged = 20;

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
    case StepKind::kAwait:
      return "await";
    case StepKind::kPrune:
      return "prune";
  }
  return "";
}

// Of the plan's, in the history.
constexpr size_t kMostNotes = 50;
constexpr size_t kMostNextCommands = 100;

bool UsesCi(const HostProgress& host) { return MethodOf(host) == Method::kRedeploy; }

bool Changes(const HostProgress& host) { return !host.plan.already_there; }
// Holds, or may hold, the new state.
bool MayBeNew(const HostProgress& host) { return host.state == HostState::kCommitted || host.state_unknown; }
// No answer came to its commit or verification; it ends by the policy that it was given with them.
bool IsLeftAlone(const HostProgress& host) {
  return host.failed && host.state_unknown && !host.busy() &&
         (host.step_kind == StepKind::kCommit || host.step_kind == StepKind::kVerify);
}
// Has something to take back: staging, the new state, or a service that a failed commit, or a revert by the host's own
// hand, may have left stopped.
bool HasToRevert(const HostProgress& host) {
  const bool may_be_stopped =
      host.failed && host.step_kind != StepKind::kRevert &&
      (host.step_kind == StepKind::kCommit || host.step_kind == StepKind::kAwait || host.state == HostState::kReverted);
  return host.state == HostState::kPrepared || MayBeNew(host) || may_be_stopped;
}

// A summary names some; each host's own line says the rest.
std::string NamesOf(const std::vector<std::string>& hosts) { return JoinSome(hosts); }

absl::string_view TextOf(OnFailure policy) {
  switch (policy) {
    case OnFailure::kRevertWave:
      return "the policy takes the wave back";
    case OnFailure::kRevertAll:
      return "the policy takes every changed host back";
    case OnFailure::kHold:
      return "the policy leaves what failed as it is";
  }
  return "";
}

std::string WhatIsSaid(const StepResult& result) {
  if (!result.message.empty()) return result.message;
  for (const ProbeResult& probe : result.probes) {
    if (!probe.passed && !probe.external) return absl::StrCat(probe.name, ": ", probe.observed);
  }
  return "no reason was given";
}

// "; but external tcp chat:443 is down: refused (no rollback mends that)", or "".
std::string ExternalDown(const std::vector<ProbeResult>& probes) {
  std::string text;
  for (const ProbeResult& probe : probes) {
    if (probe.passed || !probe.external) continue;
    absl::StrAppend(&text, text.empty() ? "" : ", ", probe.name, " is down: ", probe.observed);
  }
  return text.empty() ? "" : absl::StrCat("; but external ", text, " (no rollback mends that)");
}

std::string TargetText(const HostPlan& plan) {
  if (!plan.version.empty() && !plan.commit.empty())
    return absl::StrCat(plan.version, " (", plan.commit.substr(0, 7), ")");
  if (!plan.commit.empty()) return plan.commit.substr(0, 7);
  return plan.release_name;
}

std::string StepId(const Operation& operation, const HostProgress& host, StepKind kind, uint32_t attempt) {
  return absl::StrCat(operation.id, "/", host.plan.host, "/", NameOfStep(kind), "/", attempt);
}

// What a host does alone that is healthy and hears from nobody: a deploy is taken back, all else is kept.
bool UndoesUnconfirmed(const Plan& plan) {
  return plan.on_failure != OnFailure::kHold && plan.spec.kind == OperationKind::kDeploy;
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
  // CI's deploy is no business of the connection.
  if (host.step_kind != StepKind::kAwait) step.lost_deadline = std::max(deadlines.least_lost, plan.verify_deadline);
  switch (host.step_kind) {
    case StepKind::kInspect:
      break;
    case StepKind::kBackup:
      step.deadline = deadlines.backup;
      step.pin = plan.spec.pin;
      step.prove = plan.spec.prove;
      break;
    case StepKind::kPrune:
      step.deadline = deadlines.backup;
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
      step.undo_when_unconfirmed = UndoesUnconfirmed(plan);
      step.next_step_id = StepId(operation, host, StepKind::kVerify, host.attempt + 1);
      break;
    case StepKind::kVerify:
      step.deadline = plan.verify_deadline + plan.verify_soak + deadlines.verify_margin;
      break;
    case StepKind::kRevert:
      step.deadline = plan.verify_deadline + deadlines.revert_margin + for_data;
      step.verify_soak = absl::ZeroDuration();
      if (UsesCi(host)) step.replaced_release = host.replaced_release;
      break;
    case StepKind::kAwait:
      step.commit = host.plan.commit;
      step.version = host.plan.version;
      step.deployed_commit = operation.ci.deployed_commit;
      step.arrives_within = operation.ci.phase == CiRun::Phase::kOver ? kCiSettles : plan.ci_deadline;
      step.deadline = step.arrives_within + plan.verify_deadline + plan.verify_soak + deadlines.verify_margin;
      break;
    case StepKind::kKeep:
      step.deadline = deadlines.keep;
      // Good is what passed everything; in an emergency the probes that need time come afterwards.
      step.good = host.verdict == Verdict::kHealthy && !plan.spec.emergency;
      // A drill goes away from what was made bad for it, or from what is good.
      step.replaced_is_bad =
          plan.spec.kind == OperationKind::kRollback && host.verdict == Verdict::kHealthy && plan.spec.drill_id.empty();
      if (UsesCi(host)) {
        step.replaced_release = host.replaced_release;
        step.redeployed_commit = host.plan.commit;
        step.redeployed_version = host.plan.version;
      }
      break;
  }
  return step;
}

AskCi BuildAsk(const Operation& operation, bool again) {
  AskCi ask;
  ask.key = operation.ci.key;
  ask.service = operation.plan.spec.service;
  ask.environment = operation.ci.environment;
  ask.asked_at = operation.ci.asked_at;
  ask.reason = operation.plan.spec.reason;
  ask.run = operation.ci.run;
  ask.url = operation.ci.url;
  ask.deployed_commit = operation.ci.deployed_commit;
  ask.again = again;
  for (const HostProgress& host : operation.hosts) {
    if (!Changes(host) || host.plan.wave != operation.wave) continue;
    ask.commit = host.plan.commit;
    ask.version = host.plan.version;
    break;
  }
  return ask;
}

class Machine {
 public:
  Machine(Operation operation, const Event& event) : event_(event) {
    decision_.operation = std::move(operation);
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
    for (uint32_t i = 0; i < op().hosts.size(); ++i) op().by_name.push_back(i);
    std::sort(op().by_name.begin(), op().by_name.end(),
              [this](uint32_t a, uint32_t b) { return op().hosts[a].plan.host < op().hosts[b].plan.host; });
    for (const std::string& note : accepted.plan.notes) {
      if (decision_.notes.size() < kMostNotes) Note("", note);
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
    const OperationKind what = op().plan.spec.kind;
    const StepKind first = what == OperationKind::kBackup         ? StepKind::kBackup
                           : what == OperationKind::kPrune        ? StepKind::kPrune
                           : what == OperationKind::kVerification ? StepKind::kVerify
                                                                  : StepKind::kPrepare;
    Go(what == OperationKind::kVerification ? OperationState::kVerifying : OperationState::kPreparing);
    for (HostProgress& host : op().hosts) {
      if (Changes(host)) Start(&host, first);
    }
  }

  void operator()(const StepEnded& ended) {
    HostProgress* host = FindHost(ended.host);
    if (host == nullptr) return;
    if (host->step_id != ended.result.step_id) {
      if (ended.result.done_alone) {
        DoneAlone(host, ended.result);
      } else {
        DoneAfterAll(host, ended.result);
      }
      return;
    }
    if (IsFinal(op().state)) return;
    const StepResult& result = ended.result;
    SetStep(host, "");
    if (Retries(host, result)) return;
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
      case StepKind::kPrune:
        Pruned(host, result, ok);
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
      case StepKind::kAwait:
        Awaited(host, result, ok);
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
    SetStep(host, "");
    // A lost report is not a failure of the host: what it holds is not known until it answers.
    const bool could_change = host->step_kind == StepKind::kCommit || host->step_kind == StepKind::kRevert ||
                              host->step_kind == StepKind::kPrepare || host->step_kind == StepKind::kVerify ||
                              host->step_kind == StepKind::kAwait;
    host->state_unknown = host->state_unknown || could_change;
    Fail(host, absl::StrCat("no answer to ", NameOfStep(host->step_kind), " in time"));
    decision_.effects.emplace_back(CancelStep{timed_out.host, timed_out.step_id});
    if (host->step_kind == StepKind::kAwait) StopCi();
    Advance();
  }

  void operator()(const AbortRequested& abort) {
    if (IsFinal(op().state) || op().abort_requested) return;
    if (op().state == OperationState::kKeeping || op().state == OperationState::kReverting) {
      Note("", absl::StrCat(abort.by, " asked to abort; too late, it is ",
                            NameOf(op().state) == "keeping" ? "healthy and being kept" : "being reverted already"));
      return;
    }
    Note("", absl::StrCat("abort asked for by ", abort.by, abort.reason.empty() ? "" : ": ", abort.reason));
    Explain("", absl::StrCat("aborted by ", abort.by, abort.reason.empty() ? "" : ": ", abort.reason));
    Abort(abort.reason);
  }

  void operator()(const PauseRequested& pause) {
    if (!WhyRefused(op(), pause).empty()) return;
    op().paused = true;
    op().paused_by = pause.by;
    Note("", absl::StrCat("paused by ", pause.by, pause.reason.empty() ? "" : ": ", pause.reason,
                          "; no further wave begins"));
  }

  void operator()(const ResumeRequested& resume) {
    if (!WhyRefused(op(), resume).empty()) return;
    op().paused = false;
    op().paused_by.clear();
    Note("", absl::StrCat("resumed by ", resume.by));
    if (op().state == OperationState::kWaiting) Advance();
  }

  void operator()(const Approved& approved) {
    if (!WhyRefused(op(), approved).empty()) return;
    op().approved_by = approved.by;
    Note("", absl::StrCat("approved by ", approved.by, approved.reason.empty() ? "" : ": ", approved.reason));
    Explain("", absl::StrCat("the approval gate was opened by ", approved.by));
    if (op().state == OperationState::kWaiting) Advance();
  }

  void operator()(const WaitEnded& ended) {
    if (op().state != OperationState::kWaiting || op().waits != ended.number || op().abort_requested) return;
    Note("", absl::StrCat("it has waited for ", FormatSeconds(kLongestWait), ", and is aborted"));
    Abort("it waited too long");
  }

  void operator()(const Reported& reported) {
    if (!op().id.empty()) return;
    op().id = reported.id;
    op().plan.spec = reported.spec;
    op().plan.hosts = {reported.host};
    op().requested_by = reported.requested_by;
    op().idempotency_key = reported.idempotency_key;
    op().accepted_at = reported.began_at;
    op().ended_at = reported.ended_at;
    HostProgress host;
    host.plan = reported.host;
    host.state = reported.state;
    host.verdict = reported.verdict;
    host.times = reported.times;
    host.to_release = reported.to_release;
    host.replaced_release = reported.replaced_release;
    host.replaced_commit = reported.left_commit;
    host.replaced_version = reported.left_commit.empty() ? "" : reported.host.from_version;
    op().hosts.push_back(std::move(host));
    op().summary = Truncate(reported.summary, 2000);
    // It was never one of ours, so that it takes none of the ways through the drawing.
    op().state = reported.succeeded                        ? OperationState::kSucceeded
                 : reported.state == HostState::kReverted  ? OperationState::kReverted
                 : reported.state == HostState::kUntouched ? OperationState::kAborted
                                                           : OperationState::kNeedsAttention;
    Note(reported.host.host, absl::StrCat("done without the controller, and reported by the host: ", op().summary));
  }

  void operator()(const CiStarted& started) {
    CiRun& ci = op().ci;
    if (IsFinal(op().state) || started.key != ci.key || !ci.busy() || !ci.run.empty()) return;
    ci.run = started.run;
    ci.url = started.url;
    ci.deployed_commit = started.deployed_commit;
    Note("", absl::StrCat("CI has begun: run ", ci.run, ci.url.empty() ? "" : ", ", ci.url));
    if (ci.phase != CiRun::Phase::kAsked) return;
    ci.phase = CiRun::Phase::kRunning;
    for (HostProgress& host : op().hosts) {
      if (IsDeployedByCi(host)) Start(&host, StepKind::kAwait);
    }
  }

  void operator()(const CiProgress& progress) {
    if (!IsFinal(op().state) && progress.key == op().ci.key) Note("", absl::StrCat("CI: ", progress.text));
  }

  void operator()(const CiEnded& ended) {
    CiRun& ci = op().ci;
    if (IsFinal(op().state) || ended.key != ci.key || !(ci.busy() || ci.phase == CiRun::Phase::kRunning)) return;
    ci.phase = CiRun::Phase::kOver;
    ci.never_ran = ended.outcome == CiEnded::Outcome::kNeverRan;
    ci.lost = ended.outcome == CiEnded::Outcome::kLost;
    Note("", absl::StrCat("CI: ", ended.text));
    for (HostProgress& host : op().hosts) {
      if (!IsDeployedByCi(host) || host.failed) continue;
      if (ci.never_ran) {
        host.state_unknown = false;
        host.step_kind = StepKind::kPrepare;
        Fail(&host, absl::StrCat("CI did not deploy: ", ended.text));
      } else if (op().abort_requested) {
        if (!host.busy()) Fail(&host, "aborted");
      } else if (host.busy() || host.verdict != Verdict::kHealthy) {
        // What is there now is what counts, whatever CI says; but there is nothing more to wait for.
        Start(&host, StepKind::kAwait);
      }
    }
    Advance();
  }

  Decision Take() { return std::move(decision_); }

 private:
  Operation& op() { return decision_.operation; }

  void Abort(const std::string& reason) {
    op().abort_requested = true;
    op().abort_reason = reason;
    for (const HostProgress& host : op().hosts) {
      // A swap that has begun is finished; all else gives way.
      if (host.busy() && host.step_kind != StepKind::kCommit) {
        decision_.effects.emplace_back(CancelStep{host.plan.host, host.step_id});
      }
    }
    if (op().state == OperationState::kPlanned) return;
    StopCi();
    Advance();
  }

  bool IsDeployedByCi(const HostProgress& host) { return Changes(host) && UsesCi(host) && host.plan.wave == op().wave; }

  void StopCi() {
    CiRun& ci = op().ci;
    if (ci.phase != CiRun::Phase::kAsked && ci.phase != CiRun::Phase::kRunning) return;
    ci.phase = CiRun::Phase::kCancelling;
    Note("", "CI is asked to cancel the run");
    decision_.effects.emplace_back(CancelCi{ci.key, false});
  }

  // All hosts of an environment are one wave.
  void AskCiNow() {
    CiRun ci;
    ci.phase = CiRun::Phase::kAsked;
    ci.key = absl::StrCat(op().id, "-", op().wave);
    ci.asked_at = event_.at;
    for (HostProgress& host : op().hosts) {
      if (!IsDeployedByCi(host)) continue;
      ci.environment = host.plan.environment;
      host.step_kind = StepKind::kAwait;
      // From here on CI may change it.
      host.state_unknown = true;
      host.verdict = Verdict::kUnknown;
    }
    op().ci = ci;
    AskCi ask = BuildAsk(op(), false);
    Note("", absl::StrCat("asking CI to deploy ", ask.version.empty() ? ask.commit.substr(0, 7) : ask.version, " to ",
                          ci.environment));
    decision_.effects.emplace_back(std::move(ask));
  }

  // Some host could be prepared from no source of its own: CI deploys to all of them at once, or the operation ends.
  bool FallsBackToCi() {
    for (const HostProgress& host : op().hosts) {
      if (host.state_unknown || UsesCi(host) || host.plan.fallbacks.empty() ||
          host.plan.fallbacks.back().method != Method::kRedeploy) {
        return false;
      }
    }
    const std::string why = FirstError();
    Note("", absl::StrCat("not every host could be prepared from a source of its own (", why,
                          "); going on with a redeploy through CI, on all hosts"));
    Explain("",
            absl::StrCat("redeploy through CI was taken, on all hosts: not every host could be prepared from a source "
                         "of its own (",
                         why, ")"));
    std::vector<std::string> environments;
    uint32_t approval = 0;
    for (HostProgress& host : op().hosts) {
      const bool is_approved_for =
          op().plan.approval_before_wave != 0 && Changes(host) && host.plan.wave >= op().plan.approval_before_wave;
      host.candidate = static_cast<uint32_t>(host.plan.fallbacks.size());
      host.plan.already_there = false;
      host.plan.method_because = absl::StrCat("no other source could be prepared: ", why);
      host.failed = false;
      host.error.clear();
      host.verdict = Verdict::kUnknown;
      host.target = op().plan.redeploy_target;
      if (environments.empty() || environments.back() != host.plan.environment) {
        environments.push_back(host.plan.environment);
      }
      host.plan.wave = static_cast<uint32_t>(environments.size());
      if (is_approved_for && approval == 0) approval = host.plan.wave;
    }
    op().plan.wave_count = static_cast<uint32_t>(environments.size());
    op().plan.target = op().plan.redeploy_target;
    op().plan.approval_before_wave = approval;
    for (HostProgress& host : op().hosts) Start(&host, StepKind::kPrepare);
    return true;
  }

  void Note(const std::string& host, std::string text) { decision_.notes.emplace_back(host, std::move(text)); }

  void Go(OperationState state) {
    if (op().state == state) return;
    op().state = state;
    Note("", absl::StrCat(NameOf(state),
                          op().wave > 0 && (state == OperationState::kCommitting || state == OperationState::kVerifying)
                              ? absl::StrCat(" wave ", op().wave, " of ", op().plan.wave_count)
                              : ""));
  }

  HostProgress* FindHost(const std::string& name) { return const_cast<HostProgress*>(op().Find(name)); }

  void SetStep(HostProgress* host, std::string step_id) {
    if (host->busy()) --op().busy_hosts;
    host->step_id = std::move(step_id);
    if (host->busy()) ++op().busy_hosts;
  }

  // For `rbctl why`.
  void Explain(const std::string& host, const std::string& text) { op().reasons.Add(Rule::kEvent, text, host); }

  void Start(HostProgress* host, StepKind kind) {
    host->step_kind = kind;
    host->retries = 0;
    StartAfter(host, absl::ZeroDuration());
  }

  void StartAfter(HostProgress* host, absl::Duration delay) {
    ++host->attempt;
    SetStep(host, StepId(op(), *host, host->step_kind, host->attempt));
    StartStep step = BuildStep(op(), *host);
    step.delay = delay;
    decision_.effects.emplace_back(std::move(step));
  }

  // A host that is busy has not failed: it is asked again, a bounded number of times.
  bool Retries(HostProgress* host, const StepResult& result) {
    const bool gives_up = op().abort_requested && host->step_kind != StepKind::kRevert;
    if (result.code != StatusCode::kUnavailable || host->retries >= kMostRetries || gives_up) return false;
    const absl::Duration delay = absl::Seconds(1) * (1 << host->retries);
    ++host->retries;
    Note(host->plan.host, absl::StrCat("could not ", NameOfStep(host->step_kind), " now (", WhatIsSaid(result),
                                       "); asked again in ", FormatSeconds(delay)));
    StartAfter(host, delay);
    return true;
  }

  void Fail(HostProgress* host, std::string why) {
    host->failed = true;
    host->error = why;
    Explain(host->plan.host, why);
    Note(host->plan.host, std::move(why));
  }

  bool AnyBusy() { return op().ci.busy() || op().busy_hosts > 0; }
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
      host->replaced_commit = result.release.commit;
      host->replaced_version = result.release.version;
      if (!result.from_release.empty()) host->plan.from_release = result.from_release;
      host->plan.delta = result.delta;
      if (UsesCi(*host)) {
        Note(host->plan.host, absl::StrCat("what is there is kept as ", result.release.name, "; ready for CI"));
        return;
      }
      Note(host->plan.host,
           absl::StrCat("prepared in ", FormatSeconds(result.times.prepare), ", ",
                        result.delta.files_changed + result.delta.files_added + result.delta.files_removed,
                        " files change"));
      return;
    }
    if (!op().abort_requested && host->candidate < host->plan.fallbacks.size() &&
        host->plan.fallbacks[host->candidate].method != Method::kRedeploy) {
      Note(host->plan.host, absl::StrCat("could not be prepared (", WhatIsSaid(result), "); trying the next source"));
      ++host->candidate;
      const Candidate& fallback = host->plan.fallbacks[host->candidate - 1];
      host->plan.method_because = absl::StrCat("the first choice failed: ", WhatIsSaid(result));
      Explain(host->plan.host, absl::StrCat("the next source was taken: the one before it could not be prepared (",
                                            WhatIsSaid(result), ")"));
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
    NoteProblems(*host, result);
    // Each host is watched from the moment it is started; the wave goes on when all of it is healthy.
    if (op().abort_requested) return;
    Start(host, StepKind::kVerify);
    std::get<StartStep>(decision_.effects.back()).has_begun = result.began_step_id == host->step_id;
  }

  // What went wrong beside the swap (after_restore): said as itself, and nothing is decided by it.
  void NoteProblems(const HostProgress& host, const StepResult& result) {
    for (const std::string& problem : result.problems) Note(host.plan.host, problem);
  }

  // What the service has written, for who looks into it: of the first hosts, since an operation may have thousands.
  void KeepLog(HostProgress* host, const StepResult& result) {
    if (result.log_lines.empty()) return;
    if (host->log_lines.empty()) {
      if (op().logged_hosts >= kMostLogged) return;
      ++op().logged_hosts;
    }
    host->log_lines = result.log_lines;
  }

  void Verified(HostProgress* host, const StepResult& result, bool ok) {
    host->probes = result.probes;
    KeepLog(host, result);
    host->verdict = result.verdict;
    if (!ok || result.verdict != Verdict::kHealthy) {
      host->found_unhealthy = host->found_unhealthy || result.verdict == Verdict::kUnhealthy;
      Fail(host, absl::StrCat("not healthy: ", WhatIsSaid(result)));
      return;
    }
    if (op().plan.spec.kind == OperationKind::kVerification) {
      Note(host->plan.host, absl::StrCat("every probe has passed", ExternalDown(host->probes)));
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
                                       FormatSeconds(host->times.recovery), ExternalDown(host->probes)));
  }

  // Method B: what CI was asked for is there, or it is not.
  void Awaited(HostProgress* host, const StepResult& result, bool ok) {
    host->probes = result.probes;
    KeepLog(host, result);
    host->verdict = result.verdict;
    if (!ok || result.verdict != Verdict::kHealthy) {
      Fail(host, absl::StrCat("not healthy on the target: ", WhatIsSaid(result)));
      StopCi();
      return;
    }
    host->times.downtime = result.times.downtime;
    host->times.recovery = event_.elapsed - op().plan.verify_soak;
    host->target_met = host->times.recovery <= host->target;
    Note(host->plan.host,
         absl::StrCat("the target is on disk, and healthy; recovery ", FormatSeconds(host->times.recovery)));
  }

  void Reverted(HostProgress* host, const StepResult& result, bool ok) {
    host->probes = result.probes;
    KeepLog(host, result);
    NoteProblems(*host, result);
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
    host->found_unhealthy =
        host->found_unhealthy || (!absl::EndsWith(result.step_id, "/revert") && result.verdict == Verdict::kUnhealthy);
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
    // A verification that was asked for is newer, or will be. One that is only to be kept is not verified again.
    const bool verified_again = host->busy() && host->step_kind != StepKind::kKeep;
    if (verified_again || host->state != HostState::kCommitted || result.verdict != Verdict::kUnhealthy) return;
    host->verdict = Verdict::kUnhealthy;
    Fail(host, absl::StrCat("not healthy any more: ", WhatIsSaid(result)));
  }

  // The last step had failed here, or no answer came; the host did it all the same, and holds something now.
  void DoneAfterAll(HostProgress* host, const StepResult& result) {
    const bool is_late = host->failed && !host->busy() && host->step_kind == StepKind::kPrepare;
    const std::string step = absl::StrCat(op().id, "/", host->plan.host, "/", NameOfStep(StepKind::kPrepare), "/");
    if (IsFinal(op().state) || !is_late || !absl::StartsWith(result.step_id, step) ||
        result.state != HostState::kPrepared) {
      return;
    }
    host->state = result.state;
    Note(host->plan.host, "prepared after all; it is thrown away");
  }

  void Advance() {
    if (AnyBusy()) return;
    if (op().ci.phase == CiRun::Phase::kRunning) {
      Note("", "every host is healthy on the target; the run of CI is not waited for");
      op().ci.phase = CiRun::Phase::kOver;
      decision_.effects.emplace_back(CancelCi{op().ci.key, true});
    }
    switch (op().state) {
      case OperationState::kPreparing:
        AfterPreparing();
        break;
      case OperationState::kCommitting:
      case OperationState::kVerifying:
        AfterWave();
        break;
      case OperationState::kWaiting:
        AfterWait();
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

  std::string FirstError() {
    for (const HostProgress& host : op().hosts) {
      if (host.failed) return host.error;
    }
    return "";
  }

  void Pruned(HostProgress* host, const StepResult& result, bool ok) {
    if (!ok) {
      Fail(host, absl::StrCat("not pruned: ", WhatIsSaid(result)));
      return;
    }
    host->pruned_releases = result.pruned_releases;
    host->pruned_bytes = result.pruned_bytes;
    Note(host->plan.host,
         absl::StrCat("removed ", result.pruned_releases, " releases, freed ", FormatBytes(result.pruned_bytes)));
  }

  void AfterPruning(const std::vector<std::string>& failed) {
    uint64_t releases = 0;
    uint64_t bytes = 0;
    for (const HostProgress& host : op().hosts) {
      releases += host.pruned_releases;
      bytes += host.pruned_bytes;
    }
    const std::string done = absl::StrCat("removed ", releases, " releases on ", op().hosts.size() - failed.size(),
                                          " hosts, freed ", FormatBytes(bytes));
    if (failed.empty() && !op().abort_requested) {
      End(OperationState::kSucceeded, done);
    } else {
      End(OperationState::kAborted,
          failed.empty() ? absl::StrCat("aborted; what was removed stays removed: ", done)
                         : absl::StrCat("not pruned on ", NamesOf(failed), ": ", FirstError(), "; ", done));
    }
  }

  void AfterPreparing() {
    const std::vector<std::string> failed = Names([](const HostProgress& host) { return host.failed; });
    if (op().plan.spec.kind == OperationKind::kPrune) return AfterPruning(failed);
    if (op().plan.spec.kind == OperationKind::kBackup) {
      if (failed.empty() && !op().abort_requested) {
        End(OperationState::kSucceeded, absl::StrCat("backed up on ", op().hosts.size(), " hosts"));
      } else {
        End(OperationState::kAborted, failed.empty()
                                          ? std::string("aborted; backups that were taken stay")
                                          : absl::StrCat("no backup on ", NamesOf(failed), ": ", FirstError()));
      }
      return;
    }
    if (failed.empty() && !op().abort_requested) {
      CommitNextWave();
      return;
    }
    if (!op().abort_requested && FallsBackToCi()) return;
    StartReverting([](const HostProgress& host) { return HasToRevert(host); });
  }

  // All ways forward lead through here.
  void CommitNextWave() {
    if (const std::string waits_for = WaitsFor(op()); !waits_for.empty()) {
      if (op().state == OperationState::kWaiting) return;
      Go(OperationState::kWaiting);
      Note("", waits_for);
      Explain("", absl::StrCat("held before wave ", op().wave + 1, ": ", waits_for));
      ++op().waits;
      decision_.effects.emplace_back(ArmWait{op().waits, kLongestWait});
      return;
    }
    ++op().wave;
    Go(OperationState::kCommitting);
    bool through_ci = false;
    for (HostProgress& host : op().hosts) {
      if (!Changes(host) || host.plan.wave != op().wave) continue;
      if (UsesCi(host)) {
        through_ci = true;
      } else {
        Start(&host, StepKind::kCommit);
      }
    }
    if (through_ci) AskCiNow();
  }

  // Reached when no step is under way: all of the wave is verified, or something failed.
  void AfterWave() {
    Go(OperationState::kVerifying);
    if (op().plan.spec.kind == OperationKind::kVerification) {
      AfterVerification();
      return;
    }
    GoOnOrBack();
  }

  // A host may have changed its mind meanwhile (DoneAlone).
  void AfterWait() { GoOnOrBack(); }

  void GoOnOrBack() {
    if (op().abort_requested) {
      StartReverting([](const HostProgress& host) { return HasToRevert(host); });
      return;
    }
    const std::vector<std::string> failed = Names([](const HostProgress& host) { return host.failed; });
    if (failed.empty()) {
      if (op().wave < op().plan.wave_count) {
        CommitNextWave();
      } else {
        StartKeeping();
      }
      return;
    }
    const bool only_lost = std::all_of(op().hosts.begin(), op().hosts.end(),
                                       [](const HostProgress& host) { return !host.failed || IsLeftAlone(host); });
    if (only_lost && !UndoesUnconfirmed(op().plan)) {
      // A lost report alone never undoes a healthy host: the lost one keeps the target too, if it is healthy there.
      Explain("", absl::StrCat("healthy hosts are kept, and no further wave begins: ", NamesOf(failed),
                               failed.size() == 1 ? " was" : " were", " lost, and nothing is known to be wrong there"));
      StartKeeping();
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
    if (op().state != OperationState::kReverting) {
      const auto failed =
          std::count_if(op().hosts.begin(), op().hosts.end(), [](const auto& one) { return one.failed; });
      Explain("", op().abort_requested
                      ? std::string("it goes back: it was aborted")
                      : absl::StrCat(
                            "it goes back: ", failed, failed == 1 ? " host" : " hosts", " failed, and ",
                            op().wave == 0 ? "none commits unless all have prepared" : TextOf(op().plan.on_failure)));
    }
    Go(OperationState::kReverting);
    bool any = false;
    for (HostProgress& host : op().hosts) {
      if (!Changes(host) || !wanted(host)) continue;
      if (op().ci.lost && IsDeployedByCi(host)) {
        host.state_unknown = true;
        if (!host.failed) Fail(&host, "left as it is: the run of CI may still be at work on it");
        continue;
      }
      Start(&host, StepKind::kRevert);
      any = true;
    }
    if (!any) AfterReverting();
  }

  // Nothing was changed, whatever came of it.
  void AfterVerification() {
    const std::vector<std::string> failed = Names([](const HostProgress& host) { return host.failed; });
    const std::string& environment = op().plan.spec.environment;
    if (op().abort_requested) {
      End(OperationState::kAborted, "aborted; a verification changes nothing");
    } else if (failed.empty()) {
      End(OperationState::kSucceeded, absl::StrCat("every probe of ", environment, " has passed on ", op().hosts.size(),
                                                   op().hosts.size() == 1 ? " host" : " hosts"));
    } else {
      op().next_commands = {absl::StrCat("rbctl status ", environment), absl::StrCat("rbctl rollback ", environment)};
      End(OperationState::kNeedsAttention,
          absl::StrCat("not healthy: ", NamesOf(failed), ": ", FirstError(), ". Nothing was changed"));
    }
  }

  void AfterReverting() {
    // One that prepared after all, while the others went back.
    const auto is_late = [](const HostProgress& host) {
      return host.state == HostState::kPrepared && host.step_kind == StepKind::kPrepare;
    };
    if (!Names(is_late).empty()) {
      StartReverting(is_late);
      return;
    }
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
    if (op().wave == 0 || (op().wave == 1 && op().ci.never_ran)) {
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
      // One that could not be reverted is not kept either: its tree may be mixed.
      if (host.failed && host.step_kind == StepKind::kRevert) continue;
      // One that is left alone ends by its own policy, which is the same.
      if (IsLeftAlone(host)) continue;
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
    std::string target;
    std::string external;
    for (const HostProgress& host : op().hosts) {
      if (!Changes(host)) continue;
      if (external.empty()) external = ExternalDown(host.probes);
      if (target.empty()) target = TargetText(host.plan);
      op().recovery = std::max(op().recovery, host.times.recovery);
    }
    op().target_met = op().recovery <= op().plan.target;
    for (const auto& [host, environment] : op().plan.missed) {
      op().next_commands.push_back(absl::StrCat("when ", host, " is back: rbctl repair ", host));
    }
    End(OperationState::kSucceeded,
        absl::StrCat(op().plan.spec.environment, " is healthy on ", target, "; recovery ", FormatSeconds(op().recovery),
                     op().target_met ? ", within " : ", OVER ", "the target of ", FormatSeconds(op().plan.target),
                     external, MissedBy(),
                     op().plan.spec.emergency ? "; EMERGENCY: without gates, soak and the probes that need time" : ""));
  }

  std::string MissedBy() {
    if (op().plan.missed.empty()) return "";
    std::vector<std::string> hosts;
    for (const auto& [host, environment] : op().plan.missed) hosts.push_back(host);
    return absl::StrCat("; MISSED by ", NamesOf(hosts), ", offline");
  }

  // Names every host that is not where it should be, with its state and what to type.
  void NeedAttention(const std::string& cause) {
    std::vector<std::string> parts;
    if (!cause.empty()) parts.push_back(cause);
    if (op().ci.lost) {
      parts.push_back(
          absl::StrCat("the run of CI may still be under way: ", op().ci.url.empty() ? op().ci.run : op().ci.url));
      op().next_commands.push_back(absl::StrCat("when the run has ended: rbctl rollback ", op().plan.spec.environment));
    }
    for (const HostProgress& host : op().hosts) {
      if (!Changes(host)) continue;
      const std::string& name = host.plan.host;
      if (host.state_unknown) {
        parts.push_back(
            absl::StrCat(name, ": state not known, it did not answer",
                         IsLeftAlone(host) ? ", and ends alone: it keeps the new state if it is healthy" : ""));
        op().next_commands.push_back(absl::StrCat("rbctl status ", op().plan.spec.environment));
        op().next_commands.push_back(absl::StrCat("on ", name, ": rb-agent local status"));
        op().next_commands.push_back(absl::StrCat("when ", name, " is back: rbctl repair ", name));
      } else if (host.state == HostState::kKept || host.state == HostState::kCommitted) {
        if (host.failed && host.step_kind == StepKind::kRevert) {
          parts.push_back(absl::StrCat(name, ": NOT back on the old state (", host.error, ")"));
          op().next_commands.push_back(absl::StrCat("on ", name, ": rb-agent local recover"));
        } else if (host.verdict == Verdict::kHealthy) {
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
    std::set<std::string> seen;
    std::vector<std::string> unique;
    for (const std::string& command : op().next_commands) {
      if (unique.size() < kMostNextCommands && seen.insert(command).second) unique.push_back(command);
    }
    op().next_commands = std::move(unique);
    End(OperationState::kNeedsAttention, absl::StrJoin(parts, "; "));
  }

  void End(OperationState state, const std::string& summary) {
    if (state == OperationState::kNeedsAttention && RB_PLANTED_BUG("attention-called-success")) {
      state = OperationState::kSucceeded;
    }
    op().summary = Truncate(summary, 2000);
    op().ended_at = event_.at;
    if (state == OperationState::kReverted || state == OperationState::kAborted) {
      op().next_commands.push_back(absl::StrCat("rbctl show ", op().id));
    }
    Go(state);
    Note("", op().summary);
    if (!RB_PLANTED_BUG("lock-kept")) decision_.effects.emplace_back(ReleaseLock{});
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
      return to == S::kPreparing || to == S::kVerifying || to == S::kSucceeded || to == S::kAborted;
    case S::kPreparing:
      return to == S::kWaiting || to == S::kCommitting || to == S::kReverting || to == S::kSucceeded ||
             to == S::kAborted;
    case S::kWaiting:
      return to == S::kCommitting || to == S::kReverting || to == S::kKeeping;
    case S::kCommitting:
      return to == S::kVerifying;
    case S::kVerifying:
      return to == S::kWaiting || to == S::kCommitting || to == S::kKeeping || to == S::kReverting ||
             // A verification.
             to == S::kSucceeded || to == S::kAborted || to == S::kNeedsAttention;
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
    case OperationState::kWaiting:
      return "waiting";
  }
  return "";
}

std::string WaitsFor(const Operation& operation) {
  const Plan& plan = operation.plan;
  if (operation.paused) {
    return absl::StrCat("paused by ", operation.paused_by, ". To go on: rbctl resume ", operation.id);
  }
  const bool approval = plan.approval_before_wave != 0 && operation.wave + 1 >= plan.approval_before_wave;
  if (approval && operation.approved_by.empty()) {
    return absl::StrCat("waits for another operator than ", operation.requested_by, " to approve it: rbctl approve ",
                        operation.id);
  }
  return "";
}

std::string WhyRefused(const Operation& operation, const OperatorRequest& request) {
  const std::string& id = operation.id;
  const std::string show = absl::StrCat(". Type: rbctl show ", id);
  if (IsFinal(operation.state)) {
    constexpr absl::string_view kWhat[] = {"abort", "pause", "resume", "approve"};
    return absl::StrCat(id, " has ended (", NameOf(operation.state), "); there is nothing to ", kWhat[request.index()],
                        show);
  }
  if (std::holds_alternative<PauseRequested>(request)) {
    if (operation.paused) return absl::StrCat(id, " is paused already, by ", operation.paused_by);
    const bool is_late = operation.wave == operation.plan.wave_count && operation.wave > 0;
    if (is_late || operation.state == OperationState::kReverting || operation.plan.wave_count == 0) {
      return absl::StrCat(id, " has no further wave that could be held back", show);
    }
  } else if (std::holds_alternative<ResumeRequested>(request)) {
    if (!operation.paused) return absl::StrCat(id, " is not paused", show);
  } else if (const auto* approved = std::get_if<Approved>(&request)) {
    if (operation.plan.approval_before_wave == 0) return absl::StrCat(id, " needs no approval", show);
    if (!operation.approved_by.empty()) {
      return absl::StrCat(id, " is approved already, by ", operation.approved_by);
    }
    if (approved->by == operation.requested_by) {
      return absl::StrCat(id, " was asked for by ", approved->by,
                          ", so another operator has to approve it. Where there is nobody: rbctl abort ", id,
                          ", then the same command with --override-gate approval --reason \"...\"");
    }
  } else if (operation.abort_requested) {
    return absl::StrCat(id, " is being aborted already. Type: rbctl watch ", id);
  }
  return "";
}

const HostProgress* Operation::Find(absl::string_view host) const {
  const auto place = std::lower_bound(
      by_name.begin(), by_name.end(), host,
      [this](uint32_t at, absl::string_view name) { return absl::string_view(hosts[at].plan.host) < name; });
  return place != by_name.end() && hosts[*place].plan.host == host ? &hosts[*place] : nullptr;
}

Decision Decide(Operation operation, const Event& event) {
  Machine machine(std::move(operation), event);
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
  if (operation.state == OperationState::kWaiting && host.empty()) {
    effects.emplace_back(ArmWait{operation.waits, kLongestWait});
  }
  const bool ci_goes_on = operation.ci.busy() || operation.ci.phase == CiRun::Phase::kRunning;
  if (ci_goes_on && host.empty()) {
    effects.emplace_back(BuildAsk(operation, true));
    if (operation.ci.phase == CiRun::Phase::kCancelling) effects.emplace_back(CancelCi{operation.ci.key, false});
  }
  for (const HostProgress& progress : operation.hosts) {
    if (!progress.busy() || (!host.empty() && progress.plan.host != host)) continue;
    effects.emplace_back(BuildStep(operation, progress));
  }
  return effects;
}

}  // namespace rb::controller
