// Method B on one host: CI changes the tree and starts the service anew. Here it is captured before, looked at until it
// is what was asked for, and brought back when it never is.
#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/core/task/step_runner.h"
#include "agent/core/task/verifier.h"
#include "common/failpoint.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr absl::Duration kShortestLook = absl::Milliseconds(250);
constexpr absl::Duration kLongestLook = absl::Seconds(5);
constexpr absl::Duration kShortestFetch = absl::Seconds(2);
constexpr absl::Duration kLongestFetch = absl::Seconds(60);
// A look at the tree is a walk of it: it takes at most a fourth of the time.
constexpr int kRestPerLook = 3;

uint64_t Differing(const Delta& delta) { return delta.files_added + delta.files_changed + delta.files_removed; }

bool AllPass(const std::vector<ProbeResult>& round) {
  return std::all_of(round.begin(), round.end(), [](const ProbeResult& probe) { return probe.passed; });
}

}  // namespace

// By content: CI may give files another owner than we would.
absl::StatusOr<Delta> StepRunner::CompareWithCommit(const std::string& commit, const Components& components) {
  EngineTarget target;
  std::unique_ptr<SnapshotSource> snapshot;
  std::unique_ptr<SnapshotSource> baseline;
  if (ports_.commits != nullptr) {
    if (absl::StatusOr<std::unique_ptr<SnapshotSource>> opened = ports_.commits->Open(commit); opened.ok()) {
      snapshot = *std::move(opened);
      target.snapshot = snapshot.get();
      target.commit = commit;
      const absl::StatusOr<Current> current = ports_.engine->GetCurrent();
      if (current.ok() && !current->commit.empty()) {
        absl::StatusOr<std::unique_ptr<SnapshotSource>> base = ports_.commits->Open(current->commit);
        if (base.ok()) baseline = *std::move(base);
      }
      target.baseline = baseline.get();
      return ports_.engine->Compare(target, components);
    }
  }
  RB_ASSIGN_OR_RETURN(const std::vector<Release> releases, ports_.engine->Releases());
  for (const Release& release : releases) {
    if (release.commit != commit || release.durability == Durability::kCaptured) continue;
    target.release_name = release.name;
    return ports_.engine->Compare(target, components);
  }
  return absl::NotFoundError(
      absl::StrCat("commit ", commit.substr(0, 7), " is neither in the git mirror nor in a release"));
}

bool StepRunner::HasVersionProbe() {
  // Kinds are known from results alone; the version probe passes when nothing is expected.
  for (const ProbeResult& probe : ProbeRound(true)) {
    if (probe.kind == "version") return true;
  }
  return false;
}

void StepRunner::PrepareForRedeploy(const Task& task, const PrepareStep& step, Context* context) {
  TaskResult* result = context->result;
  // What this operation has staged from another source.
  if (const absl::Status dropped = ports_.engine->Undo(task.operation_id); !dropped.ok()) {
    result->status = Annotate(dropped, "what was staged could not be thrown away");
    return;
  }
  if (ports_.commits != nullptr && !ports_.commits->Resolve(step.commit).ok()) ports_.commits->Fetch().IgnoreError();
  if (const absl::StatusOr<Delta> delta = CompareWithCommit(step.commit, step.components); delta.ok()) {
    result->delta = *delta;
  } else if (!absl::IsNotFound(delta.status()) || !HasVersionProbe()) {
    result->status = Annotate(delta.status(),
                              "this host could not see whether the target arrives, and it has no version probe either; "
                              "nothing was changed");
    return;
  }
  CaptureRequest request;
  request.cause = Cause::kReplaced;
  request.operation_id = task.operation_id;
  request.reason = step.reason;
  if (const absl::StatusOr<Current> drift = ports_.engine->CheckDrift(); drift.ok() && !drift->drifted) {
    request.commit = drift->commit;
    request.version = drift->version;
  }
  absl::StatusOr<Release> release = ports_.engine->Capture(request);
  if (!release.ok()) {
    result->status = Annotate(release.status(), "what is there could not be kept; nothing was changed");
    return;
  }
  const absl::StatusOr<UnitState> unit = ports_.supervisor->GetState();
  run_before_redeploy_ = unit.ok() ? unit->invocation : "";
  result->release = *release;
  result->state = HostState::kUntouched;
}

