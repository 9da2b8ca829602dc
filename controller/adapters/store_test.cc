#include "controller/adapters/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/test_util.h"

namespace rb::controller {
namespace {

using ::rb::testing::FailsWith;
using ::rb::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class StoreTest : public ::testing::Test {
 protected:
  StoreTest() { Reopen(); }
  void Reopen() {
    store_.reset();
    absl::StatusOr<std::unique_ptr<Store>> opened = Store::Open(path_);
    RB_EXPECT_OK(opened.status());
    store_ = *std::move(opened);
  }
  static StoredOperation Operation(const std::string& id, bool ended = false) {
    StoredOperation operation;
    operation.id = id;
    operation.environment = "prod";
    operation.service = "bot";
    operation.ended = ended;
    operation.snapshot = absl::StrCat("snapshot of ", id);
    return operation;
  }
  std::vector<std::string> ListedIds(const std::string& before, size_t limit) {
    std::vector<std::string> ids;
    const auto listed = store_->List("prod", "bot", before, limit);
    RB_EXPECT_OK(listed.status());
    for (const ListedOperation& operation : *listed) ids.push_back(operation.id);
    return ids;
  }

  TemporaryFolder folder_;
  const std::string path_ = folder_.path() + "/controller.db";
  std::unique_ptr<Store> store_;
};

TEST_F(StoreTest, AListOfAnEarlierVersionIsTakenOver) {
  StoredOperation brief = Operation("op-2");
  brief.brief = "in brief";
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-1"), 1, "accepted", ""));
  RB_ASSERT_OK(store_->AppendEvent(brief, 1, "accepted", ""));
  RB_ASSERT_OK(store_->PutSnapshot(Operation("op-1", true), {}, 0));
  store_.reset();
  sqlite3* raw = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &raw), SQLITE_OK);
  // As version 5 had it: op-1 was written before there were briefs.
  EXPECT_EQ(
      sqlite3_exec(raw,
                   "CREATE TABLE briefs (operation_id TEXT PRIMARY KEY, brief BLOB NOT NULL) STRICT, WITHOUT "
                   "ROWID; INSERT INTO briefs SELECT operation_id, brief FROM listing WHERE operation_id = 'op-2';"
                   "DROP TABLE listing; PRAGMA user_version = 5",
                   nullptr, nullptr, nullptr),
      SQLITE_OK)
      << sqlite3_errmsg(raw);
  sqlite3_close(raw);
  Reopen();
  RB_ASSERT_OK_AND_ASSIGN(const auto listed, store_->List("prod", "bot", "", 10));
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].brief, "in brief");
  EXPECT_FALSE(listed[0].ended);
  EXPECT_EQ(listed[1].brief, "snapshot of op-1");
  EXPECT_TRUE(listed[1].ended);
  EXPECT_EQ(ListedIds("op-2", 10), std::vector<std::string>{"op-1"});
}

TEST_F(StoreTest, EventsComeBackInOrderAfterReopening) {
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-1"), 1, "accepted", ""));
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-1"), 2, std::string("with \0 in it", 12), ""));
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-1", true), 3, "ended", ""));
  Reopen();
  const auto events = store_->Events("op-1");
  RB_ASSERT_OK(events.status());
  EXPECT_THAT(*events, ElementsAre("accepted", std::string("with \0 in it", 12), "ended"));
  const auto found = store_->Find("op-1");
  RB_ASSERT_OK(found.status());
  EXPECT_TRUE(found->ended);
  EXPECT_EQ(found->snapshot, "snapshot of op-1");
}

