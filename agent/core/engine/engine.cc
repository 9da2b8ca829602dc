#include <malloc.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/core/engine/engine_impl.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/release_files.h"
#include "agent/core/engine/transaction.h"
#include "agent/core/engine/walk.h"
#include "common/durable_file.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {

absl::StatusOr<std::vector<Release>> EngineImpl::Releases() { return files_.List(nullptr); }

absl::StatusOr<Current> EngineImpl::GetCurrent() { return files_.LoadCurrent(); }

absl::Status EngineImpl::SetStanding(const std::string& release_name, Standing standing, const std::string& reason) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(Release release, files_.Load(release_name));
  release.standing = standing;
  if (!reason.empty()) release.reason = reason;
  return files_.Update(release);
}

absl::Status EngineImpl::SetPinned(const std::string& release_name, bool pinned) {
  MutexLock lock(mutex_);
  RB_ASSIGN_OR_RETURN(Release release, files_.Load(release_name));
  release.pinned = pinned;
  return files_.Update(release);
}

absl::StatusOr<FileLock> EngineImpl::LockService() const { return FileLock::TryAcquire(files_.folder() + "/lock"); }

void EngineImpl::Progress(absl::string_view text) const {
  if (options_.on_progress) options_.on_progress(text);
}

absl::Status EngineImpl::CheckCancelled() const {
  if (options_.is_cancelled && options_.is_cancelled()) {
    return absl::CancelledError("stopped as asked; the tree was not touched");
  }
  return absl::OkStatus();
}

absl::StatusOr<Manifest> EngineImpl::LoadReleaseManifest(const std::string& release_name) const {
  RB_ASSIGN_OR_RETURN(const Release release, files_.Load(release_name));
  return files_.LoadManifest(release);
}

absl::StatusOr<std::string> EngineImpl::ReadContent(const Entry& entry, uint64_t limit_bytes) {
  if (entry.size > limit_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(Printable(entry.path), " is larger than ", limit_bytes));
  }
  std::string content;
  for (const Digest& chunk : entry.chunks) {
    RB_ASSIGN_OR_RETURN(const std::string part, store_->Get(chunk));
    content.append(part);
  }
  return content;
}

const Entry* EngineImpl::Find(const LiveTree& tree, absl::string_view path) {
  const auto found = std::lower_bound(
      tree.entries.begin(), tree.entries.end(), path,
      [](const LiveEntry& live, absl::string_view wanted) { return PathLess(live.entry.path, wanted); });
  return found != tree.entries.end() && found->entry.path == path ? &found->entry : nullptr;
}

const Entry* EngineImpl::Find(const Manifest& manifest, absl::string_view path) {
  const auto found =
      std::lower_bound(manifest.entries.begin(), manifest.entries.end(), path,
                       [](const Entry& entry, absl::string_view wanted) { return PathLess(entry.path, wanted); });
  return found != manifest.entries.end() && found->path == path ? &*found : nullptr;
}

void Engine::PrepareProcess() {
  // Large buffers go back to the system once they are freed: an agent is at rest nearly all the time.
  mallopt(M_MMAP_THRESHOLD, 4 << 20);
  MakeRoomForFolders();
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Open(Options options, ServiceTree tree) {
  static constexpr absl::string_view kFormat = "1\n";
  if (!IsValidName(tree.service)) return absl::InvalidArgumentError(absl::StrCat("bad service name ", tree.service));
  RB_RETURN_IF_ERROR(MakeFolders(options.state_folder));
  const std::string format_path = absl::StrCat(options.state_folder, "/format");
  const absl::StatusOr<std::string> format = ReadFile(format_path, 64);
  if (absl::IsNotFound(format.status())) {
    RB_RETURN_IF_ERROR(WriteFileDurably(format_path, kFormat));
  } else if (!format.ok()) {
    return format.status();
  } else if (*format != kFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat(options.state_folder, " was written by another version of rb-agent (format ", Printable(*format),
                     "). It was not touched. Run the newer rb-agent"));
  }
  RB_ASSIGN_OR_RETURN(std::unique_ptr<ObjectStore> store, ObjectStore::Open(options.state_folder + "/store"));
  RB_ASSIGN_OR_RETURN(ReleaseFiles files,
                      ReleaseFiles::Open(absl::StrCat(options.state_folder, "/services/", tree.service)));
  return std::unique_ptr<Engine>(
      new EngineImpl(std::move(options), std::move(tree), std::move(store), std::move(files)));
}

}  // namespace rb::agent
