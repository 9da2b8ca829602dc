#include "agent/adapters/link/wire.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kLongestMessage = 4096;
constexpr size_t kLongestText = 1024;

Components ComponentsFromWire(const google::protobuf::RepeatedField<int>& wire) {
  if (wire.empty()) return Components();
  Components components;
  components.code = components.config = components.data = false;
  for (const int component : wire) {
    if (component == v1::COMPONENT_CODE) components.code = true;
    if (component == v1::COMPONENT_CONFIG) components.config = true;
    if (component == v1::COMPONENT_DATA) components.data = true;
  }
  return components;
}

void ComponentsToWire(const Components& components, google::protobuf::RepeatedField<int>* wire) {
  if (components.code) wire->Add(v1::COMPONENT_CODE);
  if (components.config) wire->Add(v1::COMPONENT_CONFIG);
  if (components.data) wire->Add(v1::COMPONENT_DATA);
}

Method MethodFromWire(v1::Method method) {
  if (method == v1::METHOD_BACKUP) return Method::kBackup;
  if (method == v1::METHOD_GIT) return Method::kGit;
  if (method == v1::METHOD_REDEPLOY) return Method::kRedeploy;
  return Method::kAuto;
}

v1::Method MethodToWire(Method method) {
  if (method == Method::kBackup) return v1::METHOD_BACKUP;
  if (method == Method::kGit) return v1::METHOD_GIT;
  if (method == Method::kRedeploy) return v1::METHOD_REDEPLOY;
  return v1::METHOD_AUTO;
}

VerifyPolicy VerifyFromWire(const v1::VerifyStep& wire) {
  VerifyPolicy policy;
  if (wire.has_deadline()) policy.deadline = FromProto(wire.deadline());
  policy.soak = FromProto(wire.soak());
  return policy;
}

v1::VerifyStep VerifyToWire(const VerifyPolicy& policy) {
  v1::VerifyStep wire;
  *wire.mutable_deadline() = ToProto(policy.deadline);
  *wire.mutable_soak() = ToProto(policy.soak);
  return wire;
}

TargetReference TargetFromWire(const v1::TargetReference& wire) {
  TargetReference target;
  switch (wire.kind()) {
    case v1::TargetReference::KIND_NAMED:
      target.kind = TargetReference::Kind::kNamed;
      break;
    case v1::TargetReference::KIND_LAST_GOOD:
      target.kind = TargetReference::Kind::kLastGood;
      break;
    case v1::TargetReference::KIND_PREVIOUS:
      target.kind = TargetReference::Kind::kPrevious;
      break;
    case v1::TargetReference::KIND_BEFORE:
      target.kind = TargetReference::Kind::kBefore;
      break;
    default:
      break;
  }
  target.name = wire.name();
  target.before = FromProto(wire.before());
  target.force = wire.force();
  return target;
}

v1::DeltaSummary DeltaToWire(const Delta& delta) {
  v1::DeltaSummary wire;
  wire.set_files_added(delta.files_added);
  wire.set_files_changed(delta.files_changed);
  wire.set_files_removed(delta.files_removed);
  wire.set_other_changes(delta.other_changes);
  wire.set_bytes_to_stage(delta.bytes_to_stage);
  for (const std::string& path : delta.sample_paths) wire.add_sample_paths(path);
  wire.set_config_diff(delta.config_diff);
  for (const std::string& path : delta.not_captured) wire.add_not_captured(path);
  if (delta.data_age > absl::ZeroDuration()) *wire.mutable_data_age() = ToProto(delta.data_age);
  for (const TableRows& rows : delta.table_rows) {
    v1::TableRows* out = wire.add_table_rows();
    out->set_database(rows.database);
    out->set_table(Printable(rows.table));
    out->set_now(rows.now);
    out->set_then(rows.then);
  }
  return wire;
}

Delta DeltaFromWire(const v1::DeltaSummary& wire) {
  Delta delta;
  delta.files_added = wire.files_added();
  delta.files_changed = wire.files_changed();
  delta.files_removed = wire.files_removed();
  delta.other_changes = wire.other_changes();
  delta.bytes_to_stage = wire.bytes_to_stage();
  delta.sample_paths.assign(wire.sample_paths().begin(), wire.sample_paths().end());
  delta.config_diff = wire.config_diff();
  delta.not_captured.assign(wire.not_captured().begin(), wire.not_captured().end());
  delta.data_age = FromProto(wire.data_age());
  for (const v1::TableRows& rows : wire.table_rows()) {
    delta.table_rows.push_back({rows.database(), rows.table(), rows.now(), rows.then()});
  }
  return delta;
}

