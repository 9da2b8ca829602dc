// Hosts that missed an operation: what they should be on. Nothing is done about it but by `rbctl repair HOST`.
//
// Intents follow from how operations ended, so they are not kept apart from the history: whoever starts folds the ends
// that it finds there, oldest first.
#ifndef RB_CONTROLLER_CORE_INTENT_H_
#define RB_CONTROLLER_CORE_INTENT_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "controller/core/plan.h"

namespace rb::controller {

// After this nobody can mean it any more.
inline constexpr absl::Duration kIntentLife = absl::Hours(7 * 24);

// What one operation that has ended left behind.
struct OperationEnd {
  struct Host {
    enum class Ended {
      kOnTarget,
      // On what it had.
      kOnOld,
      // It did not answer in the end.
      kUnknown,
      // It was offline when the operation was planned.
      kMissed,
    };
    std::string name;
    std::string environment;
    Ended ended = Ended::kUnknown;
    // What it had; empty if not known.
    std::string from_commit;
  };
  std::string id;
  std::string service;
  absl::Time at;
  std::string to_commit;
  std::string to_version;
  std::vector<Host> hosts;
};

struct Intent {
  std::string operation_id;
  std::string environment;
  std::string service;
  std::string host;
  std::string commit;
  // Of the commit; empty if not known.
  std::string version;
  absl::Time expires_at;
};

// (service, host) → what it should be on.
using Intents = std::map<std::pair<std::string, std::string>, Intent>;

// A host that took part has no intent any more; one that missed it, or was not heard of at the end, is meant to be
// where the others are: on the target if any of them is, else on what it had.
void LearnEnd(const OperationEnd& end, Intents* intents);

// The host runs what it should: forgets the intent.
void LearnReport(const std::string& service, const std::string& host, const std::string& commit, bool drifted,
                 Intents* intents);

// Fills in environment, service and target of a repair; `spec.hosts` names one host, `spec.service` may be empty.
// Refuses when the host has missed nothing, or too long ago.
Refusal ResolveRepair(const Intents& intents, absl::Time now, OperationSpec* spec);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_INTENT_H_
