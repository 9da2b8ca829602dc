// Proofs, and what no release needs any more.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/core/engine/engine_impl.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/release_files.h"
#include "agent/core/engine/retention.h"
#include "agent/core/engine/tree_files.h"
#include "agent/core/engine/walk.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {

absl::StatusOr<ProofReport> EngineImpl::Prove(const std::string& release_name) {
  // Holds the store, but not the service: a rollback does not wait for a proof.
  RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession());
  RB_ASSIGN_OR_RETURN(const Release release, files_.Load(release_name));
  const absl::Duration begin = options_.clock->Monotonic();
  ProofReport report;
  const absl::StatusOr<Manifest> manifest = files_.LoadManifest(release);
  if (!manifest.ok()) {
    report.findings.emplace_back(manifest.status().message());
  } else {
    RB_ASSIGN_OR_RETURN(const UniqueFd staging, OpenStagingRoot());
    const std::string scratch = absl::StrCat("proof-", RandomHex(6));
    const absl::Status proved = ProveIn(staging.get(), scratch, *manifest, &report);
    const absl::Status removed = RemoveTreeAt(staging.get(), scratch);
    RB_RETURN_IF_ERROR(proved);
    RB_RETURN_IF_ERROR(removed);
    RB_RETURN_IF_ERROR(ProveDumps(*manifest, &report));
  }
  report.took = options_.clock->Monotonic() - begin;
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(Release now, files_.Load(release_name));
  if (report.findings.empty()) {
    now.durability = Durability::kProved;
    now.last_proved_at = options_.clock->Now();
  } else {
    now.durability = Durability::kCaptured;
    now.last_proved_at = absl::InfinitePast();
  }
  RB_RETURN_IF_ERROR(files_.Update(now));
  return report;
}

absl::Status EngineImpl::ProveIn(int staging, const std::string& scratch, const Manifest& manifest,
                                 ProofReport* report) {
  RB_RETURN_IF_ERROR(MakeFolderAt(staging, scratch, 0700, scratch));
  RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenFolderBeneath(staging, scratch));
  Staging made;
  const auto find = [&](const std::string& text) {
    if (report->findings.size() < kFindingsKept) report->findings.push_back(text);
  };
  for (size_t i = 0; i < manifest.entries.size(); ++i) {
    const Entry& entry = manifest.entries[i];
    if (entry.path.empty()) continue;
    if (i % 64 == 0) RB_RETURN_IF_ERROR(CheckCancelled());
    const absl::Status staged = StageEntry(root.get(), entry.path, entry, &made);
    if (absl::IsDataLoss(staged) || absl::IsNotFound(staged)) {
      find(std::string(staged.message()));
      continue;
    }
    RB_RETURN_IF_ERROR(staged);
    ++report->entries;
    if (entry.type == EntryType::kFile) report->bytes += entry.size;
  }
  report->healed = std::move(made.healed);
  if (!report->findings.empty()) return absl::OkStatus();
  for (auto entry = manifest.entries.rbegin(); entry != manifest.entries.rend(); ++entry) {
    if (entry->type != EntryType::kFolder) continue;
    if (entry->path.empty()) {
      RB_RETURN_IF_ERROR(ApplyAttributes(root.get(), ".", EntryType::kFolder, entry->attributes, "the root"));
      continue;
    }
    RB_ASSIGN_OR_RETURN(const Place place, LocateBeneath(root.get(), entry->path));
    RB_RETURN_IF_ERROR(
        ApplyAttributes(place.parent.get(), place.name, EntryType::kFolder, entry->attributes, Printable(entry->path)));
  }
  // Read everything back, as it lies on the disk.
  ServiceTree bare;
  bare.service = tree_.service;
  bare.tree = scratch;
  RB_ASSIGN_OR_RETURN(LiveTree restored, WalkTree(root.get(), bare, true));
  std::vector<size_t> files;
  for (size_t i = 0; i < restored.entries.size(); ++i) {
    if (restored.entries[i].entry.type == EntryType::kFile && restored.entries[i].entry.size > 0) files.push_back(i);
  }
  RB_RETURN_IF_ERROR(ReadFiles(root.get(), files, nullptr, &restored));
  size_t r = 0;
  for (const Entry& entry : manifest.entries) {
    while (r < restored.entries.size() && PathLess(restored.entries[r].entry.path, entry.path)) ++r;
    if (r == restored.entries.size() || restored.entries[r].entry.path != entry.path) {
      find(absl::StrCat(Printable(entry.path), " was not restored"));
      continue;
    }
    const Entry& got = restored.entries[r].entry;
    const bool same = got.SameContent(entry) || HoldsChunks(root.get(), entry, got.size);
    if (!same) find(absl::StrCat(Printable(entry.path), " has other content than the manifest says"));
    if (got.attributes != entry.attributes) find(absl::StrCat(Printable(entry.path), " has other attributes"));
  }
  if (options_.database_copier != nullptr) {
    RB_ASSIGN_OR_RETURN(const std::string path, StagingRoot());
    for (const std::string& database : tree_.sqlite_paths) {
      const Entry* entry = Find(manifest, database);
      if (entry == nullptr || entry->type != EntryType::kFile || entry->size == 0) continue;
      const absl::Status checked = options_.database_copier->Check(absl::StrCat(path, "/", scratch, "/", database));
      if (!checked.ok()) find(absl::StrCat(database, ": ", checked.message()));
    }
  }
  return absl::OkStatus();
}

