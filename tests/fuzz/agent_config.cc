// agent.yaml: any text gives a list of problems that is safe to print, or a file that the agent can run from.
#include "agent/adapters/config/agent_config.h"

#include <grp.h>
#include <pwd.h>

#include <cstring>

#include "absl/status/statusor.h"
#include "common/text.h"
#include "rb/v1/agent_config.pb.h"
#include "tests/fuzz/check.h"

// In the place of libc's: looking into this machine's user database took most of the time, and made runs differ.
extern "C" {

int getpwnam_r(const char* name, struct passwd* entry, char* buffer, size_t size, struct passwd** found) {
  *found = nullptr;
  if (std::strcmp(name, "root") != 0) return 0;
  return getpwuid_r(0, entry, buffer, size, found);
}

int getpwuid_r(uid_t uid, struct passwd* entry, char* buffer, size_t size, struct passwd** found) {
  *found = nullptr;
  if (uid != 0) return 0;
  static constexpr char kName[] = "root\0/root";
  if (size < sizeof(kName)) return ERANGE;
  std::memcpy(buffer, kName, sizeof(kName));
  *entry = {};
  entry->pw_name = buffer;
  entry->pw_dir = buffer + 5;
  *found = entry;
  return 0;
}

int getgrnam_r(const char* name, struct group* entry, char*, size_t, struct group** found) {
  *found = nullptr;
  if (std::strcmp(name, "root") != 0) return 0;
  *entry = {};
  *found = entry;
  return 0;
}

int getgrouplist(const char*, gid_t group, gid_t* groups, int* count) {
  groups[0] = group;
  *count = 1;
  return 1;
}

}  // extern "C"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  rb::v1::AgentConfig config;
  const std::vector<rb::YamlProblem> problems =
      rb::agent::ParseAgentConfig(rb::fuzz::AsText(data, size), rb::agent::AgentConfigOptions(), &config);
  for (const rb::YamlProblem& problem : problems) {
    RB_FUZZ_CHECK(!problem.text.empty() && problem.line >= 0);
    RB_FUZZ_CHECK(rb::Printable(problem.path) == problem.path);
    RB_FUZZ_CHECK(rb::Printable(problem.text) == problem.text);
  }
  if (!problems.empty()) return 0;
  for (const auto& [name, service] : config.services()) {
    const absl::StatusOr<rb::agent::ServiceTree> tree = rb::agent::ToServiceTree(name, service);
    RB_FUZZ_CHECK(tree.ok());
    RB_FUZZ_CHECK(tree->tree.size() > 1 && tree->tree[0] == '/');
  }
  return 0;
}
