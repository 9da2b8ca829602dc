#include "tests/sim/translate.h"

namespace rb::sim {
namespace {

agent::Method ToAgent(controller::Method method) { return static_cast<agent::Method>(static_cast<int>(method)); }
controller::Method ToController(agent::Method method) {
  return static_cast<controller::Method>(static_cast<int>(method));
}

agent::Components ToAgent(const std::vector<controller::Component>& components) {
  if (components.empty()) return agent::Components();
  agent::Components wanted{false, false, false};
  for (const controller::Component component : components) {
    if (component == controller::Component::kCode) wanted.code = true;
    if (component == controller::Component::kConfig) wanted.config = true;
    if (component == controller::Component::kData) wanted.data = true;
  }
  return wanted;
}

agent::TargetReference ToAgent(const controller::TargetReference& target) {
  using From = controller::TargetReference::Kind;
  using To = agent::TargetReference::Kind;
  agent::TargetReference reference;
  reference.kind = target.kind == From::kLastGood ? To::kLastGood
                   : target.kind == From::kNamed  ? To::kNamed
                   : target.kind == From::kBefore ? To::kBefore
                                                  : To::kPrevious;
  reference.name = target.name;
  reference.before = target.before;
  reference.force = target.force;
  return reference;
}

controller::StatusCode ToController(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return controller::StatusCode::kOk;
    case absl::StatusCode::kUnavailable:
      return controller::StatusCode::kUnavailable;
    case absl::StatusCode::kDeadlineExceeded:
      return controller::StatusCode::kDeadlineExceeded;
    case absl::StatusCode::kFailedPrecondition:
      return controller::StatusCode::kRefused;
    case absl::StatusCode::kCancelled:
      return controller::StatusCode::kCancelled;
    default:
      return controller::StatusCode::kFailed;
  }
}

controller::Release ToController(const agent::Release& release) {
  controller::Release to;
  to.name = release.name;
  to.manifest_digest = release.manifest_digest;
  to.commit = release.commit;
  to.version = release.version;
  to.cause = static_cast<controller::Cause>(static_cast<int>(release.cause));
  to.captured_at = release.captured_at;
  to.durability = static_cast<controller::Durability>(static_cast<int>(release.durability));
  to.standing = static_cast<controller::Standing>(static_cast<int>(release.standing));
  to.last_proved_at = release.last_proved_at;
  to.entry_count = release.entry_count;
  to.content_bytes = release.content_bytes;
  to.pinned = release.pinned;
  to.operation_id = release.operation_id;
  to.reason = release.reason;
  return to;
}

controller::DeltaSummary ToController(const agent::Delta& delta) {
  controller::DeltaSummary to;
  to.files_added = delta.files_added;
  to.files_changed = delta.files_changed;
  to.files_removed = delta.files_removed;
  to.other_changes = delta.other_changes;
  to.bytes_to_stage = delta.bytes_to_stage;
  return to;
}

controller::Verdict ToController(agent::Verdict verdict) {
  return static_cast<controller::Verdict>(static_cast<int>(verdict));
}

std::vector<controller::ProbeResult> ToController(const std::vector<agent::ProbeResult>& probes) {
  std::vector<controller::ProbeResult> to;
  to.reserve(probes.size());
  for (const agent::ProbeResult& probe : probes) {
    to.push_back({probe.name, probe.kind, probe.passed, probe.observed, probe.expected, probe.took});
  }
  return to;
}

}  // namespace

