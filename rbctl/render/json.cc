#include "rbctl/render/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/clock.h"
#include "rbctl/render/checklist.h"
#include "rbctl/render/reasons.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  // Bytes that are no UTF-8 are replaced, not thrown over.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// Microseconds are more than any of these clocks is good for.
double Number(const google::protobuf::Duration& duration) {
  return std::round(absl::ToDoubleSeconds(ToDuration(duration)) * 1e6) / 1e6;
}

// Absent is null, so that every key is always there.
Json Seconds(bool known, const google::protobuf::Duration& duration) {
  return known ? Json(Number(duration)) : Json(nullptr);
}
Json Time(bool known, const google::protobuf::Timestamp& time) {
  return known ? Json(FormatUtc(ToTime(time))) : Json(nullptr);
}

template <typename Strings>
Json List(const Strings& strings) {
  Json list = Json::array();
  for (const auto& each : strings) {
    list.push_back(each);
  }
  return list;
}

Json Where(const std::string& release, const std::string& commit, const std::string& version) {
  return {{"release", release}, {"commit", commit}, {"version", version}};
}

template <typename Probes>
Json ProbeList(const Probes& probes) {
  Json list = Json::array();
  for (const v1::ProbeResult& probe : probes) {
    list.push_back({{"name", probe.name()},
                    {"kind", probe.kind()},
                    {"passed", probe.passed()},
                    {"external", probe.external()},
                    {"observed", probe.observed()},
                    {"expected", probe.expected()},
                    {"took_seconds", Seconds(probe.has_took(), probe.took())}});
  }
  return list;
}

Json ChecklistJson(const v1::HostProgress& host) {
  Json list = Json::array();
  for (const Check& check : ChecklistOf(host)) {
    list.push_back({{"check", check.name},
                    {"passed", check.passed},
                    {"external", check.external},
                    {"seen", check.seen},
                    {"expected", check.expected}});
  }
  return list;
}

Json ReleaseJson(const v1::Release& release) {
  return {{"name", release.name()},
          {"manifest_digest", release.manifest_digest()},
          {"commit", release.commit()},
          {"version", release.version()},
          {"cause", Word(release.cause())},
          {"captured_at", Time(release.has_captured_at(), release.captured_at())},
          {"durability", Word(release.durability())},
          {"standing", Word(release.standing())},
          {"last_proved_at", Time(release.has_last_proved_at(), release.last_proved_at())},
          {"entry_count", release.entry_count()},
          {"content_bytes", release.content_bytes()},
          {"pinned", release.pinned()},
          {"operation", release.operation_id()},
          {"reason", release.reason()}};
}

Json DeltaJson(const v1::DeltaSummary& delta) {
  Json tables = Json::array();
  for (const v1::TableRows& rows : delta.table_rows()) {
    tables.push_back(
        {{"database", rows.database()}, {"table", rows.table()}, {"now", rows.now()}, {"then", rows.then()}});
  }
  return {{"files_added", delta.files_added()},
          {"files_changed", delta.files_changed()},
          {"files_removed", delta.files_removed()},
          {"other_changes", delta.other_changes()},
          {"bytes_to_stage", delta.bytes_to_stage()},
          {"sample_paths", List(delta.sample_paths())},
          {"config_diff", delta.config_diff()},
          {"not_captured", List(delta.not_captured())},
          {"table_rows", tables},
          {"data_age_seconds",
           delta.has_data_age() ? Json(absl::ToDoubleSeconds(ToDuration(delta.data_age()))) : Json(nullptr)}};
}

Json PredictionJson(bool known, const v1::Prediction& prediction) {
  if (!known) return Json(nullptr);
  return {{"p50_seconds", Number(prediction.p50())},
          {"p95_seconds", Number(prediction.p95())},
          {"samples", prediction.samples()},
          {"basis", prediction.basis()}};
}

Json RefusalJson(const v1::Refusal& refusal) {
  Json hosts = Json::array();
  for (const v1::HostCandidates& host : refusal.candidates()) {
    Json candidates = Json::array();
    for (const v1::Candidate& candidate : host.candidates()) {
      candidates.push_back({{"method", Word(candidate.method())},
                            {"commit", candidate.commit()},
                            {"version", candidate.version()},
                            {"refused_because", candidate.refused_because()},
                            {"already_there", candidate.already_there()},
                            {"release", candidate.has_release() ? ReleaseJson(candidate.release()) : Json(nullptr)}});
    }
    hosts.push_back({{"host", host.host()}, {"candidates", candidates}});
  }
  return {{"code", Word(refusal.code())},           {"message", refusal.message()},
          {"next_command", refusal.next_command()}, {"holder_operation", refusal.holder_operation_id()},
          {"hosts", List(refusal.hosts())},         {"candidates", hosts}};
}

Json Components(const v1::OperationSpec& spec) {
  if (spec.kind() == v1::OPERATION_KIND_BACKUP || spec.kind() == v1::OPERATION_KIND_PRUNE) {
    return Json::array();
  }
  if (spec.components().empty()) {
    return Json::array({"code", "config"});
  }
  Json list = Json::array();
  for (const int component : spec.components()) {
    list.push_back(Word(static_cast<v1::Component>(component)));
  }
  return list;
}

