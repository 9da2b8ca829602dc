#include "agent/core/task/step_runner.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/core/task/candidates.h"
#include "agent/core/task/verifier.h"
#include "common/failpoint.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {

namespace {

constexpr size_t kLogLines = 20;

HostState StateOf(const OpenTransaction& open) {
  if (open.is_torn) return HostState::kCommitted;  // something of the new state may be there
  switch (open.phase) {
    case TransactionPhase::kNone:
      return HostState::kUntouched;
    case TransactionPhase::kPrepared:
      return HostState::kPrepared;
    case TransactionPhase::kCommitted:
      return HostState::kCommitted;
  }
  return HostState::kUnspecified;
}

std::string FirstFailure(const std::vector<ProbeResult>& round) {
  for (const ProbeResult& probe : round) {
    if (CountsAgainst(probe)) return absl::StrCat(probe.name, ": ", probe.observed, " (expected ", probe.expected, ")");
  }
  return "";
}

}  // namespace

TaskResult StepRunner::Run(const Task& task, const ProgressSink& progress, const std::atomic<bool>& cancelled) {
  TaskResult result;
  result.operation_id = task.operation_id;
  result.step_id = task.step_id;
  result.service = task.service;
  Context context{&result, progress, cancelled};
  const absl::StatusOr<Current> current = ports_.engine->GetCurrent();
  if (current.ok()) {
    result.from_release = current->release_name;
    result.from_commit = current->commit;
    result.from_version = current->version;
  }
  progress(Stage::kAccepted, "");
  if (ports_.log != nullptr && !std::holds_alternative<InspectStep>(task.step) &&
      task.operation_id != logged_operation_) {
    logged_operation_ = task.operation_id;
    ports_.log->Mark();
  }
  if (const auto* inspect = std::get_if<InspectStep>(&task.step)) {
    Inspect(*inspect, &result);
    // What was seen half is no reason for anything: whoever asked may ask again.
    if (cancelled.load()) {
      result.status =
          absl::CancelledError("this host stopped looking, because another operation's step came in between");
    }
  } else if (const auto* backup = std::get_if<BackupStep>(&task.step)) {
    Backup(task, *backup, &context);
  } else if (const auto* prepare = std::get_if<PrepareStep>(&task.step)) {
    Prepare(task, *prepare, &context);
  } else if (std::holds_alternative<CommitStep>(task.step)) {
    Commit(task, &context);
  } else if (const auto* verify = std::get_if<VerifyStep>(&task.step)) {
    const absl::StatusOr<OpenTransaction> open = ports_.engine->GetOpenTransaction();
    if (!verify->of_what_runs && open.ok() && open->operation_id != task.operation_id) {
      result.status = absl::FailedPreconditionError(
          "this operation is no longer open on this host: it was undone here, or is over");
      result.state = HostState::kReverted;
    } else {
      Verify(verify->policy, &context);
    }
  } else if (const auto* revert = std::get_if<RevertStep>(&task.step)) {
    Revert(task, *revert, &context);
  } else if (const auto* keep = std::get_if<KeepStep>(&task.step)) {
    Keep(task, *keep, &context);
  } else if (const auto* await = std::get_if<AwaitStep>(&task.step)) {
    Await(*await, &context);
  } else if (const auto* prune = std::get_if<PruneStep>(&task.step)) {
    Prune(*prune, &result);
  }
  const bool was_watched = std::holds_alternative<VerifyStep>(task.step) ||
                           std::holds_alternative<RevertStep>(task.step) ||
                           std::holds_alternative<AwaitStep>(task.step);
  if (ports_.log != nullptr && was_watched) result.log_lines = ports_.log->Last(kLogLines);
  if (result.state == HostState::kUnspecified) {
    const absl::StatusOr<OpenTransaction> open = ports_.engine->GetOpenTransaction();
    result.state = open.ok() && open->operation_id == task.operation_id ? StateOf(*open) : HostState::kUntouched;
  }
  return result;
}

