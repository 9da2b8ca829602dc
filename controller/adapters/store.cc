#include "controller/adapters/store.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "common/status.h"
#include "common/text.h"
#include "common/unique_fd.h"
#include "controller/adapters/sqlite_statement.h"

namespace rb::controller {
namespace {

constexpr int kBusyTimeoutMs = 5000;
// Enough for the events of an operation over thousands of hosts.
constexpr off_t kReserveBytes = 16 << 20;

constexpr char kSchema[] = R"sql(
  CREATE TABLE principals (name TEXT NOT NULL, is_agent INTEGER NOT NULL, role TEXT NOT NULL,
                           PRIMARY KEY (name, is_agent)) STRICT;
  CREATE TABLE join_tokens (secret_sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, expires_at INTEGER NOT NULL,
                            used INTEGER NOT NULL DEFAULT 0) STRICT;
  CREATE TABLE operations (id TEXT PRIMARY KEY, environment TEXT NOT NULL, service TEXT NOT NULL,
                           ended INTEGER NOT NULL, idempotency_key TEXT UNIQUE, snapshot BLOB NOT NULL) STRICT;
  CREATE INDEX unfinished ON operations (ended) WHERE ended = 0;
  CREATE TABLE operation_events (operation_id TEXT NOT NULL REFERENCES operations (id), sequence INTEGER NOT NULL,
                                 event BLOB NOT NULL, PRIMARY KEY (operation_id, sequence)) STRICT;
  CREATE TABLE locks (service TEXT NOT NULL, environment TEXT NOT NULL, operation_id TEXT NOT NULL,
                      PRIMARY KEY (service, environment)) STRICT;
  CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
  INSERT INTO counters VALUES ('fencing', 0);
)sql";

// Since version 2. Nothing in it is ever changed or removed, not even by us.
constexpr char kAuditSchema[] = R"sql(
  CREATE TABLE audit (number INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, who TEXT NOT NULL, role TEXT NOT NULL,
                      source TEXT NOT NULL, request TEXT NOT NULL, subject TEXT NOT NULL, reason TEXT NOT NULL,
                      allowed INTEGER NOT NULL, refusal TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
  CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
  CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
)sql";

// Since version 3: listing reads no snapshots, and plans say how long the like has taken.
constexpr char kBriefSchema[] = R"sql(
  CREATE TABLE briefs (operation_id TEXT PRIMARY KEY, brief BLOB NOT NULL) STRICT, WITHOUT ROWID;
  CREATE TABLE times (number INTEGER PRIMARY KEY, environment TEXT NOT NULL, service TEXT NOT NULL,
                      method TEXT NOT NULL, prepare_us INTEGER NOT NULL, downtime_us INTEGER NOT NULL) STRICT;
  CREATE INDEX times_of ON times (service, environment, method, number);
)sql";

// Since version 4. INSERT OR REPLACE removes what it replaces without asking the trigger on removal.
constexpr char kAuditInsertSchema[] = R"sql(
  CREATE TRIGGER audit_goes_on_at_its_end BEFORE INSERT ON audit
    WHEN NEW.number IS NOT (SELECT ifnull(max(number), 0) + 1 FROM audit)
    BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END;
)sql";

// Since version 5. One row a change; what is quarantined is the fold over them.
constexpr char kQuarantineSchema[] = R"sql(
  CREATE TABLE quarantine_changes (number INTEGER PRIMARY KEY, kind INTEGER NOT NULL, service TEXT NOT NULL,
                                   commit_id TEXT NOT NULL, version TEXT NOT NULL, at_us INTEGER NOT NULL,
                                   by TEXT NOT NULL, reason TEXT NOT NULL, undone_operation_id TEXT NOT NULL) STRICT;
)sql";

