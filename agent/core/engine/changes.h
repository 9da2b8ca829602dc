// What has to be done to bring a live tree to a target: pure.
#ifndef RB_AGENT_CORE_ENGINE_CHANGES_H_
#define RB_AGENT_CORE_ENGINE_CHANGES_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/core/engine/engine.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/walk.h"
#include "agent/core/service.h"

namespace rb::agent {

struct Change {
  enum class Kind {
    kExchange = 1,    // the staged entry takes the place of the live one, which lands in staging
    kAdd = 2,         // the staged entry is moved in
    kRemove = 3,      // the live entry is moved into staging
    kAttributes = 4,  // a folder that stays gets other attributes
  };
  Kind kind = Kind::kExchange;
  std::string path;
  // Index into the target's entries; unused for kRemove. A staged folder is staged with all entries below it that are
  // in `staged_below`.
  size_t target_index = 0;
  std::vector<size_t> staged_below;
  // Index into the live tree's entries; unused for kAdd.
  size_t live_index = 0;
};

struct ChangeSet {
  // Exchanges, additions and removals in path order; then attributes of folders, deepest first.
  std::vector<Change> changes;
  Delta delta;
};

struct ChangeRules {
  const ServiceTree* tree = nullptr;
  Components components;
  // May this live path, which the target lacks, be removed?
  std::function<bool(const std::string& path)> is_removable;
  // Of a tree that is a clone: looking at it with git changes the index, and a fetch adds objects.
  bool with_git_folder = true;
};

// `live` with chunks filled in; `target` in path order. FAILED_PRECONDITION when a folder has to give way to something
// else but holds what must not be moved (ignored, another component, a socket).
absl::StatusOr<ChangeSet> ComputeChanges(const LiveTree& live, const Manifest& target, const ChangeRules& rules);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_CHANGES_H_
