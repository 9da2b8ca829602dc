// What the live tree holds now, and a release of it.
#include <fcntl.h>
#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <thread>
#include <tuple>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "agent/core/engine/changes.h"
#include "agent/core/engine/chunker.h"
#include "agent/core/engine/engine_impl.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/release_files.h"
#include "agent/core/engine/tree_files.h"
#include "agent/core/engine/walk.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

// A file whose ctime is this close to when it was read may change again without its ctime changing: it is read again
// next time. Kernel timestamps move in steps of up to 10 ms.
constexpr int64_t kRacyNs = 20'000'000;
constexpr size_t kLeastReadBytes = 16 << 10;
constexpr size_t kMostReadBytes = 4 << 20;
// What has to be seen of a file to cut it, or to know that it is kept whole.
constexpr size_t kSeenBytes = std::max<size_t>(kMostChunkBytes, kWholeFileBytes + 1);
constexpr size_t kManyEntries = 100000;

}  // namespace

absl::StatusOr<Release> EngineImpl::Capture(const CaptureRequest& request) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
  RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession(ObjectStore::Knows::kLater));
  RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(true, false, false));
  RB_RETURN_IF_ERROR(DumpDatabases(&live));
  RB_ASSIGN_OR_RETURN(Release release, RecordRelease(&live, request, true));
  if (!request.make_current) return release;
  Current current;
  current.release_name = release.name;
  current.commit = release.commit;
  current.version = release.version;
  RB_RETURN_IF_ERROR(files_.SaveCurrent(current));
  return release;
}

std::string EngineImpl::LiveDigest(const LiveTree& live) const {
  std::string all;
  for (const LiveEntry& each : live.entries) {
    if (ComponentOf(tree_, each.entry.path) == Component::kData) continue;
    // A folder's time changes with caches that are ignored.
    const bool is_folder = each.entry.type == EntryType::kFolder;
    absl::StrAppend(&all, each.entry.path, "\n", each.inode, " ", is_folder ? 0 : each.ctime_ns, " ", each.entry.size,
                    "\n");
  }
  return Sha256Of(all).ToHex();
}

absl::StatusOr<Current> EngineImpl::CheckDrift() {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(Current current, files_.LoadCurrent());
  if (current.release_name.empty()) return current;
  RB_ASSIGN_OR_RETURN(const FileLock process_lock, LockService());
  RB_ASSIGN_OR_RETURN(const ObjectStore::Session session, store_->StartSession(ObjectStore::Knows::kLater));
  RB_ASSIGN_OR_RETURN(const Release release, files_.Load(current.release_name));
  RB_ASSIGN_OR_RETURN(const Manifest manifest, files_.LoadManifest(release));
  RB_ASSIGN_OR_RETURN(Snapshot live, TakeSnapshot(false, true, false));
  RB_RETURN_IF_ERROR(Settle(&live));
  ChangeRules rules = Rules(Components(), nullptr);
  rules.with_git_folder = false;
  RB_ASSIGN_OR_RETURN(const ChangeSet changes, ComputeChanges(live.live, manifest, rules));
  const bool drifted = !changes.delta.empty();
  if (drifted != current.drifted) {
    current.drifted = drifted;
    RB_RETURN_IF_ERROR(files_.SaveCurrent(current));
  }
  if (drifted) current.live_digest = LiveDigest(live.live);
  return current;
}

absl::StatusOr<EngineImpl::Snapshot> EngineImpl::TakeSnapshot(bool store_content, bool accept_damage,
                                                              bool with_sidecars,
                                                              const std::function<void()>& meanwhile) {
  const absl::Duration begin = options_.clock->Monotonic();
  RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenTree());
  Snapshot snapshot;
  const int64_t walk_began_ns = absl::ToUnixNanos(absl::Now());
  // Walking waits for the kernel's looking up of names now and then: the store's index is read meanwhile.
  absl::Status refreshed;
  std::thread index([&] { refreshed = store_->Refresh(); });
  absl::StatusOr<LiveTree> walked = WalkTree(root.get(), tree_, with_sidecars);
  index.join();
  RB_RETURN_IF_ERROR(Annotate(walked.status(), tree_.tree));
  RB_RETURN_IF_ERROR(refreshed);
  snapshot.live = *std::move(walked);
  // The threads that walked leave a good part of their memory behind, in arenas that nobody uses again.
  if (snapshot.live.entries.size() > kManyEntries) malloc_trim(0);
  snapshot.times.walk = options_.clock->Monotonic() - begin;

  std::thread second;
  if (meanwhile) second = std::thread(meanwhile);
  absl::Status filled = FillContents(root.get(), store_content, accept_damage, with_sidecars, walk_began_ns, &snapshot);
  if (second.joinable()) second.join();
  RB_RETURN_IF_ERROR(filled);
  return snapshot;
}

