#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/adapters/supervisor/make_supervisor.h"
#include "agent/adapters/supervisor/process_supervisor.h"
#include "agent/adapters/supervisor/spawn.h"
#include "agent/core/ports/fake_supervisor.h"
#include "common/clock.h"
#include "common/test_util.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

using ::rb::testing::FailsWith;
using ::rb::testing::TemporaryFolder;
using ::testing::HasSubstr;
using ::testing::Not;
using Activity = UnitState::Activity;

// Looks again until the condition holds; false after 20 s.
bool Eventually(const std::function<bool()>& condition) {
  const absl::Duration deadline = SystemClock().Monotonic() + absl::Seconds(20);
  while (!condition()) {
    if (SystemClock().Monotonic() > deadline) return false;
    SystemClock().Sleep(absl::Milliseconds(2));
  }
  return true;
}

std::string Contents(const std::string& path) { return ReadFile(path).value_or(""); }
bool Alive(pid_t pid) { return IdentifyProcess(pid).ok(); }

ProcessSupervisor::Options ShellService(const TemporaryFolder& folder, const std::string& script) {
  ProcessSupervisor::Options options;
  options.service = "bot";
  options.command = {"/bin/sh", "-c", script};
  options.folder = folder.path();
  options.log_path = folder / "bot.log";
  options.state_folder = folder / "state";
  options.restart_delay = absl::Milliseconds(20);
  options.user = LookUpUid(geteuid(), getegid());
  return options;
}

std::unique_ptr<ProcessSupervisor> Make(const ProcessSupervisor::Options& options) {
  absl::StatusOr<std::unique_ptr<ProcessSupervisor>> made = ProcessSupervisor::Create(options, SystemClock());
  EXPECT_THAT(made, rb::testing::IsOk());
  return made.ok() ? *std::move(made) : nullptr;
}

// One suite for the port's fake and the real one.
struct Subject {
  std::string name;
  std::function<std::unique_ptr<Supervisor>(const TemporaryFolder&)> make;
};
void PrintTo(const Subject& subject, std::ostream* os) { *os << subject.name; }

class SupervisorConformance : public ::testing::TestWithParam<Subject> {
 protected:
  void SetUp() override { supervisor_ = GetParam().make(folder_); }
  void TearDown() override { RB_EXPECT_OK(supervisor_->Stop(absl::Seconds(10))); }
  UnitState State() { return supervisor_->GetState().value_or(UnitState()); }

  TemporaryFolder folder_;
  std::unique_ptr<Supervisor> supervisor_;
};

TEST_P(SupervisorConformance, IsInactiveBeforeItIsStarted) {
  EXPECT_EQ(State().activity, Activity::kInactive);
  EXPECT_EQ(State().main_pid, 0);
}

TEST_P(SupervisorConformance, StartMakesItActiveWithAProcessAndAnInvocation) {
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  EXPECT_EQ(State().activity, Activity::kActive);
  EXPECT_GT(State().main_pid, 0);
  EXPECT_NE(State().invocation, "");
  EXPECT_EQ(State().restarts, 0u);
  EXPECT_EQ(State().last_failure, "");
}

TEST_P(SupervisorConformance, StartingWhatRunsChangesNothing) {
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  const UnitState before = State();
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  EXPECT_EQ(State().main_pid, before.main_pid);
  EXPECT_EQ(State().invocation, before.invocation);
}

TEST_P(SupervisorConformance, StopMakesItInactiveAndStoppingAgainIsFine) {
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_EQ(State().activity, Activity::kInactive);
  EXPECT_EQ(State().main_pid, 0);
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
}

TEST_P(SupervisorConformance, EachStartIsANewInvocation) {
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  const std::string first = State().invocation;
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  EXPECT_NE(State().invocation, first);
  EXPECT_EQ(State().restarts, 0u);
}

INSTANTIATE_TEST_SUITE_P(
    All, SupervisorConformance,
    ::testing::Values(Subject{"Fake", [](const TemporaryFolder&) { return std::make_unique<FakeSupervisor>(); }},
                      Subject{"Process",
                              [](const TemporaryFolder& folder) { return Make(ShellService(folder, "sleep 1000")); }}),
    [](const ::testing::TestParamInfo<Subject>& subject) { return subject.param.name; });

