#include "agent/adapters/database/hook_runner.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/adapters/supervisor/spawn.h"
#include "common/clock.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FailsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::TemporaryFolder;
using ::testing::UnorderedElementsAre;

constexpr absl::StatusCode kInternal = absl::StatusCode::kInternal;

std::vector<std::string> Shell(const std::string& script) { return {"sh", "-c", script}; }

// The machine's clock, on which an hour passes at the moment that a file is made.
class JumpingClock final : public Clock {
 public:
  explicit JumpingClock(std::string path) : path_(std::move(path)) {}
  absl::Time Now() override { return SystemClock().Now(); }
  absl::Duration Monotonic() override {
    jumped_ = jumped_ || std::filesystem::exists(path_);
    return SystemClock().Monotonic() + (jumped_ ? absl::Hours(1) : absl::ZeroDuration());
  }
  void Sleep(absl::Duration duration) override { SystemClock().Sleep(duration); }

 private:
  const std::string path_;
  bool jumped_ = false;
};

class HookRunnerTest : public ::testing::Test {
 protected:
  std::unique_ptr<HookRunner> Make(std::vector<std::string> dump, std::vector<std::string> restore) {
    HookRunner::Options options;
    options.service = "bot";
    options.state_folder = folder_ / "state";
    options.grace = grace_;
    options.is_cancelled = [this] { return cancelled_; };
    DatabaseHook hook;
    hook.name = "main";
    hook.dump = std::move(dump);
    hook.restore = std::move(restore);
    hook.timeout = absl::Minutes(30);
    hook.user = user_;
    options.hooks.push_back(std::move(hook));
    return std::make_unique<HookRunner>(std::move(options), clock_);
  }
  // What the dump command writes.
  absl::StatusOr<std::string> Dump(std::vector<std::string> command) {
    std::string dump;
    const absl::Status status = Make(std::move(command), {"true"})->Dump("main", [&](absl::string_view bytes) {
      largest_piece_ = std::max(largest_piece_, bytes.size());
      dump.append(bytes.data(), bytes.size());
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return dump;
  }
  absl::Status Restore(std::vector<std::string> command, const std::string& dump) {
    size_t at = 0;
    return Make({"true"}, std::move(command))->Restore("main", [&]() -> absl::StatusOr<std::string> {
      const std::string piece = dump.substr(at, 1 << 20);
      at += piece.size();
      return piece;
    });
  }
  // Part of a script: from here on its time is over.
  std::string TimeIsOver() { return absl::StrCat(": >", folder_ / "over", "; echo . >&2; "); }
  bool NobodyIsWrittenDown() { return !std::filesystem::exists(folder_ / "state/hooks/bot"); }

  TemporaryFolder folder_;
  std::function<absl::StatusOr<UserAndGroup>()> user_;
  bool cancelled_ = false;
  absl::Duration grace_ = absl::Milliseconds(100);
  JumpingClock clock_{folder_ / "over"};
  size_t largest_piece_ = 0;
};

TEST_F(HookRunnerTest, ADumpIsWhatTheProgramWritesHoweverMuchThatIs) {
  RB_ASSERT_OK_AND_ASSIGN(const std::string small, Dump(Shell("printf 'a\\0b'; echo talk >&2")));
  EXPECT_EQ(small, std::string("a\0b", 3));
  RB_ASSERT_OK_AND_ASSIGN(const std::string large, Dump(Shell("seq 1 8000000")));
  EXPECT_GT(large.size(), 50u << 20);
  EXPECT_TRUE(absl::EndsWith(large, "\n7999999\n8000000\n"));
  EXPECT_LE(largest_piece_, 1u << 20);
  EXPECT_TRUE(NobodyIsWrittenDown());
}

TEST_F(HookRunnerTest, ARestoreReadsTheWholeDump) {
  const std::string path = folder_ / "restored";
  std::string dump;
  for (int i = 0; dump.size() < (20u << 20); ++i) absl::StrAppend(&dump, i, "\n");
  RB_ASSERT_OK(Restore(Shell(absl::StrCat("cat >", path, "; echo done")), dump));
  RB_ASSERT_OK_AND_ASSIGN(const std::string restored, ReadFile(path));
  EXPECT_EQ(Sha256Of(restored), Sha256Of(dump));
  EXPECT_TRUE(NobodyIsWrittenDown());
  // One that knows where the dump ends need not wait for the end of its input.
  RB_EXPECT_OK(Restore({"head", "-c", "5"}, "12345"));
}

TEST_F(HookRunnerTest, AProgramThatFailsIsNamedWithItsLastWords) {
  EXPECT_THAT(Dump(Shell("echo half; echo 'connection refused' >&2; exit 3")),
              FailsWith(kInternal,
                        "database main: its dump command (sh) exited with status 3; it last printed: "
                        "connection refused"));
  EXPECT_THAT(Dump(Shell("kill -9 $$")), FailsWith(kInternal, "killed by signal 9; it printed nothing"));
  EXPECT_THAT(Restore(Shell("cat >/dev/null; echo 'on either output'; exit 1"), "dump"),
              FailsWith(kInternal,
                        "database main: its restore command (sh) exited with status 1; it last printed: on "
                        "either output"));
  EXPECT_THAT(Restore(Shell("exec <&-; exit 1"), std::string(8 << 20, 'x')), FailsWith(kInternal, "status 1"));
  EXPECT_THAT(Dump({"/no/such/program"}), FailsWith(absl::StatusCode::kNotFound, "cannot run /no/such/program"));
  EXPECT_THAT(Dump({"no-such-program"}), FailsWith(absl::StatusCode::kNotFound, "no-such-program"));
}

TEST_F(HookRunnerTest, ADumpOfNothingAndARestoreThatDoesNotReadAreFailures) {
  EXPECT_THAT(Dump({"true"}), FailsWith(kInternal, "ended well, but wrote nothing"));
  EXPECT_THAT(Restore({"true"}, "dump"), FailsWith(kInternal, "did not read all of the dump: it took 0 B"));
  EXPECT_THAT(Restore({"true"}, std::string(8 << 20, 'x')), FailsWith(kInternal, "did not read all of the dump"));
  EXPECT_THAT(Restore({"head", "-c", "5"}, "123456"), FailsWith(kInternal, "did not read all of the dump"));
}

TEST_F(HookRunnerTest, WhatDoesNotEndInTimeIsEnded) {
  EXPECT_THAT(Dump(Shell("echo some; echo waiting for a lock >&2; " + TimeIsOver() + "exec sleep 1000")),
              FailsWith(absl::StatusCode::kDeadlineExceeded,
                        "did not end within 30m 00s and was ended; it last printed: waiting for a lock"));
  EXPECT_TRUE(NobodyIsWrittenDown());
}

TEST_F(HookRunnerTest, ARestoreThatDoesNotReadIsEndedInTime) {
  EXPECT_THAT(Restore(Shell(TimeIsOver() + "exec sleep 1000"), std::string(8 << 20, 'x')),
              FailsWith(absl::StatusCode::kDeadlineExceeded, "restore command (sh) did not end within"));
}

TEST_F(HookRunnerTest, WhatIgnoresSigtermIsKilledWithItsChildren) {
  const std::string path = folder_ / "pids";
  EXPECT_THAT(Dump(Shell(absl::StrCat("trap '' TERM; sleep 1000 & echo $$ $! >", path, "; ", TimeIsOver(),
                                      "while :; do wait; done"))),
              FailsWith(absl::StatusCode::kDeadlineExceeded, "was ended"));
  RB_ASSERT_OK_AND_ASSIGN(const std::string pids, ReadFile(path));
  for (const absl::string_view text : absl::StrSplit(pids, absl::ByAnyChar(" \n"), absl::SkipEmpty())) {
    int pid = 0;
    ASSERT_TRUE(absl::SimpleAtoi(text, &pid));
    EXPECT_THAT(IdentifyProcess(pid), FailsWith(absl::StatusCode::kNotFound, ""));
  }
}

TEST_F(HookRunnerTest, SigtermComesFirst) {
  grace_ = absl::Minutes(1);
  const std::string path = folder_ / "told";
  EXPECT_THAT(
      Dump(Shell(absl::StrCat("trap 'echo told >", path, "; exit 1' TERM; ", TimeIsOver(), "sleep 1000 & wait"))),
      FailsWith(absl::StatusCode::kDeadlineExceeded, "was ended"));
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(HookRunnerTest, WhoeverPrintsForEverIsEndedAllTheSame) {
  const std::string script =
      "yes 'an endless complaint' | head -n 100000; " + TimeIsOver() + "exec yes 'an endless complaint'";
  const absl::Status dumped = Dump(Shell("exec >&2; " + script)).status();
  EXPECT_THAT(dumped, FailsWith(absl::StatusCode::kDeadlineExceeded, "an endless complaint"));
  EXPECT_LT(dumped.message().size(), 2000u);
}

TEST_F(HookRunnerTest, ARestoreThatPrintsForEverIsEndedAllTheSame) {
  EXPECT_THAT(
      Restore(Shell("yes 'an endless complaint' | head -n 100000; " + TimeIsOver() + "exec yes 'an endless complaint'"),
              "dump"),
      FailsWith(absl::StatusCode::kDeadlineExceeded, "an endless complaint"));
}

TEST_F(HookRunnerTest, TalkAloneDoesNotStopWhatItComesWith) {
  RB_ASSERT_OK_AND_ASSIGN(const std::string dump, Dump(Shell("seq 1 2000000 >&2; echo dump")));
  EXPECT_EQ(dump, "dump\n");
}

TEST_F(HookRunnerTest, ADumpIsOverWhenItsOutputIs) {
  const std::string until_first_has_ended =
      "while read -r line 2>/dev/null </proc/$$/stat; do case $line in *') Z '*) break ;; esac; done; ";
  RB_ASSERT_OK_AND_ASSIGN(const std::string whole,
                          Dump(Shell("(" + until_first_has_ended + "echo late) & echo early")));
  EXPECT_EQ(whole, "early\nlate\n");
  EXPECT_THAT(Dump(Shell("(" + until_first_has_ended + TimeIsOver() + "exec sleep 1000) & echo early")),
              FailsWith(absl::StatusCode::kDeadlineExceeded, "a process that it left behind still held its output"));
}

TEST_F(HookRunnerTest, ASinkThatTakesNoMoreEndsTheDump) {
  uint64_t taken = 0;
  EXPECT_THAT(Make({"yes"}, {"true"})
                  ->Dump("main",
                         [&](absl::string_view bytes) {
                           taken += bytes.size();
                           return taken < (4u << 20) ? absl::OkStatus() : absl::ResourceExhaustedError("no space left");
                         }),
              FailsWith(absl::StatusCode::kResourceExhausted, "no space left"));
}

// The end of its input may be what makes a restore final.
TEST_F(HookRunnerTest, ADumpThatCannotBeReadToItsEndIsNotEndedByAnEndOfInput) {
  const std::string path = folder_ / "final";
  int pieces = 0;
  EXPECT_THAT(Make({"true"}, Shell(absl::StrCat("cat >/dev/null; echo yes >", path)))
                  ->Restore("main",
                            [&]() -> absl::StatusOr<std::string> {
                              if (++pieces < 3) return std::string(1 << 20, 'x');
                              return absl::DataLossError("object 12ab is damaged");
                            }),
              FailsWith(absl::StatusCode::kDataLoss, "object 12ab is damaged"));
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(HookRunnerTest, ADumpIsCancelledThoughItIsSilent) {
  const auto runner = Make({"sleep", "1000"}, {"cat"});
  cancelled_ = true;
  EXPECT_THAT(runner->Dump("main", [](absl::string_view) { return absl::OkStatus(); }),
              FailsWith(absl::StatusCode::kCancelled, "dump command (sleep) was stopped as asked"));
  RB_EXPECT_OK(runner->Restore("main", [&] { return std::string(); })) << "a restore is not asked";
}

TEST_F(HookRunnerTest, ItHasASmallEnvironmentNoOtherFilesAndNoInput) {
  setenv("RB_SECRET_OF_THE_AGENT", "1", 1);
  RB_ASSERT_OK_AND_ASSIGN(const std::string environment, Dump({"env"}));
  std::vector<std::string> keys;
  for (const absl::string_view line : absl::StrSplit(environment, '\n', absl::SkipEmpty())) {
    keys.emplace_back(line.substr(0, line.find('=')));
  }
  EXPECT_THAT(keys, UnorderedElementsAre("PATH", "HOME", "USER", "LOGNAME", "LANG"));
  RB_ASSERT_OK_AND_ASSIGN(const std::string seen, Dump(Shell("pwd; cat; ls /proc/$$/fd; readlink /proc/$$/fd/0")));
  EXPECT_THAT(seen, AllOf(HasSubstr("/\n0\n1\n2\n"), Not(HasSubstr("\n3\n")), HasSubstr("/dev/null")));
}

TEST_F(HookRunnerTest, ItRunsAsItsUser) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can run a hook as another user";
  user_ = [] { return LookUpUser("12345:12346"); };
  RB_ASSERT_OK_AND_ASSIGN(const std::string user, Dump(Shell("id -u; id -g; id -G")));
  EXPECT_EQ(user, "12345\n12346\n12346\n");
  user_ = [] { return LookUpUser("no-such-user"); };
  EXPECT_THAT(Dump({"true"}), FailsWith(absl::StatusCode::kNotFound, "there is no user no-such-user"));
}

TEST_F(HookRunnerTest, WhatAKilledAgentLeftRunningIsEndedFirst) {
  // An agent that is killed while its hook runs: the hook lives on, and with it a restore half-way.
  const std::string path = folder_ / "begun";
  const pid_t agent = fork();
  ASSERT_GE(agent, 0);
  if (agent == 0) {
    Make({"true"}, Shell(absl::StrCat("trap '' TERM; sleep 1000 & echo $$ $! >", path, ".tmp; mv ", path, ".tmp ", path,
                                      "; while :; do wait; done")))
        ->Restore("main",
                  [&]() -> absl::StatusOr<std::string> {
                    while (!std::filesystem::exists(path)) SystemClock().Sleep(absl::Milliseconds(1));
                    kill(getpid(), SIGKILL);
                    return std::string();
                  })
        .IgnoreError();
    _exit(1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(agent, &status, 0), agent);
  ASSERT_TRUE(WIFSIGNALED(status));
  RB_ASSERT_OK_AND_ASSIGN(const std::string pids, ReadFile(path));
  std::vector<int> left;
  for (const absl::string_view text : absl::StrSplit(pids, absl::ByAnyChar(" \n"), absl::SkipEmpty())) {
    ASSERT_TRUE(absl::SimpleAtoi(text, &left.emplace_back()));
    RB_EXPECT_OK(IdentifyProcess(left.back()));
  }
  ASSERT_EQ(left.size(), 2u);
  EXPECT_FALSE(NobodyIsWrittenDown());
  RB_ASSERT_OK(Dump({"echo", "x"}));
  for (const int pid : left) EXPECT_THAT(IdentifyProcess(pid), FailsWith(absl::StatusCode::kNotFound, ""));
  EXPECT_TRUE(NobodyIsWrittenDown());
}

TEST_F(HookRunnerTest, WhoeverHasThatNumberByNowIsLeftAlone) {
  const pid_t other = fork();
  ASSERT_GE(other, 0);
  if (other == 0) {
    setsid();
    pause();
    _exit(0);
  }
  RB_ASSERT_OK(MakeFolders(folder_ / "state/hooks"));
  // The same number, begun at another time: not what was written down.
  RB_ASSERT_OK(WriteFileDurably(folder_ / "state/hooks/bot", absl::StrCat(other, " 1 ", BootId(), "\n")));
  RB_EXPECT_OK(Dump({"echo", "x"}));
  RB_EXPECT_OK(IdentifyProcess(other));
  RB_ASSERT_OK(WriteFileDurably(folder_ / "state/hooks/bot", "nonsense"));
  RB_EXPECT_OK(Dump({"echo", "x"}));
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
}

TEST_F(HookRunnerTest, NamesAreSortedAndOthersAreNotFound) {
  HookRunner::Options options;
  options.service = "bot";
  options.state_folder = folder_ / "state";
  options.hooks.resize(2);
  options.hooks[0].name = "main";
  options.hooks[1].name = "audit";
  HookRunner runner(std::move(options), SystemClock());
  EXPECT_THAT(runner.Names(), ElementsAre("audit", "main"));
  EXPECT_THAT(runner.Dump("other", nullptr), FailsWith(absl::StatusCode::kNotFound, "bot has no hook for it"));
}

}  // namespace
}  // namespace rb::agent
