// Which commit a tree holds that somebody else has put there.
#ifndef RB_AGENT_ADAPTERS_RECORDS_TREE_COMMIT_H_
#define RB_AGENT_ADAPTERS_RECORDS_TREE_COMMIT_H_

#include <string>

#include "agent/core/engine/engine.h"
#include "agent/core/ports/commit_source.h"

namespace rb::agent {

struct TreeCommit {
  // Empty when it could not be found.
  std::string commit;
  std::string version;
  // For a person: how it was found, or why it was not.
  std::string how;
};

// The commit that the tree's own .git/HEAD names: read as a file, so that nothing of the tree (hooks, filters,
// configuration) is ever run, and no link is followed. Empty when there is none.
std::string HeadOfTree(const std::string& tree);
// The first of the files REVISION, .revision and VERSION that holds one short word; empty when none does.
std::string VersionFileOf(const std::string& tree);

// Asks, in this order: `given` (what a CI job says), .git/HEAD, a version file. What comes from the tree counts only
// when the tree's code is that commit's, file by file, as the mirror has it; where the mirror does not know it, HEAD
// counts when it is another than `before` (rsync often leaves a .git behind that has nothing to do with what it
// copied). `commits` may be null.
TreeCommit FindTreeCommit(const std::string& tree, const std::string& given, const std::string& before, Engine& engine,
                          CommitSource* commits);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_RECORDS_TREE_COMMIT_H_
