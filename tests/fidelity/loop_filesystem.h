// A real filesystem in an image file, mounted for as long as the object lives.
#ifndef RB_TESTS_FIDELITY_LOOP_FILESYSTEM_H_
#define RB_TESTS_FIDELITY_LOOP_FILESYSTEM_H_

#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "common/test_util.h"
#include "common/unique_fd.h"

namespace rb::testing {

inline absl::Status RunProgram(const std::vector<std::string>& argv) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  const int error_number = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error_number != 0) return ErrnoStatus(error_number, absl::StrCat("run ", argv[0]));
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) {
    return absl::InternalError(absl::StrCat(absl::StrJoin(argv, " "), " ended with wait status ", status));
  }
  return absl::OkStatus();
}

class LoopFilesystem {
 public:
  // "ext4", "xfs" or "btrfs". Needs root.
  static absl::StatusOr<std::unique_ptr<LoopFilesystem>> Mount(const std::string& type) {
    std::unique_ptr<LoopFilesystem> made(new LoopFilesystem);
    const std::string image = made->folder_ / "image";
    const UniqueFd fd(open(image.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    // What xfsprogs takes at least is 300 MiB. Unwritten parts cost nothing.
    if (!fd.valid() || ftruncate(fd.get(), 1 << 30) != 0) return ErrnoStatus(errno, absl::StrCat("make ", image));
    RB_RETURN_IF_ERROR(RunProgram({absl::StrCat("mkfs.", type), "-q", type == "ext4" ? "-F" : "-f", image}));
    if (mkdir(made->path().c_str(), 0755) != 0) return ErrnoStatus(errno, "mkdir");
    RB_RETURN_IF_ERROR(RunProgram({"mount", "-t", type, "-o", "loop,noatime", image, made->path()}));
    return made;
  }
  ~LoopFilesystem() { umount2(path().c_str(), MNT_DETACH); }
  std::string path() const { return folder_ / "mount"; }

 private:
  LoopFilesystem() = default;
  TemporaryFolder folder_;
};

}  // namespace rb::testing

#endif  // RB_TESTS_FIDELITY_LOOP_FILESYSTEM_H_