TEST_F(StoreTest, TheAuditLogIsOnlyAppendedToAndHangsTogether) {
  AuditRecord record;
  record.at = absl::FromUnixSeconds(1'800'000'000) + absl::Nanoseconds(1'234'567);
  record.who = "anna";
  record.request = "GetStatus";
  record.reason = std::string(2 * kLongestAuditField, 'x');
  for (const bool durable : {true, false, true}) RB_ASSERT_OK(store_->AppendAudit(record, durable));
  Reopen();
  RB_ASSERT_OK(store_->AppendAudit(record, true));
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<AuditRecord> all, store_->AuditAfter(0, 100));
  ASSERT_EQ(all.size(), 4u);
  AuditCheck check(std::nullopt);
  for (const AuditRecord& one : all) EXPECT_TRUE(check.Take(one)) << check.problem();
  EXPECT_TRUE(check.Finish());
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<AuditRecord> newest, store_->AuditBefore(0, 2));
  ASSERT_EQ(newest.size(), 2u);
  EXPECT_EQ(newest[0].number, 4u);
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<AuditRecord> older, store_->AuditBefore(2, 10));
  ASSERT_EQ(older.size(), 1u);
  EXPECT_EQ(older[0].hash, all[0].hash);
  sqlite3* raw = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &raw), SQLITE_OK);
  EXPECT_NE(sqlite3_exec(raw, "UPDATE audit SET who = 'x'", nullptr, nullptr, nullptr), SQLITE_OK);
  EXPECT_NE(sqlite3_exec(raw, "DELETE FROM audit", nullptr, nullptr, nullptr), SQLITE_OK);
  // REPLACE removes without asking the trigger on removal; and records stand at the end alone.
  for (const char* number : {"2", "4", "6", "0", "-1", "NULL"}) {
    const std::string put = absl::StrCat("INSERT OR REPLACE INTO audit SELECT ", number,
                                         ", at_us, 'x', role, source, request, subject, reason, allowed, refusal, hash "
                                         "FROM audit WHERE number = 1");
    EXPECT_NE(sqlite3_exec(raw, put.c_str(), nullptr, nullptr, nullptr), SQLITE_OK) << number;
  }
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<AuditRecord> after, store_->AuditAfter(0, 100));
  ASSERT_EQ(after.size(), 4u);
  for (size_t i = 0; i < after.size(); ++i) EXPECT_EQ(after[i].hash, all[i].hash);
  // Whoever takes the triggers away can put one in with a number that was never given: it is read, and found.
  for (const char* statement : {"DROP TRIGGER audit_goes_on_at_its_end",
                                "INSERT INTO audit SELECT -1, at_us, who, role, source, request, subject, reason, "
                                "allowed, refusal, hash FROM audit WHERE number = 1"}) {
    ASSERT_EQ(sqlite3_exec(raw, statement, nullptr, nullptr, nullptr), SQLITE_OK) << statement;
  }
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<AuditRecord> with_one_more, store_->AuditAfter(0, 100));
  AuditCheck again(std::nullopt);
  EXPECT_FALSE(again.Take(with_one_more[0]));
  EXPECT_NE(again.problem().find("was never given"), std::string::npos) << again.problem();
  sqlite3_close(raw);
}

TEST_F(StoreTest, WhatOnlyReadsMakesAndChangesNothing) {
  const std::string none = folder_.path() + "/none.db";
  for (const Store::Mode mode : {Store::Mode::kExisting, Store::Mode::kReadOnly}) {
    EXPECT_THAT(Store::Open(none, mode).status(), FailsWith(absl::StatusCode::kNotFound, "no controller's store"));
  }
  EXPECT_FALSE(ReadFile(none).ok());
  RB_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Store> reader, Store::Open(path_, Store::Mode::kReadOnly));
  RB_EXPECT_OK(reader->AuditAfter(0, 10).status());
  EXPECT_FALSE(reader->AppendAudit(AuditRecord(), true).ok());
}

TEST_F(StoreTest, ATokenIsCheckedWithoutBeingUsedUp) {
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  RB_ASSERT_OK(store_->AddToken("prod-1", "digest", now + absl::Hours(1)));
  for (int i = 0; i < 2; ++i) RB_EXPECT_OK(store_->CheckToken("prod-1", "digest", now));
  EXPECT_FALSE(store_->CheckToken("prod-2", "digest", now).ok());
  EXPECT_FALSE(store_->CheckToken("prod-1", "digest", now + absl::Hours(2)).ok());
  RB_ASSERT_OK(store_->UseToken("prod-1", "digest", now));
  EXPECT_FALSE(store_->CheckToken("prod-1", "digest", now).ok());
}

TEST_F(StoreTest, WhatAnEndQuarantinesIsKeptWithIt) {
  QuarantineChange change;
  change.service = "bot";
  change.commit = std::string(40, 'b');
  change.version = "v1.2.0";
  change.at = absl::FromUnixMicros(1'800'000'000'123'456);
  change.by = "op-1";
  change.reason = "it broke";
  change.number = 1;
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-1"), 1, "accepted", ""));
  RB_ASSERT_OK(store_->PutSnapshot(Operation("op-1", true), {}, 0, {change}));
  QuarantineChange undone = change;
  undone.kind = QuarantineChange::Kind::kUndone;
  undone.undone_operation_id = "op-1";
  // The same number again: neither the event nor the change is there.
  StoredEvent second{Operation("op-2", true), 1, "reported", ""};
  second.changes = {undone};
  EXPECT_FALSE(store_->AppendEvents({second}).ok());
  EXPECT_FALSE(store_->Find("op-2").ok());
  undone.number = 2;
  RB_ASSERT_OK(store_->AppendQuarantine(undone));
  EXPECT_FALSE(store_->AppendQuarantine(undone).ok());
  Reopen();
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<QuarantineChange> changes, store_->QuarantineChanges());
  ASSERT_EQ(changes.size(), 2u);
  EXPECT_EQ(changes[0].commit, change.commit);
  EXPECT_EQ(changes[0].version, change.version);
  EXPECT_EQ(changes[0].at, change.at);
  EXPECT_EQ(changes[0].by, "op-1");
  EXPECT_EQ(changes[0].reason, "it broke");
  EXPECT_EQ(changes[1].kind, QuarantineChange::Kind::kUndone);
  EXPECT_EQ(changes[1].undone_operation_id, "op-1");
}

