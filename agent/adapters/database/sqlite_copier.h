// Consistent copies and checks of SQLite databases that others may be writing to.
#ifndef RB_AGENT_ADAPTERS_DATABASE_SQLITE_COPIER_H_
#define RB_AGENT_ADAPTERS_DATABASE_SQLITE_COPIER_H_

#include <string>

#include "absl/time/time.h"
#include "agent/core/ports/database_copier.h"

namespace rb::agent {

// Root looks into folders that the service's own user may write to. So the work on a database is done by a thread that
// has that file's owner as its filesystem user: links lead nowhere that the owner could not go, and files that SQLite
// puts beside the database (-shm, -wal) belong to the owner, as if the service had made them. A link is followed only
// when root made it, in a folder that only root can change. Below a folder that only root can enter (staging, scratch)
// root works as itself.
//
// Copy takes the whole database under one read lock: in WAL mode writers go on, in rollback-journal mode they wait as
// long as the copying takes (about 1 s for 500 MB). The copy keeps the journal mode of the original; no -wal, -shm or
// -journal lies beside it. It is made with mode 0600 and owned by the agent: owner and mode are the caller's business.
class SqliteCopier final : public DatabaseCopier {
 public:
  // UNAVAILABLE when the database stays locked for longer than `patience`.
  explicit SqliteCopier(absl::Duration patience = absl::Seconds(30)) : patience_(patience) {}

  absl::Status Copy(const std::string& source, const std::string& destination) override;
  // An empty file is DATA_LOSS too: SQLite calls it a good database without tables. So are bytes other than zero behind
  // the last page.
  absl::Status Check(const std::string& path) override;
  absl::StatusOr<std::map<std::string, uint64_t>> CountRows(const std::string& path) override;

 private:
  const absl::Duration patience_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_DATABASE_SQLITE_COPIER_H_