// Since version 6: a list is one scan over neighbouring rows, without a look into another table for each. `number` is
// the operation's rowid: the order in which they were accepted.
constexpr char kListingSchema[] = R"sql(
  CREATE TABLE listing (number INTEGER PRIMARY KEY, operation_id TEXT NOT NULL UNIQUE, environment TEXT NOT NULL,
                        service TEXT NOT NULL, ended INTEGER NOT NULL, brief BLOB NOT NULL) STRICT;
  INSERT INTO listing SELECT operations.rowid, id, environment, service, ended, coalesce(brief, snapshot)
    FROM operations LEFT JOIN briefs ON operation_id = id;
  DROP TABLE briefs;
)sql";

// What each version adds to the one before it. New ones are put at the end; none is ever changed.
constexpr const char* kMigrations[] = {kSchema,           kAuditSchema,  kBriefSchema, kAuditInsertSchema,
                                       kQuarantineSchema, kListingSchema};
constexpr int64_t kSchemaVersion = std::size(kMigrations);

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& path, Mode mode) {
  if (mode != Mode::kMake && access(path.c_str(), F_OK) != 0) {
    return absl::NotFoundError(absl::StrCat("there is no controller's store at ", path, ". Nothing was made"));
  }
  sqlite3* database = nullptr;
  const int flags = mode == Mode::kMake       ? SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE
                    : mode == Mode::kExisting ? SQLITE_OPEN_READWRITE
                                              : SQLITE_OPEN_READONLY;
  const int opened = sqlite3_open_v2(path.c_str(), &database, flags | SQLITE_OPEN_NOMUTEX, nullptr);
  std::unique_ptr<Store> store(new Store(database, path + ".reserve"));
  if (opened != SQLITE_OK) return SqliteStatus(database, absl::StrCat("open ", path));
  sqlite3_busy_timeout(database, kBusyTimeoutMs);
  MutexLock lock(store->mutex_);
  RB_RETURN_IF_ERROR(store->Setup(mode));
  return store;
}

Store::~Store() { sqlite3_close(database_); }

absl::Status Store::Setup(Mode mode) {
  int64_t version = 0;
  {
    Statement statement(database_, "PRAGMA user_version");
    RB_RETURN_IF_ERROR(statement.Run());
    version = statement.Number(0);
  }
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the controller's store was written by a newer version (schema ",
                                                      version, ", this one knows ", kSchemaVersion,
                                                      "). It was not touched. Run the newer rb-controller"));
  }
  if (mode == Mode::kReadOnly) return absl::OkStatus();
  RB_RETURN_IF_ERROR(Execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"));
  if (version == kSchemaVersion) return absl::OkStatus();
  RB_RETURN_IF_ERROR(Begin());
  absl::Status made;
  for (; made.ok() && version < kSchemaVersion; ++version) made = Execute(kMigrations[version]);
  if (made.ok()) made = Execute(absl::StrCat("PRAGMA user_version = ", kSchemaVersion).c_str());
  return End(made);
}

absl::Status Store::Execute(const char* sql) {
  if (sqlite3_exec(database_, sql, nullptr, nullptr, nullptr) != SQLITE_OK) return SqliteStatus(database_, "execute");
  return absl::OkStatus();
}

absl::Status Store::Begin() { return Execute("BEGIN IMMEDIATE"); }

absl::Status Store::End(const absl::Status& status) {
  if (!status.ok()) {
    Execute("ROLLBACK").IgnoreError();
    return status;
  }
  absl::Status committed = Execute("COMMIT");
  if (!committed.ok()) Execute("ROLLBACK").IgnoreError();
  return committed;
}

absl::Status Store::InTransaction(const std::function<absl::Status()>& work) {
  const auto once = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    RB_RETURN_IF_ERROR(Begin());
    return End(work());
  };
  const absl::Status done = once();
  if (!absl::IsResourceExhausted(done) || unlink(reserve_path_.c_str()) != 0) return done;
  LogError("controller",
           "the disk of the store is full; the room that was kept for what runs is given up: ", done.message());
  return once();
}