std::vector<ProbeResult> StepRunner::ProbeRound(bool quick, const std::atomic<bool>* hurry) {
  ProbeContext context = probe_context_;
  context.quick = quick;
  std::vector<ProbeResult> round;
  for (const std::unique_ptr<Probe>& probe : ports_.probes) {
    if (hurry != nullptr && *hurry) break;
    round.push_back(probe->Run(context));
  }
  return round;
}

std::vector<ProbeResult> StepRunner::ProbeOnce(const std::atomic<bool>* hurry) {
  const absl::StatusOr<Current> current = ports_.engine->GetCurrent();
  if (current.ok()) {
    probe_context_.expected_commit = current->commit;
    probe_context_.expected_version = current->version;
  }
  return ProbeRound(true, hurry);
}

void StepRunner::Inspect(const InspectStep& step, TaskResult* result) {
  if (step.examine) {
    if (ports_.examiner != nullptr) {
      static const std::atomic<bool> kNever{false};
      result->facts = ports_.examiner->Examine(ports_.step_waits == nullptr ? kNever : *ports_.step_waits);
    }
    return;
  }
  result->problems = ports_.engine->Problems(std::nullopt);
  const bool has_target = step.target.kind != TargetReference::Kind::kNone;
  if (has_target) {
    FillCandidates(step, result);
  } else if (result->problems.empty()) {
    const absl::StatusOr<Current> drift = ports_.engine->CheckDrift();
    if (!drift.ok()) result->problems.emplace_back(drift.status().message());
  }
  // Whether it is healthy decides nothing when it has to change anyway; and a service that hangs would cost the
  // recovery every probe's whole timeout.
  const bool may_stay = std::any_of(result->candidates.begin(), result->candidates.end(), [](const Candidate& each) {
    return each.already_there && each.refused_because.empty();
  });
  if (has_target && !may_stay) return;
  result->probes = ProbeOnce();
  result->verdict = FirstFailure(result->probes).empty() ? Verdict::kHealthy : Verdict::kUnhealthy;
}

