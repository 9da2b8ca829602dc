#include "agent/adapters/local/local_commands.h"

#include <atomic>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/adapters/link/daemon.h"
#include "agent/adapters/records/host_records.h"
#include "common/adapters/proto_time.h"
#include "common/ids.h"
#include "common/text.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kUsage = 2;
constexpr int kNeedsAttention = 3;
constexpr int kRefused = 5;
constexpr int kReverted = 6;

int Complain(int code, const std::string& text) {
  std::fprintf(stderr, "rb-agent: %s\n", Printable(text).c_str());
  return code;
}

std::string StandingText(const Release& release) {
  std::string text = release.standing == Standing::kGood  ? "good"
                     : release.standing == Standing::kBad ? "bad"
                                                          : "unknown";
  if (release.durability == Durability::kProved) {
    absl::StrAppend(&text, ", proved ", FormatUtc(release.last_proved_at));
  } else {
    absl::StrAppend(&text, release.durability == Durability::kCaptured ? ", damaged" : ", not proved yet");
  }
  if (release.pinned) absl::StrAppend(&text, ", pinned");
  return text;
}

void PrintRelease(const Release& release) {
  std::string dumps;
  for (const std::string& name : release.databases) absl::StrAppend(&dumps, ", database ", Printable(name));
  std::printf("%s  %s  %llu files and folders%s, %s%s%s\n", release.name.c_str(), StandingText(release).c_str(),
              static_cast<unsigned long long>(release.entry_count), dumps.c_str(),
              FormatBytes(release.content_bytes).c_str(), release.reason.empty() ? "" : "  ",
              Printable(release.reason).c_str());
}

// One step after another, as the controller would ask for them.
class LocalOperation {
 public:
  LocalOperation(Service& service, std::string name, Clock& clock)
      : service_(service), name_(std::move(name)), id_(absl::StrCat("local-", NewOperationId(clock.Now()).substr(3))) {}

  template <typename Step>
  TaskResult Run(Step step) {
    Task task;
    task.operation_id = id_;
    task.step_id = absl::StrCat(id_, "/", ++steps_);
    task.service = name_;
    task.step = std::move(step);
    return service_.runner().Run(
        task,
        [](Stage stage, const std::string& detail) {
          static constexpr const char* kNames[] = {"accepted", "capturing", "staging", "stopping", "swapping",
                                                   "starting", "probing",   "healthy", "undoing"};
          if (stage != Stage::kAccepted) {
            std::printf("  %s %s\n", kNames[static_cast<int>(stage)], Printable(detail).c_str());
          }
        },
        cancelled_);
  }

 private:
  Service& service_;
  const std::string name_;
  const std::string id_;
  int steps_ = 0;
  std::atomic<bool> cancelled_{false};
};

// For the controller's history, once it is back. That it could not be written is no reason to say that what was done
// was not done.
class Record {
 public:
  Record(std::string state_folder, const std::string& service, const LocalRequest& request, Clock& clock)
      : state_folder_(std::move(state_folder)), clock_(clock) {
    record_.set_service(service);
    record_.set_kind(v1::HOST_RECORD_KIND_LOCAL);
    record_.set_verb(request.verb);
    record_.set_user(UserOfHost());
    record_.set_reason(request.reason);
    *record_.mutable_began_at() = ToProto(clock.Now());
  }

  void From(const TaskResult& result) {
    record_.set_from_release(result.from_release);
    record_.set_from_commit(result.from_commit);
    record_.set_from_version(result.from_version);
  }
  void To(const std::string& release, const std::string& commit, const std::string& version, Method method) {
    record_.set_to_release(release);
    record_.set_to_commit(commit);
    record_.set_to_version(version);
    record_.set_method(method == Method::kGit ? v1::METHOD_GIT : v1::METHOD_BACKUP);
  }
  void Replaced(const std::string& release) { record_.set_replaced_release(release); }
  void Took(const HostTimes& times) {
    if (times.prepare > absl::ZeroDuration()) *record_.mutable_times()->mutable_prepare() = ToProto(times.prepare);
    if (times.downtime > absl::ZeroDuration()) *record_.mutable_times()->mutable_downtime() = ToProto(times.downtime);
  }
  void End(v1::HostState state, v1::Verdict verdict, bool succeeded, const std::string& summary) {
    record_.set_state(state);
    record_.set_verdict(verdict);
    record_.set_succeeded(succeeded);
    record_.set_summary(absl::StrCat("rb-agent local ", record_.verb(), ": ", Printable(summary)));
    *record_.mutable_ended_at() = ToProto(clock_.Now());
    const absl::Status owed = OweRecord(state_folder_, record_);
    if (!owed.ok()) {
      Complain(kFailed, absl::StrCat("no record of this for the controller's history: ", owed.message()));
    }
  }

