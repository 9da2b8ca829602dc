#include "controller/adapters/drill_store.h"

#include <sqlite3.h>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::controller {
namespace {

constexpr int kBusyTimeoutMs = 5000;
// Of each schedule.
constexpr int kRunsKept = 500;

constexpr char kSchema[] = R"sql(
  PRAGMA journal_mode = WAL;
  PRAGMA synchronous = FULL;
  CREATE TABLE IF NOT EXISTS drills (
    id TEXT PRIMARY KEY, environment TEXT NOT NULL, service TEXT NOT NULL, ended INTEGER NOT NULL,
    idempotency_key TEXT UNIQUE, snapshot BLOB NOT NULL) STRICT;
  CREATE TABLE IF NOT EXISTS drill_events (
    drill_id TEXT NOT NULL, sequence INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (drill_id, sequence)) STRICT;
  CREATE TABLE IF NOT EXISTS schedule_runs (
    schedule TEXT NOT NULL, due_us INTEGER NOT NULL, began_us INTEGER NOT NULL, outcome TEXT NOT NULL,
    message TEXT NOT NULL, PRIMARY KEY (schedule, due_us)) STRICT;
)sql";

absl::Status SqliteStatus(sqlite3* database) {
  const int code = sqlite3_errcode(database);
  const std::string text = absl::StrCat("the controller's store: ", sqlite3_errmsg(database));
  if (code == SQLITE_FULL) return absl::ResourceExhaustedError(absl::StrCat(text, ". Make room on its disk"));
  if (code == SQLITE_BUSY) return absl::UnavailableError(text);
  if (code == SQLITE_CONSTRAINT) return absl::AlreadyExistsError(text);
  if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB) return absl::DataLossError(text);
  return absl::InternalError(text);
}

