// What the tree is to become, and what that changes.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/core/engine/changes.h"
#include "agent/core/engine/chunker.h"
#include "agent/core/engine/engine_impl.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/release_files.h"
#include "agent/core/engine/text_diff.h"
#include "agent/core/engine/walk.h"
#include "common/durable_file.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kConfigDiffBytes = 16 << 10;

}  // namespace

absl::StatusOr<Delta> EngineImpl::Compare(const EngineTarget& target, const Components& components) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
  RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession(ObjectStore::Knows::kLater));
  RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(false, true, components.data));
  RB_RETURN_IF_ERROR(Settle(&live));
  RB_ASSIGN_OR_RETURN(const Manifest manifest, LoadTargetManifest(target, live));
  RB_ASSIGN_OR_RETURN(const std::optional<std::vector<std::string>> baseline, BaselinePaths(target));
  RB_ASSIGN_OR_RETURN(ChangeSet changes, ComputeChanges(live.live, manifest, Rules(components, &baseline)));
  RB_RETURN_IF_ERROR(AddDatabases(target, components, manifest, &changes.delta));
  changes.delta.config_diff = ConfigDiff(changes, live, manifest);
  RB_RETURN_IF_ERROR(AddDataLoss(target, components, live, manifest, &changes.delta));
  return std::move(changes.delta);
}

absl::StatusOr<std::string> EngineImpl::ReadPrepared(const std::string& operation_id, const std::string& path) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(const Manifest manifest, PreparedManifest(operation_id));
  const Entry* entry = Find(manifest, path);
  if (entry == nullptr || entry->type != EntryType::kFile) {
    return absl::NotFoundError(absl::StrCat("the target has no file ", Printable(path)));
  }
  return ReadContent(*entry, 16 << 20);
}

absl::StatusOr<std::vector<std::string>> EngineImpl::ListPrepared(const std::string& operation_id,
                                                                  absl::string_view glob) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(const Manifest manifest, PreparedManifest(operation_id));
  std::vector<std::string> paths;
  for (const Entry& entry : manifest.entries) {
    if (entry.type == EntryType::kFile && GlobMatches(glob, entry.path)) paths.push_back(entry.path);
  }
  return paths;
}

ChangeRules EngineImpl::Rules(const Components& components,
                              const std::optional<std::vector<std::string>>* baseline) const {
  ChangeRules rules;
  rules.tree = &tree_;
  rules.components = components;
  if (baseline == nullptr || !baseline->has_value()) {
    rules.is_removable = [](const std::string&) { return true; };
  } else {
    rules.is_removable = [paths = **baseline](const std::string& path) {
      // A folder goes when everything in it does; whether it does is decided by what it holds.
      if (std::binary_search(paths.begin(), paths.end(), path)) return true;
      const auto below = std::lower_bound(paths.begin(), paths.end(), path + "/");
      return below != paths.end() && IsBelow(*below, path);
    };
  }
  return rules;
}

absl::StatusOr<std::optional<std::vector<std::string>>> EngineImpl::BaselinePaths(const EngineTarget& target) const {
  if (target.snapshot == nullptr) return std::optional<std::vector<std::string>>();
  std::vector<std::string> paths;
  if (target.baseline != nullptr) {
    RB_RETURN_IF_ERROR(target.baseline->ForEach([&](const SnapshotSource::Entry& entry) {
      paths.push_back(entry.path);
      return absl::OkStatus();
    }));
  }
  std::sort(paths.begin(), paths.end());
  return std::optional<std::vector<std::string>>(std::move(paths));
}

bool EngineImpl::Equals(const LiveTree& live, const std::string& release_name) const {
  if (release_name.empty()) return false;
  const absl::StatusOr<Manifest> manifest = LoadReleaseManifest(release_name);
  if (!manifest.ok()) return false;
  ChangeRules rules = Rules(Components(), nullptr);
  rules.with_git_folder = false;
  const absl::StatusOr<ChangeSet> changes = ComputeChanges(live, *manifest, rules);
  return changes.ok() && changes->delta.empty();
}

absl::StatusOr<Manifest> EngineImpl::LoadTargetManifest(const EngineTarget& target, const Snapshot& live) {
  return target.snapshot != nullptr ? ImportSnapshot(target, live) : LoadReleaseManifest(target.release_name);
}

