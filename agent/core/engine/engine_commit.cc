// The swap, there and back.

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/database_dumps.h"
#include "agent/core/engine/engine_impl.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/transaction.h"
#include "agent/core/engine/tree_files.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/mutex.h"
#include "common/record_journal.h"
#include "common/status.h"

namespace rb::agent {
namespace {

constexpr absl::string_view kCommitBegun = "commit-begun";
constexpr absl::string_view kCommitDone = "commit-done";
constexpr absl::string_view kUndoBegun = "undo-begun";

}  // namespace

absl::StatusOr<OpenTransaction> EngineImpl::GetOpenTransaction() {
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

absl::StatusOr<EngineTimes> EngineImpl::Commit(const std::string& operation_id) {
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

absl::Status EngineImpl::Undo(const std::string& operation_id) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
  RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
  if (!journal.present || journal.intent.operation_id != operation_id) return absl::OkStatus();
  if (!journal.commit_begun) return Discard(journal.intent);
  return UndoLocked(journal.intent, nullptr);
}

absl::StatusOr<Release> EngineImpl::Keep(const std::string& operation_id, Cause cause, bool good, bool replaced_is_bad,
                                         const std::string& reason) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
  if (const std::string kept = files_.KeptRelease(operation_id); !kept.empty()) {
    RB_ASSIGN_OR_RETURN(const Journal leftover, ReadJournal());
    if (leftover.present && leftover.intent.operation_id == operation_id) RB_RETURN_IF_ERROR(Discard(leftover.intent));
    return files_.Load(kept);
  }
  RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
  if (!journal.present || journal.intent.operation_id != operation_id || !journal.commit_done) {
    return absl::FailedPreconditionError(
        absl::StrCat("operation ", operation_id, " is not committed on ", tree_.service, ". Nothing was changed"));
  }
  // The tree may be mixed: only going on with the undo makes it whole.
  if (journal.undo_begun) {
    return absl::FailedPreconditionError(absl::StrCat("operation ", operation_id, " is being undone on ", tree_.service,
                                                      "; on this host type: rb-agent local recover ", tree_.service));
  }
  const Intent& intent = journal.intent;
  Release release;
  if (!intent.target_release.empty()) {
    RB_ASSIGN_OR_RETURN(release, files_.Load(intent.target_release));
  }
  // What came back in part (data, say) is no release that there was.
  if (intent.target_release.empty() || release.commit != intent.target_commit) {
    RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession(ObjectStore::Knows::kLater));
    RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(true, true, false));
    CaptureRequest request;
    request.cause = cause;
    request.commit = intent.target_commit;
    request.version = intent.target_version;
    request.operation_id = operation_id;
    request.reason = intent.reason;
    RB_ASSIGN_OR_RETURN(release, RecordRelease(&live, request, false));
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

absl::StatusOr<std::string> EngineImpl::Recover() {
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

absl::StatusOr<EngineImpl::Journal> EngineImpl::ReadJournal() const {
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

absl::Status EngineImpl::Mark(absl::string_view record) {
  std::vector<std::string> records;
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<RecordJournal> journal,
                      RecordJournal::Open(files_.JournalPath(), &records, RecordJournal::Flush::kWithNextAppend));
  return journal->Append(record);
}

absl::Status EngineImpl::UndoLocked(const Intent& intent, std::string* brought_back) {
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

absl::Status EngineImpl::MarkBad(const std::string& name, const Release& instead, const std::string& reason) {
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

absl::Status EngineImpl::Discard(const Intent& intent) {
  RB_RETURN_IF_ERROR(RemoveFileDurably(files_.JournalPath()));
  RB_RETURN_IF_ERROR(files_.RemoveTargets());
  absl::StatusOr<UniqueFd> root = OpenStagingRoot();
  RB_RETURN_IF_ERROR(root.status());
  return RemoveTreeAt(root->get(), intent.staging_name);
}

}  // namespace rb::agent
