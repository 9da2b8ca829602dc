#ifndef RB_AGENT_CORE_PORTS_DATABASE_HOOKS_H_
#define RB_AGENT_CORE_PORTS_DATABASE_HOOKS_H_

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rb::agent {

// Databases of a service that are not files of its tree (PostgreSQL, MariaDB, …): each is dumped and restored by a pair
// of programs that the server's own file names. A dump is a stream of bytes, of any size, that only its restore
// understands. One call at a time.
class DatabaseHooks {
 public:
  // Takes the next bytes of a dump, in order; an error ends the dump.
  using Sink = std::function<absl::Status(absl::string_view bytes)>;
  // Gives the next bytes of a dump, at most a few MiB; nothing at its end. An error ends the restore.
  using Source = std::function<absl::StatusOr<std::string>()>;

  virtual ~DatabaseHooks() = default;

  // Sorted, without repeats, each IsDatabaseName.
  virtual std::vector<std::string> Names() const = 0;

  // A consistent dump of the database as it is now; others may be writing to it. What the sink has taken is of use only
  // when this returns OK. NOT_FOUND: there is no such hook. DEADLINE_EXCEEDED: it took too long and was ended.
  // INTERNAL: it failed. CANCELLED. Errors name the database and hold what the program printed last.
  virtual absl::Status Dump(const std::string& name, const Sink& sink) = 0;

  // Brings the database wholly to what the dump holds, whatever it holds now: also what an earlier restore has left
  // that was ended half-way. On an error the database may be anything. Errors as above, but never CANCELLED; a restore
  // that leaves a part of the dump unread has failed.
  virtual absl::Status Restore(const std::string& name, const Source& source) = 0;
};

// 1 to 40 of a-z, 0-9 and '-'.
inline bool IsDatabaseName(absl::string_view name) {
  return !name.empty() && name.size() <= 40 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-';
  });
}

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_DATABASE_HOOKS_H_
