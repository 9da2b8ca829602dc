#include <fcntl.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "common/clock.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/edit_distance.h"
#include "common/event_loop.h"
#include "common/ids.h"
#include "common/record_journal.h"
#include "common/status.h"
#include "common/test_util.h"
#include "common/text.h"

namespace rb {
namespace {

using ::testing::ElementsAre;
using testing::FailsWith;
using testing::IsOk;
using testing::TemporaryFolder;

TEST(Digest, MatchesTheStandardsTestVectors) {
  // FIPS 180-4 example "abc"; RFC 3720 B.4 for CRC-32C of 32 zero bytes.
  EXPECT_EQ(Sha256Of("abc").ToHex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8A9136AAu);
  Digest parsed;
  EXPECT_TRUE(Digest::FromHex(Sha256Of("abc").ToHex(), &parsed));
  EXPECT_EQ(parsed, Sha256Of("abc"));
  EXPECT_FALSE(Digest::FromHex("ba78", &parsed));
  EXPECT_FALSE(Digest::FromHex(std::string(64, 'g'), &parsed));
}

TEST(Glob, Table) {
  const struct {
    const char* pattern;
    const char* path;
    bool matches;
  } cases[] = {
      {"config-*.json", "config-test.json", true},
      {"config-*.json", "sub/config-test.json", false},
      {"data/**", "data/bot.db", true},
      {"data/**", "data/a/b/c", true},
      {"data/**", "data", false},
      {"data/**", "database", false},
      {"**/__pycache__/**", "__pycache__/x.pyc", true},
      {"**/__pycache__/**", "lib/a/__pycache__/x.pyc", true},
      {"**/__pycache__", "lib/__pycache__", true},
      {"*.db-[ws]*", "bot.db-wal", true},
      {"*.db-[!w]*", "bot.db-wal", false},
      {"a?c", "abc", true},
      {"a?c", "a/c", false},
      {"logs/", "logs", true},
      {"**", "anything/at/all", true},
      {"[", "[", true},
      {"", "a", false},
      {"*a*b*c", "xxaxxbxxc", true},
  };
  for (const auto& c : cases) EXPECT_EQ(GlobMatches(c.pattern, c.path), c.matches) << c.pattern << " ~ " << c.path;
}

TEST(Text, TruncatesAtACharacterAndEscapesWhatATerminalMustNotSee) {
  EXPECT_EQ(Truncate("short", 10), "short");
  EXPECT_EQ(Truncate("aaaaaaaaaaé", 11), "aaaaaaaa…");
  EXPECT_EQ(Printable("ok é \x1b[31m\xff"), "ok é \\x1b[31m\\xff");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatSeconds(absl::Seconds(185)), "3m 05s");
  EXPECT_EQ(FormatSeconds(absl::Hours(5) + absl::Minutes(3)), "5h 03m");
  EXPECT_EQ(FormatSeconds(absl::Hours(75)), "3 days");
}

TEST(NearestSpelling, FindsWhatWasMeantAndNothingElse) {
  const std::vector<std::string> keys = {"probes", "process", "components", "ignore"};
  EXPECT_EQ(NearestSpelling("probse", keys), "probes");
  EXPECT_EQ(NearestSpelling("component", keys), "components");
  EXPECT_EQ(NearestSpelling("zebra", keys), "");
}

TEST(Ids, NamesThatWouldEscapeAFolderAreNotValid) {
  for (const char* name : {"prod-1", "a", "rosey_bot.v2", "0x"}) EXPECT_TRUE(IsValidName(name)) << name;
  for (const char* name : {"", "-a", ".", "..", "a/b", "A", "a b", "é"}) EXPECT_FALSE(IsValidName(name)) << name;
  EXPECT_FALSE(IsValidName(std::string(64, 'a')));
  EXPECT_NE(NewOperationId(absl::UnixEpoch()), NewOperationId(absl::UnixEpoch()));
}

TEST(DurableFile, ReplacesWhollyAndLeavesNoTemporaryFileWhenItCannot) {
  TemporaryFolder folder;
  RB_ASSERT_OK(MakeFolders(folder / "a/b/c"));
  RB_ASSERT_OK(WriteFileDurably(folder / "a/b/c/file", "one"));
  RB_ASSERT_OK(WriteFileDurably(folder / "a/b/c/file", "two"));
  RB_ASSERT_OK_AND_ASSIGN(const std::string content, ReadFile(folder / "a/b/c/file"));
  EXPECT_EQ(content, "two");
  EXPECT_THAT(ReadFile(folder / "a/b/c/file", 2), FailsWith(absl::StatusCode::kResourceExhausted, "larger than 2"));
  EXPECT_THAT(ReadFile(folder / "nothing"), FailsWith(absl::StatusCode::kNotFound, "nothing"));
  RB_ASSERT_OK(MakeFolders(folder / "target-is-a-folder/x"));
  EXPECT_FALSE(WriteFileDurably(folder / "target-is-a-folder", "x").ok());
  size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) ++entries;
  EXPECT_EQ(entries, 2u);
}

TEST(FileLock, IsHeldOnce) {
  TemporaryFolder folder;
  {
    RB_ASSERT_OK_AND_ASSIGN(const FileLock first, FileLock::TryAcquire(folder / "lock"));
    EXPECT_THAT(FileLock::TryAcquire(folder / "lock"), FailsWith(absl::StatusCode::kUnavailable, "locked by another"));
  }
  EXPECT_THAT(FileLock::TryAcquire(folder / "lock"), IsOk());
}

