#include "tests/crash/syscall_rig.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/status.h"

namespace rb::crash {

#ifdef __x86_64__

namespace {

struct Call {
  const char* name;
  long number;
  bool changes;
  std::vector<int> errors;
};

// Opening changes something only with O_CREAT, O_TRUNC; the filter looks at that.
const std::vector<Call>& Calls() {
  static const auto* const calls = new std::vector<Call>{
      {"openat", SYS_openat, true, {EMFILE, ENOSPC, EIO}},
      {"openat2", SYS_openat2, false, {EMFILE, EIO}},
      {"write", SYS_write, true, {EIO, ENOSPC, EDQUOT}},
      {"pwrite64", SYS_pwrite64, true, {EIO, ENOSPC, EDQUOT}},
      {"writev", SYS_writev, true, {EIO, ENOSPC, EDQUOT}},
      {"fsync", SYS_fsync, true, {EIO, ENOSPC, EDQUOT}},
      {"fdatasync", SYS_fdatasync, true, {EIO, ENOSPC, EDQUOT}},
      {"syncfs", SYS_syncfs, true, {EIO}},
      {"rename", SYS_rename, true, {EIO, ENOSPC, EDQUOT}},
      {"renameat", SYS_renameat, true, {EIO, ENOSPC, EDQUOT}},
      {"renameat2", SYS_renameat2, true, {EIO, ENOSPC, EDQUOT}},
      {"link", SYS_link, true, {EIO, ENOSPC, EDQUOT}},
      {"linkat", SYS_linkat, true, {EIO, ENOSPC, EDQUOT}},
      {"symlinkat", SYS_symlinkat, true, {EIO, ENOSPC, EDQUOT}},
      {"mkdir", SYS_mkdir, true, {EIO, ENOSPC, EDQUOT}},
      {"mkdirat", SYS_mkdirat, true, {EIO, ENOSPC, EDQUOT}},
      {"mknodat", SYS_mknodat, true, {EIO, ENOSPC, EDQUOT}},
      {"ftruncate", SYS_ftruncate, true, {EIO, ENOSPC}},
      {"fallocate", SYS_fallocate, true, {EIO, ENOSPC, EDQUOT}},
      {"fsetxattr", SYS_fsetxattr, true, {EIO, ENOSPC, EDQUOT}},
      {"setxattr", SYS_setxattr, true, {EIO, ENOSPC, EDQUOT}},
      {"unlink", SYS_unlink, true, {EIO}},
      {"unlinkat", SYS_unlinkat, true, {EIO}},
      {"rmdir", SYS_rmdir, true, {EIO}},
      {"chmod", SYS_chmod, true, {EIO}},
      {"fchmod", SYS_fchmod, true, {EIO}},
      {"fchmodat", SYS_fchmodat, true, {EIO}},
      {"fchownat", SYS_fchownat, true, {EIO, EDQUOT}},
      {"fchown", SYS_fchown, true, {EIO, EDQUOT}},
      {"utimensat", SYS_utimensat, true, {EIO}},
      {"removexattr", SYS_removexattr, true, {EIO}},
      {"getdents64", SYS_getdents64, false, {EIO}},
  };
  return *calls;
}

const Call* Find(long number) {
  for (const Call& call : Calls()) {
    if (call.number == number) return &call;
  }
  return nullptr;
}

// What the child says, in memory that both see: no system call is needed for it.
struct Notes {
  static constexpr size_t kRoom = 64 << 10;
  std::atomic<size_t> said_bytes{0};
  std::atomic<size_t> result_bytes{0};
  char said[kRoom];  // each text ends with a NUL
  char result[kRoom];
};

void StopForCalls(CallSet set) {
  std::vector<sock_filter> filter = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
  };
  for (const Call& call : Calls()) {
    if (set == CallSet::kChanging && !call.changes) continue;
    if (set == CallSet::kFilesystemFlushes && call.number != SYS_syncfs) continue;
    const auto number = static_cast<uint32_t>(call.number);
    if (call.number == SYS_openat && set == CallSet::kChanging) {
      filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 4));
      filter.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])));
      filter.push_back(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT | O_TRUNC, 0, 1));
      filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE));
      filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    } else {
      filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1));
      filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE));
    }
  }
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    _exit(120);
  }
}