absl::Status Store::KeepReserve() {
  struct stat there {};
  if (stat(reserve_path_.c_str(), &there) == 0 && there.st_size == kReserveBytes) return absl::OkStatus();
  struct statvfs disk {};
  const std::string folder = reserve_path_.substr(0, reserve_path_.rfind('/') + 1);
  if (statvfs(folder.empty() ? "." : folder.c_str(), &disk) != 0) return ErrnoStatus(errno, folder);
  const auto full = [&] {
    unlink(reserve_path_.c_str());
    return absl::ResourceExhaustedError(absl::StrCat("the disk of ", folder,
                                                     " is full: ", FormatBytes(disk.f_bavail * disk.f_frsize),
                                                     " are free. Make room on it"));
  };
  // As much again stays free: keeping room is not to be what fills the disk.
  if (disk.f_bavail * disk.f_frsize < 2 * static_cast<uint64_t>(kReserveBytes)) return full();
  const UniqueFd file(open(reserve_path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) return ErrnoStatus(errno, reserve_path_);
  if (posix_fallocate(file.get(), 0, kReserveBytes) != 0) return full();
  return absl::OkStatus();
}

absl::Status Store::PutPrincipal(const Principal& principal) {
  MutexLock lock(mutex_);
  Statement statement(database_, "INSERT OR REPLACE INTO principals VALUES (?, ?, ?)");
  return statement.Bind(principal.name)
      .BindNumber(principal.role == Role::kAgent ? 1 : 0)
      .Bind(NameOf(principal.role))
      .Run();
}

absl::Status Store::RemovePrincipal(const std::string& name, bool is_agent) {
  MutexLock lock(mutex_);
  Statement statement(database_, "DELETE FROM principals WHERE name = ? AND is_agent = ?");
  RB_RETURN_IF_ERROR(statement.Bind(name).BindNumber(is_agent ? 1 : 0).Run());
  if (sqlite3_changes(database_) == 0) return absl::NotFoundError(absl::StrCat("there is no ", name));
  return absl::OkStatus();
}

absl::StatusOr<Role> Store::RoleOf(const std::string& name, bool is_agent) {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT role FROM principals WHERE name = ? AND is_agent = ?");
  RB_ASSIGN_OR_RETURN(const bool found, statement.Bind(name).BindNumber(is_agent ? 1 : 0).Step());
  if (!found) return Role::kNone;
  if (is_agent) return Role::kAgent;
  Role role = Role::kNone;
  if (!ParseRole(statement.Text(0), &role)) return Role::kNone;
  return role;
}

absl::StatusOr<std::vector<Principal>> Store::Principals() {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT name, is_agent, role FROM principals ORDER BY is_agent, name");
  std::vector<Principal> principals;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return principals;
    Principal principal;
    principal.name = statement.Text(0);
    if (statement.Number(1) != 0) {
      principal.role = Role::kAgent;
    } else {
      ParseRole(statement.Text(2), &principal.role);
    }
    principals.push_back(std::move(principal));
  }
}

absl::Status Store::AddToken(const std::string& agent_name, const std::string& secret_sha256_hex,
                             absl::Time expires_at) {
  MutexLock lock(mutex_);
  // Old ones go: a table of every token there ever was is of no use.
  Statement clean(database_, "DELETE FROM join_tokens WHERE expires_at < ?");
  RB_RETURN_IF_ERROR(clean.BindNumber(absl::ToUnixSeconds(absl::Now() - absl::Hours(24 * 30))).Run());
  Statement statement(database_, "INSERT INTO join_tokens VALUES (?, ?, ?, 0)");
  return statement.Bind(secret_sha256_hex).Bind(agent_name).BindNumber(absl::ToUnixSeconds(expires_at)).Run();
}

absl::Status Store::UseToken(const std::string& agent_name, const std::string& secret_sha256_hex, absl::Time now) {
  MutexLock lock(mutex_);
  RB_RETURN_IF_ERROR(Begin());
  const auto use = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    // The secret is looked up by its digest: how long that takes says nothing about the secret.
    Statement token(database_,
                    "UPDATE join_tokens SET used = 1 WHERE secret_sha256 = ? AND name = ? AND used = 0 AND "
                    "expires_at > ?");
    RB_RETURN_IF_ERROR(token.Bind(secret_sha256_hex).Bind(agent_name).BindNumber(absl::ToUnixSeconds(now)).Run());
    if (sqlite3_changes(database_) != 1) {
      return absl::PermissionDeniedError("the token is not valid for this name: wrong, used up or expired");
    }
    Statement principal(database_, "INSERT OR REPLACE INTO principals VALUES (?, 1, 'agent')");
    return principal.Bind(agent_name).Run();
  };
  return End(use());
}

