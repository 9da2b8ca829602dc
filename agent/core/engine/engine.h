// The release store and the tree transaction of one service: captures its tree as immutable releases, and brings the
// tree from one state to another by renames, so that after any crash it is wholly the old or wholly the new one.
//
// On disk, below Options::state_folder:
//   store/            packs of objects, named by SHA-256, shared by all services of the agent
//   services/NAME/    manifests, standing, stat cache, and the transaction journal of one service
// and, on the tree's own filesystem, a root-only staging folder beside the tree (inside it, as ".rb-staging", when the
// tree is a mount point).
//
// Life of an operation:  Prepare → Commit → Keep      (it stays)
//                                         ↘ Undo      (as if it never was)
//                        Prepare → Undo               (staging is thrown away)
// Each is durable when it returns OK, and idempotent: repeating it with the same operation id gives the same answer.
#ifndef RB_AGENT_CORE_ENGINE_ENGINE_H_
#define RB_AGENT_CORE_ENGINE_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "agent/core/ports/database_copier.h"
#include "agent/core/ports/database_hooks.h"
#include "agent/core/ports/snapshot_source.h"
#include "agent/core/release.h"
#include "agent/core/service.h"
#include "common/clock.h"

namespace rb::agent {

struct CaptureRequest {
  Cause cause = Cause::kBackup;
  std::string commit;
  std::string version;
  std::string operation_id;
  std::string reason;
  bool pinned = false;
  // Somebody else has changed the tree: this is what it is from now on, the current release.
  bool make_current = false;
};

// What a release has, the live tree lacks, and is wanted back; see bring_back.h.
struct BringBack {
  std::string release_name;
  std::function<bool(const std::string& path)> wanted;
};

// What to bring the tree to. Exactly one is set.
struct EngineTarget {
  // A release by its name.
  std::string release_name;
  // A commit: not owned, used only during the call.
  SnapshotSource* snapshot = nullptr;
  // What is live, and what was removed from it: not owned. Only for Prepare, with all components; `commit` and
  // `version` say what the tree is then.
  const BringBack* bring_back = nullptr;
  // With `snapshot`: its commit and version, and the commit whose files may be removed when the snapshot lacks them
  // (what is live now; not owned; null: nothing is removed, since nothing is known to come from git).
  std::string commit;
  std::string version;
  SnapshotSource* baseline = nullptr;
};

// How many rows a table of an SQLite database has now, and how many in the target; 0 where there is no such table.
struct TableRows {
  std::string database;  // relative to the tree
  std::string table;
  uint64_t now = 0;
  uint64_t then = 0;
};

struct Delta {
  uint64_t files_added = 0;
  uint64_t files_changed = 0;
  uint64_t files_removed = 0;
  // Folders, links, fifos, and entries whose attributes alone change.
  uint64_t other_changes = 0;
  uint64_t bytes_to_stage = 0;
  // The first 20 of what changes, sorted, printable.
  std::vector<std::string> sample_paths;
  // Unified diff of changed text files of the config component, at most 16 KiB.
  std::string config_diff;
  // Databases that are restored from the target's dumps; each is a sample path too. Whether they differ from what is
  // live is not known.
  std::vector<std::string> databases;
  // Entries that a release cannot keep (sockets, devices, other filesystems): at most 20, then how many more.
  std::vector<std::string> not_captured;

  // With data, of a release: how long ago the data was what it goes back to. All that was written since is lost.
  absl::Duration data_age;
  // With data, from Compare only: tables whose number of rows changes, at most 20.
  std::vector<TableRows> table_rows;