TEST(RecordJournal, EveryTornTailIsCutOffAndNothingBeforeItIsLost) {
  TemporaryFolder folder;
  const std::string path = folder / "journal";
  std::vector<std::string> records;
  {
    RB_ASSERT_OK_AND_ASSIGN(auto journal, RecordJournal::Open(path, &records));
    RB_ASSERT_OK(journal->Append("first"));
    RB_ASSERT_OK(journal->Append(""));
    RB_ASSERT_OK(journal->Append("third"));
  }
  RB_ASSERT_OK_AND_ASSIGN(const std::string whole, ReadFile(path));
  for (size_t length = 0; length <= whole.size(); ++length) {
    RB_ASSERT_OK(WriteFileDurably(path, whole.substr(0, length)));
    RB_ASSERT_OK_AND_ASSIGN(auto journal, RecordJournal::Open(path, &records));
    RB_ASSERT_OK(journal->Append("again"));
    std::vector<std::string> after;
    RB_ASSERT_OK_AND_ASSIGN(journal, RecordJournal::Open(path, &after));
    records.push_back("again");
    EXPECT_EQ(after, records) << "cut to " << length;

    RB_ASSERT_OK(WriteFileDurably(path, whole.substr(0, length)));
    RB_ASSERT_OK_AND_ASSIGN(journal, RecordJournal::Open(path, &records, RecordJournal::Flush::kWithNextAppend));
    RB_ASSERT_OK(journal->Append("again"));
    RB_ASSERT_OK_AND_ASSIGN(journal, RecordJournal::Open(path, &after));
    records.push_back("again");
    EXPECT_EQ(after, records) << "cut to " << length << ", flushed with the next record";
  }
}

TEST(RecordJournal, DamageInTheMiddleIsReportedAndLeftAlone) {
  TemporaryFolder folder;
  const std::string path = folder / "journal";
  std::vector<std::string> records;
  {
    RB_ASSERT_OK_AND_ASSIGN(auto journal, RecordJournal::Open(path, &records));
    RB_ASSERT_OK(journal->Append("first"));
    RB_ASSERT_OK(journal->Append("second"));
  }
  RB_ASSERT_OK_AND_ASSIGN(std::string damaged, ReadFile(path));
  damaged[9] ^= 1;
  RB_ASSERT_OK(WriteFileDurably(path, damaged));
  EXPECT_THAT(RecordJournal::Open(path, &records), FailsWith(absl::StatusCode::kDataLoss, "damaged at byte 0"));
  RB_ASSERT_OK_AND_ASSIGN(const std::string after, ReadFile(path));
  EXPECT_EQ(after, damaged);
}

TEST(RecordJournal, RewriteReplacesAll) {
  TemporaryFolder folder;
  std::vector<std::string> records;
  RB_ASSERT_OK_AND_ASSIGN(auto journal, RecordJournal::Open(folder / "journal", &records));
  RB_ASSERT_OK(journal->Append("old"));
  RB_ASSERT_OK(journal->Rewrite({"new"}));
  RB_ASSERT_OK(journal->Append("newer"));
  RB_ASSERT_OK_AND_ASSIGN(journal, RecordJournal::Open(folder / "journal", &records));
  EXPECT_THAT(records, ElementsAre("new", "newer"));
}

TEST(EventLoop, RunsInOrderHonoursTimersAndPushesBack) {
  FakeClock clock;
  EventLoop loop(clock, 2);
  std::vector<int> ran;
  loop.PostAt(clock.Monotonic() + absl::Seconds(5), [&] { ran.push_back(5); });
  EXPECT_TRUE(loop.Post([&] { ran.push_back(1); }));
  EXPECT_TRUE(loop.Post([&] { ran.push_back(2); }));
  EXPECT_FALSE(loop.Post([&] { ran.push_back(3); }));
  EXPECT_EQ(loop.RunReady(), 2u);
  clock.Advance(absl::Seconds(5));
  EXPECT_EQ(loop.RunReady(), 1u);
  EXPECT_THAT(ran, ElementsAre(1, 2, 5));
}

TEST(EventLoop, StopsWithWorkWaiting) {
  EventLoop loop(SystemClock(), 10);
  Mutex mutex;
  CondVar changed;
  bool ran = false;
  loop.Start();
  ASSERT_TRUE(loop.Post([&] {
    MutexLock lock(mutex);
    ran = true;
    changed.NotifyAll();
  }));
  {
    MutexLock lock(mutex);
    while (!ran) changed.Wait(mutex);
  }
  loop.PostAt(SystemClock().Monotonic() + absl::Hours(1), [] {});
  loop.Stop();
  EXPECT_FALSE(loop.Post([] {}));
}

TEST(Status, ErrnoBecomesACodeAndSaysWhat) {
  EXPECT_THAT(ErrnoStatus(ENOSPC, "write x"), FailsWith(absl::StatusCode::kResourceExhausted, "write x: No space"));
  EXPECT_THAT(Annotate(absl::NotFoundError("b"), "a"), FailsWith(absl::StatusCode::kNotFound, "a: b"));
  EXPECT_THAT(Annotate(absl::OkStatus(), "a"), IsOk());
}

}  // namespace
}  // namespace rb
