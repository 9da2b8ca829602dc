#ifndef RB_AGENT_CORE_PORTS_HOST_EXAMINER_H_
#define RB_AGENT_CORE_PORTS_HOST_EXAMINER_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace rb::agent {

struct DiskFacts {
  uint64_t free_bytes = 0;
  // 0: not known.
  uint64_t total_bytes = 0;
  uint64_t free_inodes = 0;
  uint64_t total_inodes = 0;
};

// What whoever has to rely on this host wants to know before; mirrors proto/rb/v1/agent_link.proto, where each field is
// explained.
struct HostFacts {
  absl::Time clock_at;
  DiskFacts tree_disk;
  DiskFacts state_disk;
  std::string expected_owner;
  std::string tree_owner;
  uint64_t foreign_entries = 0;
  std::vector<std::string> foreign_samples;
  std::vector<std::string> exposed_folders;
  bool unit_needs_reload = false;
  std::string unit_problem;
  absl::Time git_fetched_at = absl::InfinitePast();
  bool has_git = false;
  std::string git_problem;
  std::vector<std::string> config_problems;
  std::vector<std::string> probe_problems;
  bool looked_at_all = true;
};

// Looks at the host around one service. Reads only.
class HostExaminer {
 public:
  virtual ~HostExaminer() = default;
  // Blocks for a few seconds at most; gives what it has as soon as `hurry` is true.
  virtual HostFacts Examine(const std::atomic<bool>& hurry) = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_HOST_EXAMINER_H_
