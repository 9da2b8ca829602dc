#include "controller/adapters/drill_wire.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/adapters/proto_time.h"
#include "common/status.h"
#include "common/text.h"
#include "drill_journal.pb.h"

namespace rb::controller {
namespace {

constexpr size_t kLongestReason = 500;

Method MethodFromWire(v1::Method method) {
  return method == v1::METHOD_BACKUP ? Method::kBackup : method == v1::METHOD_GIT ? Method::kGit : Method::kAuto;
}

bool RunsByHand(const Drill& drill) { return drill.spec.by_hand && !IsFinal(drill.state); }

void SetDuration(const std::optional<absl::Duration>& value, google::protobuf::Duration* wire) {
  if (value.has_value()) *wire = ToProto(*value);
}

}  // namespace

absl::StatusOr<DrillSpec> FromWire(const v1::DrillSpec& wire) {
  DrillSpec spec;
  if (wire.fault() < v1::FAULT_KIND_BAD_CODE || wire.fault() > v1::FAULT_KIND_DISK_FULL) {
    return absl::InvalidArgumentError("no such fault. Nothing was changed");
  }
  if (wire.reason().size() > kLongestReason) {
    return absl::InvalidArgumentError("the reason is too long. Nothing was changed");
  }
  spec.fault = static_cast<FaultKind>(static_cast<int>(wire.fault()) - 1);
  spec.environment = wire.environment();
  spec.service = wire.service();
  spec.hosts.assign(wire.hosts().begin(), wire.hosts().end());
  spec.method = MethodFromWire(wire.method());
  spec.by_hand = wire.by_hand();
  spec.reason = wire.reason();
  spec.then.assign(wire.then().begin(), wire.then().end());
  spec.schedule = wire.schedule();
  return spec;
}

v1::DrillSpec ToWire(const DrillSpec& spec) {
  v1::DrillSpec wire;
  wire.set_fault(static_cast<v1::FaultKind>(static_cast<int>(spec.fault) + 1));
  wire.set_environment(spec.environment);
  wire.set_service(spec.service);
  wire.mutable_hosts()->Add(spec.hosts.begin(), spec.hosts.end());
  wire.set_method(spec.method == Method::kBackup ? v1::METHOD_BACKUP
                  : spec.method == Method::kGit  ? v1::METHOD_GIT
                                                 : v1::METHOD_AUTO);
  wire.set_by_hand(spec.by_hand);
  wire.set_reason(spec.reason);
  wire.mutable_then()->Add(spec.then.begin(), spec.then.end());
  wire.set_schedule(spec.schedule);
  return wire;
}

v1::DrillState ToWire(DrillState state) { return static_cast<v1::DrillState>(static_cast<int>(state) + 1); }

FaultReport FromWire(const v1::FaultReport& wire) {
  FaultReport report;
  report.state = static_cast<FaultReport::State>(std::clamp(static_cast<int>(wire.state()), 0, 4));
  report.injected_at = FromProto(wire.injected_at());
  report.ends_at = FromProto(wire.ends_at());
  report.what = wire.what();
  report.put_back = wire.put_back();
  report.ended_alone = wire.ended_alone();
  report.struck = wire.struck();
  report.away = FromProto(wire.away());
  return report;
}

v1::FaultReport ToWire(const FaultReport& report, const Drill& drill) {
  v1::FaultReport wire;
  wire.set_drill_id(drill.id);
  wire.set_kind(static_cast<v1::FaultKind>(static_cast<int>(drill.spec.fault) + 1));
  wire.set_state(static_cast<v1::FaultReport::State>(static_cast<int>(report.state)));
  *wire.mutable_injected_at() = ToProto(report.injected_at);
  *wire.mutable_ends_at() = ToProto(report.ends_at);
  wire.set_what(report.what);
  wire.set_put_back(report.put_back);
  wire.set_ended_alone(report.ended_alone);
  wire.set_struck(report.struck);
  *wire.mutable_away() = ToProto(report.away);
  return wire;
}

v1::Drill ToWire(const Drill& drill) {
  v1::Drill wire;
  wire.set_id(drill.id);
  *wire.mutable_spec() = ToWire(drill.spec);
  wire.set_state(ToWire(drill.state));
  wire.set_summary(drill.summary);
  wire.set_requested_by(drill.requested_by);
  wire.set_approved_by(drill.approved_by);
  wire.set_recovered_by(drill.recovered_by);
  *wire.mutable_accepted_at() = ToProto(drill.accepted_at);
  if (IsFinal(drill.state)) *wire.mutable_ended_at() = ToProto(drill.ended_at);
  const bool secret = RunsByHand(drill);
  for (const DrillHost& host : drill.hosts) {
    v1::DrillHost* added = wire.add_hosts();
    added->set_host(host.host);
    added->set_error(host.error);
    if (host.has_fault && !secret) *added->mutable_fault() = ToWire(host.fault, drill);
    if (host.detected_after.has_value()) *added->mutable_detected_after() = ToProto(*host.detected_after);
    added->set_detected_by(host.detected_by);
  }
  for (const DrillPhase& phase : PhasesOf(drill)) {
    v1::DrillPhase* added = wire.add_phases();
    added->set_name(phase.name);
    SetDuration(phase.took, phase.took.has_value() ? added->mutable_took() : nullptr);
    *added->mutable_target() = ToProto(phase.target);
    added->set_met(phase.met);
  }
  if (drill.injected.has_value() && drill.verified.has_value()) {
    *wire.mutable_total() = ToProto(*drill.verified - *drill.injected);
  }
  const auto id = [&drill](DrillRole role) {
    const auto found = drill.operations.find(role);
    return found == drill.operations.end() ? std::string() : found->second.id;
  };
  wire.set_safety_operation_id(id(DrillRole::kSafety));
  wire.set_recovery_operation_id(id(DrillRole::kRecovery));
  wire.set_verification_operation_id(id(DrillRole::kVerification));
  if (!secret) {
    wire.set_expected(ExpectedOf(drill.spec.fault));
    wire.set_observed(ObservedOf(drill));
  } else {
    wire.mutable_spec()->clear_fault();
  }
  if (const auto found = drill.operations.find(DrillRole::kRecovery); found != drill.operations.end()) {
    wire.set_lost(found->second.lost);
  }
  wire.set_alert(AlertOf(drill));
  if (drill.state == DrillState::kPlanned && drill.policy.needs_approval) {
    wire.set_waits_for(absl::StrCat("a second operator: rbctl drill approve ", drill.id));
    wire.add_next_commands(absl::StrCat("rbctl drill approve ", drill.id));
  } else if (drill.state == DrillState::kRecovering && drill.spec.by_hand) {
    wire.add_next_commands(absl::StrCat("rbctl status ", drill.spec.environment));
  } else if (drill.state == DrillState::kFailed || drill.state == DrillState::kStopped) {
    wire.add_next_commands(absl::StrCat("rbctl verify ", drill.spec.environment));
  }
  wire.set_after_drill_id(drill.after_drill_id);
  return wire;
}

DrillOperation DrillOperationOf(const v1::Operation& operation) {
  DrillOperation result;
  result.id = operation.id();
  result.ended = operation.has_ended_at();
  result.ok = operation.state() == v1::OPERATION_STATE_SUCCEEDED;
  result.aborted = operation.state() == v1::OPERATION_STATE_ABORTED;
  result.summary = operation.summary();
  result.recovery = FromProto(operation.recovery());
  result.target = FromProto(operation.target());
  result.requested_by = operation.requested_by();
  std::vector<std::string> lost;
  for (const v1::HostPlan& host : operation.plan().hosts()) {
    if (!host.delta().has_data_age()) continue;
    std::string text =
        absl::StrCat(host.host(), ": data of the last ", FormatSeconds(FromProto(host.delta().data_age())));
    for (const v1::TableRows& rows : host.delta().table_rows()) {
      if (rows.now() > rows.then()) absl::StrAppend(&text, ", ", rows.table(), ": ", rows.now() - rows.then(), " rows");
    }
    lost.push_back(std::move(text));
  }
  result.lost = absl::StrJoin(lost, "; ");
  return result;
}

v1::Task FaultTask(const Drill& drill, const SendFault& effect) {
  v1::Task task;
  task.set_operation_id(drill.id);
  task.set_step_id(absl::StrCat(drill.id, effect.end ? "/end/" : "/inject/", effect.host));
  task.set_service(drill.spec.service);
  *task.mutable_timeout() = ToProto(drill.policy.longest);
  task.mutable_fault()->set_action(effect.end ? v1::FaultStep::ACTION_END : v1::FaultStep::ACTION_INJECT);
  task.mutable_fault()->set_kind(static_cast<v1::FaultKind>(static_cast<int>(drill.spec.fault) + 1));
  *task.mutable_fault()->mutable_duration() = ToProto(drill.policy.longest);
  return task;
}

// ---- the journal

namespace {

namespace journal = rb::controller_drills;

void Encode(const DrillAccepted& body, journal::Event* event) {
  journal::Accepted* wire = event->mutable_accepted();
  wire->set_id(body.id);
  *wire->mutable_spec() = ToWire(body.spec);
  *wire->mutable_longest() = ToProto(body.policy.longest);
  *wire->mutable_detect() = ToProto(body.policy.detect);
  *wire->mutable_decide() = ToProto(body.policy.decide);
  *wire->mutable_verify() = ToProto(body.policy.verify);
  *wire->mutable_start() = ToProto(body.policy.start);
  wire->set_needs_approval(body.policy.needs_approval);
  wire->set_requested_by(body.requested_by);
  wire->set_idempotency_key(body.idempotency_key);
  wire->set_after_drill_id(body.after_drill_id);
  for (const auto& [name, has_fault] : body.hosts) {
    journal::Host* host = wire->add_hosts();
    host->set_name(name);
    host->set_has_fault(has_fault);
  }
}
void Encode(const DrillApproved& body, journal::Event* event) {
  event->mutable_approved()->set_by(body.by);
  event->mutable_approved()->set_reason(body.reason);
}
void Encode(const OperationBegan& body, journal::Event* event) {
  event->mutable_operation_began()->set_role(static_cast<int>(body.role));
  event->mutable_operation_began()->set_operation_id(body.operation_id);
  event->mutable_operation_began()->set_by(body.by);
}
void Encode(const OperationRefused& body, journal::Event* event) {
  event->mutable_operation_refused()->set_role(static_cast<int>(body.role));
  event->mutable_operation_refused()->set_why(body.why);
  event->mutable_operation_refused()->set_by_host(body.by_host);
}
void Encode(const OperationCommits& body, journal::Event* event) { event->set_operation_commits(body.operation_id); }
void Encode(const OperationEnded& body, journal::Event* event) {
  journal::OperationEnded* wire = event->mutable_operation_ended();
  wire->set_id(body.operation.id);
  wire->set_ok(body.operation.ok);
  wire->set_aborted(body.operation.aborted);
  wire->set_summary(body.operation.summary);
  *wire->mutable_recovery() = ToProto(body.operation.recovery);
  *wire->mutable_target() = ToProto(body.operation.target);
  wire->set_lost(body.operation.lost);
  wire->set_requested_by(body.operation.requested_by);
}
void Encode(const FaultAnswered& body, journal::Event* event) {
  journal::FaultAnswered* wire = event->mutable_fault_answered();
  wire->set_host(body.host);
  wire->set_of_end(body.of_end);
  wire->set_ok(body.ok);
  wire->set_message(body.message);
  *wire->mutable_report() = ToWire(body.report, Drill());
}
void Encode(const HostSeen& body, journal::Event* event) {
  event->mutable_host_seen()->set_host(body.host);
  event->mutable_host_seen()->set_healthy(body.healthy);
  event->mutable_host_seen()->set_probe_kind(body.probe_kind);
  event->mutable_host_seen()->set_probe(body.probe);
}
void Encode(const StopAsked& body, journal::Event* event) {
  event->mutable_stop_asked()->set_by(body.by);
  event->mutable_stop_asked()->set_reason(body.reason);
}
void Encode(const IncidentSeen& body, journal::Event* event) { event->set_incident_seen(body.what); }
void Encode(const DrillTimeUp& body, journal::Event* event) { event->set_time_up(body.timer); }

DrillRole RoleFrom(int wire) { return static_cast<DrillRole>(std::clamp(wire, 0, 2)); }

}  // namespace

std::string EncodeDrillEvent(const DrillEventRecord& event) {
  journal::Event wire;
  wire.set_sequence(event.sequence);
  *wire.mutable_at() = ToProto(event.at);
  *wire.mutable_elapsed() = ToProto(event.elapsed);
  std::visit([&wire](const auto& body) { Encode(body, &wire); }, event.body);
  return wire.SerializeAsString();
}

absl::StatusOr<DrillEventRecord> DecodeDrillEvent(absl::string_view bytes) {
  journal::Event wire;
  const absl::Status damaged = absl::DataLossError("the record of a drill is damaged");
  if (!wire.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return damaged;
  DrillEventRecord event;
  event.sequence = wire.sequence();
  event.at = FromProto(wire.at());
  event.elapsed = FromProto(wire.elapsed());
  switch (wire.body_case()) {
    case journal::Event::kAccepted: {
      const journal::Accepted& from = wire.accepted();
      DrillAccepted body;
      body.id = from.id();
      RB_ASSIGN_OR_RETURN(body.spec, FromWire(from.spec()));
      body.policy.longest = FromProto(from.longest());
      body.policy.detect = FromProto(from.detect());
      body.policy.decide = FromProto(from.decide());
      body.policy.verify = FromProto(from.verify());
      body.policy.start = FromProto(from.start());
      body.policy.needs_approval = from.needs_approval();
      body.requested_by = from.requested_by();
      body.idempotency_key = from.idempotency_key();
      body.after_drill_id = from.after_drill_id();
      for (const journal::Host& host : from.hosts()) body.hosts.emplace_back(host.name(), host.has_fault());
      event.body = std::move(body);
      return event;
    }
    case journal::Event::kApproved:
      event.body = DrillApproved{wire.approved().by(), wire.approved().reason()};
      return event;
    case journal::Event::kOperationBegan:
      event.body = OperationBegan{RoleFrom(wire.operation_began().role()), wire.operation_began().operation_id(),
                                  wire.operation_began().by()};
      return event;
    case journal::Event::kOperationRefused:
      event.body = OperationRefused{RoleFrom(wire.operation_refused().role()), wire.operation_refused().why(),
                                    wire.operation_refused().by_host()};
      return event;
    case journal::Event::kOperationCommits:
      event.body = OperationCommits{wire.operation_commits()};
      return event;
    case journal::Event::kOperationEnded: {
      OperationEnded body;
      body.operation.id = wire.operation_ended().id();
      body.operation.ended = true;
      body.operation.ok = wire.operation_ended().ok();
      body.operation.aborted = wire.operation_ended().aborted();
      body.operation.summary = wire.operation_ended().summary();
      body.operation.recovery = FromProto(wire.operation_ended().recovery());
      body.operation.target = FromProto(wire.operation_ended().target());
      body.operation.lost = wire.operation_ended().lost();
      body.operation.requested_by = wire.operation_ended().requested_by();
      event.body = std::move(body);
      return event;
    }
    case journal::Event::kFaultAnswered: {
      FaultAnswered body;
      body.host = wire.fault_answered().host();
      body.of_end = wire.fault_answered().of_end();
      body.ok = wire.fault_answered().ok();
      body.message = wire.fault_answered().message();
      body.report = FromWire(wire.fault_answered().report());
      event.body = std::move(body);
      return event;
    }
    case journal::Event::kHostSeen:
      event.body = HostSeen{wire.host_seen().host(), wire.host_seen().healthy(), wire.host_seen().probe_kind(),
                            wire.host_seen().probe()};
      return event;
    case journal::Event::kStopAsked:
      event.body = StopAsked{wire.stop_asked().by(), wire.stop_asked().reason()};
      return event;
    case journal::Event::kIncidentSeen:
      event.body = IncidentSeen{wire.incident_seen()};
      return event;
    case journal::Event::kTimeUp:
      event.body = DrillTimeUp{wire.time_up()};
      return event;
    case journal::Event::BODY_NOT_SET:
      break;
  }
  return damaged;
}

}  // namespace rb::controller