absl::Status EngineImpl::FillContents(int root, bool store_content, bool accept_damage, bool with_sidecars,
                                      int64_t walk_began_ns, Snapshot* snapshot_out) {
  Snapshot& snapshot = *snapshot_out;
  std::vector<size_t> to_read;
  std::vector<size_t> databases;
  uint64_t known_count = 0;
  StatCacheReader cache = files_.ReadStatCache();
  const CachedContent* cached = cache.Next();
  for (size_t i = 0; i < snapshot.live.entries.size(); ++i) {
    LiveEntry& live = snapshot.live.entries[i];
    if (live.entry.type != EntryType::kFile || live.entry.size == 0) continue;
    const bool is_database = IsDatabase(live.entry.path);
    while (cached != nullptr && PathLess(cached->path, live.entry.path)) cached = cache.Next();
    bool known = cached != nullptr && cached->path == live.entry.path && cached->inode == live.inode &&
                 cached->ctime_ns == live.ctime_ns && cached->mtime_ns == live.entry.attributes.mtime_ns &&
                 cached->size == live.entry.size;
    if (known && is_database) {
      const auto [log_mtime_ns, log_size] = DatabaseLog(root, live.entry.path);
      known = log_mtime_ns == cached->log_mtime_ns && log_size == cached->log_size;
    }
    if (known && store_content) {
      known = std::all_of(cached->chunks.begin(), cached->chunks.end(),
                          [&](const Digest& chunk) { return store_->Contains(chunk); });
    }
    if (known) {
      if (is_database) snapshot.databases[live.entry.path] = {cached->size, cached->log_mtime_ns, cached->log_size};
      live.entry.chunks = cached->chunks;
      live.entry.attributes.xattrs = cached->xattrs;
      live.entry.size = cached->content_size;
      live.is_settled = true;
      ++known_count;
    } else if (is_database) {
      databases.push_back(i);
    } else {
      to_read.push_back(i);
    }
  }
  while (cache.Next() != nullptr) {  // what is left is gone
  }
  snapshot.cache_is_stale = known_count != cache.count();
  const absl::Duration read_begin = options_.clock->Monotonic();
  if (store_content) snapshot.writer = store_->NewWriter();
  RB_RETURN_IF_ERROR(ReadFiles(root, to_read, snapshot.writer.get(), &snapshot.live));
  for (const size_t i : databases) {
    RB_RETURN_IF_ERROR(CaptureDatabase(root, accept_damage, i, &snapshot));
  }
  for (const std::vector<size_t>* read : {&to_read, &databases}) {
    for (const size_t i : *read) {
      LiveEntry& live = snapshot.live.entries[i];
      live.is_settled = live.ctime_ns + kRacyNs < walk_began_ns &&
                        (read == &to_read || snapshot.databases.count(live.entry.path) != 0);
      snapshot.cache_is_stale = snapshot.cache_is_stale || live.is_settled;
    }
  }
  if (!snapshot.damage.empty() && !with_sidecars) RB_RETURN_IF_ERROR(AddSidecars(root, &snapshot));
  snapshot.times.hash = options_.clock->Monotonic() - read_begin;
  if (snapshot.writer != nullptr) snapshot.times.compress = snapshot.writer->compress_time();
  return absl::OkStatus();
}

bool EngineImpl::IsDatabase(const std::string& path) const {
  return options_.database_copier != nullptr &&
         std::find(tree_.sqlite_paths.begin(), tree_.sqlite_paths.end(), path) != tree_.sqlite_paths.end();
}

