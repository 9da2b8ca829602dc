#include "agent/adapters/database/sqlite_copier.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status.h"
#include "common/text.h"
#include "common/unique_fd.h"

namespace rb::agent {
namespace {

constexpr int kMostLinks = 20;
constexpr int kFindings = 5;
constexpr absl::Duration kLookAgain = absl::Milliseconds(10);

struct CloseDatabase {
  void operator()(sqlite3* database) const { sqlite3_close(database); }
};
using Database = std::unique_ptr<sqlite3, CloseDatabase>;

struct FinalizeStatement {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Statement = std::unique_ptr<sqlite3_stmt, FinalizeStatement>;

absl::Status SqliteStatus(int code, absl::string_view message, const std::string& path) {
  const std::string text = absl::StrCat(path, ": ", Printable(Truncate(message, 300)), " (SQLite error ", code, ")");
  switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(text);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(absl::StrCat(text, ": somebody holds it locked"));
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_AUTH:
      return absl::PermissionDeniedError(text);
    case SQLITE_FULL:
    case SQLITE_NOMEM:
      return absl::ResourceExhaustedError(text);
    default:
      return absl::InternalError(text);
  }
}
absl::Status StatusOf(sqlite3* database, int code, const std::string& path) {
  return SqliteStatus(code, database != nullptr ? sqlite3_errmsg(database) : sqlite3_errstr(code), path);
}

bool IsTrusted(const struct stat& status) { return status.st_uid == 0 || status.st_uid == geteuid(); }

struct Resolved {
  std::string path;
  // It lies below a folder of ours that nobody else can enter, such as staging: no links can be planted there, and the
  // file's owner could not reach it.
  bool out_of_reach = false;
};

// The path without links. A link is followed when only root (or the agent's own user) can have made it, and nobody else
// can put another in its place.
absl::StatusOr<Resolved> ResolveTrusted(const std::string& path) {
  if (path.empty() || path[0] != '/') return absl::InvalidArgumentError(absl::StrCat(path, ": not an absolute path"));
  std::vector<std::string> todo = absl::StrSplit(path, '/', absl::SkipEmpty());
  std::reverse(todo.begin(), todo.end());
  std::string resolved;
  bool out_of_reach = false;
  int links = 0;
  while (!todo.empty()) {
    const std::string element = todo.back();
    todo.pop_back();
    if (element == ".") continue;
    if (element == "..") {
      resolved.resize(resolved.rfind('/') == std::string::npos ? 0 : resolved.rfind('/'));
      out_of_reach = false;
      continue;
    }
    const std::string next = absl::StrCat(resolved, "/", element);
    struct stat status;
    if (lstat(next.c_str(), &status) != 0) return ErrnoStatus(errno, next);
    if (!S_ISLNK(status.st_mode)) {
      resolved = next;
      if (S_ISDIR(status.st_mode) && status.st_uid == geteuid() && (status.st_mode & 077) == 0) out_of_reach = true;
      continue;
    }
    struct stat folder;
    if (stat(resolved.empty() ? "/" : resolved.c_str(), &folder) != 0) return ErrnoStatus(errno, resolved);
    if (++links > kMostLinks || !IsTrusted(status) || !IsTrusted(folder) || (folder.st_mode & 022) != 0) {
      return absl::PermissionDeniedError(absl::StrCat(
          next, " is a link in a folder that others than root can change: not followed. Name the real path"));
    }
    std::string target(4096, '\0');
    const ssize_t size = readlink(next.c_str(), target.data(), target.size());
    if (size < 0) return ErrnoStatus(errno, next);
    target.resize(static_cast<size_t>(size));
    std::vector<std::string> parts = absl::StrSplit(target, '/', absl::SkipEmpty());
    todo.insert(todo.end(), parts.rbegin(), parts.rend());
    if (target[0] == '/') resolved.clear();
    out_of_reach = false;
  }
  return Resolved{resolved, out_of_reach};
}

// Runs `work` in a thread that touches files as this user; the thread ends with it, so nothing has to be put back. The
// system calls (unlike the C library's functions) change the calling thread alone.
absl::Status AsOwner(const Resolved& file, const struct stat& owner, const std::function<absl::Status()>& work) {
  const uid_t uid = owner.st_uid;
  const gid_t gid = owner.st_gid;
  if (geteuid() != 0 || uid == 0 || file.out_of_reach) return work();
  absl::Status status;
  std::thread thread([&] {
    syscall(SYS_setgroups, 0, nullptr);
    setfsgid(gid);
    setfsuid(uid);
    // They report no errors: asking again tells.
    if (static_cast<uid_t>(setfsuid(static_cast<uid_t>(-1))) != uid ||
        static_cast<gid_t>(setfsgid(static_cast<gid_t>(-1))) != gid) {
      status = absl::PermissionDeniedError(absl::StrCat("cannot touch files as user ", uid));
      return;
    }
    status = work();
  });
  thread.join();
  return status;
}

absl::StatusOr<Database> Open(const std::string& path, int flags, absl::Duration patience) {
  sqlite3* raw = nullptr;
  const int code = sqlite3_open_v2(path.c_str(), &raw, flags | SQLITE_OPEN_FULLMUTEX, nullptr);
  Database database(raw);
  if (code != SQLITE_OK) return StatusOf(raw, code, path);
  sqlite3_extended_result_codes(raw, 1);
  sqlite3_busy_timeout(raw, static_cast<int>(absl::ToInt64Milliseconds(patience)));
  // The file may be hostile: its schema must not run anything but harmless functions.
  sqlite3_db_config(raw, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
  sqlite3_db_config(raw, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, nullptr);
  return database;
}

// Runs one statement; `row` is called for each row with its first column, and ends it by returning false.
int Query(sqlite3* database, const char* sql, const std::function<bool(absl::string_view)>& row) {
  sqlite3_stmt* raw = nullptr;
  int code = sqlite3_prepare_v2(database, sql, -1, &raw, nullptr);
  const Statement statement(raw);
  if (code != SQLITE_OK) return code;
  while ((code = sqlite3_step(raw)) == SQLITE_ROW) {
    const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(raw, 0));
    if (row && !row(text == nullptr ? "" : text)) return SQLITE_OK;
  }
  return code == SQLITE_DONE ? SQLITE_OK : code;
}

uint32_t BigEndian(const uint8_t* bytes, int size) {
  uint32_t value = 0;
  for (int i = 0; i < size; ++i) value = value << 8 | bytes[i];
  return value;
}

// The file's size against what its header says. Within a read transaction, and through SQLite's own handle: closing
// another one would drop the locks that SQLite holds for us.
absl::Status CheckSize(sqlite3* database, const std::string& path) {
  sqlite3_file* file = nullptr;
  sqlite3_file_control(database, "main", SQLITE_FCNTL_FILE_POINTER, &file);
  uint8_t header[100];
  sqlite3_int64 size = 0;
  if (file == nullptr || file->pMethods == nullptr || file->pMethods->xFileSize(file, &size) != SQLITE_OK) {
    return absl::InternalError(absl::StrCat(path, ": its size cannot be read"));
  }
  if (size == 0) {
    return absl::DataLossError(absl::StrCat(path, " is empty: SQLite takes that for a database without tables"));
  }
  if (file->pMethods->xRead(file, header, sizeof header, 0) != SQLITE_OK) {
    return absl::DataLossError(absl::StrCat(path, ": its header cannot be read"));
  }
  const uint32_t written = BigEndian(header + 16, 2);
  const uint64_t page_bytes = written == 1 ? 65536 : written;
  const uint64_t pages = BigEndian(header + 28, 4);
  // Very old versions do not keep the page count; it is good when both of these agree.
  const bool count_is_valid = BigEndian(header + 24, 4) == BigEndian(header + 92, 4) && pages > 0;
  const bool wal = header[18] == 2;
  if (!count_is_valid || page_bytes == 0) return absl::OkStatus();
  const uint64_t expected = pages * page_bytes;
  const auto actual = static_cast<uint64_t>(size);
  if (wal) {
    // What is missing may be in the -wal still, and a checkpoint of somebody else may be under way.
    struct stat status;
    if (stat((path + "-wal").c_str(), &status) == 0 && status.st_size > 0) return absl::OkStatus();
  }
  if (actual < expected) {
    return absl::DataLossError(absl::StrCat(path, " is cut off: it has ", actual, " bytes, its header says ", pages,
                                            " pages of ", page_bytes, " bytes, ", expected, " in all"));
  }
  // Room that was set aside is zero; anything else was put there by somebody who is not SQLite.
  std::vector<uint8_t> tail(65536);
  for (uint64_t at = expected; at < actual && !wal; at += tail.size()) {
    const auto length = static_cast<int>(std::min<uint64_t>(tail.size(), actual - at));
    const int code = file->pMethods->xRead(file, tail.data(), length, static_cast<sqlite3_int64>(at));
    if (code != SQLITE_OK || std::any_of(tail.begin(), tail.begin() + length, [](uint8_t b) { return b != 0; })) {
      return absl::DataLossError(absl::StrCat(path, " has ", actual - expected, " foreign bytes behind its last page"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOpen(sqlite3* database, const std::string& path) {
  int code = Query(database, "BEGIN", nullptr);
  // The first read takes the lock, and meets a header that is none.
  if (code == SQLITE_OK) code = Query(database, "SELECT count(*) FROM sqlite_master", nullptr);
  if (code != SQLITE_OK) return StatusOf(database, code, path);
  RB_RETURN_IF_ERROR(CheckSize(database, path));
  std::string findings;
  const auto collect = [&](absl::string_view row) {
    if (row != "ok") absl::StrAppend(&findings, findings.empty() ? "" : "; ", Printable(Truncate(row, 200)));
    return true;
  };
  code = Query(database, absl::StrCat("PRAGMA integrity_check(", kFindings, ")").c_str(), collect);
  if ((code & 0xff) == SQLITE_ERROR) {
    // Functions or collations of the service's own that we do not have: indexes over them cannot be checked.
    LogInfo("database", path, ": checked without its indexes: ", Printable(sqlite3_errmsg(database)));
    findings.clear();
    code = Query(database, absl::StrCat("PRAGMA quick_check(", kFindings, ")").c_str(), collect);
  }
  if (code != SQLITE_OK) return StatusOf(database, code, path);
  if (!findings.empty()) {
    return absl::DataLossError(absl::StrCat(path, " is damaged: ", Truncate(findings, 800)));
  }
  Query(database, "COMMIT", nullptr);
  return absl::OkStatus();
}

absl::Status CheckNotEmpty(const std::string& path, struct stat* status) {
  if (lstat(path.c_str(), status) != 0) return ErrnoStatus(errno, path);
  if (!S_ISREG(status->st_mode)) return absl::FailedPreconditionError(absl::StrCat(path, " is not a file"));
  if (status->st_size == 0) {
    // In WAL mode everything may still be in the -wal; otherwise nothing is there.
    struct stat wal;
    if (lstat((path + "-wal").c_str(), &wal) != 0 || wal.st_size == 0) {
      return absl::DataLossError(absl::StrCat(path, " is empty: SQLite takes that for a database without tables"));
    }
  }
  return absl::OkStatus();
}

// A copy, that nobody else has: no locks, no files beside it.
absl::StatusOr<Database> OpenCopy(const std::string& path) {
  std::string uri = "file:";
  for (const char c : path) {
    if (c == '%' || c == '?' || c == '#') {
      absl::StrAppend(&uri, "%", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    } else {
      uri += c;
    }
  }
  return Open(uri + "?immutable=1", SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, absl::ZeroDuration());
}

absl::Status CheckCopy(const std::string& path) {
  RB_ASSIGN_OR_RETURN(const Database database, OpenCopy(path));
  return CheckOpen(database.get(), path);
}

absl::Status BackUp(sqlite3* from, sqlite3* to, const std::string& path, absl::Duration deadline) {
  sqlite3_backup* backup = sqlite3_backup_init(to, "main", from, "main");
  if (backup == nullptr) return StatusOf(to, sqlite3_extended_errcode(to), path);
  // All pages in one step: with more, every commit of a writer in between starts the whole copy anew, maybe for ever.
  int code = sqlite3_backup_step(backup, -1);
  while ((code == SQLITE_BUSY || code == SQLITE_LOCKED) && SystemClock().Monotonic() < deadline) {
    SystemClock().Sleep(kLookAgain);
    code = sqlite3_backup_step(backup, -1);
  }
  const int finished = sqlite3_backup_finish(backup);
  if (code == SQLITE_DONE) code = finished;
  if (code != SQLITE_OK) return SqliteStatus(code, sqlite3_errstr(code), path);
  return absl::OkStatus();
}

}  // namespace

absl::Status SqliteCopier::Copy(const std::string& source, const std::string& destination) {
  RB_ASSIGN_OR_RETURN(const Resolved resolved, ResolveTrusted(source));
  const std::string& path = resolved.path;
  struct stat status;
  RB_RETURN_IF_ERROR(CheckNotEmpty(path, &status));
  {
    const UniqueFd created(open(destination.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!created.valid()) return ErrnoStatus(errno, destination);
  }
  const auto copy = [&]() -> absl::Status {
    RB_ASSIGN_OR_RETURN(const Database to, Open(destination, SQLITE_OPEN_READWRITE, patience_));
    // No journal beside it: a copy that fails is thrown away as a whole.
    for (const char* pragma : {"PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF"}) {
      const int code = Query(to.get(), pragma, nullptr);
      if (code != SQLITE_OK) return StatusOf(to.get(), code, destination);
    }
    const absl::Duration deadline = SystemClock().Monotonic() + patience_;
    return AsOwner(resolved, status, [&]() -> absl::Status {
      // For writing: an unfinished transaction of a service that was killed has to be rolled back first.
      RB_ASSIGN_OR_RETURN(const Database from,
                          Open(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW, absl::ZeroDuration()));
      return BackUp(from.get(), to.get(), path, deadline);
    });
  };
  absl::Status result = copy();
  if (result.ok()) {
    result = CheckCopy(destination);
    if (!result.ok()) result = Annotate(result, absl::StrCat("the copy of ", path));
  }
  if (!result.ok()) unlink(destination.c_str());
  for (const char* sidecar : {"-journal", "-wal", "-shm"}) unlink((destination + sidecar).c_str());
  return result;
}

absl::StatusOr<std::map<std::string, uint64_t>> SqliteCopier::CountRows(const std::string& path) {
  static constexpr absl::Duration kPatience = absl::Seconds(5);
  static constexpr int kInstructionsBetweenLooks = 100000;
  RB_ASSIGN_OR_RETURN(const Database database, OpenCopy(path));
  absl::Duration deadline = SystemClock().Monotonic() + kPatience;
  sqlite3_progress_handler(
      database.get(), kInstructionsBetweenLooks,
      [](void* until) { return SystemClock().Monotonic() > *static_cast<const absl::Duration*>(until) ? 1 : 0; },
      &deadline);
  std::vector<std::string> tables;
  const int code = Query(
      database.get(), "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
      [&](absl::string_view name) {
        tables.emplace_back(name);
        return true;
      });
  if (code != SQLITE_OK) return StatusOf(database.get(), code, path);
  std::map<std::string, uint64_t> rows;
  for (const std::string& table : tables) {
    uint64_t count = 0;
    const std::string sql = absl::StrCat("SELECT count(*) FROM \"", absl::StrReplaceAll(table, {{"\"", "\"\""}}), "\"");
    // A virtual table may need code that we do not have.
    const int counted =
        Query(database.get(), sql.c_str(), [&](absl::string_view text) { return absl::SimpleAtoi(text, &count); });
    if (counted == SQLITE_OK) rows[table] = count;
  }
  return rows;
}

absl::Status SqliteCopier::Check(const std::string& path_as_given) {
  RB_ASSIGN_OR_RETURN(const Resolved resolved, ResolveTrusted(path_as_given));
  const std::string& path = resolved.path;
  struct stat status;
  RB_RETURN_IF_ERROR(CheckNotEmpty(path, &status));
  return AsOwner(resolved, status, [&]() -> absl::Status {
    // For writing, so that SQLite takes away what it puts beside a database in WAL mode. Nothing is written.
    RB_ASSIGN_OR_RETURN(const Database database, Open(path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOFOLLOW, patience_));
    const int code = Query(database.get(), "PRAGMA query_only=1", nullptr);
    if (code != SQLITE_OK) return StatusOf(database.get(), code, path);
    return CheckOpen(database.get(), path);
  });
}

}  // namespace rb::agent
