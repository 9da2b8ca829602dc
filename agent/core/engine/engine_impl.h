// Inside of the engine: one class, whose parts are in files of their own.
#ifndef RB_AGENT_CORE_ENGINE_ENGINE_IMPL_H_
#define RB_AGENT_CORE_ENGINE_ENGINE_IMPL_H_

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "agent/core/engine/changes.h"
#include "agent/core/engine/engine.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/release_files.h"
#include "agent/core/engine/transaction.h"
#include "agent/core/engine/walk.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/mutex.h"
#include "common/unique_fd.h"

namespace rb::agent {

// A record of the journal, followed by the name of the database.
inline constexpr absl::string_view kRestoreBegun = "restore-begun ";
// Files up to this size are one object; larger ones are cut by content.
inline constexpr uint64_t kWholeFileBytes = 1 << 20;
// From this many files on it is worth while to do them in another way: on two threads, or with one syncfs in place of a
// flush of each.
inline constexpr size_t kManyFiles = 64;
// At most so many are named.
inline constexpr size_t kFindingsKept = 20;
inline constexpr size_t kSamplesKept = 20;

class EngineImpl final : public Engine {
 public:
  EngineImpl(Options options, ServiceTree tree, std::unique_ptr<ObjectStore> store, ReleaseFiles files)
      : options_(std::move(options)), tree_(std::move(tree)), store_(std::move(store)), files_(std::move(files)) {}

