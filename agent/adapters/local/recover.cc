#include "agent/adapters/local/recover.h"

#include <unistd.h>

#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/adapters/config/agent_config.h"
#include "agent/adapters/local/local_commands.h"
#include "agent/core/engine/engine.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

// A swap takes milliseconds; databases that are restored with it take longer, and the unit's own TimeoutStartSec ends
// the wait where that is shorter.
constexpr absl::Duration kPatience = absl::Minutes(10);
constexpr absl::Duration kLookAgain = absl::Milliseconds(20);

// Whether the tree may be half of each state. Needs no agent.yaml: only what the journal says.
absl::StatusOr<bool> IsTorn(const std::string& state_folder, const std::string& service, Clock& clock) {
  if (access(absl::StrCat(state_folder, "/services/", service, "/transaction").c_str(), F_OK) != 0 && errno == ENOENT) {
    return false;
  }
  Engine::Options options;
  options.state_folder = state_folder;
  options.clock = &clock;
  ServiceTree tree;
  tree.service = service;
  tree.tree = "/";
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Open(std::move(options), std::move(tree)));
  RB_ASSIGN_OR_RETURN(const OpenTransaction open, engine->GetOpenTransaction());
  return open.is_torn;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "rb-agent: %s\n", Printable(std::string(status.message())).c_str());
  return 1;
}

int RecoverOne(const v1::AgentConfig& config, const RecoverRequest& request, const std::string& service, Clock& clock) {
  LocalRequest local;
  local.verb = "recover";
  local.service = service;
  return RunLocal(config, request.state_folder, local, clock);
}

int BeforeStart(const RecoverRequest& request, Clock& clock) {
  const absl::Duration until = clock.Monotonic() + kPatience;
  while (true) {
    const absl::StatusOr<bool> torn = IsTorn(request.state_folder, request.service, clock);
    if (!torn.ok()) {
      return Fail(Annotate(torn.status(), absl::StrCat(request.service,
                                                       " is not started: it is not known whether its "
                                                       "tree is whole")));
    }
    if (!*torn) return 0;
    const absl::StatusOr<FileLock> at_work =
        FileLock::TryAcquire(absl::StrCat(request.state_folder, "/services/", request.service, "/lock"));
    if (at_work.ok() || clock.Monotonic() >= until) break;
    clock.Sleep(kLookAgain);  // the agent is in the middle of it
  }
  const auto config = LoadAgentConfig(request.config_path);
  if (!config.ok()) {
    return Fail(Annotate(config.status(), absl::StrCat("the tree of ", request.service,
                                                       " is half swapped, and cannot be made whole without the file")));
  }
  return RecoverOne(**config, request, request.service, clock);
}

}  // namespace

int RunRecover(const RecoverRequest& request, Clock& clock) {
  if (request.before_start) return BeforeStart(request, clock);
  const auto config = LoadAgentConfig(request.config_path);
  if (!config.ok()) return Fail(config.status());
  int result = 0;
  bool found = false;
  for (const auto& [name, service] : (*config)->services()) {
    if (!request.service.empty() && name != request.service) continue;
    found = true;
    if (const int one = RecoverOne(**config, request, name, clock); one != 0) result = one;
  }
  if (!found && !request.service.empty()) return RecoverOne(**config, request, request.service, clock);
  return result;
}

}  // namespace rb::agent
