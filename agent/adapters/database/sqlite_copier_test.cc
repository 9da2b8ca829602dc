#include "agent/adapters/database/sqlite_copier.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::rb::testing::FailsWith;
using ::rb::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

sqlite3* OpenDatabase(const std::string& path) {
  sqlite3* database = nullptr;
  EXPECT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  sqlite3_busy_timeout(database, 20000);
  return database;
}
std::string One(sqlite3* database, const std::string& sql) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(database, sql.c_str(), -1, &statement, nullptr) != SQLITE_OK) return sqlite3_errmsg(database);
  std::string value;
  const int code = sqlite3_step(statement);
  if (code == SQLITE_ROW) value = reinterpret_cast<const char*>(sqlite3_column_text(statement, 0));
  if (code != SQLITE_ROW && code != SQLITE_DONE) value = sqlite3_errmsg(database);
  sqlite3_finalize(statement);
  return value;
}
std::string OneOf(const std::string& path, const std::string& sql) {
  sqlite3* database = OpenDatabase(path);
  const std::string value = One(database, sql);
  sqlite3_close(database);
  return value;
}
// A database with a few hundred pages.
void MakeDatabase(const std::string& path, const std::string& journal_mode = "DELETE") {
  sqlite3* database = OpenDatabase(path);
  One(database, "PRAGMA journal_mode=" + journal_mode);
  One(database, "CREATE TABLE log(id INTEGER PRIMARY KEY, word TEXT, filler TEXT)");
  One(database, "CREATE INDEX by_word ON log(word)");
  One(database,
      "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) "
      "INSERT INTO log SELECT i, hex(randomblob(8)), hex(randomblob(200)) FROM n");
  sqlite3_close(database);
}
std::vector<std::string> FilesIn(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
  return names;
}
void Overwrite(const std::string& path, off_t at, const std::string& bytes) {
  const int fd = open(path.c_str(), O_WRONLY);
  ASSERT_EQ(pwrite(fd, bytes.data(), bytes.size(), at), static_cast<ssize_t>(bytes.size()));
  close(fd);
}

// A service that commits all the time, in a process of its own; counts what was acknowledged.
class Writer {
 public:
  explicit Writer(const std::string& path) {
    acknowledged_ = static_cast<std::atomic<int64_t>*>(
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    acknowledged_->store(0);
    pid_ = fork();
    if (pid_ != 0) return;
    sqlite3* database = OpenDatabase(path);
    One(database, "PRAGMA synchronous=OFF");
    for (int64_t i = 1;; ++i) {
      // Scattered over the whole table, so that a torn copy is a broken one.
      const std::string error = One(database, "BEGIN IMMEDIATE");
      One(database, "INSERT INTO log(word, filler) VALUES(hex(randomblob(8)), hex(randomblob(200)))");
      One(database, "UPDATE log SET word=hex(randomblob(8)) WHERE id % 37 = abs(random()) % 37");
      if (error.empty() && One(database, "COMMIT").empty()) acknowledged_->fetch_add(1);
    }
  }
  ~Writer() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    munmap(acknowledged_, 4096);
  }
  int64_t acknowledged() const { return acknowledged_->load(); }
  void AwaitMore(int64_t count) const {
    const int64_t wanted = acknowledged() + count;
    const absl::Duration deadline = SystemClock().Monotonic() + absl::Seconds(30);
    while (acknowledged() < wanted && SystemClock().Monotonic() < deadline) SystemClock().Sleep(absl::Milliseconds(1));
    ASSERT_GE(acknowledged(), wanted);
  }

 private:
  std::atomic<int64_t>* acknowledged_ = nullptr;
  pid_t pid_ = 0;
};

class CopyWhileWriting : public ::testing::TestWithParam<std::string> {};

