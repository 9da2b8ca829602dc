// Runs a function in a process of its own under ptrace, and at one of its system calls kills it, or makes the call
// fail. Linux on x86-64 only.
#ifndef RB_TESTS_CRASH_SYSCALL_RIG_H_
#define RB_TESTS_CRASH_SYSCALL_RIG_H_

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace rb::crash {

struct Interruption {
  enum class Kind {
    kNone,  // only counts
    kKill,  // SIGKILL before the call is carried out
    kFail,  // the call is not carried out, and answers `error_number`
  };
  Kind kind = Kind::kNone;
  // Which of the counted calls, from 1.
  size_t at = 0;
  int error_number = 0;
};

struct TracedRun {
  // Calls that were counted, up to the interruption when it killed.
  size_t calls = 0;
  bool interrupted = false;
  // Name of the interrupted call.
  std::string call;
  // What the function returned ("" when it was killed), and what it had said before, in order.
  std::string result;
  std::vector<std::string> said;
  bool killed = false;
};

// The system calls that are counted.
enum class CallSet {
  kChanging,  // those that change a filesystem
  kFallible,  // those that may fail for want of something: all that open, write, flush, link, rename or allocate
  kFilesystemFlushes,  // syncfs alone
};
// Errors that the call of that name may really answer (of EIO, ENOSPC, EDQUOT, EMFILE).
std::vector<int> PlausibleErrors(const std::string& call);

// `body` runs in a forked child; `say` passes a text on to the caller without any system call. The result is what it
// returns. UNAVAILABLE where processes cannot be traced.
absl::StatusOr<TracedRun> RunTraced(
    CallSet calls, const Interruption& interruption,
    const std::function<std::string(const std::function<void(const std::string&)>& say)>& body);

}  // namespace rb::crash

#endif  // RB_TESTS_CRASH_SYSCALL_RIG_H_