agent::Task TaskFor(const controller::Operation& operation, const controller::StartStep& step) {
  agent::Task task;
  task.operation_id = operation.id;
  task.step_id = step.step_id;
  task.fencing_number = operation.fencing_number;
  task.service = operation.plan.spec.service;
  task.timeout = step.deadline;
  const agent::VerifyPolicy verify{step.verify_deadline, step.verify_soak};
  switch (step.kind) {
    case controller::StepKind::kInspect:
      task.step = agent::InspectStep();
      break;
    case controller::StepKind::kBackup: {
      agent::BackupStep backup;
      backup.reason = step.reason;
      backup.pin = step.pin;
      backup.prove = step.prove;
      task.step = backup;
      break;
    }
    case controller::StepKind::kPrune:
      // As the fleet file's default.
      task.step = agent::PruneStep{10};
      break;
    case controller::StepKind::kPrepare: {
      agent::PrepareStep prepare;
      prepare.release_name = step.release_name;
      prepare.commit = step.commit;
      prepare.method = ToAgent(step.method);
      prepare.components = ToAgent(operation.plan.spec.components);
      prepare.reason = step.reason;
      prepare.deploy = step.deploy;
      prepare.check_config = step.check_config;
      task.step = prepare;
      break;
    }
    case controller::StepKind::kCommit: {
      agent::CommitStep commit;
      commit.unattended.patience = absl::Seconds(30);
      commit.unattended.undo_when_unhealthy = step.undo_when_unhealthy;
      commit.unattended.undo_when_unconfirmed = step.undo_when_unconfirmed;
      commit.unattended.verify = verify;
      commit.next_step_id = step.next_step_id;
      task.step = commit;
      break;
    }
    case controller::StepKind::kVerify:
      task.step = agent::VerifyStep{verify, !controller::ChangesHosts(operation.plan.spec.kind)};
      break;
    case controller::StepKind::kRevert:
      task.step = agent::RevertStep{operation.abort_requested ? "aborted" : "the operation failed", verify,
                                    step.replaced_release};
      break;
    case controller::StepKind::kKeep:
      task.step = agent::KeepStep{step.good,
                                  step.replaced_is_bad,
                                  step.reason,
                                  step.redeployed_commit,
                                  step.redeployed_version,
                                  step.replaced_release};
      break;
    case controller::StepKind::kAwait:
      task.step = agent::AwaitStep{step.commit,         step.version, step.deployed_commit,
                                   step.arrives_within, verify,       ToAgent(operation.plan.spec.components)};
      break;
  }
  return task;
}

agent::Task InspectTask(const controller::OperationSpec& spec, const std::string& step_id,
                        const std::string& undo_release) {
  agent::Task task;
  task.operation_id = step_id;
  task.step_id = step_id;
  task.service = spec.service;
  agent::InspectStep inspect;
  inspect.components = ToAgent(spec.components);
  inspect.method = ToAgent(spec.method);
  if (spec.kind == controller::OperationKind::kUndo) {
    inspect.target.kind = agent::TargetReference::Kind::kNamed;
    inspect.target.name = undo_release;
    inspect.target.force = true;
    inspect.method = agent::Method::kBackup;
  } else if (spec.kind != controller::OperationKind::kBackup && spec.kind != controller::OperationKind::kPrune) {
    inspect.target = ToAgent(spec.target);
    if (spec.kind == controller::OperationKind::kDeploy) inspect.method = agent::Method::kGit;
    inspect.fetch = spec.kind == controller::OperationKind::kDeploy;
  }
  task.step = std::move(inspect);
  return task;
}

controller::StepResult ResultFor(const agent::TaskResult& result) {
  controller::StepResult to;
  to.step_id = result.step_id;
  to.code = ToController(result.status);
  to.message = std::string(result.status.message());
  to.state = static_cast<controller::HostState>(static_cast<int>(result.state));
  to.times.prepare = result.times.prepare;
  to.times.stop = result.times.stop;
  to.times.swap = result.times.swap;
  to.times.start = result.times.start;
  to.times.downtime = result.times.downtime;
  to.verdict = ToController(result.verdict);
  to.probes = ToController(result.probes);
  to.problems = result.problems;
  to.release = ToController(result.release);
  to.delta = ToController(result.delta);
  to.from_release = result.from_release;
  to.from_commit = result.from_commit;
  to.from_version = result.from_version;
  to.done_alone = result.done_alone;
  to.began_step_id = result.began_step_id;
  if (result.pruned.has_value()) {
    to.pruned_releases = result.pruned->removed;
    to.pruned_bytes = result.pruned->freed_bytes;
  }
  return to;
}

controller::Inspection InspectionFor(const agent::TaskResult& result) {
  controller::Inspection inspection;
  inspection.connected = true;
  if (!result.status.ok()) inspection.error = std::string(result.status.message());
  for (const agent::Candidate& candidate : result.candidates) {
    controller::Candidate to;
    to.method = ToController(candidate.method);
    if (candidate.method == agent::Method::kBackup) to.release = ToController(candidate.release);
    to.commit = candidate.commit;
    to.version = candidate.version;
    to.refused_because = candidate.refused_because;
    to.delta = ToController(candidate.delta);
    to.already_there = candidate.already_there;
    inspection.candidates.push_back(std::move(to));
  }
  inspection.problems = result.problems;
  inspection.verdict = ToController(result.verdict);
  inspection.probes = ToController(result.probes);
  inspection.current_release = result.from_release;
  inspection.current_commit = result.from_commit;
  inspection.current_version = result.from_version;
  return inspection;
}

}  // namespace rb::sim