absl::StatusOr<Manifest> EngineImpl::ImportSnapshot(const EngineTarget& target, const Snapshot& live) {
  ContentIds ids = files_.LoadContentIds();
  const size_t known_before = ids.size();
  const std::unique_ptr<ObjectStore::Writer> writer = store_->NewWriter();
  const Entry& root = live.live.entries.front().entry;
  const auto uid = tree_.owner_uid >= 0 ? static_cast<uint32_t>(tree_.owner_uid) : root.attributes.uid;
  const auto gid = tree_.owner_gid >= 0 ? static_cast<uint32_t>(tree_.owner_gid) : root.attributes.gid;
  const int64_t commit_time_ns = absl::ToUnixNanos(target.snapshot->ModificationTime());
  std::map<std::string, Entry, bool (*)(absl::string_view, absl::string_view)> entries(PathLess);
  const auto put_folders = [&](absl::string_view path) {
    for (absl::string_view folder = ParentPath(path);; folder = ParentPath(folder)) {
      const std::string name(folder);
      if (entries.count(name) != 0) return;
      Entry entry;
      entry.path = name;
      entry.type = EntryType::kFolder;
      const Entry* present = Find(live.live, name);
      if (present != nullptr && present->type == EntryType::kFolder) {
        entry.attributes = present->attributes;
      } else {
        entry.attributes.mode = 0755;
        entry.attributes.uid = uid;
        entry.attributes.gid = gid;
        entry.attributes.mtime_ns = commit_time_ns;
      }
      entries.emplace(name, std::move(entry));
      if (name.empty()) return;
    }
  };
  put_folders("x");
  absl::Status visited = target.snapshot->ForEach([&](const SnapshotSource::Entry& source) -> absl::Status {
    RB_RETURN_IF_ERROR(CheckCancelled());
    if (IsIgnored(tree_, source.path)) return absl::OkStatus();
    Entry entry;
    entry.path = source.path;
    entry.attributes.uid = uid;
    entry.attributes.gid = gid;
    entry.attributes.mtime_ns = commit_time_ns;
    if (source.type == SnapshotSource::Entry::Type::kSymlink) {
      entry.type = EntryType::kSymlink;
      entry.attributes.mode = 0777;
      std::string link_target;
      RB_RETURN_IF_ERROR(target.snapshot->Read(source.content_id, &link_target));
      entry.link_target = std::move(link_target);
    } else {
      entry.attributes.mode = source.type == SnapshotSource::Entry::Type::kExecutable ? 0755 : 0644;
      RB_RETURN_IF_ERROR(ImportContent(target.snapshot, source, writer.get(), &ids, &entry));
    }
    // What is the same stays as it is, owner and time included.
    const Entry* present = Find(live.live, source.path);
    if (present != nullptr && present->SameContent(entry)) {
      const uint32_t executable = entry.attributes.mode & 0111;
      const bool same_kind =
          entry.type == EntryType::kSymlink || ((present->attributes.mode & 0100) != 0) == (executable != 0);
      const bool is_config = ComponentOf(tree_, source.path) == Component::kConfig;
      const uint32_t own_mode = entry.attributes.mode;
      const bool right_owner = present->attributes.uid == uid && present->attributes.gid == gid;
      if (right_owner || is_config) {
        entry.attributes = present->attributes;
        if (!same_kind) entry.attributes.mode = own_mode;
        entry.hard_link_group = 0;
        entry.sparse = present->sparse;
      }
    }
    put_folders(source.path);
    entries.emplace(source.path, std::move(entry));
    return absl::OkStatus();
  });
  RB_RETURN_IF_ERROR(visited);
  RB_RETURN_IF_ERROR(writer->Finish());
  if (ids.size() != known_before) RB_RETURN_IF_ERROR(files_.SaveContentIds(ids));
  Manifest manifest;
  for (auto& [path, entry] : entries) manifest.entries.push_back(std::move(entry));
  return manifest;
}

absl::Status EngineImpl::ImportContent(SnapshotSource* snapshot, const SnapshotSource::Entry& source,
                                       ObjectStore::Writer* writer, ContentIds* ids, Entry* entry) {
  entry->size = source.size;
  if (source.size == 0) return absl::OkStatus();
  const auto known = ids->find(source.content_id);
  if (known != ids->end() && std::all_of(known->second.begin(), known->second.end(),
                                         [&](const Digest& chunk) { return store_->Contains(chunk); })) {
    entry->chunks = known->second;
    return absl::OkStatus();
  }
  std::string content;
  RB_RETURN_IF_ERROR(snapshot->Read(source.content_id, &content));
  entry->size = content.size();
  absl::string_view rest = content;
  while (!rest.empty()) {
    const bool whole = entry->chunks.empty() && rest.size() <= kWholeFileBytes;
    const size_t length = whole ? rest.size() : FirstChunkLength(rest);
    const Digest digest = Sha256Of(rest.substr(0, length));
    entry->chunks.push_back(digest);
    if (!store_->Contains(digest)) RB_RETURN_IF_ERROR(writer->Put(digest, rest.substr(0, length)));
    rest.remove_prefix(length);
  }
  (*ids)[source.content_id] = entry->chunks;
  return absl::OkStatus();
}

