#include "controller/adapters/drill_store.h"

#include <sqlite3.h>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "common/text.h"
#include "controller/adapters/sqlite_statement.h"

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

absl::Status Execute(sqlite3* database, const char* sql) {
  return sqlite3_exec(database, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? absl::OkStatus()
                                                                             : SqliteStatus(database, "execute");
}

StoredDrill Read(const Statement& row) {
  return StoredDrill{row.Text(0), row.Text(1), row.Text(2), row.Number(3) != 0, row.Text(4)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<DrillStore>> DrillStore::Open(const std::string& path) {
  sqlite3* database = nullptr;
  const int opened = sqlite3_open_v2(path.c_str(), &database,
                                     SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
  std::unique_ptr<DrillStore> store(new DrillStore(database));
  if (opened != SQLITE_OK) return SqliteStatus(database, absl::StrCat("open ", path));
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
      add.Bind(drill.id).Bind(drill.environment).Bind(drill.service).BindNumber(drill.ended ? 1 : 0);
      RB_RETURN_IF_ERROR(add.Bind(idempotency_key).BindBlob(drill.snapshot).Run());
    } else {
      Statement replace(database_, "UPDATE drills SET ended = ?, snapshot = ? WHERE id = ?");
      RB_RETURN_IF_ERROR(replace.BindNumber(drill.ended ? 1 : 0).BindBlob(drill.snapshot).Bind(drill.id).Run());
    }
    Statement append(database_, "INSERT INTO drill_events VALUES (?, ?, ?)");
    return append.Bind(drill.id).BindNumber(static_cast<int64_t>(sequence)).BindBlob(event).Run();
  };
  absl::Status done = write();
  if (done.ok()) done = Execute(database_, "COMMIT");
  if (!done.ok()) Execute(database_, "ROLLBACK").IgnoreError();
  return done;
}

absl::StatusOr<std::vector<std::string>> DrillStore::Events(const std::string& id) {
  Statement statement(database_, "SELECT event FROM drill_events WHERE drill_id = ? ORDER BY sequence");
  statement.Bind(id);
  std::vector<std::string> events;
  while (true) {
    RB_ASSIGN_OR_RETURN(const bool row, statement.Step());
    if (!row) return events;
    events.push_back(statement.Text(0));
  }
}

absl::StatusOr<StoredDrill> DrillStore::Find(const std::string& id_or_prefix) {
  Statement statement(database_,
                      "SELECT id, environment, service, ended, snapshot FROM drills "
                      "WHERE substr(id, 1, length(?1)) = ?1 AND ?1 != '' ORDER BY id LIMIT 2");
  RB_ASSIGN_OR_RETURN(const bool found, statement.Bind(id_or_prefix).Step());
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
  RB_ASSIGN_OR_RETURN(const bool found, statement.Bind(idempotency_key).Step());
  return found ? statement.Text(0) : std::string();
}

absl::StatusOr<std::vector<StoredDrill>> DrillStore::List(const std::string& environment, const std::string& service,
                                                          size_t limit) {
  Statement statement(database_,
                      "SELECT id, environment, service, ended, snapshot FROM drills WHERE (?1 = '' OR environment = ?1)"
                      " AND (?2 = '' OR service = ?2) ORDER BY rowid DESC LIMIT ?3");
  statement.Bind(environment).Bind(service).BindNumber(static_cast<int64_t>(limit));
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
    ids.push_back(statement.Text(0));
  }
}

absl::Status DrillStore::BeginRun(const ScheduleRun& run) {
  Statement statement(database_, "INSERT INTO schedule_runs VALUES (?, ?, ?, ?, ?)");
  RB_RETURN_IF_ERROR(statement.Bind(run.schedule)
                         .BindNumber(absl::ToUnixMicros(run.due_at))
                         .BindNumber(absl::ToUnixMicros(run.began_at))
                         .Bind(run.outcome)
                         .Bind(run.message)
                         .Step()
                         .status());
  Statement thin_out(database_,
                     "DELETE FROM schedule_runs WHERE schedule = ?1 AND due_us < (SELECT due_us FROM schedule_runs "
                     "WHERE schedule = ?1 ORDER BY due_us DESC LIMIT 1 OFFSET ?2)");
  return thin_out.Bind(run.schedule).BindNumber(kRunsKept).Run();
}

absl::Status DrillStore::EndRun(const ScheduleRun& run) {
  Statement statement(database_, "UPDATE schedule_runs SET outcome = ?, message = ? WHERE schedule = ? AND due_us = ?");
  return statement.Bind(run.outcome)
      .Bind(run.message)
      .Bind(run.schedule)
      .BindNumber(absl::ToUnixMicros(run.due_at))
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
    run.schedule = statement.Text(0);
    run.due_at = absl::FromUnixMicros(statement.Number(1));
    run.began_at = absl::FromUnixMicros(statement.Number(2));
    run.outcome = statement.Text(3);
    run.message = statement.Text(4);
    runs.push_back(std::move(run));
  }
}

}  // namespace rb::controller
