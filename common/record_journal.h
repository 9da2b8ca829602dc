// An append-only file of records, for journals: each is fsynced before Append returns, and a record torn by a crash is
// recognised and cut off when the file is opened again.
#ifndef RB_COMMON_RECORD_JOURNAL_H_
#define RB_COMMON_RECORD_JOURNAL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/unique_fd.h"

namespace rb {

// Frame: length (4 bytes, little endian), CRC-32C of length and payload (4 bytes), payload.
// Not thread-safe. One writer: the caller holds a lock (see FileLock) on the folder.
class RecordJournal {
 public:
  static constexpr uint32_t kLargestRecordBytes = 16 << 20;

  // Opens or makes `path` (mode 0600) and reads what is there into `records`, oldest first. A torn tail (an incomplete
  // or damaged last record) is cut off; damage before the tail is DATA_LOSS, and the file is left as it is.
  // What was read is durable when it returns OK; with kWithNextAppend only once the next Append has returned OK, which
  // spares two flushes where nothing is done before it.
  enum class Flush { kNow, kWithNextAppend };
  static absl::StatusOr<std::unique_ptr<RecordJournal>> Open(const std::string& path, std::vector<std::string>* records,
                                                             Flush flush = Flush::kNow);

  // Durable when it returns OK. After any error the journal is closed for good (a failed fsync is never retried) and
  // every further call fails with FAILED_PRECONDITION.
  absl::Status Append(absl::string_view record);

  // Replaces the whole content, atomically and durably.
  absl::Status Rewrite(const std::vector<std::string>& records);

  uint64_t size_bytes() const { return size_bytes_; }

 private:
  RecordJournal(std::string path, UniqueFd fd, uint64_t size_bytes)
      : path_(std::move(path)), fd_(std::move(fd)), size_bytes_(size_bytes) {}
  std::string path_;
  UniqueFd fd_;
  uint64_t size_bytes_;
};

// The records at the start of `data` that are whole; `*valid_bytes` is where they end. Total: never fails, reads any
// bytes. What is left over is a torn tail or damage.
std::vector<std::string> ParseRecords(absl::string_view data, size_t* valid_bytes);
// True when what `data` holds behind its whole records can be what a crash has left of the last one: no whole record
// follows. Total.
bool IsTornTail(absl::string_view data, size_t valid_bytes);
void AppendRecord(absl::string_view record, std::string* out);

}  // namespace rb

#endif  // RB_COMMON_RECORD_JOURNAL_H_