absl::Status EngineImpl::Settle(Snapshot* snapshot) {
  if (snapshot->writer != nullptr) RB_RETURN_IF_ERROR(snapshot->writer->Finish());
  snapshot->writer.reset();
  if (!snapshot->cache_is_stale) return absl::OkStatus();
  StatCacheWriter cache = files_.WriteStatCache();
  CachedContent content;
  for (const LiveEntry& live : snapshot->live.entries) {
    if (!live.is_settled) continue;
    content.path = live.entry.path;
    content.inode = live.inode;
    content.ctime_ns = live.ctime_ns;
    content.mtime_ns = live.entry.attributes.mtime_ns;
    content.size = live.entry.size;
    content.content_size = live.entry.size;
    content.log_mtime_ns = 0;
    content.log_size = 0;
    if (const auto facts = snapshot->databases.find(live.entry.path); facts != snapshot->databases.end()) {
      content.size = facts->second.file_size;
      content.log_mtime_ns = facts->second.log_mtime_ns;
      content.log_size = facts->second.log_size;
    }
    content.xattrs = *live.entry.attributes.xattrs;
    content.chunks = live.entry.chunks;
    RB_RETURN_IF_ERROR(cache.Add(content));
  }
  snapshot->cache_is_stale = false;
  return cache.Finish();
}

