#include "controller/adapters/wire.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "common/status.h"
#include "common/text.h"
#include "journal.pb.h"

namespace rb::controller {
namespace {

// Whatever an agent sends.
constexpr size_t kMostLogLines = 20;
constexpr size_t kLongestLogLine = 300;

v1::Method MethodToWire(Method method) {
  switch (method) {
    case Method::kAuto:
      return v1::METHOD_AUTO;
    case Method::kBackup:
      return v1::METHOD_BACKUP;
    case Method::kGit:
      return v1::METHOD_GIT;
    case Method::kRedeploy:
      return v1::METHOD_REDEPLOY;
  }
  return v1::METHOD_AUTO;
}
Method MethodFromWire(v1::Method method) {
  return method == v1::METHOD_BACKUP     ? Method::kBackup
         : method == v1::METHOD_GIT      ? Method::kGit
         : method == v1::METHOD_REDEPLOY ? Method::kRedeploy
                                         : Method::kAuto;
}
// The wire's enums are the core's, one higher, since 0 means unset there.
template <typename T>
T EnumFromWire(int wire, int most) {
  return static_cast<T>(std::clamp(wire - 1, 0, most));
}

v1::TargetReference TargetToWire(const TargetReference& target) {
  v1::TargetReference wire;
  switch (target.kind) {
    case TargetReference::Kind::kLastGood:
      wire.set_kind(v1::TargetReference::KIND_LAST_GOOD);
      break;
    case TargetReference::Kind::kNamed:
      wire.set_kind(v1::TargetReference::KIND_NAMED);
      break;
    case TargetReference::Kind::kPrevious:
      wire.set_kind(v1::TargetReference::KIND_PREVIOUS);
      break;
    case TargetReference::Kind::kBefore:
      wire.set_kind(v1::TargetReference::KIND_BEFORE);
      *wire.mutable_before() = ToProto(target.before);
      break;
  }
  wire.set_name(target.name);
  wire.set_force(target.force);
  return wire;
}

void ComponentsToWire(const std::vector<Component>& components, google::protobuf::RepeatedField<int>* wire) {
  for (const Component component : components) wire->Add(static_cast<int>(component) + 1);
}

v1::Release ReleaseToWire(const Release& release) {
  v1::Release wire;
  wire.set_name(release.name);
  wire.set_manifest_digest(release.manifest_digest);
  wire.set_commit(release.commit);
  wire.set_version(release.version);
  wire.set_cause(static_cast<v1::Cause>(static_cast<int>(release.cause) + 1));
  *wire.mutable_captured_at() = ToProto(release.captured_at);
  wire.set_durability(static_cast<v1::Durability>(static_cast<int>(release.durability) + 1));
  wire.set_standing(static_cast<v1::Standing>(static_cast<int>(release.standing) + 1));
  if (release.last_proved_at != absl::InfinitePast()) *wire.mutable_last_proved_at() = ToProto(release.last_proved_at);
  wire.set_entry_count(release.entry_count);
  wire.set_content_bytes(release.content_bytes);
  wire.set_pinned(release.pinned);
  wire.set_operation_id(release.operation_id);
  wire.set_reason(release.reason);
  return wire;
}

Release ReleaseFromWire(const v1::Release& wire) {
  Release release;
  release.name = wire.name();
  release.manifest_digest = wire.manifest_digest();
  release.commit = wire.commit();
  release.version = wire.version();
  release.cause = EnumFromWire<Cause>(wire.cause(), 3);
  release.captured_at = FromProto(wire.captured_at());
  release.durability = EnumFromWire<Durability>(wire.durability(), 3);
  release.standing = EnumFromWire<Standing>(wire.standing(), 2);
  if (wire.has_last_proved_at()) release.last_proved_at = FromProto(wire.last_proved_at());
  release.entry_count = wire.entry_count();
  release.content_bytes = wire.content_bytes();
  release.pinned = wire.pinned();
  release.operation_id = wire.operation_id();
  release.reason = wire.reason();
  return release;
}

v1::DeltaSummary DeltaToWire(const DeltaSummary& delta) {
  v1::DeltaSummary wire;
  wire.set_files_added(delta.files_added);
  wire.set_files_changed(delta.files_changed);
  wire.set_files_removed(delta.files_removed);
  wire.set_other_changes(delta.other_changes);
  wire.set_bytes_to_stage(delta.bytes_to_stage);
  wire.mutable_sample_paths()->Add(delta.sample_paths.begin(), delta.sample_paths.end());
  wire.set_config_diff(delta.config_diff);
  wire.mutable_not_captured()->Add(delta.not_captured.begin(), delta.not_captured.end());
  if (delta.data_age > absl::ZeroDuration()) *wire.mutable_data_age() = ToProto(delta.data_age);
  for (const TableRows& rows : delta.table_rows) {
    v1::TableRows* out = wire.add_table_rows();
    out->set_database(rows.database);
    out->set_table(rows.table);
    out->set_now(rows.now);
    out->set_then(rows.then);
  }
  return wire;
}

DeltaSummary DeltaFromWire(const v1::DeltaSummary& wire) {
  DeltaSummary delta;
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

v1::Candidate CandidateToWire(const Candidate& candidate) {
  v1::Candidate wire;
  wire.set_method(MethodToWire(candidate.method));
  if (candidate.release.has_value()) *wire.mutable_release() = ReleaseToWire(*candidate.release);
  wire.set_commit(candidate.commit);
  wire.set_version(candidate.version);
  wire.set_refused_because(candidate.refused_because);
  *wire.mutable_delta() = DeltaToWire(candidate.delta);
  wire.set_already_there(candidate.already_there);
  return wire;
}

Candidate CandidateFromWire(const v1::Candidate& wire) {
  Candidate candidate;
  candidate.method = MethodFromWire(wire.method());
  if (wire.has_release()) candidate.release = ReleaseFromWire(wire.release());
  candidate.commit = wire.commit();
  candidate.version = wire.version();
  candidate.refused_because = wire.refused_because();
  candidate.delta = DeltaFromWire(wire.delta());
  candidate.already_there = wire.already_there();
  return candidate;
}

v1::ProbeResult ProbeToWire(const ProbeResult& probe) {
  v1::ProbeResult wire;
  wire.set_name(probe.name);
  wire.set_kind(probe.kind);
  wire.set_passed(probe.passed);
  wire.set_observed(probe.observed);
  wire.set_expected(probe.expected);
  *wire.mutable_took() = ToProto(probe.took);
  wire.set_external(probe.external);
  return wire;
}

std::vector<ProbeResult> ProbesFromWire(const google::protobuf::RepeatedPtrField<v1::ProbeResult>& wire) {
  std::vector<ProbeResult> probes;
  for (const v1::ProbeResult& one : wire) {
    ProbeResult probe;
    probe.name = one.name();
    probe.kind = one.kind();
    probe.passed = one.passed();
    probe.observed = one.observed();
    probe.expected = one.expected();
    probe.took = FromProto(one.took());
    probe.external = one.external();
    probes.push_back(std::move(probe));
  }
  return probes;
}

Verdict VerdictFromWire(v1::Verdict verdict) {
  return verdict == v1::VERDICT_HEALTHY     ? Verdict::kHealthy
         : verdict == v1::VERDICT_UNHEALTHY ? Verdict::kUnhealthy
                                            : Verdict::kUnknown;
}
v1::Verdict VerdictToWire(Verdict verdict) {
  return verdict == Verdict::kHealthy     ? v1::VERDICT_HEALTHY
         : verdict == Verdict::kUnhealthy ? v1::VERDICT_UNHEALTHY
                                          : v1::VERDICT_UNKNOWN;
}

StatusCode CodeFromWire(int code) {
  switch (static_cast<absl::StatusCode>(code)) {
    case absl::StatusCode::kOk:
      return StatusCode::kOk;
    case absl::StatusCode::kUnavailable:
      return StatusCode::kUnavailable;
    case absl::StatusCode::kDeadlineExceeded:
      return StatusCode::kDeadlineExceeded;
    case absl::StatusCode::kCancelled:
      return StatusCode::kCancelled;
    case absl::StatusCode::kFailedPrecondition:
      return StatusCode::kRefused;
    default:
      return StatusCode::kFailed;
  }
}

void PredictionToWire(const Prediction& prediction, v1::Prediction* wire) {
  *wire->mutable_p50() = ToProto(prediction.p50);
  *wire->mutable_p95() = ToProto(prediction.p95);
  wire->set_samples(prediction.samples);
  wire->set_basis(prediction.basis);
}

Prediction PredictionFromWire(const v1::Prediction& wire) {
  Prediction prediction;
  prediction.p50 = FromProto(wire.p50());
  prediction.p95 = FromProto(wire.p95());
  prediction.samples = wire.samples();
  prediction.basis = wire.basis();
  return prediction;
}

void ReasonsToWire(const Reasons& reasons, google::protobuf::RepeatedPtrField<v1::Reason>* wire) {
  for (const Reason& reason : reasons.list()) {
    v1::Reason* added = wire->Add();
    added->set_rule(static_cast<v1::Reason::Rule>(static_cast<int>(reason.rule) + 1));
    added->set_text(reason.text);
    added->mutable_hosts()->Add(reason.hosts.begin(), reason.hosts.end());
    added->set_host_count(reason.host_count);
  }
}

// The plan of a journalled operation; what ToWire leaves out comes beside it.
Plan PlanFromWire(const v1::Plan& wire) {
  Plan plan;
  if (absl::StatusOr<OperationSpec> spec = FromWire(wire.spec()); spec.ok()) plan.spec = *std::move(spec);
  for (const v1::HostPlan& one : wire.hosts()) {
    HostPlan host;
    host.host = one.host();
    host.environment = one.environment();
    host.method = MethodFromWire(one.method());
    host.method_because = one.method_because();
    host.release_name = one.release_name();
    host.commit = one.commit();
    host.version = one.version();
    host.from_release = one.from_release();
    host.from_commit = one.from_commit();
    host.from_version = one.from_version();
    host.delta = DeltaFromWire(one.delta());
    host.already_there = one.already_there();
    host.wave = one.wave();
    host.durability = EnumFromWire<Durability>(one.durability(), 3);
    if (one.has_last_proved_at()) host.last_proved_at = FromProto(one.last_proved_at());
    host.prediction = PredictionFromWire(one.prediction());
    plan.hosts.push_back(std::move(host));
  }
  plan.wave_count = wire.wave_count();
  plan.target = FromProto(wire.target());
  plan.notes.assign(wire.notes().begin(), wire.notes().end());
  plan.approval_before_wave = wire.approval_before_wave();
  for (const v1::MissedHost& missed : wire.missed_hosts()) plan.missed[missed.host()] = missed.environment();
  plan.prediction = PredictionFromWire(wire.prediction());
  for (const v1::Reason& one : wire.reasons()) {
    Reason reason;
    reason.rule = EnumFromWire<Rule>(one.rule(), static_cast<int>(Rule::kEvent));
    reason.text = one.text();
    reason.hosts.assign(one.hosts().begin(), one.hosts().end());
    reason.host_count = one.host_count();
    plan.reasons.Add(std::move(reason));
  }
  return plan;
}

}  // namespace

absl::StatusOr<OperationSpec> FromWire(const v1::OperationSpec& wire) {
  OperationSpec spec;
  if (wire.kind() < v1::OPERATION_KIND_ROLLBACK || wire.kind() > v1::OPERATION_KIND_PRUNE) {
    return absl::InvalidArgumentError("this controller does not know that kind of operation. Nothing was changed");
  }
  spec.kind = static_cast<OperationKind>(wire.kind() - 1);
  spec.environment = wire.environment();
  spec.service = wire.service();
  spec.hosts.assign(wire.hosts().begin(), wire.hosts().end());
  switch (wire.target().kind()) {
    case v1::TargetReference::KIND_NAMED:
      spec.target.kind = TargetReference::Kind::kNamed;
      break;
    case v1::TargetReference::KIND_PREVIOUS:
      spec.target.kind = TargetReference::Kind::kPrevious;
      break;
    case v1::TargetReference::KIND_BEFORE:
      spec.target.kind = TargetReference::Kind::kBefore;
      spec.target.before = FromProto(wire.target().before());
      break;
    case v1::TargetReference::KIND_UNSPECIFIED:
    case v1::TargetReference::KIND_LAST_GOOD:
      spec.target.kind = TargetReference::Kind::kLastGood;
      break;
    default:
      return absl::InvalidArgumentError("this controller does not know that kind of target. Nothing was changed");
  }
  spec.target.name = wire.target().name();
  spec.force = wire.force();
  spec.target.force = wire.force() || wire.target().force();
  if (wire.method() < v1::METHOD_UNSPECIFIED || wire.method() > v1::METHOD_REDEPLOY) {
    return absl::InvalidArgumentError(absl::StrCat("this controller does not know method ",
                                                   static_cast<int>(wire.method()),
                                                   "; it knows auto, backup, git and redeploy. Nothing was changed"));
  }
  spec.method = MethodFromWire(wire.method());
  for (const int component : wire.components()) {
    if (component < v1::COMPONENT_CODE || component > v1::COMPONENT_DATA) {
      return absl::InvalidArgumentError("there is no such component. Nothing was changed");
    }
    spec.components.push_back(static_cast<Component>(component - 1));
  }
  spec.reason = wire.reason();
  spec.hold_on_failure = wire.hold_on_failure();
  spec.emergency = wire.emergency();
  spec.undo_operation_id = wire.undo_operation_id();
  spec.pin = wire.pin();
  spec.prove = wire.prove();
  spec.even_if_already_there = wire.even_if_already_there();
  spec.through.assign(wire.through().begin(), wire.through().end());
  spec.override_gates.assign(wire.override_gates().begin(), wire.override_gates().end());
  spec.wait_for_lock = FromProto(wire.wait_for_lock());
  spec.skip_offline = wire.skip_offline();
  spec.drill_id = wire.drill_id();
  spec.announcement = wire.announcement();
  if (spec.wait_for_lock < absl::ZeroDuration() || spec.wait_for_lock > absl::Hours(24)) {
    return absl::InvalidArgumentError("waiting for a lock takes at most 24h. Nothing was changed");
  }
  if (spec.hosts.size() > 10000 || spec.through.size() > 100 || spec.override_gates.size() > 10 ||
      spec.target.name.size() > 300 || spec.announcement.size() > 500) {
    return absl::InvalidArgumentError("the request names too much. Nothing was changed");
  }
  return spec;
}

v1::OperationSpec ToWire(const OperationSpec& spec) {
  v1::OperationSpec wire;
  wire.set_kind(static_cast<v1::OperationKind>(static_cast<int>(spec.kind) + 1));
  wire.set_environment(spec.environment);
  wire.set_service(spec.service);
  wire.mutable_hosts()->Add(spec.hosts.begin(), spec.hosts.end());
  *wire.mutable_target() = TargetToWire(spec.target);
  wire.set_method(MethodToWire(spec.method));
  ComponentsToWire(spec.components, wire.mutable_components());
  wire.set_reason(spec.reason);
  wire.set_hold_on_failure(spec.hold_on_failure);
  wire.set_emergency(spec.emergency);
  wire.set_force(spec.force);
  wire.set_undo_operation_id(spec.undo_operation_id);
  wire.set_pin(spec.pin);
  wire.set_prove(spec.prove);
  wire.set_even_if_already_there(spec.even_if_already_there);
  wire.mutable_through()->Add(spec.through.begin(), spec.through.end());
  wire.mutable_override_gates()->Add(spec.override_gates.begin(), spec.override_gates.end());
  wire.set_skip_offline(spec.skip_offline);
  wire.set_drill_id(spec.drill_id);
  wire.set_announcement(spec.announcement);
  if (spec.wait_for_lock > absl::ZeroDuration()) *wire.mutable_wait_for_lock() = ToProto(spec.wait_for_lock);
  return wire;
}

v1::Refusal ToWire(const Refusal& refusal) {
  v1::Refusal wire;
  wire.set_code(static_cast<v1::Refusal::Code>(refusal.code));
  wire.set_message(refusal.message);
  wire.set_next_command(refusal.next_command);
  wire.set_holder_operation_id(refusal.holder_operation_id);
  for (const auto& [host, candidates] : refusal.candidates) {
    v1::HostCandidates* added = wire.add_candidates();
    added->set_host(host);
    for (const Candidate& candidate : candidates) *added->add_candidates() = CandidateToWire(candidate);
  }
  wire.mutable_hosts()->Add(refusal.hosts.begin(), refusal.hosts.end());
  return wire;
}

v1::Plan ToWire(const Plan& plan) {
  v1::Plan wire;
  *wire.mutable_spec() = ToWire(plan.spec);
  for (const HostPlan& host : plan.hosts) {
    v1::HostPlan* added = wire.add_hosts();
    added->set_host(host.host);
    added->set_environment(host.environment);
    added->set_method(MethodToWire(host.method));
    added->set_method_because(host.method_because);
    added->set_release_name(host.release_name);
    added->set_commit(host.commit);
    added->set_version(host.version);
    added->set_from_release(host.from_release);
    added->set_from_commit(host.from_commit);
    added->set_from_version(host.from_version);
    *added->mutable_delta() = DeltaToWire(host.delta);
    added->set_already_there(host.already_there);
    for (const Candidate& fallback : host.fallbacks) added->add_fallback_methods(MethodToWire(fallback.method));
    added->set_wave(host.wave);
    if (host.prediction.samples > 0) PredictionToWire(host.prediction, added->mutable_prediction());
    added->set_durability(static_cast<v1::Durability>(static_cast<int>(host.durability) + 1));
    if (host.last_proved_at != absl::InfinitePast()) *added->mutable_last_proved_at() = ToProto(host.last_proved_at);
  }
  wire.set_wave_count(plan.wave_count);
  *wire.mutable_target() = ToProto(plan.target);
  wire.mutable_notes()->Add(plan.notes.begin(), plan.notes.end());
  wire.set_approval_before_wave(plan.approval_before_wave);
  for (const auto& [host, environment] : plan.missed) {
    v1::MissedHost* missed = wire.add_missed_hosts();
    missed->set_host(host);
    missed->set_environment(environment);
  }
  if (plan.refusal.refused()) *wire.mutable_refusal() = ToWire(plan.refusal);
  if (plan.prediction.samples > 0) PredictionToWire(plan.prediction, wire.mutable_prediction());
  ReasonsToWire(plan.reasons, wire.mutable_reasons());
  return wire;
}

StepResult FromWire(const v1::TaskResult& wire) {
  StepResult result;
  result.step_id = wire.step_id();
  result.code = CodeFromWire(wire.code());
  result.message = wire.message();
  result.state = static_cast<HostState>(std::clamp(static_cast<int>(wire.state()), 0, 5));
  result.times.prepare = FromProto(wire.times().prepare());
  result.times.stop = FromProto(wire.times().stop());
  result.times.swap = FromProto(wire.times().swap());
  result.times.start = FromProto(wire.times().start());
  result.times.downtime = FromProto(wire.times().downtime());
  result.verdict = VerdictFromWire(wire.verdict());
  result.probes = ProbesFromWire(wire.probes());
  for (const std::string& line : wire.log_lines()) {
    if (result.log_lines.size() < kMostLogLines) result.log_lines.push_back(Truncate(line, kLongestLogLine));
  }
  result.problems.assign(wire.problems().begin(), wire.problems().end());
  if (wire.has_release()) result.release = ReleaseFromWire(wire.release());
  result.delta = DeltaFromWire(wire.delta());
  result.from_release = wire.from_release();
  result.from_commit = wire.from_commit();
  result.from_version = wire.from_version();
  result.done_alone = wire.done_alone();
  result.began_step_id = wire.began_step_id();
  result.pruned_releases = wire.pruned().removed();
  result.pruned_bytes = wire.pruned().freed_bytes();
  return result;
}

Inspection InspectionFromWire(const v1::TaskResult& wire) {
  Inspection inspection;
  inspection.connected = true;
  if (wire.code() != 0) inspection.error = wire.message();
  for (const v1::Candidate& candidate : wire.candidates()) {
    inspection.candidates.push_back(CandidateFromWire(candidate));
  }
  inspection.problems.assign(wire.problems().begin(), wire.problems().end());
  inspection.verdict = VerdictFromWire(wire.verdict());
  inspection.probes = ProbesFromWire(wire.probes());
  inspection.current_release = wire.from_release();
  inspection.current_commit = wire.from_commit();
  inspection.current_version = wire.from_version();
  return inspection;
}

v1::OperationState ToWire(OperationState state) { return static_cast<v1::OperationState>(static_cast<int>(state) + 1); }

namespace {

void HostToWire(const HostProgress& host, v1::HostProgress* added) {
  const Candidate* fallback = host.candidate > 0 ? &host.plan.fallbacks[host.candidate - 1] : nullptr;
  added->set_host(host.plan.host);
  added->set_environment(host.plan.environment);
  added->set_wave(host.plan.wave);
  added->set_state(static_cast<v1::HostState>(host.state));
  added->set_method(MethodToWire(fallback != nullptr ? fallback->method : host.plan.method));
  added->set_from_release(host.plan.from_release);
  added->set_from_commit(host.plan.from_commit);
  added->set_from_version(host.plan.from_version);
  added->set_to_release(host.to_release.empty() ? host.plan.release_name : host.to_release);
  added->set_to_commit(host.plan.commit);
  added->set_to_version(host.plan.version);
  *added->mutable_times()->mutable_prepare() = ToProto(host.times.prepare);
  *added->mutable_times()->mutable_stop() = ToProto(host.times.stop);
  *added->mutable_times()->mutable_swap() = ToProto(host.times.swap);
  *added->mutable_times()->mutable_start() = ToProto(host.times.start);
  *added->mutable_times()->mutable_downtime() = ToProto(host.times.downtime);
  *added->mutable_times()->mutable_recovery() = ToProto(host.times.recovery);
  *added->mutable_target() = ToProto(host.target);
  added->set_target_met(host.target_met);
  added->set_verdict(VerdictToWire(host.verdict));
  for (const ProbeResult& probe : host.probes) *added->add_probes() = ProbeToWire(probe);
  added->mutable_log_lines()->Add(host.log_lines.begin(), host.log_lines.end());
  added->set_error(host.error);
  added->set_state_unknown(host.state_unknown);
  added->set_replaced_release(host.replaced_release);
  added->set_already_there(host.plan.already_there);
}

// All but the plan and the hosts.
v1::Operation HeadToWire(const Operation& operation) {
  v1::Operation wire;
  wire.set_id(operation.id);
  *wire.mutable_spec() = ToWire(operation.plan.spec);
  wire.set_state(ToWire(operation.state));
  wire.set_summary(operation.summary);
  wire.set_already_there(operation.already_there);
  wire.set_requested_by(operation.requested_by);
  *wire.mutable_accepted_at() = ToProto(operation.accepted_at);
  if (IsFinal(operation.state)) *wire.mutable_ended_at() = ToProto(operation.ended_at);
  wire.mutable_next_commands()->Add(operation.next_commands.begin(), operation.next_commands.end());
  *wire.mutable_recovery() = ToProto(operation.recovery);
  *wire.mutable_target() = ToProto(operation.plan.target);
  wire.set_target_met(operation.target_met);
  wire.set_last_sequence(operation.last_sequence);
  wire.set_abort_requested(operation.abort_requested);
  wire.set_paused(operation.paused);
  wire.set_approved_by(operation.approved_by);
  if (operation.state == OperationState::kWaiting) wire.set_waits_for(WaitsFor(operation));
  ReasonsToWire(operation.reasons, wire.mutable_reasons());
  wire.set_host_count(static_cast<uint32_t>(operation.hosts.size()));
  return wire;
}

}  // namespace

v1::Operation ToWire(const Operation& operation) {
  v1::Operation wire = HeadToWire(operation);
  *wire.mutable_plan() = ToWire(operation.plan);
  for (const HostProgress& host : operation.hosts) HostToWire(host, wire.add_hosts());
  return wire;
}

v1::Operation ToWire(const Operation& operation, const std::set<std::string>& hosts) {
  v1::Operation wire = HeadToWire(operation);
  for (const std::string& name : hosts) {
    if (const HostProgress* host = operation.Find(name); host != nullptr) HostToWire(*host, wire.add_hosts());
  }
  return wire;
}

std::optional<OperationEnd> EndOf(const v1::Operation& operation) {
  const absl::StatusOr<OperationSpec> spec = FromWire(operation.spec());
  const bool moved = operation.state() == v1::OPERATION_STATE_SUCCEEDED ||
                     operation.state() == v1::OPERATION_STATE_REVERTED ||
                     operation.state() == v1::OPERATION_STATE_NEEDS_ATTENTION;
  if (!spec.ok() || !ChangesHosts(spec->kind) || !moved) return std::nullopt;
  OperationEnd end;
  end.id = operation.id();
  end.service = spec->service;
  end.at = FromProto(operation.ended_at());
  using Ended = OperationEnd::Host::Ended;
  for (const v1::HostProgress& host : operation.hosts()) {
    const bool is_new = host.state() == v1::HOST_STATE_KEPT || host.already_there();
    if (is_new || end.to_commit.empty()) {
      end.to_commit = host.to_commit();
      end.to_version = host.to_version();
    }
    end.hosts.push_back({host.host(), host.environment(),
                         host.state_unknown() ? Ended::kUnknown
                         : is_new             ? Ended::kOnTarget
                                              : Ended::kOnOld,
                         host.from_commit()});
  }
  for (const v1::MissedHost& missed : operation.plan().missed_hosts()) {
    end.hosts.push_back({missed.host(), missed.environment(), Ended::kMissed, ""});
  }
  return end;
}

namespace {

std::string KeyOf(const std::string& host, const std::string& record_id) {
  return absl::StrCat("record/", host, "/", record_id);
}

v1::HostRecord RecordOf(const Reported& reported) {
  v1::HostRecord record;
  const std::string prefix = KeyOf(reported.host.host, "");
  record.set_id(reported.idempotency_key.substr(std::min(prefix.size(), reported.idempotency_key.size())));
  record.set_service(reported.spec.service);
  const bool local = reported.spec.kind == OperationKind::kLocal;
  record.set_kind(local ? v1::HOST_RECORD_KIND_LOCAL : v1::HOST_RECORD_KIND_EXTERNAL);
  record.set_verb(reported.left_commit.empty() ? "" : "rollback");
  record.set_user(reported.requested_by.substr(reported.requested_by.rfind(':') + 1));
  record.set_reason(reported.spec.reason);
  *record.mutable_began_at() = ToProto(reported.began_at);
  *record.mutable_ended_at() = ToProto(reported.ended_at);
  record.set_from_release(reported.host.from_release);
  record.set_from_commit(reported.host.from_commit);
  record.set_from_version(reported.host.from_version);
  record.set_to_release(reported.to_release);
  record.set_to_commit(reported.host.commit);
  record.set_to_version(reported.host.version);
  record.set_state(static_cast<v1::HostState>(reported.state));
  record.set_verdict(VerdictToWire(reported.verdict));
  *record.mutable_times()->mutable_prepare() = ToProto(reported.times.prepare);
  *record.mutable_times()->mutable_stop() = ToProto(reported.times.stop);
  *record.mutable_times()->mutable_swap() = ToProto(reported.times.swap);
  *record.mutable_times()->mutable_start() = ToProto(reported.times.start);
  *record.mutable_times()->mutable_downtime() = ToProto(reported.times.downtime);
  record.set_method(MethodToWire(reported.host.method));
  record.set_summary(reported.summary);
  record.set_replaced_release(reported.replaced_release);
  record.set_succeeded(reported.succeeded);
  return record;
}

}  // namespace

Reported ReportedFrom(const v1::HostRecord& record, const std::string& operation_id, const std::string& host,
                      const std::string& environment) {
  const auto clean = [](const std::string& text) { return Truncate(Printable(text), 500); };
  const bool local = record.kind() == v1::HOST_RECORD_KIND_LOCAL;
  Reported reported;
  reported.id = operation_id;
  reported.requested_by = absl::StrCat(local ? "local:" : "external:", host, ":", clean(record.user()));
  reported.idempotency_key = KeyOf(host, record.id());
  reported.spec.kind = local ? OperationKind::kLocal : OperationKind::kExternal;
  reported.spec.environment = environment;
  reported.spec.service = record.service();
  reported.spec.hosts = {host};
  reported.spec.reason = clean(record.reason());
  reported.spec.target.kind = TargetReference::Kind::kNamed;
  reported.spec.target.name = clean(record.to_commit().empty() ? record.to_release() : record.to_commit());
  reported.host.host = host;
  reported.host.environment = environment;
  reported.host.method = MethodFromWire(record.method());
  reported.host.release_name = clean(record.to_release());
  reported.host.commit = clean(record.to_commit());
  reported.host.version = clean(record.to_version());
  reported.host.from_release = clean(record.from_release());
  reported.host.from_commit = clean(record.from_commit());
  reported.host.from_version = clean(record.from_version());
  const int state = record.state();
  reported.state = state >= v1::HOST_STATE_UNTOUCHED && state <= v1::HOST_STATE_REVERTED ? static_cast<HostState>(state)
                                                                                         : HostState::kUnspecified;
  reported.verdict = record.verdict() == v1::VERDICT_HEALTHY     ? Verdict::kHealthy
                     : record.verdict() == v1::VERDICT_UNHEALTHY ? Verdict::kUnhealthy
                                                                 : Verdict::kUnknown;
  reported.times.prepare = FromProto(record.times().prepare());
  reported.times.stop = FromProto(record.times().stop());
  reported.times.swap = FromProto(record.times().swap());
  reported.times.start = FromProto(record.times().start());
  reported.times.downtime = FromProto(record.times().downtime());
  reported.to_release = clean(record.to_release());
  reported.replaced_release = clean(record.replaced_release());
  reported.succeeded = record.succeeded();
  if (local && record.verb() == "rollback" && record.succeeded()) reported.left_commit = clean(record.from_commit());
  reported.summary = Truncate(Printable(record.summary()), 2000);
  reported.began_at = FromProto(record.began_at());
  reported.ended_at = FromProto(record.ended_at());
  return reported;
}

v1::QuarantineEntry ToWire(const QuarantineEntry& entry) {
  v1::QuarantineEntry wire;
  wire.set_service(entry.service);
  wire.set_commit(entry.commit);
  wire.set_version(entry.version);
  wire.set_reason(entry.reason);
  wire.set_operation_id(entry.operation_id);
  *wire.mutable_since() = ToProto(entry.since);
  wire.set_number(entry.number);
  if (!entry.released) return wire;
  wire.set_released(true);
  wire.set_released_by(entry.released_by);
  wire.set_release_reason(entry.release_reason);
  *wire.mutable_released_at() = ToProto(entry.released_at);
  return wire;
}

v1::Task TaskFor(const Operation& operation, const StartStep& step) {
  v1::Task task;
  task.set_operation_id(operation.id);
  task.set_step_id(step.step_id);
  task.set_fencing_number(operation.fencing_number);
  task.set_service(operation.plan.spec.service);
  *task.mutable_timeout() = ToProto(step.deadline);
  v1::VerifyStep verify;
  *verify.mutable_deadline() = ToProto(step.verify_deadline);
  *verify.mutable_soak() = ToProto(step.verify_soak);
  switch (step.kind) {
    case StepKind::kInspect:
      task.mutable_inspect();
      break;
    case StepKind::kBackup:
      task.mutable_backup()->set_reason(step.reason);
      task.mutable_backup()->set_pin(step.pin);
      task.mutable_backup()->set_prove(step.prove);
      break;
    case StepKind::kPrune:
      task.mutable_prune();
      break;
    case StepKind::kPrepare: {
      v1::PrepareStep* prepare = task.mutable_prepare();
      prepare->set_release_name(step.release_name);
      prepare->set_commit(step.commit);
      prepare->set_method(MethodToWire(step.method));
      ComponentsToWire(operation.plan.spec.components, prepare->mutable_components());
      prepare->set_reason(step.reason);
      prepare->set_deploy(step.deploy);
      prepare->set_check_config(step.check_config);
      break;
    }
    case StepKind::kCommit: {
      v1::UnattendedPolicy* unattended = task.mutable_commit()->mutable_unattended();
      *unattended->mutable_patience() = ToProto(absl::Seconds(30));
      unattended->set_undo_when_unhealthy(step.undo_when_unhealthy);
      unattended->set_undo_when_unconfirmed(step.undo_when_unconfirmed);
      *unattended->mutable_verify() = verify;
      task.mutable_commit()->set_next_step_id(step.next_step_id);
      break;
    }
    case StepKind::kVerify:
      *task.mutable_verify() = verify;
      task.mutable_verify()->set_of_what_runs(!ChangesHosts(operation.plan.spec.kind));
      break;
    case StepKind::kRevert:
      task.mutable_revert()->set_reason(operation.abort_requested ? "aborted" : "the operation failed");
      *task.mutable_revert()->mutable_verify() = verify;
      task.mutable_revert()->set_restore_release(step.replaced_release);
      break;
    case StepKind::kKeep:
      task.mutable_keep()->set_good(step.good);
      task.mutable_keep()->set_replaced_is_bad(step.replaced_is_bad);
      task.mutable_keep()->set_reason(step.reason);
      task.mutable_keep()->set_redeployed_commit(step.redeployed_commit);
      task.mutable_keep()->set_redeployed_version(step.redeployed_version);
      task.mutable_keep()->set_replaced_release(step.replaced_release);
      break;
    case StepKind::kAwait: {
      v1::AwaitStep* await = task.mutable_await();
      await->set_commit(step.commit);
      await->set_version(step.version);
      await->set_deployed_commit(step.deployed_commit);
      *await->mutable_arrives_within() = ToProto(step.arrives_within);
      *await->mutable_verify() = verify;
      ComponentsToWire(operation.plan.spec.components, await->mutable_components());
      break;
    }
  }
  return task;
}

v1::Task InspectTask(const OperationSpec& spec, const std::string& step_id, const std::string& undo_release) {
  v1::Task task;
  task.set_operation_id(step_id);
  task.set_step_id(step_id);
  // It changes nothing, so no number can be too old for it; nor may it raise the bar for what changes something.
  task.set_fencing_number(0);
  task.set_service(spec.service);
  v1::InspectStep* inspect = task.mutable_inspect();
  ComponentsToWire(spec.components, inspect->mutable_components());
  inspect->set_method(MethodToWire(spec.method));
  if (spec.kind == OperationKind::kUndo) {
    inspect->mutable_target()->set_kind(v1::TargetReference::KIND_NAMED);
    inspect->mutable_target()->set_name(undo_release);
    // What was replaced is often bad: that is why it was replaced. Undo means it all the same.
    inspect->mutable_target()->set_force(true);
    inspect->set_method(v1::METHOD_BACKUP);
  } else if (ChangesHosts(spec.kind)) {
    *inspect->mutable_target() = TargetToWire(spec.target);
    if (spec.kind == OperationKind::kDeploy) inspect->set_method(v1::METHOD_GIT);
    inspect->set_fetch(spec.kind == OperationKind::kDeploy || spec.method == Method::kRedeploy);
  }
  return task;
}

std::string EncodeEvent(const Event& event) {
  controller_journal::Event wire;
  wire.set_sequence(event.sequence);
  *wire.mutable_at() = ToProto(event.at);
  *wire.mutable_elapsed() = ToProto(event.elapsed);
  if (const auto* accepted = std::get_if<Accepted>(&event.body)) {
    controller_journal::Accepted* body = wire.mutable_accepted();
    body->set_id(accepted->id);
    *body->mutable_plan() = ToWire(accepted->plan);
    body->set_requested_by(accepted->requested_by);
    body->set_idempotency_key(accepted->idempotency_key);
    body->set_fencing_number(accepted->fencing_number);
    body->set_on_failure(static_cast<int>(accepted->plan.on_failure));
    *body->mutable_verify_deadline() = ToProto(accepted->plan.verify_deadline);
    *body->mutable_verify_soak() = ToProto(accepted->plan.verify_soak);
    *body->mutable_ci_deadline() = ToProto(accepted->plan.ci_deadline);
    *body->mutable_redeploy_target() = ToProto(accepted->plan.redeploy_target);
    for (const HostPlan& host : accepted->plan.hosts) {
      controller_journal::Fallbacks* fallbacks = body->add_fallbacks();
      for (const Candidate& candidate : host.fallbacks) *fallbacks->add_candidates() = CandidateToWire(candidate);
    }
  } else if (std::holds_alternative<LockTaken>(event.body)) {
    wire.mutable_lock_taken();
  } else if (const auto* ended = std::get_if<StepEnded>(&event.body)) {
    wire.mutable_step_ended()->set_host(ended->host);
    const StepResult& result = ended->result;
    v1::TaskResult* body = wire.mutable_step_ended()->mutable_result();
    body->set_step_id(result.step_id);
    static constexpr absl::StatusCode kCodes[] = {absl::StatusCode::kOk,
                                                  absl::StatusCode::kInternal,
                                                  absl::StatusCode::kUnavailable,
                                                  absl::StatusCode::kDeadlineExceeded,
                                                  absl::StatusCode::kFailedPrecondition,
                                                  absl::StatusCode::kCancelled};
    body->set_code(static_cast<int>(kCodes[static_cast<int>(result.code)]));
    body->set_message(result.message);
    body->set_state(static_cast<v1::HostState>(result.state));
    *body->mutable_times()->mutable_prepare() = ToProto(result.times.prepare);
    *body->mutable_times()->mutable_stop() = ToProto(result.times.stop);
    *body->mutable_times()->mutable_swap() = ToProto(result.times.swap);
    *body->mutable_times()->mutable_start() = ToProto(result.times.start);
    *body->mutable_times()->mutable_downtime() = ToProto(result.times.downtime);
    body->set_verdict(VerdictToWire(result.verdict));
    for (const ProbeResult& probe : result.probes) *body->add_probes() = ProbeToWire(probe);
    body->mutable_log_lines()->Add(result.log_lines.begin(), result.log_lines.end());
    body->mutable_problems()->Add(result.problems.begin(), result.problems.end());
    *body->mutable_release() = ReleaseToWire(result.release);
    *body->mutable_delta() = DeltaToWire(result.delta);
    body->set_from_release(result.from_release);
    body->set_from_commit(result.from_commit);
    body->set_from_version(result.from_version);
    body->set_done_alone(result.done_alone);
    if (result.pruned_releases > 0 || result.pruned_bytes > 0) {
      body->mutable_pruned()->set_removed(result.pruned_releases);
      body->mutable_pruned()->set_freed_bytes(result.pruned_bytes);
    }
  } else if (const auto* timed_out = std::get_if<StepTimedOut>(&event.body)) {
    wire.mutable_step_timed_out()->set_host(timed_out->host);
    wire.mutable_step_timed_out()->set_step_id(timed_out->step_id);
  } else if (const auto* abort = std::get_if<AbortRequested>(&event.body)) {
    wire.mutable_abort_requested()->set_by(abort->by);
    wire.mutable_abort_requested()->set_reason(abort->reason);
  } else if (const auto* pause = std::get_if<PauseRequested>(&event.body)) {
    wire.mutable_pause_requested()->set_by(pause->by);
    wire.mutable_pause_requested()->set_reason(pause->reason);
  } else if (const auto* resume = std::get_if<ResumeRequested>(&event.body)) {
    wire.mutable_resume_requested()->set_by(resume->by);
  } else if (const auto* approved = std::get_if<Approved>(&event.body)) {
    wire.mutable_approved()->set_by(approved->by);
    wire.mutable_approved()->set_reason(approved->reason);
  } else if (const auto* wait = std::get_if<WaitEnded>(&event.body)) {
    wire.mutable_wait_ended()->set_number(wait->number);
  } else if (const auto* reported = std::get_if<Reported>(&event.body)) {
    wire.mutable_reported()->set_id(reported->id);
    wire.mutable_reported()->set_host(reported->host.host);
    wire.mutable_reported()->set_environment(reported->host.environment);
    *wire.mutable_reported()->mutable_record() = RecordOf(*reported);
  } else if (const auto* started = std::get_if<CiStarted>(&event.body)) {
    wire.mutable_ci_started()->set_key(started->key);
    wire.mutable_ci_started()->set_run(started->run);
    wire.mutable_ci_started()->set_url(started->url);
    wire.mutable_ci_started()->set_deployed_commit(started->deployed_commit);
  } else if (const auto* ci_progress = std::get_if<CiProgress>(&event.body)) {
    wire.mutable_ci_progress()->set_key(ci_progress->key);
    wire.mutable_ci_progress()->set_text(ci_progress->text);
  } else if (const auto* ci_ended = std::get_if<CiEnded>(&event.body)) {
    wire.mutable_ci_ended()->set_key(ci_ended->key);
    wire.mutable_ci_ended()->set_outcome(static_cast<int>(ci_ended->outcome));
    wire.mutable_ci_ended()->set_text(ci_ended->text);
  }
  return wire.SerializeAsString();
}

absl::StatusOr<Event> DecodeEvent(absl::string_view bytes) {
  controller_journal::Event wire;
  if (!wire.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::DataLossError("an event of the journal cannot be read");
  }
  Event event;
  event.sequence = wire.sequence();
  event.at = FromProto(wire.at());
  event.elapsed = FromProto(wire.elapsed());
  switch (wire.body_case()) {
    case controller_journal::Event::kAccepted: {
      Accepted accepted;
      accepted.id = wire.accepted().id();
      accepted.plan = PlanFromWire(wire.accepted().plan());
      accepted.requested_by = wire.accepted().requested_by();
      accepted.idempotency_key = wire.accepted().idempotency_key();
      accepted.fencing_number = wire.accepted().fencing_number();
      accepted.plan.on_failure = static_cast<OnFailure>(std::clamp(wire.accepted().on_failure(), 0, 2));
      accepted.plan.verify_deadline = FromProto(wire.accepted().verify_deadline());
      accepted.plan.verify_soak = FromProto(wire.accepted().verify_soak());
      accepted.plan.ci_deadline = FromProto(wire.accepted().ci_deadline());
      accepted.plan.redeploy_target = FromProto(wire.accepted().redeploy_target());
      for (int i = 0; i < wire.accepted().fallbacks_size() && i < static_cast<int>(accepted.plan.hosts.size()); ++i) {
        for (const v1::Candidate& candidate : wire.accepted().fallbacks(i).candidates()) {
          accepted.plan.hosts[static_cast<size_t>(i)].fallbacks.push_back(CandidateFromWire(candidate));
        }
      }
      event.body = std::move(accepted);
      return event;
    }
    case controller_journal::Event::kLockTaken:
      event.body = LockTaken{};
      return event;
    case controller_journal::Event::kStepEnded:
      event.body = StepEnded{wire.step_ended().host(), FromWire(wire.step_ended().result())};
      return event;
    case controller_journal::Event::kStepTimedOut:
      event.body = StepTimedOut{wire.step_timed_out().host(), wire.step_timed_out().step_id()};
      return event;
    case controller_journal::Event::kAbortRequested:
      event.body = AbortRequested{wire.abort_requested().by(), wire.abort_requested().reason()};
      return event;
    case controller_journal::Event::kPauseRequested:
      event.body = PauseRequested{wire.pause_requested().by(), wire.pause_requested().reason()};
      return event;
    case controller_journal::Event::kResumeRequested:
      event.body = ResumeRequested{wire.resume_requested().by()};
      return event;
    case controller_journal::Event::kApproved:
      event.body = Approved{wire.approved().by(), wire.approved().reason()};
      return event;
    case controller_journal::Event::kWaitEnded:
      event.body = WaitEnded{wire.wait_ended().number()};
      return event;
    case controller_journal::Event::kReported:
      event.body = ReportedFrom(wire.reported().record(), wire.reported().id(), wire.reported().host(),
                                wire.reported().environment());
      return event;
    case controller_journal::Event::kCiStarted:
      event.body = CiStarted{wire.ci_started().key(), wire.ci_started().run(), wire.ci_started().url(),
                             wire.ci_started().deployed_commit()};
      return event;
    case controller_journal::Event::kCiProgress:
      event.body = CiProgress{wire.ci_progress().key(), wire.ci_progress().text()};
      return event;
    case controller_journal::Event::kCiEnded:
      event.body =
          CiEnded{wire.ci_ended().key(), static_cast<CiEnded::Outcome>(std::clamp(wire.ci_ended().outcome(), 0, 4)),
                  wire.ci_ended().text()};
      return event;
    case controller_journal::Event::BODY_NOT_SET:
      break;
  }
  return absl::DataLossError("an event of the journal is of an unknown kind: a newer controller wrote it");
}

}  // namespace rb::controller