void DiskToWire(const DiskFacts& disk, v1::DiskFacts* wire) {
  wire->set_free_bytes(disk.free_bytes);
  wire->set_total_bytes(disk.total_bytes);
  wire->set_free_inodes(disk.free_inodes);
  wire->set_total_inodes(disk.total_inodes);
}

v1::HostFacts FactsToWire(const HostFacts& facts) {
  v1::HostFacts wire;
  *wire.mutable_clock_at() = ToProto(facts.clock_at);
  DiskToWire(facts.tree_disk, wire.mutable_tree_disk());
  DiskToWire(facts.state_disk, wire.mutable_state_disk());
  wire.set_expected_owner(Printable(facts.expected_owner));
  wire.set_tree_owner(Printable(facts.tree_owner));
  wire.set_foreign_entries(facts.foreign_entries);
  const auto add = [](const std::vector<std::string>& texts, google::protobuf::RepeatedPtrField<std::string>* to) {
    for (const std::string& text : texts) *to->Add() = Truncate(Printable(text), kLongestText);
  };
  add(facts.foreign_samples, wire.mutable_foreign_samples());
  add(facts.exposed_folders, wire.mutable_exposed_folders());
  wire.set_unit_needs_reload(facts.unit_needs_reload);
  wire.set_unit_problem(Truncate(Printable(facts.unit_problem), kLongestText));
  if (facts.git_fetched_at != absl::InfinitePast()) *wire.mutable_git_fetched_at() = ToProto(facts.git_fetched_at);
  wire.set_has_git(facts.has_git);
  wire.set_git_problem(Truncate(Printable(facts.git_problem), kLongestText));
  add(facts.config_problems, wire.mutable_config_problems());
  add(facts.probe_problems, wire.mutable_probe_problems());
  wire.set_looked_at_all(facts.looked_at_all);
  return wire;
}

Release ReleaseFromWire(const v1::Release& wire) {
  Release release;
  release.name = wire.name();
  release.manifest_digest = wire.manifest_digest();
  release.commit = wire.commit();
  release.version = wire.version();
  release.cause = static_cast<Cause>(std::clamp(static_cast<int>(wire.cause()) - 1, 0, 3));
  release.captured_at = FromProto(wire.captured_at());
  release.durability = static_cast<Durability>(std::clamp(static_cast<int>(wire.durability()) - 1, 0, 3));
  release.standing = static_cast<Standing>(std::clamp(static_cast<int>(wire.standing()) - 1, 0, 2));
  if (wire.has_last_proved_at()) release.last_proved_at = FromProto(wire.last_proved_at());
  release.entry_count = wire.entry_count();
  release.content_bytes = wire.content_bytes();
  release.pinned = wire.pinned();
  release.operation_id = wire.operation_id();
  release.reason = wire.reason();
  return release;
}

}  // namespace

v1::Release ToWire(const Release& release) {
  v1::Release wire;
  wire.set_name(release.name);
  wire.set_manifest_digest(release.manifest_digest);
  wire.set_commit(release.commit);
  wire.set_version(Printable(release.version));
  wire.set_cause(static_cast<v1::Cause>(static_cast<int>(release.cause) + 1));
  *wire.mutable_captured_at() = ToProto(release.captured_at);
  wire.set_durability(static_cast<v1::Durability>(static_cast<int>(release.durability) + 1));
  wire.set_standing(static_cast<v1::Standing>(static_cast<int>(release.standing) + 1));
  if (release.last_proved_at != absl::InfinitePast()) {
    *wire.mutable_last_proved_at() = ToProto(release.last_proved_at);
  }
  wire.set_entry_count(release.entry_count);
  wire.set_content_bytes(release.content_bytes);
  wire.set_pinned(release.pinned);
  wire.set_operation_id(release.operation_id);
  wire.set_reason(Truncate(Printable(release.reason), kLongestText));
  return wire;
}

