// Small files that are there wholly or not at all, also after a power cut.
#ifndef RB_COMMON_DURABLE_FILE_H_
#define RB_COMMON_DURABLE_FILE_H_

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/unique_fd.h"

namespace rb {

// Writes a temporary file beside `path`, fsyncs it, renames it over `path`, fsyncs the folder. On an error the old file
// is untouched and no temporary file is left. A failed fsync is not retried.
absl::Status WriteFileDurably(const std::string& path, absl::string_view content, mode_t mode = 0600);

// All of `content`, through interruptions and short writes. `path` is for the error alone.
absl::Status WriteAll(int fd, absl::string_view content, absl::string_view path);

// The whole file. NOT_FOUND when it is not there; RESOURCE_EXHAUSTED when it is larger than `limit_bytes`.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t limit_bytes = 64 << 20);

// fsyncs a folder, so that names made or removed in it last.
absl::Status SyncFolder(const std::string& path);

// mkdir -p, and fsync of each parent that changed. An existing folder is fine; its mode is left alone.
absl::Status MakeFolders(const std::string& path, mode_t mode = 0700);

// Removes a file durably. One that is not there is fine.
absl::Status RemoveFileDurably(const std::string& path);

// An advisory lock on a file (flock), held until destroyed or the process ends.
class FileLock {
 public:
  // Does not wait: UNAVAILABLE, naming the path, when another process or object holds it.
  static absl::StatusOr<FileLock> TryAcquire(const std::string& path);
  FileLock(FileLock&&) = default;
  FileLock& operator=(FileLock&&) = default;

 private:
  explicit FileLock(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace rb

#endif  // RB_COMMON_DURABLE_FILE_H_
