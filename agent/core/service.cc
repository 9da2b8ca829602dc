#include "agent/core/service.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/text.h"

namespace rb::agent {
namespace {

bool MatchesAny(const std::vector<std::string>& globs, absl::string_view path) {
  return std::any_of(globs.begin(), globs.end(), [&](const std::string& glob) {
    // "data/**" claims the folder data as well: a folder goes with what is in it.
    return GlobMatches(glob, path) ||
           (absl::EndsWith(glob, "/**") && GlobMatches(absl::StripSuffix(glob, "/**"), path));
  });
}

}  // namespace

Component ComponentOf(const ServiceTree& tree, absl::string_view path) {
  if (MatchesAny(tree.data_globs, path)) return Component::kData;
  if (MatchesAny(tree.config_globs, path)) return Component::kConfig;
  for (const std::string& database : tree.sqlite_paths) {
    for (const absl::string_view suffix : {"", "-wal", "-shm", "-journal"}) {
      if (path.size() == database.size() + suffix.size() && absl::StartsWith(path, database) &&
          absl::EndsWith(path, suffix)) {
        return Component::kData;
      }
    }
  }
  return Component::kCode;
}

bool IsIgnored(const ServiceTree& tree, absl::string_view path) {
  // Where the tree is a mount the staging folder lies inside it.
  if (path == ".rb-staging") return true;
  return MatchesAny(tree.ignore_globs, path);
}

}  // namespace rb::agent
