// When a tree that was changed by other means is captured as a release. Pure.
#ifndef RB_AGENT_CORE_TASK_EXTERNAL_H_
#define RB_AGENT_CORE_TASK_EXTERNAL_H_

#include <optional>
#include <string>

#include "absl/time/time.h"

namespace rb::agent {

// One service. All times on one monotonic clock.
class ExternalWatch {
 public:
  // `settle`: how long the tree has to stay as it is.
  explicit ExternalWatch(absl::Duration settle) : settle_(settle) {}

  struct Seen {
    // Current::live_digest: empty when the tree is what it is known to be.
    std::string live_digest;
    // An operation is open, or somebody deploys between `rb-agent guard before` and `after`.
    bool is_busy = false;
  };
  enum class What { kNothing, kLookAgain, kCapture };
  // kLookAgain: not settled yet.
  What Take(const Seen& seen, absl::Duration now);
  // A capture was made. A service that changes its own code or config would be captured again and again: without a new
  // commit, once in kLeastBetween.
  void Captured(bool has_new_commit, absl::Duration now);

  static constexpr absl::Duration kLeastBetween = absl::Hours(1);

 private:
  const absl::Duration settle_;
  std::string digest_;
  absl::Duration since_;
  std::optional<absl::Duration> not_before_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_TASK_EXTERNAL_H_