 private:
  const std::string state_folder_;
  Clock& clock_;
  v1::HostRecord record_;
};

InspectStep InspectFor(const LocalRequest& request) {
  InspectStep step;
  if (request.to.empty() || request.to == "last-good") {
    step.target.kind = TargetReference::Kind::kLastGood;
  } else if (request.to == "previous") {
    step.target.kind = TargetReference::Kind::kPrevious;
  } else {
    step.target.kind = TargetReference::Kind::kNamed;
    step.target.name = request.to;
  }
  step.target.force = request.force;
  step.components.data = request.with_data;
  return step;
}

int Rollback(LocalOperation* operation, const std::string& service, const std::string& state_folder,
             const LocalRequest& request, Record* record) {
  const TaskResult inspected = operation->Run(InspectFor(request));
  if (!inspected.problems.empty()) {
    return Complain(kRefused, absl::StrCat("nothing was changed: ", absl::StrJoin(inspected.problems, "; ")));
  }
  const Candidate* chosen = nullptr;
  for (const Candidate& candidate : inspected.candidates) {
    if (candidate.refused_because.empty() && chosen == nullptr) chosen = &candidate;
  }
  if (chosen == nullptr) {
    std::fprintf(stderr, "rb-agent: no release can be used for '%s'; nothing was changed. There are:\n",
                 request.to.empty() ? "last-good" : Printable(request.to).c_str());
    for (const Candidate& candidate : inspected.candidates) {
      std::fprintf(stderr, "  %s %s: %s\n", candidate.release.name.c_str(), candidate.commit.substr(0, 7).c_str(),
                   Printable(candidate.refused_because).c_str());
    }
    return kRefused;
  }
  for (const Candidate& candidate : inspected.candidates) {
    if (candidate.refused_because.empty() && !candidate.commit.empty() && candidate.commit != chosen->commit) {
      return Complain(kRefused, absl::StrCat("'", request.to, "' is ambiguous: ", chosen->commit, " or ",
                                             candidate.commit, ". Nothing was changed. Give more digits"));
    }
  }
  std::printf("to %s %s by %s: %llu files change, %llu are added, %llu removed, %s to stage\n",
              chosen->release.name.empty() ? "commit" : chosen->release.name.c_str(),
              chosen->commit.substr(0, 12).c_str(), chosen->method == Method::kBackup ? "backup" : "git",
              static_cast<unsigned long long>(chosen->delta.files_changed),
              static_cast<unsigned long long>(chosen->delta.files_added),
              static_cast<unsigned long long>(chosen->delta.files_removed),
              FormatBytes(chosen->delta.bytes_to_stage).c_str());
  if (!chosen->delta.databases.empty()) {
    std::printf("databases restored from their dumps, what was written to them since is lost: %s\n",
                absl::StrJoin(chosen->delta.databases, ", ").c_str());
  }
  if (chosen->delta.data_age > absl::ZeroDuration()) {
    std::printf("the data goes back %s: what was written since is lost to the service, and kept in a release\n",
                FormatSeconds(chosen->delta.data_age).c_str());
  }
  for (const TableRows& rows : chosen->delta.table_rows) {
    std::printf("  %s %s: %llu rows now, %llu then\n", Printable(rows.database).c_str(), Printable(rows.table).c_str(),
                static_cast<unsigned long long>(rows.now), static_cast<unsigned long long>(rows.then));
  }
  for (const std::string& path : chosen->delta.not_captured) {
    std::printf("not kept by a release: %s\n", Printable(path).c_str());
  }
  if (!chosen->delta.config_diff.empty()) std::printf("%s", chosen->delta.config_diff.c_str());
  const std::string quarantined = WhyQuarantined(LoadQuarantine(state_folder), service, chosen->commit);
  if (!quarantined.empty() && !request.force) {
    return Complain(kRefused, absl::StrCat(quarantined,
                                           ". Nothing was changed. Choose another target, or the same "
                                           "command with --force --reason \"...\""));
  }
  if (!quarantined.empty()) std::printf("%s; --force goes past that\n", Printable(quarantined).c_str());
  if (request.verb == "plan") return kDone;
  if (chosen->already_there && inspected.verdict == Verdict::kHealthy) {
    std::printf("already there, and healthy\n");
    return kDone;
  }
  PrepareStep prepare;
  prepare.release_name = chosen->release.name;
  prepare.commit = chosen->commit;
  prepare.method = chosen->method;
  prepare.components.data = request.with_data;
  prepare.reason = request.reason;
  prepare.check_config = !request.force;
  TaskResult result = operation->Run(prepare);
  record->From(result);
  record->To(chosen->release.name, chosen->commit, chosen->version, chosen->method);
  if (!result.status.ok()) {
    record->End(v1::HOST_STATE_UNTOUCHED, v1::VERDICT_UNKNOWN, false, std::string(result.status.message()));
    return Complain(kFailed, std::string(result.status.message()));
  }
  record->Replaced(result.release.name);
  record->Took(result.times);
  const absl::Duration prepared = result.times.prepare;
  result = operation->Run(CommitStep());
  if (!result.status.ok()) {
    const TaskResult reverted = operation->Run(RevertStep{"the commit failed", VerifyPolicy(), ""});
    record->End(reverted.status.ok() ? v1::HOST_STATE_REVERTED : v1::HOST_STATE_UNSPECIFIED, v1::VERDICT_UNKNOWN, false,
                std::string(result.status.message()));
    return Complain(reverted.status.ok() ? kReverted : kNeedsAttention, std::string(result.status.message()));
  }
  // What went wrong beside the swap decides nothing, and is said.
  for (const std::string& problem : result.problems) std::fprintf(stderr, "rb-agent: %s\n", problem.c_str());
  result = operation->Run(VerifyStep());
  if (result.verdict != Verdict::kHealthy) {
    std::fprintf(stderr, "rb-agent: not healthy on the new state; going back\n");
    for (const ProbeResult& probe : result.probes) {
      if (!probe.passed) {
        std::fprintf(stderr, "  %s: %s\n", Printable(probe.name).c_str(), Printable(probe.observed).c_str());
      }
    }
    const TaskResult reverted = operation->Run(RevertStep{"not healthy", VerifyPolicy(), ""});
    record->End(reverted.status.ok() ? v1::HOST_STATE_REVERTED : v1::HOST_STATE_UNSPECIFIED, v1::VERDICT_UNHEALTHY,
                false, "not healthy on the new state; back on what was there before");
    return reverted.status.ok() ? Complain(kReverted, "back on what was there before")
                                : Complain(kNeedsAttention, std::string(reverted.status.message()));
  }
  const absl::Duration downtime = result.times.downtime;
  record->Took(result.times);
  result = operation->Run(KeepStep{true, true, request.reason, "", "", ""});
  if (!result.status.ok()) {
    record->End(v1::HOST_STATE_COMMITTED, v1::VERDICT_HEALTHY, false, std::string(result.status.message()));
    return Complain(kNeedsAttention, std::string(result.status.message()));
  }
  record->To(result.release.name, chosen->commit, chosen->version, chosen->method);
  record->End(v1::HOST_STATE_KEPT, v1::VERDICT_HEALTHY, true, absl::StrCat("healthy on ", result.release.name));
  std::printf("healthy on %s; prepared in %s, downtime %s\n", result.release.name.c_str(),
              FormatSeconds(prepared).c_str(), FormatSeconds(downtime).c_str());
  return kDone;
}

}  // namespace

