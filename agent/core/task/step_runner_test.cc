#include "agent/core/task/step_runner.h"

#include <atomic>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "agent/core/ports/fake_database_hooks.h"
#include "agent/core/ports/fake_supervisor.h"
#include "common/durable_file.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using testing::FailsWith;
using ::testing::HasSubstr;
using testing::TemporaryFolder;

// A service with one file and one database, on the real engine.
class StepRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ServiceTree tree;
    tree.service = "bot";
    tree.tree = folder_ / "tree";
    std::filesystem::create_directory(tree.tree);
    Serve("one");
    Engine::Options options;
    options.state_folder = folder_ / "state";
    options.clock = &clock_;
    options.database_hooks = &hooks_;
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Open(options, tree);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    RB_ASSERT_OK(supervisor_.Start(absl::ZeroDuration()));
    ServicePorts ports;
    ports.service = "bot";
    ports.engine = engine_.get();
    ports.supervisor = &supervisor_;
    ports.clock = &clock_;
    runner_ = std::make_unique<StepRunner>(std::move(ports));
  }
  void Serve(const std::string& what) {
    RB_ASSERT_OK(WriteFileDurably(folder_ / "tree/code", what, 0644));
    hooks_.databases["main"] = what;
  }
  template <typename Step>
  TaskResult Run(Step step) {
    Task task;
    task.operation_id = "op";
    task.service = "bot";
    task.step = std::move(step);
    return runner_->Run(
        task, [](Stage, const std::string&) {}, cancelled_);
  }
  bool Runs() { return supervisor_.GetState()->activity == UnitState::Activity::kActive; }
  // A rollback to "one" with its data, from "two", up to its commit.
  void PrepareWithData() {
    const TaskResult backup = Run(BackupStep());
    RB_ASSERT_OK(backup.status);
    Serve("two");
    PrepareStep prepare;
    prepare.release_name = backup.release.name;
    prepare.components.data = true;
    RB_ASSERT_OK(Run(prepare).status);
  }

  TemporaryFolder folder_;
  FakeClock clock_{absl::FromUnixSeconds(1795000000)};
  FakeDatabaseHooks hooks_;
  FakeSupervisor supervisor_;
  std::atomic<bool> cancelled_{false};
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<StepRunner> runner_;
};

TEST_F(StepRunnerTest, DatabasesAreRestoredWhileTheServiceIsStopped) {
  PrepareWithData();
  bool ran = true;
  hooks_.OnCall([&](const std::string&) { ran = Runs(); });
  const TaskResult committed = Run(CommitStep());
  RB_ASSERT_OK(committed.status);
  EXPECT_FALSE(ran);
  EXPECT_TRUE(Runs());
  EXPECT_EQ(hooks_.databases["main"], "one");
  ran = true;
  RB_ASSERT_OK(Run(RevertStep()).status);
  EXPECT_FALSE(ran);
  EXPECT_TRUE(Runs());
  EXPECT_EQ(hooks_.databases["main"], "two");
}

TEST_F(StepRunnerTest, AServiceIsNotStartedOnWhatCouldNotBeTakenBackUntilItIs) {
  PrepareWithData();
  hooks_.Fail("restore main", absl::InternalError("the server is down"));
  const TaskResult committed = Run(CommitStep());
  EXPECT_THAT(committed.status, FailsWith(absl::StatusCode::kInternal, "the service is left stopped"));
  EXPECT_THAT(std::string(committed.status.message()), HasSubstr("rb-agent local recover bot"));
  EXPECT_EQ(committed.state, HostState::kCommitted) << "so that it is reverted";
  EXPECT_FALSE(Runs());
  const TaskResult failed = Run(RevertStep());
  EXPECT_THAT(failed.status, FailsWith(absl::StatusCode::kInternal, "the server is down"));
  EXPECT_EQ(failed.state, HostState::kCommitted);
  EXPECT_FALSE(Runs());
  hooks_.Fail("restore main", absl::OkStatus());
  const TaskResult reverted = Run(RevertStep());
  RB_ASSERT_OK(reverted.status);
  EXPECT_EQ(reverted.state, HostState::kReverted);
  EXPECT_TRUE(Runs());
  EXPECT_EQ(hooks_.databases["main"], "two");
}

// Keeps what it was asked for, and whether the service ran then.
class FakeAfterRestore final : public AfterRestore {
 public:
  FakeAfterRestore(std::vector<std::string>& calls, FakeSupervisor& supervisor)
      : calls_(calls), supervisor_(supervisor) {}
  std::vector<std::string> BeforeStart() override { return Called("clear"); }
  std::vector<std::string> AfterStart() override { return Called("restart"); }

