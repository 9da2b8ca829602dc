// Needs a machine whose PID 1 is systemd, and root; makes and removes units under /run. So it does nothing unless
// RB_TEST_HOST=1 says that this is a host to be thrown away.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "agent/adapters/probe/probes.h"
#include "agent/adapters/supervisor/spawn.h"
#include "agent/adapters/supervisor/systemd_supervisor.h"
#include "common/clock.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::rb::testing::FailsWith;
using Activity = UnitState::Activity;

bool Eventually(const std::function<bool()>& condition) {
  const absl::Duration deadline = SystemClock().Monotonic() + absl::Seconds(20);
  while (!condition()) {
    if (SystemClock().Monotonic() > deadline) return false;
    SystemClock().Sleep(absl::Milliseconds(5));
  }
  return true;
}

class SystemdHostTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* host = std::getenv("RB_TEST_HOST");
    if (host == nullptr || std::string(host) != "1") GTEST_SKIP() << "only on a host that may be thrown away";
    ASSERT_EQ(access("/run/systemd/system", F_OK), 0);
  }
  void TearDown() override {
    if (unit_.empty()) return;
    RB_EXPECT_OK(supervisor_->Stop(absl::Seconds(20)));
    ASSERT_EQ(unlink(("/run/systemd/system/" + unit_).c_str()), 0);
    ASSERT_EQ(system("systemctl daemon-reload"), 0);
  }
  void Unit(const std::string& script, const std::string& more = "") {
    unit_ = absl::StrCat("rb-test-", getpid(), ".service");
    std::ofstream(absl::StrCat("/run/systemd/system/", unit_))
        << "[Service]\nExecStart=/bin/sh -c '" << script << "'\nRestart=always\nRestartSec=50ms\n"
        << more << "[Unit]\nStartLimitIntervalSec=0\n";
    ASSERT_EQ(system("systemctl daemon-reload"), 0);
    supervisor_ = std::make_unique<SystemdSupervisor>(unit_, SystemClock());
  }
  UnitState State() {
    absl::StatusOr<UnitState> state = supervisor_->GetState();
    EXPECT_THAT(state, rb::testing::IsOk());
    return state.value_or(UnitState());
  }

  std::string unit_;
  std::unique_ptr<SystemdSupervisor> supervisor_;
};

TEST_F(SystemdHostTest, StartsStopsAndNamesTheRun) {
  Unit("exec sleep 1000");
  EXPECT_EQ(State().activity, Activity::kInactive);
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  const UnitState first = State();
  EXPECT_EQ(first.activity, Activity::kActive);
  EXPECT_TRUE(IdentifyProcess(static_cast<pid_t>(first.main_pid)).ok());
  EXPECT_EQ(first.invocation.size(), 32u);
  EXPECT_EQ(first.restarts, 0u);
  EXPECT_EQ(first.last_failure, "");
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  EXPECT_EQ(State().main_pid, first.main_pid);
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_EQ(State().activity, Activity::kInactive);
  EXPECT_EQ(State().main_pid, 0);
  EXPECT_FALSE(IdentifyProcess(static_cast<pid_t>(first.main_pid)).ok());
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  EXPECT_NE(State().invocation, first.invocation);
  EXPECT_EQ(State().last_failure, "");
}

TEST_F(SystemdHostTest, AUnitThatLoopsIsNeverHealthyAndSaysWhy) {
  Unit("exit 7");
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  ASSERT_TRUE(Eventually([&] { return State().restarts >= 3; }));
  // Not while the next run has just begun.
  EXPECT_TRUE(Eventually([&] { return absl::StrContains(State().last_failure, "exited with status 7"); }));
  const auto probe = MakeUnitProbe(
      {}, *supervisor_, SystemClock(), [](int64_t pid) { return ProcessAge(static_cast<pid_t>(pid)); },
      [](int64_t pid) { return ProcessMemoryBytes(static_cast<pid_t>(pid)); });
  for (int i = 0; i < 50; ++i) EXPECT_FALSE(probe->Run({}).passed);
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_NE(State().activity, Activity::kActivating);
  // Started by somebody: counted anew.
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  EXPECT_LE(State().restarts, 2u);
}

TEST_F(SystemdHostTest, SeesARestart) {
  Unit("exec sleep 1000");
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  const UnitState before = State();
  ASSERT_EQ(kill(static_cast<pid_t>(before.main_pid), SIGKILL), 0);
  ASSERT_TRUE(Eventually([&] { return State().restarts == 1 && State().activity == Activity::kActive; }));
  EXPECT_NE(State().main_pid, before.main_pid);
  EXPECT_NE(State().invocation, before.invocation);
}

TEST_F(SystemdHostTest, StartsAUnitThatHitItsStartLimit) {
  Unit("exit 7", "[Unit]\nStartLimitBurst=2\nStartLimitIntervalSec=1000\n[Unit]\n");
  // The last assignment wins, and Unit() appends a limit of none: put it right.
  std::ofstream(absl::StrCat("/run/systemd/system/", unit_), std::ios::app) << "StartLimitIntervalSec=1000\n";
  ASSERT_EQ(system("systemctl daemon-reload"), 0);
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  ASSERT_TRUE(Eventually([&] { return State().activity == Activity::kFailed; }));
  RB_EXPECT_OK(supervisor_->Start(absl::Seconds(10)));
  ASSERT_TRUE(Eventually([&] { return State().activity == Activity::kFailed; }));
}