absl::Status Store::CheckToken(const std::string& agent_name, const std::string& secret_sha256_hex, absl::Time now) {
  MutexLock lock(mutex_);
  Statement token(database_,
                  "SELECT 1 FROM join_tokens WHERE secret_sha256 = ? AND name = ? AND used = 0 AND expires_at > ?");
  RB_ASSIGN_OR_RETURN(const bool found,
                      token.Bind(secret_sha256_hex).Bind(agent_name).BindNumber(absl::ToUnixSeconds(now)).Step());
  if (found) return absl::OkStatus();
  return absl::PermissionDeniedError("the token is not valid for this name: wrong, used up or expired");
}

absl::StatusOr<uint64_t> Store::NextFencingNumber() {
  MutexLock lock(mutex_);
  Statement statement(database_, "UPDATE counters SET value = value + 1 WHERE name = 'fencing' RETURNING value");
  RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
  if (!row) return absl::DataLossError("the controller's store has no fencing counter");
  const auto number = static_cast<uint64_t>(statement.Number(0));
  RB_RETURN_IF_ERROR(statement.Run());
  return number;
}

absl::Status Store::PutBrief(const StoredOperation& operation) {
  Statement put(database_, "UPDATE listing SET ended = ?, brief = ? WHERE operation_id = ?");
  return put.BindNumber(operation.ended ? 1 : 0)
      .BindBlob(operation.brief.empty() ? operation.snapshot : operation.brief)
      .Bind(operation.id)
      .Run();
}

absl::Status Store::InsertOperation(const StoredEvent& event) {
  const StoredOperation& operation = event.operation;
  if (event.sequence == 1) {
    Statement insert(database_, "INSERT INTO operations VALUES (?, ?, ?, ?, NULLIF(?, ''), ?)");
    RB_RETURN_IF_ERROR(insert.Bind(operation.id)
                           .Bind(operation.environment)
                           .Bind(operation.service)
                           .BindNumber(operation.ended ? 1 : 0)
                           .Bind(event.idempotency_key)
                           .BindBlob(operation.snapshot)
                           .Run());
    Statement list(database_, "INSERT INTO listing VALUES (last_insert_rowid(), ?, ?, ?, ?, ?)");
    RB_RETURN_IF_ERROR(list.Bind(operation.id)
                           .Bind(operation.environment)
                           .Bind(operation.service)
                           .BindNumber(operation.ended ? 1 : 0)
                           .BindBlob(operation.brief.empty() ? operation.snapshot : operation.brief)
                           .Run());
    for (const QuarantineChange& change : event.changes) RB_RETURN_IF_ERROR(Insert(change));
  }
  return absl::OkStatus();
}

absl::Status Store::AppendEvents(const std::vector<StoredEvent>& events) {
  MutexLock lock(mutex_);
  return InTransaction([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Statement insert(database_, "INSERT INTO operation_events VALUES (?, ?, ?)");
    for (const StoredEvent& event : events) {
      RB_RETURN_IF_ERROR(InsertOperation(event));
      insert.Reset();
      RB_RETURN_IF_ERROR(
          insert.Bind(event.operation.id).BindNumber(static_cast<int64_t>(event.sequence)).BindBlob(event.event).Run());
    }
    RB_FAILPOINT("controller.store.before-commit");
    return absl::OkStatus();
  });
}

absl::Status Store::AppendEvent(const StoredOperation& operation, uint64_t sequence, absl::string_view event,
                                const std::string& idempotency_key) {
  RB_RETURN_IF_ERROR(AppendEvents({StoredEvent{operation, sequence, std::string(event), idempotency_key}}));
  return sequence == 1 ? absl::OkStatus() : PutSnapshot(operation, {}, 0);
}

