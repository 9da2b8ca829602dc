// Commits that were rolled back from, or whose deploy was reverted: nobody deploys them again, by us or by a CI job
// that asks `rb-agent guard`, until they are released with a reason. Pure. It is a fold over changes, which follow from
// how operations ended and from what people released, in the order of their numbers: the store keeps them, each end's
// in one transaction with the end itself.
#ifndef RB_CONTROLLER_CORE_QUARANTINE_H_
#define RB_CONTROLLER_CORE_QUARANTINE_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"

namespace rb::controller {

struct QuarantineChange {
  enum class Kind {
    kQuarantined = 1,
    kReleased = 2,
    // The operation that had quarantined commits was taken back: they are released.
    kUndone = 3,
  };
  Kind kind = Kind::kQuarantined;
  // From 1, in the order in which they took effect.
  uint64_t number = 0;
  std::string service;
  // Empty for kUndone.
  std::string commit;
  std::string version;
  absl::Time at;
  // The operation; for kReleased the person.
  std::string by;
  std::string reason;
  // kUndone: the operation that was taken back.
  std::string undone_operation_id;
};

struct QuarantineEntry {
  std::string service;
  std::string commit;
  std::string version;
  // Why, for a person.
  std::string reason;
  // That has shown it to be bad.
  std::string operation_id;
  absl::Time since;
  bool released = false;
  std::string released_by;
  std::string release_reason;
  absl::Time released_at;
  // Of its last change.
  uint64_t number = 0;
};

// (service, commit) → its last state. What was released stays, so that agents that were away learn of it.
using Quarantine = std::map<std::pair<std::string, std::string>, QuarantineEntry>;

void Apply(const QuarantineChange& change, Quarantine* quarantine);

// What an operation that has ended (or was reported) changes; their numbers are not set. A drill changes nothing: its
// bad commit was made for it. An abort by a person says nothing about a commit that no probe found unhealthy.
std::vector<QuarantineChange> ChangesAtEnd(const Operation& operation);

// Of one service, by commit: what planning has to know.
std::map<std::string, QuarantinedCommit> QuarantinedOf(const Quarantine& quarantine, const std::string& service);

// The release of one commit by a person. `reference`: a commit, the beginning of one (4 digits or more), or a version;
// `service` may be empty when it is the only one that has it. Refused when nothing or more than one fits.
Refusal ResolveRelease(const Quarantine& quarantine, const std::string& reference, const std::string& service,
                       const std::string& reason, QuarantineChange* change);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_QUARANTINE_H_
