#include "agent/core/engine/engine.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <malloc.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <map>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/changes.h"
#include "agent/core/engine/chunker.h"
#include "agent/core/engine/database_dumps.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/release_files.h"
#include "agent/core/engine/text_diff.h"
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

constexpr absl::string_view kCommitBegun = "commit-begun";
constexpr absl::string_view kCommitDone = "commit-done";
constexpr absl::string_view kUndoBegun = "undo-begun";
// Followed by the name of the database.
constexpr absl::string_view kRestoreBegun = "restore-begun ";
// Files up to this size are one object; larger ones are cut by content.
constexpr uint64_t kWholeFileBytes = 1 << 20;
// A file whose ctime is this close to when it was read may change again without its ctime changing: it is read again
// next time. Kernel timestamps move in steps of up to 10 ms.
constexpr int64_t kRacyNs = 20'000'000;
constexpr size_t kLeastReadBytes = 16 << 10;
// Left free on the tree's filesystem beyond what is staged.
constexpr uint64_t kSpareBytes = 16 << 20;
// From this many staged files on, one syncfs costs less than a flush of each.
constexpr size_t kManyFiles = 64;
constexpr size_t kManyEntries = 100000;
constexpr size_t kConfigDiffBytes = 16 << 10;
constexpr size_t kFindingsKept = 20;
constexpr size_t kSamplesKept = 20;

std::string StagedName(size_t index) { return absl::StrCat("e", index); }

class EngineImpl final : public Engine {
 public:
  EngineImpl(Options options, ServiceTree tree, std::unique_ptr<ObjectStore> store, ReleaseFiles files)
      : options_(std::move(options)), tree_(std::move(tree)), store_(std::move(store)), files_(std::move(files)) {}

