#include "agent/core/fault/fault_keeper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace rb::agent {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::Not;

class FakeTools final : public FaultTools {
 public:
  absl::StatusOr<FaultPlan> Plan(FaultKind kind, const std::string&) override {
    calls->push_back("plan");
    FaultPlan plan;
    plan.kind = kind;
    plan.what = "run.py";
    return plan;
  }
  absl::Status Break(const FaultPlan&) override {
    calls->push_back("break");
    broken = true;
    return break_status;
  }
  absl::Status CheckBroken(const FaultPlan&) override { return check_status; }
  absl::StatusOr<uint32_t> CountBroken(const FaultPlan&) override { return broken ? 1 : 0; }
  absl::StatusOr<uint32_t> Mend(const FaultPlan&) override {
    calls->push_back("mend");
    return std::exchange(broken, false) ? 1 : 0;
  }
  absl::Status Strike(FaultKind) override {
    calls->push_back("strike");
    return absl::InternalError("still alive");
  }
  std::vector<std::string>* calls = nullptr;
  bool broken = false;
  absl::Status break_status;
  absl::Status check_status;
};

class FakeRecords final : public FaultRecords {
 public:
  absl::StatusOr<FaultRecord> Load() override {
    if (!saved.has_value()) return absl::NotFoundError("none");
    return *saved;
  }
  absl::Status Save(const FaultRecord& record) override {
    if (!status.ok()) return status;
    calls->push_back("save");
    saved = record;
    return absl::OkStatus();
  }
  std::vector<std::string>* calls = nullptr;
  std::optional<FaultRecord> saved;
  absl::Status status;
};

class FaultKeeperTest : public testing::Test {
 protected:
  FaultKeeperTest() {
    tools_.calls = records_.calls = &calls_;
    Restart();
  }
  // As a new process that finds what the old one has left.
  void Restart() {
    FaultKeeper::Ports ports;
    ports.tools = &tools_;
    ports.records = &records_;
    ports.clock = &clock_;
    ports.stop = [this] {
      calls_.emplace_back("stop");
      return absl::OkStatus();
    };
    ports.start = [this] {
      calls_.emplace_back("start");
      return absl::OkStatus();
    };
    ports.open_operation = [this] { return open_; };
    ports.allowed = {FaultKind::kBadCode, FaultKind::kAgentKilled, FaultKind::kDiskFull};
    keeper_ = std::make_unique<FaultKeeper>(std::move(ports));
    ASSERT_TRUE(keeper_->Recover().ok());
  }
  absl::Status Inject(const std::string& drill = "drill-1", FaultKind kind = FaultKind::kBadCode) {
    return keeper_->Inject(kind, drill, absl::Minutes(10));
  }