TEST(FakeSupervisor, FailsOnDemand) {
  FakeSupervisor fake;
  fake.FailStart(absl::UnavailableError("no bus"));
  EXPECT_THAT(fake.Start(absl::Seconds(1)), FailsWith(absl::StatusCode::kUnavailable, "no bus"));
  fake.FailStart(absl::OkStatus());
  fake.DieAtStart("exited with status 1");
  RB_ASSERT_OK(fake.Start(absl::Seconds(1)));
  EXPECT_EQ(fake.GetState()->activity, Activity::kActivating);
  EXPECT_EQ(fake.GetState()->last_failure, "exited with status 1");
}

class ProcessSupervisorTest : public ::testing::Test {
 protected:
  void TearDown() override {
    if (supervisor_ != nullptr) {
      RB_EXPECT_OK(supervisor_->Stop(absl::Seconds(10)));
    }
  }
  UnitState State() { return supervisor_->GetState().value_or(UnitState()); }
  // Starts a service and waits for what it writes first.
  void Start(const std::string& script, absl::Duration stop_timeout = absl::Seconds(10)) {
    options_ = ShellService(folder_, script);
    options_.stop_timeout = stop_timeout;
    supervisor_ = Make(options_);
    RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  }
  void AwaitLog(const std::string& text) {
    ASSERT_TRUE(Eventually([&] { return absl::StrContains(Contents(folder_ / "bot.log"), text); }))
        << Contents(folder_ / "bot.log");
  }

  TemporaryFolder folder_;
  ProcessSupervisor::Options options_;
  std::unique_ptr<ProcessSupervisor> supervisor_;
};

TEST_F(ProcessSupervisorTest, RunsInItsFolderWithACleanEnvironmentAndNoDescriptorsOfOurs) {
  setenv("SECRET_OF_THE_AGENT", "x", 1);
  options_ = ShellService(folder_, "pwd; env; ls /proc/self/fd; cat /proc/$$/stat; echo done; exec sleep 1000");
  options_.environment = {{"PORT", "8001"}};
  supervisor_ = Make(options_);
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  AwaitLog("done\n");
  const std::string log = Contents(folder_ / "bot.log");
  EXPECT_THAT(log, HasSubstr(folder_.path() + "\n"));
  EXPECT_THAT(log, HasSubstr("PORT=8001\n"));
  EXPECT_THAT(log, HasSubstr("LANG=C.UTF-8\n"));
  EXPECT_THAT(log, Not(HasSubstr("SECRET_OF_THE_AGENT")));
  // 3 is the folder that ls reads.
  EXPECT_THAT(log, HasSubstr("\n0\n1\n2\n3\n"));
  EXPECT_THAT(log, Not(HasSubstr("\n4\n")));
  EXPECT_EQ(getpgid(static_cast<pid_t>(State().main_pid)), State().main_pid);
  EXPECT_EQ(getsid(static_cast<pid_t>(State().main_pid)), State().main_pid);
}

TEST_F(ProcessSupervisorTest, StartsAServiceThatDiesAgainAndCounts) {
  Start("echo run; exit 3");
  ASSERT_TRUE(Eventually([&] { return State().restarts >= 2; }));
  EXPECT_EQ(State().last_failure, "exited with status 3");
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_EQ(State().activity, Activity::kInactive);
  const std::string log = Contents(folder_ / "bot.log");
  SystemClock().Sleep(absl::Milliseconds(100));  // several restart delays: would it come back?
  EXPECT_EQ(Contents(folder_ / "bot.log"), log);
}

TEST_F(ProcessSupervisorTest, SaysWhichSignalKilledIt) {
  Start("exec sleep 1000");
  const UnitState before = State();
  ASSERT_EQ(kill(static_cast<pid_t>(before.main_pid), SIGKILL), 0);
  ASSERT_TRUE(Eventually([&] { return State().restarts == 1 && State().main_pid != 0; }));
  EXPECT_EQ(State().last_failure, "killed by signal 9");
  EXPECT_NE(State().invocation, before.invocation);
}

