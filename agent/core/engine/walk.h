// One stat walk over a live tree.
#ifndef RB_AGENT_CORE_ENGINE_WALK_H_
#define RB_AGENT_CORE_ENGINE_WALK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/service.h"

namespace rb::agent {

struct LiveEntry {
  Entry entry;  // without chunks; of a non-empty file without extended attributes too
  uint64_t inode = 0;
  int64_t ctime_ns = 0;
  // Below this folder lies something that is not ours to move: ignored, a socket, a device.
  bool holds_unmanaged = false;
  // Read (or known) long enough after it was last changed that its times tell whether it changes again.
  bool is_settled = false;
};

struct LiveTree {
  std::vector<LiveEntry> entries;  // in path order; the first is the root
  // Sockets, devices, and where other filesystems (mounts, btrfs subvolumes) begin: printable paths, sorted, at
  // most 20, and then how many more.
  std::vector<std::string> not_captured;
};

// What can be known without opening files: content and extended attributes of non-empty files are left to whoever reads
// them, since a file that is as it was when it was last read need not be opened.
// Everything in the tree but what is ignored, and databases' journal files unless `with_sidecars`. `root` is the tree's
// open folder. Folders are read beneath their open parent, by two threads; links are not followed, mounts not entered.
absl::StatusOr<LiveTree> WalkTree(int root, const ServiceTree& tree, bool with_sidecars);

// True for "bot.db-wal", "-shm", "-journal" beside a database of the service.
bool IsDatabaseSidecar(const ServiceTree& tree, absl::string_view path);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_WALK_H_