// Copying the file in place of this loses: 38 of 40 were corrupt.
TEST_P(CopyWhileWriting, FortyOfFortyAreWholeAndHoldEveryAcknowledgedCommit) {
  TemporaryFolder folder;
  const std::string path = folder / "bot.db";
  MakeDatabase(path, GetParam());
  const Writer writer(path);
  SqliteCopier copier;
  for (int trial = 0; trial < 40; ++trial) {
    SCOPED_TRACE(trial);
    writer.AwaitMore(1);
    const std::string copy = folder / absl::StrCat("copy-", trial);
    const int64_t before = writer.acknowledged();
    RB_ASSERT_OK(copier.Copy(path, copy));
    EXPECT_NE(access((copy + "-wal").c_str(), F_OK), 0);
    EXPECT_NE(access((copy + "-shm").c_str(), F_OK), 0);
    EXPECT_NE(access((copy + "-journal").c_str(), F_OK), 0);
    EXPECT_EQ(OneOf(copy, "PRAGMA integrity_check"), "ok");
    EXPECT_GE(std::stoll(OneOf(copy, "SELECT count(*) FROM log")), 2000 + before);
    std::filesystem::remove(copy);
  }
  RB_EXPECT_OK(copier.Check(path));
}
INSTANTIATE_TEST_SUITE_P(Modes, CopyWhileWriting, ::testing::Values("DELETE", "WAL"),
                         [](const ::testing::TestParamInfo<std::string>& mode) { return mode.param; });

class SqliteCopierTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  const std::string path_ = folder_ / "bot.db";
  const std::string copy_ = folder_ / "copy.db";
  SqliteCopier copier_{absl::Seconds(5)};
};

TEST_F(SqliteCopierTest, KeepsTheJournalModeAndLeavesNothingBeside) {
  MakeDatabase(path_, "WAL");
  RB_ASSERT_OK(copier_.Copy(path_, copy_));
  EXPECT_THAT(FilesIn(folder_.path()), UnorderedElementsAre("bot.db", "copy.db"));
  RB_EXPECT_OK(copier_.Check(copy_));
  EXPECT_THAT(FilesIn(folder_.path()), UnorderedElementsAre("bot.db", "copy.db"));
  EXPECT_EQ(OneOf(copy_, "PRAGMA journal_mode"), "wal");
}

TEST_F(SqliteCopierTest, CountsTheRowsOfEachTable) {
  MakeDatabase(path_, "WAL");
  sqlite3* service = OpenDatabase(path_);
  One(service, "CREATE TABLE \"odd \"\" name\"(a)");
  One(service, "INSERT INTO \"odd \"\" name\" VALUES (1), (2)");
  One(service, "CREATE TABLE empty(a INTEGER PRIMARY KEY AUTOINCREMENT)");
  sqlite3_close(service);
  RB_ASSERT_OK(copier_.Copy(path_, copy_));
  RB_ASSERT_OK_AND_ASSIGN(const auto rows, copier_.CountRows(copy_));
  EXPECT_EQ(rows, (std::map<std::string, uint64_t>{{"empty", 0}, {"log", 2000}, {"odd \" name", 2}}));
  EXPECT_THAT(FilesIn(folder_.path()), UnorderedElementsAre("bot.db", "copy.db"));
}

TEST_F(SqliteCopierTest, TakesWhatIsStillInTheWal) {
  MakeDatabase(path_, "WAL");
  sqlite3* service = OpenDatabase(path_);
  One(service, "PRAGMA wal_autocheckpoint=0");
  One(service, "DELETE FROM log WHERE id > 7");
  RB_ASSERT_OK(copier_.Copy(path_, copy_));
  EXPECT_EQ(OneOf(copy_, "SELECT count(*) FROM log"), "7");
  sqlite3_close(service);
}