TEST_F(StoreTest, AnEventIsNeverWrittenOverAnother) {
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-1"), 1, "accepted", ""));
  StoredOperation changed = Operation("op-1");
  changed.snapshot = "another";
  EXPECT_FALSE(store_->AppendEvent(changed, 1, "forged", "").ok());
  const auto events = store_->Events("op-1");
  RB_ASSERT_OK(events.status());
  EXPECT_THAT(*events, ElementsAre("accepted"));
  EXPECT_EQ(store_->Find("op-1")->snapshot, "snapshot of op-1") << "both or neither";
}

TEST_F(StoreTest, NewestFirstInTheOrderOfAcceptanceAndByPages) {
  // Ids of one second are in no order; what counts is which was accepted first.
  for (const char* id : {"op-b", "op-a", "op-c"}) RB_ASSERT_OK(store_->AppendEvent(Operation(id), 1, "e", ""));
  EXPECT_THAT(ListedIds("", 10), ElementsAre("op-c", "op-a", "op-b"));
  EXPECT_THAT(ListedIds("", 2), ElementsAre("op-c", "op-a"));
  EXPECT_THAT(ListedIds("op-a", 2), ElementsAre("op-b"));
  EXPECT_THAT(ListedIds("op-b", 2), IsEmpty());
}

TEST_F(StoreTest, APrefixHasToMeanOne) {
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-20261123-aa"), 1, "e", ""));
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-20261123-ab"), 1, "e", ""));
  EXPECT_EQ(store_->Find("op-20261123-ab")->id, "op-20261123-ab");
  EXPECT_THAT(store_->Find("op-20261123-a").status(), FailsWith(absl::StatusCode::kInvalidArgument, "op-"));
  EXPECT_THAT(store_->Find("op-2027").status(), FailsWith(absl::StatusCode::kNotFound, "op-2027"));
  for (const char* wild : {"%", "op_20261123-aa", "op-*"}) {
    EXPECT_FALSE(store_->Find(wild).ok()) << wild;
  }
}

TEST_F(StoreTest, OneOperationForOneKey) {
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-1"), 1, "e", "key"));
  EXPECT_THAT(store_->AppendEvent(Operation("op-2"), 1, "e", "key"), FailsWith(absl::StatusCode::kAlreadyExists, ""));
  EXPECT_EQ(*store_->OperationOfKey("key"), "op-1");
  EXPECT_EQ(*store_->OperationOfKey("other"), "");
  EXPECT_FALSE(store_->Find("op-2").ok());
}

TEST_F(StoreTest, ALockHasOneHolderAndIsGivenBack) {
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-1"), 1, "e", ""));
  RB_ASSERT_OK(store_->TakeLock("bot", "prod", "op-1"));
  RB_ASSERT_OK(store_->TakeLock("bot", "prod", "op-1"));
  EXPECT_THAT(store_->TakeLock("bot", "prod", "op-2"), FailsWith(absl::StatusCode::kFailedPrecondition, "op-1"));
  RB_EXPECT_OK(store_->TakeLock("bot", "test", "op-3"));
  RB_EXPECT_OK(store_->TakeLock("other", "prod", "op-4"));
  Reopen();
  EXPECT_EQ(*store_->LockHolder("bot", "prod"), "op-1");
  RB_ASSERT_OK(store_->ReleaseLock("op-1"));
  RB_EXPECT_OK(store_->TakeLock("bot", "prod", "op-2"));
}

TEST_F(StoreTest, LocksThatADeadControllerLeftAreGivenBack) {
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-running"), 1, "e", ""));
  RB_ASSERT_OK(store_->AppendEvent(Operation("op-ended", true), 1, "e", ""));
  RB_ASSERT_OK(store_->TakeLock("a", "prod", "op-running"));
  RB_ASSERT_OK(store_->TakeLock("b", "prod", "op-ended"));
  RB_ASSERT_OK(store_->TakeLock("c", "prod", "op-never-recorded"));
  RB_ASSERT_OK(store_->ReleaseStaleLocks());
  EXPECT_EQ(*store_->LockHolder("a", "prod"), "op-running");
  EXPECT_EQ(*store_->LockHolder("b", "prod"), "");
  EXPECT_EQ(*store_->LockHolder("c", "prod"), "");
  EXPECT_THAT(*store_->Unfinished(), ElementsAre("op-running"));
}