absl::Status Store::PutSnapshot(const StoredOperation& operation, const std::vector<StoredTime>& times,
                                size_t most_times, const std::vector<QuarantineChange>& changes) {
  MutexLock lock(mutex_);
  return InTransaction([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    Statement update(database_, "UPDATE operations SET ended = ?, snapshot = ? WHERE id = ?");
    RB_RETURN_IF_ERROR(
        update.BindNumber(operation.ended ? 1 : 0).BindBlob(operation.snapshot).Bind(operation.id).Run());
    RB_RETURN_IF_ERROR(PutBrief(operation));
    for (const StoredTime& time : times) {
      Statement insert(database_, "INSERT INTO times VALUES (NULL, ?, ?, ?, ?, ?)");
      RB_RETURN_IF_ERROR(insert.Bind(time.environment)
                             .Bind(time.service)
                             .Bind(time.method)
                             .BindNumber(time.prepare_us)
                             .BindNumber(time.downtime_us)
                             .Run());
    }
    for (const QuarantineChange& change : changes) RB_RETURN_IF_ERROR(Insert(change));
    for (const StoredTime& time : times) {
      Statement thin(database_,
                     "DELETE FROM times WHERE service = ?1 AND environment = ?2 AND method = ?3 AND number <= (SELECT "
                     "number FROM times WHERE service = ?1 AND environment = ?2 AND method = ?3 ORDER BY number DESC "
                     "LIMIT 1 OFFSET ?4)");
      RB_RETURN_IF_ERROR(thin.Bind(time.service)
                             .Bind(time.environment)
                             .Bind(time.method)
                             .BindNumber(static_cast<int64_t>(most_times))
                             .Run());
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<std::vector<StoredTime>> Store::Times(const std::string& service) {
  MutexLock lock(mutex_);
  Statement statement(database_,
                      "SELECT environment, method, prepare_us, downtime_us FROM times WHERE service = ? ORDER BY "
                      "number DESC");
  statement.Bind(service);
  std::vector<StoredTime> times;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return times;
    times.push_back({statement.Text(0), service, statement.Text(1), statement.Number(2), statement.Number(3)});
  }
}

absl::Status Store::Insert(const QuarantineChange& change) {
  Statement insert(database_, "INSERT INTO quarantine_changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)");
  return insert.BindNumber(static_cast<int64_t>(change.number))
      .BindNumber(static_cast<int64_t>(change.kind))
      .Bind(change.service)
      .Bind(change.commit)
      .Bind(change.version)
      .BindNumber(absl::ToUnixMicros(change.at))
      .Bind(change.by)
      .Bind(change.reason)
      .Bind(change.undone_operation_id)
      .Run();
}

absl::Status Store::AppendQuarantine(const QuarantineChange& change) {
  MutexLock lock(mutex_);
  return Insert(change);
}

absl::StatusOr<std::vector<QuarantineChange>> Store::QuarantineChanges() {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT * FROM quarantine_changes ORDER BY number");
  std::vector<QuarantineChange> changes;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return changes;
    QuarantineChange change;
    change.number = static_cast<uint64_t>(statement.Number(0));
    const int64_t kind = statement.Number(1);
    if (kind < 1 || kind > static_cast<int64_t>(QuarantineChange::Kind::kUndone)) {
      return absl::DataLossError(absl::StrCat("change ", change.number, " of the quarantine cannot be read"));
    }
    change.kind = static_cast<QuarantineChange::Kind>(kind);
    change.service = statement.Text(2);
    change.commit = statement.Text(3);
    change.version = statement.Text(4);
    change.at = absl::FromUnixMicros(statement.Number(5));
    change.by = statement.Text(6);
    change.reason = statement.Text(7);
    change.undone_operation_id = statement.Text(8);
    changes.push_back(std::move(change));
  }
}

absl::StatusOr<std::vector<std::string>> Store::Events(const std::string& operation_id) {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT event FROM operation_events WHERE operation_id = ? ORDER BY sequence");
  statement.Bind(operation_id);
  std::vector<std::string> events;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return events;
    events.push_back(statement.Text(0));
  }
}

absl::StatusOr<StoredOperation> Store::Find(const std::string& id_or_prefix) {
  MutexLock lock(mutex_);
  Statement statement(database_,
                      "SELECT id, environment, service, ended, snapshot FROM operations WHERE id >= ?1 AND id < ?2 "
                      "ORDER BY id LIMIT 3");
  // Ids are ASCII.
  statement.Bind(id_or_prefix).Bind(absl::StrCat(id_or_prefix, "\x7f"));
  std::vector<StoredOperation> found;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) break;
    found.push_back(
        {statement.Text(0), statement.Text(1), statement.Text(2), statement.Number(3) != 0, statement.Text(4), ""});
    if (found.back().id == id_or_prefix) return found.back();
  }
  if (found.empty() || id_or_prefix.empty()) {
    return absl::NotFoundError(absl::StrCat("there is no operation '", id_or_prefix, "'. Type: rbctl history"));
  }
  if (found.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", id_or_prefix, "' is the beginning of several operations: ", found[0].id, ", ", found[1].id));
  }
  return found[0];
}

