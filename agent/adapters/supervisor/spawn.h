// Starting programs from a process with many threads, and knowing them again later.
#ifndef RB_AGENT_ADAPTERS_SUPERVISOR_SPAWN_H_
#define RB_AGENT_ADAPTERS_SUPERVISOR_SPAWN_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "agent/adapters/config/agent_config.h"
#include "common/unique_fd.h"

namespace rb::agent {

// Process ids are used again; together with the start time and the boot they are not.
struct ProcessIdentity {
  pid_t pid = 0;
  // Field 22 of /proc/PID/stat, in ticks since boot.
  uint64_t start_ticks = 0;
  std::string boot_id;
};

// NOT_FOUND when there is no such process, or only its zombie.
absl::StatusOr<ProcessIdentity> IdentifyProcess(pid_t pid);
// Of this boot; "" when the kernel does not say.
std::string BootId();
// How long the process has been running. NOT_FOUND.
absl::StatusOr<absl::Duration> ProcessAge(pid_t pid);
// Resident memory. NOT_FOUND.
absl::StatusOr<uint64_t> ProcessMemoryBytes(pid_t pid);
// Members of the group that `leader` began, that are alive (no zombies), sorted. None when its process id belongs to
// another process by now: the kernel gives a process id out again only when no group of that number is left.
std::vector<pid_t> GroupMembers(const ProcessIdentity& leader);

struct SpawnOptions {
  std::vector<std::string> command;
  // The whole environment.
  std::map<std::string, std::string> environment;
  std::string folder;
  // Both outputs: appended to this file, or to `output` when that is valid.
  std::string log_path;
  bool open_log_as_user = false;
  int output = -1;
  // Standard error, where it does not go where the output goes.
  int error_output = -1;
  // Standard input; nothing is on it otherwise.
  int input = -1;
  bool switch_user = false;
  UserAndGroup user;
};

// PATH, HOME, USER, LOGNAME and LANG for the user.
std::map<std::string, std::string> CleanEnvironment(const UserAndGroup& user);

struct Spawned {
  ProcessIdentity identity;
  UniqueFd pidfd;
};

// Starts the program in a session and group of its own, with signals at their defaults and no other descriptors.
// `before_run` is called with its identity before the program runs: when it fails, or
// when we die before it returned, the program never runs. The child has to be waited for by the caller, also when it
// outlives it. Errors name what could not be done ("cannot run /opt/x/bot: No such file or directory").
absl::StatusOr<Spawned> Spawn(const SpawnOptions& options,
                              const std::function<absl::Status(const ProcessIdentity&)>& before_run);

// Of a child: its end, if it has ended (it is reaped then): "exited with status 1", "killed by signal 9", and
// "exited with status 0". FAILED_PRECONDITION while it runs; NOT_FOUND when it is not a child of ours.
struct ChildEnd {
  bool exited = false;
  // Exit status, or the signal.
  int code = 0;
  std::string text;
};
absl::StatusOr<ChildEnd> ReapChild(int pidfd);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_SUPERVISOR_SPAWN_H_
