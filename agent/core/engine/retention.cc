#include "agent/core/engine/retention.h"

namespace rb::agent {

std::vector<std::string> ReleasesToRemove(const std::vector<Release>& newest_first, uint32_t keep_good,
                                          const std::set<std::string>& referred) {
  std::vector<std::string> removed;
  uint32_t good = 0;
  uint32_t others = 0;
  bool proved = false;
  for (const Release& release : newest_first) {
    bool keep = release.pinned || referred.count(release.name) != 0;
    if (release.durability == Durability::kProved && release.standing != Standing::kBad && !proved) {
      proved = true;
      keep = true;
    }
    if (good < keep_good) {
      // One that is damaged cannot be gone back to, however good it was.
      const bool is_good = release.standing == Standing::kGood && release.durability != Durability::kCaptured;
      uint32_t& count = is_good ? good : others;
      if (count < keep_good) {
        ++count;
        keep = true;
      }
    }
    if (!keep) removed.push_back(release.name);
  }
  return removed;
}

}  // namespace rb::agent