  bool empty() const { return files_added + files_changed + files_removed + other_changes == 0 && databases.empty(); }
};

// Where the time went.
struct EngineTimes {
  absl::Duration walk;
  absl::Duration hash;
  absl::Duration compress;  // part of `hash`; summed over threads
  absl::Duration write;
  absl::Duration sync;
  absl::Duration total;
};

struct PreparedTransaction {
  Delta delta;
  // The release that holds what will be replaced: what undo of the whole operation goes back to. It may be an older
  // release when the tree is equal to it.
  Release replaced;
  // Damaged objects that were healed on the way, for a person.
  std::vector<std::string> healed;
  EngineTimes times;
};

enum class TransactionPhase { kNone, kPrepared, kCommitted };

struct OpenTransaction {
  TransactionPhase phase = TransactionPhase::kNone;
  std::string operation_id;
  // Commit and version that the tree holds once committed; empty when unknown.
  std::string target_commit;
  std::string target_version;
  std::string target_release;
  std::string replaced_release;
  // A swap, forward or back, has begun and has not ended: it runs now, or it was interrupted or failed. The service
  // must not be started before Recover or Undo has returned OK.
  bool is_torn = false;
};

// What the live tree was last known to be.
struct Current {
  // Empty when nothing was captured yet.
  std::string release_name;
  std::string commit;
  std::string version;
  // The tree no longer equals that release in code and config.
  bool drifted = false;
  // From CheckDrift, when it drifted: tells whether the tree has changed since it was last
  // looked at. Not kept.
  std::string live_digest;
};

struct ProofReport {
  uint64_t entries = 0;
  uint64_t bytes = 0;
  // Empty when it is proved; else what differs or is damaged, at most 20.
  std::vector<std::string> findings;
  // What was damaged and is whole again, from another copy or the live tree, at most 20.
  std::vector<std::string> healed;
  // What a proof cannot show, for a person: dumps of databases have the right digests, but no server has read them.
  std::vector<std::string> remarks;
  absl::Duration took;
};

struct PruneReport {
  std::vector<std::string> removed;
  uint64_t bytes_freed = 0;
};

// Left free on the tree's filesystem beyond what is staged: nothing is prepared without.
inline constexpr uint64_t kSpareBytes = 16 << 20;

// Thread-safe: calls on one Engine run one after another, except Releases, GetCurrent and GetOpenTransaction, which do
// not wait for a running call. Engines of several services share a store and may run at the same time; several
// processes (the daemon and `rb-agent local`) exclude each other with a lock file: UNAVAILABLE, naming it.
class Engine {
 public:
  struct Options {
    std::string state_folder;
    // Not owned; outlive the engine. `database_copier` may be null when the tree has no databases, `database_hooks`
    // when the service has none but those.
    Clock* clock = nullptr;
    DatabaseCopier* database_copier = nullptr;
    DatabaseHooks* database_hooks = nullptr;
    // Called now and then from long work with a short text; may be null.
    std::function<void(absl::string_view)> on_progress;
    // Returns true when long work should stop at the next safe point, with CANCELLED; may be null. Commit and Undo do
    // not ask once they have begun.
    std::function<bool()> is_cancelled;
  };

  // Once, before the process has a second thread: what engines need of its memory and its table of descriptors. Later
  // it takes longer (5 to 20 ms, measured), and without it the first large swap does, while the service is stopped.
  static void PrepareProcess();

  // Makes what is missing on disk. FAILED_PRECONDITION when the state folder was written by a newer version.
  static absl::StatusOr<std::unique_ptr<Engine>> Open(Options options, ServiceTree tree);
  virtual ~Engine() = default;

  // Captures the live tree, and a dump from each database hook. A tree equal to the newest release with the same commit
  // gives that release again (its cause and pin are updated), not a copy.
  // DATA_LOSS: a database is damaged. RESOURCE_EXHAUSTED: no space; nothing is left behind. When a dump fails, so does
  // the capture, with the hook's error: no release lacks its data.
  virtual absl::StatusOr<Release> Capture(const CaptureRequest& request) = 0;

  // Newest first.
  virtual absl::StatusOr<std::vector<Release>> Releases() = 0;
  virtual absl::StatusOr<Current> GetCurrent() = 0;
  // Compares the live tree with the current release (one stat walk) and updates `drifted`.
  virtual absl::StatusOr<Current> CheckDrift() = 0;
  virtual absl::StatusOr<OpenTransaction> GetOpenTransaction() = 0;

