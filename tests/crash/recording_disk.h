// A disk that remembers every write and flush, and can show itself as a power cut would have left it. Linux shows it as
// a file (through FUSE) that a loop device is put on, so that real filesystems run on it. Needs root and /dev/fuse.
#ifndef RB_TESTS_CRASH_RECORDING_DISK_H_
#define RB_TESTS_CRASH_RECORDING_DISK_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rb::crash {

// Something that the workload was told is durable, and how many operations the disk had seen by then.
struct Mark {
  size_t position = 0;
  std::string text;
};

// Runs a child process that serves the FUSE file, and owns one loop device. Not thread-safe.
class RecordingDisk {
 public:
  // `folder` is empty and stays until the disk is destroyed.
  static absl::StatusOr<std::unique_ptr<RecordingDisk>> Create(const std::string& folder, uint64_t size_bytes);
  ~RecordingDisk();
  RecordingDisk(const RecordingDisk&) = delete;
  RecordingDisk& operator=(const RecordingDisk&) = delete;

  // "/dev/loopN".
  const std::string& device() const { return device_; }
  // From here on operations are numbered from 0. What was written before is the base.
  absl::Status StartRecording();
  absl::Status StopRecording();
  absl::Status AddMark(const std::string& text);
  // How many writes and flushes were recorded, and the marks among them.
  absl::StatusOr<size_t> OperationCount();
  absl::StatusOr<std::vector<Mark>> Marks();

  // Shows the base and the first `operations` operations; all that is written from now on is forgotten at the next
  // call. With a seed other than 0, each block of 4 KiB of each write since the last flush is there or not by chance:
  // between flushes a disk writes in any order, and tears a write between blocks. Nothing may be mounted. Going back
  // to fewer operations takes longer than going on.
  absl::Status ShowState(size_t operations, uint64_t seed);
  // Of the whole content that ShowState showed last: states with the same content have the same number.
  absl::StatusOr<uint64_t> Shown();

 private:
  RecordingDisk(std::string folder, pid_t server) : folder_(std::move(folder)), server_(server) {}
  absl::Status Command(const std::string& command);
  absl::StatusOr<std::string> Report();

  std::string folder_;
  std::string device_;
  pid_t server_;
};

}  // namespace rb::crash

#endif  // RB_TESTS_CRASH_RECORDING_DISK_H_
