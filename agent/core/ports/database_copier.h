#ifndef RB_AGENT_CORE_PORTS_DATABASE_COPIER_H_
#define RB_AGENT_CORE_PORTS_DATABASE_COPIER_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rb::agent {

// Copies live databases consistently. Thread-safe.
class DatabaseCopier {
 public:
  virtual ~DatabaseCopier() = default;
  // Copies the database `source` (which others may be writing to) into the new file `destination`, without journal
  // files beside it, and checks the copy's integrity. DATA_LOSS when the database is damaged, naming what
  // was found; nothing is left at `destination` then. Neither file is flushed.
  virtual absl::Status Copy(const std::string& source, const std::string& destination) = 0;
  // integrity_check and foreign structure (size against the header's page count). DATA_LOSS with the first findings.
  virtual absl::Status Check(const std::string& path) = 0;
  // Rows of each table of a copy that nobody writes to. Tables that cannot be counted, or not within a few seconds, are
  // left out.
  virtual absl::StatusOr<std::map<std::string, uint64_t>> CountRows(const std::string& path) = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_DATABASE_COPIER_H_