  // Why nothing can be prepared here: the tree is missing, a mount lies inside it, too little space for `delta`, the
  // filesystem cannot exchange files. Empty when all is well.
  virtual std::vector<std::string> Problems(const std::optional<Delta>& delta) = 0;

  // What Prepare would change. Writes nothing to the tree; may import a snapshot into the store.
  virtual absl::StatusOr<Delta> Compare(const EngineTarget& target, const Components& components) = 0;

  // Captures what is live, stages what differs, and records the intent. The tree is untouched. With data among the
  // components, each database hook takes a dump into the replaced release; without, no hook is run.
  // FAILED_PRECONDITION: another operation is open (named), or Problems is not empty, or data is asked for and the
  // target does not hold a dump for each hook. DATA_LOSS: the target is damaged (which object, which releases it
  // hurts). NOT_FOUND: no such release.
  virtual absl::StatusOr<PreparedTransaction> Prepare(const std::string& operation_id, const EngineTarget& target,
                                                      const Components& components, const std::string& reason) = 0;
  // Content of a staged or unchanged config file as it will be after Commit, for checking it before; NOT_FOUND when the
  // target has no such file. Path relative to the tree.
  virtual absl::StatusOr<std::string> ReadPrepared(const std::string& operation_id, const std::string& path) = 0;
  // Paths of the target that match a glob, as they will be after Commit, sorted.
  virtual absl::StatusOr<std::vector<std::string>> ListPrepared(const std::string& operation_id,
                                                                absl::string_view glob) = 0;

  // Swaps, then restores the databases from the target's dumps when data is among the components: in that order, so
  // that what cannot be swapped costs no restore. The caller has stopped the service. ABORTED when a path that is to
  // change was changed since Prepare: nothing is changed then. On any other error all has been brought back to the old
  // state (a database whose restore had begun: to what it was when the operation was prepared), unless the message says
  // that recovery is needed, and the open transaction is torn.
  virtual absl::StatusOr<EngineTimes> Commit(const std::string& operation_id) = 0;
  // Swaps back, and restores the databases whose restore had begun from the replaced release's dumps; or throws staging
  // away. The caller has stopped the service when the phase is kCommitted, or the transaction torn. OK when the
  // operation is not known (nothing to undo).
  virtual absl::Status Undo(const std::string& operation_id) = 0;
  // The new state stays: records it as a release (target's name, or a new one with `cause` for a snapshot), makes it
  // current, sets standings (`good`: the new one; `replaced_is_bad`: the old one, with the reason), drops the undo.
  // OK with the same release when repeated.
  virtual absl::StatusOr<Release> Keep(const std::string& operation_id, Cause cause, bool good, bool replaced_is_bad,
                                       const std::string& reason) = 0;

  // To be called before the service may start and before anything else after a crash: completes a swap that had begun
  // (databases whose restore had begun are restored again, from the start), or undoes it when it cannot be completed;
  // clears unfinished staging. Says what it did, for a person; empty when
  // there was nothing to do.
  virtual absl::StatusOr<std::string> Recover() = 0;

  // Really restores the release into a scratch folder on the tree's filesystem, compares every digest and attribute,
  // checks databases, and records the proof. A damaged object is healed where its content is still found, by digest, in
  // another copy or in the live tree; so it is in Prepare.
  virtual absl::StatusOr<ProofReport> Prove(const std::string& release_name) = 0;
  virtual absl::Status SetStanding(const std::string& release_name, Standing standing, const std::string& reason) = 0;
  virtual absl::Status SetPinned(const std::string& release_name, bool pinned) = 0;
  // Removes the releases that are not to be kept (retention.h says which), and none that an open transaction refers to
  // or `also_keep` names. Then collects garbage.
  virtual absl::StatusOr<PruneReport> Prune(uint32_t keep_good, const std::vector<std::string>& also_keep) = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_ENGINE_H_
