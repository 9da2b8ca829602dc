// What the crash tests put the engine through: a backup, a rollback that is kept, one that is taken back, and a prune
// with garbage collection; and what has to hold after any crash in the middle of it.
#ifndef RB_TESTS_CRASH_ROLLBACK_SCENARIO_H_
#define RB_TESTS_CRASH_ROLLBACK_SCENARIO_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/core/engine/engine.h"

namespace rb::crash {

class RollbackScenario {
 public:
  // `more_files`: so many change besides the few that always do, in folders of their own. From 64 on the engine works
  // on several threads and flushes whole filesystems.
  explicit RollbackScenario(int more_files = 0) : more_files_(more_files) {}
  // Makes the tree and the store below `root`: a good release, and a live tree that differs from it.
  absl::Status Prepare(const std::string& root);
  // The operations. `acknowledge` is told what is durable from then on, in this order: prepared, committed, kept,
  // backed-up, prepared-2, committed-2, undone-2, collected, pruned. Stops at the first error.
  absl::Status Run(const std::string& root, const std::function<void(const std::string&)>& acknowledge);
  // Recovers and looks, and prepares another operation. What is wrong, or "". `acknowledged`: what had been
  // acknowledged before the crash; with "taken-back" at the end when a commit failed and said that it undid itself.
  std::string Check(const std::string& root, const std::vector<std::string>& acknowledged) const;

  // What the tree may be after recovery from a crash after `last` (empty: nothing was acknowledged yet). What is wrong,
  // or "".
  std::string CheckTree(const std::string& root, const std::string& last) const;

  static absl::StatusOr<std::unique_ptr<agent::Engine>> OpenEngine(const std::string& root);

 private:
  absl::Status PutMoreFiles(const std::string& tree, char content) const;

  const int more_files_;
  std::string first_;   // fingerprint of the release that is gone back to
  std::string second_;  // and of what is live at first
  std::string first_release_;
};

}  // namespace rb::crash

#endif  // RB_TESTS_CRASH_ROLLBACK_SCENARIO_H_