TEST_F(StoreTest, FencingNumbersOnlyRise) {
  uint64_t last = 0;
  for (int i = 0; i < 20; ++i) {
    if (i % 5 == 4) Reopen();
    const absl::StatusOr<uint64_t> next = store_->NextFencingNumber();
    RB_ASSERT_OK(next.status());
    EXPECT_GT(*next, last);
    last = *next;
  }
}

TEST_F(StoreTest, FencingNumbersAreOnesOwnAmongThreadsAndProcesses) {
  // Two stores on one file are what two processes are.
  auto other = Store::Open(path_);
  RB_ASSERT_OK(other.status());
  std::vector<uint64_t> numbers[2];
  std::thread second([&] {
    for (int i = 0; i < 50; ++i) numbers[1].push_back((*other)->NextFencingNumber().value_or(0));
  });
  for (int i = 0; i < 50; ++i) numbers[0].push_back(store_->NextFencingNumber().value_or(0));
  second.join();
  std::vector<uint64_t> all = numbers[0];
  all.insert(all.end(), numbers[1].begin(), numbers[1].end());
  std::sort(all.begin(), all.end());
  EXPECT_GT(all.front(), 0U);
  EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
}

TEST_F(StoreTest, WhoIsNotKnownMayNothing) {
  EXPECT_EQ(*store_->RoleOf("alice", false), Role::kNone);
  RB_ASSERT_OK(store_->PutPrincipal({"alice", Role::kOperator}));
  EXPECT_EQ(*store_->RoleOf("alice", false), Role::kOperator);
  EXPECT_EQ(*store_->RoleOf("alice", true), Role::kNone) << "an operator's name is not an agent's";
  RB_ASSERT_OK(store_->PutPrincipal({"alice", Role::kViewer}));
  Reopen();
  EXPECT_EQ(*store_->RoleOf("alice", false), Role::kViewer);
  RB_ASSERT_OK(store_->RemovePrincipal("alice", false));
  EXPECT_EQ(*store_->RoleOf("alice", false), Role::kNone);
}

class TokenTest : public StoreTest {
 protected:
  const absl::Time now_ = absl::FromUnixSeconds(1'800'000'000);
  const std::string hash_ = Sha256Of("the secret").ToHex();
};

TEST_F(TokenTest, WorksOnceForItsNameUntilItExpires) {
  RB_ASSERT_OK(store_->AddToken("prod-1", hash_, now_ + absl::Hours(1)));
  const auto denied = FailsWith(absl::StatusCode::kPermissionDenied, "");
  EXPECT_THAT(store_->UseToken("prod-2", hash_, now_), denied) << "another name";
  EXPECT_THAT(store_->UseToken("prod-1", Sha256Of("a guess").ToHex(), now_), denied);
  EXPECT_THAT(store_->UseToken("prod-1", "", now_), denied);
  EXPECT_THAT(store_->UseToken("prod-1", hash_, now_ + absl::Hours(2)), denied) << "expired";
  EXPECT_EQ(*store_->RoleOf("prod-1", true), Role::kNone);
  RB_ASSERT_OK(store_->UseToken("prod-1", hash_, now_ + absl::Minutes(59)));
  EXPECT_EQ(*store_->RoleOf("prod-1", true), Role::kAgent);
  EXPECT_THAT(store_->UseToken("prod-1", hash_, now_), denied) << "used up";
}

TEST_F(TokenTest, TheSameWordsWhateverIsWrong) {
  RB_ASSERT_OK(store_->AddToken("prod-1", hash_, now_ + absl::Hours(1)));
  const absl::Status expired = store_->UseToken("prod-1", hash_, now_ + absl::Hours(2));
  const absl::Status unknown = store_->UseToken("prod-1", Sha256Of("a guess").ToHex(), now_);
  EXPECT_EQ(expired, unknown);
}

TEST_F(StoreTest, ANewerVersionsFileIsRefusedUntouched) {
  store_.reset();
  sqlite3* raw = nullptr;
  ASSERT_EQ(sqlite3_open(path_.c_str(), &raw), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(raw, "PRAGMA user_version = 1000", nullptr, nullptr, nullptr), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(raw, "PRAGMA wal_checkpoint(TRUNCATE)", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(raw);
  const std::string before = *ReadFile(path_);
  EXPECT_THAT(Store::Open(path_).status(), FailsWith(absl::StatusCode::kFailedPrecondition, "newer"));
  EXPECT_EQ(*ReadFile(path_), before);
}

}  // namespace
}  // namespace rb::controller