absl::StatusOr<std::string> Store::OperationOfKey(const std::string& idempotency_key) {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT id FROM operations WHERE idempotency_key = ?");
  RB_ASSIGN_OR_RETURN(const bool row, statement.Bind(idempotency_key).Step());
  return row ? statement.Text(0) : std::string();
}

absl::StatusOr<std::vector<ListedOperation>> Store::List(const std::string& environment, const std::string& service,
                                                         const std::string& before_id, size_t limit) {
  std::vector<ListedOperation> operations;
  RB_RETURN_IF_ERROR(ForEachListed(environment, service, before_id, limit,
                                   [&](absl::string_view id, bool ended, absl::string_view brief) {
                                     operations.push_back({std::string(id), ended, std::string(brief)});
                                     return absl::OkStatus();
                                   }));
  return operations;
}

absl::Status Store::ForEachListed(const std::string& environment, const std::string& service,
                                  const std::string& before_id, size_t limit, const EachListed& each) {
  MutexLock lock(mutex_);
  Statement statement(
      database_,
      "SELECT operation_id, ended, brief FROM listing WHERE (?1 = '' OR environment = ?1) AND (?2 = '' OR "
      "service = ?2) AND (?3 = '' OR number < (SELECT number FROM listing WHERE operation_id = ?3)) "
      "ORDER BY number DESC LIMIT ?4");
  statement.Bind(environment).Bind(service).Bind(before_id).BindNumber(static_cast<int64_t>(limit));
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return absl::OkStatus();
    RB_RETURN_IF_ERROR(each(statement.View(0), statement.Number(1) != 0, statement.View(2)));
  }
}

absl::StatusOr<std::vector<std::string>> Store::Unfinished() {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT id FROM operations WHERE ended = 0 ORDER BY id");
  std::vector<std::string> ids;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return ids;
    ids.push_back(statement.Text(0));
  }
}

absl::Status Store::TakeLock(const std::string& service, const std::string& environment,
                             const std::string& operation_id) {
  RB_ASSIGN_OR_RETURN(const std::string holder, LockHolder(service, environment));
  if (holder == operation_id) return absl::OkStatus();
  if (!holder.empty()) return absl::FailedPreconditionError(holder);
  MutexLock lock(mutex_);
  Statement statement(database_, "INSERT INTO locks VALUES (?, ?, ?)");
  return statement.Bind(service).Bind(environment).Bind(operation_id).Run();
}

absl::Status Store::ReleaseLock(const std::string& operation_id) {
  MutexLock lock(mutex_);
  return InTransaction([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Statement statement(database_, "DELETE FROM locks WHERE operation_id = ?");
    return statement.Bind(operation_id).Run();
  });
}

absl::Status Store::ReleaseStaleLocks() {
  MutexLock lock(mutex_);
  return Execute("DELETE FROM locks WHERE operation_id NOT IN (SELECT id FROM operations WHERE ended = 0)");
}