class Statement {
 public:
  Statement(sqlite3* database, const char* sql) : database_(database) {
    ok_ = sqlite3_prepare_v2(database, sql, -1, &statement_, nullptr) == SQLITE_OK;
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  Statement& Text(absl::string_view text) {
    sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& Blob(absl::string_view blob) {
    sqlite3_bind_blob(statement_, ++bound_, blob.data(), static_cast<int>(blob.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& Number(int64_t number) {
    sqlite3_bind_int64(statement_, ++bound_, number);
    return *this;
  }
  // True when there is a row.
  absl::StatusOr<bool> Step() {
    const int code = ok_ ? sqlite3_step(statement_) : SQLITE_ERROR;
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return SqliteStatus(database_);
  }
  std::string TextOf(int column) const {
    const void* data = sqlite3_column_blob(statement_, column);
    return std::string(static_cast<const char*>(data), static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
  }
  int64_t NumberOf(int column) const { return sqlite3_column_int64(statement_, column); }

 private:
  sqlite3* const database_;
  sqlite3_stmt* statement_ = nullptr;
  bool ok_ = false;
  int bound_ = 0;
};

absl::Status Execute(sqlite3* database, const char* sql) {
  return sqlite3_exec(database, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? absl::OkStatus()
                                                                             : SqliteStatus(database);
}

StoredDrill Read(const Statement& row) {
  return StoredDrill{row.TextOf(0), row.TextOf(1), row.TextOf(2), row.NumberOf(3) != 0, row.TextOf(4)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<DrillStore>> DrillStore::Open(const std::string& path) {
  sqlite3* database = nullptr;
  const int opened = sqlite3_open_v2(path.c_str(), &database,
                                     SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
  std::unique_ptr<DrillStore> store(new DrillStore(database));
  if (opened != SQLITE_OK) return SqliteStatus(database);
  sqlite3_busy_timeout(database, kBusyTimeoutMs);
  RB_RETURN_IF_ERROR(Execute(database, kSchema));
  return store;
}

DrillStore::~DrillStore() { sqlite3_close(database_); }

absl::Status DrillStore::AppendEvent(const StoredDrill& drill, uint64_t sequence, absl::string_view event,
                                     const std::string& idempotency_key) {
  RB_RETURN_IF_ERROR(Execute(database_, "BEGIN IMMEDIATE"));
  const auto write = [&]() -> absl::Status {
    if (sequence == 1) {
      Statement add(database_, "INSERT INTO drills VALUES (?, ?, ?, ?, NULLIF(?, ''), ?)");
      add.Text(drill.id).Text(drill.environment).Text(drill.service).Number(drill.ended ? 1 : 0);
      RB_RETURN_IF_ERROR(add.Text(idempotency_key).Blob(drill.snapshot).Step().status());
    } else {
      Statement replace(database_, "UPDATE drills SET ended = ?, snapshot = ? WHERE id = ?");
      RB_RETURN_IF_ERROR(replace.Number(drill.ended ? 1 : 0).Blob(drill.snapshot).Text(drill.id).Step().status());
    }
    Statement append(database_, "INSERT INTO drill_events VALUES (?, ?, ?)");
    return append.Text(drill.id).Number(static_cast<int64_t>(sequence)).Blob(event).Step().status();
  };
  absl::Status done = write();
  if (done.ok()) done = Execute(database_, "COMMIT");
  if (!done.ok()) Execute(database_, "ROLLBACK").IgnoreError();
  return done;
}

absl::StatusOr<std::vector<std::string>> DrillStore::Events(const std::string& id) {
  Statement statement(database_, "SELECT event FROM drill_events WHERE drill_id = ? ORDER BY sequence");
  statement.Text(id);
  std::vector<std::string> events;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return events;
    events.push_back(statement.TextOf(0));
  }
}

absl::StatusOr<StoredDrill> DrillStore::Find(const std::string& id_or_prefix) {
  Statement statement(database_,
                      "SELECT id, environment, service, ended, snapshot FROM drills "
                      "WHERE substr(id, 1, length(?1)) = ?1 AND ?1 != '' ORDER BY id LIMIT 2");
  RB_ASSIGN_OR_RETURN(const bool found, statement.Text(id_or_prefix).Step());
  if (!found) {
    return absl::NotFoundError(absl::StrCat("there is no drill ", Printable(id_or_prefix), ". Type: rbctl drill list"));
  }
  StoredDrill drill = Read(statement);
  if (drill.id == id_or_prefix) return drill;
  RB_ASSIGN_OR_RETURN(const bool more, statement.Step());
  if (more) return absl::InvalidArgumentError(absl::StrCat(Printable(id_or_prefix), " begins several drills' ids"));
  return drill;
}

absl::StatusOr<std::string> DrillStore::DrillOfKey(const std::string& idempotency_key) {
  Statement statement(database_, "SELECT id FROM drills WHERE idempotency_key = ?");
  RB_ASSIGN_OR_RETURN(const bool found, statement.Text(idempotency_key).Step());
  return found ? statement.TextOf(0) : std::string();
}

absl::StatusOr<std::vector<StoredDrill>> DrillStore::List(const std::string& environment, const std::string& service,
                                                          size_t limit) {
  Statement statement(database_,
                      "SELECT id, environment, service, ended, snapshot FROM drills WHERE (?1 = '' OR environment = ?1)"
                      " AND (?2 = '' OR service = ?2) ORDER BY rowid DESC LIMIT ?3");
  statement.Text(environment).Text(service).Number(static_cast<int64_t>(limit));
  std::vector<StoredDrill> drills;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return drills;
    drills.push_back(Read(statement));
  }
}

absl::StatusOr<std::vector<std::string>> DrillStore::Unfinished() {
  Statement statement(database_, "SELECT id FROM drills WHERE ended = 0 ORDER BY rowid");
  std::vector<std::string> ids;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return ids;
    ids.push_back(statement.TextOf(0));
  }
}

absl::Status DrillStore::BeginRun(const ScheduleRun& run) {
  Statement statement(database_, "INSERT INTO schedule_runs VALUES (?, ?, ?, ?, ?)");
  RB_RETURN_IF_ERROR(statement.Text(run.schedule)
                         .Number(absl::ToUnixMicros(run.due_at))
                         .Number(absl::ToUnixMicros(run.began_at))
                         .Text(run.outcome)
                         .Text(run.message)
                         .Step()
                         .status());
  Statement thin_out(database_,
                     "DELETE FROM schedule_runs WHERE schedule = ?1 AND due_us < (SELECT due_us FROM schedule_runs "
                     "WHERE schedule = ?1 ORDER BY due_us DESC LIMIT 1 OFFSET ?2)");
  return thin_out.Text(run.schedule).Number(kRunsKept).Step().status();
}

absl::Status DrillStore::EndRun(const ScheduleRun& run) {
  Statement statement(database_, "UPDATE schedule_runs SET outcome = ?, message = ? WHERE schedule = ? AND due_us = ?");
  return statement.Text(run.outcome)
      .Text(run.message)
      .Text(run.schedule)
      .Number(absl::ToUnixMicros(run.due_at))
      .Step()
      .status();
}

absl::StatusOr<std::vector<ScheduleRun>> DrillStore::LastRuns() {
  Statement statement(database_,
                      "SELECT schedule, max(due_us), began_us, outcome, message FROM schedule_runs GROUP BY schedule");
  std::vector<ScheduleRun> runs;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return runs;
    ScheduleRun run;
    run.schedule = statement.TextOf(0);
    run.due_at = absl::FromUnixMicros(statement.NumberOf(1));
    run.began_at = absl::FromUnixMicros(statement.NumberOf(2));
    run.outcome = statement.TextOf(3);
    run.message = statement.TextOf(4);
    runs.push_back(std::move(run));
  }
}

}  // namespace rb::controller