  absl::StatusOr<Release> Capture(const CaptureRequest& request) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
    RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession());
    RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(true, false, false));
    RB_RETURN_IF_ERROR(DumpDatabases(&live));
    return RecordRelease(&live, request, true);
  }

  absl::StatusOr<std::vector<Release>> Releases() override { return files_.List(nullptr); }
  absl::StatusOr<Current> GetCurrent() override { return files_.LoadCurrent(); }

  absl::StatusOr<Current> CheckDrift() override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(Current current, files_.LoadCurrent());
    if (current.release_name.empty()) return current;
    RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
    RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession());
    RB_ASSIGN_OR_RETURN(const Release release, files_.Load(current.release_name));
    RB_ASSIGN_OR_RETURN(const Manifest manifest, files_.LoadManifest(release));
    RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(false, true, false));
    RB_RETURN_IF_ERROR(Settle(&live));
    RB_ASSIGN_OR_RETURN(const ChangeSet changes, ComputeChanges(live.live, manifest, Rules(Components(), nullptr)));
    const bool drifted = !changes.delta.empty();
    if (drifted != current.drifted) {
      current.drifted = drifted;
      RB_RETURN_IF_ERROR(files_.SaveCurrent(current));
    }
    return current;
  }

  absl::StatusOr<OpenTransaction> GetOpenTransaction() override {
    RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
    OpenTransaction open;
    if (!journal.present) return open;
    open.phase = journal.commit_done ? TransactionPhase::kCommitted : TransactionPhase::kPrepared;
    open.is_torn = journal.undo_begun || (journal.commit_begun && !journal.commit_done);
    open.operation_id = journal.intent.operation_id;
    open.target_commit = journal.intent.target_commit;
    open.target_version = journal.intent.target_version;
    open.target_release = journal.intent.target_release;
    open.replaced_release = journal.intent.replaced_release;
    return open;
  }

  std::vector<std::string> Problems(const std::optional<Delta>& delta) override {
    MutexLock lock(mutex_);
    return ProblemsLocked(delta);
  }

  absl::StatusOr<Delta> Compare(const EngineTarget& target, const Components& components) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
    RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession());
    RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(false, true, components.data));
    RB_RETURN_IF_ERROR(Settle(&live));
    RB_ASSIGN_OR_RETURN(const Manifest manifest, LoadTargetManifest(target, live));
    RB_ASSIGN_OR_RETURN(const std::optional<std::vector<std::string>> baseline, BaselinePaths(target));
    RB_ASSIGN_OR_RETURN(ChangeSet changes, ComputeChanges(live.live, manifest, Rules(components, &baseline)));
    RB_RETURN_IF_ERROR(AddDatabases(target, components, manifest, &changes.delta));
    changes.delta.config_diff = ConfigDiff(changes, live, manifest);
    RB_RETURN_IF_ERROR(AddDataLoss(target, components, live, manifest, &changes.delta));
    return std::move(changes.delta);
  }

  absl::StatusOr<PreparedTransaction> Prepare(const std::string& operation_id, const EngineTarget& target,
                                              const Components& components, const std::string& reason) override {
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
    RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession());
    Progress("capturing");
    absl::StatusOr<Manifest> stored = absl::UnknownError("not loaded");
    const bool with_sidecars = components.data && !RB_PLANTED_BUG("sidecars-left");
    RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(true, true, with_sidecars, [&] {
                          if (target.snapshot == nullptr) stored = LoadReleaseManifest(target.release_name);
                        }));
    PreparedTransaction prepared;
    CaptureRequest request;
    request.cause = Cause::kReplaced;
    request.operation_id = operation_id;
    request.reason = live.damage.empty() ? reason : absl::StrCat(reason, " [captured as it was: ", live.damage, "]");
    if (target.snapshot != nullptr) stored = ImportSnapshot(target, live);
    RB_ASSIGN_OR_RETURN(const Manifest manifest, std::move(stored));
    RB_ASSIGN_OR_RETURN(const std::optional<std::vector<std::string>> baseline, BaselinePaths(target));
    RB_ASSIGN_OR_RETURN(ChangeSet changes, ComputeChanges(live.live, manifest, Rules(components, &baseline)));
    RB_RETURN_IF_ERROR(AddDatabases(target, components, manifest, &changes.delta));
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
    if (staged.ok()) {
      RB_FAILPOINT("engine.prepare.after-capture");
      prepared.replaced = *std::move(replaced);
      prepared.delta.config_diff = ConfigDiff(changes, live, manifest);
      intent.replaced_release = prepared.replaced.name;
      if (target.release_name.empty()) {
        // A release has its manifest already, and Prune keeps it while this is open.
        intent.target_manifest_file = intent.staging_name;
        staged = files_.SaveTarget(intent.target_manifest_file, EncodeManifest(manifest));
      }
    }
    if (staged.ok()) {
      RB_FAILPOINT("engine.prepare.before-intent");
      staged = record->Append(EncodeIntent(intent));
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

  absl::StatusOr<std::string> ReadPrepared(const std::string& operation_id, const std::string& path) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(const Manifest manifest, PreparedManifest(operation_id));
    const Entry* entry = Find(manifest, path);
    if (entry == nullptr || entry->type != EntryType::kFile) {
      return absl::NotFoundError(absl::StrCat("the target has no file ", Printable(path)));
    }
    return ReadContent(*entry, 16 << 20);
  }

  absl::StatusOr<std::vector<std::string>> ListPrepared(const std::string& operation_id,
                                                        absl::string_view glob) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(const Manifest manifest, PreparedManifest(operation_id));
    std::vector<std::string> paths;
    for (const Entry& entry : manifest.entries) {
      if (entry.type == EntryType::kFile && GlobMatches(glob, entry.path)) paths.push_back(entry.path);
    }
    return paths;
  }

  absl::StatusOr<EngineTimes> Commit(const std::string& operation_id) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
    RB_ASSIGN_OR_RETURN(Journal journal, ReadJournal());
    if (!journal.present || journal.intent.operation_id != operation_id) {
      return absl::FailedPreconditionError(
          absl::StrCat("operation ", operation_id, " is not prepared on ", tree_.service, ". Nothing was changed"));
    }
    EngineTimes times;
    if (journal.commit_done) return times;
    const absl::Duration begin = options_.clock->Monotonic();
    RB_ASSIGN_OR_RETURN(const Handles handles, OpenHandles(journal.intent));
    TransactionFolders folders(handles.tree.get(), handles.staging.get());
    if (!journal.commit_begun) {
      RB_ASSIGN_OR_RETURN(
          const bool noted,
          NoteChangedData([this](absl::string_view path) { return ComponentOf(tree_, path) == Component::kData; },
                          RB_PLANTED_BUG("sidecars-left") ? std::vector<std::string>() : tree_.sqlite_paths, folders,
                          &journal.intent));
      if (noted) RB_RETURN_IF_ERROR(Mark(EncodeIntent(journal.intent)));
      RB_RETURN_IF_ERROR(CheckUnchanged(journal.intent, folders));
      if (!RB_PLANTED_BUG("intent-after-swap")) RB_RETURN_IF_ERROR(Mark(kCommitBegun));
      RB_FAILPOINT("engine.commit.after-begin");
    }
    absl::Status applied = ApplyForward(journal.intent, folders);
    if (applied.ok()) applied = RestoreDatabases(journal.intent);
    if (!applied.ok()) {
      std::string brought_back;
      const absl::Status undone = UndoLocked(journal.intent, &brought_back);
      return Annotate(
          applied, undone.ok() ? absl::StrCat("the swap failed and was taken back; the tree is as it was", brought_back)
                               : absl::StrCat("the swap failed and could not be taken back (", undone.message(),
                                              "); type: rb-agent local recover ", tree_.service));
    }
    if (RB_PLANTED_BUG("intent-after-swap")) RB_RETURN_IF_ERROR(Mark(kCommitBegun));
    RB_FAILPOINT("engine.commit.before-done");
    RB_RETURN_IF_ERROR(Mark(kCommitDone));
    RB_FAILPOINT("engine.commit.after-done");
    times.total = options_.clock->Monotonic() - begin;
    return times;
  }

  absl::Status Undo(const std::string& operation_id) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
    RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
    if (!journal.present || journal.intent.operation_id != operation_id) return absl::OkStatus();
    if (!journal.commit_begun) return Discard(journal.intent);
    return UndoLocked(journal.intent, nullptr);
  }

  absl::StatusOr<Release> Keep(const std::string& operation_id, Cause cause, bool good, bool replaced_is_bad,
                               const std::string& reason) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
    if (const std::string kept = files_.KeptRelease(operation_id); !kept.empty()) {
      RB_ASSIGN_OR_RETURN(const Journal leftover, ReadJournal());
      if (leftover.present && leftover.intent.operation_id == operation_id)
        RB_RETURN_IF_ERROR(Discard(leftover.intent));
      return files_.Load(kept);
    }
    RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
    if (!journal.present || journal.intent.operation_id != operation_id || !journal.commit_done) {
      return absl::FailedPreconditionError(
          absl::StrCat("operation ", operation_id, " is not committed on ", tree_.service, ". Nothing was changed"));
    }
    // The tree may be mixed: only going on with the undo makes it whole.
    if (journal.undo_begun) {
      return absl::FailedPreconditionError(absl::StrCat("operation ", operation_id, " is being undone on ",
                                                        tree_.service, "; on this host type: rb-agent local recover ",
                                                        tree_.service));
    }
    const Intent& intent = journal.intent;
    Release release;
    if (intent.target_release.empty()) {
      RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession());
      RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(true, true, false));
      CaptureRequest request;
      request.cause = cause;
      request.commit = intent.target_commit;
      request.version = intent.target_version;
      request.operation_id = operation_id;
      request.reason = intent.reason;
      RB_ASSIGN_OR_RETURN(release, RecordRelease(&live, request, false));
    } else {
      RB_ASSIGN_OR_RETURN(release, files_.Load(intent.target_release));
    }
    if (good && release.standing != Standing::kGood) {
      release.standing = Standing::kGood;
      RB_RETURN_IF_ERROR(files_.Update(release));
    }
    if (replaced_is_bad && intent.replaced_release != release.name) {
      RB_RETURN_IF_ERROR(MarkBad(intent.replaced_release, release, reason));
    }
    Current current;
    current.release_name = release.name;
    current.commit = intent.target_commit;
    current.version = intent.target_version;
    RB_RETURN_IF_ERROR(files_.SaveCurrent(current));
    RB_RETURN_IF_ERROR(files_.SaveKept(operation_id, release.name));
    RB_FAILPOINT("engine.keep.before-discard");
    RB_RETURN_IF_ERROR(Discard(intent));
    return release;
  }

  absl::StatusOr<std::string> Recover() override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
    RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
    std::string said;
    if (journal.present && files_.KeptRelease(journal.intent.operation_id) != "") {
      RB_RETURN_IF_ERROR(Discard(journal.intent));
      said = absl::StrCat("finished keeping operation ", journal.intent.operation_id);
    } else if (journal.present && journal.undo_begun) {
      std::string brought_back;
      RB_RETURN_IF_ERROR(UndoLocked(journal.intent, &brought_back));
      said = absl::StrCat("finished undoing operation ", journal.intent.operation_id,
                          ": the tree is wholly what it was before it", brought_back);
    } else if (journal.present && journal.commit_begun && !journal.commit_done) {
      absl::Status applied = absl::OkStatus();
      {
        absl::StatusOr<Handles> handles = OpenHandles(journal.intent);
        applied = handles.status();
        if (applied.ok()) {
          TransactionFolders folders(handles->tree.get(), handles->staging.get());
          applied = ApplyForward(journal.intent, folders);
        }
      }
      if (applied.ok()) applied = RestoreDatabases(journal.intent);
      if (applied.ok()) {
        RB_RETURN_IF_ERROR(Mark(kCommitDone));
        said = absl::StrCat("completed the swap of operation ", journal.intent.operation_id,
                            ": the tree is wholly the new state");
        if (!journal.intent.databases.empty()) {
          absl::StrAppend(&said, "; ", DescribeDatabases(journal.intent.databases), " restored");
        }
      } else {
        std::string brought_back;
        RB_RETURN_IF_ERROR(Annotate(UndoLocked(journal.intent, &brought_back),
                                    absl::StrCat("the swap could not be completed (", applied.message(), ")")));
        said = absl::StrCat("took back the swap of operation ", journal.intent.operation_id, " (", applied.message(),
                            "): the tree is wholly what it was before it", brought_back);
      }
    } else if (!journal.present) {
      RB_RETURN_IF_ERROR(RemoveFileDurably(files_.JournalPath()));
      RB_RETURN_IF_ERROR(files_.RemoveTargets());
    }
    RB_RETURN_IF_ERROR(
        ClearStaging(journal.present && files_.KeptRelease(journal.intent.operation_id).empty() && !journal.undo_begun
                         ? journal.intent.staging_name
                         : ""));
    return said;
  }

  absl::StatusOr<ProofReport> Prove(const std::string& release_name) override {
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

  absl::Status SetStanding(const std::string& release_name, Standing standing, const std::string& reason) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(Release release, files_.Load(release_name));
    release.standing = standing;
    if (!reason.empty()) release.reason = reason;
    return files_.Update(release);
  }

  absl::Status SetPinned(const std::string& release_name, bool pinned) override {
    MutexLock lock(mutex_);
    RB_ASSIGN_OR_RETURN(Release release, files_.Load(release_name));
    release.pinned = pinned;
    return files_.Update(release);
  }

  absl::StatusOr<PruneReport> Prune(uint32_t keep_good, const std::vector<std::string>& also_keep) override {
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
    PruneReport report;
    uint32_t good = 0;
    bool proved = false;
    for (const Release& release : releases) {  // newest first
      bool keep = release.pinned || release.name == current.release_name ||
                  std::find(also_keep.begin(), also_keep.end(), release.name) != also_keep.end();
      if (journal.present &&
          (release.name == journal.intent.replaced_release || release.name == journal.intent.target_release)) {
        keep = true;
      }
      if (release.durability == Durability::kProved && !proved) keep = true;
      if (release.standing == Standing::kGood && good < keep_good) {
        keep = true;
        ++good;
      }
      // What was taken after the oldest good one that is kept is what people look for when something went wrong.
      if (good < keep_good) keep = true;
      if (keep) {
        proved = proved || release.durability == Durability::kProved;
        continue;
      }
      RB_RETURN_IF_ERROR(files_.Remove(release.name));
      report.removed.push_back(release.name);
    }
    RB_FAILPOINT("engine.prune.before-collect");
    absl::StatusOr<uint64_t> freed = store_->CollectGarbage([this] { return LiveObjects(); });
    if (freed.ok()) report.bytes_freed = *freed;
    if (!freed.ok() && !absl::IsUnavailable(freed.status())) return freed.status();
    return report;
  }

 private:
  // What a database looked like when it was copied; the copy's size is that of the entry.
  struct DatabaseFacts {
    uint64_t file_size = 0;
    int64_t log_mtime_ns = 0;
    uint64_t log_size = 0;
  };

  struct Snapshot {
    LiveTree live;
    std::string damage;  // a database that could not be copied as one, for a person
    std::vector<DatabaseDump> dumps;
    EngineTimes times;
    // Content that was read and is not durable yet, and what is to be remembered of it: see Settle.
    std::unique_ptr<ObjectStore::Writer> writer;
    std::map<std::string, DatabaseFacts> databases;
    bool cache_is_stale = false;

    // Databases' journal files are part of a release only when there is no whole copy.
    bool Holds(const ServiceTree& tree, const LiveEntry& entry) const {
      return !damage.empty() || !IsDatabaseSidecar(tree, entry.entry.path);
    }
  };

  struct Journal {
    bool present = false;
    Intent intent;
    bool commit_begun = false;
    bool commit_done = false;
    bool undo_begun = false;
    std::vector<std::string> restores_begun;  // databases, in order, without repeats
  };

  struct Handles {
    UniqueFd tree;
    UniqueFd staging;
  };

  absl::StatusOr<FileLock> LockService() const { return FileLock::TryAcquire(files_.folder() + "/lock"); }

  void Progress(absl::string_view text) const {
    if (options_.on_progress) options_.on_progress(text);
  }
  absl::Status CheckCancelled() const {
    if (options_.is_cancelled && options_.is_cancelled()) {
      return absl::CancelledError("stopped as asked; the tree was not touched");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<UniqueFd> OpenTree() const {
    UniqueFd fd(open(tree_.tree.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open the tree ", tree_.tree));
    return fd;
  }

  // Beside the tree; inside it where the tree is a mount, since renames do not cross filesystems.
  absl::StatusOr<std::string> StagingRoot() const {
    const size_t slash = tree_.tree.rfind('/');
    const std::string parent = slash == 0 ? "/" : tree_.tree.substr(0, slash);
    struct stat tree_info {};
    struct stat parent_info {};
    if (stat(tree_.tree.c_str(), &tree_info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", tree_.tree));
    if (stat(parent.c_str(), &parent_info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", parent));
    if (tree_info.st_dev != parent_info.st_dev) return absl::StrCat(tree_.tree, "/.rb-staging");
    return absl::StrCat(parent == "/" ? "" : parent, "/.rb-staging-", tree_.service);
  }

  // ext4 passes over inodes that were freed in the last minutes, one by one, for each file that it makes: where an
  // operation has just been kept, the next would pay for all that the last one has removed. So each operation's folder
  // gets a block group of its own. Other filesystems know nothing of it, and need nothing of it.
  static void SpreadFolders(int folder) {
    int flags = 0;
    if (ioctl(folder, FS_IOC_GETFLAGS, &flags) != 0) return;
    flags |= FS_TOPDIR_FL;
    [[maybe_unused]] const int ignored = ioctl(folder, FS_IOC_SETFLAGS, &flags);
  }

  absl::StatusOr<UniqueFd> OpenStagingRoot() const {
    RB_ASSIGN_OR_RETURN(const std::string path, StagingRoot());
    const bool is_new = mkdir(path.c_str(), 0700) == 0;
    if (!is_new && errno != EEXIST) return ErrnoStatus(errno, absl::StrCat("mkdir ", path));
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open the staging folder ", path));
    if (is_new) SpreadFolders(fd.get());
    struct stat info {};
    if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", path));
    if (info.st_uid != geteuid() || (info.st_mode & 077) != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(path,
                       " belongs to someone else or is open to others: it was not made by this agent. Nothing was "
                       "changed. Look at it, then remove it"));
    }
    // The folder it stands in may pass one on; what is staged has the attributes it is given, and no others.
    if (fremovexattr(fd.get(), "system.posix_acl_default") != 0 && errno != ENODATA && errno != ENOTSUP) {
      return ErrnoStatus(errno, absl::StrCat("remove the default ACL of ", path));
    }
    return fd;
  }

  absl::StatusOr<Handles> OpenHandles(const Intent& intent) const {
    Handles handles;
    RB_ASSIGN_OR_RETURN(handles.tree, OpenTree());
    RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenStagingRoot());
    RB_ASSIGN_OR_RETURN(handles.staging, OpenFolderBeneath(root.get(), intent.staging_name));
    return handles;
  }

  absl::StatusOr<Journal> ReadJournal() const {
    Journal journal;
    const absl::StatusOr<std::string> content = ReadFile(files_.JournalPath(), size_t{1} << 30);
    if (absl::IsNotFound(content.status())) return journal;
    RB_RETURN_IF_ERROR(content.status());
    size_t valid_bytes = 0;
    const std::vector<std::string> records = ParseRecords(*content, &valid_bytes);
    if (records.empty()) return journal;  // a crash before the intent was whole: nothing was promised
    RB_ASSIGN_OR_RETURN(journal.intent, DecodeIntent(records[0]));
    journal.present = true;
    for (size_t i = 1; i < records.size(); ++i) {
      if (IsIntent(records[i])) {
        RB_ASSIGN_OR_RETURN(journal.intent, DecodeIntent(records[i]));  // as Commit found things
      }
      if (records[i] == kCommitBegun) journal.commit_begun = true;
      if (records[i] == kCommitDone) journal.commit_done = true;
      if (records[i] == kUndoBegun) journal.undo_begun = true;
      if (absl::string_view name = records[i]; absl::ConsumePrefix(&name, kRestoreBegun)) {
        std::vector<std::string>& begun = journal.restores_begun;
        if (std::find(begun.begin(), begun.end(), name) == begun.end()) begun.emplace_back(name);
      }
    }
    return journal;
  }

  // In a journal that has an intent. All that is in it is durable once this returns OK.
  absl::Status Mark(absl::string_view record) {
    std::vector<std::string> records;
    RB_ASSIGN_OR_RETURN(const std::unique_ptr<RecordJournal> journal,
                        RecordJournal::Open(files_.JournalPath(), &records, RecordJournal::Flush::kWithNextAppend));
    return journal->Append(record);
  }

  // `brought_back`, unless null, gets what was done about databases, for a person: "" or "; database main …".
  absl::Status UndoLocked(const Intent& intent, std::string* brought_back) {
    RB_RETURN_IF_ERROR(Mark(kUndoBegun));
    RB_FAILPOINT("engine.undo.after-begin");
    {
      RB_ASSIGN_OR_RETURN(const Handles handles, OpenHandles(intent));
      TransactionFolders folders(handles.tree.get(), handles.staging.get());
      RB_RETURN_IF_ERROR(ApplyBackward(intent, folders));
    }
    RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
    if (!journal.restores_begun.empty()) {
      RB_RETURN_IF_ERROR(BringDatabasesBack(intent, journal.restores_begun));
      if (brought_back != nullptr) {
        *brought_back = absl::StrCat("; ", DescribeDatabases(journal.restores_begun),
                                     " restored to what it held when the operation was prepared");
      }
    }
    return Discard(intent);
  }

  // What going back costs: time, and rows. What cannot be counted is left out.
  absl::Status AddDataLoss(const EngineTarget& target, const Components& components, const Snapshot& live,
                           const Manifest& manifest, Delta* delta) {
    if (!components.data || target.release_name.empty()) return absl::OkStatus();
    RB_ASSIGN_OR_RETURN(const Release release, files_.Load(target.release_name));
    delta->data_age = std::max(absl::ZeroDuration(), options_.clock->Now() - release.captured_at);
    if (options_.database_copier == nullptr) return absl::OkStatus();
    for (const std::string& path : tree_.sqlite_paths) {
      const Entry* now = Find(live.live, path);
      const Entry* then = Find(manifest, path);
      if (now == nullptr || then == nullptr || now->SameContent(*then) || then->type != EntryType::kFile) continue;
      const std::string copy = absl::StrCat(files_.folder(), "/database-copy-", RandomHex(4));
      std::map<std::string, std::pair<uint64_t, uint64_t>> rows;
      if (options_.database_copier->Copy(absl::StrCat(tree_.tree, "/", path), copy).ok()) {
        const auto counted = options_.database_copier->CountRows(copy);
        if (counted.ok()) {
          for (const auto& [table, count] : *counted) rows[table].first = count;
        }
      }
      unlink(copy.c_str());
      absl::StatusOr<std::map<std::string, uint64_t>> counted = absl::UnknownError("");
      if (const absl::Status written = WriteContentTo(*then, copy); written.ok()) {
        counted = options_.database_copier->CountRows(copy);
      } else if (absl::IsCancelled(written)) {
        return written;
      }
      unlink(copy.c_str());
      if (!counted.ok() || rows.empty()) continue;
      for (const auto& [table, count] : *counted) rows[table].second = count;
      for (const auto& [table, count] : rows) {
        if (count.first == count.second || delta->table_rows.size() == kSamplesKept) continue;
        delta->table_rows.push_back({path, table, count.first, count.second});
      }
    }
    return absl::OkStatus();
  }

  absl::Status WriteContentTo(const Entry& entry, const std::string& path) {
    const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("create ", path));
    for (const Digest& chunk : entry.chunks) {
      RB_RETURN_IF_ERROR(CheckCancelled());
      RB_ASSIGN_OR_RETURN(const std::string content, store_->Get(chunk));
      RB_RETURN_IF_ERROR(WriteAll(fd.get(), content, path));
    }
    return absl::OkStatus();
  }

  // ---- databases that are not files of the tree

  absl::Status DumpDatabases(Snapshot* snapshot) {
    if (options_.database_hooks == nullptr) return absl::OkStatus();
    Progress("dumping databases");
    RB_ASSIGN_OR_RETURN(snapshot->dumps, TakeDumps(options_.database_hooks, store_.get(), snapshot->writer.get(),
                                                   [this] { return CheckCancelled(); }));
    return absl::OkStatus();
  }

  // Adds what is going to be restored. FAILED_PRECONDITION when data is asked for and the target does not hold it: the
  // old code with the new data is not what was asked for.
  absl::Status AddDatabases(const EngineTarget& target, const Components& components, const Manifest& manifest,
                            Delta* delta) const {
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

  // What to choose instead.
  std::string ReleasesWithDumps() const {
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

  // Restores the databases of an intent from the target. What a crash has interrupted is done again from its start.
  absl::Status RestoreDatabases(const Intent& intent) {
    for (const std::string& name : intent.databases) {
      if (!RB_PLANTED_BUG("restore-not-marked")) RB_RETURN_IF_ERROR(Mark(absl::StrCat(kRestoreBegun, name)));
      RB_FAILPOINT("engine.restore.after-begin");
      RB_RETURN_IF_ERROR(RestoreFrom(intent.target_release, name));
    }
    if (!intent.databases.empty()) RB_FAILPOINT("engine.restore.after-end");
    return absl::OkStatus();
  }

  // One failure does not stop the rest: each of them is wanted back.
  absl::Status BringDatabasesBack(const Intent& intent, const std::vector<std::string>& names) {
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

  absl::Status RestoreFrom(const std::string& release_name, const std::string& name) {
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

  absl::Status ProveDumps(const Manifest& manifest, ProofReport* report) {
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

  // Forgets the transaction: the journal first, so that nothing refers to what is then removed.
  absl::Status Discard(const Intent& intent) {
    RB_RETURN_IF_ERROR(RemoveFileDurably(files_.JournalPath()));
    RB_RETURN_IF_ERROR(files_.RemoveTargets());
    absl::StatusOr<UniqueFd> root = OpenStagingRoot();
    RB_RETURN_IF_ERROR(root.status());
    return RemoveTreeAt(root->get(), intent.staging_name);
  }

  // Removes what a crash has left in staging, but for `keep`.
  absl::Status ClearStaging(const std::string& keep) {
    struct stat info {};
    if (stat(tree_.tree.c_str(), &info) != 0) return absl::OkStatus();
    RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenStagingRoot());
    RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(root.get()));
    for (const std::string& name : names) {
      if (name != keep) RB_RETURN_IF_ERROR(RemoveTreeAt(root.get(), name));
    }
    return absl::OkStatus();
  }

  // Empty when there is enough for what is to be staged, and some.
  std::string LackOfSpace(const Delta& delta) const {
    const absl::StatusOr<UniqueFd> staging = OpenStagingRoot();
    if (!staging.ok()) return std::string(staging.status().message());
    struct statvfs space {};
    if (fstatvfs(staging->get(), &space) != 0) return "";
    const uint64_t free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
    if (free_bytes >= delta.bytes_to_stage + kSpareBytes) return "";
    return absl::StrCat("not enough space beside ", tree_.tree, ": ", FormatBytes(delta.bytes_to_stage + kSpareBytes),
                        " are needed, ", FormatBytes(free_bytes), " are free");
  }

  std::vector<std::string> ProblemsLocked(const std::optional<Delta>& delta) {
    std::vector<std::string> problems;
    absl::StatusOr<UniqueFd> tree = OpenTree();
    if (!tree.ok()) {
      problems.push_back(absl::StrCat(tree.status().message(), ". Make the folder, or mend `tree` of ", tree_.service));
      return problems;
    }
    absl::StatusOr<std::vector<std::string>> mounts = MountsBelow(tree_.tree);
    if (!mounts.ok()) {
      problems.emplace_back(mounts.status().message());
    } else {
      for (const std::string& mount : *mounts) {
        if (!IsIgnored(tree_, mount)) {
          problems.push_back(absl::StrCat("a mount lies inside the tree at ", Printable(mount),
                                          "; unmount it, or add it to `ignore` of ", tree_.service));
        }
      }
    }
    absl::StatusOr<UniqueFd> staging = OpenStagingRoot();
    if (!staging.ok()) {
      problems.emplace_back(staging.status().message());
      return problems;
    }
    if (const absl::Status exchange = TryExchange(staging->get()); !exchange.ok()) {
      problems.push_back(
          absl::StrCat("the filesystem of ", tree_.tree, " cannot exchange files: ", exchange.message()));
    }
    if (delta.has_value()) {
      if (std::string lack = LackOfSpace(*delta); !lack.empty()) problems.push_back(std::move(lack));
    }
    return problems;
  }

  static absl::Status TryExchange(int staging) {
    const std::string a = absl::StrCat("try-", RandomHex(4));
    const std::string b = absl::StrCat(a, "-2");
    absl::Status status = CreateFileAt(staging, a, a).status();
    if (status.ok()) status = CreateFileAt(staging, b, b).status();
    if (status.ok()) status = RenameBeneath(staging, a, staging, b, true, "two files in the staging folder");
    unlinkat(staging, a.c_str(), 0);
    unlinkat(staging, b.c_str(), 0);
    return status;
  }

  // Mount points below `path`, relative to it, from the kernel's table.
  static absl::StatusOr<std::vector<std::string>> MountsBelow(const std::string& path) {
    RB_ASSIGN_OR_RETURN(const std::string table, ReadFile("/proc/self/mountinfo"));
    std::vector<std::string> mounts;
    const std::string prefix = path + "/";
    for (const absl::string_view line : absl::StrSplit(table, '\n', absl::SkipEmpty())) {
      const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ');
      if (fields.size() > 4 && absl::StartsWith(fields[4], prefix)) {
        mounts.emplace_back(fields[4].substr(prefix.size()));
      }
    }
    std::sort(mounts.begin(), mounts.end());
    return mounts;
  }

  ChangeRules Rules(const Components& components, const std::optional<std::vector<std::string>>* baseline) const {
    ChangeRules rules;
    rules.tree = &tree_;
    rules.components = components;
    if (baseline == nullptr || !baseline->has_value()) {
      rules.is_removable = [](const std::string&) { return true; };
    } else {
      rules.is_removable = [paths = **baseline](const std::string& path) {
        // A folder goes when everything in it does; whether it does is decided by what it holds.
        if (std::binary_search(paths.begin(), paths.end(), path)) return true;
        const auto below = std::lower_bound(paths.begin(), paths.end(), path + "/");
        return below != paths.end() && IsBelow(*below, path);
      };
    }
    return rules;
  }

  // For a commit: paths that may go, sorted as strings. Absent for a release: everything may.
  absl::StatusOr<std::optional<std::vector<std::string>>> BaselinePaths(const EngineTarget& target) const {
    if (target.snapshot == nullptr) return std::optional<std::vector<std::string>>();
    std::vector<std::string> paths;
    if (target.baseline != nullptr) {
      RB_RETURN_IF_ERROR(target.baseline->ForEach([&](const SnapshotSource::Entry& entry) {
        paths.push_back(entry.path);
        return absl::OkStatus();
      }));
    }
    std::sort(paths.begin(), paths.end());
    return std::optional<std::vector<std::string>>(std::move(paths));
  }

  // ---- capture

  // `with_sidecars`: the live tree lists databases' journal files too, so that they can be replaced. Nothing that is
  // written is durable before Settle.
  // `meanwhile`, if any, is done on a second thread while this one compares with what was known, and reads.
  absl::StatusOr<Snapshot> TakeSnapshot(bool store_content, bool accept_damage, bool with_sidecars,
                                        const std::function<void()>& meanwhile = nullptr) {
    const absl::Duration begin = options_.clock->Monotonic();
    RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenTree());
    Snapshot snapshot;
    const int64_t walk_began_ns = absl::ToUnixNanos(absl::Now());
    RB_ASSIGN_OR_RETURN(snapshot.live, WalkTree(root.get(), tree_, with_sidecars));
    // The threads that walked leave a good part of their memory behind, in arenas that nobody uses again.
    if (snapshot.live.entries.size() > kManyEntries) malloc_trim(0);
    snapshot.times.walk = options_.clock->Monotonic() - begin;

    std::thread second;
    if (meanwhile) second = std::thread(meanwhile);
    absl::Status filled =
        FillContents(root.get(), store_content, accept_damage, with_sidecars, walk_began_ns, &snapshot);
    if (second.joinable()) second.join();
    RB_RETURN_IF_ERROR(filled);
    return snapshot;
  }

  absl::Status FillContents(int root, bool store_content, bool accept_damage, bool with_sidecars, int64_t walk_began_ns,
                            Snapshot* snapshot_out) {
    Snapshot& snapshot = *snapshot_out;
    std::vector<size_t> to_read;
    std::vector<size_t> databases;
    uint64_t known_count = 0;
    StatCacheReader cache = files_.ReadStatCache();
    const CachedContent* cached = cache.Next();
    for (size_t i = 0; i < snapshot.live.entries.size(); ++i) {
      LiveEntry& live = snapshot.live.entries[i];
      if (live.entry.type != EntryType::kFile || live.entry.size == 0) continue;
      const bool is_database = IsDatabase(live.entry.path);
      while (cached != nullptr && PathLess(cached->path, live.entry.path)) cached = cache.Next();
      bool known = cached != nullptr && cached->path == live.entry.path && cached->inode == live.inode &&
                   cached->ctime_ns == live.ctime_ns && cached->mtime_ns == live.entry.attributes.mtime_ns &&
                   cached->size == live.entry.size;
      if (known && is_database) {
        const auto [log_mtime_ns, log_size] = DatabaseLog(root, live.entry.path);
        known = log_mtime_ns == cached->log_mtime_ns && log_size == cached->log_size;
      }
      if (known && store_content) {
        known = std::all_of(cached->chunks.begin(), cached->chunks.end(),
                            [&](const Digest& chunk) { return store_->Contains(chunk); });
      }
      if (known) {
        if (is_database) snapshot.databases[live.entry.path] = {cached->size, cached->log_mtime_ns, cached->log_size};
        live.entry.chunks = cached->chunks;
        live.entry.attributes.xattrs = cached->xattrs;
        live.entry.size = cached->content_size;
        live.is_settled = true;
        ++known_count;
      } else if (is_database) {
        databases.push_back(i);
      } else {
        to_read.push_back(i);
      }
    }
    while (cache.Next() != nullptr) {  // what is left is gone
    }
    snapshot.cache_is_stale = known_count != cache.count();
    const absl::Duration read_begin = options_.clock->Monotonic();
    if (store_content) snapshot.writer = store_->NewWriter();
    RB_RETURN_IF_ERROR(ReadFiles(root, to_read, snapshot.writer.get(), &snapshot.live));
    for (const size_t i : databases) {
      RB_RETURN_IF_ERROR(CaptureDatabase(root, accept_damage, i, &snapshot));
    }
    for (const std::vector<size_t>* read : {&to_read, &databases}) {
      for (const size_t i : *read) {
        LiveEntry& live = snapshot.live.entries[i];
        live.is_settled = live.ctime_ns + kRacyNs < walk_began_ns &&
                          (read == &to_read || snapshot.databases.count(live.entry.path) != 0);
        snapshot.cache_is_stale = snapshot.cache_is_stale || live.is_settled;
      }
    }
    if (!snapshot.damage.empty() && !with_sidecars) RB_RETURN_IF_ERROR(AddSidecars(root, &snapshot));
    snapshot.times.hash = options_.clock->Monotonic() - read_begin;
    if (snapshot.writer != nullptr) snapshot.times.compress = snapshot.writer->compress_time();
    return absl::OkStatus();
  }

  bool IsDatabase(const std::string& path) const {
    return options_.database_copier != nullptr &&
           std::find(tree_.sqlite_paths.begin(), tree_.sqlite_paths.end(), path) != tree_.sqlite_paths.end();
  }

  // Makes what was read durable and visible; only then is it remembered as known.
  absl::Status Settle(Snapshot* snapshot) {
    if (snapshot->writer != nullptr) RB_RETURN_IF_ERROR(snapshot->writer->Finish());
    snapshot->writer.reset();
    if (!snapshot->cache_is_stale) return absl::OkStatus();
    StatCacheWriter cache = files_.WriteStatCache();
    CachedContent content;
    for (const LiveEntry& live : snapshot->live.entries) {
      if (!live.is_settled) continue;
      content.path = live.entry.path;
      content.inode = live.inode;
      content.ctime_ns = live.ctime_ns;
      content.mtime_ns = live.entry.attributes.mtime_ns;
      content.size = live.entry.size;
      content.content_size = live.entry.size;
      content.log_mtime_ns = 0;
      content.log_size = 0;
      if (const auto facts = snapshot->databases.find(live.entry.path); facts != snapshot->databases.end()) {
        content.size = facts->second.file_size;
        content.log_mtime_ns = facts->second.log_mtime_ns;
        content.log_size = facts->second.log_size;
      }
      content.xattrs = *live.entry.attributes.xattrs;
      content.chunks = live.entry.chunks;
      RB_RETURN_IF_ERROR(cache.Add(content));
    }
    snapshot->cache_is_stale = false;
    return cache.Finish();
  }

  static std::pair<int64_t, uint64_t> DatabaseLog(int root, const std::string& path) {
    const absl::StatusOr<Place> place = LocateBeneath(root, path + "-wal");
    struct stat info {};
    if (!place.ok() || fstatat(place->parent.get(), place->name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0)
      return {0, 0};
    return {info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec, static_cast<uint64_t>(info.st_size)};
  }

  // Reads, and with `writer` stores, the files at `indices`; many of them on two threads: hashing and compressing cost
  // more than reading here.
  absl::Status ReadFiles(int root, const std::vector<size_t>& indices, ObjectStore::Writer* writer, LiveTree* live) {
    const size_t parts = indices.size() >= kManyFiles ? 2 : 1;
    absl::Status results[2];
    const auto work = [&](size_t part) -> absl::Status {
      std::string buffer;
      for (size_t k = part; k < indices.size(); k += parts) {
        if (k % 256 == part) RB_RETURN_IF_ERROR(CheckCancelled());
        RB_RETURN_IF_ERROR(ReadFileAt(root, writer, &buffer, &live->entries[indices[k]]));
      }
      return absl::OkStatus();
    };
    std::thread second;
    if (parts == 2) second = std::thread([&] { results[1] = work(1); });
    results[0] = work(0);
    if (second.joinable()) second.join();
    RB_RETURN_IF_ERROR(results[0]);
    return results[1];
  }

  // ABORTED when there is no longer a file of that name.
  static absl::StatusOr<UniqueFd> OpenLiveFile(int root, const std::string& path, int flags, struct stat* info) {
    const absl::StatusOr<Place> place = LocateBeneath(root, path);
    if (absl::IsDataLoss(place.status()) || absl::IsResourceExhausted(place.status())) return place.status();
    UniqueFd fd;
    if (place.ok()) fd.Reset(openat(place->parent.get(), place->name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC));
    const bool is_gone = !place.ok() || errno == ENOENT || errno == ELOOP || errno == ENXIO;
    if (!fd.valid() && !is_gone) return ErrnoStatus(errno, absl::StrCat("open ", Printable(path)));
    if (!fd.valid() || fstat(fd.get(), info) != 0 || !S_ISREG(info->st_mode)) {
      return absl::AbortedError(absl::StrCat(Printable(path), " changed while it was being captured; try again"));
    }
    return fd;
  }

  absl::Status ReadFileAt(int root, ObjectStore::Writer* writer, std::string* buffer, LiveEntry* live) {
    const std::string& path = live->entry.path;
    struct stat info {};
    RB_ASSIGN_OR_RETURN(const UniqueFd fd, OpenLiveFile(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, &info));
    // Another file, or a changed one, may have the name since the walk. Content and attributes are those of one file:
    // never one file's setuid bit with another's content.
    if (info.st_ino != live->inode) live->entry.hard_link_group = 0;
    live->inode = info.st_ino;
    live->ctime_ns = info.st_ctim.tv_sec * 1000000000 + info.st_ctim.tv_nsec;
    live->entry.sparse = info.st_blocks * 512 < info.st_size;
    RB_ASSIGN_OR_RETURN(live->entry.attributes, ReadAttributes(fd.get(), info, Printable(path)));
    return ReadOpenFile(fd.get(), Printable(path), writer, buffer, &live->entry);
  }

  absl::Status ReadOpenFile(int fd, const std::string& path_for_errors, ObjectStore::Writer* writer,
                            std::string* buffer, Entry* entry) {
    const uint64_t expected = entry->size;
    entry->chunks.clear();
    entry->size = 0;
    return ReadChunks(fd, path_for_errors, expected, buffer, [&](absl::string_view chunk) -> absl::Status {
      const Digest digest = Sha256Of(chunk);
      entry->chunks.push_back(digest);
      entry->size += chunk.size();
      if (writer == nullptr || store_->Contains(digest)) return absl::OkStatus();
      return writer->Put(digest, chunk);
    });
  }

  // Cuts the rest of a file into chunks; the first status of `take` that is not OK ends it.
  absl::Status ReadChunks(int fd, const std::string& path_for_errors, uint64_t expected_bytes, std::string* buffer,
                          absl::FunctionRef<absl::Status(absl::string_view chunk)> take) {
    buffer->clear();
    uint64_t taken = 0;
    bool at_end = false;
    while (!at_end || !buffer->empty()) {
      while (!at_end && buffer->size() < kMostChunkBytes) {
        const size_t filled = buffer->size();
        // Growing the buffer costs as much as filling it: by what is expected, and one byte to see the end.
        const uint64_t left = expected_bytes > taken + filled ? expected_bytes - taken - filled : 0;
        const size_t want = std::clamp<size_t>(left + 1, kLeastReadBytes, kMostChunkBytes);
        buffer->resize(filled + want);
        const ssize_t got = read(fd, buffer->data() + filled, want);
        buffer->resize(filled + static_cast<size_t>(std::max<ssize_t>(got, 0)));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return ErrnoStatus(errno, absl::StrCat("read ", path_for_errors));
        if (got == 0) at_end = true;
      }
      if (buffer->empty()) break;
      const bool whole = at_end && taken == 0 && buffer->size() <= kWholeFileBytes;
      const size_t length = whole ? buffer->size() : FirstChunkLength(*buffer);
      RB_RETURN_IF_ERROR(take(absl::string_view(*buffer).substr(0, length)));
      taken += length;
      buffer->erase(0, length);
      RB_RETURN_IF_ERROR(CheckCancelled());
    }
    return absl::OkStatus();
  }

  absl::Status CaptureDatabase(int root, bool accept_damage, size_t index, Snapshot* snapshot) {
    LiveEntry* const live = &snapshot->live.entries[index];
    ObjectStore::Writer* const writer = snapshot->writer.get();
    const std::string copy = absl::StrCat(files_.folder(), "/database-copy-", RandomHex(4));
    const std::string source = absl::StrCat(tree_.tree, "/", live->entry.path);
    DatabaseFacts facts;
    std::tie(facts.log_mtime_ns, facts.log_size) = DatabaseLog(root, live->entry.path);
    facts.file_size = live->entry.size;
    std::string buffer;
    absl::Status copied = options_.database_copier->Copy(source, copy);
    if (!copied.ok()) {
      if (!accept_damage) return Annotate(copied, absl::StrCat("database ", live->entry.path));
      // A rollback must be possible on a host whose database is broken: its bytes are kept as they are.
      absl::StrAppend(&snapshot->damage, snapshot->damage.empty() ? "" : "; ", live->entry.path, ": ",
                      copied.message());
      return ReadFileAt(root, writer, &buffer, live);
    }
    const UniqueFd fd(open(copy.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    copied = fd.valid() ? ReadOpenFile(fd.get(), copy, writer, &buffer, &live->entry)
                        : ErrnoStatus(errno, absl::StrCat("open ", copy));
    unlink(copy.c_str());
    RB_RETURN_IF_ERROR(copied);
    RB_RETURN_IF_ERROR(ReadAttributesAt(root, live));
    live->entry.sparse = false;
    snapshot->databases[live->entry.path] = facts;
    return absl::OkStatus();
  }

  // Of a file whose content comes from elsewhere.
  static absl::Status ReadAttributesAt(int root, LiveEntry* live) {
    const std::string shown = Printable(live->entry.path);
    struct stat info {};
    RB_ASSIGN_OR_RETURN(const UniqueFd fd, OpenLiveFile(root, live->entry.path, O_PATH, &info));
    RB_ASSIGN_OR_RETURN(live->entry.attributes, ReadAttributes(fd.get(), info, shown));
    return absl::OkStatus();
  }

  // The journal files of databases, as files, for a capture of what is damaged.
  absl::Status AddSidecars(int root, Snapshot* snapshot) {
    RB_ASSIGN_OR_RETURN(LiveTree all, WalkTree(root, tree_, true));
    std::vector<LiveEntry>& entries = snapshot->live.entries;
    std::string buffer;
    for (LiveEntry& entry : all.entries) {
      if (!IsDatabaseSidecar(tree_, entry.entry.path) || entry.entry.type != EntryType::kFile) continue;
      RB_RETURN_IF_ERROR(ReadFileAt(root, snapshot->writer.get(), &buffer, &entry));
      entries.push_back(std::move(entry));
    }
    std::sort(entries.begin(), entries.end(),
              [](const LiveEntry& a, const LiveEntry& b) { return PathLess(a.entry.path, b.entry.path); });
    return absl::OkStatus();
  }

  absl::StatusOr<Release> RecordRelease(Snapshot* snapshot, const CaptureRequest& request, bool update_existing) {
    RB_RETURN_IF_ERROR(Settle(snapshot));
    const std::vector<LiveEntry>& entries = snapshot->live.entries;
    const auto entry_count = static_cast<size_t>(std::count_if(
        entries.begin(), entries.end(), [&](const LiveEntry& live) { return snapshot->Holds(tree_, live); }));
    uint64_t content_bytes = 0;
    ManifestEncoder encoder(entry_count);
    for (const LiveEntry& live : entries) {
      if (!snapshot->Holds(tree_, live)) continue;
      encoder.Add(live.entry);
      if (live.entry.type == EntryType::kFile) content_bytes += live.entry.size;
    }
    encoder.AddDumps(snapshot->dumps);
    for (const DatabaseDump& dump : snapshot->dumps) content_bytes += dump.size;
    const std::string encoded = encoder.Take();
    const std::string digest = Sha256Of(encoded).ToHex();
    RB_ASSIGN_OR_RETURN(const std::vector<Release> releases, files_.List(nullptr));
    for (Release existing : releases) {
      if (existing.manifest_digest != digest) continue;
      if (!request.commit.empty() && existing.commit != request.commit) continue;
      if (update_existing || request.pinned) {
        existing.pinned = existing.pinned || request.pinned;
        if (update_existing && !request.reason.empty()) existing.reason = request.reason;
        RB_RETURN_IF_ERROR(files_.Update(existing));
      }
      if (request.cause == Cause::kDeploy && existing.cause != Cause::kDeploy) {
        existing.cause = Cause::kDeploy;
        existing.operation_id = request.operation_id;
        RB_RETURN_IF_ERROR(files_.Update(existing));
      }
      return existing;
    }
    Release release;
    release.service = tree_.service;
    release.manifest_digest = digest;
    release.commit = request.commit;
    release.version = request.version;
    release.cause = request.cause;
    release.captured_at = options_.clock->Now();
    // Releases are ordered by time; a clock that was set back must not put a new one before an old one.
    if (!releases.empty() && release.captured_at <= releases[0].captured_at) {
      release.captured_at = releases[0].captured_at + absl::Milliseconds(1);
    }
    release.name = files_.NewName(tree_.service, release.captured_at, request.version, request.commit);
    release.durability = Durability::kDurable;
    release.pinned = request.pinned;
    release.operation_id = request.operation_id;
    release.reason = request.reason;
    release.entry_count = entry_count;
    release.content_bytes = content_bytes;
    for (const DatabaseDump& dump : snapshot->dumps) release.databases.push_back(dump.name);
    RB_FAILPOINT("engine.capture.before-release");
    RB_RETURN_IF_ERROR(files_.Add(release, encoded));
    return release;
  }

  absl::Status MarkBad(const std::string& name, const Release& instead, const std::string& reason) {
    absl::StatusOr<Release> replaced = files_.Load(name);
    if (absl::IsNotFound(replaced.status())) return absl::OkStatus();
    RB_RETURN_IF_ERROR(replaced.status());
    // Everything of the same commit is as bad as what was rolled back from.
    RB_ASSIGN_OR_RETURN(const std::vector<Release> releases, files_.List(nullptr));
    for (Release release : releases) {
      const bool same = release.name == name || (!replaced->commit.empty() && release.commit == replaced->commit &&
                                                 release.commit != instead.commit);
      if (!same || release.name == instead.name) continue;
      release.standing = Standing::kBad;
      release.reason = reason;
      RB_RETURN_IF_ERROR(files_.Update(release));
    }
    return absl::OkStatus();
  }

  // Code and config of the live tree are those of the release. False also when that cannot be said.
  bool Equals(const LiveTree& live, const std::string& release_name) const {
    if (release_name.empty()) return false;
    const absl::StatusOr<Manifest> manifest = LoadReleaseManifest(release_name);
    if (!manifest.ok()) return false;
    const absl::StatusOr<ChangeSet> changes = ComputeChanges(live, *manifest, Rules(Components(), nullptr));
    return changes.ok() && changes->delta.empty();
  }

  // ---- targets

  absl::StatusOr<Manifest> LoadTargetManifest(const EngineTarget& target, const Snapshot& live) {
    return target.snapshot != nullptr ? ImportSnapshot(target, live) : LoadReleaseManifest(target.release_name);
  }

  absl::StatusOr<Manifest> LoadReleaseManifest(const std::string& release_name) const {
    RB_ASSIGN_OR_RETURN(const Release release, files_.Load(release_name));
    return files_.LoadManifest(release);
  }

  absl::StatusOr<Manifest> ImportSnapshot(const EngineTarget& target, const Snapshot& live) {
    ContentIds ids = files_.LoadContentIds();
    const size_t known_before = ids.size();
    const std::unique_ptr<ObjectStore::Writer> writer = store_->NewWriter();
    const Entry& root = live.live.entries.front().entry;
    const auto uid = tree_.owner_uid >= 0 ? static_cast<uint32_t>(tree_.owner_uid) : root.attributes.uid;
    const auto gid = tree_.owner_gid >= 0 ? static_cast<uint32_t>(tree_.owner_gid) : root.attributes.gid;
    const int64_t commit_time_ns = absl::ToUnixNanos(target.snapshot->ModificationTime());
    std::map<std::string, Entry, bool (*)(absl::string_view, absl::string_view)> entries(PathLess);
    const auto put_folders = [&](absl::string_view path) {
      for (absl::string_view folder = ParentPath(path);; folder = ParentPath(folder)) {
        const std::string name(folder);
        if (entries.count(name) != 0) return;
        Entry entry;
        entry.path = name;
        entry.type = EntryType::kFolder;
        const Entry* present = Find(live.live, name);
        if (present != nullptr && present->type == EntryType::kFolder) {
          entry.attributes = present->attributes;
        } else {
          entry.attributes.mode = 0755;
          entry.attributes.uid = uid;
          entry.attributes.gid = gid;
          entry.attributes.mtime_ns = commit_time_ns;
        }
        entries.emplace(name, std::move(entry));
        if (name.empty()) return;
      }
    };
    put_folders("x");
    absl::Status visited = target.snapshot->ForEach([&](const SnapshotSource::Entry& source) -> absl::Status {
      RB_RETURN_IF_ERROR(CheckCancelled());
      if (IsIgnored(tree_, source.path)) return absl::OkStatus();
      Entry entry;
      entry.path = source.path;
      entry.attributes.uid = uid;
      entry.attributes.gid = gid;
      entry.attributes.mtime_ns = commit_time_ns;
      if (source.type == SnapshotSource::Entry::Type::kSymlink) {
        entry.type = EntryType::kSymlink;
        entry.attributes.mode = 0777;
        std::string link_target;
        RB_RETURN_IF_ERROR(target.snapshot->Read(source.content_id, &link_target));
        entry.link_target = std::move(link_target);
      } else {
        entry.attributes.mode = source.type == SnapshotSource::Entry::Type::kExecutable ? 0755 : 0644;
        RB_RETURN_IF_ERROR(ImportContent(target.snapshot, source, writer.get(), &ids, &entry));
      }
      // What is the same stays as it is, owner and time included.
      const Entry* present = Find(live.live, source.path);
      if (present != nullptr && present->SameContent(entry)) {
        const uint32_t executable = entry.attributes.mode & 0111;
        const bool same_kind =
            entry.type == EntryType::kSymlink || ((present->attributes.mode & 0100) != 0) == (executable != 0);
        const bool is_config = ComponentOf(tree_, source.path) == Component::kConfig;
        const uint32_t own_mode = entry.attributes.mode;
        const bool right_owner = present->attributes.uid == uid && present->attributes.gid == gid;
        if (right_owner || is_config) {
          entry.attributes = present->attributes;
          if (!same_kind) entry.attributes.mode = own_mode;
          entry.hard_link_group = 0;
          entry.sparse = present->sparse;
        }
      }
      put_folders(source.path);
      entries.emplace(source.path, std::move(entry));
      return absl::OkStatus();
    });
    RB_RETURN_IF_ERROR(visited);
    RB_RETURN_IF_ERROR(writer->Finish());
    if (ids.size() != known_before) RB_RETURN_IF_ERROR(files_.SaveContentIds(ids));
    Manifest manifest;
    for (auto& [path, entry] : entries) manifest.entries.push_back(std::move(entry));
    return manifest;
  }

  absl::Status ImportContent(SnapshotSource* snapshot, const SnapshotSource::Entry& source, ObjectStore::Writer* writer,
                             ContentIds* ids, Entry* entry) {
    entry->size = source.size;
    if (source.size == 0) return absl::OkStatus();
    const auto known = ids->find(source.content_id);
    if (known != ids->end() && std::all_of(known->second.begin(), known->second.end(),
                                           [&](const Digest& chunk) { return store_->Contains(chunk); })) {
      entry->chunks = known->second;
      return absl::OkStatus();
    }
    std::string content;
    RB_RETURN_IF_ERROR(snapshot->Read(source.content_id, &content));
    entry->size = content.size();
    absl::string_view rest = content;
    while (!rest.empty()) {
      const bool whole = entry->chunks.empty() && rest.size() <= kWholeFileBytes;
      const size_t length = whole ? rest.size() : FirstChunkLength(rest);
      const Digest digest = Sha256Of(rest.substr(0, length));
      entry->chunks.push_back(digest);
      if (!store_->Contains(digest)) RB_RETURN_IF_ERROR(writer->Put(digest, rest.substr(0, length)));
      rest.remove_prefix(length);
    }
    (*ids)[source.content_id] = entry->chunks;
    return absl::OkStatus();
  }

  static const Entry* Find(const LiveTree& tree, absl::string_view path) {
    const auto found = std::lower_bound(
        tree.entries.begin(), tree.entries.end(), path,
        [](const LiveEntry& live, absl::string_view wanted) { return PathLess(live.entry.path, wanted); });
    return found != tree.entries.end() && found->entry.path == path ? &found->entry : nullptr;
  }

  static const Entry* Find(const Manifest& manifest, absl::string_view path) {
    const auto found =
        std::lower_bound(manifest.entries.begin(), manifest.entries.end(), path,
                         [](const Entry& entry, absl::string_view wanted) { return PathLess(entry.path, wanted); });
    return found != manifest.entries.end() && found->path == path ? &*found : nullptr;
  }

  absl::StatusOr<std::string> ReadContent(const Entry& entry, uint64_t limit_bytes) {
    if (entry.size > limit_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat(Printable(entry.path), " is larger than ", limit_bytes));
    }
    std::string content;
    for (const Digest& chunk : entry.chunks) {
      RB_ASSIGN_OR_RETURN(const std::string part, store_->Get(chunk));
      content.append(part);
    }
    return content;
  }

  absl::StatusOr<Manifest> PreparedManifest(const std::string& operation_id) {
    RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
    if (!journal.present || journal.intent.operation_id != operation_id) {
      return absl::FailedPreconditionError(absl::StrCat("operation ", operation_id, " is not prepared"));
    }
    if (journal.intent.target_manifest_file.empty()) {
      RB_ASSIGN_OR_RETURN(const Release release, files_.Load(journal.intent.target_release));
      return files_.LoadManifest(release);
    }
    return files_.LoadTarget(journal.intent.target_manifest_file);
  }

  std::string ConfigDiff(const ChangeSet& changes, const Snapshot& live, const Manifest& manifest) {
    std::string diff;
    for (const Change& change : changes.changes) {
      if (change.kind == Change::Kind::kAttributes || diff.size() >= kConfigDiffBytes) continue;
      if (ComponentOf(tree_, change.path) != Component::kConfig) continue;
      std::string before;
      std::string after;
      if (change.kind != Change::Kind::kAdd && live.live.entries[change.live_index].entry.type == EntryType::kFile) {
        const absl::StatusOr<std::string> content = ReadFile(absl::StrCat(tree_.tree, "/", change.path), 1 << 20);
        before = content.ok() ? *content : "";
      }
      if (change.kind != Change::Kind::kRemove && manifest.entries[change.target_index].type == EntryType::kFile) {
        const absl::StatusOr<std::string> content = ReadContent(manifest.entries[change.target_index], 1 << 20);
        after = content.ok() ? *content : "";
      }
      absl::StrAppend(&diff, UnifiedDiff(change.path, before, after));
    }
    return Truncate(diff, kConfigDiffBytes);
  }

  // ---- staging

  // `meanwhile` is done before it, or beside it when there is a lot to stage: on a second thread, which then helps.
  absl::Status Stage(const Snapshot& live, const Manifest& manifest, const ChangeSet& changes, Intent* intent,
                     PreparedTransaction* prepared, EngineTimes* times,
                     const std::function<absl::Status()>& meanwhile) {
    const absl::Duration begin = options_.clock->Monotonic();
    RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenStagingRoot());
    RB_RETURN_IF_ERROR(MakeFolderAt(root.get(), intent->staging_name, 0700, intent->staging_name));
    RB_ASSIGN_OR_RETURN(const UniqueFd staging, OpenFolderBeneath(root.get(), intent->staging_name));
    intent->renames.resize(changes.changes.size());
    std::atomic<size_t> next{0};
    Staging made[2];
    const auto work = [&](Staging* mine) -> absl::Status {
      for (size_t c = next++; c < changes.changes.size(); c = next++) {
        absl::Status done = c % 64 == 0 ? CheckCancelled() : absl::OkStatus();
        if (done.ok()) {
          done =
              StageChange(staging.get(), live, manifest, changes.changes[c], StagedName(c), mine, &intent->renames[c]);
        }
        if (!done.ok()) {
          next = changes.changes.size();
          return done;
        }
      }
      return absl::OkStatus();
    };
    const bool many = changes.changes.size() > kManyFiles;
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
      RB_RETURN_IF_ERROR(beside);
    } else {
      RB_RETURN_IF_ERROR(meanwhile());
      staged = work(&made[0]);
    }
    RB_RETURN_IF_ERROR(staged);
    for (Staging& each : made) {
      std::move(each.healed.begin(), each.healed.end(), std::back_inserter(prepared->healed));
    }
    times->write = options_.clock->Monotonic() - begin;
    const absl::Duration sync_begin = options_.clock->Monotonic();
    if (many) {
      RB_RETURN_IF_ERROR(SyncFilesystem(staging.get(), "the staging folder"));
    } else {
      for (const PlannedRename& rename : intent->renames) {
        if (rename.new_inode != 0) RB_RETURN_IF_ERROR(SyncBeneath(staging.get(), rename.staged_name));
      }
      RB_RETURN_IF_ERROR(SyncFd(staging.get(), "the staging folder"));
      RB_RETURN_IF_ERROR(SyncFd(root.get(), "the staging folder's parent"));
      // Its own name, where this operation was the first to need it.
      RB_ASSIGN_OR_RETURN(const std::string path, StagingRoot());
      RB_RETURN_IF_ERROR(SyncFolder(path.substr(0, path.rfind('/')).empty() ? "/" : path.substr(0, path.rfind('/'))));
    }
    times->sync = options_.clock->Monotonic() - sync_begin;
    return absl::OkStatus();
  }

  // What one thread keeps in mind while it stages.
  struct Staging {
    // Hard-link group → path of its first member, beneath the staging folder.
    std::map<uint32_t, std::string> linked;
    std::vector<std::string> healed;
  };

  absl::Status StageChange(int staging, const Snapshot& live, const Manifest& manifest, const Change& change,
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

  absl::Status SyncBeneath(int parent, const std::string& name) {
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

  // Makes one entry at `name` beneath `root`, complete but for a folder's attributes.
  absl::Status StageEntry(int root, const std::string& name, const Entry& entry, Staging* made) {
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

  static absl::Status WriteSparsely(int fd, uint64_t offset, absl::string_view content, bool sparse,
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

  // The content of an object of `entry`. A damaged one is written anew from another copy, or from a live file that
  // holds the same by digest, and `healed` says so.
  absl::StatusOr<std::string> GetOrHeal(const Digest& chunk, const Entry& entry, std::vector<std::string>* healed) {
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

  // Looks in files that were last known to hold the object, at the path of `entry`, and in files of its size. None when
  // it is not found.
  absl::StatusOr<std::optional<std::string>> FindInLiveTree(const Digest& chunk, const Entry& entry,
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

  // What a lost object means: the releases that need it.
  absl::Status DescribeLoss(const Digest& chunk, const absl::Status& loss) {
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

  absl::Status ProveIn(int staging, const std::string& scratch, const Manifest& manifest, ProofReport* report) {
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
      RB_RETURN_IF_ERROR(ApplyAttributes(place.parent.get(), place.name, EntryType::kFolder, entry->attributes,
                                         Printable(entry->path)));
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
      if (!got.SameContent(entry))
        find(absl::StrCat(Printable(entry.path), " has other content than the manifest says"));
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

  // Objects that any service's releases or open targets need. Called with the store locked.
  absl::StatusOr<absl::flat_hash_set<Digest>> LiveObjects() {
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

  const Options options_;
  const ServiceTree tree_;
  const std::unique_ptr<ObjectStore> store_;
  ReleaseFiles files_;
  Mutex mutex_;  // one call at a time
};

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Open(Options options, ServiceTree tree) {
  static constexpr absl::string_view kFormat = "1\n";
  if (!IsValidName(tree.service)) return absl::InvalidArgumentError(absl::StrCat("bad service name ", tree.service));
  // Large buffers go back to the system once they are freed: an agent is at rest nearly all the time.
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  RB_RETURN_IF_ERROR(MakeFolders(options.state_folder));
  const std::string format_path = absl::StrCat(options.state_folder, "/format");
  const absl::StatusOr<std::string> format = ReadFile(format_path, 64);
  if (absl::IsNotFound(format.status())) {
    RB_RETURN_IF_ERROR(WriteFileDurably(format_path, kFormat));
  } else if (!format.ok()) {
    return format.status();
  } else if (*format != kFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.state_folder, " was written by another version of rb-agent (format ", Printable(*format),
                     "). It was not touched. Run the newer rb-agent"));
  }
  RB_ASSIGN_OR_RETURN(std::unique_ptr<ObjectStore> store, ObjectStore::Open(options.state_folder + "/store"));
  RB_ASSIGN_OR_RETURN(ReleaseFiles files,
                      ReleaseFiles::Open(absl::StrCat(options.state_folder, "/services/", tree.service)));
  return std::unique_ptr<Engine>(
      new EngineImpl(std::move(options), std::move(tree), std::move(store), std::move(files)));
}

}  // namespace rb::agent