TEST_F(SqliteCopierTest, RollsBackWhatAKilledServiceLeftUnfinished) {
  MakeDatabase(path_);
  const pid_t service = fork();
  if (service == 0) {
    sqlite3* database = OpenDatabase(path_);
    One(database, "PRAGMA cache_size=1");  // spills into the file before the commit
    One(database, "BEGIN");
    One(database, "UPDATE log SET filler=hex(randomblob(250))");
    kill(getpid(), SIGKILL);
  }
  ASSERT_EQ(waitpid(service, nullptr, 0), service);
  ASSERT_EQ(access((path_ + "-journal").c_str(), F_OK), 0);
  RB_ASSERT_OK(copier_.Copy(path_, copy_));
  EXPECT_EQ(OneOf(copy_, "SELECT max(length(filler)) FROM log"), "400");
}

TEST_F(SqliteCopierTest, RefusesToOverwrite) {
  MakeDatabase(path_);
  std::ofstream(copy_) << "precious";
  EXPECT_THAT(copier_.Copy(path_, copy_), FailsWith(absl::StatusCode::kAlreadyExists, "copy.db"));
  EXPECT_EQ(std::filesystem::file_size(copy_), 8u);
}

TEST_F(SqliteCopierTest, GivesUpOnALockedDatabase) {
  MakeDatabase(path_);
  sqlite3* service = OpenDatabase(path_);
  One(service, "BEGIN EXCLUSIVE");
  EXPECT_THAT(SqliteCopier(absl::Milliseconds(50)).Copy(path_, copy_),
              FailsWith(absl::StatusCode::kUnavailable, "locked"));
  EXPECT_NE(access(copy_.c_str(), F_OK), 0);
  sqlite3_close(service);
}

struct Damage {
  std::string name;
  std::function<void(const std::string& path)> inflict;
  std::string finding;
  bool copy_finds_it = true;
};
void PrintTo(const Damage& damage, std::ostream* os) { *os << damage.name; }
class Damaged : public ::testing::TestWithParam<Damage> {};

TEST_P(Damaged, IsFound) {
  TemporaryFolder folder;
  const std::string path = folder / "bot.db";
  MakeDatabase(path);
  SqliteCopier copier;
  RB_ASSERT_OK(copier.Check(path));
  GetParam().inflict(path);
  EXPECT_THAT(copier.Check(path), FailsWith(absl::StatusCode::kDataLoss, GetParam().finding));
  const absl::Status copied = copier.Copy(path, folder / "copy");
  EXPECT_EQ(copied.ok(), !GetParam().copy_finds_it) << copied;
  EXPECT_EQ(access((folder / "copy").c_str(), F_OK) == 0, copied.ok());
}
INSTANTIATE_TEST_SUITE_P(
    Kinds, Damaged,
    ::testing::Values(
        Damage{"HeaderOverwritten", [](const std::string& p) { Overwrite(p, 0, std::string(100, 'x')); }, "error 26"},
        Damage{"CutToNothing", [](const std::string& p) { std::filesystem::resize_file(p, 0); }, "is empty"},
        Damage{"CutOff", [](const std::string& p) { std::filesystem::resize_file(p, 8192); }, "SQLite error 11"},
        Damage{"LastPageCutOff",
               [](const std::string& p) { std::filesystem::resize_file(p, std::filesystem::file_size(p) - 4096); }, ""},
        Damage{"PagesRandomised", [](const std::string& p) { Overwrite(p, 40000, std::string(20000, '\x5a')); }, ""},
        Damage{"GarbageAppended", [](const std::string& p) { std::ofstream(p, std::ios::app) << "garbage data\n"; },
               "13 foreign bytes behind its last page", false}),
    [](const ::testing::TestParamInfo<Damage>& damage) { return damage.param.name; });

TEST_F(SqliteCopierTest, SaysWhatIsNotThere) {
  EXPECT_THAT(copier_.Check(path_), FailsWith(absl::StatusCode::kNotFound, "bot.db"));
  EXPECT_THAT(copier_.Copy(path_, copy_), FailsWith(absl::StatusCode::kNotFound, "bot.db"));
  EXPECT_THAT(FilesIn(folder_.path()), ElementsAre());
}

