#include "agent/adapters/link/external.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "agent/adapters/records/host_records.h"
#include "agent/adapters/records/tree_commit.h"
#include "common/adapters/proto_time.h"
#include "common/log.h"

namespace rb::agent {
namespace {

// A CI job that died between its two lines holds nothing up for longer.
constexpr absl::Duration kLongestGuard = absl::Hours(1);

}  // namespace

bool ExternalDeploys::Look(Service& service, bool operation_is_open, Current* current) {
  ExternalWatch::Seen seen;
  seen.live_digest = current->live_digest;
  if (!seen.live_digest.empty()) {
    const absl::StatusOr<OpenTransaction> open = service.engine().GetOpenTransaction();
    const std::optional<v1::HostRecord> guard = LoadGuard(state_folder_, name_);
    const bool is_guarded = guard.has_value() && clock_.Now() - FromProto(guard->began_at()) < kLongestGuard;
    seen.is_busy =
        operation_is_open || is_guarded || !open.ok() || open->phase != TransactionPhase::kNone || open->is_torn;
  }
  const ExternalWatch::What what = watch_.Take(seen, clock_.Monotonic());
  if (what != ExternalWatch::What::kCapture) return what == ExternalWatch::What::kLookAgain;
  const absl::Time began = clock_.Now();
  const TreeCommit found =
      FindTreeCommit(tree_, "", current->commit, service.engine(), service.runner().ports().commits);
  CaptureRequest request;
  request.cause = Cause::kExternal;
  request.commit = found.commit;
  request.version = found.version;
  request.reason =
      current->release_name.empty() ? "found on the host" : "changed by other means, and found on the host";
  request.make_current = true;
  const absl::StatusOr<Release> release = service.engine().Capture(request);
  if (!release.ok()) {
    LogWarning("agent", name_, ": what other means have changed could not be captured: ", release.status().message());
    return false;
  }
  const bool is_new = !release->commit.empty() && release->commit != current->commit;
  watch_.Captured(is_new, clock_.Monotonic());
  LogInfo("agent", name_, ": changed by other means; captured as ", release->name, " (commit ", found.how, ")");
  v1::HostRecord record;
  record.set_service(name_);
  record.set_kind(v1::HOST_RECORD_KIND_EXTERNAL);
  record.set_verb("deploy");
  record.set_reason(request.reason);
  *record.mutable_began_at() = ToProto(began);
  *record.mutable_ended_at() = ToProto(clock_.Now());
  record.set_from_release(current->release_name);
  record.set_from_commit(current->commit);
  record.set_from_version(current->version);
  record.set_to_release(release->name);
  record.set_to_commit(release->commit);
  record.set_to_version(release->version);
  record.set_state(v1::HOST_STATE_KEPT);
  record.set_succeeded(true);
  record.set_summary(
      absl::StrCat("the tree was changed by other means; captured as ", release->name, " (commit ", found.how, ")"));
  if (const absl::Status owed = OweRecord(state_folder_, std::move(record)); !owed.ok()) {
    LogWarning("agent", name_, ": no record of it for the history: ", owed.message());
  }
  current->release_name = release->name;
  current->commit = release->commit;
  current->version = release->version;
  current->drifted = false;
  current->live_digest.clear();
  // Its standing is known, and reported, once the probes have passed on it.
  return true;
}

void ExternalDeploys::Judge(Service& service, const Current& current, bool is_healthy) {
  if (!is_healthy || current.drifted || current.release_name.empty()) return;
  const absl::StatusOr<std::vector<Release>> releases = service.engine().Releases();
  if (!releases.ok()) return;
  for (const Release& release : *releases) {
    if (release.name == current.release_name && release.cause == Cause::kExternal &&
        release.standing == Standing::kUnknown) {
      service.engine().SetStanding(release.name, Standing::kGood, "").IgnoreError();
    }
  }
}

}  // namespace rb::agent
