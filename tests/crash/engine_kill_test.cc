// The process is killed at every system call that changes something, in the middle of an operation and again in the
// middle of the recovery from it.
//
// RB_KILL_STEP: only every so manieth call (default 1).
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/test_util.h"
#include "tests/crash/rollback_scenario.h"
#include "tests/crash/syscall_rig.h"

namespace rb::crash {
namespace {

// Each call of the operation is met twice, with recoveries that are killed at different calls.
constexpr size_t kSchedules = 2;
constexpr size_t kRecoveriesKilled = 3;
constexpr size_t kMostCalls = 20000;

std::string Recover(const std::string& root) {
  absl::StatusOr<std::unique_ptr<agent::Engine>> engine = RollbackScenario::OpenEngine(root);
  if (!engine.ok()) return engine.status().ToString();
  return (*engine)->Recover().status().ToString();
}

TEST(EngineKill, KilledAtEveryCallAndAgainInRecoveryTheTreeIsWhole) {
  size_t step = 1;
  if (const char* text = std::getenv("RB_KILL_STEP"); text != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(text, &step) && step > 0) << "RB_KILL_STEP is not a number: " << text;
  }
  size_t killed = 0;
  size_t killed_in_recovery = 0;
  size_t longest = 16;  // more calls than any recovery has that was seen
  size_t last_killed = 0;
  bool ended = false;
  for (size_t at = 1; !ended; at += step) {
    ASSERT_LT(at, kMostCalls) << "the operation does not end";
    for (size_t schedule = 0; schedule < kSchedules && !ended; ++schedule) {
      const testing::TemporaryFolder root;
      RollbackScenario scenario;
      RB_ASSERT_OK(scenario.Prepare(root.path()));
      Interruption interruption{Interruption::Kind::kKill, at, 0};
      const absl::StatusOr<TracedRun> run = RunTraced(
          CallSet::kChanging, interruption, [&](const auto& say) { return scenario.Run(root.path(), say).ToString(); });
      if (absl::IsUnavailable(run.status()) && at == 1) GTEST_SKIP() << run.status();
      RB_ASSERT_OK(run);
      if (!run->interrupted) {
        ASSERT_EQ(run->result, "OK");
        ASSERT_THAT(run->said, ::testing::Contains("collected"));
        ended = true;
        break;
      }
      ASSERT_TRUE(run->killed);
      ++killed;
      std::string trail = absl::StrCat("killed at call ", at, " (", run->call, ")");
      for (size_t again = 0; again < kRecoveriesKilled; ++again) {
        // In the first schedule the calls that every recovery makes, in the second those of the longest as well.
        interruption.at = schedule == 0 ? 1 + (at / step + again * 5) % 16 : 1 + (at / step * 7 + again * 29) % longest;
        RB_ASSERT_OK_AND_ASSIGN(const TracedRun recovery, RunTraced(CallSet::kChanging, interruption,
                                                                    [&](const auto&) { return Recover(root.path()); }));
        if (!recovery.interrupted) {
          ASSERT_EQ(recovery.result, "OK") << trail;
          break;
        }
        ++killed_in_recovery;
        last_killed = std::max(last_killed, interruption.at);
        if (interruption.at == longest) longest *= 2;
        absl::StrAppend(&trail, ", then in recovery at call ", interruption.at, " (", recovery.call, ")");
      }
      ASSERT_EQ(scenario.Check(root.path(), run->said), "") << trail;
    }
  }
  std::printf(
      "killed at %zu calls of the operation and %zu of recoveries (up to their call %zu), "
      "all recovered\n",
      killed, killed_in_recovery, last_killed);
  EXPECT_GE((killed + killed_in_recovery) * step, 1000u);
}

}  // namespace
}  // namespace rb::crash
