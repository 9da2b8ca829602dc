#include "agent/adapters/supervisor/spawn.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

namespace rb::agent {
namespace {

struct ProcStat {
  char state = 0;
  pid_t group = 0;
  uint64_t start_ticks = 0;
};

// False when there is no such process.
bool ReadStat(pid_t pid, ProcStat* stat) {
  const absl::StatusOr<std::string> text = ReadFile(absl::StrCat("/proc/", pid, "/stat"), 4096);
  if (!text.ok()) return false;
  // The name in parentheses may hold anything, parentheses too.
  const size_t end = text->rfind(')');
  if (end == std::string::npos) return false;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(*text).substr(end + 1), ' ', absl::SkipEmpty());
  // fields[0] is field 3 of proc(5).
  if (fields.size() < 20 || fields[0].size() != 1) return false;
  stat->state = fields[0][0];
  return absl::SimpleAtoi(fields[2], &stat->group) && absl::SimpleAtoi(fields[19], &stat->start_ticks);
}
bool IsZombie(const ProcStat& stat) { return stat.state == 'Z' || stat.state == 'X'; }

enum Stage : int { kLog, kFolder, kUser, kRun };

struct ChildFailure {
  int stage;
  int error;
};

// Everything that the child needs, made before the fork: between fork and exec only system calls are made, because
// other threads may have held any lock.
struct ChildPlan {
  const char* program;
  char* const* argv;
  char* const* envp;
  const char* folder;
  const char* log_path;
  int input;
  int output;
  int error_output;
  bool log_as_user;
  bool switch_user;
  uid_t uid;
  gid_t gid;
  const gid_t* groups;
  size_t group_count;
  int go;
  int result;
};

[[noreturn]] void FailChild(int result, Stage stage, int error) {
  const ChildFailure failure{stage, error};
  [[maybe_unused]] const ssize_t ignored = write(result, &failure, sizeof failure);
  _exit(127);
}

int OpenLog(const char* path) {
  const int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NOCTTY | O_NONBLOCK, 0640);
  if (fd < 0) return -1;
  struct stat status;
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(fd);
    errno = EINVAL;
    return -1;
  }
  return fd;
}

[[noreturn]] void RunChild(const ChildPlan& plan) {
  setsid();
  struct sigaction defaults = {};
  defaults.sa_handler = SIG_DFL;
  for (int signal = 1; signal < NSIG; ++signal) sigaction(signal, &defaults, nullptr);
  // Move what is needed to known places, and close the rest: it may belong to anybody in the parent.
  const auto moved = [](int fd) { return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 10); };
  const int input = moved(plan.input);
  int output = moved(plan.output);
  const int error_output = moved(plan.error_output);
  const int go = moved(plan.go);
  const int result = moved(plan.result);
  constexpr int kKept = 5;
  int keep[kKept] = {go, result, input, output, error_output};
  for (int i = 0; i < kKept; ++i) {
    for (int k = i + 1; k < kKept; ++k) {
      if (keep[k] < keep[i]) {
        const int swap = keep[i];
        keep[i] = keep[k];
        keep[k] = swap;
      }
    }
  }
  unsigned from = 3;
  for (const int fd : keep) {
    if (fd < 0) continue;
    const auto number = static_cast<unsigned>(fd);
    if (number > from) syscall(SYS_close_range, from, number - 1, 0);
    from = number + 1;
  }
  syscall(SYS_close_range, from, ~0u, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);

  char byte = 0;
  ssize_t got = 0;
  do {
    got = read(go, &byte, 1);
  } while (got < 0 && errno == EINTR);
  // The parent died, or does not want to: nobody would know of us.
  if (got != 1) _exit(0);

  const int null = open("/dev/null", O_RDWR);
  if (null < 0) FailChild(result, kLog, errno);
  dup2(input >= 0 ? input : null, 0);
  if (output < 0 && !plan.log_as_user) {
    output = OpenLog(plan.log_path);
    if (output < 0) FailChild(result, kLog, errno);
  }
  if (plan.switch_user) {
    if (syscall(SYS_setgroups, plan.group_count, plan.groups) != 0 ||
        syscall(SYS_setresgid, plan.gid, plan.gid, plan.gid) != 0 ||
        syscall(SYS_setresuid, plan.uid, plan.uid, plan.uid) != 0) {
      FailChild(result, kUser, errno);
    }
  }
  if (output < 0) {
    output = OpenLog(plan.log_path);
    if (output < 0) FailChild(result, kLog, errno);
  }
  if (plan.output < 0) fcntl(output, F_SETFL, O_APPEND);
  dup2(output, 1);
  dup2(error_output >= 0 ? error_output : output, 2);
  if (null > 2) close(null);
  umask(022);
  if (chdir(plan.folder) != 0) FailChild(result, kFolder, errno);
  execve(plan.program, plan.argv, plan.envp);
  FailChild(result, kRun, errno);
}