TEST_F(ProcessSupervisorTest, StopEndsTheWholeGroupEvenWhatIgnoresSigterm) {
  Start(
      "trap '' TERM; sh -c 'trap \"\" TERM; echo child $$; while :; do sleep 0.01; done' & echo up; "
      "while :; do sleep 0.01; done",
      absl::Milliseconds(50));
  AwaitLog("up\n");
  AwaitLog("child ");
  const std::string log = Contents(folder_ / "bot.log");
  pid_t child = 0;
  ASSERT_TRUE(Eventually([&] {
    const std::string now = Contents(folder_ / "bot.log");
    const std::string after = now.substr(now.find("child ") + 6);
    return absl::StrContains(after, "\n") && absl::SimpleAtoi(after.substr(0, after.find('\n')), &child);
  }));
  const auto leader = static_cast<pid_t>(State().main_pid);
  ASSERT_TRUE(Alive(child));
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_FALSE(Alive(leader));
  EXPECT_FALSE(Alive(child));
}

TEST_F(ProcessSupervisorTest, StopWaitsForWhatOutlivesTheMainProcess) {
  Start("sh -c 'trap \"\" TERM; echo $$ > pid; echo up; while :; do sleep 0.01; done' & exec sleep 1000",
        absl::Milliseconds(300));
  AwaitLog("up\n");
  pid_t child = 0;
  ASSERT_TRUE(absl::SimpleAtoi(Contents(folder_ / "pid"), &child));
  ASSERT_TRUE(Alive(child));
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_FALSE(Alive(child));
}

TEST_F(ProcessSupervisorTest, StopLetsAServiceEndByItself) {
  Start("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done");
  AwaitLog("up\n");
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_THAT(Contents(folder_ / "bot.log"), HasSubstr("bye\n"));
}

TEST_F(ProcessSupervisorTest, WhenTheMainProcessDiesTheRestIsEndedBeforeTheRestart) {
  Start("sleep 1000 & echo $! >> pids; echo up; exec sleep 1001");
  AwaitLog("up\n");
  pid_t helper = 0;
  ASSERT_TRUE(absl::SimpleAtoi(std::string(absl::StripAsciiWhitespace(Contents(folder_ / "pids"))), &helper));
  ASSERT_TRUE(Alive(helper));
  ASSERT_EQ(kill(static_cast<pid_t>(State().main_pid), SIGKILL), 0);
  ASSERT_TRUE(Eventually([&] { return State().restarts == 1 && State().main_pid != 0; }));
  EXPECT_FALSE(Alive(helper));
}

