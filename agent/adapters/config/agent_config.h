// agent.yaml, root-owned, on each server: how its services are run, checked and recovered.
#ifndef RB_AGENT_ADAPTERS_CONFIG_AGENT_CONFIG_H_
#define RB_AGENT_ADAPTERS_CONFIG_AGENT_CONFIG_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "agent/core/service.h"
#include "common/adapters/metrics/metrics_server.h"
#include "common/adapters/yaml_message.h"

namespace rb::v1 {
class AgentConfig;
class AgentServiceConfig;
}  // namespace rb::v1

namespace rb::agent {

struct AgentConfigOptions {
  // The file, and the folder that it lies in, must belong to root and be writable for nobody else: whoever can write
  // it can run anything as root. Only looked at while running as root.
  bool check_ownership = true;
  // Also say what the agent can start without, but cannot work without: trees and programs that are not there.
  bool check_paths = false;
};

// Reads and checks the file. INVALID_ARGUMENT with everything that is wrong, one "FILE:LINE: PATH: TEXT" a line;
// PERMISSION_DENIED when somebody else could write it; NOT_FOUND.
absl::StatusOr<std::unique_ptr<v1::AgentConfig>> LoadAgentConfig(const std::string& path,
                                                                 const AgentConfigOptions& options = {});

// The same, as a list, and with what is missing on this server: for `rb-agent check`. Empty when all is well. Changes
// nothing.
std::vector<YamlProblem> CheckAgentConfig(const std::string& path, const AgentConfigOptions& options = {});

// Checks the text of a file, without reading anything but the user database (and paths when asked). `config` is
// filled.
std::vector<YamlProblem> ParseAgentConfig(absl::string_view yaml, const AgentConfigOptions& options,
                                          v1::AgentConfig* config);

// "300MiB", "1GiB", "500KiB", "4096" (bytes). INVALID_ARGUMENT.
absl::StatusOr<uint64_t> ParseByteCount(absl::string_view text);

// What the engine has to know. `config` passed the checks; an owner that is gone meanwhile is NOT_FOUND.
absl::StatusOr<ServiceTree> ToServiceTree(const std::string& service, const v1::AgentServiceConfig& config);

// How its metrics are served.
MetricsServerOptions MetricsOptionsOf(const v1::AgentConfig& config);

// A user and group of this server.
struct UserAndGroup {
  uid_t uid = 0;
  gid_t gid = 0;
  std::string name;
  std::string home;
  // All groups of the user, `gid` among them.
  std::vector<gid_t> groups;
};
// "user" or "user:group", by name or number. NOT_FOUND.
absl::StatusOr<UserAndGroup> LookUpUser(absl::string_view user_and_group);
// Whom commands of the service run as, probes among them, unless something else is said: they may lie in the tree,
// where the service's user can change them, so root never runs them as root, unless the service itself is root's. The
// process's user, else the owner of files that come from git, else the owner of the tree; the agent's own user when
// that is not root. NOT_FOUND.
absl::StatusOr<UserAndGroup> UserOfCommands(const v1::AgentServiceConfig& config, const ServiceTree& tree);
// By number; a user without an entry gets its number as name and "/" as home.
UserAndGroup LookUpUid(uid_t uid, gid_t gid);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_CONFIG_AGENT_CONFIG_H_