Json OperationJson(const v1::Operation& operation) {
  Json hosts = Json::array();
  for (const v1::HostProgress& host : operation.hosts()) {
    const v1::HostTimes& times = host.times();
    hosts.push_back({{"host", host.host()},
                     {"method", Word(host.method())},
                     {"from", Where(host.from_release(), host.from_commit(), host.from_version())},
                     {"to", Where(host.to_release(), host.to_commit(), host.to_version())},
                     {"wave", host.wave()},
                     {"prepared_seconds", Seconds(times.has_prepare(), times.prepare())},
                     {"stop_seconds", Seconds(times.has_stop(), times.stop())},
                     {"swap_seconds", Seconds(times.has_swap(), times.swap())},
                     {"start_seconds", Seconds(times.has_start(), times.start())},
                     {"downtime_seconds", Seconds(times.has_downtime(), times.downtime())},
                     {"recovery_seconds", Seconds(times.has_recovery(), times.recovery())},
                     {"target_seconds", Seconds(host.has_target(), host.target())},
                     {"target_met", host.target_met()},
                     {"already_there", host.already_there()},
                     {"connected", host.connected()},
                     {"state", Word(host.state())},
                     {"verdict", Word(host.verdict())},
                     {"probes", ProbeList(host.probes())},
                     {"log_lines", std::vector<std::string>(host.log_lines().begin(), host.log_lines().end())},
                     {"checklist", ChecklistJson(host)},
                     {"error", host.error()},
                     {"replaced_release", host.replaced_release()}});
  }
  const v1::OperationSpec& spec = operation.spec();
  return {{"id", operation.id()},
          {"kind", Word(spec.kind())},
          {"environment", spec.environment()},
          {"service", spec.service()},
          {"state", Word(operation.state())},
          {"outcome", Outcome(operation)},
          {"summary", operation.summary()},
          {"reason", spec.reason()},
          {"requested_by", operation.requested_by()},
          {"components", Components(spec)},
          {"emergency", spec.emergency()},
          {"force", spec.force()},
          {"undoes", spec.undo_operation_id()},
          {"abort_requested", operation.abort_requested()},
          {"through", List(spec.through())},
          {"override_gates", List(spec.override_gates())},
          {"paused", operation.paused()},
          {"approved_by", operation.approved_by()},
          {"waits_for", operation.waits_for()},
          {"accepted_at", Time(operation.has_accepted_at(), operation.accepted_at())},
          {"ended_at", Time(operation.has_ended_at(), operation.ended_at())},
          {"recovery_seconds", Seconds(operation.has_recovery(), operation.recovery())},
          {"target_seconds", Seconds(operation.has_target(), operation.target())},
          {"target_met", operation.target_met()},
          {"host_count", std::max<uint64_t>(operation.host_count(), static_cast<uint64_t>(operation.hosts_size()))},
          {"hosts", hosts},
          {"next_commands", List(operation.next_commands())}};
}

}  // namespace

std::string JsonStatus(const v1::GetStatusResponse& response, const v1::ListSchedulesResponse* schedules) {
  Json hosts = Json::array();
  for (const v1::HostStatus& host : response.hosts()) {
    const v1::ServiceReport& report = host.report();
    const bool busy = !host.operation_id().empty();
    hosts.push_back({{"environment", host.environment()},
                     {"service", host.service()},
                     {"host", host.host()},
                     {"connected", host.connected()},
                     {"runs", Where(report.current_release(), report.current_commit(), report.current_version())},
                     {"drifted", report.drifted()},
                     {"missed", host.has_missed() ? Json{{"operation", host.missed().operation_id()},
                                                         {"commit", host.missed().commit()},
                                                         {"version", host.missed().version()},
                                                         {"expires_at", Time(host.missed().has_expires_at(),
                                                                             host.missed().expires_at())}}
                                                  : Json(nullptr)},
                     {"verdict", Word(report.verdict())},
                     {"probes", ProbeList(report.probes())},
                     {"tree", report.tree()},
                     {"reported_at", Time(report.has_reported_at(), report.reported_at())},
                     {"operation", busy ? Json(host.operation_id()) : Json(nullptr)},
                     {"operation_state", busy ? Json(Word(host.operation_state())) : Json(nullptr)}});
  }
  Json status = {{"hosts", hosts}};
  if (schedules != nullptr) {
    status["overdue"] = Json::array();
    for (const v1::Schedule& one : schedules->schedules()) {
      if (one.overdue()) status["overdue"].push_back(one.name());
    }
  }
  return Dump(status);
}

std::string JsonHistory(const v1::ListOperationsResponse& response) {
  Json operations = Json::array();
  for (const v1::Operation& operation : response.operations()) {
    operations.push_back(OperationJson(operation));
  }
  return Dump({{"operations", operations}});
}