int RunLocal(const v1::AgentConfig& config, const std::string& state_folder, const LocalRequest& request,
             Clock& clock) {
  std::vector<std::string> names;
  for (const auto& [name, service] : config.services()) names.push_back(name);
  const std::string name = request.service.empty() && names.size() == 1 ? names[0] : request.service;
  if (config.services().count(name) == 0) {
    return Complain(kUsage,
                    absl::StrCat(name.empty() ? "say which service: " : "there is no service " + name + ". There are: ",
                                 absl::StrJoin(names, ", "), ". Nothing was changed"));
  }
  const bool needs_supervisor =
      request.verb == "rollback" || request.verb == "status" || request.verb == "plan" || request.verb == "backup";
  std::string recovered;
  absl::StatusOr<std::unique_ptr<Service>> service =
      Service::Open(name, config.services().at(name), state_folder, clock, needs_supervisor, &recovered);
  if (!service.ok()) {
    const bool in_recovery = service.status().GetPayload(kInRecovery).has_value();
    return Complain(in_recovery ? kNeedsAttention : kFailed,
                    absl::StrCat(service.status().message(), in_recovery ? "" : ". Nothing was changed"));
  }
  if (!recovered.empty()) std::printf("%s\n", recovered.c_str());
  Engine& engine = (*service)->engine();
  LocalOperation operation(**service, name, clock);
  if (request.verb == "recover") {
    if (recovered.empty()) std::printf("%s: nothing to recover, the tree is whole\n", name.c_str());
    return kDone;
  }
  Record record(state_folder, name, request, clock);
  if (request.verb == "plan" || request.verb == "rollback") {
    return Rollback(&operation, name, state_folder, request, &record);
  }
  if (request.verb == "backup") {
    const TaskResult result = operation.Run(BackupStep{request.reason, false, false});
    if (!result.status.ok()) return Complain(kFailed, std::string(result.status.message()));
    record.From(result);
    record.To(result.release.name, result.release.commit, result.release.version, Method::kBackup);
    record.End(v1::HOST_STATE_UNTOUCHED, v1::VERDICT_UNKNOWN, true, absl::StrCat("took ", result.release.name));
    PrintRelease(result.release);
    return kDone;
  }
  if (request.verb == "list" || request.verb == "status") {
    const absl::StatusOr<std::vector<Release>> releases = engine.Releases();
    if (!releases.ok()) return Complain(kFailed, std::string(releases.status().message()));
    const absl::StatusOr<Current> current = engine.CheckDrift();
    if (current.ok()) {
      std::printf("current: %s%s\n", current->release_name.empty() ? "not known" : current->release_name.c_str(),
                  current->drifted ? " (the tree was changed since)" : "");
    }
    for (const Release& release : *releases) PrintRelease(release);
    if (request.verb == "list") return kDone;
    bool healthy = true;
    for (const ProbeResult& probe : (*service)->runner().ProbeOnce()) {
      healthy = healthy && !CountsAgainst(probe);
      std::printf("%s %s: %s\n",
                  probe.passed     ? "ok  "
                  : probe.external ? "down (external)"
                                   : "FAIL",
                  Printable(probe.name).c_str(), Printable(probe.observed).c_str());
    }
    return healthy ? kDone : kNeedsAttention;
  }
  if (request.verb == "verify") {
    const absl::StatusOr<std::vector<Release>> releases = engine.Releases();
    if (!releases.ok()) return Complain(kFailed, std::string(releases.status().message()));
    bool all = true;
    for (const Release& release : *releases) {
      if (!request.to.empty() && release.name != request.to) continue;
      const absl::StatusOr<ProofReport> proof = engine.Prove(release.name);
      const bool proved = proof.ok() && proof->findings.empty();
      all = all && proved;
      std::printf("%s: %s\n", release.name.c_str(),
                  proved
                      ? absl::StrCat("proved, ", FormatBytes(proof->bytes), " in ", FormatSeconds(proof->took)).c_str()
                      : absl::StrCat("DAMAGED: ", proof.ok() ? absl::StrJoin(proof->findings, "; ")
                                                             : std::string(proof.status().message()))
                            .c_str());
      if (!proof.ok()) continue;
      for (const std::string& healed : proof->healed) std::printf("  %s\n", Printable(healed).c_str());
      for (const std::string& remark : proof->remarks) std::printf("  %s\n", Printable(remark).c_str());
    }
    return all ? kDone : kNeedsAttention;
  }
  if (request.verb == "prune") {
    const absl::StatusOr<PruneReport> report = engine.Prune(request.keep_good, {});
    if (!report.ok()) return Complain(kFailed, std::string(report.status().message()));
    for (const std::string& removed : report->removed) std::printf("removed %s\n", removed.c_str());
    std::printf("%zu releases removed, %s freed\n", report->removed.size(), FormatBytes(report->bytes_freed).c_str());
    return kDone;
  }
  return Complain(kUsage, absl::StrCat("there is no command 'local ", request.verb, "'"));
}

}  // namespace rb::agent