TEST_F(ProcessSupervisorTest, LeavesNoZombies) {
  Start("exit 1");
  ASSERT_TRUE(Eventually([&] { return State().restarts >= 3; }));
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST_F(ProcessSupervisorTest, SaysWhatCannotBeRun) {
  options_ = ShellService(folder_, "");
  options_.command = {"./no-such-program"};
  supervisor_ = Make(options_);
  EXPECT_THAT(supervisor_->Start(absl::Seconds(10)),
              FailsWith(absl::StatusCode::kNotFound, "cannot run ./no-such-program: No such file"));
  EXPECT_EQ(State().activity, Activity::kActivating);
  EXPECT_THAT(State().last_failure, HasSubstr("cannot run"));
  // It comes up once the program is there: an unfinished release is not given up for ever.
  std::ofstream(folder_ / "no-such-program") << "#!/bin/sh\nexec sleep 1000\n";
  ASSERT_EQ(chmod((folder_ / "no-such-program").c_str(), 0755), 0);
  EXPECT_TRUE(Eventually([&] { return State().activity == Activity::kActive; }));
}

TEST_F(ProcessSupervisorTest, RefusesALogThatIsALink) {
  options_ = ShellService(folder_, "echo hello");
  ASSERT_EQ(symlink((folder_ / "target").c_str(), options_.log_path.c_str()), 0);
  supervisor_ = Make(options_);
  EXPECT_FALSE(supervisor_->Start(absl::Seconds(10)).ok());
  EXPECT_NE(access((folder_ / "target").c_str(), F_OK), 0);
}

TEST_F(ProcessSupervisorTest, RunsAsAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
  options_ = ShellService(folder_, "id -u; id -g; id -G; echo done; exec sleep 1000");
  options_.switch_user = true;
  options_.user = LookUpUid(54321, 54322);
  supervisor_ = Make(options_);
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  AwaitLog("done\n");
  EXPECT_EQ(Contents(folder_ / "bot.log"), "54321\n54322\n54322\ndone\n");
}

TEST_F(ProcessSupervisorTest, OnlyOneSupervisesAService) {
  Start("exec sleep 1000");
  EXPECT_THAT(ProcessSupervisor::Create(options_, SystemClock()),
              FailsWith(absl::StatusCode::kUnavailable, "bot is supervised by another process"));
}

TEST_F(ProcessSupervisorTest, TheServiceOutlivesItsSupervisorAndIsTakenUpAgain) {
  Start("exec sleep 1000");
  const UnitState before = State();
  supervisor_.reset();
  ASSERT_TRUE(Alive(static_cast<pid_t>(before.main_pid)));
  supervisor_ = Make(options_);
  EXPECT_EQ(State().activity, Activity::kActive);
  EXPECT_EQ(State().main_pid, before.main_pid);
  EXPECT_EQ(State().invocation, before.invocation);
  EXPECT_EQ(State().restarts, 0u);
}

// Runs `body` in a process of its own, as an agent, and kills that with SIGKILL once `ready` holds.
void InAnAgentThatIsKilled(const std::function<void()>& body, const std::function<bool()>& ready) {
  const pid_t agent = fork();
  if (agent == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    body();
    for (;;) pause();
  }
  EXPECT_TRUE(Eventually(ready));
  EXPECT_EQ(kill(agent, SIGKILL), 0);
  EXPECT_EQ(waitpid(agent, nullptr, 0), agent);
}

TEST_F(ProcessSupervisorTest, AnAgentThatIsKilledLeavesTheServiceRunningAndTheNextTakesItUp) {
  options_ = ShellService(folder_, "echo $$; exec sleep 1000");
  InAnAgentThatIsKilled(
      [&] {
        auto agent = Make(options_);
        if (!agent->Start(absl::Seconds(10)).ok()) _exit(1);
        for (;;) pause();
      },
      [&] { return absl::StrContains(Contents(folder_ / "bot.log"), "\n"); });
  pid_t service = 0;
  ASSERT_TRUE(absl::SimpleAtoi(std::string(absl::StripAsciiWhitespace(Contents(folder_ / "bot.log"))), &service));
  ASSERT_TRUE(Alive(service));
  supervisor_ = Make(options_);
  EXPECT_EQ(State().activity, Activity::kActive);
  EXPECT_EQ(State().main_pid, service);
  // It is no child of ours: its end is seen all the same.
  ASSERT_EQ(kill(service, SIGKILL), 0);
  ASSERT_TRUE(Eventually([&] { return State().restarts == 1 && State().main_pid != 0; }));
  EXPECT_THAT(State().last_failure, HasSubstr("status is not known"));
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
}

TEST_F(ProcessSupervisorTest, AServiceThatDiedWhileNoAgentWatchedIsStartedAgain) {
  Start("exec sleep 1000");
  const auto pid = static_cast<pid_t>(State().main_pid);
  supervisor_.reset();
  ASSERT_EQ(kill(pid, SIGKILL), 0);
  ASSERT_EQ(waitpid(pid, nullptr, 0), pid);
  supervisor_ = Make(options_);
  ASSERT_TRUE(Eventually([&] { return State().activity == Activity::kActive; }));
  EXPECT_EQ(State().restarts, 1u);
}

// The tree may be half swapped: what was told to stop must not come back on its own.
TEST_F(ProcessSupervisorTest, AnAgentKilledWhileItStopsTheServiceNeverLetsItComeBack) {
  options_ = ShellService(folder_, "trap 'echo term' TERM; echo up; while :; do sleep 0.01; done");
  options_.stop_timeout = absl::Seconds(1);
  InAnAgentThatIsKilled(
      [&] {
        auto agent = Make(options_);
        if (!agent->Start(absl::Seconds(10)).ok()) _exit(1);
        if (!Eventually([&] { return absl::StrContains(Contents(folder_ / "bot.log"), "up\n"); })) _exit(1);
        (void)agent->Stop(absl::Seconds(100));
      },
      [&] { return absl::StrContains(Contents(folder_ / "bot.log"), "term\n"); });
  supervisor_ = Make(options_);
  EXPECT_NE(State().activity, Activity::kActive);
  ASSERT_TRUE(Eventually([&] { return State().activity == Activity::kInactive; }));
  SystemClock().Sleep(absl::Milliseconds(100));
  EXPECT_EQ(State().activity, Activity::kInactive);
  EXPECT_EQ(Contents(folder_ / "bot.log").find("up\n", 3), std::string::npos);
}

// The process id in the run file belongs to somebody else by now.
TEST_F(ProcessSupervisorTest, NeverTouchesAProcessThatGotTheSameId) {
  const pid_t other = fork();
  if (other == 0) {
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execl("/bin/sleep", "sleep", "1000", nullptr);
    _exit(127);
  }
  ASSERT_TRUE(Eventually([&] { return getpgid(other) == other; }));
  const absl::StatusOr<ProcessIdentity> identity = IdentifyProcess(other);
  RB_ASSERT_OK(identity);
  options_ = ShellService(folder_, "exec sleep 1000");
  for (const bool other_boot : {false, true}) {
    SCOPED_TRACE(other_boot);
    RB_ASSERT_OK(MakeFolders(options_.state_folder));
    std::ofstream(options_.state_folder + "/bot.run")
        << "wanted=0\npid=" << other << "\nstart_ticks=" << identity->start_ticks - (other_boot ? 0 : 1)
        << "\nboot_id=" << (other_boot ? "another" : identity->boot_id) << "\ninvocation=x\nrestarts=0\nend=1\n";
    supervisor_ = Make(options_);
    ASSERT_TRUE(Eventually([&] { return State().activity == Activity::kInactive; }));
    RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
    supervisor_.reset();
    EXPECT_TRUE(Alive(other));
  }
  kill(other, SIGKILL);
  waitpid(other, nullptr, 0);
}

TEST_F(ProcessSupervisorTest, ADamagedRunFileIsSaid) {
  options_ = ShellService(folder_, "exec sleep 1000");
  RB_ASSERT_OK(MakeFolders(options_.state_folder));
  std::ofstream(options_.state_folder + "/bot.run") << "wanted=1\npid=";
  EXPECT_THAT(ProcessSupervisor::Create(options_, SystemClock()),
              FailsWith(absl::StatusCode::kDataLoss, "the run file is damaged"));
}

TEST(MakeSupervisor, MakesAProcessSupervisorFromTheConfig) {
  TemporaryFolder folder;
  v1::AgentServiceConfig config;
  config.set_tree(folder.path());
  config.mutable_process()->add_command("sleep");
  config.mutable_process()->add_command("1000");
  config.mutable_process()->mutable_stop_timeout()->set_seconds(3);
  RB_ASSERT_OK_AND_ASSIGN(const auto supervisor, MakeSupervisor("bot", config, folder.path(), SystemClock()));
  RB_ASSERT_OK(supervisor->Start(absl::Seconds(10)));
  EXPECT_EQ(supervisor->GetState()->activity, Activity::kActive);
  RB_ASSERT_OK(supervisor->Stop(absl::Seconds(10)));
  EXPECT_EQ(access((folder / "bot.log").c_str(), F_OK), 0);
}

TEST(MakeSupervisor, SystemdSaysWhenItCannotBeReached) {
  TemporaryFolder folder;
  // No bus of this machine, whatever it has.
  setenv("DBUS_SYSTEM_BUS_ADDRESS", ("unix:path=" + (folder / "none")).c_str(), 1);
  v1::AgentServiceConfig config;
  config.set_unit("rosey-bot.service");
  RB_ASSERT_OK_AND_ASSIGN(const auto supervisor, MakeSupervisor("bot", config, folder.path(), SystemClock()));
  EXPECT_THAT(supervisor->GetState(), FailsWith(absl::StatusCode::kUnavailable, "systemd cannot be reached"));
  EXPECT_THAT(supervisor->Stop(absl::Seconds(1)), FailsWith(absl::StatusCode::kUnavailable, "cannot be reached"));
  unsetenv("DBUS_SYSTEM_BUS_ADDRESS");
}

}  // namespace
}  // namespace rb::agent