[[noreturn]] void RunChild(CallSet set, Notes* notes,
                           const std::function<std::string(const std::function<void(const std::string&)>&)>& body) {
  if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) _exit(121);
  raise(SIGSTOP);
  StopForCalls(set);
  const std::string result = body([notes](const std::string& text) {
    const size_t at = notes->said_bytes;
    if (at + text.size() + 1 > Notes::kRoom) _exit(122);
    std::memcpy(notes->said + at, text.c_str(), text.size() + 1);
    notes->said_bytes = at + text.size() + 1;
  });
  const size_t size = std::min(result.size(), Notes::kRoom);
  std::memcpy(notes->result, result.data(), size);
  notes->result_bytes = size;
  _exit(0);
}

// Answers the call that `thread` has stopped at, without carrying it out.
void FailCall(pid_t thread, int error_number) {
  user_regs_struct registers{};
  ptrace(PTRACE_GETREGS, thread, nullptr, &registers);
  registers.orig_rax = static_cast<unsigned long long>(-1);
  registers.rax = static_cast<unsigned long long>(-error_number);
  ptrace(PTRACE_SETREGS, thread, nullptr, &registers);
}

}  // namespace

std::vector<int> PlausibleErrors(const std::string& name) {
  for (const Call& call : Calls()) {
    if (name == call.name) return call.errors;
  }
  return {};
}

absl::StatusOr<TracedRun> RunTraced(
    CallSet calls, const Interruption& interruption,
    const std::function<std::string(const std::function<void(const std::string&)>& say)>& body) {
  void* const memory = mmap(nullptr, sizeof(Notes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return ErrnoStatus(errno, "mmap");
  Notes* const notes = new (memory) Notes;
  const pid_t child = fork();
  if (child < 0) return ErrnoStatus(errno, "fork");
  if (child == 0) RunChild(calls, notes, body);

  TracedRun run;
  int end_status = 0;
  bool first_stop = true;
  while (true) {
    int status = 0;
    const pid_t thread = waitpid(-1, &status, __WALL);
    if (thread < 0) {
      if (errno == EINTR) continue;
      break;  // all have ended
    }
    if (WIFEXITED(status) || WIFSIGNALED(status)) {
      if (thread == child) end_status = status;
      continue;
    }
    int signal_to_pass = 0;
    if (first_stop && thread == child) {
      first_stop = false;
      if (ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL) !=
          0) {
        kill(child, SIGKILL);
        continue;
      }
    } else if (status >> 8 == (SIGTRAP | (PTRACE_EVENT_SECCOMP << 8))) {
      ++run.calls;
      if (interruption.kind != Interruption::Kind::kNone && run.calls == interruption.at) {
        user_regs_struct registers{};
        ptrace(PTRACE_GETREGS, thread, nullptr, &registers);
        const Call* call = Find(static_cast<long>(registers.orig_rax));
        run.call = call != nullptr ? call->name : "?";
        run.interrupted = true;
        if (interruption.kind == Interruption::Kind::kKill) {
          kill(child, SIGKILL);
          continue;
        }
        FailCall(thread, interruption.error_number);
      }
    } else if (WSTOPSIG(status) != SIGTRAP && WSTOPSIG(status) != SIGSTOP) {
      signal_to_pass = WSTOPSIG(status);
    }
    ptrace(PTRACE_CONT, thread, nullptr, signal_to_pass);
  }
  const std::string said(notes->said, notes->said_bytes);
  run.said = absl::StrSplit(said, '\0', absl::SkipEmpty());
  run.result.assign(notes->result, notes->result_bytes);
  munmap(memory, sizeof(Notes));
  run.killed = WIFSIGNALED(end_status) && run.interrupted && interruption.kind == Interruption::Kind::kKill;
  if (!run.killed && end_status != 0) {
    return absl::UnavailableError(absl::StrCat("the traced process ended with wait status ", end_status));
  }
  return run;
}

#else

std::vector<int> PlausibleErrors(const std::string&) { return {}; }

absl::StatusOr<TracedRun> RunTraced(
    CallSet, const Interruption&,
    const std::function<std::string(const std::function<void(const std::string&)>& say)>&) {
  return absl::UnavailableError("system calls are interrupted on x86-64 only");
}

#endif

}  // namespace rb::crash
