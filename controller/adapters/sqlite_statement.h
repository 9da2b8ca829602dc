// One SQL statement over the controller's store, and what SQLite says as a status. For the stores alone.
#ifndef RB_CONTROLLER_ADAPTERS_SQLITE_STATEMENT_H_
#define RB_CONTROLLER_ADAPTERS_SQLITE_STATEMENT_H_

#include <sqlite3.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace rb::controller {

// Of the connection's last call. A full disk, a busy or damaged file and a broken constraint have codes of their own.
inline absl::Status SqliteStatus(sqlite3* database, absl::string_view what) {
  const int code = sqlite3_errcode(database);
  const std::string text = absl::StrCat("the controller's store: ", what, ": ", sqlite3_errmsg(database));
  if (code == SQLITE_FULL) return absl::ResourceExhaustedError(absl::StrCat(text, ". Make room on its disk"));
  if (code == SQLITE_BUSY) return absl::UnavailableError(text);
  if (code == SQLITE_CONSTRAINT) return absl::AlreadyExistsError(text);
  if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB) return absl::DataLossError(text);
  return absl::InternalError(text);
}

// Values are bound from the left, in the order of the calls. A statement that SQLite does not take fails at Step. Not
// thread-safe, and not to outlive its connection.
class Statement {
 public:
  Statement(sqlite3* database, const char* sql) : database_(database) {
    ok_ = sqlite3_prepare_v2(database, sql, -1, &statement_, nullptr) == SQLITE_OK;
  }
  ~Statement() { sqlite3_finalize(statement_); }
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;
  Statement& Bind(absl::string_view text) {
    sqlite3_bind_text(statement_, ++bound_, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& BindBlob(absl::string_view blob) {
    sqlite3_bind_blob(statement_, ++bound_, blob.data(), static_cast<int>(blob.size()), SQLITE_TRANSIENT);
    return *this;
  }
  Statement& BindNumber(int64_t number) {
    sqlite3_bind_int64(statement_, ++bound_, number);
    return *this;
  }
  // True when there is a row.
  absl::StatusOr<bool> Step() {
    const int code = ok_ ? sqlite3_step(statement_) : SQLITE_ERROR;
    if (code == SQLITE_ROW) return true;
    if (code == SQLITE_DONE) return false;
    return SqliteStatus(database_, "statement");
  }
  absl::Status Run() { return Step().status(); }
  // For the next row, with other values.
  void Reset() {
    sqlite3_reset(statement_);
    bound_ = 0;
  }
  std::string Text(int column) const { return std::string(View(column)); }
  // Until the next Step.
  absl::string_view View(int column) const {
    const void* data = sqlite3_column_blob(statement_, column);
    return absl::string_view(static_cast<const char*>(data),
                             static_cast<size_t>(sqlite3_column_bytes(statement_, column)));
  }
  int64_t Number(int column) const { return sqlite3_column_int64(statement_, column); }

 private:
  sqlite3* const database_;
  sqlite3_stmt* statement_ = nullptr;
  bool ok_ = false;
  int bound_ = 0;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_SQLITE_STATEMENT_H_
