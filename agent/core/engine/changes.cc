#include "agent/core/engine/changes.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kSamplesKept = 20;

// The first path of each entry's hard-link group: two trees link alike when these are alike.
std::vector<std::string> FirstOfGroups(const std::vector<const Entry*>& entries) {
  std::map<uint32_t, std::string> first;
  std::vector<std::string> result;
  result.reserve(entries.size());
  for (const Entry* entry : entries) {
    if (entry->hard_link_group == 0) {
      result.emplace_back();
    } else {
      result.push_back(first.try_emplace(entry->hard_link_group, entry->path).first->second);
    }
  }
  return result;
}

class Differ {
 public:
  Differ(const LiveTree& live, const Manifest& target, const ChangeRules& rules)
      : live_(live.entries), target_(target.entries), rules_(rules) {
    result_.delta.not_captured = live.not_captured;
  }

  absl::StatusOr<ChangeSet> Run() {
    MarkChangedLinkGroups();
    size_t l = 0;
    size_t t = 0;
    while (l < live_.size() || t < target_.size()) {
      const bool only_live =
          t == target_.size() || (l < live_.size() && PathLess(live_[l].entry.path, target_[t].path));
      const bool only_target = !only_live && (l == live_.size() || PathLess(target_[t].path, live_[l].entry.path));
      if (only_live) {
        l = Removed(l);
      } else if (only_target) {
        t = Added(t);
      } else {
        absl::Status status;
        std::tie(l, t) = Both(l, t, &status);
        if (!status.ok()) return status;
      }
    }
    FolderAttributes();
    std::sort(samples_.begin(), samples_.end());
    samples_.erase(std::unique(samples_.begin(), samples_.end()), samples_.end());
    for (size_t i = 0; i < samples_.size() && i < kSamplesKept; ++i) {
      result_.delta.sample_paths.push_back(Printable(samples_[i]));
    }
    return std::move(result_);
  }

 private:
  bool Selected(const std::string& path) const {
    if (path.empty()) return rules_.components.code;
    if (!rules_.with_git_folder && (path == ".git" || IsBelow(path, ".git"))) return false;
    return !IsIgnored(*rules_.tree, path) && rules_.components.Contains(ComponentOf(*rules_.tree, path));
  }
  bool Removable(const LiveEntry& live) const {
    return !live.entry.path.empty() && Selected(live.entry.path) && rules_.is_removable(live.entry.path);
  }
  size_t EndOfLiveFolder(size_t l) const {
    size_t end = l + 1;
    while (end < live_.size() && IsBelow(live_[end].entry.path, live_[l].entry.path)) ++end;
    return end;
  }
  // All of a live folder may go at once.
  bool WhollyRemovable(size_t l) const {
    if (live_[l].holds_unmanaged) return false;
    const size_t end = EndOfLiveFolder(l);
    for (size_t i = l; i < end; ++i) {
      if (!Removable(live_[i])) return false;
    }
    return true;
  }
  void Count(uint64_t* counter, const std::string& path) {
    ++*counter;
    samples_.push_back(path);
  }
  void CountRemoved(const LiveEntry& live) {
    Count(live.entry.type == EntryType::kFile ? &result_.delta.files_removed : &result_.delta.other_changes,
          live.entry.path);
  }
  void CountStaged(const Entry& entry, bool is_new) {
    if (entry.type == EntryType::kFile) {
      Count(is_new ? &result_.delta.files_added : &result_.delta.files_changed, entry.path);
      result_.delta.bytes_to_stage += entry.size;
    } else {
      Count(&result_.delta.other_changes, entry.path);
    }
  }
  void Touch(const std::string& path) { touched_.push_back(std::string(ParentPath(path))); }

  // Takes what is only live; returns the next index.
  size_t Removed(size_t l) {
    const LiveEntry& live = live_[l];
    if (!Removable(live)) return l + 1;
    if (live.entry.type == EntryType::kFolder && !WhollyRemovable(l)) {
      // The folder stays for what it holds; what is ours below it goes.
      return l + 1;
    }
    const size_t end = live.entry.type == EntryType::kFolder ? EndOfLiveFolder(l) : l + 1;
    for (size_t i = l; i < end; ++i) CountRemoved(live_[i]);
    Change change;
    change.kind = Change::Kind::kRemove;
    change.path = live.entry.path;
    change.live_index = l;
    result_.changes.push_back(std::move(change));
    Touch(live.entry.path);
    return end;
  }

  // The entries below target folder `t` that are to be staged with it; returns the index after all below it.
  size_t StageBelow(size_t t, std::vector<size_t>* staged) {
    size_t end = t + 1;
    for (; end < target_.size() && IsBelow(target_[end].path, target_[t].path); ++end) {
      if (!Selected(target_[end].path)) continue;
      CountStaged(target_[end], true);
      staged->push_back(end);
    }
    return end;
  }

  size_t Added(size_t t) {
    const Entry& entry = target_[t];
    if (!Selected(entry.path)) {
      // A folder of another component that leads to selected paths is passed over, and so are they: without it there is
      // no place for them. Selected paths whose parents are there are met on their own.
      return t + 1;
    }
    CountStaged(entry, true);
    Change change;
    change.kind = Change::Kind::kAdd;
    change.path = entry.path;
    change.target_index = t;
    const size_t end = entry.type == EntryType::kFolder ? StageBelow(t, &change.staged_below) : t + 1;
    result_.changes.push_back(std::move(change));
    Touch(entry.path);
    return end;
  }

