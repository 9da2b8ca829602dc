// Runs a workload on a real filesystem on a recording disk, then visits the states that a power cut could have left.
#ifndef RB_TESTS_CRASH_CRASH_RIG_H_
#define RB_TESTS_CRASH_CRASH_RIG_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rb::crash {

struct Workload {
  // Before recording: what is there at first. Flushed wholly before recording begins.
  std::function<absl::Status(const std::string& root)> prepare;
  // While recording. `acknowledge` records that something is now durable.
  std::function<absl::Status(const std::string& root, const std::function<void(const std::string&)>& acknowledge)> run;
  // On a crashed state, after a remount: recovers and looks. Returns what is wrong, or "". `acknowledged`: what had
  // been acknowledged by then, in order.
  std::function<std::string(const std::string& root, const std::vector<std::string>& acknowledged)> check;
};

struct RigOptions {
  // "ext4", "xfs" or "btrfs".
  std::string filesystem;
  // How many states to visit, of which no two hold the same on the disk: every prefix, then reordered and torn ones of
  // each in turn. Where that is less than there are prefixes, half of it is spread evenly over them.
  size_t states = 1000;
  uint64_t seed = 1;
};

struct RigReport {
  size_t operations = 0;
  size_t prefixes = 0;
  // Each with a content of its own. `exhausted`: fewer than were asked for, since no more were found.
  size_t states = 0;
  bool exhausted = false;
  size_t reordered_states = 0;
  // States in which `check` found something, and the first findings with the state that replays them.
  size_t bad_states = 0;
  std::vector<std::string> findings;
};

// Needs root. UNAVAILABLE, saying what is missing, where it cannot run at all.
absl::StatusOr<RigReport> VisitCrashStates(const Workload& workload, const RigOptions& options);

}  // namespace rb::crash

#endif  // RB_TESTS_CRASH_CRASH_RIG_H_
