#include "agent/core/engine/bring_back.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace rb::agent {

Manifest MergeMissing(const LiveTree& live, const Manifest& release, const ServiceTree& tree,
                      const std::function<bool(const std::string& path)>& wanted) {
  std::map<std::string, const Entry*, bool (*)(absl::string_view, absl::string_view)> merged(PathLess);
  uint32_t groups = 0;
  for (const LiveEntry& each : live.entries) {
    merged[each.entry.path] = &each.entry;
    groups = std::max(groups, each.entry.hard_link_group);
  }
  std::map<std::string, const Entry*> folders;
  std::set<std::string> added;
  for (const Entry& entry : release.entries) {
    if (entry.type == EntryType::kFolder) folders[entry.path] = &entry;
    if (merged.count(entry.path) != 0 || IsIgnored(tree, entry.path) || !wanted(entry.path)) continue;
    // Every folder above has to be there, or to come along.
    std::vector<const Entry*> missing;
    bool has_place = true;
    for (std::string above(ParentPath(entry.path)); has_place; above = std::string(ParentPath(above))) {
      const auto present = merged.find(above);
      if (present != merged.end()) {
        has_place = present->second->type == EntryType::kFolder;
        break;
      }
      const auto known = folders.find(above);
      has_place = known != folders.end() && !IsIgnored(tree, above);
      if (has_place) missing.push_back(known->second);
    }
    if (!has_place) continue;
    for (const Entry* folder : missing) {
      merged[folder->path] = folder;
      added.insert(folder->path);
    }
    merged[entry.path] = &entry;
    added.insert(entry.path);
  }
  for (const std::string& database : tree.sqlite_paths) {
    if (added.count(database) == 0) continue;
    for (const char* suffix : {"-wal", "-shm", "-journal"}) {
      const std::string sidecar = absl::StrCat(database, suffix);
      if (added.count(sidecar) == 0) merged.erase(sidecar);
    }
  }
  Manifest result;
  result.entries.reserve(merged.size());
  for (const auto& [path, entry] : merged) {
    result.entries.push_back(*entry);
    // Groups of the two trees have nothing to do with each other.
    Entry& last = result.entries.back();
    if (added.count(path) != 0 && last.hard_link_group != 0) last.hard_link_group += groups;
  }
  return result;
}

}  // namespace rb::agent