void StepRunner::Await(const AwaitStep& step, Context* context) {
  TaskResult* result = context->result;
  context->progress(Stage::kProbing, "waiting for CI");
  probe_context_.expected_commit = step.deployed_commit.empty() ? step.commit : step.deployed_commit;
  probe_context_.expected_version = step.version;
  // Nobody may have known the commit when this was planned: a tag of it is known here once it was fetched.
  const auto learn_version = [&] {
    if (!step.version.empty() || ports_.commits == nullptr) return;
    const absl::StatusOr<rb::agent::Commit> commit = ports_.commits->Resolve(step.commit);
    if (commit.ok()) probe_context_.expected_version = commit->version;
  };
  const absl::Duration begin = ports_.clock->Monotonic();
  absl::Duration next_fetch = begin;
  absl::Duration fetch_wait = kShortestFetch;
  absl::Duration next_look = begin;
  std::optional<absl::Duration> gone_since;
  std::optional<Verifier> verifier;
  std::string differs;
  bool first = true;
  const auto tree_now = [this] {
    const absl::StatusOr<Current> drift = ports_.engine->CheckDrift();
    return drift.ok() && !drift->drifted ? HostState::kUntouched : HostState::kCommitted;
  };
  while (true) {
    if (context->cancelled.load()) {
      result->status = absl::CancelledError("looking for what CI deploys was stopped as asked");
      result->state = tree_now();
      return;
    }
    absl::Duration now = ports_.clock->Monotonic();
    const absl::StatusOr<UnitState> unit = ports_.supervisor->GetState();
    const bool runs = unit.ok() && unit->activity == UnitState::Activity::kActive;
    const bool is_same_run = unit.ok() && !run_before_redeploy_.empty() && unit->invocation == run_before_redeploy_;
    if (!gone_since.has_value() && !(runs && (is_same_run || first))) gone_since = now;
    // Until the files are there the tree is looked at; then the probes are, and the tree once more at the end.
    if (!verifier.has_value() && now >= next_look) {
      const absl::Duration look_began = now;
      absl::StatusOr<Delta> delta = CompareWithCommit(step.commit, step.components);
      if (absl::IsNotFound(delta.status()) && ports_.commits != nullptr && now >= next_fetch) {
        ports_.commits->Fetch().IgnoreError();
        fetch_wait = std::min(fetch_wait * 2, kLongestFetch);
        next_fetch = ports_.clock->Monotonic() + fetch_wait;
        delta = CompareWithCommit(step.commit, step.components);
      }
      now = ports_.clock->Monotonic();
      // Without the commit's files the version probe is what tells.
      const bool cannot_compare = absl::IsNotFound(delta.status());
      if (cannot_compare || (delta.ok() && Differing(*delta) == 0)) {
        learn_version();
        verifier.emplace(step.verify, now);
      } else {
        differs = !delta.ok()
                      ? std::string(delta.status().message())
                      : absl::StrCat(
                            Differing(*delta), " files differ from ", step.commit.substr(0, 7),
                            delta->sample_paths.empty() ? "" : absl::StrCat(" (", delta->sample_paths.front(), ", …)"));
        if (first && run_before_redeploy_.empty() && unit.ok()) run_before_redeploy_ = unit->invocation;
        next_look = now + std::clamp((now - look_began) * kRestPerLook, kShortestLook, kLongestLook);
      }
    }
    first = false;
    if (!verifier.has_value()) {
      if (now - begin >= step.arrives_within) {
        result->status = absl::FailedPreconditionError(absl::StrCat("the target is not on the disk: ", differs));
        result->verdict = Verdict::kUnhealthy;
        result->state = tree_now();
        return;
      }
      ports_.clock->Sleep(kShortestLook);
      continue;
    }
    // The old process may be healthy still, on the new files.
    result->probes = ProbeRound(step.verify.soak == absl::ZeroDuration());
    const bool told_by_version =
        std::any_of(result->probes.begin(), result->probes.end(),
                    [](const ProbeResult& probe) { return probe.kind == "version" && probe.passed; });
    if (is_same_run && !told_by_version) {
      ProbeResult restarted;
      restarted.name = "started anew";
      restarted.kind = "unit";
      restarted.observed = "the same process as before CI was asked";
      restarted.expected = "one that was started on the new files";
      result->probes.push_back(std::move(restarted));
    }
    now = ports_.clock->Monotonic();
    if (!gone_since.has_value() && !AllPass(result->probes)) gone_since = now;
    result->verdict = verifier->Take(result->probes, now);
    result->state = HostState::kCommitted;
    if (result->verdict == Verdict::kHealthy) {
      const absl::StatusOr<Delta> delta = CompareWithCommit(step.commit, step.components);
      if (delta.ok() && Differing(*delta) != 0) {
        // CI was not done with it.
        verifier.reset();
        next_look = now;
        continue;
      }
      if (gone_since.has_value()) {
        result->times.downtime = verifier->healthy_since().value_or(now) - *gone_since;
        result->times.downtime = std::max(result->times.downtime, absl::ZeroDuration());
      }
      context->progress(Stage::kHealthy, "");
      return;
    }
    if (result->verdict == Verdict::kUnhealthy) return;
    ports_.clock->Sleep(verifier->NextWait());
  }
}