TEST_F(SystemdHostTest, WhatDependsOnItIsStoppedWithItAndStartedAgainIfItRan) {
  Unit("exec sleep 1000");
  const std::string runs = absl::StrCat("rb-test-runs-", getpid(), ".service");
  const std::string rests = absl::StrCat("rb-test-rests-", getpid(), ".service");
  for (const std::string& name : {runs, rests}) {
    std::ofstream("/run/systemd/system/" + name)
        << "[Unit]\nRequires=" << unit_ << "\nAfter=" << unit_ << "\n[Service]\nExecStart=/bin/sleep 1000\n";
  }
  ASSERT_EQ(system("systemctl daemon-reload"), 0);
  supervisor_ = std::make_unique<SystemdSupervisor>(unit_, SystemClock(), std::vector<std::string>{runs, rests});
  SystemdSupervisor first(runs, SystemClock());
  SystemdSupervisor second(rests, SystemClock());
  RB_ASSERT_OK(first.Start(absl::Seconds(10)));
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  EXPECT_EQ(first.GetState()->activity, Activity::kInactive) << "systemd stops it with what it needs";
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  EXPECT_EQ(first.GetState()->activity, Activity::kActive);
  EXPECT_EQ(second.GetState()->activity, Activity::kInactive) << "it did not run before either";
  // One that cannot start is said so; the service itself runs.
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));
  std::ofstream("/run/systemd/system/" + runs)
      << "[Unit]\nRequires=" << unit_ << "\nAfter=" << unit_ << "\n[Service]\nType=oneshot\nExecStart=/bin/false\n";
  ASSERT_EQ(system("systemctl daemon-reload"), 0);
  EXPECT_THAT(supervisor_->Start(absl::Seconds(10)),
              FailsWith(absl::StatusCode::kAborted, absl::StrCat("runs, but ", runs)));
  EXPECT_EQ(State().activity, Activity::kActive);
  for (const std::string& name : {runs, rests}) ASSERT_EQ(unlink(("/run/systemd/system/" + name).c_str()), 0);
}

TEST_F(SystemdHostTest, SaysWhatItCannotDo) {
  SystemdSupervisor none("rb-no-such-unit.service", SystemClock());
  EXPECT_THAT(none.GetState(), FailsWith(absl::StatusCode::kNotFound, "knows no unit"));
  EXPECT_THAT(none.Stop(absl::Seconds(5)), FailsWith(absl::StatusCode::kNotFound, "knows no unit"));
  EXPECT_THAT(none.Start(absl::Seconds(5)), FailsWith(absl::StatusCode::kNotFound, "not found"));
  Unit("trap \"\" TERM; echo up; while :; do sleep 0.1; done", "TimeoutStopSec=3s\n");
  RB_ASSERT_OK(supervisor_->Start(absl::Seconds(10)));
  const auto ready = MakeJournalProbe({.unit = unit_, .expect = "^up$"}, SystemClock());
  RB_ASSERT_OK(ready);
  ProbeContext context;
  context.started_at = SystemClock().Now() - absl::Seconds(10);
  ASSERT_TRUE(Eventually([&] { return (*ready)->Run(context).passed; }));
  EXPECT_THAT(supervisor_->Stop(absl::Milliseconds(200)),
              FailsWith(absl::StatusCode::kDeadlineExceeded, "has not stopped after 200ms"));
  EXPECT_EQ(State().activity, Activity::kDeactivating);
}

TEST_F(SystemdHostTest, TheJournalProbeReadsWhatWasLoggedSinceTheStart) {
  Unit("echo ERROR before; echo up; exec sleep 1000");
  absl::StatusOr<std::unique_ptr<Probe>> probe =
      MakeJournalProbe({.unit = unit_, .expect = "^up$", .forbid = "ERROR"}, SystemClock());
  RB_ASSERT_OK(probe);
  const auto start = [&] {
    (*probe)->BeforeStart();
    ProbeContext context;
    context.started_at = SystemClock().Now();
    context.started_at_monotonic = SystemClock().Monotonic();
    RB_EXPECT_OK(supervisor_->Start(absl::Seconds(10)));
    return context;
  };
  ProbeContext context = start();
  ASSERT_TRUE(Eventually([&] { return !(*probe)->Run(context).may_recover; }));
  EXPECT_EQ((*probe)->Run(context).observed, "\"ERROR before\"");
  RB_ASSERT_OK(supervisor_->Stop(absl::Seconds(10)));

  // The next release logs no error: what the one before it logged does not count.
  std::ofstream(absl::StrCat("/run/systemd/system/", unit_))
      << "[Service]\nExecStart=/bin/sh -c 'echo fine; echo up; exec sleep 1000'\n";
  ASSERT_EQ(system("systemctl daemon-reload"), 0);
  context = start();
  ASSERT_TRUE(Eventually([&] { return (*probe)->Run(context).passed; })) << (*probe)->Run(context).observed;
  // So it is for an agent that was restarted meanwhile, and knows only when the service was started.
  absl::StatusOr<std::unique_ptr<Probe>> later =
      MakeJournalProbe({.unit = unit_, .expect = "^up$", .forbid = "ERROR"}, SystemClock());
  RB_ASSERT_OK(later);
  EXPECT_TRUE((*later)->Run(context).passed);
  // And where nobody knows that, since systemd started it at boot: all of its run counts, and nothing else.
  absl::StatusOr<std::unique_ptr<Probe>> stranger =
      MakeJournalProbe({.unit = unit_, .expect = "^up$", .forbid = "ERROR"}, SystemClock());
  RB_ASSERT_OK(stranger);
  const ProbeResult seen = (*stranger)->Run(ProbeContext());
  EXPECT_TRUE(seen.passed) << seen.observed;
}

}  // namespace
}  // namespace rb::agent