bool EngineImpl::HoldsChunks(int root, const Entry& entry, uint64_t size) {
  struct stat info {};
  if (entry.type != EntryType::kFile || size != entry.size) return false;
  const absl::StatusOr<UniqueFd> fd = OpenLiveFile(root, entry.path, O_RDONLY | O_NONBLOCK | O_NOCTTY, &info);
  if (!fd.ok()) return false;
  uint64_t at = 0;
  std::string there;
  for (const Digest& chunk : entry.chunks) {
    const absl::StatusOr<std::string> content = store_->Get(chunk);
    if (!content.ok()) return false;
    there.resize(content->size());
    const ssize_t got = pread(fd->get(), there.data(), there.size(), static_cast<off_t>(at));
    if (got != static_cast<ssize_t>(there.size()) || there != *content) return false;
    at += there.size();
  }
  return at == size;
}

absl::StatusOr<PruneReport> EngineImpl::Prune(uint32_t keep_good, const std::vector<std::string>& also_keep) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
  std::vector<std::string> damaged;
  RB_ASSIGN_OR_RETURN(const std::vector<Release> releases, files_.List(&damaged));
  if (!damaged.empty()) {
    return absl::DataLossError(
        absl::StrCat("nothing was removed, because these could not be read: ", absl::StrJoin(damaged, "; ")));
  }
  RB_ASSIGN_OR_RETURN(const Current current, files_.LoadCurrent());
  RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
  std::set<std::string> referred(also_keep.begin(), also_keep.end());
  referred.insert(current.release_name);
  if (journal.present) {
    referred.insert(journal.intent.replaced_release);
    referred.insert(journal.intent.target_release);
  }
  PruneReport report;
  for (std::string& name : ReleasesToRemove(releases, keep_good, referred)) {
    RB_RETURN_IF_ERROR(files_.Remove(name));
    report.removed.push_back(std::move(name));
  }
  RB_RETURN_IF_ERROR(files_.RemoveManifestsOfNone());
  RB_FAILPOINT("engine.prune.before-collect");
  absl::StatusOr<uint64_t> freed = store_->CollectGarbage([this] { return LiveObjects(); });
  if (freed.ok()) report.bytes_freed = *freed;
  if (!freed.ok() && !absl::IsUnavailable(freed.status())) return freed.status();
  return report;
}

absl::StatusOr<absl::flat_hash_set<Digest>> EngineImpl::LiveObjects() {
  absl::flat_hash_set<Digest> live;
  const std::string services = absl::StrCat(options_.state_folder, "/services");
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(services));
  for (const std::string& name : names) {
    RB_ASSIGN_OR_RETURN(const ReleaseFiles files, ReleaseFiles::Open(absl::StrCat(services, "/", name)));
    RB_RETURN_IF_ERROR(files.ForEachManifest(
        [&](const Manifest& manifest) { manifest.ForEachChunk([&](const Digest& chunk) { live.insert(chunk); }); }));
  }
  return live;
}

}  // namespace rb::agent
