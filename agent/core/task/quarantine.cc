#include "agent/core/task/quarantine.h"

#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace rb::agent {

std::string WhyQuarantined(const std::vector<QuarantineEntry>& list, const std::string& service,
                           const std::string& reference) {
  constexpr size_t kLeastDigits = 7;
  if (reference.empty()) return "";
  const std::string lower = absl::AsciiStrToLower(reference);
  for (const QuarantineEntry& entry : list) {
    if (entry.service != service || entry.released) continue;
    const bool is_commit = lower.size() >= kLeastDigits && absl::StartsWith(entry.commit, lower);
    if (is_commit || (!entry.version.empty() && entry.version == reference)) {
      return absl::StrCat(entry.commit.substr(0, 7), " is quarantined: ", entry.reason);
    }
  }
  return "";
}

std::vector<StandingChange> StandingChanges(const std::vector<QuarantineEntry>& before,
                                            const std::vector<QuarantineEntry>& after) {
  std::map<std::pair<std::string, std::string>, uint64_t> known;
  for (const QuarantineEntry& entry : before) known[{entry.service, entry.commit}] = entry.number;
  std::vector<StandingChange> changes;
  for (const QuarantineEntry& entry : after) {
    if (entry.commit.empty() || entry.number <= known[{entry.service, entry.commit}]) continue;
    StandingChange change;
    change.service = entry.service;
    change.commit = entry.commit;
    change.standing = entry.released ? Standing::kUnknown : Standing::kBad;
    change.reason = entry.released ? absl::StrCat("released from quarantine: ", entry.release_reason)
                                   : absl::StrCat("quarantined: ", entry.reason);
    changes.push_back(std::move(change));
  }
  return changes;
}

}  // namespace rb::agent
