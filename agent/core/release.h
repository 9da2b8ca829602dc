// A release as people and policies see it. What is in it is the engine's business (agent/core/engine).
#ifndef RB_AGENT_CORE_RELEASE_H_
#define RB_AGENT_CORE_RELEASE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace rb::agent {

enum class Cause { kBackup, kDeploy, kReplaced, kExternal };
// Each implies the ones before it.
enum class Durability { kCaptured, kDurable, kVerified, kProved };
enum class Standing { kUnknown, kGood, kBad };

struct Release {
  // "rosey-bot/2026-11-23T03-14-07Z-v1.4.2-abc123f"; unique on this host.
  std::string name;
  // SHA-256 of the manifest in hexadecimal: equal trees have equal digests.
  std::string manifest_digest;
  std::string service;
  // 40 hexadecimal digits; empty when not known.
  std::string commit;
  // Tag of the commit; empty when there is none.
  std::string version;
  Cause cause = Cause::kBackup;
  absl::Time captured_at;
  Durability durability = Durability::kCaptured;
  Standing standing = Standing::kUnknown;
  // absl::InfinitePast() when never.
  absl::Time last_proved_at = absl::InfinitePast();
  uint64_t entry_count = 0;
  uint64_t content_bytes = 0;
  bool pinned = false;
  std::string operation_id;
  // Why it was taken, or why it is bad.
  std::string reason;
  // Databases whose dumps it holds, by the names of their hooks, sorted; those that are files of the tree are not
  // named.
  std::vector<std::string> databases;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_RELEASE_H_
