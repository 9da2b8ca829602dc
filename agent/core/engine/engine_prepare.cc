// Staging: all that can be done while the service runs.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <functional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/core/engine/bring_back.h"
#include "agent/core/engine/changes.h"
#include "agent/core/engine/database_dumps.h"
#include "agent/core/engine/engine_impl.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/release_files.h"
#include "agent/core/engine/transaction.h"
#include "agent/core/engine/tree_files.h"
#include "agent/core/engine/walk.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/record_journal.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

std::string StagedName(size_t index) { return absl::StrCat("e", index); }

}  // namespace

absl::StatusOr<PreparedTransaction> EngineImpl::Prepare(const std::string& operation_id, const EngineTarget& target,
                                                        const Components& components, const std::string& reason) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
  RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
  if (journal.present && journal.intent.operation_id != operation_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("operation ", journal.intent.operation_id, " is open on ", tree_.service,
                     ". Nothing was changed. Let it end, or undo it: rb-agent local recover ", tree_.service));
  }
  if (journal.present) {
    // Repeated: what was staged may belong to an older state of the tree, so it is made again unless it is in use.
    if (journal.commit_begun) return absl::FailedPreconditionError("this operation has begun to commit");
    RB_RETURN_IF_ERROR(Discard(journal.intent));
  }
  if (const std::vector<std::string> problems = ProblemsLocked(std::nullopt); !problems.empty()) {
    return absl::FailedPreconditionError(absl::StrJoin(problems, "; "));
  }
  const absl::Duration begin = options_.clock->Monotonic();
  RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession(ObjectStore::Knows::kLater));
  Progress("capturing");
  absl::StatusOr<Manifest> stored = absl::UnknownError("not loaded");
  const bool with_sidecars = components.data && !RB_PLANTED_BUG("sidecars-left");
  RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(true, true, with_sidecars, [&] {
                        if (target.snapshot != nullptr) return;
                        stored = LoadReleaseManifest(target.bring_back != nullptr ? target.bring_back->release_name
                                                                                  : target.release_name);
                      }));
  PreparedTransaction prepared;
  CaptureRequest request;
  request.cause = Cause::kReplaced;
  request.operation_id = operation_id;
  request.reason = live.damage.empty() ? reason : absl::StrCat(reason, " [captured as it was: ", live.damage, "]");
  if (target.snapshot != nullptr) stored = ImportSnapshot(target, live);
  if (stored.ok() && target.bring_back != nullptr) {
    stored = MergeMissing(live.live, *stored, tree_, target.bring_back->wanted);
  }
  RB_ASSIGN_OR_RETURN(Manifest manifest, std::move(stored));
  RB_ASSIGN_OR_RETURN(const std::optional<std::vector<std::string>> baseline, BaselinePaths(target));
  RB_ASSIGN_OR_RETURN(ChangeSet changes, ComputeChanges(live.live, manifest, Rules(components, &baseline)));
  if (target.bring_back == nullptr) RB_RETURN_IF_ERROR(AddDatabases(target, components, manifest, &changes.delta));
  // The commit is that of the current release only while the tree still equals it.
  RB_ASSIGN_OR_RETURN(const Current current, files_.LoadCurrent());
  const bool target_is_current =
      !target.release_name.empty() && current.release_name == target.release_name && components == Components();
  if (target_is_current ? changes.delta.empty() : Equals(live.live, current.release_name)) {
    request.commit = current.commit;
    request.version = current.version;
  }
  prepared.delta = changes.delta;
  if (const std::string lack = LackOfSpace(changes.delta); !lack.empty()) return absl::FailedPreconditionError(lack);
  if (!changes.delta.databases.empty()) {
    // Whole, before anything depends on it; then what the databases hold now, for the way back.
    for (const DatabaseDump& dump : manifest.dumps) {
      RB_RETURN_IF_ERROR(Annotate(CheckDump(dump, store_.get(), [this] { return CheckCancelled(); }),
                                  absl::StrCat("nothing was changed: ", target.release_name)));
    }
    RB_RETURN_IF_ERROR(
        Annotate(DumpDatabases(&live), "nothing was changed, since what is about to be replaced could not be kept"));
  }

  Intent intent;
  intent.databases = changes.delta.databases;
  intent.operation_id = operation_id;
  intent.target_release = target.release_name;
  intent.target_commit = target.commit;
  intent.target_version = target.version;
  if (!target.release_name.empty()) {
    RB_ASSIGN_OR_RETURN(const Release release, files_.Load(target.release_name));
    intent.target_commit = release.commit;
    intent.target_version = release.version;
    if (!components.code) {
      // The code stays, and with it what the tree says that it is.
      intent.target_commit = current.commit;
      intent.target_version = current.version;
    }
  }
  intent.reason = reason;
  intent.staging_name = absl::StrCat("tx-", RandomHex(6));
  Progress("staging");
  // Recording what is replaced and staging what replaces it have nothing to do with each other.
  absl::StatusOr<Release> replaced;
  std::unique_ptr<RecordJournal> record;
  absl::Status staged = Stage(live, manifest, changes, &intent, &prepared, &live.times, [&]() -> absl::Status {
    // What was read is about to be replaced: it is not worth remembering.
    live.cache_is_stale = false;
    replaced = RecordRelease(&live, request, false);
    RB_RETURN_IF_ERROR(replaced.status());
    // Without a record it says nothing; made here, its flushes are not waited for.
    std::vector<std::string> none;
    RB_ASSIGN_OR_RETURN(record, RecordJournal::Open(files_.JournalPath(), &none));
    return absl::OkStatus();
  });
  std::string encoded;
  if (staged.ok()) {
    RB_FAILPOINT("engine.prepare.after-capture");
    const absl::Duration sync_begin = options_.clock->Monotonic();
    absl::Status synced;
    const auto sync = [&] {
      synced = SyncStaged(intent);
      live.times.sync = options_.clock->Monotonic() - sync_begin;
    };
    // A flush of much is waited for, and the processor is free meanwhile.
    std::thread flush;
    if (intent.renames.size() > kManyFiles) {
      flush = std::thread(sync);
    } else {
      sync();
    }
    prepared.replaced = *std::move(replaced);
    prepared.delta.config_diff = ConfigDiff(changes, live, manifest);
    intent.replaced_release = prepared.replaced.name;
    if (target.release_name.empty()) {
      // A release has its manifest already, and Prune keeps it while this is open.
      intent.target_manifest_file = intent.staging_name;
      staged = files_.SaveTarget(intent.target_manifest_file, EncodeManifest(manifest));
    }
    encoded = EncodeIntent(intent);
    manifest = Manifest();
    live.live = LiveTree();
    if (flush.joinable()) flush.join();
    if (staged.ok()) staged = synced;
  }
  if (staged.ok()) {
    RB_FAILPOINT("engine.prepare.before-intent");
    staged = record->Append(encoded);
  }
  if (!staged.ok()) {
    Discard(intent).IgnoreError();
    return staged;
  }
  RB_FAILPOINT("engine.prepare.after-intent");
  live.times.total = options_.clock->Monotonic() - begin;
  prepared.times = live.times;
  return prepared;
}

