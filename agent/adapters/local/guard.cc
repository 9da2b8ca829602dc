#include "agent/adapters/local/guard.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "agent/adapters/config/agent_config.h"
#include "agent/adapters/link/daemon.h"
#include "agent/adapters/records/host_records.h"
#include "agent/adapters/records/tree_commit.h"
#include "agent/core/task/candidates.h"
#include "common/adapters/proto_time.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/text.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 1;
constexpr int kUsage = 2;
constexpr int kNeedsAttention = 3;
constexpr int kRefused = 5;
constexpr absl::Duration kRetry = absl::Milliseconds(200);
// Files that changed between staging and moving in.
constexpr int kMostAttempts = 3;

class Guard {
 public:
  Guard(const v1::AgentConfig& config, std::string state_folder, const GuardRequest& request, Clock& clock)
      : config_(config),
        state_folder_(std::move(state_folder)),
        request_(request),
        clock_(clock),
        until_(clock.Monotonic() + request.patience) {}

  int Run() {
    std::vector<std::string> names;
    for (const auto& [name, service] : config_.services()) names.push_back(name);
    std::sort(names.begin(), names.end());
    name_ = request_.service.empty() && names.size() == 1 ? names[0] : request_.service;
    if (config_.services().count(name_) == 0) {
      return End(kUsage, absl::StrCat(name_.empty() ? "say which service: --service "
                                                    : absl::StrCat("there is no service ", name_, ". There are: "),
                                      absl::StrJoin(names, ", "), ". Nothing was changed"));
    }
    tree_ = config_.services().at(name_).tree();
    if (const int code = Open(); code != kDone) return code;
    return request_.verb == "before" ? Before() : After();
  }

 private:
  // One line for a person, or the document.
  int End(int code, const std::string& text) {
    answer_["outcome"] = code == kDone ? "done" : code == kRefused ? "refused" : "failed";
    answer_["exit_code"] = code;
    answer_["message"] = text;
    if (request_.json) {
      std::printf("%s\n", answer_.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
    } else {
      std::fprintf(code == kDone ? stdout : stderr, "%s%s\n",
                   code == kDone ? "" : "rb-agent: ", Printable(text).c_str());
    }
    return code;
  }

  // Again while another process has the service, until the patience is over.
  template <typename Call>
  auto Patiently(Call call) {
    while (true) {
      auto result = call();
      if (!absl::IsUnavailable(StatusOf(result)) || clock_.Monotonic() >= until_) return result;
      absl::SleepFor(kRetry);
    }
  }
  static const absl::Status& StatusOf(const absl::Status& status) { return status; }
  template <typename T>
  static const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
    return result.status();
  }

  int Open() {
    std::string recovered;
    absl::StatusOr<std::unique_ptr<Service>> service = Patiently(
        [&] { return Service::Open(name_, config_.services().at(name_), state_folder_, clock_, false, &recovered); });
    if (!service.ok()) {
      const bool in_recovery = service.status().GetPayload(kInRecovery).has_value();
      return End(in_recovery ? kNeedsAttention : kFailed,
                 absl::StrCat(service.status().message(), in_recovery ? "" : ". Nothing was changed"));
    }
    service_ = *std::move(service);
    // An operation of the controller's is not to be disturbed: it knows what is in the tree, and goes back to it.
    while (true) {
      const absl::StatusOr<OpenTransaction> open = service_->engine().GetOpenTransaction();
      if (!open.ok()) return End(kFailed, absl::StrCat(open.status().message(), ". Nothing was changed"));
      if (open->phase == TransactionPhase::kNone && !open->is_torn) return kDone;
      if (clock_.Monotonic() >= until_) {
        return End(kRefused,
                   absl::StrCat("operation ", open->operation_id, " is at work on ", name_,
                                ". Nothing was changed. Deploy when it has ended: rbctl watch ", open->operation_id));
      }
      absl::SleepFor(kRetry);
    }
  }

