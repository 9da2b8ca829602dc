// Every call that may fail for want of something fails once, with each error it may really give: the live tree is never
// harmed, the error says what and where, and the host is of use afterwards.
//
// RB_FAULT_STEP: only every so manieth call (default 1).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/test_util.h"
#include "tests/crash/rollback_scenario.h"
#include "tests/crash/syscall_rig.h"

namespace rb::crash {
namespace {

constexpr size_t kMostCalls = 50000;

// Failures that nobody needs to hear of: cleaning up that the next operation does again, and asking what there is. A
// failed write, flush, link or allocation is never one of them.
bool MayGoUnsaid(const std::string& call) {
  return call == "openat" || call == "openat2" || call == "renameat2" || call == "unlinkat" || call == "utimensat";
}

// A whole path, or the name of something in the tree or in staging.
bool SaysWhere(const std::string& error, const std::string& root) {
  static const auto* const names = new std::regex(
      "(^|[ "
      "/])(lib|old|new|deep|start|run\\.sh|data|only-in-(first|second)|second-name|sparse|e[0-9]+|tx-[0-9a-f]+)($|[ "
      "/:,])");
  return absl::StrContains(error, root) || absl::StrContains(error, "/proc/self/mountinfo") ||
         absl::StrContains(error, "the tree's root") || std::regex_search(error, *names);
}

// Until an operation passes untouched. Every call, or every `step`th; `more_files` as RollbackScenario has it.
void FailEachCall(CallSet calls, int more_files, size_t step) {
  size_t failed = 0;
  size_t reported = 0;
  std::map<std::string, size_t> by_call;
  for (size_t at = 1;; at += step) {
    ASSERT_LT(at, kMostCalls) << "the operation does not end";
    std::vector<int> errors = {EIO};
    for (size_t e = 0; e < errors.size(); ++e) {
      const testing::TemporaryFolder root;
      RollbackScenario scenario(more_files);
      RB_ASSERT_OK(scenario.Prepare(root.path()));
      const absl::StatusOr<TracedRun> run =
          RunTraced(calls, {Interruption::Kind::kFail, at, errors[e]},
                    [&](const auto& say) { return scenario.Run(root.path(), say).ToString(); });
      if (absl::IsUnavailable(run.status()) && failed == 0) GTEST_SKIP() << run.status();
      RB_ASSERT_OK(run);
      if (!run->interrupted) {
        ASSERT_EQ(run->result, "OK");
        ASSERT_THAT(run->said, ::testing::Contains("collected"));
        ASSERT_GT(failed, 0);
        std::printf("%zu failed calls, %zu of them ended the operation\n", failed, reported);
        for (const auto& [call, count] : by_call) std::printf("  %s %zu\n", call.c_str(), count);
        return;
      }
      if (e == 0) {
        for (const int other : PlausibleErrors(run->call)) {
          if (other != EIO) errors.push_back(other);
        }
      }
      ++failed;
      ++by_call[run->call];
      const std::string what =
          absl::StrCat("call ", at, " (", run->call, ") failed with ", std::strerror(errors[e]), ": ", run->result);
      const std::string last = run->said.empty() ? "" : run->said.back();
      if (run->result == "OK") {
        EXPECT_TRUE(MayGoUnsaid(run->call)) << what;
      } else {
        ++reported;
        EXPECT_TRUE(absl::StrContains(run->result, std::strerror(errors[e]))) << what;
        EXPECT_TRUE(SaysWhere(run->result, root.path())) << what;
        // Even before anything is recovered.
        ASSERT_EQ(scenario.CheckTree(root.path(), last), "") << what;
      }
      std::vector<std::string> said = run->said;
      if (absl::StrContains(run->result, "was taken back")) said.emplace_back("taken-back");
      ASSERT_EQ(scenario.Check(root.path(), said), "") << what;
    }
  }
}

TEST(EngineFault, NoFailedCallHarmsTheTree) {
  size_t step = 1;
  if (const char* text = std::getenv("RB_FAULT_STEP"); text != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(text, &step) && step > 0) << "RB_FAULT_STEP is not a number: " << text;
  }
  FailEachCall(CallSet::kFallible, 0, step);
}

// Where many files change the filesystem is flushed whole, some of it beside other work.
TEST(EngineFault, NoFailedFlushOfAFilesystemHarmsTheTree) { FailEachCall(CallSet::kFilesystemFlushes, 100, 1); }

}  // namespace
}  // namespace rb::crash