void StepRunner::FillCandidates(const InspectStep& step, TaskResult* result) {
  std::vector<Release> releases;
  Current current;
  if (absl::StatusOr<std::vector<Release>> all = ports_.engine->Releases(); all.ok()) {
    releases = *std::move(all);
  } else {
    result->problems.emplace_back(all.status().message());
  }
  if (const absl::StatusOr<Current> known = ports_.engine->GetCurrent(); known.ok()) current = *known;
  // That the mirror is not up to date matters only when the commit is not in it yet.
  const absl::Status fetched = step.fetch && ports_.commits != nullptr ? ports_.commits->Fetch() : absl::OkStatus();
  std::vector<Candidate> candidates;
  if (step.method != Method::kGit) candidates = ChooseReleases(step.target, releases, current, step.components);
  if (step.method != Method::kBackup && ports_.commits != nullptr) {
    // Commits: what was asked for by name, or the commit of the release that was chosen.
    std::string reference = step.target.kind == TargetReference::Kind::kNamed ? step.target.name : "";
    if (reference.empty()) {
      const std::vector<Candidate> chosen =
          candidates.empty() ? ChooseReleases(step.target, releases, current, step.components) : candidates;
      for (const Candidate& candidate : chosen) {
        if (candidate.refused_because.empty()) {
          reference = candidate.commit;
          break;
        }
      }
    }
    if (!reference.empty()) {
      const absl::StatusOr<rb::agent::Commit> commit = ports_.commits->Resolve(reference);
      Candidate candidate;
      candidate.method = Method::kGit;
      if (commit.ok()) {
        candidate.commit = commit->id;
        candidate.version = commit->version;
        if (!step.target.force) candidate.refused_because = WhyCommitIsBad(releases, commit->id);
        candidates.push_back(std::move(candidate));
      } else if (absl::IsInvalidArgument(commit.status())) {
        candidate.refused_because = std::string(commit.status().message());
        candidates.push_back(std::move(candidate));
      } else if (!fetched.ok()) {
        result->problems.push_back(absl::StrCat("the git mirror could not be brought up to date: ", fetched.message()));
      }
    }
  }
  if (candidates.empty()) {
    candidates = ListInstead(step.target, releases);
    if (ports_.commits != nullptr && step.target.kind == TargetReference::Kind::kNamed) {
      if (const absl::StatusOr<std::vector<rb::agent::Commit>> recent = ports_.commits->Recent(10); recent.ok()) {
        for (const rb::agent::Commit& commit : *recent) {
          Candidate candidate;
          candidate.method = Method::kGit;
          candidate.commit = commit.id;
          candidate.version = commit.version;
          candidate.refused_because = absl::StrCat("is not ", Printable(step.target.name));
          candidates.push_back(std::move(candidate));
        }
      }
    }
  }
  for (Candidate& candidate : candidates) {
    if (!candidate.refused_because.empty()) continue;
    EngineTarget target;
    std::unique_ptr<SnapshotSource> snapshot;
    std::unique_ptr<SnapshotSource> baseline;
    if (candidate.method == Method::kBackup) {
      target.release_name = candidate.release.name;
    } else if (ports_.commits != nullptr) {
      absl::StatusOr<std::unique_ptr<SnapshotSource>> opened = ports_.commits->Open(candidate.commit);
      if (!opened.ok()) {
        candidate.refused_because = std::string(opened.status().message());
        continue;
      }
      snapshot = *std::move(opened);
      target.snapshot = snapshot.get();
      target.commit = candidate.commit;
      if (!current.commit.empty()) {
        absl::StatusOr<std::unique_ptr<SnapshotSource>> base = ports_.commits->Open(current.commit);
        if (base.ok()) baseline = *std::move(base);
      }
      target.baseline = baseline.get();
    }
    const absl::StatusOr<Delta> delta = ports_.engine->Compare(target, step.components);
    if (!delta.ok()) {
      candidate.refused_because = std::string(delta.status().message());
      continue;
    }
    candidate.delta = *delta;
    candidate.already_there = delta->empty();
    for (const std::string& problem : ports_.engine->Problems(*delta)) {
      if (std::find(result->problems.begin(), result->problems.end(), problem) == result->problems.end()) {
        result->problems.push_back(problem);
      }
    }
  }
  result->candidates = std::move(candidates);
}

void StepRunner::Backup(const Task& task, const BackupStep& step, Context* context) {
  context->progress(Stage::kCapturing, "");
  RB_FAILPOINT("agent.backup.begin");
  const absl::Duration begin = ports_.clock->Monotonic();
  CaptureRequest request;
  request.cause = Cause::kBackup;
  request.operation_id = task.operation_id;
  request.reason = step.reason;
  request.pinned = step.pin;
  const absl::StatusOr<Current> drift = ports_.engine->CheckDrift();
  if (drift.ok() && !drift->drifted) {
    request.commit = drift->commit;
    request.version = drift->version;
  }
  absl::StatusOr<Release> release = ports_.engine->Capture(request);
  if (!release.ok()) {
    context->result->status = Annotate(release.status(), "the backup was not taken; nothing was changed");
    return;
  }
  // A release that is taken while the service is healthy is one to go back to.
  if (release->standing == Standing::kUnknown && FirstFailure(ProbeOnce()).empty()) {
    if (ports_.engine->SetStanding(release->name, Standing::kGood, "").ok()) release->standing = Standing::kGood;
  }
  if (step.prove) {
    const absl::StatusOr<ProofReport> proof = ports_.engine->Prove(release->name);
    if (!proof.ok() || !proof->findings.empty()) {
      context->result->status = absl::DataLossError(
          absl::StrCat("the backup was taken, but could not be proved: ",
                       proof.ok() ? absl::StrJoin(proof->findings, "; ") : std::string(proof.status().message())));
      return;
    }
    const absl::StatusOr<std::vector<Release>> all = ports_.engine->Releases();
    if (all.ok()) {
      for (const Release& one : *all) {
        if (one.name == release->name) *release = one;
      }
    }
  }
  RB_FAILPOINT("agent.backup.end");
  context->result->release = *release;
  context->result->times.prepare = ports_.clock->Monotonic() - begin;
}