  absl::StatusOr<Release> Capture(const CaptureRequest& request) override;
  absl::StatusOr<std::vector<Release>> Releases() override;
  absl::StatusOr<Current> GetCurrent() override;
  absl::StatusOr<Current> CheckDrift() override;
  absl::StatusOr<OpenTransaction> GetOpenTransaction() override;
  std::vector<std::string> Problems(const std::optional<Delta>& delta) override;
  absl::StatusOr<Delta> Compare(const EngineTarget& target, const Components& components) override;
  absl::StatusOr<PreparedTransaction> Prepare(const std::string& operation_id, const EngineTarget& target,
                                              const Components& components, const std::string& reason) override;
  absl::StatusOr<std::string> ReadPrepared(const std::string& operation_id, const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> ListPrepared(const std::string& operation_id,
                                                        absl::string_view glob) override;
  absl::StatusOr<EngineTimes> Commit(const std::string& operation_id) override;
  absl::Status Undo(const std::string& operation_id) override;
  absl::StatusOr<Release> Keep(const std::string& operation_id, Cause cause, bool good, bool replaced_is_bad,
                               const std::string& reason) override;
  absl::StatusOr<std::string> Recover() override;
  absl::StatusOr<ProofReport> Prove(const std::string& release_name) override;
  absl::Status SetStanding(const std::string& release_name, Standing standing, const std::string& reason) override;
  absl::Status SetPinned(const std::string& release_name, bool pinned) override;
  absl::StatusOr<PruneReport> Prune(uint32_t keep_good, const std::vector<std::string>& also_keep) override;

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

  // What one thread keeps in mind while it stages.
  struct Staging {
    // Hard-link group → path of its first member, beneath the staging folder.
    std::map<uint32_t, std::string> linked;
    std::vector<std::string> healed;
  };

  // ---- engine.cc

  absl::StatusOr<FileLock> LockService() const;
  void Progress(absl::string_view text) const;
  absl::Status CheckCancelled() const;
  absl::StatusOr<Manifest> LoadReleaseManifest(const std::string& release_name) const;
  absl::StatusOr<std::string> ReadContent(const Entry& entry, uint64_t limit_bytes);
  static const Entry* Find(const LiveTree& tree, absl::string_view path);
  static const Entry* Find(const Manifest& manifest, absl::string_view path);

  // ---- engine_folders.cc: the tree's and the staging folder, and what may be wrong with them

  absl::StatusOr<UniqueFd> OpenTree() const;
  // Beside the tree; inside it where the tree is a mount, since renames do not cross filesystems.
  absl::StatusOr<std::string> StagingRoot() const;
  // ext4 passes over inodes that were freed in the last minutes, one by one, for each file that it makes: where an
  // operation has just been kept, the next would pay for all that the last one has removed. So each operation's folder
  // gets a block group of its own. Other filesystems know nothing of it, and need nothing of it.
  static void SpreadFolders(int folder);
  absl::StatusOr<UniqueFd> OpenStagingRoot() const;
  absl::StatusOr<Handles> OpenHandles(const Intent& intent) const;
  // Removes what a crash has left in staging, but for `keep`.
  absl::Status ClearStaging(const std::string& keep);
  // Empty when there is enough for what is to be staged, and some.
  std::string LackOfSpace(const Delta& delta) const;
  std::vector<std::string> ProblemsLocked(const std::optional<Delta>& delta);
  static absl::Status TryExchange(int staging);
  // Mount points below `path`, relative to it, from the kernel's table.
  static absl::StatusOr<std::vector<std::string>> MountsBelow(const std::string& path);

  // ---- engine_capture.cc: what the live tree holds now, and a release of it

  // `with_sidecars`: the live tree lists databases' journal files too, so that they can be replaced. Nothing that is
  // written is durable before Settle.
  // `meanwhile`, if any, is done on a second thread while this one compares with what was known, and reads.
  absl::StatusOr<Snapshot> TakeSnapshot(bool store_content, bool accept_damage, bool with_sidecars,
                                        const std::function<void()>& meanwhile = nullptr);
  absl::Status FillContents(int root, bool store_content, bool accept_damage, bool with_sidecars, int64_t walk_began_ns,
                            Snapshot* snapshot_out);
  bool IsDatabase(const std::string& path) const;
  // Makes what was read durable and visible; only then is it remembered as known.
  absl::Status Settle(Snapshot* snapshot);
  static std::pair<int64_t, uint64_t> DatabaseLog(int root, const std::string& path);
  // Reads, and with `writer` stores, the files at `indices`; many of them on two threads: hashing and compressing cost
  // more than reading here.
  absl::Status ReadFiles(int root, const std::vector<size_t>& indices, ObjectStore::Writer* writer, LiveTree* live);
  // ABORTED when there is no longer a file of that name.
  static absl::StatusOr<UniqueFd> OpenLiveFile(int root, const std::string& path, int flags, struct stat* info);
  absl::Status ReadFileAt(int root, ObjectStore::Writer* writer, std::string* buffer, LiveEntry* live);
  absl::Status ReadOpenFile(int fd, const std::string& path_for_errors, ObjectStore::Writer* writer,
                            std::string* buffer, Entry* entry);
  // Cuts the rest of a file into chunks; the first status of `take` that is not OK ends it.
  absl::Status ReadChunks(int fd, const std::string& path_for_errors, uint64_t expected_bytes, std::string* buffer,
                          absl::FunctionRef<absl::Status(absl::string_view chunk)> take);
  absl::Status CaptureDatabase(int root, bool accept_damage, size_t index, Snapshot* snapshot);
  // Of a file whose content comes from elsewhere.
  static absl::Status ReadAttributesAt(int root, LiveEntry* live);
  // The journal files of databases, as files, for a capture of what is damaged.
  absl::Status AddSidecars(int root, Snapshot* snapshot);
  absl::StatusOr<Release> RecordRelease(Snapshot* snapshot, const CaptureRequest& request, bool update_existing);

  // ---- engine_target.cc: what the tree is to become, and what that changes

  ChangeRules Rules(const Components& components, const std::optional<std::vector<std::string>>* baseline) const;
  // For a commit: paths that may go, sorted as strings. Absent for a release: everything may.
  absl::StatusOr<std::optional<std::vector<std::string>>> BaselinePaths(const EngineTarget& target) const;
  // Code and config of the live tree are those of the release. False also when that cannot be said.
  bool Equals(const LiveTree& live, const std::string& release_name) const;
  std::string LiveDigest(const LiveTree& live) const;
  absl::StatusOr<Manifest> LoadTargetManifest(const EngineTarget& target, const Snapshot& live);
  absl::StatusOr<Manifest> ImportSnapshot(const EngineTarget& target, const Snapshot& live);
  absl::Status ImportContent(SnapshotSource* snapshot, const SnapshotSource::Entry& source, ObjectStore::Writer* writer,
                             ContentIds* ids, Entry* entry);
  absl::StatusOr<Manifest> PreparedManifest(const std::string& operation_id);
  std::string ConfigDiff(const ChangeSet& changes, const Snapshot& live, const Manifest& manifest);
  // What going back costs: time, and rows. What cannot be counted is left out.
  absl::Status AddDataLoss(const EngineTarget& target, const Components& components, const Snapshot& live,
                           const Manifest& manifest, Delta* delta);
  absl::Status WriteContentTo(const Entry& entry, const std::string& path);

  // ---- engine_prepare.cc: staging: all that can be done while the service runs

  // `meanwhile` is done before it, or beside it when there is a lot to stage: on a second thread, which then helps.
  // What is staged is durable only after SyncStaged.
  absl::Status Stage(const Snapshot& live, const Manifest& manifest, const ChangeSet& changes, Intent* intent,
                     PreparedTransaction* prepared, EngineTimes* times, const std::function<absl::Status()>& meanwhile);
  absl::Status SyncStaged(const Intent& intent);
  absl::Status StageChange(int staging, const Snapshot& live, const Manifest& manifest, const Change& change,
                           const std::string& staged_name, Staging* made, PlannedRename* rename);
  absl::Status SyncBeneath(int parent, const std::string& name);
  // Makes one entry at `name` beneath `root`, complete but for a folder's attributes.
  absl::Status StageEntry(int root, const std::string& name, const Entry& entry, Staging* made);
  static absl::Status WriteSparsely(int fd, uint64_t offset, absl::string_view content, bool sparse,
                                    const std::string& shown);
  // The content of an object of `entry`. A damaged one is written anew from another copy, or from a live file that
  // holds the same by digest, and `healed` says so.
  absl::StatusOr<std::string> GetOrHeal(const Digest& chunk, const Entry& entry, std::vector<std::string>* healed);
  // Looks in files that were last known to hold the object, at the path of `entry`, and in files of its size. None when
  // it is not found.
  absl::StatusOr<std::optional<std::string>> FindInLiveTree(const Digest& chunk, const Entry& entry,
                                                            std::string* found_in);
  // What a lost object means: the releases that need it.
  absl::Status DescribeLoss(const Digest& chunk, const absl::Status& loss);

  // ---- engine_commit.cc: the swap, there and back

  absl::StatusOr<Journal> ReadJournal() const;
  // In a journal that has an intent. All that is in it is durable once this returns OK.
  absl::Status Mark(absl::string_view record);
  // `brought_back`, unless null, gets what was done about databases, for a person: "" or "; database main …".
  absl::Status UndoLocked(const Intent& intent, std::string* brought_back);
  absl::Status MarkBad(const std::string& name, const Release& instead, const std::string& reason);
  // Forgets the transaction: the journal first, so that nothing refers to what is then removed.
  absl::Status Discard(const Intent& intent);

  // ---- engine_databases.cc: databases that are not files of the tree

  absl::Status DumpDatabases(Snapshot* snapshot);
  // Adds what is going to be restored. FAILED_PRECONDITION when data is asked for and the target does not hold it: the
  // old code with the new data is not what was asked for.
  absl::Status AddDatabases(const EngineTarget& target, const Components& components, const Manifest& manifest,
                            Delta* delta) const;
  // What to choose instead.
  std::string ReleasesWithDumps() const;
  // Restores the databases of an intent from the target. What a crash has interrupted is done again from its start.
  absl::Status RestoreDatabases(const Intent& intent);
  // One failure does not stop the rest: each of them is wanted back.
  absl::Status BringDatabasesBack(const Intent& intent, const std::vector<std::string>& names);
  absl::Status RestoreFrom(const std::string& release_name, const std::string& name);
  absl::Status ProveDumps(const Manifest& manifest, ProofReport* report);

  // ---- engine_prove.cc: proofs, and what no release needs any more

  absl::Status ProveIn(int staging, const std::string& scratch, const Manifest& manifest, ProofReport* report);
  // Whether the file of `size` bytes beneath `root` holds the entry's chunks, wherever it was cut when it was captured.
  bool HoldsChunks(int root, const Entry& entry, uint64_t size);
  // Objects that any service's releases or open targets need. Called with the store locked.
  absl::StatusOr<absl::flat_hash_set<Digest>> LiveObjects();

  const Options options_;
  const ServiceTree tree_;
  const std::unique_ptr<ObjectStore> store_;
  ReleaseFiles files_;
  Mutex mutex_;  // one call at a time
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_ENGINE_IMPL_H_
