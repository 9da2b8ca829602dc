#include "tests/crash/crash_rig.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "common/unique_fd.h"
#include "tests/crash/recording_disk.h"

namespace rb::crash {
namespace {

// The smallest that each mkfs takes (xfsprogs 6 refuses less than 300 MiB). Unwritten parts cost nothing.
constexpr uint64_t kDiskBytes = 320ull << 20;
constexpr size_t kFindingsKept = 10;
constexpr uint64_t kMostRounds = 2000;
// From then on a prefix is taken to have no more states.
constexpr int kFruitlessTries = 8;

absl::Status RunProgram(const std::vector<std::string>& argv) {
  const pid_t child = fork();
  if (child < 0) return ErrnoStatus(errno, "fork");
  if (child == 0) {
    const int nowhere = open("/dev/null", O_RDWR);
    dup2(nowhere, STDIN_FILENO);
    dup2(nowhere, STDOUT_FILENO);
    dup2(nowhere, STDERR_FILENO);
    std::vector<char*> arguments;
    for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::UnavailableError(absl::StrCat(argv[0], " failed with wait status ", status));
  }
  return absl::OkStatus();
}

std::vector<std::string> MakeFilesystemCommand(const std::string& filesystem, const std::string& device) {
  if (filesystem == "ext4") return {"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device};
  if (filesystem == "xfs") return {"mkfs.xfs", "-q", "-f", device};
  return {"mkfs.btrfs", "-q", "-f", device};
}

absl::Status Mount(const std::string& device, const std::string& where, const std::string& filesystem) {
  if (mount(device.c_str(), where.c_str(), filesystem.c_str(), MS_NOATIME, "") != 0) {
    return ErrnoStatus(errno, absl::StrCat("mount ", filesystem, " on ", where));
  }
  return absl::OkStatus();
}

// Whoever copies this process's mounts, as a booting container does, would keep the filesystem in use with what it has
// in memory of one state, while the disk beneath it shows another. So nobody else gets to see them.
absl::Status KeepMountsToOurselves() {
  if (unshare(CLONE_NEWNS) != 0) return ErrnoStatus(errno, "unshare mounts");
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return ErrnoStatus(errno, "make mounts private");
  return absl::OkStatus();
}

absl::Status Unmount(const std::string& where) {
  if (umount(where.c_str()) != 0) {
    // Whatever it is, it is no reason to leave the test out.
    return absl::InternalError(absl::StrCat("unmount ", where, ": ", std::generic_category().message(errno)));
  }
  return absl::OkStatus();
}

// Unmounts at the end of its scope whatever happens, and removes the folders.
struct Workshop {
  std::string folder;
  std::string disk_folder() const { return folder + "/disk"; }
  std::string mount_point() const { return folder + "/mount"; }
  ~Workshop() {
    umount2(mount_point().c_str(), MNT_DETACH);
    std::error_code ignored;
    std::filesystem::remove(mount_point(), ignored);
    std::filesystem::remove(disk_folder(), ignored);
    std::filesystem::remove(folder, ignored);
  }
};

}  // namespace

absl::StatusOr<RigReport> VisitCrashStates(const Workload& workload, const RigOptions& options) {
  if (geteuid() != 0) return absl::UnavailableError("crash states need root: they mount filesystems");
  if (access("/dev/fuse", R_OK | W_OK) != 0) return absl::UnavailableError("crash states need /dev/fuse");
  RB_RETURN_IF_ERROR(KeepMountsToOurselves());
  std::string pattern = "/var/tmp/rb-crash-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) return ErrnoStatus(errno, "make a folder in /var/tmp");
  Workshop workshop{pattern};
  mkdir(workshop.disk_folder().c_str(), 0700);
  mkdir(workshop.mount_point().c_str(), 0700);
  const std::string root = workshop.mount_point();

  RB_ASSIGN_OR_RETURN(const std::unique_ptr<RecordingDisk> disk,
                      RecordingDisk::Create(workshop.disk_folder(), kDiskBytes));
  RB_RETURN_IF_ERROR(RunProgram(MakeFilesystemCommand(options.filesystem, disk->device())));
  RB_RETURN_IF_ERROR(Mount(disk->device(), root, options.filesystem));
  RB_RETURN_IF_ERROR(Annotate(workload.prepare(root), "the workload's preparation"));
  // A remount writes everything out: the base is what the workload really begins with.
  RB_RETURN_IF_ERROR(Unmount(root));
  RB_RETURN_IF_ERROR(Mount(disk->device(), root, options.filesystem));
  sync();
  RB_RETURN_IF_ERROR(disk->StartRecording());
  absl::Status marking;
  const auto acknowledge = [&](const std::string& text) {
    if (const absl::Status status = disk->AddMark(text); !status.ok()) marking = status;
  };
  RB_RETURN_IF_ERROR(Annotate(workload.run(root, acknowledge), "the workload"));
  RB_RETURN_IF_ERROR(marking);
  RB_RETURN_IF_ERROR(disk->StopRecording());
  RB_RETURN_IF_ERROR(Unmount(root));

  RigReport report;
  RB_ASSIGN_OR_RETURN(report.operations, disk->OperationCount());
  RB_ASSIGN_OR_RETURN(const std::vector<Mark> marks, disk->Marks());
  const size_t operations = report.operations;
  report.prefixes = operations < options.states ? operations + 1 : std::max<size_t>(2, options.states / 2);
  std::vector<int> fruitless(report.prefixes, 0);  // how often in turn nothing new was found
  std::set<uint64_t> contents;
  // Content, and how much was acknowledged: a content is checked once more where more had been by then.
  std::set<std::pair<uint64_t, size_t>> seen;
  // One state of each prefix in a round: the prefix itself first, then another reordering each time. What is left for
  // the last rounds is spread evenly, too.
  for (uint64_t round = 0; round < kMostRounds && contents.size() < options.states; ++round) {
    const size_t wanted = options.states - contents.size();
    const auto fruitful = static_cast<size_t>(
        std::count_if(fruitless.begin(), fruitless.end(), [](int tries) { return tries < kFruitlessTries; }));
    report.exhausted = fruitful == 0;
    if (report.exhausted) break;
    size_t share = round * wanted % fruitful;
    for (size_t i = 0; i < report.prefixes && contents.size() < options.states; ++i) {
      if (fruitless[i] == kFruitlessTries) continue;
      share += std::min(wanted, fruitful);
      if (share < fruitful) continue;
      share -= fruitful;
      const size_t position = i * operations / (report.prefixes - 1);
      const uint64_t seed = round == 0 ? 0 : options.seed * 1000003 + round * (operations + 1) + position;
      std::vector<std::string> acknowledged;
      for (const Mark& mark : marks) {
        if (mark.position <= position) acknowledged.push_back(mark.text);
      }
      RB_RETURN_IF_ERROR(disk->ShowState(position, seed));
      RB_ASSIGN_OR_RETURN(const uint64_t content, disk->Shown());
      if (!seen.insert({content, acknowledged.size()}).second) {
        ++fruitless[i];
        continue;
      }
      fruitless[i] = 0;
      if (contents.insert(content).second && seed != 0) ++report.reordered_states;
      std::string finding;
      if (const absl::Status mounted = Mount(disk->device(), root, options.filesystem); !mounted.ok()) {
        finding = std::string(mounted.message());
      } else {
        try {
          finding = workload.check(root, acknowledged);
        } catch (const std::exception& error) {
          // A filesystem that a planted bug has damaged may fail anywhere.
          finding = error.what();
        }
        RB_RETURN_IF_ERROR(Unmount(root));
      }
      if (!finding.empty()) {
        ++report.bad_states;
        if (report.findings.size() < kFindingsKept) {
          report.findings.push_back(
              absl::StrCat(options.filesystem, " after ", position, " operations, seed ", seed, ": ", finding));
        }
      }
    }
  }
  report.states = contents.size();
  return report;
}

}  // namespace rb::crash
