#include "tests/crash/recording_disk.h"

#define FUSE_USE_VERSION 31
#include <fcntl.h>
#include <fuse.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <unordered_map>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace rb::crash {
namespace {

constexpr size_t kPageBytes = 4096;
using Page = std::array<char, kPageBytes>;
using Pages = std::unordered_map<uint64_t, std::unique_ptr<Page>>;

struct DiskOperation {
  bool is_flush = false;
  uint64_t offset = 0;
  std::string data;
};

// The server's whole state. FUSE runs single-threaded here, so there is nothing to lock.
struct Disk {
  uint64_t size_bytes = 0;
  bool recording = false;
  bool base_is_fixed = false;  // since recording began: what is written goes on top of it
  Pages start;                 // what was written before recording began
  Pages base;                  // recorded operations below `applied` are in it as well
  size_t applied = 0;          // how many operations `base` holds
  Pages overlay;               // while showing: what is on top of `base`
  // Of the content: of each page of `base`, their sum, and of all that was shown last.
  std::unordered_map<uint64_t, uint64_t> base_numbers;
  uint64_t base_sum = 0;
  uint64_t shown = 0;
  std::vector<DiskOperation> operations;
  std::vector<Mark> marks;
};

Disk* disk = nullptr;

void WriteInto(Pages* pages, const Pages* below, uint64_t offset, const char* data, size_t size) {
  while (size > 0) {
    const uint64_t number = offset / kPageBytes;
    const size_t within = offset % kPageBytes;
    const size_t part = std::min(size, kPageBytes - within);
    std::unique_ptr<Page>& page = (*pages)[number];
    if (page == nullptr) {
      page = std::make_unique<Page>();
      page->fill(0);
      if (below != nullptr) {
        if (const auto found = below->find(number); found != below->end()) *page = *found->second;
      }
    }
    std::memcpy(page->data() + within, data, part);
    offset += part;
    data += part;
    size -= part;
  }
}

uint64_t NumberOf(uint64_t page_number, const Page& page) {
  return absl::HashOf(page_number, absl::string_view(page.data(), page.size()));
}

// After a write to that page of the base.
void CountBasePage(uint64_t page_number) {
  uint64_t& number = disk->base_numbers[page_number];
  disk->base_sum -= number;
  number = NumberOf(page_number, *disk->base.at(page_number));
  disk->base_sum += number;
}

Pages CopyOf(const Pages& pages) {
  Pages copy;
  for (const auto& [page_number, page] : pages) copy[page_number] = std::make_unique<Page>(*page);
  return copy;
}

// Of how many eighths of the blocks that were not flushed a disk has written.
unsigned EighthsWritten(std::mt19937_64* random) { return std::array<unsigned, 3>{1, 4, 7}[(*random)() % 3]; }

// A sum, so that the order of the pages does not matter.
uint64_t NumberOfAll() {
  uint64_t sum = disk->base_sum;
  for (const auto& [page_number, page] : disk->overlay) {
    if (const auto below = disk->base_numbers.find(page_number); below != disk->base_numbers.end()) {
      sum -= below->second;
    }
    sum += NumberOf(page_number, *page);
  }
  return sum;
}

int Control(const std::string& command) {
  const std::vector<std::string> words = absl::StrSplit(command, absl::MaxSplits(' ', 1));
  if (words[0] == "record") {
    disk->recording = true;
    disk->base_is_fixed = true;
    disk->start = CopyOf(disk->base);
    return 0;
  }
  if (words[0] == "stop") {
    disk->recording = false;
    return 0;
  }
  if (words[0] == "mark" && words.size() == 2) {
    disk->marks.push_back({disk->operations.size(), words[1]});
    return 0;
  }
  if (words[0] == "show" && words.size() == 2) {
    const std::vector<std::string> numbers = absl::StrSplit(words[1], ' ');
    size_t count = 0;
    uint64_t seed = 0;
    if (numbers.size() != 2 || !absl::SimpleAtoi(numbers[0], &count) || !absl::SimpleAtoi(numbers[1], &seed) ||
        count > disk->operations.size()) {
      return -EINVAL;
    }
    size_t last_flush = count;
    while (last_flush > 0 && !disk->operations[last_flush - 1].is_flush) --last_flush;
    if (disk->applied > last_flush) {
      disk->base = CopyOf(disk->start);
      disk->applied = 0;
      disk->base_numbers.clear();
      disk->base_sum = 0;
    }
    if (disk->base_numbers.empty()) {
      for (const auto& [page_number, page] : disk->base) CountBasePage(page_number);
    }
    for (; disk->applied < last_flush; ++disk->applied) {
      const DiskOperation& operation = disk->operations[disk->applied];
      WriteInto(&disk->base, nullptr, operation.offset, operation.data.data(), operation.data.size());
      const uint64_t end = operation.offset + operation.data.size();
      for (uint64_t page = operation.offset / kPageBytes; page * kPageBytes < end; ++page) CountBasePage(page);
    }
    disk->overlay.clear();
    std::mt19937_64 random(seed);
    const unsigned written = seed == 0 ? 8 : EighthsWritten(&random);
    for (size_t i = last_flush; i < count; ++i) {
      const DiskOperation& operation = disk->operations[i];
      for (size_t at = 0, part = 0; at < operation.data.size(); at += part) {
        part = std::min(operation.data.size() - at, kPageBytes - (operation.offset + at) % kPageBytes);
        if (random() % 8 >= written) continue;
        WriteInto(&disk->overlay, &disk->base, operation.offset + at, operation.data.data() + at, part);
      }
    }
    disk->shown = NumberOfAll();
    return 0;
  }
  return -EINVAL;
}

bool IsDisk(const char* path) { return std::strcmp(path, "/disk") == 0; }
bool IsControl(const char* path) { return std::strcmp(path, "/control") == 0; }

std::string ReportText() {
  std::string text = absl::StrCat(disk->operations.size(), " ", disk->shown, "\n");
  for (const Mark& mark : disk->marks) absl::StrAppend(&text, mark.position, " ", mark.text, "\n");
  return text;
}

int GetAttributes(const char* path, struct stat* info, fuse_file_info*) {
  *info = {};
  if (std::strcmp(path, "/") == 0) {
    info->st_mode = S_IFDIR | 0700;
    info->st_nlink = 2;
  } else if (IsDisk(path)) {
    info->st_mode = S_IFREG | 0600;
    info->st_nlink = 1;
    info->st_size = static_cast<off_t>(disk->size_bytes);
  } else if (IsControl(path)) {
    info->st_mode = S_IFREG | 0600;
    info->st_nlink = 1;
    info->st_size = static_cast<off_t>(ReportText().size());
  } else {
    return -ENOENT;
  }
  return 0;
}

int Open(const char*, fuse_file_info* file) {
  file->direct_io = 1;  // every write and read reaches us, in order
  return 0;
}

int Read(const char* path, char* buffer, size_t size, off_t offset, fuse_file_info*) {
  const auto start = static_cast<uint64_t>(offset);
  if (IsControl(path)) {
    const std::string text = ReportText();
    if (start >= text.size()) return 0;
    const size_t part = std::min(size, text.size() - start);
    text.copy(buffer, part, start);
    return static_cast<int>(part);
  }
  if (start >= disk->size_bytes) return 0;
  size = std::min<size_t>(size, disk->size_bytes - start);
  size_t done = 0;
  while (done < size) {
    const uint64_t number = (start + done) / kPageBytes;
    const size_t within = (start + done) % kPageBytes;
    const size_t part = std::min(size - done, kPageBytes - within);
    const Page* page = nullptr;
    if (const auto found = disk->overlay.find(number); found != disk->overlay.end()) {
      page = found->second.get();
    } else if (const auto below = disk->base.find(number); below != disk->base.end()) {
      page = below->second.get();
    }
    if (page != nullptr) {
      std::memcpy(buffer + done, page->data() + within, part);
    } else {
      std::memset(buffer + done, 0, part);
    }
    done += part;
  }
  return static_cast<int>(size);
}

int Write(const char* path, const char* buffer, size_t size, off_t offset, fuse_file_info*) {
  if (IsControl(path)) {
    const int result = Control(std::string(buffer, size));
    return result < 0 ? result : static_cast<int>(size);
  }
  const auto start = static_cast<uint64_t>(offset);
  if (start + size > disk->size_bytes) return -ENOSPC;
  if (disk->recording) disk->operations.push_back({false, start, std::string(buffer, size)});
  if (disk->base_is_fixed) {
    WriteInto(&disk->overlay, &disk->base, start, buffer, size);
  } else {
    WriteInto(&disk->base, nullptr, start, buffer, size);
  }
  return static_cast<int>(size);
}

int Flush(const char* path, int, fuse_file_info*) {
  if (IsDisk(path) && disk->recording) disk->operations.push_back({true, 0, ""});
  return 0;
}

int Truncate(const char*, off_t, fuse_file_info*) { return 0; }

int ReadFolder(const char*, void* buffer, fuse_fill_dir_t fill, off_t, fuse_file_info*, fuse_readdir_flags) {
  for (const char* name : {".", "..", "disk", "control"}) fill(buffer, name, nullptr, 0, {});
  return 0;
}

[[noreturn]] void Serve(const std::string& mount_point, uint64_t size_bytes) {
  static Disk the_disk;
  the_disk.size_bytes = size_bytes;
  disk = &the_disk;
  fuse_operations operations{};
  operations.getattr = GetAttributes;
  operations.open = Open;
  operations.read = Read;
  operations.write = Write;
  operations.fsync = Flush;
  operations.truncate = Truncate;
  operations.readdir = ReadFolder;
  std::string program = "recording-disk";
  std::string single = "-s";
  std::string foreground = "-f";
  std::string target = mount_point;
  char* arguments[] = {program.data(), single.data(), foreground.data(), target.data()};
  _exit(fuse_main(4, arguments, &operations, nullptr));
}

absl::StatusOr<std::string> AttachLoop(const std::string& file) {
  UniqueFd control(open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  if (!control.valid()) return ErrnoStatus(errno, "open /dev/loop-control");
  UniqueFd backing(open(file.c_str(), O_RDWR | O_CLOEXEC));
  if (!backing.valid()) return ErrnoStatus(errno, absl::StrCat("open ", file));
  for (int attempt = 0; attempt < 20; ++attempt) {  // another process may take the free one first
    const int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return ErrnoStatus(errno, "find a free loop device");
    const std::string device = absl::StrCat("/dev/loop", number);
    UniqueFd loop(open(device.c_str(), O_RDWR | O_CLOEXEC));
    if (!loop.valid()) return ErrnoStatus(errno, absl::StrCat("open ", device));
    loop_config config{};
    config.fd = static_cast<uint32_t>(backing.get());
    config.block_size = 512;
    if (ioctl(loop.get(), LOOP_CONFIGURE, &config) == 0) return device;
    if (errno != EBUSY) return ErrnoStatus(errno, absl::StrCat("configure ", device));
  }
  return absl::UnavailableError("no loop device could be had in 20 tries");
}

}  // namespace

absl::StatusOr<std::unique_ptr<RecordingDisk>> RecordingDisk::Create(const std::string& folder, uint64_t size_bytes) {
  const pid_t server = fork();
  if (server < 0) return ErrnoStatus(errno, "fork");
  if (server == 0) {
    Serve(folder, size_bytes);
  }
  std::unique_ptr<RecordingDisk> result(new RecordingDisk(folder, server));
  const absl::Time give_up = absl::Now() + absl::Seconds(10);
  struct stat info {};
  while (stat(absl::StrCat(folder, "/control").c_str(), &info) != 0) {
    if (absl::Now() > give_up) return absl::DeadlineExceededError("the FUSE file did not appear in 10 s");
    absl::SleepFor(absl::Milliseconds(2));
  }
  RB_ASSIGN_OR_RETURN(result->device_, AttachLoop(absl::StrCat(folder, "/disk")));
  return result;
}

RecordingDisk::~RecordingDisk() {
  if (!device_.empty()) {
    UniqueFd loop(open(device_.c_str(), O_RDWR | O_CLOEXEC));
    if (loop.valid()) ioctl(loop.get(), LOOP_CLR_FD);
  }
  umount2(folder_.c_str(), MNT_DETACH);
  // The server ends when its mount goes; the signal is for one that never got that far.
  kill(server_, SIGTERM);
  int status = 0;
  waitpid(server_, &status, 0);
}

absl::Status RecordingDisk::Command(const std::string& command) {
  UniqueFd control(open(absl::StrCat(folder_, "/control").c_str(), O_WRONLY | O_CLOEXEC));
  if (!control.valid()) return ErrnoStatus(errno, "open the disk's control file");
  if (write(control.get(), command.data(), command.size()) != static_cast<ssize_t>(command.size())) {
    return ErrnoStatus(errno, absl::StrCat("disk command '", command, "'"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> RecordingDisk::Report() { return ReadFile(absl::StrCat(folder_, "/control")); }

absl::Status RecordingDisk::StartRecording() { return Command("record"); }
absl::Status RecordingDisk::StopRecording() { return Command("stop"); }
absl::Status RecordingDisk::AddMark(const std::string& text) { return Command(absl::StrCat("mark ", text)); }

absl::StatusOr<size_t> RecordingDisk::OperationCount() {
  RB_ASSIGN_OR_RETURN(const std::string report, Report());
  size_t count = 0;
  if (!absl::SimpleAtoi(report.substr(0, report.find(' ')), &count)) return absl::InternalError("no count in report");
  return count;
}

absl::StatusOr<uint64_t> RecordingDisk::Shown() {
  RB_ASSIGN_OR_RETURN(const std::string report, Report());
  const std::vector<std::string> words = absl::StrSplit(report.substr(0, report.find('\n')), ' ');
  uint64_t shown = 0;
  if (words.size() != 2 || !absl::SimpleAtoi(words[1], &shown)) return absl::InternalError("no state in report");
  return shown;
}

absl::StatusOr<std::vector<Mark>> RecordingDisk::Marks() {
  RB_ASSIGN_OR_RETURN(const std::string report, Report());
  std::vector<Mark> marks;
  const std::vector<std::string> lines = absl::StrSplit(report, '\n', absl::SkipEmpty());
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(lines[i], absl::MaxSplits(' ', 1));
    Mark mark;
    mark.text = parts.second;
    if (!absl::SimpleAtoi(parts.first, &mark.position)) return absl::InternalError("a mark without a position");
    marks.push_back(mark);
  }
  return marks;
}

absl::Status RecordingDisk::ShowState(size_t operations, uint64_t seed) {
  // The kernel keeps pages of the device that belong to the state shown before.
  UniqueFd loop(open(device_.c_str(), O_RDWR | O_CLOEXEC));
  if (!loop.valid()) return ErrnoStatus(errno, absl::StrCat("open ", device_));
  if (ioctl(loop.get(), BLKFLSBUF, 0) != 0) return ErrnoStatus(errno, absl::StrCat("flush buffers of ", device_));
  return Command(absl::StrCat("show ", operations, " ", seed));
}

}  // namespace rb::crash
