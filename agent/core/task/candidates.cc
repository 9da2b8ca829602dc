#include "agent/core/task/candidates.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kMostCandidates = 10;

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); });
}

bool Matches(const Release& release, const std::string& name) {
  if (release.name == name || absl::EndsWith(release.name, "/" + name)) return true;
  if (!release.version.empty() && release.version == name) return true;
  const std::string lower = absl::AsciiStrToLower(name);
  if (name.size() < 4 || !IsHex(name)) return false;
  return absl::StartsWith(release.commit, lower) || absl::StartsWith(release.manifest_digest, lower);
}

// A tree that was changed by hand is not its release any more, and may need to go back to it.
bool IsCurrent(const Release& release, const Current& current) {
  if (current.drifted) return false;
  if (release.name == current.release_name) return true;
  return !release.commit.empty() && release.commit == current.commit;
}

Candidate ToCandidate(const Release& release, bool force) {
  Candidate candidate;
  candidate.method = Method::kBackup;
  candidate.release = release;
  candidate.commit = release.commit;
  candidate.version = release.version;
  if (force) return candidate;
  if (release.standing == Standing::kBad) {
    candidate.refused_because =
        absl::StrCat("is bad", release.reason.empty() ? "" : absl::StrCat(": ", release.reason));
  } else if (release.durability == Durability::kCaptured) {
    candidate.refused_because = "is damaged or unfinished";
  } else if (release.entry_count <= 1) {
    candidate.refused_because = "is empty";
  }
  return candidate;
}

// Usable ones first; good before unknown; proved before not; newer before older.
bool Better(const Candidate& a, const Candidate& b) {
  const auto rank = [](const Candidate& candidate) {
    return std::make_tuple(candidate.refused_because.empty() ? 0 : 1,
                           candidate.release.standing == Standing::kGood ? 0 : 1,
                           candidate.release.durability == Durability::kProved ? 0 : 1);
  };
  if (rank(a) != rank(b)) return rank(a) < rank(b);
  return a.release.captured_at > b.release.captured_at;
}

}  // namespace

std::vector<Candidate> ChooseReleases(const TargetReference& target, const std::vector<Release>& releases,
                                      const Current& current, const Components& components) {
  std::vector<Candidate> candidates;
  absl::Time current_since = absl::InfiniteFuture();
  for (const Release& release : releases) {
    if (release.name == current.release_name) current_since = release.captured_at;
  }
  for (const Release& release : releases) {
    bool wanted = false;
    bool only_first = true;
    switch (target.kind) {
      case TargetReference::Kind::kNone:
        break;
      case TargetReference::Kind::kNamed:
        wanted = Matches(release, target.name);
        only_first = false;
        break;
      case TargetReference::Kind::kLastGood:
        // Where the code stays, what was good of this very commit is nearest: it is not the code that is to blame.
        wanted = release.standing == Standing::kGood && (!components.code || !IsCurrent(release, current));
        break;
      case TargetReference::Kind::kPrevious:
        wanted = !IsCurrent(release, current) &&
                 (current_since == absl::InfiniteFuture() || release.captured_at < current_since);
        break;
      case TargetReference::Kind::kBefore:
        wanted = release.standing == Standing::kGood && release.captured_at < target.before;
        break;
    }
    if (!wanted) continue;
    if (only_first && !candidates.empty()) {
      // Others of the same commit may be proved where the newest is not.
      if (release.commit.empty() || release.commit != candidates[0].commit) continue;
    }
    candidates.push_back(ToCandidate(release, target.force));
  }
  std::stable_sort(candidates.begin(), candidates.end(), Better);
  if (candidates.size() > kMostCandidates) candidates.resize(kMostCandidates);
  return candidates;
}

std::string WhyCommitIsBad(const std::vector<Release>& releases, const std::string& commit) {
  std::string why;
  for (const Release& release : releases) {
    if (release.commit != commit) continue;
    // What was rolled back from was this commit with a damaged database, or a config that somebody had changed.
    if (release.standing == Standing::kGood) return "";
    if (why.empty() && release.standing == Standing::kBad) why = ToCandidate(release, false).refused_because;
  }
  return why;
}

std::vector<Candidate> ListInstead(const TargetReference& target, const std::vector<Release>& releases) {
  std::string because;
  switch (target.kind) {
    case TargetReference::Kind::kNamed:
      because = absl::StrCat("is not ", Printable(target.name));
      break;
    case TargetReference::Kind::kBefore:
      because = absl::StrCat("is not a good release from before ", FormatUtc(target.before));
      break;
    case TargetReference::Kind::kPrevious:
      because = "did not run before what runs now";
      break;
    case TargetReference::Kind::kLastGood:
    case TargetReference::Kind::kNone:
      because = "is not good, or is what runs now";
      break;
  }
  std::vector<Candidate> candidates;
  for (const Release& release : releases) {
    if (candidates.size() == kMostCandidates) break;
    Candidate candidate = ToCandidate(release, true);
    candidate.refused_because = because;
    candidates.push_back(std::move(candidate));
  }
  return candidates;
}

}  // namespace rb::agent