std::pair<int64_t, uint64_t> EngineImpl::DatabaseLog(int root, const std::string& path) {
  const absl::StatusOr<Place> place = LocateBeneath(root, path + "-wal");
  struct stat info {};
  if (!place.ok() || fstatat(place->parent.get(), place->name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return {0, 0};
  return {info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec, static_cast<uint64_t>(info.st_size)};
}

absl::Status EngineImpl::ReadFiles(int root, const std::vector<size_t>& indices, ObjectStore::Writer* writer,
                                   LiveTree* live) {
  const size_t parts = indices.size() >= kManyFiles ? 2 : 1;
  absl::Status results[2];
  const auto work = [&](size_t part) -> absl::Status {
    std::string buffer;
    for (size_t k = part; k < indices.size(); k += parts) {
      if (k % 256 == part) RB_RETURN_IF_ERROR(CheckCancelled());
      RB_RETURN_IF_ERROR(ReadFileAt(root, writer, &buffer, &live->entries[indices[k]]));
    }
    return absl::OkStatus();
  };
  std::thread second;
  if (parts == 2) second = std::thread([&] { results[1] = work(1); });
  results[0] = work(0);
  if (second.joinable()) second.join();
  RB_RETURN_IF_ERROR(results[0]);
  return results[1];
}

absl::StatusOr<UniqueFd> EngineImpl::OpenLiveFile(int root, const std::string& path, int flags, struct stat* info) {
  const absl::StatusOr<Place> place = LocateBeneath(root, path);
  if (absl::IsDataLoss(place.status()) || absl::IsResourceExhausted(place.status())) return place.status();
  UniqueFd fd;
  if (place.ok()) fd.Reset(openat(place->parent.get(), place->name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC));
  const bool is_gone = !place.ok() || errno == ENOENT || errno == ELOOP || errno == ENXIO;
  if (!fd.valid() && !is_gone) return ErrnoStatus(errno, absl::StrCat("open ", Printable(path)));
  if (!fd.valid() || fstat(fd.get(), info) != 0 || !S_ISREG(info->st_mode)) {
    return absl::AbortedError(absl::StrCat(Printable(path), " changed while it was being captured; try again"));
  }
  return fd;
}

absl::Status EngineImpl::ReadFileAt(int root, ObjectStore::Writer* writer, std::string* buffer, LiveEntry* live) {
  const std::string& path = live->entry.path;
  struct stat info {};
  RB_ASSIGN_OR_RETURN(const UniqueFd fd, OpenLiveFile(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, &info));
  // Another file, or a changed one, may have the name since the walk. Content and attributes are those of one file:
  // never one file's setuid bit with another's content.
  if (info.st_ino != live->inode) live->entry.hard_link_group = 0;
  live->inode = info.st_ino;
  live->ctime_ns = info.st_ctim.tv_sec * 1000000000 + info.st_ctim.tv_nsec;
  live->entry.sparse = info.st_blocks * 512 < info.st_size;
  RB_ASSIGN_OR_RETURN(live->entry.attributes, ReadAttributes(fd.get(), info, Printable(path)));
  return ReadOpenFile(fd.get(), Printable(path), writer, buffer, &live->entry);
}

absl::Status EngineImpl::ReadOpenFile(int fd, const std::string& path_for_errors, ObjectStore::Writer* writer,
                                      std::string* buffer, Entry* entry) {
  const uint64_t expected = entry->size;
  entry->chunks.clear();
  entry->size = 0;
  return ReadChunks(fd, path_for_errors, expected, buffer, [&](absl::string_view chunk) -> absl::Status {
    const Digest digest = Sha256Of(chunk);
    entry->chunks.push_back(digest);
    entry->size += chunk.size();
    if (writer == nullptr || store_->Contains(digest)) return absl::OkStatus();
    return writer->Put(digest, chunk);
  });
}

absl::Status EngineImpl::ReadChunks(int fd, const std::string& path_for_errors, uint64_t expected_bytes,
                                    std::string* buffer,
                                    absl::FunctionRef<absl::Status(absl::string_view chunk)> take) {
  buffer->clear();
  uint64_t taken = 0;
  size_t begin = 0;  // of what is left in the buffer
  bool at_end = false;
  while (true) {
    if (!at_end && buffer->size() - begin < kSeenBytes) {
      buffer->erase(0, begin);
      begin = 0;
    }
    while (!at_end && begin == 0 && buffer->size() < kMostReadBytes) {
      const size_t filled = buffer->size();
      // Growing the buffer costs as much as filling it: by what is expected, and one byte to see the end.
      const uint64_t left = expected_bytes > taken + filled ? expected_bytes - taken - filled : 0;
      const size_t want = std::clamp<size_t>(left + 1, kLeastReadBytes, kMostReadBytes);
      buffer->resize(filled + want);
      const ssize_t got = read(fd, buffer->data() + filled, want);
      const int error_number = errno;
      buffer->resize(filled + static_cast<size_t>(std::max<ssize_t>(got, 0)));
      if (got < 0 && error_number == EINTR) continue;
      if (got < 0) return ErrnoStatus(error_number, absl::StrCat("read ", path_for_errors));
      if (got == 0) at_end = true;
    }
    const absl::string_view rest = absl::string_view(*buffer).substr(begin);
    if (rest.empty()) return absl::OkStatus();
    const bool whole = at_end && taken == 0 && rest.size() <= kWholeFileBytes;
    const absl::string_view chunk = whole ? rest : rest.substr(0, FirstChunkLength(rest));
    RB_RETURN_IF_ERROR(take(chunk));
    taken += chunk.size();
    begin += chunk.size();
    RB_RETURN_IF_ERROR(CheckCancelled());
  }
}

absl::Status EngineImpl::CaptureDatabase(int root, bool accept_damage, size_t index, Snapshot* snapshot) {
  LiveEntry* const live = &snapshot->live.entries[index];
  ObjectStore::Writer* const writer = snapshot->writer.get();
  const std::string copy = absl::StrCat(files_.folder(), "/database-copy-", RandomHex(4));
  const std::string source = absl::StrCat(tree_.tree, "/", live->entry.path);
  DatabaseFacts facts;
  std::tie(facts.log_mtime_ns, facts.log_size) = DatabaseLog(root, live->entry.path);
  facts.file_size = live->entry.size;
  std::string buffer;
  absl::Status copied = options_.database_copier->Copy(source, copy);
  if (!copied.ok()) {
    if (!accept_damage) return Annotate(copied, absl::StrCat("database ", live->entry.path));
    // A rollback must be possible on a host whose database is broken: its bytes are kept as they are.
    absl::StrAppend(&snapshot->damage, snapshot->damage.empty() ? "" : "; ", live->entry.path, ": ", copied.message());
    return ReadFileAt(root, writer, &buffer, live);
  }
  const UniqueFd fd(open(copy.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  copied = fd.valid() ? ReadOpenFile(fd.get(), copy, writer, &buffer, &live->entry)
                      : ErrnoStatus(errno, absl::StrCat("open ", copy));
  unlink(copy.c_str());
  RB_RETURN_IF_ERROR(copied);
  RB_RETURN_IF_ERROR(ReadAttributesAt(root, live));
  live->entry.sparse = false;
  snapshot->databases[live->entry.path] = facts;
  return absl::OkStatus();
}

absl::Status EngineImpl::ReadAttributesAt(int root, LiveEntry* live) {
  const std::string shown = Printable(live->entry.path);
  struct stat info {};
  RB_ASSIGN_OR_RETURN(const UniqueFd fd, OpenLiveFile(root, live->entry.path, O_PATH, &info));
  RB_ASSIGN_OR_RETURN(live->entry.attributes, ReadAttributes(fd.get(), info, shown));
  return absl::OkStatus();
}

absl::Status EngineImpl::AddSidecars(int root, Snapshot* snapshot) {
  RB_ASSIGN_OR_RETURN(LiveTree all, WalkTree(root, tree_, true));
  std::vector<LiveEntry>& entries = snapshot->live.entries;
  std::string buffer;
  for (LiveEntry& entry : all.entries) {
    if (!IsDatabaseSidecar(tree_, entry.entry.path) || entry.entry.type != EntryType::kFile) continue;
    RB_RETURN_IF_ERROR(ReadFileAt(root, snapshot->writer.get(), &buffer, &entry));
    entries.push_back(std::move(entry));
  }
  std::sort(entries.begin(), entries.end(),
            [](const LiveEntry& a, const LiveEntry& b) { return PathLess(a.entry.path, b.entry.path); });
  return absl::OkStatus();
}

absl::StatusOr<Release> EngineImpl::RecordRelease(Snapshot* snapshot, const CaptureRequest& request,
                                                  bool update_existing) {
  RB_RETURN_IF_ERROR(Settle(snapshot));
  const std::vector<LiveEntry>& entries = snapshot->live.entries;
  const auto entry_count = static_cast<size_t>(std::count_if(
      entries.begin(), entries.end(), [&](const LiveEntry& live) { return snapshot->Holds(tree_, live); }));
  uint64_t content_bytes = 0;
  ManifestEncoder encoder(entry_count);
  for (const LiveEntry& live : entries) {
    if (!snapshot->Holds(tree_, live)) continue;
    encoder.Add(live.entry);
    if (live.entry.type == EntryType::kFile) content_bytes += live.entry.size;
  }
  encoder.AddDumps(snapshot->dumps);
  for (const DatabaseDump& dump : snapshot->dumps) content_bytes += dump.size;
  const std::string encoded = encoder.Take();
  const std::string digest = Sha256Of(encoded).ToHex();
  RB_ASSIGN_OR_RETURN(const std::vector<Release> releases, files_.List(nullptr));
  for (Release existing : releases) {
    if (existing.manifest_digest != digest) continue;
    if (!request.commit.empty() && existing.commit != request.commit) continue;
    if (update_existing || request.pinned) {
      existing.pinned = existing.pinned || request.pinned;
      if (update_existing && !request.reason.empty()) existing.reason = request.reason;
      RB_RETURN_IF_ERROR(files_.Update(existing));
    }
    if (request.cause == Cause::kDeploy && existing.cause != Cause::kDeploy) {
      existing.cause = Cause::kDeploy;
      existing.operation_id = request.operation_id;
      RB_RETURN_IF_ERROR(files_.Update(existing));
    }
    return existing;
  }
  Release release;
  release.service = tree_.service;
  release.manifest_digest = digest;
  release.commit = request.commit;
  release.version = request.version;
  release.cause = request.cause;
  release.captured_at = options_.clock->Now();
  // Releases are ordered by time; a clock that was set back must not put a new one before an old one.
  if (!releases.empty() && release.captured_at <= releases[0].captured_at) {
    release.captured_at = releases[0].captured_at + absl::Milliseconds(1);
  }
  release.name = files_.NewName(tree_.service, release.captured_at, request.version, request.commit);
  release.durability = Durability::kDurable;
  release.pinned = request.pinned;
  release.operation_id = request.operation_id;
  release.reason = request.reason;
  release.entry_count = entry_count;
  release.content_bytes = content_bytes;
  for (const DatabaseDump& dump : snapshot->dumps) release.databases.push_back(dump.name);
  RB_FAILPOINT("engine.capture.before-release");
  RB_RETURN_IF_ERROR(files_.Add(release, encoded));
  return release;
}

}  // namespace rb::agent