absl::Status EngineImpl::Stage(const Snapshot& live, const Manifest& manifest, const ChangeSet& changes, Intent* intent,
                               PreparedTransaction* prepared, EngineTimes* times,
                               const std::function<absl::Status()>& meanwhile) {
  const absl::Duration begin = options_.clock->Monotonic();
  RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenStagingRoot());
  RB_RETURN_IF_ERROR(MakeFolderAt(root.get(), intent->staging_name, 0700, intent->staging_name));
  RB_ASSIGN_OR_RETURN(const UniqueFd staging, OpenFolderBeneath(root.get(), intent->staging_name));
  intent->renames.resize(changes.changes.size());
  std::atomic<size_t> next{0};
  Staging made[2];
  const bool many = changes.changes.size() > kManyFiles;
  // The disk begins to write while the second half is staged; what is left for SyncStaged is less.
  const size_t half = many ? changes.changes.size() / 2 : SIZE_MAX;
  std::thread flush;
  absl::Status flushed;
  const auto work = [&](Staging* mine) -> absl::Status {
    for (size_t c = next++; c < changes.changes.size(); c = next++) {
      if (c == half) {
        flush = std::thread([&] {
          if (!RB_PLANTED_BUG("no-fsync-of-files")) flushed = SyncFilesystem(staging.get(), "the staging folder");
        });
      }
      absl::Status done = c % 64 == 0 ? CheckCancelled() : absl::OkStatus();
      if (done.ok()) {
        done = StageChange(staging.get(), live, manifest, changes.changes[c], StagedName(c), mine, &intent->renames[c]);
      }
      if (!done.ok()) {
        next = changes.changes.size();
        return done;
      }
    }
    return absl::OkStatus();
  };
  // The names of a linked file are made by one thread: it has to know which came first.
  const bool may_share = std::none_of(manifest.entries.begin(), manifest.entries.end(),
                                      [](const Entry& entry) { return entry.hard_link_group != 0; });
  absl::Status staged;
  if (many) {
    absl::Status beside;
    std::thread second([&] {
      beside = meanwhile();
      if (beside.ok() && may_share) beside = work(&made[1]);
    });
    staged = work(&made[0]);
    second.join();
    if (flush.joinable()) flush.join();
    RB_RETURN_IF_ERROR(beside);
    RB_RETURN_IF_ERROR(flushed);
  } else {
    RB_RETURN_IF_ERROR(meanwhile());
    staged = work(&made[0]);
  }
  RB_RETURN_IF_ERROR(staged);
  for (Staging& each : made) {
    std::move(each.healed.begin(), each.healed.end(), std::back_inserter(prepared->healed));
  }
  times->write = options_.clock->Monotonic() - begin;
  return absl::OkStatus();
}