  std::vector<std::string> calls_;
  FakeTools tools_;
  FakeRecords records_;
  FakeClock clock_{absl::FromUnixSeconds(1'700'000'000)};
  std::string open_;
  std::unique_ptr<FaultKeeper> keeper_;
};

TEST_F(FaultKeeperTest, TheUndoIsOnRecordBeforeAnythingIsBroken) {
  ASSERT_TRUE(Inject().ok());
  EXPECT_THAT(calls_, ElementsAre("stop", "plan", "save", "break", "save", "start"));
}

TEST_F(FaultKeeperTest, WhatCannotBeRecordedIsNotBroken) {
  records_.status = absl::ResourceExhaustedError("full");
  EXPECT_FALSE(Inject().ok());
  EXPECT_THAT(calls_, ElementsAre("stop", "plan", "start"));
  EXPECT_FALSE(IsOpen(keeper_->record()));
}

TEST_F(FaultKeeperTest, WhatIsNotAllowedIsRefused) {
  EXPECT_TRUE(absl::IsFailedPrecondition(Inject("drill-1", FaultKind::kBadDatabase)));
  open_ = "op-1";
  EXPECT_TRUE(absl::IsFailedPrecondition(Inject()));
  EXPECT_TRUE(calls_.empty());
}

TEST_F(FaultKeeperTest, AFaultThatNobodyWouldNoticeIsPutBack) {
  tools_.check_status = absl::InternalError("SQLite says ok");
  EXPECT_FALSE(Inject().ok());
  EXPECT_FALSE(tools_.broken);
  EXPECT_EQ(keeper_->record().state, FaultState::kEnded);
  EXPECT_EQ(calls_.back(), "save");
  EXPECT_THAT(calls_, Contains("start"));
}

TEST_F(FaultKeeperTest, RepeatedInjectAndEndDoNothingMore) {
  ASSERT_TRUE(Inject().ok());
  calls_.clear();
  EXPECT_TRUE(Inject().ok());
  EXPECT_TRUE(calls_.empty());
  EXPECT_FALSE(Inject("drill-2").ok()) << "one at a time";
  ASSERT_TRUE(keeper_->End("drill-1").ok());
  EXPECT_EQ(keeper_->record().put_back, 1u);
  calls_.clear();
  EXPECT_TRUE(keeper_->End("drill-1").ok());
  EXPECT_TRUE(calls_.empty());
  EXPECT_FALSE(Inject().ok()) << "a late inject of a drill that is over";
  EXPECT_FALSE(tools_.broken);
}

TEST_F(FaultKeeperTest, AnEndThatOvertakesItsInjectWins) {
  EXPECT_TRUE(keeper_->End("drill-1").ok());
  Restart();
  EXPECT_FALSE(Inject().ok());
  EXPECT_FALSE(tools_.broken);
}

TEST_F(FaultKeeperTest, WhatWasRecoveredIsNotTouchedByTheEnd) {
  ASSERT_TRUE(Inject().ok());
  tools_.broken = false;  // a rollback has replaced it
  calls_.clear();
  ASSERT_TRUE(keeper_->End("drill-1").ok());
  EXPECT_THAT(calls_, Not(Contains("stop")));
  EXPECT_EQ(keeper_->record().put_back, 0u);
}

TEST_F(FaultKeeperTest, EndsAloneWhenItsTimeIsUpOnEitherClock) {
  ASSERT_TRUE(Inject().ok());
  clock_.Advance(absl::Minutes(9));
  keeper_->Tick();
  EXPECT_TRUE(tools_.broken);
  clock_.Advance(absl::Minutes(1));
  keeper_->Tick();
  EXPECT_FALSE(tools_.broken);
  EXPECT_TRUE(keeper_->record().ended_alone);
  // Moving the clock back does not make it last longer.
  ASSERT_TRUE(Inject("drill-2").ok());
  clock_.SetNow(clock_.Now() - absl::Hours(5));
  clock_.Advance(absl::Minutes(10));
  keeper_->Tick();
  EXPECT_FALSE(tools_.broken);
}

TEST_F(FaultKeeperTest, EndsAloneAfterARestartToo) {
  ASSERT_TRUE(Inject().ok());
  Restart();
  EXPECT_EQ(keeper_->record().state, FaultState::kIn) << "a restart alone does not end it";
  clock_.Advance(absl::Minutes(10));
  keeper_->Tick();
  EXPECT_FALSE(tools_.broken);
  // A new boot: the monotonic clock begins anew.
  FaultRecord record;
  record.state = FaultState::kIn;
  record.longest = absl::Minutes(10);
  record.ends_at_monotonic = absl::Hours(1000);
  record.ends_at = absl::InfiniteFuture();
  record.ends_at_monotonic = DeadlineAfterRestart(record, absl::Seconds(5));
  EXPECT_TRUE(IsTimeUp(record, absl::UnixEpoch(), absl::Seconds(5) + absl::Minutes(10)));
}

TEST_F(FaultKeeperTest, KilledInTheMiddleOfInjectingItIsPutBackAtOnce) {
  ASSERT_TRUE(Inject().ok());
  // As it lay on the disk before the second save.
  records_.saved->state = FaultState::kRecorded;
  Restart();
  calls_.clear();
  keeper_->Tick();
  EXPECT_FALSE(tools_.broken);
  EXPECT_EQ(keeper_->record().state, FaultState::kEnded);
  EXPECT_THAT(calls_, Contains("start"));
}

TEST_F(FaultKeeperTest, KilledInTheMiddleOfTheEndTheServiceIsStarted) {
  ASSERT_TRUE(Inject().ok());
  records_.saved->state = FaultState::kEnding;
  tools_.broken = false;
  Restart();
  calls_.clear();
  keeper_->Tick();
  EXPECT_THAT(calls_, ElementsAre("start", "save"));
}

TEST_F(FaultKeeperTest, AnOpenOperationMayBringItBackSoItIsWatched) {
  ASSERT_TRUE(Inject().ok());
  open_ = "op-1";
  EXPECT_TRUE(absl::IsUnavailable(keeper_->End("drill-1")));
  EXPECT_FALSE(tools_.broken) << "mended already";
  EXPECT_TRUE(IsOpen(keeper_->record()));
  tools_.broken = true;  // the operation is reverted
  open_.clear();
  keeper_->Tick();
  EXPECT_FALSE(tools_.broken);
  EXPECT_EQ(keeper_->record().state, FaultState::kEnded);
}

TEST_F(FaultKeeperTest, AFullDiskLeavesTheServiceRunning) {
  ASSERT_TRUE(Inject("drill-1", FaultKind::kDiskFull).ok());
  EXPECT_THAT(calls_, ElementsAre("plan", "save", "break", "save"));
  calls_.clear();
  // The disk is so full that not even that can be written: what is mended all the same.
  records_.status = absl::ResourceExhaustedError("full");
  EXPECT_FALSE(keeper_->End("drill-1").ok());
  EXPECT_FALSE(tools_.broken);
  EXPECT_TRUE(IsOpen(keeper_->record())) << "tried again";
  records_.status = absl::OkStatus();
  EXPECT_TRUE(keeper_->End("drill-1").ok());
  EXPECT_THAT(calls_, ElementsAre("mend", "save"));
  EXPECT_EQ(keeper_->record().put_back, 1u) << "as often as it was put back, not as it was tried";
}

TEST_F(FaultKeeperTest, StrikesOnceAndOnRecordFirst) {
  ASSERT_TRUE(Inject("drill-1", FaultKind::kAgentKilled).ok());
  EXPECT_THAT(calls_, ElementsAre("save")) << "nothing is touched before";
  calls_.clear();
  keeper_->OnSwapping();
  EXPECT_THAT(calls_, ElementsAre("save", "strike", "save"));
  EXPECT_FALSE(HasStruck(keeper_->record())) << "we are still here";
  EXPECT_THAT(keeper_->record().plan.what, testing::HasSubstr("which failed: still alive"));
  clock_.Advance(absl::Seconds(3));
  Restart();
  EXPECT_EQ(keeper_->record().away, absl::Seconds(3));
  EXPECT_TRUE(HasStruck(keeper_->record()));
  calls_.clear();
  keeper_->OnSwapping();
  EXPECT_THAT(calls_, Not(Contains("strike")));
  EXPECT_TRUE(keeper_->End("drill-1").ok());
  keeper_->OnSwapping();
  EXPECT_THAT(calls_, Not(Contains("strike")));
}

}  // namespace
}  // namespace rb::agent
