#include "agent/adapters/records/host_records.h"

#include <filesystem>

#include "common/durable_file.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::rb::testing::TemporaryFolder;

TEST(HostRecords, AreOwedInOrderUntilForgotten) {
  const TemporaryFolder folder;
  for (const char* verb : {"rollback", "backup"}) {
    v1::HostRecord record;
    record.set_verb(verb);
    RB_ASSERT_OK(OweRecord(folder.path(), record));
  }
  std::vector<v1::HostRecord> owed = RecordsOwed(folder.path());
  ASSERT_EQ(owed.size(), 2u);
  EXPECT_NE(owed[0].id(), owed[1].id());
  // What cannot be read, and what somebody left there, is passed over.
  RB_ASSERT_OK(WriteFileDurably(folder.path() + "/owed/x.record", "garbage\xff\xff"));
  RB_ASSERT_OK(WriteFileDurably(folder.path() + "/owed/other", "?"));
  EXPECT_EQ(RecordsOwed(folder.path()).size(), 2u);
  EXPECT_FALSE(ForgetRecord(folder.path(), "../quarantine").ok());
  RB_ASSERT_OK(ForgetRecord(folder.path(), owed[0].id()));
  RB_ASSERT_OK(ForgetRecord(folder.path(), owed[0].id()));
  owed = RecordsOwed(folder.path());
  ASSERT_EQ(owed.size(), 1u);
}

TEST(HostRecords, AreBounded) {
  const TemporaryFolder folder;
  RB_ASSERT_OK(MakeFolders(folder.path() + "/owed"));
  for (size_t i = 0; i < kMostRecordsOwed + 10; ++i) {
    v1::HostRecord record;
    record.set_id("00-" + std::to_string(1000 + i));
    RB_ASSERT_OK(WriteFileDurably(folder.path() + "/owed/" + record.id() + ".record", record.SerializeAsString()));
  }
  RB_ASSERT_OK(OweRecord(folder.path(), v1::HostRecord()));
  const std::vector<v1::HostRecord> owed = RecordsOwed(folder.path());
  EXPECT_EQ(owed.size(), kMostRecordsOwed);
  EXPECT_EQ(owed.front().id(), "00-1011") << "the oldest are gone";
}

TEST(HostRecords, QuarantineAndGuardAreKept) {
  const TemporaryFolder folder;
  EXPECT_TRUE(LoadQuarantine(folder.path()).empty());
  v1::QuarantineList list;
  list.add_entries()->set_service("bot");
  list.mutable_entries(0)->set_commit(std::string(40, 'b'));
  list.mutable_entries(0)->set_number(3);
  RB_ASSERT_OK(SaveQuarantine(folder.path(), list));
  ASSERT_EQ(LoadQuarantine(folder.path()).size(), 1u);
  EXPECT_EQ(LoadQuarantine(folder.path())[0].number, 3u);
  EXPECT_FALSE(LoadGuard(folder.path(), "bot").has_value());
  v1::HostRecord guard;
  guard.set_service("bot");
  guard.set_from_release("bot/before");
  RB_ASSERT_OK(SaveGuard(folder.path(), guard));
  ASSERT_TRUE(LoadGuard(folder.path(), "bot").has_value());
  EXPECT_EQ(LoadGuard(folder.path(), "bot")->from_release(), "bot/before");
  RB_ASSERT_OK(RemoveGuard(folder.path(), "bot"));
  EXPECT_FALSE(LoadGuard(folder.path(), "bot").has_value());
}

}  // namespace
}  // namespace rb::agent