TEST_F(SqliteCopierTest, RootLeavesNothingOfItsOwnBesideAnothersDatabase) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  const std::string data = folder_ / "data";
  ASSERT_EQ(mkdir(data.c_str(), 0700), 0);
  MakeDatabase(data + "/bot.db", "WAL");
  // A writer that was killed leaves its -wal and -shm; without the -shm, whoever opens it first makes one.
  const pid_t service = fork();
  if (service == 0) {
    sqlite3* database = OpenDatabase(data + "/bot.db");
    One(database, "DELETE FROM log WHERE id > 7");
    kill(getpid(), SIGKILL);
  }
  ASSERT_EQ(waitpid(service, nullptr, 0), service);
  std::filesystem::remove(data + "/bot.db-shm");
  for (const std::string& name : FilesIn(data)) ASSERT_EQ(chown((data + "/" + name).c_str(), 54321, 54321), 0);
  ASSERT_EQ(chown(data.c_str(), 54321, 54321), 0);
  RB_ASSERT_OK(copier_.Copy(data + "/bot.db", copy_));
  EXPECT_EQ(OneOf(copy_, "SELECT count(*) FROM log"), "7");
  RB_EXPECT_OK(copier_.Check(data + "/bot.db"));
  for (const std::string& name : FilesIn(data)) {
    struct stat status;
    ASSERT_EQ(stat((data + "/" + name).c_str(), &status), 0);
    EXPECT_EQ(status.st_uid, 54321u) << name;
  }
}

TEST_F(SqliteCopierTest, RootGoesOnlyWhereTheOwnerCouldGo) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  const std::string data = folder_ / "data";
  ASSERT_EQ(mkdir(data.c_str(), 0700), 0);
  MakeDatabase(data + "/bot.db", "WAL");
  ASSERT_EQ(chown((data + "/bot.db").c_str(), 54321, 54321), 0);
  // Root's own private folder, such as staging: the owner could not go there, but cannot do any harm either.
  RB_EXPECT_OK(copier_.Check(data + "/bot.db"));
  RB_ASSERT_OK(copier_.Copy(data + "/bot.db", copy_));
  unlink(copy_.c_str());
  // Somebody else's.
  ASSERT_EQ(chown(data.c_str(), 54322, 54322), 0);
  EXPECT_THAT(copier_.Check(data + "/bot.db"), FailsWith(absl::StatusCode::kPermissionDenied, "unable to open"));
  EXPECT_THAT(copier_.Copy(data + "/bot.db", copy_), FailsWith(absl::StatusCode::kPermissionDenied, "unable to open"));
  // Between them.
  ASSERT_EQ(chmod(data.c_str(), 0777), 0);
  RB_EXPECT_OK(copier_.Check(data + "/bot.db"));
}

TEST_F(SqliteCopierTest, DoesNotFollowAPlantedLink) {
  MakeDatabase(folder_ / "secret.db");
  const std::string data = folder_ / "data";
  ASSERT_EQ(mkdir(data.c_str(), 0777), 0);
  ASSERT_EQ(chmod(data.c_str(), 0777), 0);
  ASSERT_EQ(symlink((folder_ / "secret.db").c_str(), (data + "/bot.db").c_str()), 0);
  EXPECT_THAT(copier_.Copy(data + "/bot.db", copy_), FailsWith(absl::StatusCode::kPermissionDenied, "is a link"));
  EXPECT_THAT(copier_.Check(data + "/bot.db"), FailsWith(absl::StatusCode::kPermissionDenied, "is a link"));
  ASSERT_EQ(symlink(folder_.path().c_str(), (data + "/sub").c_str()), 0);
  EXPECT_THAT(copier_.Check(data + "/sub/secret.db"), FailsWith(absl::StatusCode::kPermissionDenied, "is a link"));
  // One that its administrator made is fine.
  ASSERT_EQ(symlink("secret.db", (folder_ / "link.db").c_str()), 0);
  RB_EXPECT_OK(copier_.Check(folder_ / "link.db"));
}

}  // namespace
}  // namespace rb::agent