  int Before() {
    CommitSource* commits = service_->runner().ports().commits;
    std::string commit = request_.commit;
    if (commits != nullptr && !commit.empty()) {
      if (const absl::StatusOr<Commit> known = commits->Resolve(commit); known.ok()) commit = known->id;
    }
    std::string why = WhyQuarantined(LoadQuarantine(state_folder_), name_, request_.commit);
    if (why.empty()) why = WhyQuarantined(LoadQuarantine(state_folder_), name_, commit);
    if (why.empty() && !commit.empty()) {
      const absl::StatusOr<std::vector<Release>> releases = service_->engine().Releases();
      const std::string bad = releases.ok() ? WhyCommitIsBad(*releases, commit) : "";
      if (!bad.empty()) why = absl::StrCat(commit.substr(0, 7), " ", bad);
    }
    if (!why.empty() && !request_.force) {
      answer_["quarantined"] = why;
      return End(kRefused, absl::StrCat(why,
                                        ". Do not deploy it. Nothing was changed. Deploy another commit, or: rbctl "
                                        "quarantine release ",
                                        commit.substr(0, 12), " --reason \"...\""));
    }
    const absl::StatusOr<Current> current = Patiently([&] { return service_->engine().CheckDrift(); });
    CaptureRequest capture;
    capture.cause = Cause::kBackup;
    capture.reason = absl::StrCat("before a deploy by ", UserOfHost(),
                                  request_.commit.empty() ? "" : absl::StrCat(" of ", Printable(request_.commit)),
                                  request_.reason.empty() ? "" : ": ", request_.reason);
    if (current.ok() && !current->drifted) {
      capture.commit = current->commit;
      capture.version = current->version;
    }
    const absl::StatusOr<Release> release = Patiently([&] { return service_->engine().Capture(capture); });
    if (!release.ok()) {
      return End(kFailed, absl::StrCat("no release was taken: ", release.status().message(),
                                       ". Nothing was changed. Do not deploy before this is mended"));
    }
    // Code and config that ran well, with newer data.
    if (current.ok() && !current->drifted && release->standing == Standing::kUnknown) {
      const absl::StatusOr<std::vector<Release>> releases = service_->engine().Releases();
      for (const Release& one : releases.ok() ? *releases : std::vector<Release>()) {
        if (one.name != current->release_name || one.standing != Standing::kGood) continue;
        service_->engine().SetStanding(release->name, Standing::kGood, "").IgnoreError();
      }
    }
    v1::HostRecord guard;
    guard.set_service(name_);
    guard.set_user(UserOfHost());
    guard.set_reason(request_.reason);
    *guard.mutable_began_at() = ToProto(clock_.Now());
    guard.set_from_release(release->name);
    guard.set_from_commit(release->commit);
    guard.set_from_version(release->version);
    guard.set_to_commit(request_.commit);
    if (const absl::Status saved = SaveGuard(state_folder_, guard); !saved.ok()) {
      return End(kFailed, absl::StrCat(saved.message(), ". Nothing was changed"));
    }
    answer_["release"] = release->name;
    if (!why.empty()) answer_["quarantined"] = why;
    return End(kDone, absl::StrCat("took ", release->name, why.empty() ? "" : absl::StrCat("; FORCED: ", why),
                                   ". Deploy now, then: rb-agent guard after --service ", name_));
  }

  // Everything that the deploy's own repository had is its to remove; what else is missing is not.
  std::function<bool(const std::string&)> Wanted(const ServiceTree& tree, const std::string& commit_before,
                                                 bool* knows_repository) {
    auto tracked = std::make_shared<std::set<std::string>>();
    CommitSource* commits = service_->runner().ports().commits;
    *knows_repository = false;
    if (commits != nullptr && !commit_before.empty()) {
      absl::StatusOr<std::unique_ptr<SnapshotSource>> snapshot = commits->Open(commit_before);
      *knows_repository = snapshot.ok() && (*snapshot)
                                               ->ForEach([&](const SnapshotSource::Entry& entry) {
                                                 tracked->insert(entry.path);
                                                 return absl::OkStatus();
                                               })
                                               .ok();
    }
    return [tree, tracked, knows = *knows_repository](const std::string& path) {
      if (path == ".git" || absl::StartsWith(path, ".git/")) return false;
      if (tracked->count(path) != 0) return false;
      // A folder that led to tracked files alone.
      const auto below = tracked->lower_bound(path + "/");
      if (below != tracked->end() && absl::StartsWith(*below, path + "/")) return false;
      return knows || ComponentOf(tree, path) != Component::kCode;
    };
  }