  std::pair<size_t, size_t> Both(size_t l, size_t t, absl::Status* status) {
    const LiveEntry& live = live_[l];
    const Entry& entry = target_[t];
    const bool live_is_folder = live.entry.type == EntryType::kFolder;
    const bool target_is_folder = entry.type == EntryType::kFolder;
    // First what nearly all are: the same. Whether a path is selected takes matching it against patterns.
    const bool same = live.entry.attributes == entry.attributes && live.entry.SameContent(entry) &&
                      (live_is_folder || relinked_.empty() || !relinked_.contains(entry.path));
    if (same || !Selected(entry.path)) return {l + 1, t + 1};
    if (live_is_folder && target_is_folder) {
      if (!live.entry.attributes.EqualsButForTime(entry.attributes)) {
        Count(&result_.delta.other_changes, entry.path);
      }
      attribute_changes_.emplace_back(entry.path, std::make_pair(l, t));
      return {l + 1, t + 1};
    }
    Change change;
    change.kind = Change::Kind::kExchange;
    change.path = entry.path;
    change.target_index = t;
    change.live_index = l;
    size_t next_live = l + 1;
    size_t next_target = t + 1;
    if (live_is_folder) {
      if (!WhollyRemovable(l)) {
        *status = absl::FailedPreconditionError(
            absl::StrCat(Printable(entry.path),
                         " is a folder that has to give way to a file of the target, but it holds "
                         "what must not be moved (ignored, another component, or a socket). Nothing was changed. Move "
                         "that away, or widen what is rolled back"));
        return {l, t};
      }
      next_live = EndOfLiveFolder(l);
      for (size_t i = l + 1; i < next_live; ++i) CountRemoved(live_[i]);
    }
    CountStaged(entry, false);
    if (target_is_folder) next_target = StageBelow(t, &change.staged_below);
    result_.changes.push_back(std::move(change));
    Touch(entry.path);
    return {next_live, next_target};
  }

  // Members of a link group are one file: when one of them has to change, or they are linked otherwise, all are staged.
  void MarkChangedLinkGroups() {
    const bool any_links =
        std::any_of(live_.begin(), live_.end(),
                    [](const LiveEntry& live) { return live.entry.hard_link_group != 0; }) ||
        std::any_of(target_.begin(), target_.end(), [](const Entry& entry) { return entry.hard_link_group != 0; });
    if (!any_links) return;  // as nearly always: what differs by itself is seen without this
    std::vector<const Entry*> live_entries;
    absl::flat_hash_map<std::string, size_t> live_at;
    for (size_t i = 0; i < live_.size(); ++i) {
      live_entries.push_back(&live_[i].entry);
      live_at[live_[i].entry.path] = i;
    }
    std::vector<const Entry*> target_entries;
    for (const Entry& entry : target_) target_entries.push_back(&entry);
    const std::vector<std::string> live_first = FirstOfGroups(live_entries);
    const std::vector<std::string> target_first = FirstOfGroups(target_entries);
    absl::flat_hash_map<std::string, bool> group_changes;
    for (int pass = 0; pass < 2; ++pass) {
      for (size_t t = 0; t < target_.size(); ++t) {
        const Entry& entry = target_[t];
        if (entry.type == EntryType::kFolder || !Selected(entry.path)) continue;
        const auto found = live_at.find(entry.path);
        const std::string first = found == live_at.end() ? "" : live_first[found->second];
        bool changes = found == live_at.end() || first != target_first[t] ||
                       !live_[found->second].entry.SameContent(entry) ||
                       live_[found->second].entry.attributes != entry.attributes;
        if (pass == 0) {
          if (changes && entry.hard_link_group != 0) group_changes[target_first[t]] = true;
        } else {
          if (entry.hard_link_group != 0 && group_changes.contains(target_first[t])) changes = true;
          if (changes) relinked_.insert(entry.path);
        }
      }
    }
  }

  void FolderAttributes() {
    // Moving names in and out changes a folder's time: every touched folder gets its own again at the end.
    std::sort(touched_.begin(), touched_.end());
    touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
    for (const std::string& path : touched_) {
      const auto live =
          std::lower_bound(live_.begin(), live_.end(), path,
                           [](const LiveEntry& each, const auto& wanted) { return PathLess(each.entry.path, wanted); });
      const auto target =
          std::lower_bound(target_.begin(), target_.end(), path,
                           [](const Entry& each, const auto& wanted) { return PathLess(each.path, wanted); });
      if (live == live_.end() || target == target_.end() || live->entry.path != path || target->path != path) continue;
      if (live->entry.type != EntryType::kFolder || target->type != EntryType::kFolder || !Selected(path)) continue;
      attribute_changes_.emplace_back(path, std::make_pair(live - live_.begin(), target - target_.begin()));
    }
    std::sort(attribute_changes_.begin(), attribute_changes_.end(),
              [](const auto& a, const auto& b) { return PathLess(b.first, a.first); });
    std::string previous = "/";
    for (const auto& [path, indices] : attribute_changes_) {
      if (path == previous) continue;
      previous = path;
      Change change;
      change.kind = Change::Kind::kAttributes;
      change.path = path;
      change.live_index = indices.first;
      change.target_index = indices.second;
      result_.changes.push_back(std::move(change));
    }
  }

  const std::vector<LiveEntry>& live_;
  const std::vector<Entry>& target_;
  const ChangeRules& rules_;
  absl::flat_hash_set<std::string> relinked_;
  std::vector<std::pair<std::string, std::pair<size_t, size_t>>> attribute_changes_;
  std::vector<std::string> touched_;
  std::vector<std::string> samples_;
  ChangeSet result_;
};

}  // namespace

absl::StatusOr<ChangeSet> ComputeChanges(const LiveTree& live, const Manifest& target, const ChangeRules& rules) {
  return Differ(live, target, rules).Run();
}

}  // namespace rb::agent
