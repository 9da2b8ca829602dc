// The tree transaction and the release store, held against the states that a power cut can leave: the tree is wholly
// the old or wholly the new one, what was acknowledged is there, and every release that is left can really be restored.
//
// RB_CRASH_STATES: states a filesystem (default 300; CI visits 1800), and half as many with many files. Of the few
// writes of the smaller scenario, ext4 and xfs have fewer states than that: then all that are found.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "common/test_util.h"
#include "tests/crash/crash_rig.h"
#include "tests/crash/rollback_scenario.h"

namespace rb::crash {
namespace {

class EngineCrashStates : public ::testing::TestWithParam<const char*> {};

void VisitStates(const char* filesystem, RollbackScenario scenario, size_t part) {
  RigOptions options;
  options.filesystem = filesystem;
  options.states = 300;
  if (const char* states = std::getenv("RB_CRASH_STATES"); states != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(states, &options.states)) << "RB_CRASH_STATES is not a number: " << states;
  }
  options.states /= part;
  Workload workload;
  workload.prepare = [&](const std::string& root) {
    const absl::Status prepared = scenario.Prepare(root);
    sync();
    return prepared;
  };
  workload.run = [&](const std::string& root, const auto& acknowledge) -> absl::Status {
    bool collected = false;
    RB_RETURN_IF_ERROR(scenario.Run(root, [&](const std::string& what) {
      collected = collected || what == "collected";
      acknowledge(what);
    }));
    return collected ? absl::OkStatus() : absl::InternalError("the prune had nothing to collect");
  };
  workload.check = [&](const std::string& root, const std::vector<std::string>& acknowledged) {
    return scenario.Check(root, acknowledged);
  };
  const absl::StatusOr<RigReport> report = VisitCrashStates(workload, options);
  if (absl::IsUnavailable(report.status())) GTEST_SKIP() << report.status();
  ASSERT_TRUE(report.ok()) << report.status();
  std::printf("%s: %zu operations, %zu prefixes, %zu states, all different%s (%zu reordered), %zu bad\n", filesystem,
              report->operations, report->prefixes, report->states,
              report->exhausted ? ", which is all that were found" : "", report->reordered_states, report->bad_states);
  EXPECT_TRUE(report->states == options.states || report->exhausted);
  EXPECT_EQ(report->bad_states, 0u) << absl::StrJoin(report->findings, "\n");
}

TEST_P(EngineCrashStates, TheTreeIsWholeAndNothingAcknowledgedIsLost) {
  VisitStates(GetParam(), RollbackScenario(), 1);
}

// On several threads, and with flushes of the whole filesystem.
TEST_P(EngineCrashStates, SoItIsWithManyFiles) { VisitStates(GetParam(), RollbackScenario(100), 2); }

INSTANTIATE_TEST_SUITE_P(Filesystems, EngineCrashStates, ::testing::Values("ext4", "xfs", "btrfs"),
                         [](const auto& parameter) { return std::string(parameter.param); });

}  // namespace
}  // namespace rb::crash
