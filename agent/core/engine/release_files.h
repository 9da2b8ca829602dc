// The files of one service in the state folder: releases, what is current, the stat cache, known contents of commits.
#ifndef RB_AGENT_CORE_ENGINE_RELEASE_FILES_H_
#define RB_AGENT_CORE_ENGINE_RELEASE_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "agent/core/engine/codec.h"
#include "agent/core/engine/engine.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/release.h"
#include "common/digest.h"
#include "common/unique_fd.h"

namespace rb::agent {

// What a file's content was when it was last read, and how to see that it is still the same file.
struct CachedContent {
  std::string path;
  uint64_t inode = 0;
  int64_t ctime_ns = 0;
  int64_t mtime_ns = 0;
  uint64_t size = 0;
  // For databases: of the copy that was taken, and what the write-ahead log looked like.
  uint64_t content_size = 0;
  int64_t log_mtime_ns = 0;
  uint64_t log_size = 0;
  Xattrs xattrs;  // setting one changes the ctime
  ChunkList chunks;
};

// Files and what they held, in path order. Read and written one after another, in blocks with a SHA-256 each: there may
// be hundreds of thousands. Losing the end of it, or all, costs time only.
class StatCacheReader {
 public:
  // Of an invalid descriptor: an empty cache.
  explicit StatCacheReader(UniqueFd file);
  // The next entry, valid until the next call; null at the end, and from the first block that is damaged.
  const CachedContent* Next();
  // How many were read so far.
  uint64_t count() const { return count_; }

 private:
  bool ReadBlock();

  UniqueFd file_;
  std::string block_;
  Decoder in_;
  uint64_t count_ = 0;
  CachedContent content_;
};

class StatCacheWriter {
 public:
  explicit StatCacheWriter(std::string path) : path_(std::move(path)) {}
  absl::Status Add(const CachedContent& content);
  // Takes the place of the cache that was there. Not durable.
  absl::Status Finish();

 private:
  absl::Status WriteBlock();

  const std::string path_;
  UniqueFd file_;
  Encoder block_;
  std::string previous_path_;
};

using ContentIds = absl::flat_hash_map<std::string, ChunkList>;

// Not thread-safe. Every Save is durable, unless it says otherwise, and replaces as a whole; every Load checks a
// SHA-256 over the file.
class ReleaseFiles {
 public:
  // `folder`: services/NAME in the state folder; made when missing.
  static absl::StatusOr<ReleaseFiles> Open(const std::string& folder);

  // Newest first. A release whose file is damaged is left out, and named in `damaged`.
  absl::StatusOr<std::vector<Release>> List(std::vector<std::string>* damaged) const;
  absl::StatusOr<Release> Load(const std::string& name) const;
  // The manifest first, then the release that refers to it: a name that is seen is whole.
  absl::Status Add(const Release& release, const std::string& encoded_manifest);
  absl::Status Update(const Release& release);
  absl::Status Remove(const std::string& name);
  // Manifests that no release refers to: a crash in the middle of Add or Remove leaves one behind, which would keep its
  // content for ever. Not while Add runs.
  absl::Status RemoveManifestsOfNone();
  // DATA_LOSS when it is damaged or not the one that the release was made with.
  absl::StatusOr<Manifest> LoadManifest(const Release& release) const;
  // "service/2026-11-23T03-14-07Z-v1.4.2-abc123f", made unique.
  std::string NewName(const std::string& service, absl::Time now, const std::string& version,
                      const std::string& commit) const;

  // A manifest that is no release: the target of an open transaction.
  absl::Status SaveTarget(const std::string& name, const std::string& encoded_manifest);
  absl::StatusOr<Manifest> LoadTarget(const std::string& name) const;
  absl::Status RemoveTargets();
  absl::Status ForEachManifest(absl::FunctionRef<void(const Manifest&)> visit) const;

  absl::StatusOr<Current> LoadCurrent() const;  // empty when there is none
  absl::Status SaveCurrent(const Current& current);
  StatCacheReader ReadStatCache() const;
  StatCacheWriter WriteStatCache() const;
  ContentIds LoadContentIds() const;
  absl::Status SaveContentIds(const ContentIds& ids);

  // The operation that was kept last, and its release: so that a repeated Keep gives the same answer.
  absl::Status SaveKept(const std::string& operation_id, const std::string& release_name);
  std::string KeptRelease(const std::string& operation_id) const;  // empty if it was another

  const std::string& folder() const { return folder_; }
  std::string JournalPath() const { return folder_ + "/transaction"; }

 private:
  explicit ReleaseFiles(std::string folder) : folder_(std::move(folder)) {}
  std::string FileOf(const std::string& release_name, absl::string_view suffix) const;
  std::string folder_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_RELEASE_FILES_H_