  int After() {
    Engine& engine = service_->engine();
    const absl::StatusOr<ServiceTree> tree = ToServiceTree(name_, config_.services().at(name_));
    if (!tree.ok()) return End(kFailed, std::string(tree.status().message()));
    const std::optional<v1::HostRecord> guard = LoadGuard(state_folder_, name_);
    const absl::StatusOr<Current> current = engine.GetCurrent();
    const std::string before = guard.has_value() ? guard->from_release() : current.ok() ? current->release_name : "";
    std::string commit_before = guard.has_value() ? guard->from_commit() : current.ok() ? current->commit : "";
    if (commit_before.empty() && current.ok()) commit_before = current->commit;
    std::string given = request_.commit;
    if (given.empty() && guard.has_value()) given = guard->to_commit();
    const absl::Time began = clock_.Now();
    CommitSource* commits = service_->runner().ports().commits;
    if (commits != nullptr && !given.empty() && !commits->Resolve(given).ok()) commits->Fetch().IgnoreError();
    const TreeCommit found = FindTreeCommit(tree_, given, commit_before, engine, commits);
    const std::string reason = !request_.reason.empty() ? request_.reason
                               : guard.has_value() && !guard->reason().empty()
                                   ? guard->reason()
                                   : absl::StrCat("deployed by ", UserOfHost());
    bool knows_repository = false;
    BringBack back;
    back.release_name = before;
    back.wanted = Wanted(*tree, commit_before, &knows_repository);
    Delta brought;
    absl::StatusOr<Release> release = absl::UnknownError("not tried");
    for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
      release = before.empty() ? absl::StatusOr<Release>(absl::NotFoundError(""))
                               : BringBackWith(back, found, reason, &brought);
      if (!absl::IsAborted(release.status())) break;
    }
    if (absl::IsNotFound(release.status()) && (before.empty() || brought.empty())) {
      CaptureRequest capture;
      capture.cause = Cause::kExternal;
      capture.commit = found.commit;
      capture.version = found.version;
      capture.reason = reason;
      capture.make_current = true;
      release = Patiently([&] { return engine.Capture(capture); });
    }
    if (!release.ok()) {
      return End(kNeedsAttention, absl::StrCat("what the deploy removed was not brought back: ",
                                               release.status().message(), ". What was there before is in ", before,
                                               ": rb-agent local rollback --to ", before, " ", name_));
    }
    OweDeploy(*release, guard, current.ok() ? *current : Current(), found, reason, brought, began);
    RemoveGuard(state_folder_, name_).IgnoreError();
    answer_["release"] = release->name;
    answer_["commit"] = release->commit;
    answer_["version"] = release->version;
    answer_["commit_found"] = found.how;
    answer_["before"] = before;
    answer_["files_brought_back"] = brought.files_added;
    answer_["brought_back"] = brought.sample_paths;
    std::string text = absl::StrCat("recorded ", release->name, " (commit ", found.how, ")");
    if (brought.empty()) {
      absl::StrAppend(&text, "; the deploy removed nothing that has to come back");
    } else {
      absl::StrAppend(&text, "; brought back ", brought.files_added, " files and ", brought.other_changes,
                      " folders and links that the deploy had removed: ", absl::StrJoin(brought.sample_paths, ", "));
    }
    if (before.empty()) absl::StrAppend(&text, ". There was no release from before to compare with");
    if (!before.empty() && !knows_repository) {
      absl::StrAppend(&text,
                      ". What the deploy may remove is not known (no mirror has the commit from before): code was "
                      "left as it is");
    }
    return End(kDone, text);
  }

  // NOT_FOUND when nothing is missing. ABORTED: the tree changed meanwhile.
  absl::StatusOr<Release> BringBackWith(const BringBack& back, const TreeCommit& found, const std::string& reason,
                                        Delta* brought) {
    Engine& engine = service_->engine();
    const std::string operation = absl::StrCat("guard-", NewOperationId(clock_.Now()).substr(3));
    EngineTarget target;
    target.bring_back = &back;
    target.commit = found.commit;
    target.version = found.version;
    Components all;
    all.data = true;
    RB_ASSIGN_OR_RETURN(const PreparedTransaction prepared,
                        Patiently([&] { return engine.Prepare(operation, target, all, reason); }));
    if (prepared.delta.empty()) {
      RB_RETURN_IF_ERROR(Patiently([&] { return engine.Undo(operation); }));
      return absl::NotFoundError("nothing is missing");
    }
    // The service goes on: nothing that it has open is touched.
    const absl::StatusOr<EngineTimes> committed = Patiently([&] { return engine.Commit(operation); });
    if (!committed.ok()) {
      Patiently([&] { return engine.Undo(operation); }).IgnoreError();
      return committed.status();
    }
    *brought = prepared.delta;
    return Patiently([&] { return engine.Keep(operation, Cause::kExternal, false, false, reason); });
  }

  void OweDeploy(const Release& release, const std::optional<v1::HostRecord>& guard, const Current& current,
                 const TreeCommit& found, const std::string& reason, const Delta& brought, absl::Time began) {
    v1::HostRecord record;
    record.set_service(name_);
    record.set_kind(v1::HOST_RECORD_KIND_EXTERNAL);
    record.set_verb("deploy");
    record.set_user(UserOfHost());
    record.set_reason(reason);
    *record.mutable_began_at() = guard.has_value() ? guard->began_at() : ToProto(began);
    *record.mutable_ended_at() = ToProto(clock_.Now());
    record.set_from_release(guard.has_value() ? guard->from_release() : current.release_name);
    record.set_from_commit(guard.has_value() ? guard->from_commit() : current.commit);
    record.set_from_version(guard.has_value() ? guard->from_version() : current.version);
    record.set_replaced_release(record.from_release());
    record.set_to_release(release.name);
    record.set_to_commit(release.commit);
    record.set_to_version(release.version);
    record.set_state(v1::HOST_STATE_KEPT);
    record.set_succeeded(true);
    record.set_summary(absl::StrCat("deployed by other means, ", release.name, " (commit ", found.how, "); ",
                                    brought.files_added, " files that the deploy had removed were brought back"));
    const absl::Status owed = OweRecord(state_folder_, std::move(record));
    if (!owed.ok()) std::fprintf(stderr, "rb-agent: no record for the history: %s\n", owed.ToString().c_str());
  }

  const v1::AgentConfig& config_;
  const std::string state_folder_;
  const GuardRequest& request_;
  Clock& clock_;
  const absl::Duration until_;
  std::string name_;
  std::string tree_;
  std::unique_ptr<Service> service_;
  nlohmann::ordered_json answer_;
};

}  // namespace

int RunGuard(const v1::AgentConfig& config, const std::string& state_folder, const GuardRequest& request,
             Clock& clock) {
  return Guard(config, state_folder, request, clock).Run();
}

}  // namespace rb::agent
