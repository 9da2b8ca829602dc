// Databases that are not files of the tree.

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/core/engine/database_dumps.h"
#include "agent/core/engine/engine_impl.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/transaction.h"
#include "common/failpoint.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {

absl::Status EngineImpl::DumpDatabases(Snapshot* snapshot) {
  if (options_.database_hooks == nullptr) return absl::OkStatus();
  Progress("dumping databases");
  RB_ASSIGN_OR_RETURN(snapshot->dumps, TakeDumps(options_.database_hooks, store_.get(), snapshot->writer.get(),
                                                 [this] { return CheckCancelled(); }));
  return absl::OkStatus();
}

absl::Status EngineImpl::AddDatabases(const EngineTarget& target, const Components& components,
                                      const Manifest& manifest, Delta* delta) const {
  if (!components.data) return absl::OkStatus();
  std::vector<std::string> samples;
  for (const DatabaseDump& dump : manifest.dumps) {
    delta->databases.push_back(dump.name);
    samples.push_back(absl::StrCat("database ", dump.name, " (from its dump, ", FormatBytes(dump.size), ")"));
  }
  const std::string why = WhyDatabasesCannotGoBack(
      options_.database_hooks, delta->databases,
      target.snapshot != nullptr ? absl::StrCat("commit ", target.commit.substr(0, 7)) : target.release_name);
  if (!why.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(why, ". Nothing was changed. ", ReleasesWithDumps(), " or leave the data as it is"));
  }
  std::vector<std::string>& all = delta->sample_paths;
  all.insert(all.begin(), samples.begin(), samples.end());
  if (all.size() > kSamplesKept) all.resize(kSamplesKept);
  return absl::OkStatus();
}

std::string EngineImpl::ReleasesWithDumps() const {
  static constexpr size_t kNamed = 3;
  std::vector<std::string> names;
  const absl::StatusOr<std::vector<Release>> releases = files_.List(nullptr);
  for (size_t i = 0; releases.ok() && i < releases->size() && names.size() < kNamed; ++i) {
    const Release& release = (*releases)[i];
    if (WhyDatabasesCannotGoBack(options_.database_hooks, release.databases, "").empty()) {
      names.push_back(release.name);
    }
  }
  return names.empty() ? "Take a backup for the next time," : absl::StrCat("Choose ", absl::StrJoin(names, ", "));
}

absl::Status EngineImpl::RestoreDatabases(const Intent& intent) {
  for (const std::string& name : intent.databases) {
    if (!RB_PLANTED_BUG("restore-not-marked")) RB_RETURN_IF_ERROR(Mark(absl::StrCat(kRestoreBegun, name)));
    RB_FAILPOINT("engine.restore.after-begin");
    RB_RETURN_IF_ERROR(RestoreFrom(intent.target_release, name));
  }
  if (!intent.databases.empty()) RB_FAILPOINT("engine.restore.after-end");
  return absl::OkStatus();
}

absl::Status EngineImpl::BringDatabasesBack(const Intent& intent, const std::vector<std::string>& names) {
  absl::Status failure;
  std::vector<std::string> lost;
  for (const std::string& name : names) {
    const absl::Status restored = RestoreFrom(intent.replaced_release, name);
    if (restored.ok()) continue;
    if (failure.ok()) failure = restored;
    lost.push_back(name);
  }
  return Annotate(failure, absl::StrCat("the tree is what it was, but ", DescribeDatabases(lost),
                                        " holds what a restore has left half-way, and could not be restored from ",
                                        intent.replaced_release, ". Keep the service stopped, and mend the cause"));
}

absl::Status EngineImpl::RestoreFrom(const std::string& release_name, const std::string& name) {
  if (options_.database_hooks == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("database ", name, ": agent.yaml no longer has a hook for it in database_hooks"));
  }
  Progress(absl::StrCat("restoring database ", name));
  RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession());
  RB_ASSIGN_OR_RETURN(const Manifest manifest, LoadReleaseManifest(release_name));
  const DatabaseDump* dump = FindDump(manifest, name);
  if (dump == nullptr) {
    return absl::DataLossError(absl::StrCat(release_name, " holds no dump of database ", name));
  }
  return RestoreDump(*dump, options_.database_hooks, store_.get());
}

absl::Status EngineImpl::ProveDumps(const Manifest& manifest, ProofReport* report) {
  for (const DatabaseDump& dump : manifest.dumps) {
    const absl::Status checked = CheckDump(dump, store_.get(), [this] { return CheckCancelled(); });
    if (!checked.ok() && !absl::IsDataLoss(checked)) return checked;
    if (!checked.ok()) {
      if (report->findings.size() < kFindingsKept) report->findings.emplace_back(checked.message());
      continue;
    }
    report->bytes += dump.size;
    report->remarks.push_back(absl::StrCat("the dump of database ", dump.name, " (", FormatBytes(dump.size),
                                           ") is whole by its digests; it was not restored into a server"));
  }
  return absl::OkStatus();
}

}  // namespace rb::agent