v1::ProbeResult ToWire(const ProbeResult& probe) {
  v1::ProbeResult wire;
  wire.set_name(Truncate(Printable(probe.name), kLongestText));
  wire.set_kind(probe.kind);
  wire.set_passed(probe.passed);
  wire.set_observed(Truncate(Printable(probe.observed), kLongestText));
  wire.set_expected(Truncate(Printable(probe.expected), kLongestText));
  *wire.mutable_took() = ToProto(probe.took);
  wire.set_external(probe.external);
  wire.set_waiting(probe.is_waiting);
  return wire;
}

absl::StatusOr<Task> FromWire(const v1::Task& wire) {
  Task task;
  task.operation_id = wire.operation_id();
  task.step_id = wire.step_id();
  task.fencing_number = wire.fencing_number();
  task.service = wire.service();
  task.timeout = FromProto(wire.timeout());
  if (task.step_id.empty() || task.step_id.size() > 256 || task.operation_id.size() > 128) {
    return absl::InvalidArgumentError("a task has no step id, or a very long one");
  }
  switch (wire.step_case()) {
    case v1::Task::kInspect: {
      InspectStep step;
      if (wire.inspect().has_target()) step.target = TargetFromWire(wire.inspect().target());
      step.method = MethodFromWire(wire.inspect().method());
      step.components = ComponentsFromWire(wire.inspect().components());
      step.fetch = wire.inspect().fetch();
      step.examine = wire.inspect().examine();
      task.step = step;
      return task;
    }
    case v1::Task::kBackup: {
      BackupStep step;
      step.reason = wire.backup().reason();
      step.pin = wire.backup().pin();
      step.prove = wire.backup().prove();
      task.step = step;
      return task;
    }
    case v1::Task::kPrepare: {
      PrepareStep step;
      step.release_name = wire.prepare().release_name();
      step.commit = wire.prepare().commit();
      step.method = MethodFromWire(wire.prepare().method());
      step.components = ComponentsFromWire(wire.prepare().components());
      step.reason = wire.prepare().reason();
      step.deploy = wire.prepare().deploy();
      step.check_config = wire.prepare().check_config();
      task.step = step;
      return task;
    }
    case v1::Task::kCommit: {
      CommitStep step;
      const v1::UnattendedPolicy& unattended = wire.commit().unattended();
      if (unattended.has_patience()) step.unattended.patience = FromProto(unattended.patience());
      step.unattended.undo_when_unhealthy = unattended.undo_when_unhealthy();
      step.unattended.undo_when_unconfirmed = unattended.undo_when_unconfirmed();
      step.unattended.verify = VerifyFromWire(unattended.verify());
      step.next_step_id = wire.commit().next_step_id();
      task.step = step;
      return task;
    }
    case v1::Task::kVerify:
      task.step = VerifyStep{VerifyFromWire(wire.verify()), wire.verify().of_what_runs()};
      return task;
    case v1::Task::kRevert: {
      RevertStep step;
      step.reason = wire.revert().reason();
      step.verify = VerifyFromWire(wire.revert().verify());
      step.restore_release = wire.revert().restore_release();
      task.step = step;
      return task;
    }
    case v1::Task::kKeep: {
      KeepStep step;
      step.good = wire.keep().good();
      step.replaced_is_bad = wire.keep().replaced_is_bad();
      step.reason = wire.keep().reason();
      step.redeployed_commit = wire.keep().redeployed_commit();
      step.redeployed_version = wire.keep().redeployed_version();
      step.replaced_release = wire.keep().replaced_release();
      task.step = step;
      return task;
    }
    case v1::Task::kAwait: {
      AwaitStep step;
      step.commit = wire.await().commit();
      step.version = wire.await().version();
      step.deployed_commit = wire.await().deployed_commit();
      step.arrives_within = FromProto(wire.await().arrives_within());
      step.verify = VerifyFromWire(wire.await().verify());
      step.components = ComponentsFromWire(wire.await().components());
      task.step = step;
      return task;
    }
    case v1::Task::kPrune:
      task.step = PruneStep();
      return task;
    case v1::Task::kFault:
    case v1::Task::STEP_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError(
      "a task without a step that this agent knows: the controller may be newer. Nothing was changed");
}

v1::Task ToWire(const Task& task) {
  v1::Task wire;
  wire.set_operation_id(task.operation_id);
  wire.set_step_id(task.step_id);
  wire.set_fencing_number(task.fencing_number);
  wire.set_service(task.service);
  *wire.mutable_timeout() = ToProto(task.timeout);
  if (const auto* inspect = std::get_if<InspectStep>(&task.step)) {
    ComponentsToWire(inspect->components, wire.mutable_inspect()->mutable_components());
  } else if (const auto* backup = std::get_if<BackupStep>(&task.step)) {
    wire.mutable_backup()->set_reason(backup->reason);
    wire.mutable_backup()->set_pin(backup->pin);
    wire.mutable_backup()->set_prove(backup->prove);
  } else if (const auto* prepare = std::get_if<PrepareStep>(&task.step)) {
    v1::PrepareStep* step = wire.mutable_prepare();
    step->set_release_name(prepare->release_name);
    step->set_commit(prepare->commit);
    step->set_method(MethodToWire(prepare->method));
    ComponentsToWire(prepare->components, step->mutable_components());
    step->set_reason(prepare->reason);
    step->set_deploy(prepare->deploy);
    step->set_check_config(prepare->check_config);
  } else if (const auto* commit = std::get_if<CommitStep>(&task.step)) {
    v1::UnattendedPolicy* unattended = wire.mutable_commit()->mutable_unattended();
    *unattended->mutable_patience() = ToProto(commit->unattended.patience);
    unattended->set_undo_when_unhealthy(commit->unattended.undo_when_unhealthy);
    unattended->set_undo_when_unconfirmed(commit->unattended.undo_when_unconfirmed);
    *unattended->mutable_verify() = VerifyToWire(commit->unattended.verify);
    wire.mutable_commit()->set_next_step_id(commit->next_step_id);
  } else if (const auto* verify = std::get_if<VerifyStep>(&task.step)) {
    *wire.mutable_verify() = VerifyToWire(verify->policy);
    wire.mutable_verify()->set_of_what_runs(verify->of_what_runs);
  } else if (const auto* revert = std::get_if<RevertStep>(&task.step)) {
    wire.mutable_revert()->set_reason(revert->reason);
    *wire.mutable_revert()->mutable_verify() = VerifyToWire(revert->verify);
    wire.mutable_revert()->set_restore_release(revert->restore_release);
  } else if (const auto* keep = std::get_if<KeepStep>(&task.step)) {
    wire.mutable_keep()->set_good(keep->good);
    wire.mutable_keep()->set_replaced_is_bad(keep->replaced_is_bad);
    wire.mutable_keep()->set_reason(keep->reason);
    wire.mutable_keep()->set_redeployed_commit(keep->redeployed_commit);
    wire.mutable_keep()->set_redeployed_version(keep->redeployed_version);
    wire.mutable_keep()->set_replaced_release(keep->replaced_release);
  } else if (std::holds_alternative<PruneStep>(task.step)) {
    wire.mutable_prune();
  } else if (const auto* await = std::get_if<AwaitStep>(&task.step)) {
    v1::AwaitStep* step = wire.mutable_await();
    step->set_commit(await->commit);
    step->set_version(await->version);
    step->set_deployed_commit(await->deployed_commit);
    *step->mutable_arrives_within() = ToProto(await->arrives_within);
    *step->mutable_verify() = VerifyToWire(await->verify);
    ComponentsToWire(await->components, step->mutable_components());
  }
  return wire;
}

v1::TaskResult ToWire(const TaskResult& result) {
  v1::TaskResult wire;
  wire.set_operation_id(result.operation_id);
  wire.set_step_id(result.step_id);
  wire.set_service(result.service);
  wire.set_code(static_cast<int>(result.status.code()));
  wire.set_message(Truncate(Printable(std::string(result.status.message())), kLongestMessage));
  wire.set_state(static_cast<v1::HostState>(result.state));
  *wire.mutable_times()->mutable_prepare() = ToProto(result.times.prepare);
  *wire.mutable_times()->mutable_stop() = ToProto(result.times.stop);
  *wire.mutable_times()->mutable_swap() = ToProto(result.times.swap);
  *wire.mutable_times()->mutable_start() = ToProto(result.times.start);
  *wire.mutable_times()->mutable_downtime() = ToProto(result.times.downtime);
  wire.set_verdict(result.verdict == Verdict::kHealthy     ? v1::VERDICT_HEALTHY
                   : result.verdict == Verdict::kUnhealthy ? v1::VERDICT_UNHEALTHY
                                                           : v1::VERDICT_UNKNOWN);
  for (const ProbeResult& probe : result.probes) *wire.add_probes() = ToWire(probe);
  for (const std::string& line : result.log_lines) wire.add_log_lines(Printable(line));
  for (const Candidate& candidate : result.candidates) {
    v1::Candidate* added = wire.add_candidates();
    added->set_method(MethodToWire(candidate.method));
    if (candidate.method == Method::kBackup) *added->mutable_release() = ToWire(candidate.release);
    added->set_commit(candidate.commit);
    added->set_version(Printable(candidate.version));
    added->set_refused_because(Truncate(Printable(candidate.refused_because), kLongestText));
    *added->mutable_delta() = DeltaToWire(candidate.delta);
    added->set_already_there(candidate.already_there);
  }
  for (const std::string& problem : result.problems) wire.add_problems(Truncate(Printable(problem), kLongestText));
  if (!result.release.name.empty()) *wire.mutable_release() = ToWire(result.release);
  *wire.mutable_delta() = DeltaToWire(result.delta);
  wire.set_from_release(result.from_release);
  wire.set_from_commit(result.from_commit);
  wire.set_from_version(Printable(result.from_version));
  wire.set_done_alone(result.done_alone);
  wire.set_began_step_id(result.began_step_id);
  if (result.pruned.has_value()) {
    wire.mutable_pruned()->set_removed(result.pruned->removed);
    wire.mutable_pruned()->set_freed_bytes(result.pruned->freed_bytes);
    for (const std::string& release : result.pruned->releases) wire.mutable_pruned()->add_releases(release);
  }
  if (result.facts.has_value()) *wire.mutable_facts() = FactsToWire(*result.facts);
  return wire;
}

TaskResult FromWire(const v1::TaskResult& wire) {
  TaskResult result;
  result.operation_id = wire.operation_id();
  result.step_id = wire.step_id();
  result.service = wire.service();
  result.status = absl::Status(static_cast<absl::StatusCode>(wire.code()), wire.message());
  result.state = static_cast<HostState>(std::clamp(static_cast<int>(wire.state()), 0, 5));
  result.times.prepare = FromProto(wire.times().prepare());
  result.times.stop = FromProto(wire.times().stop());
  result.times.swap = FromProto(wire.times().swap());
  result.times.start = FromProto(wire.times().start());
  result.times.downtime = FromProto(wire.times().downtime());
  result.verdict = wire.verdict() == v1::VERDICT_HEALTHY     ? Verdict::kHealthy
                   : wire.verdict() == v1::VERDICT_UNHEALTHY ? Verdict::kUnhealthy
                                                             : Verdict::kUnknown;
  for (const v1::ProbeResult& probe : wire.probes()) {
    ProbeResult read;
    read.name = probe.name();
    read.kind = probe.kind();
    read.passed = probe.passed();
    read.observed = probe.observed();
    read.expected = probe.expected();
    read.took = FromProto(probe.took());
    read.external = probe.external();
    read.is_waiting = probe.waiting();
    result.probes.push_back(std::move(read));
  }
  result.log_lines.assign(wire.log_lines().begin(), wire.log_lines().end());
  result.problems.assign(wire.problems().begin(), wire.problems().end());
  if (wire.has_release()) result.release = ReleaseFromWire(wire.release());
  result.delta = DeltaFromWire(wire.delta());
  result.from_release = wire.from_release();
  result.from_commit = wire.from_commit();
  result.from_version = wire.from_version();
  result.done_alone = wire.done_alone();
  result.began_step_id = wire.began_step_id();
  if (wire.has_pruned()) {
    result.pruned = Pruned{wire.pruned().removed(),
                           {wire.pruned().releases().begin(), wire.pruned().releases().end()},
                           wire.pruned().freed_bytes()};
  }
  return result;
}

v1::TaskProgress ToWire(const TaskProgress& progress) {
  v1::TaskProgress wire;
  wire.set_operation_id(progress.operation_id);
  wire.set_step_id(progress.step_id);
  wire.set_service(progress.service);
  wire.set_stage(static_cast<v1::TaskProgress::Stage>(static_cast<int>(progress.stage) + 1));
  wire.set_detail(Truncate(Printable(progress.detail), kLongestText));
  return wire;
}

}  // namespace rb::agent
