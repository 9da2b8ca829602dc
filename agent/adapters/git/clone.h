// A tree that is itself a clone: what has to change in its .git folder so that HEAD and index follow the tree.
//
// No git runs in the clone, and nothing of it is trusted: its owner may be an enemy. HEAD alone is read, as a file
// beneath a handle, to learn which branch it is on. What is written comes from the agent's mirror, and gets there as
// part of the tree transaction, so that a crash leaves code and HEAD together.
#ifndef RB_AGENT_ADAPTERS_GIT_CLONE_H_
#define RB_AGENT_ADAPTERS_GIT_CLONE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "agent/core/ports/snapshot_source.h"

struct git_repository;

namespace rb::agent {

// The file in .git that says what is checked out: "refs/heads/BRANCH" when HEAD is on a branch that has an ordinary
// name, else "HEAD" itself. "" when `tree` is no clone: it has no folder .git with a file HEAD.
absl::StatusOr<std::string> CheckedOutFile(const std::string& tree);
// The same, from what HEAD holds.
std::string CheckedOutFileFrom(absl::string_view head);

// `commit` as it is, and with it, as `git reset --hard` would leave them: the branch (or HEAD), the index, and a pack
// of the objects that are reachable from it and not from `from_commit` (all of them when that is empty or not in the
// mirror). `mirror` is used during the call; what is built lies in a new folder `scratch` until the source is
// destroyed.
absl::StatusOr<std::unique_ptr<SnapshotSource>> WithCloneFiles(std::unique_ptr<SnapshotSource> commit,
                                                               git_repository* mirror, const std::string& commit_id,
                                                               const std::string& from_commit,
                                                               const std::string& checked_out_file,
                                                               const std::string& scratch);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_GIT_CLONE_H_