absl::StatusOr<Manifest> EngineImpl::PreparedManifest(const std::string& operation_id) {
  RB_ASSIGN_OR_RETURN(const Journal journal, ReadJournal());
  if (!journal.present || journal.intent.operation_id != operation_id) {
    return absl::FailedPreconditionError(absl::StrCat("operation ", operation_id, " is not prepared"));
  }
  if (journal.intent.target_manifest_file.empty()) {
    RB_ASSIGN_OR_RETURN(const Release release, files_.Load(journal.intent.target_release));
    return files_.LoadManifest(release);
  }
  return files_.LoadTarget(journal.intent.target_manifest_file);
}

std::string EngineImpl::ConfigDiff(const ChangeSet& changes, const Snapshot& live, const Manifest& manifest) {
  std::string diff;
  for (const Change& change : changes.changes) {
    if (change.kind == Change::Kind::kAttributes || diff.size() >= kConfigDiffBytes) continue;
    if (ComponentOf(tree_, change.path) != Component::kConfig) continue;
    std::string before;
    std::string after;
    if (change.kind != Change::Kind::kAdd && live.live.entries[change.live_index].entry.type == EntryType::kFile) {
      const absl::StatusOr<std::string> content = ReadFile(absl::StrCat(tree_.tree, "/", change.path), 1 << 20);
      before = content.ok() ? *content : "";
    }
    if (change.kind != Change::Kind::kRemove && manifest.entries[change.target_index].type == EntryType::kFile) {
      const absl::StatusOr<std::string> content = ReadContent(manifest.entries[change.target_index], 1 << 20);
      after = content.ok() ? *content : "";
    }
    absl::StrAppend(&diff, UnifiedDiff(change.path, before, after));
  }
  return Truncate(diff, kConfigDiffBytes);
}

absl::Status EngineImpl::AddDataLoss(const EngineTarget& target, const Components& components, const Snapshot& live,
                                     const Manifest& manifest, Delta* delta) {
  if (!components.data || target.release_name.empty()) return absl::OkStatus();
  RB_ASSIGN_OR_RETURN(const Release release, files_.Load(target.release_name));
  delta->data_age = std::max(absl::ZeroDuration(), options_.clock->Now() - release.captured_at);
  if (options_.database_copier == nullptr) return absl::OkStatus();
  for (const std::string& path : tree_.sqlite_paths) {
    const Entry* now = Find(live.live, path);
    const Entry* then = Find(manifest, path);
    if (now == nullptr || then == nullptr || now->SameContent(*then) || then->type != EntryType::kFile) continue;
    const std::string copy = absl::StrCat(files_.folder(), "/database-copy-", RandomHex(4));
    std::map<std::string, std::pair<uint64_t, uint64_t>> rows;
    if (options_.database_copier->Copy(absl::StrCat(tree_.tree, "/", path), copy).ok()) {
      const auto counted = options_.database_copier->CountRows(copy);
      if (counted.ok()) {
        for (const auto& [table, count] : *counted) rows[table].first = count;
      }
    }
    unlink(copy.c_str());
    absl::StatusOr<std::map<std::string, uint64_t>> counted = absl::UnknownError("");
    if (const absl::Status written = WriteContentTo(*then, copy); written.ok()) {
      counted = options_.database_copier->CountRows(copy);
    } else if (absl::IsCancelled(written)) {
      return written;
    }
    unlink(copy.c_str());
    if (!counted.ok() || rows.empty()) continue;
    for (const auto& [table, count] : *counted) rows[table].second = count;
    for (const auto& [table, count] : rows) {
      if (count.first == count.second || delta->table_rows.size() == kSamplesKept) continue;
      delta->table_rows.push_back({path, table, count.first, count.second});
    }
  }
  return absl::OkStatus();
}

absl::Status EngineImpl::WriteContentTo(const Entry& entry, const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("create ", path));
  for (const Digest& chunk : entry.chunks) {
    RB_RETURN_IF_ERROR(CheckCancelled());
    RB_ASSIGN_OR_RETURN(const std::string content, store_->Get(chunk));
    RB_RETURN_IF_ERROR(WriteAll(fd.get(), content, path));
  }
  return absl::OkStatus();
}

}  // namespace rb::agent