void StepRunner::RestoreReplaced(const Task& task, const RevertStep& step, Context* context) {
  TaskResult* result = context->result;
  const Components components;
  EngineTarget target;
  target.release_name = step.restore_release;
  absl::StatusOr<OpenTransaction> open = ports_.engine->GetOpenTransaction();
  if (open.ok() && open->operation_id == task.operation_id && open->is_torn) {
    result->status = ports_.engine->Recover().status();
    if (result->status.ok()) open = ports_.engine->GetOpenTransaction();
  }
  if (!open.ok()) result->status = open.status();
  if (!result->status.ok()) return;
  const bool begun = open->operation_id == task.operation_id && open->phase != TransactionPhase::kNone;
  if (!begun) {
    const absl::StatusOr<Delta> delta = ports_.engine->Compare(target, components);
    if (delta.ok() && delta->empty()) {
      result->state = HostState::kUntouched;
      const absl::StatusOr<UnitState> unit = ports_.supervisor->GetState();
      if (unit.ok() && unit->activity == UnitState::Activity::kInactive) {
        result->status = Annotate(StartService(context), "nothing was changed, but the service did not start");
      }
      return;
    }
    const absl::StatusOr<PreparedTransaction> prepared =
        ports_.engine->Prepare(task.operation_id, target, components, step.reason);
    if (!prepared.ok()) {
      result->status = Annotate(prepared.status(), absl::StrCat(step.restore_release, " could not be brought back"));
      result->state = HostState::kCommitted;
      return;
    }
  }
  if (!begun || open->phase == TransactionPhase::kPrepared) {
    result->status = StopService(context);
    if (result->status.ok()) {
      const absl::StatusOr<EngineTimes> swapped = ports_.engine->Commit(task.operation_id);
      result->status = swapped.status();
    }
    if (!result->status.ok()) {
      result->state = HostState::kCommitted;
      ports_.engine->Undo(task.operation_id).IgnoreError();
      StartService(context).IgnoreError();
      return;
    }
  }
  const absl::StatusOr<Release> kept =
      ports_.engine->Keep(task.operation_id, Cause::kDeploy, false, false, step.reason);
  if (!kept.ok()) {
    result->status = kept.status();
    result->state = HostState::kCommitted;
    return;
  }
  probe_context_.expected_commit = kept->commit;
  probe_context_.expected_version = kept->version;
  const absl::Status started = StartService(context);
  result->state = HostState::kReverted;
  if (!started.ok()) result->status = Annotate(started, "the old state is back, but the service did not start");
  Verify(step.verify, context);
}

void StepRunner::KeepRedeployed(const Task& task, const KeepStep& step, Context* context) {
  TaskResult* result = context->result;
  CaptureRequest request;
  request.cause = Cause::kDeploy;
  request.commit = step.redeployed_commit;
  request.version = step.redeployed_version;
  if (request.version.empty() && ports_.commits != nullptr) {
    const absl::StatusOr<rb::agent::Commit> commit = ports_.commits->Resolve(request.commit);
    if (commit.ok()) request.version = commit->version;
  }
  request.operation_id = task.operation_id;
  request.reason = step.reason;
  absl::StatusOr<Release> kept = ports_.engine->Capture(request);
  // A transaction in which nothing changes makes it what is current.
  if (kept.ok()) {
    EngineTarget target;
    target.release_name = kept->name;
    result->status = ports_.engine->Prepare(task.operation_id, target, Components(), step.reason).status();
    if (result->status.ok()) result->status = ports_.engine->Commit(task.operation_id).status();
    if (result->status.ok())
      kept = ports_.engine->Keep(task.operation_id, Cause::kDeploy, step.good, false, step.reason);
  }
  if (kept.ok() && result->status.ok() && step.replaced_is_bad && !step.replaced_release.empty() &&
      step.replaced_release != kept->name) {
    result->status = ports_.engine->SetStanding(step.replaced_release, Standing::kBad, step.reason);
  }
  if (!kept.ok()) result->status = kept.status();
  if (!result->status.ok()) return;
  RB_FAILPOINT("agent.keep.end");
  result->release = *kept;
  result->state = HostState::kKept;
}

}  // namespace rb::agent
