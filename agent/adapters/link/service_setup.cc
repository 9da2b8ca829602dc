#include "agent/adapters/link/service_setup.h"

#include <sys/stat.h>

#include "absl/strings/str_cat.h"
#include "agent/adapters/config/agent_config.h"

namespace rb::agent {
namespace {

// A name and password in a URL are nobody's business; the name alone belongs to it ("ssh://git@…").
std::string WithoutPassword(const std::string& url) {
  const size_t begin = url.find("://");
  if (begin == std::string::npos) return url;
  const size_t end = url.find('/', begin + 3);
  const size_t at = url.rfind('@', end == std::string::npos ? url.size() : end);
  const size_t colon = url.find(':', begin + 3);
  if (at == std::string::npos || at < begin + 3 || colon == std::string::npos || colon > at) return url;
  return absl::StrCat(url.substr(0, begin + 3), "…", url.substr(at));
}

}  // namespace

v1::ServiceSetup SetupOf(const v1::AgentServiceConfig& config, const std::string& state_folder) {
  v1::ServiceSetup setup;
  setup.set_unit(config.unit());
  setup.set_owner(config.owner());
  struct stat info;
  if (config.owner().empty() && stat(config.tree().c_str(), &info) == 0) {
    setup.set_owner(absl::StrCat(LookUpUid(info.st_uid, info.st_gid).name, ":", info.st_gid));
  }
  *setup.mutable_config() = config.components().config();
  *setup.mutable_data() = config.components().data();
  *setup.mutable_sqlite() = config.sqlite();
  setup.set_git_remote(WithoutPassword(config.git().remote()));
  setup.set_git_branch(config.git().branch());
  setup.set_state_folder(state_folder);
  for (const v1::DatabaseHookConfig& hook : config.database_hooks()) setup.add_database_hooks(hook.name());
  *setup.mutable_clears() = config.after_restore().clear();
  *setup.mutable_restarts() = config.after_restore().restart();
  return setup;
}

}  // namespace rb::agent
