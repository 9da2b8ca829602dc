// The durable record of one tree transaction, and its renames. One at a time for each service.
//
// Journal: INTENT (again when data was found changed), then COMMIT_BEGUN, COMMIT_DONE, UNDO_BEGUN as they happen; the
// file goes when all is over. Every rename can be told done from not done by looking at inodes, so both directions can
// be repeated after a crash at any point.
#ifndef RB_AGENT_CORE_ENGINE_TRANSACTION_H_
#define RB_AGENT_CORE_ENGINE_TRANSACTION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "agent/core/engine/changes.h"
#include "agent/core/engine/manifest.h"
#include "common/unique_fd.h"

namespace rb::agent {

struct PlannedRename {
  Change::Kind kind = Change::Kind::kExchange;
  std::string path;
  // Name in the staging folder: of the new entry before, of the old one after.
  std::string staged_name;
  uint64_t old_inode = 0;  // 0 for kAdd
  int64_t old_ctime_ns = 0;
  uint64_t new_inode = 0;  // 0 for kRemove
  // Of the folder at `path` before and after, for kAttributes both. With kExchange, of the side that is a folder, whose
  // time is then set again: xfs changes the time of a folder that is exchanged.
  std::optional<Attributes> old_attributes;
  std::optional<Attributes> new_attributes;
};

struct Intent {
  std::string operation_id;
  std::string target_release;  // empty for a commit
  std::string target_commit;
  std::string target_version;
  std::string replaced_release;
  std::string reason;
  // Digest of the target's manifest in the store's terms, for reading it again; kept by garbage collection.
  std::string target_manifest_file;
  // Folder of this operation in the staging folder.
  std::string staging_name;
  std::vector<PlannedRename> renames;
  // Restored after the renames, from the dumps of the target; the replaced release holds a dump of each too.
  std::vector<std::string> databases;
};

std::string EncodeIntent(const Intent& intent);
bool IsIntent(absl::string_view record);
// DATA_LOSS. Total.
absl::StatusOr<Intent> DecodeIntent(absl::string_view bytes);

// Grows the process's table of descriptors to what a large swap opens. Linux lets a process with threads wait for all
// processors each time that the table grows (5 to 20 ms), and a swap runs with the service stopped. Does nothing where
// it cannot.
void MakeRoomForFolders();

// The open folders that a transaction works in: the tree's root, and the operation's folder in staging. Keeps folders
// beneath the tree open from one pass to the next, since the service is stopped meanwhile. Not thread-safe.
class TransactionFolders {
 public:
  // Neither is owned.
  TransactionFolders(int tree, int staging);
  int tree() const { return tree_; }
  int staging() const { return staging_; }
  // The folder at `path` beneath the tree, valid until the next call of OpenBeneath or Forget. NOT_FOUND when it is not
  // there.
  absl::StatusOr<int> OpenBeneath(absl::string_view path);
  // Looks again at what `path` is from now on.
  void Forget() { open_.clear(); }

 private:
  const int tree_;
  const int staging_;
  const size_t most_open_;
  absl::flat_hash_map<std::string, UniqueFd> open_;
};

// Data goes on changing until the service is stopped, and a database's journal files come and go with it. Takes over
// what is there now for the data files that are going to be replaced, and adds the journal files of `databases` that
// have appeared. True when the intent has changed: it has to be recorded anew before anything is moved. After an error
// the intent is of no further use.
absl::StatusOr<bool> NoteChangedData(absl::FunctionRef<bool(absl::string_view path)> is_data,
                                     const std::vector<std::string>& databases, TransactionFolders& folders,
                                     Intent* intent);
// ABORTED, naming the path, when what is to change is no longer what it was when the intent was made.
absl::Status CheckUnchanged(const Intent& intent, TransactionFolders& folders);
// All renames, then the folders' attributes, then a flush of every touched folder. Done ones are passed over.
absl::Status ApplyForward(const Intent& intent, TransactionFolders& folders);
// The same, backwards.
absl::Status ApplyBackward(const Intent& intent, TransactionFolders& folders);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_TRANSACTION_H_