absl::Status EngineImpl::SyncStaged(const Intent& intent) {
  RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenStagingRoot());
  RB_ASSIGN_OR_RETURN(const UniqueFd staging, OpenFolderBeneath(root.get(), intent.staging_name));
  if (intent.renames.size() > kManyFiles) {
    if (RB_PLANTED_BUG("no-fsync-of-files")) return absl::OkStatus();
    return SyncFilesystem(staging.get(), "the staging folder");
  }
  for (const PlannedRename& rename : intent.renames) {
    if (rename.new_inode != 0) RB_RETURN_IF_ERROR(SyncBeneath(staging.get(), rename.staged_name));
  }
  RB_RETURN_IF_ERROR(SyncFd(staging.get(), "the staging folder"));
  RB_RETURN_IF_ERROR(SyncFd(root.get(), "the staging folder's parent"));
  // Its own name, where this operation was the first to need it.
  RB_ASSIGN_OR_RETURN(const std::string path, StagingRoot());
  return SyncFolder(path.substr(0, path.rfind('/')).empty() ? "/" : path.substr(0, path.rfind('/')));
}

absl::Status EngineImpl::StageChange(int staging, const Snapshot& live, const Manifest& manifest, const Change& change,
                                     const std::string& staged_name, Staging* made, PlannedRename* rename) {
  rename->kind = change.kind;
  rename->path = change.path;
  if (change.kind != Change::Kind::kAdd) {
    rename->old_inode = live.live.entries[change.live_index].inode;
    rename->old_ctime_ns = live.live.entries[change.live_index].ctime_ns;
  }
  if (change.kind == Change::Kind::kAttributes) {
    rename->old_attributes = live.live.entries[change.live_index].entry.attributes;
    rename->new_attributes = manifest.entries[change.target_index].attributes;
    return absl::OkStatus();
  }
  rename->staged_name = staged_name;
  if (change.kind == Change::Kind::kRemove) return absl::OkStatus();
  const Entry& top = manifest.entries[change.target_index];
  if (change.kind == Change::Kind::kExchange) {
    const Entry& old = live.live.entries[change.live_index].entry;
    if (old.type == EntryType::kFolder) rename->old_attributes = old.attributes;
    if (top.type == EntryType::kFolder) rename->new_attributes = top.attributes;
  }
  RB_RETURN_IF_ERROR(StageEntry(staging, staged_name, top, made));
  std::vector<std::pair<std::string, const Entry*>> folders;
  if (top.type == EntryType::kFolder) folders.emplace_back(staged_name, &top);
  for (const size_t index : change.staged_below) {
    const Entry& entry = manifest.entries[index];
    const std::string name = absl::StrCat(staged_name, entry.path.substr(top.path.size()));
    RB_RETURN_IF_ERROR(StageEntry(staging, name, entry, made));
    if (entry.type == EntryType::kFolder) folders.emplace_back(name, &entry);
  }
  // Filling a folder changes its time: attributes come last, deepest first.
  for (auto folder = folders.rbegin(); folder != folders.rend(); ++folder) {
    RB_ASSIGN_OR_RETURN(const Place place, LocateBeneath(staging, folder->first));
    RB_RETURN_IF_ERROR(ApplyAttributes(place.parent.get(), place.name, EntryType::kFolder, folder->second->attributes,
                                       Printable(folder->second->path)));
  }
  struct stat info {};
  if (fstatat(staging, staged_name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return ErrnoStatus(errno, absl::StrCat("look at staged ", Printable(change.path)));
  }
  rename->new_inode = info.st_ino;
  return absl::OkStatus();
}

absl::Status EngineImpl::SyncBeneath(int parent, const std::string& name) {
  if (RB_PLANTED_BUG("no-fsync-of-files")) return absl::OkStatus();
  struct stat info {};
  if (fstatat(parent, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return ErrnoStatus(errno, "look at staging");
  if (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) return absl::OkStatus();  // its folder holds all of it
  UniqueFd fd(openat(parent, name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open staged ", Printable(name)));
  if (S_ISDIR(info.st_mode)) {
    RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(fd.get()));
    for (const std::string& child : names) RB_RETURN_IF_ERROR(SyncBeneath(fd.get(), child));
  }
  return SyncFd(fd.get(), Printable(name));
}

absl::Status EngineImpl::StageEntry(int root, const std::string& name, const Entry& entry, Staging* made) {
  const std::string shown = Printable(entry.path);
  Place place;
  place.name = name;
  if (absl::StrContains(name, '/')) {
    RB_ASSIGN_OR_RETURN(place, LocateBeneath(root, name));
  }
  const int parent = place.parent.valid() ? place.parent.get() : root;
  if (entry.type == EntryType::kFolder) return MakeFolderAt(parent, place.name, 0700, shown);
  if (entry.hard_link_group != 0) {
    const auto [first, is_first] = made->linked.try_emplace(entry.hard_link_group, name);
    if (!is_first) {
      RB_ASSIGN_OR_RETURN(const Place from, LocateBeneath(root, first->second));
      RB_RETURN_IF_ERROR(CheckFault("link", shown));
      if (linkat(from.parent.get(), from.name.c_str(), parent, place.name.c_str(), 0) != 0) {
        return ErrnoStatus(errno, absl::StrCat("link ", shown));
      }
      return absl::OkStatus();
    }
  }
  if (entry.type == EntryType::kSymlink) {
    RB_RETURN_IF_ERROR(CheckFault("symlink", shown));
    if (symlinkat(entry.link_target->c_str(), parent, place.name.c_str()) != 0) {
      return ErrnoStatus(errno, absl::StrCat("make link ", shown));
    }
    return ApplyAttributes(parent, place.name, entry.type, entry.attributes, shown);
  }
  if (entry.type == EntryType::kFifo) {
    RB_RETURN_IF_ERROR(CheckFault("mkfifo", shown));
    if (mkfifoat(parent, place.name.c_str(), 0600) != 0) return ErrnoStatus(errno, absl::StrCat("make fifo ", shown));
    return ApplyAttributes(parent, place.name, entry.type, entry.attributes, shown);
  }
  RB_ASSIGN_OR_RETURN(const UniqueFd fd, CreateFileAt(parent, place.name, shown));
  // First, so that xfs does not allocate ahead into the holes.
  if (entry.sparse && ftruncate(fd.get(), static_cast<off_t>(entry.size)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set size of ", shown));
  }
  uint64_t written = 0;
  for (const Digest& chunk : entry.chunks) {
    RB_ASSIGN_OR_RETURN(const std::string content, GetOrHeal(chunk, entry, &made->healed));
    RB_RETURN_IF_ERROR(WriteSparsely(fd.get(), written, content, entry.sparse, shown));
    written += content.size();
  }
  if (written != entry.size)
    return absl::DataLossError(absl::StrCat(shown, " has another size than its manifest says"));
  return ApplyAttributesToNewFile(fd.get(), entry.attributes, shown);
}

absl::Status EngineImpl::WriteSparsely(int fd, uint64_t offset, absl::string_view content, bool sparse,
                                       const std::string& shown) {
  if (!sparse) return WriteToFile(fd, content, shown);
  static constexpr size_t kBlock = 4096;
  // Blocks of the file, not of the chunk: a chunk is cut anywhere.
  absl::string_view block;
  for (size_t at = 0; at < content.size(); at += block.size()) {
    block = content.substr(at, kBlock - (offset + at) % kBlock);
    const bool zero = std::all_of(block.begin(), block.end(), [](char c) { return c == '\0'; });
    if (!zero) {
      RB_RETURN_IF_ERROR(WriteToFile(fd, block, shown));
    } else if (lseek(fd, static_cast<off_t>(block.size()), SEEK_CUR) < 0) {
      return ErrnoStatus(errno, absl::StrCat("seek in ", shown));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> EngineImpl::GetOrHeal(const Digest& chunk, const Entry& entry,
                                                  std::vector<std::string>* healed) {
  absl::Status damage;
  absl::StatusOr<std::string> content = store_->Get(chunk, &damage);
  if (content.ok() && damage.ok()) return content;
  std::string from = "another copy";
  if (!content.ok()) {
    damage = content.status();
    if (!absl::IsDataLoss(damage) && !absl::IsNotFound(damage)) return damage;
    RB_ASSIGN_OR_RETURN(std::optional<std::string> live, FindInLiveTree(chunk, entry, &from));
    if (!live.has_value()) return DescribeLoss(chunk, damage);
    content = *std::move(live);
  }
  const std::unique_ptr<ObjectStore::Writer> writer = store_->NewWriter();
  RB_RETURN_IF_ERROR(writer->Put(chunk, *content));
  RB_RETURN_IF_ERROR(writer->Finish());
  if (healed->size() < kFindingsKept) healed->push_back(absl::StrCat(damage.message(), "; healed from ", from));
  return content;
}

absl::StatusOr<std::optional<std::string>> EngineImpl::FindInLiveTree(const Digest& chunk, const Entry& entry,
                                                                      std::string* found_in) {
  static constexpr size_t kMostCandidates = 256;
  std::vector<std::string> candidates = {entry.path};
  StatCacheReader cache = files_.ReadStatCache();
  for (const CachedContent* cached = cache.Next(); cached != nullptr; cached = cache.Next()) {
    const ChunkList& chunks = cached->chunks;
    if (std::find(chunks.begin(), chunks.end(), chunk) != chunks.end()) candidates.push_back(cached->path);
  }
  RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenTree());
  RB_ASSIGN_OR_RETURN(const LiveTree live, WalkTree(root.get(), tree_, true));
  for (const LiveEntry& each : live.entries) {
    if (each.entry.type == EntryType::kFile && each.entry.size == entry.size) candidates.push_back(each.entry.path);
  }
  if (candidates.size() > kMostCandidates) candidates.resize(kMostCandidates);
  std::string buffer;
  for (const std::string& path : candidates) {
    RB_RETURN_IF_ERROR(CheckCancelled());
    struct stat info {};
    const absl::StatusOr<UniqueFd> fd = OpenLiveFile(root.get(), path, O_RDONLY | O_NONBLOCK | O_NOCTTY, &info);
    if (!fd.ok()) continue;
    std::optional<std::string> content;
    const absl::Status read = ReadChunks(fd->get(), Printable(path), static_cast<uint64_t>(info.st_size), &buffer,
                                         [&](absl::string_view each) -> absl::Status {
                                           if (Sha256Of(each) != chunk) return absl::OkStatus();
                                           content = std::string(each);
                                           return absl::AlreadyExistsError("found");
                                         });
    if (absl::IsCancelled(read)) return read;
    if (content.has_value()) {
      *found_in = absl::StrCat("the live tree's ", Printable(path));
      return content;
    }
  }
  return std::optional<std::string>();
}

absl::Status EngineImpl::DescribeLoss(const Digest& chunk, const absl::Status& loss) {
  std::vector<std::string> hurt;
  const absl::StatusOr<std::vector<Release>> releases = files_.List(nullptr);
  if (releases.ok()) {
    for (const Release& release : *releases) {
      const absl::StatusOr<Manifest> manifest = files_.LoadManifest(release);
      if (!manifest.ok()) continue;
      bool needs = false;
      manifest->ForEachChunk([&](const Digest& each) { needs = needs || each == chunk; });
      if (needs) hurt.push_back(release.name);
    }
  }
  return absl::DataLossError(
      absl::StrCat(loss.message(), ". It is needed by: ", absl::StrJoin(hurt, ", "), ". The tree was not touched"));
}

}  // namespace rb::agent