void StepRunner::Prune(const PruneStep& step, TaskResult* result) {
  if (step.keep_good == 0) {
    result->status = absl::FailedPreconditionError(
        "this host was not told how many releases to keep (services.*.retain in the fleet file); nothing was removed");
    return;
  }
  absl::StatusOr<PruneReport> report = ports_.engine->Prune(step.keep_good, {});
  if (!report.ok()) {
    result->status = Annotate(report.status(), "old releases stay for now");
    return;
  }
  result->pruned = Pruned{report->removed.size(), std::move(report->removed), report->bytes_freed};
  if (result->pruned->releases.size() > kMostPrunedNamed) result->pruned->releases.resize(kMostPrunedNamed);
}

absl::Status StepRunner::CheckConfig(const std::string& operation_id) {
  if (!ports_.check_json) return absl::OkStatus();
  for (const std::string& glob : ports_.json_globs) {
    RB_ASSIGN_OR_RETURN(const std::vector<std::string> paths, ports_.engine->ListPrepared(operation_id, glob));
    for (const std::string& path : paths) {
      RB_ASSIGN_OR_RETURN(const std::string text, ports_.engine->ReadPrepared(operation_id, path));
      const absl::Status checked = ports_.check_json(text);
      if (!checked.ok()) {
        return absl::FailedPreconditionError(
            absl::StrCat("the target's ", Printable(path), " is not valid JSON: ", checked.message(),
                         ". Nothing was changed. Choose another target, or use --force with a reason"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status StepRunner::CloseAbandoned(const std::string& operation_id) {
  absl::StatusOr<OpenTransaction> open = ports_.engine->GetOpenTransaction();
  RB_RETURN_IF_ERROR(open.status());
  if (open->phase == TransactionPhase::kNone || open->operation_id == operation_id) return absl::OkStatus();
  // Whoever holds the lock now has superseded it: else a host that once did not answer could never be prepared again.
  RB_RETURN_IF_ERROR(ports_.engine->Recover().status());
  open = ports_.engine->GetOpenTransaction();
  RB_RETURN_IF_ERROR(open.status());
  switch (open->phase) {
    case TransactionPhase::kNone:
      return absl::OkStatus();
    case TransactionPhase::kPrepared:
      return ports_.engine->Undo(open->operation_id);
    case TransactionPhase::kCommitted:
      // It is what runs, whether good or not; Prepare captures it like any other state.
      return ports_.engine
          ->Keep(open->operation_id, Cause::kDeploy, false, false, absl::StrCat("superseded by ", operation_id))
          .status();
  }
  return absl::OkStatus();
}

void StepRunner::Prepare(const Task& task, const PrepareStep& step, Context* context) {
  TaskResult* result = context->result;
  const absl::Duration begin = ports_.clock->Monotonic();
  context->progress(Stage::kCapturing, "");
  if (const absl::Status closed = CloseAbandoned(task.operation_id); !closed.ok()) {
    result->status = Annotate(closed, "an earlier operation is still open here");
    return;
  }
  if (step.method == Method::kRedeploy) {
    PrepareForRedeploy(task, step, context);
    result->times.prepare = ports_.clock->Monotonic() - begin;
    return;
  }
  EngineTarget target;
  std::unique_ptr<SnapshotSource> snapshot;
  std::unique_ptr<SnapshotSource> baseline;
  if (step.method == Method::kGit) {
    if (ports_.commits == nullptr) {
      result->status = absl::FailedPreconditionError("agent.yaml names no git repository for this service");
      return;
    }
    absl::StatusOr<rb::agent::Commit> commit = ports_.commits->Resolve(step.commit);
    absl::StatusOr<std::unique_ptr<SnapshotSource>> opened =
        commit.ok() ? ports_.commits->OpenForTree(commit->id, result->from_commit) : commit.status();
    if (!opened.ok()) {
      result->status = Annotate(opened.status(), "nothing was changed");
      return;
    }
    snapshot = *std::move(opened);
    target.snapshot = snapshot.get();
    target.commit = commit->id;
    target.version = commit->version;
    if (!result->from_commit.empty()) {
      absl::StatusOr<std::unique_ptr<SnapshotSource>> base = ports_.commits->Open(result->from_commit);
      if (base.ok()) baseline = *std::move(base);
    }
    target.baseline = baseline.get();
  } else {
    target.release_name = step.release_name;
  }
  RB_FAILPOINT("agent.prepare.begin");
  const absl::StatusOr<PreparedTransaction> prepared =
      ports_.engine->Prepare(task.operation_id, target, step.components, step.reason);
  if (!prepared.ok()) {
    result->status = prepared.status();
    return;
  }
  for (const std::string& healed : prepared->healed) context->progress(Stage::kStaging, healed);
  if (step.check_config) {
    if (const absl::Status checked = CheckConfig(task.operation_id); !checked.ok()) {
      result->status = checked;
      ports_.engine->Undo(task.operation_id).IgnoreError();
      return;
    }
  }
  RB_FAILPOINT("agent.prepare.end");
  result->state = HostState::kPrepared;
  result->release = prepared->replaced;
  result->delta = prepared->delta;
  result->times.prepare = ports_.clock->Monotonic() - begin;
}

absl::Status StepRunner::StopService(Context* context) {
  context->progress(Stage::kStopping, "");
  const absl::Duration begin = ports_.clock->Monotonic();
  stopped_at_ = begin;
  const absl::Status stopped = ports_.supervisor->Stop(ports_.stop_timeout);
  context->result->times.stop = ports_.clock->Monotonic() - begin;
  return stopped;
}

absl::Status StepRunner::StartService(Context* context) {
  // Nothing is started on a mixed tree, whichever operation has left it.
  absl::StatusOr<OpenTransaction> open = ports_.engine->GetOpenTransaction();
  if (open.ok() && open->is_torn) {
    RB_RETURN_IF_ERROR(ports_.engine->Recover().status());
    open = ports_.engine->GetOpenTransaction();
    if (open.ok() && open->is_torn) return absl::InternalError("the tree is half swapped");
  }
  RB_RETURN_IF_ERROR(open.status());
  context->progress(Stage::kStarting, "");
  const absl::Duration begin = ports_.clock->Monotonic();
  // After a crash it may run by now, started at boot or by the agent before this one: its log has begun long since.
  const absl::StatusOr<UnitState> state = ports_.supervisor->GetState();
  if (!state.ok() || state->activity != UnitState::Activity::kActive) {
    for (const std::unique_ptr<Probe>& probe : ports_.probes) probe->BeforeStart();
    probe_context_.started_at = ports_.clock->Now();
    probe_context_.started_at_monotonic = begin;
  }
  const absl::Status started = ports_.supervisor->Start(ports_.start_timeout);
  context->result->times.start = ports_.clock->Monotonic() - begin;
  return started;
}

absl::Status StepRunner::StartRestored(Context* context) {
  if (ports_.after_restore == nullptr) return StartService(context);
  const auto say = [&](std::vector<std::string> problems) {
    for (std::string& problem : problems) context->result->problems.push_back(std::move(problem));
  };
  // After a crash it may have been started by then: caches of what runs are its own.
  const absl::StatusOr<UnitState> state = ports_.supervisor->GetState();
  if (!state.ok() || state->activity != UnitState::Activity::kActive) say(ports_.after_restore->BeforeStart());
  const absl::Status started = StartService(context);
  if (started.ok()) say(ports_.after_restore->AfterStart());
  return started;
}

absl::Status StepRunner::Stop() {
  TaskResult result;
  const ProgressSink nobody = [](Stage, const std::string&) {};
  const std::atomic<bool> never{false};
  Context context{&result, nobody, never};
  return StopService(&context);
}

absl::Status StepRunner::Start() {
  TaskResult result;
  const ProgressSink nobody = [](Stage, const std::string&) {};
  const std::atomic<bool> never{false};
  Context context{&result, nobody, never};
  return StartService(&context);
}

void StepRunner::Commit(const Task& task, Context* context) {
  TaskResult* result = context->result;
  const absl::StatusOr<OpenTransaction> open = ports_.engine->GetOpenTransaction();
  if (!open.ok() || open->phase == TransactionPhase::kNone || open->operation_id != task.operation_id) {
    result->status = open.ok() ? absl::FailedPreconditionError(
                                     "this operation is not prepared on this host; nothing "
                                     "was changed")
                               : open.status();
    return;
  }
  probe_context_.expected_commit = open->target_commit;
  probe_context_.expected_version = open->target_version;
  RB_FAILPOINT("agent.commit.before-stop");
  if (open->phase == TransactionPhase::kPrepared) {
    if (const absl::Status stopped = StopService(context); !stopped.ok()) {
      // The tree is untouched; the service is asked to run again, since it did.
      const absl::Status started = StartService(context);
      result->status = Annotate(
          stopped, absl::StrCat("the service could not be stopped, so nothing was swapped",
                                started.ok() ? "; it was started again" : "; it could not be started again either"));
      result->state = HostState::kPrepared;
      return;
    }
    RB_FAILPOINT("agent.commit.after-stop");
    context->progress(Stage::kSwapping, "");
    const absl::Duration begin = ports_.clock->Monotonic();
    const absl::StatusOr<EngineTimes> swapped = ports_.engine->Commit(task.operation_id);
    result->times.swap = ports_.clock->Monotonic() - begin;
    if (!swapped.ok()) {
      absl::StatusOr<OpenTransaction> now = ports_.engine->GetOpenTransaction();
      // Where the swap could not be taken back either, the tree is mixed until that succeeds: what ran now would run on
      // two halves.
      if (now.ok() && now->is_torn && ports_.engine->Recover().ok()) now = ports_.engine->GetOpenTransaction();
      if (!now.ok() || now->is_torn) {
        result->status = Annotate(swapped.status(), "the service is left stopped");
        result->state = HostState::kCommitted;
        return;
      }
      const absl::Status started = StartService(context);
      result->status = Annotate(swapped.status(), started.ok() ? "the old state was started again"
                                                               : "the old state could not be started again");
      result->state = now->phase == TransactionPhase::kPrepared ? HostState::kPrepared : HostState::kUntouched;
      return;
    }
    RB_FAILPOINT("agent.commit.after-swap");
  }
  const absl::Status started = StartRestored(context);
  RB_FAILPOINT("agent.commit.after-start");
  result->state = HostState::kCommitted;
  // A service that does not start is for the verification to judge.
  if (!started.ok()) context->progress(Stage::kProbing, std::string(started.message()));
}

void StepRunner::Verify(const VerifyPolicy& policy, Context* context) {
  TaskResult* result = context->result;
  context->progress(Stage::kProbing, "");
  RB_FAILPOINT("agent.verify.begin");
  const absl::StatusOr<OpenTransaction> open = ports_.engine->GetOpenTransaction();
  if (open.ok() && open->phase == TransactionPhase::kCommitted) {
    probe_context_.expected_commit = open->target_commit;
    probe_context_.expected_version = open->target_version;
  }
  Verifier verifier(policy, ports_.clock->Monotonic());
  std::string told;
  bool said_healthy = false;
  while (true) {
    if (context->cancelled.load()) {
      result->status = absl::CancelledError("the verification was stopped as asked; the tree was not touched by that");
      return;
    }
    // A quick look first: that is when the service is back. What needs time (stable_for) is waited for in the soak.
    const bool quick = policy.soak == absl::ZeroDuration() || !verifier.healthy_since().has_value();
    result->probes = ProbeRound(quick);
    const absl::Duration now = ports_.clock->Monotonic();
    result->verdict = verifier.Take(result->probes, now);
    if (verifier.healthy_since().has_value()) {
      if (!said_healthy) {
        said_healthy = true;
        if (stopped_at_ != absl::ZeroDuration()) result->times.downtime = *verifier.healthy_since() - stopped_at_;
        context->progress(Stage::kHealthy, "");
      }
    } else {
      said_healthy = false;
      result->times.downtime = absl::ZeroDuration();
      std::string failure = FirstFailure(result->probes);
      if (failure != told) {
        context->progress(Stage::kProbing, failure);
        told = std::move(failure);
      }
    }
    if (result->verdict != Verdict::kUnknown) {
      RB_FAILPOINT("agent.verify.end");
      return;
    }
    ports_.clock->Sleep(verifier.NextWait());
  }
}

void StepRunner::Revert(const Task& task, const RevertStep& step, Context* context) {
  TaskResult* result = context->result;
  const absl::StatusOr<OpenTransaction> open = ports_.engine->GetOpenTransaction();
  if (!open.ok()) {
    result->status = open.status();
    return;
  }
  context->progress(Stage::kUndoing, step.reason);
  if (!step.restore_release.empty()) {
    RestoreReplaced(task, step, context);
    return;
  }
  if (open->phase == TransactionPhase::kNone || open->operation_id != task.operation_id) {
    // Nothing of this operation is open: it was never prepared here, or is undone already. The service should run.
    result->state = HostState::kReverted;
    result->status = Annotate(StartService(context), "the old state is in place, but the service did not start");
    Verify(step.verify, context);
    return;
  }
  if (open->phase == TransactionPhase::kPrepared && !open->is_torn) {
    result->status = ports_.engine->Undo(task.operation_id);
    if (!result->status.ok()) return;
    result->state = HostState::kUntouched;
    // A commit that failed half-way may have left it stopped.
    const absl::StatusOr<UnitState> unit = ports_.supervisor->GetState();
    if (unit.ok() && unit->activity == UnitState::Activity::kInactive) {
      result->status = Annotate(StartService(context), "nothing was changed, but the service did not start");
    }
    return;
  }
  if (const absl::Status stopped = StopService(context); !stopped.ok()) {
    result->status = Annotate(stopped,
                              "the service could not be stopped, so nothing was swapped back; it is on the "
                              "new state");
    result->state = HostState::kCommitted;
    StartService(context).IgnoreError();
    return;
  }
  RB_FAILPOINT("agent.revert.after-stop");
  const absl::Duration begin = ports_.clock->Monotonic();
  const absl::Status undone = ports_.engine->Undo(task.operation_id);
  result->times.swap = ports_.clock->Monotonic() - begin;
  if (!undone.ok()) {
    result->status = Annotate(undone, absl::StrCat("the swap could not be taken back. On this host type: rb-agent "
                                                   "recover ",
                                                   task.service));
    return;
  }
  RB_FAILPOINT("agent.revert.after-undo");
  const absl::StatusOr<Current> current = ports_.engine->GetCurrent();
  if (current.ok()) {
    probe_context_.expected_commit = current->commit;
    probe_context_.expected_version = current->version;
  }
  const absl::Status started = StartRestored(context);
  result->state = HostState::kReverted;
  if (!started.ok()) result->status = Annotate(started, "the old state is back, but the service did not start");
  Verify(step.verify, context);
}

void StepRunner::Keep(const Task& task, const KeepStep& step, Context* context) {
  TaskResult* result = context->result;
  RB_FAILPOINT("agent.keep.begin");
  if (!step.redeployed_commit.empty()) {
    KeepRedeployed(task, step, context);
    return;
  }
  const absl::StatusOr<Release> kept =
      ports_.engine->Keep(task.operation_id, Cause::kDeploy, step.good, step.replaced_is_bad, step.reason);
  if (!kept.ok()) {
    result->status = kept.status();
    return;
  }
  RB_FAILPOINT("agent.keep.end");
  result->release = *kept;
  result->state = HostState::kKept;
}

}  // namespace rb::agent