std::string FindProgram(const SpawnOptions& options) {
  const std::string& program = options.command[0];
  if (program.find('/') != std::string::npos) return program;
  const auto path = options.environment.find("PATH");
  if (path != options.environment.end()) {
    for (const absl::string_view folder : absl::StrSplit(path->second, ':', absl::SkipEmpty())) {
      const std::string full = absl::StrCat(folder, "/", program);
      if (access(full.c_str(), X_OK) == 0) return full;
    }
  }
  // Gives the error that a person expects.
  return absl::StrCat("/nonexistent/", program);
}

absl::Status FailureStatus(const SpawnOptions& options, const ChildFailure& failure) {
  switch (failure.stage) {
    case kLog:
      return ErrnoStatus(failure.error, absl::StrCat("cannot open the log ", options.log_path));
    case kFolder:
      return ErrnoStatus(failure.error, absl::StrCat("cannot enter ", options.folder));
    case kUser:
      return ErrnoStatus(failure.error, absl::StrCat("cannot become user ", options.user.name));
    default:
      return ErrnoStatus(failure.error, absl::StrCat("cannot run ", options.command[0]));
  }
}

// Ends and reaps a child that never ran its program, or failed to.
void Discard(pid_t pid) {
  kill(pid, SIGKILL);
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

std::string BootId() {
  const absl::StatusOr<std::string> text = ReadFile("/proc/sys/kernel/random/boot_id", 128);
  return text.ok() ? std::string(absl::StripAsciiWhitespace(*text)) : std::string();
}

absl::StatusOr<ProcessIdentity> IdentifyProcess(pid_t pid) {
  ProcStat stat;
  if (pid <= 0 || !ReadStat(pid, &stat) || IsZombie(stat)) {
    return absl::NotFoundError(absl::StrCat("no process ", pid));
  }
  return ProcessIdentity{pid, stat.start_ticks, BootId()};
}

absl::StatusOr<absl::Duration> ProcessAge(pid_t pid) {
  ProcStat stat;
  if (pid <= 0 || !ReadStat(pid, &stat) || IsZombie(stat)) {
    return absl::NotFoundError(absl::StrCat("no process ", pid));
  }
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  const absl::Duration started =
      absl::Milliseconds(stat.start_ticks * 1000 / static_cast<uint64_t>(std::max(1L, sysconf(_SC_CLK_TCK))));
  return std::max(absl::ZeroDuration(), absl::DurationFromTimespec(now) - started);
}

absl::StatusOr<uint64_t> ProcessMemoryBytes(pid_t pid) {
  // Sizes in pages: all, resident, …
  RB_ASSIGN_OR_RETURN(const std::string text, ReadFile(absl::StrCat("/proc/", pid, "/statm"), 4096));
  const std::vector<std::string> fields = absl::StrSplit(text, ' ');
  uint64_t pages = 0;
  if (pid <= 0 || fields.size() < 2 || !absl::SimpleAtoi(fields[1], &pages)) {
    return absl::NotFoundError(absl::StrCat("no process ", pid));
  }
  return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

std::vector<pid_t> GroupMembers(const ProcessIdentity& leader) {
  std::vector<pid_t> members;
  if (leader.pid <= 1 || (kill(-leader.pid, 0) != 0 && errno == ESRCH)) return members;
  ProcStat own;
  if (ReadStat(leader.pid, &own) && own.start_ticks != leader.start_ticks) return members;
  DIR* folder = opendir("/proc");
  if (folder == nullptr) return members;
  while (const dirent* entry = readdir(folder)) {
    pid_t pid = 0;
    ProcStat stat;
    if (absl::SimpleAtoi(entry->d_name, &pid) && ReadStat(pid, &stat) && stat.group == leader.pid && !IsZombie(stat)) {
      members.push_back(pid);
    }
  }
  closedir(folder);
  std::sort(members.begin(), members.end());
  return members;
}

std::map<std::string, std::string> CleanEnvironment(const UserAndGroup& user) {
  return {{"PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
          {"HOME", user.home},
          {"USER", user.name},
          {"LOGNAME", user.name},
          {"LANG", "C.UTF-8"}};
}

absl::StatusOr<Spawned> Spawn(const SpawnOptions& options,
                              const std::function<absl::Status(const ProcessIdentity&)>& before_run) {
  if (options.command.empty()) return absl::InvalidArgumentError("there is no command");
  const std::string program = FindProgram(options);
  std::vector<char*> argv;
  for (const std::string& argument : options.command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  std::vector<std::string> variables;
  for (const auto& [name, value] : options.environment) variables.push_back(absl::StrCat(name, "=", value));
  std::vector<char*> envp;
  for (const std::string& variable : variables) envp.push_back(const_cast<char*>(variable.c_str()));
  envp.push_back(nullptr);

  int go[2];
  int result[2];
  // A socket, so that writing to a child that was killed gives an error and no SIGPIPE.
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, go) != 0) return ErrnoStatus(errno, "socketpair");
  UniqueFd go_read(go[0]);
  UniqueFd go_write(go[1]);
  if (pipe2(result, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd result_read(result[0]);
  UniqueFd result_write(result[1]);

  const ChildPlan plan{program.c_str(),
                       argv.data(),
                       envp.data(),
                       options.folder.c_str(),
                       options.log_path.c_str(),
                       options.input,
                       options.output,
                       options.error_output,
                       options.open_log_as_user && options.switch_user,
                       options.switch_user,
                       options.user.uid,
                       options.user.gid,
                       options.user.groups.data(),
                       options.user.groups.size(),
                       go_read.get(),
                       result_write.get()};
  // No handler of ours may run in the child.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = fork();
  if (pid == 0) RunChild(plan);
  const int fork_error = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return ErrnoStatus(fork_error, "cannot start a process");
  go_read.Reset();
  result_write.Reset();

  Spawned spawned;
  spawned.pidfd.Reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!spawned.pidfd.valid()) {
    const int error = errno;
    Discard(pid);
    return ErrnoStatus(error, "pidfd_open");
  }
  absl::StatusOr<ProcessIdentity> identity = IdentifyProcess(pid);
  absl::Status ready = identity.status();
  if (ready.ok() && before_run) ready = before_run(*identity);
  if (!ready.ok()) {
    Discard(pid);
    return ready;
  }
  spawned.identity = *identity;
  const char byte = 1;
  ssize_t done = 0;
  do {
    done = send(go_write.get(), &byte, 1, MSG_NOSIGNAL);
  } while (done < 0 && errno == EINTR);
  go_write.Reset();

  ChildFailure failure{};
  size_t got = 0;
  while (got < sizeof failure) {
    const ssize_t n = read(result_read.get(), reinterpret_cast<char*>(&failure) + got, sizeof failure - got);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    got += static_cast<size_t>(n);
  }
  if (got == sizeof failure) {
    Discard(pid);
    return FailureStatus(options, failure);
  }
  return spawned;
}

absl::StatusOr<ChildEnd> ReapChild(int pidfd) {
  siginfo_t info = {};
  int result = 0;
  do {
    result = waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(pidfd), &info, WEXITED | WNOHANG);
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    if (errno == ECHILD) return absl::NotFoundError("not a child of this process");
    return ErrnoStatus(errno, "waitid");
  }
  if (info.si_pid == 0) return absl::FailedPreconditionError("it runs");
  ChildEnd end;
  end.exited = info.si_code == CLD_EXITED;
  end.code = info.si_status;
  end.text = absl::StrCat(end.exited ? "exited with status " : "killed by signal ", end.code);
  return end;
}

}  // namespace rb::agent