absl::StatusOr<std::vector<AuditRecord>> Store::ReadAudit(Statement* statement) {
  std::vector<AuditRecord> records;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement->Step());
    if (!row) return records;
    AuditRecord record;
    record.number = static_cast<uint64_t>(statement->Number(0));
    record.at = absl::FromUnixMicros(statement->Number(1));
    record.who = statement->Text(2);
    record.role = statement->Text(3);
    record.from = statement->Text(4);
    record.request = statement->Text(5);
    record.subject = statement->Text(6);
    record.reason = statement->Text(7);
    record.allowed = statement->Number(8) != 0;
    record.refusal = statement->Text(9);
    const std::string hash = statement->Text(10);
    // Of another length it is not one of ours; a zero is never the right one.
    if (hash.size() == record.hash.bytes.size()) std::copy(hash.begin(), hash.end(), record.hash.bytes.begin());
    records.push_back(std::move(record));
  }
}

absl::Status Store::AppendAudit(AuditRecord record, bool durable) {
  for (std::string* text :
       {&record.who, &record.role, &record.from, &record.request, &record.subject, &record.reason, &record.refusal}) {
    *text = Truncate(*text, kLongestAuditField);
  }
  record.at = absl::FromUnixMicros(absl::ToUnixMicros(record.at));
  MutexLock lock(mutex_);
  // Without a flush at the commit; the next durable one flushes it as well.
  if (!durable) RB_RETURN_IF_ERROR(Execute("PRAGMA synchronous = NORMAL"));
  const auto append = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) -> absl::Status {
    Statement last(database_, "SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1");
    RB_ASSIGN_OR_RETURN(const bool row, last.Step());
    Digest before;
    if (row) {
      record.number = static_cast<uint64_t>(last.Number(0)) + 1;
      const std::string hash = last.Text(1);
      if (hash.size() == before.bytes.size()) std::copy(hash.begin(), hash.end(), before.bytes.begin());
    } else {
      record.number = 1;
    }
    record.hash = AuditHash(before, record);
    Statement insert(database_, "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    insert.BindNumber(static_cast<int64_t>(record.number)).BindNumber(absl::ToUnixMicros(record.at));
    for (const std::string* text :
         {&record.who, &record.role, &record.from, &record.request, &record.subject, &record.reason}) {
      insert.Bind(*text);
    }
    insert.BindNumber(record.allowed ? 1 : 0).Bind(record.refusal);
    insert.BindBlob(
        absl::string_view(reinterpret_cast<const char*>(record.hash.bytes.data()), record.hash.bytes.size()));
    return insert.Run();
  };
  // What only reads is not worth the reserve.
  absl::Status appended;
  if (durable) {
    appended = InTransaction(append);
  } else {
    appended = Begin();
    if (appended.ok()) appended = End(append());
  }
  if (!durable) RB_RETURN_IF_ERROR(Execute("PRAGMA synchronous = FULL"));
  return appended;
}

absl::StatusOr<std::vector<AuditRecord>> Store::AuditAfter(uint64_t after, size_t limit) {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT * FROM audit WHERE ?1 = 0 OR number > ?1 ORDER BY number LIMIT ?2");
  statement.BindNumber(static_cast<int64_t>(after)).BindNumber(static_cast<int64_t>(limit));
  return ReadAudit(&statement);
}

absl::StatusOr<std::vector<AuditRecord>> Store::AuditBefore(uint64_t before, size_t limit) {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT * FROM audit WHERE ? = 0 OR number < ? ORDER BY number DESC LIMIT ?");
  statement.BindNumber(static_cast<int64_t>(before)).BindNumber(static_cast<int64_t>(before));
  statement.BindNumber(static_cast<int64_t>(limit));
  return ReadAudit(&statement);
}

absl::StatusOr<std::string> Store::LockHolder(const std::string& service, const std::string& environment) {
  MutexLock lock(mutex_);
  Statement statement(database_, "SELECT operation_id FROM locks WHERE service = ? AND environment = ?");
  RB_ASSIGN_OR_RETURN(const bool row, statement.Bind(service).Bind(environment).Step());
  return row ? statement.Text(0) : std::string();
}

}  // namespace rb::controller