std::string JsonPlan(const v1::Plan& plan) {
  Json hosts = Json::array();
  for (const v1::HostPlan& host : plan.hosts()) {
    Json fallbacks = Json::array();
    for (const int method : host.fallback_methods()) {
      fallbacks.push_back(Word(static_cast<v1::Method>(method)));
    }
    hosts.push_back({{"host", host.host()},
                     {"wave", host.wave()},
                     {"method", Word(host.method())},
                     {"method_because", host.method_because()},
                     {"fallback_methods", fallbacks},
                     {"from", Where(host.from_release(), host.from_commit(), host.from_version())},
                     {"to", Where(host.release_name(), host.commit(), host.version())},
                     {"durability", Word(host.durability())},
                     {"last_proved_at", Time(host.has_last_proved_at(), host.last_proved_at())},
                     {"already_there", host.already_there()},
                     {"prediction", PredictionJson(host.has_prediction(), host.prediction())},
                     {"delta", DeltaJson(host.delta())}});
  }
  std::vector<const v1::Reason*> reasons;
  for (const v1::Reason& reason : plan.reasons()) reasons.push_back(&reason);
  return Dump({{"kind", Word(plan.spec().kind())},
               {"environment", plan.spec().environment()},
               {"service", plan.spec().service()},
               {"components", Components(plan.spec())},
               {"hosts", hosts},
               {"wave_count", plan.wave_count()},
               {"target_seconds", Seconds(plan.has_target(), plan.target())},
               {"prediction", PredictionJson(plan.has_prediction(), plan.prediction())},
               {"notes", List(plan.notes())},
               {"reasons", ReasonsJson(reasons)},
               {"refusal", plan.has_refusal() ? RefusalJson(plan.refusal()) : Json(nullptr)}});
}

std::string JsonOperation(const v1::Operation& operation, int exit_code) {
  Json json = OperationJson(operation);
  json["exit_code"] = exit_code;
  return Dump(json);
}

std::string JsonShow(const v1::GetOperationResponse& response) {
  Json json = OperationJson(response.operation());
  Json events = Json::array();
  for (const v1::OperationEvent& event : response.events()) {
    events.push_back({{"sequence", event.sequence()},
                      {"at", Time(event.has_at(), event.at())},
                      {"host", event.host()},
                      {"state", Word(event.state())},
                      {"text", event.text()}});
  }
  json["events"] = events;
  return Dump(json);
}

std::string JsonReleases(const v1::ListReleasesResponse& response) {
  Json hosts = Json::array();
  for (const v1::HostReleases& host : response.hosts()) {
    Json releases = Json::array();
    for (const v1::Release& release : host.releases()) {
      releases.push_back(ReleaseJson(release));
    }
    hosts.push_back({{"host", host.host()},
                     {"connected", host.connected()},
                     {"current_release", host.current_release()},
                     {"releases", releases}});
  }
  return Dump({{"hosts", hosts}});
}

std::string JsonAudit(const v1::ListAuditRecordsResponse& response) {
  Json records = Json::array();
  for (const v1::AuditRecord& record : response.records()) {
    records.push_back({{"number", record.number()},
                       {"at", Time(record.has_at(), record.at())},
                       {"who", record.who()},
                       {"role", record.role()},
                       {"from", record.from()},
                       {"request", record.request()},
                       {"subject", record.subject()},
                       {"reason", record.reason()},
                       {"allowed", record.allowed()},
                       {"refusal", record.refusal()},
                       {"hash", record.hash()}});
  }
  return Dump({{"records", records}});
}

std::string JsonAuditCheck(const v1::VerifyAuditResponse& response) {
  return Dump({{"intact", response.intact()},
               {"count", response.count()},
               {"head", response.head()},
               {"bad_number", response.bad_number()},
               {"problem", response.problem()},
               {"exit_code", response.intact() ? 0 : 1}});
}

std::string JsonAgents(const v1::ListAgentsResponse& response) {
  Json agents = Json::array();
  for (const v1::Agent& agent : response.agents()) {
    agents.push_back(
        {{"name", agent.name()},
         {"connected", agent.connected()},
         {"last_seen_at", Time(agent.has_last_seen_at(), agent.last_seen_at())},
         {"program_version", agent.program_version()},
         {"environments", List(agent.environments())},
         {"services", List(agent.services())},
         {"certificate_expires_at", Time(agent.has_certificate_expires_at(), agent.certificate_expires_at())}});
  }
  return Dump({{"agents", agents}});
}

std::string JsonRefusal(const v1::OperationSpec& spec, const v1::Refusal& refusal, int exit_code) {
  return Dump(
      {{"outcome", "refused"},
       {"exit_code", exit_code},
       {"kind", Word(spec.kind())},
       {"environment", spec.environment()},
       {"service", spec.service()},
       {"reason", spec.reason()},
       {"refusal", RefusalJson(refusal)},
       {"next_commands", refusal.next_command().empty() ? Json::array() : Json::array({refusal.next_command()})}});
}

std::string JsonError(const std::string& outcome, int exit_code, const std::string& message, const std::string& state,
                      const std::string& next_command) {
  return Dump({{"outcome", outcome},
               {"exit_code", exit_code},
               {"message", message},
               {"state_of_things", state},
               {"next_commands", Json::array({next_command})}});
}

}  // namespace rb::cli