 private:
  std::vector<std::string> Called(const std::string& what) {
    const bool runs = supervisor_.GetState()->activity == UnitState::Activity::kActive;
    calls_.push_back(what + (runs ? " while it runs" : " while it is stopped"));
    return {what + " failed"};
  }
  std::vector<std::string>& calls_;
  FakeSupervisor& supervisor_;
};

TEST_F(StepRunnerTest, AfterRestoreIsPartOfCommitAndOfUndoAndItsFailureIsItsOwn) {
  std::vector<std::string> calls;
  ServicePorts ports;
  ports.service = "bot";
  ports.engine = engine_.get();
  ports.supervisor = &supervisor_;
  ports.clock = &clock_;
  ports.after_restore = std::make_unique<FakeAfterRestore>(calls, supervisor_);
  runner_ = std::make_unique<StepRunner>(std::move(ports));
  PrepareWithData();
  EXPECT_THAT(calls, ::testing::IsEmpty());
  const TaskResult committed = Run(CommitStep());
  RB_ASSERT_OK(committed.status);
  EXPECT_EQ(committed.state, HostState::kCommitted);
  EXPECT_THAT(committed.problems, ::testing::ElementsAre("clear failed", "restart failed"));
  const TaskResult reverted = Run(RevertStep());
  RB_ASSERT_OK(reverted.status);
  EXPECT_THAT(reverted.problems, ::testing::ElementsAre("clear failed", "restart failed"));
  EXPECT_THAT(calls, ::testing::ElementsAre("clear while it is stopped", "restart while it runs",
                                            "clear while it is stopped", "restart while it runs"));
}

class CountingProbe final : public Probe {
 public:
  explicit CountingProbe(int& starts) : starts_(starts) {}
  ProbeResult Run(const ProbeContext&) override { return {}; }
  void BeforeStart() override { ++starts_; }

 private:
  int& starts_;
};

TEST_F(StepRunnerTest, TheLogOfAServiceThatRunsAlreadyBeganEarlier) {
  int starts = 0;
  ServicePorts ports;
  ports.service = "bot";
  ports.engine = engine_.get();
  ports.supervisor = &supervisor_;
  ports.clock = &clock_;
  ports.probes.push_back(std::make_unique<CountingProbe>(starts));
  runner_ = std::make_unique<StepRunner>(std::move(ports));
  PrepareWithData();
  RB_ASSERT_OK(Run(CommitStep()).status);
  EXPECT_EQ(starts, 1);
  // The power was cut after the swap; at boot systemd has started it, and the agent repeats its step.
  RB_ASSERT_OK(Run(CommitStep()).status);
  EXPECT_EQ(starts, 1);
}

TEST_F(StepRunnerTest, APruneKeepsWhatThePolicySaysAndDoesNothingWithoutOne) {
  for (const char* what : {"one", "two", "three", "four"}) {
    Serve(what);
    RB_ASSERT_OK(Run(BackupStep()).status);
    clock_.Advance(absl::Seconds(1));
  }
  EXPECT_THAT(Run(PruneStep()).status, FailsWith(absl::StatusCode::kFailedPrecondition, "was not told how many"));
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Release> all, engine_->Releases());
  ASSERT_EQ(all.size(), 4u);
  const TaskResult pruned = Run(PruneStep{2});
  RB_ASSERT_OK(pruned.status);
  ASSERT_TRUE(pruned.pruned.has_value());
  EXPECT_EQ(pruned.pruned->removed, 2u);
  EXPECT_THAT(pruned.pruned->releases, ::testing::ElementsAre(all[2].name, all[3].name));
  EXPECT_EQ(engine_->Releases()->size(), 2u);
  EXPECT_EQ(Run(PruneStep{2}).pruned->removed, 0u) << "a repeated step finds nothing";
}

TEST_F(StepRunnerTest, AnInspectionThatGaveWayIsNoReasonToRefuse) {
  RB_ASSERT_OK(Run(BackupStep()).status);
  cancelled_ = true;
  EXPECT_THAT(Run(InspectStep()).status, FailsWith(absl::StatusCode::kCancelled, "came in between"));
  cancelled_ = false;
  RB_ASSERT_OK(Run(InspectStep()).status);
}

TEST_F(StepRunnerTest, AFailedDumpIsNoBackup) {
  hooks_.Fail("dump main", absl::InternalError("database main: connection refused"));
  EXPECT_THAT(Run(BackupStep()).status,
              FailsWith(absl::StatusCode::kInternal,
                        "the backup was not taken; nothing was changed: database main: connection refused"));
}

}  // namespace
}  // namespace rb::agent
