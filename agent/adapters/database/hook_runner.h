// Dumps and restores databases by the programs that agent.yaml names (database_hooks).
#ifndef RB_AGENT_ADAPTERS_DATABASE_HOOK_RUNNER_H_
#define RB_AGENT_ADAPTERS_DATABASE_HOOK_RUNNER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "agent/adapters/config/agent_config.h"
#include "agent/core/ports/database_hooks.h"
#include "agent/core/service.h"
#include "common/clock.h"

namespace rb::agent {

struct DatabaseHook {
  std::string name;
  // Program and arguments; no shell.
  std::vector<std::string> dump;
  std::vector<std::string> restore;
  // For each run of either.
  absl::Duration timeout = absl::Minutes(5);
  // Whom to run as; asked at each run. Null: the agent's own user.
  std::function<absl::StatusOr<UserAndGroup>()> user;
};

// A program runs in "/", in a session of its own, with PATH, HOME, USER, LOGNAME and LANG alone. What it writes is read
// as it comes: memory stays bounded whatever it prints. Of its standard error (of a restore: of both outputs) the end
// is kept, for the error message. When its time is over, when its dump cannot be taken or its input cannot be given,
// its group gets SIGTERM, and SIGKILL after a grace; its input stays open until then, so that no end of input is taken
// for the end of the dump. Whatever it leaves behind in its group when it ends is killed.
//
// It has succeeded when it ended with status 0, and has written something (a dump), or has read all there was (a
// restore).
//
// A program that outlives its agent (which was killed) would work against the next one: who runs is written down before
// it does, and is ended before anything else is run for the service, also by another process with the same state
// folder.
//
// One call at a time, in all processes: the engine's lock.
class HookRunner final : public DatabaseHooks {
 public:
  struct Options {
    std::string service;
    // Who runs is written to hooks/SERVICE in it.
    std::string state_folder;
    std::vector<DatabaseHook> hooks;
    // SIGTERM → SIGKILL.
    absl::Duration grace = absl::Seconds(5);
    // True when a dump should end, with CANCELLED; may be null. Restores do not ask.
    std::function<bool()> is_cancelled;
  };

  HookRunner(Options options, Clock& clock);

  std::vector<std::string> Names() const override;
  absl::Status Dump(const std::string& name, const Sink& sink) override;
  absl::Status Restore(const std::string& name, const Source& source) override;

 private:
  class Run;
  absl::StatusOr<const DatabaseHook*> Find(const std::string& name) const;
  absl::Status EndLeftover() const;
  std::string RunningPath() const;

  Options options_;
  Clock& clock_;
};

// What agent.yaml says of the service; null when it names none. `config` passed the checks.
std::unique_ptr<DatabaseHooks> MakeDatabaseHooks(const v1::AgentServiceConfig& config, const ServiceTree& tree,
                                                 const std::string& state_folder, Clock& clock,
                                                 std::function<bool()> is_cancelled);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_DATABASE_HOOK_RUNNER_H_
