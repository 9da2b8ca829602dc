#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "agent/core/task/agent_state.h"
#include "agent/core/task/candidates.h"
#include "agent/core/task/verifier.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::testing::HasSubstr;

const std::vector<std::string> kServices = {"bot"};

template <typename Step>
Task MakeTask(const std::string& step_id, uint64_t fencing, Step step, const std::string& service = "bot") {
  Task task;
  task.operation_id = "op";
  task.step_id = step_id;
  task.fencing_number = fencing;
  task.service = service;
  task.step = std::move(step);
  return task;
}

TaskResult Done(const std::string& step_id, HostState state, Verdict verdict = Verdict::kUnknown) {
  TaskResult result;
  result.operation_id = "op";
  result.step_id = step_id;
  result.service = "bot";
  result.state = state;
  result.verdict = verdict;
  return result;
}

// Drives Decide and remembers what it was told, for replaying.
struct Driver {
  AgentState state;
  std::vector<AgentEvent> journal;
  std::vector<AgentEffect> Take(const AgentEvent& event) {
    AgentDecision decision = Decide(state, event, kServices);
    if (IsJournalled(state, event)) journal.push_back(event);
    state = std::move(decision.state);
    return decision.effects;
  }
};

template <typename Effect>
const Effect* Find(const std::vector<AgentEffect>& effects) {
  for (const AgentEffect& effect : effects) {
    if (const auto* found = std::get_if<Effect>(&effect)) return found;
  }
  return nullptr;
}

TEST(AgentState, AnOlderFencingNumberHasNoEffect) {
  Driver driver;
  ASSERT_NE(Find<RunStep>(driver.Take(TaskArrived{MakeTask("new", 7, PrepareStep())})), nullptr);
  driver.Take(StepEnded{Done("new", HostState::kPrepared)});
  const std::vector<AgentEffect> effects = driver.Take(TaskArrived{MakeTask("old", 6, CommitStep())});
  EXPECT_EQ(Find<RunStep>(effects), nullptr);
  const auto* sent = Find<SendResult>(effects);
  ASSERT_NE(sent, nullptr);
  EXPECT_THAT(std::string(sent->result.status.message()), HasSubstr("fencing number 6 is older than 7"));
  // Looking is always allowed, and raises nothing.
  EXPECT_NE(Find<RunStep>(driver.Take(TaskArrived{MakeTask("look", 0, InspectStep())})), nullptr);
}

// What CI deploys for us would be taken for somebody else's deploy.
TEST(AgentState, ARedeployIsOpenFromItsPreparationUntilItIsKeptOrReverted) {
  PrepareStep through_ci;
  through_ci.method = Method::kRedeploy;
  Driver driver;
  const auto open = [&] { return OpenOperation(driver.state, "bot"); };
  const auto run = [&](const Task& task, TaskResult result) {
    driver.Take(TaskArrived{task});
    driver.Take(StepEnded{std::move(result)});
  };
  EXPECT_EQ(open(), "");
  driver.Take(TaskArrived{MakeTask("p1", 1, through_ci)});
  EXPECT_EQ(open(), "op") << "before anything can change";
  driver.Take(StepEnded{Done("p1", HostState::kUntouched)});
  run(MakeTask("a1", 1, AwaitStep()), Done("a1", HostState::kCommitted));
  EXPECT_EQ(open(), "op");
  AgentState replayed;
  for (const AgentEvent& event : driver.journal) replayed = Decide(replayed, event, kServices).state;
  EXPECT_EQ(OpenOperation(replayed, "bot"), "op") << "an agent that was killed knows it still";
  TaskResult failed = Done("k0", HostState::kCommitted);
  failed.status = absl::InternalError("disk");
  run(MakeTask("k0", 1, KeepStep()), failed);
  EXPECT_EQ(open(), "op") << "it is not kept yet";
  run(MakeTask("k1", 1, KeepStep()), Done("k1", HostState::kKept));
  EXPECT_EQ(open(), "");

  run(MakeTask("p2", 2, through_ci), Done("p2", HostState::kUntouched));
  EXPECT_EQ(open(), "op");
  run(MakeTask("r2", 2, RevertStep()), Done("r2", HostState::kReverted));
  EXPECT_EQ(open(), "");

  // It was given up before CI was asked, or needs attention: the controller says that it is over.
  run(MakeTask("p3", 3, through_ci), Done("p3", HostState::kUntouched));
  driver.Take(OperationIsOver{"another"});
  EXPECT_EQ(open(), "op");
  driver.Take(OperationIsOver{"op"});
  EXPECT_EQ(open(), "");
  EXPECT_TRUE(std::holds_alternative<OperationIsOver>(driver.journal.back()));

  TaskResult refused = Done("p4", HostState::kUntouched);
  refused.status = absl::FailedPreconditionError("no");
  run(MakeTask("p4", 4, through_ci), refused);
  EXPECT_EQ(open(), "");
  run(MakeTask("p5", 5, PrepareStep()), Done("p5", HostState::kPrepared));
  EXPECT_EQ(open(), "") << "its own transaction says so";
}

TEST(AgentState, ARepeatedStepIsAnsweredFromTheRecordAndRunOnce) {
  Driver driver;
  const Task task = MakeTask("s", 1, PrepareStep());
  EXPECT_NE(Find<RunStep>(driver.Take(TaskArrived{task})), nullptr);
  EXPECT_TRUE(driver.Take(TaskArrived{task}).empty()) << "it is running";
  driver.Take(StepEnded{Done("s", HostState::kPrepared)});
  const std::vector<AgentEffect> effects = driver.Take(TaskArrived{task});
  EXPECT_EQ(Find<RunStep>(effects), nullptr);
  ASSERT_NE(Find<SendResult>(effects), nullptr);
  EXPECT_EQ(Find<SendResult>(effects)->result.state, HostState::kPrepared);
}

TEST(AgentState, ResultsAreOwedUntilTheControllerHasStoredThem) {
  Driver driver;
  driver.Take(TaskArrived{MakeTask("s", 1, PrepareStep())});
  driver.Take(StepEnded{Done("s", HostState::kPrepared)});
  EXPECT_NE(Find<SendResult>(driver.Take(LinkOpened{})), nullptr);
  driver.Take(ResultStored{"s"});
  EXPECT_TRUE(driver.Take(LinkOpened{}).empty());
}

TEST(AgentState, AnUnknownServiceIsRefusedAndABusyOneIsNotDisturbed) {
  Driver driver;
  const std::vector<AgentEffect> effects = driver.Take(TaskArrived{MakeTask("s", 1, PrepareStep(), "other")});
  EXPECT_EQ(Find<RunStep>(effects), nullptr);
  driver.Take(TaskArrived{MakeTask("a", 1, VerifyStep())});
  EXPECT_EQ(Find<RunStep>(driver.Take(TaskArrived{MakeTask("b", 1, PrepareStep())})), nullptr);
  // A revert makes it give way, and runs next.
  EXPECT_NE(Find<CancelRunning>(driver.Take(TaskArrived{MakeTask("r", 1, RevertStep())})), nullptr);
  const std::vector<AgentEffect> after = driver.Take(StepEnded{Done("a", HostState::kCommitted)});
  ASSERT_NE(Find<RunStep>(after), nullptr);
  EXPECT_EQ(Find<RunStep>(after)->task.step_id, "r");
}

// What happens after a commit when nobody is heard from, by policy and verdict.
TEST(AgentState, TheDeadMansTimer) {
  const struct {
    bool undo_when_unhealthy;
    bool undo_when_unconfirmed;
    Verdict verdict;
    bool reverts;
  } cases[] = {
      {true, false, Verdict::kHealthy, false},   // a lost report alone never undoes a healthy host
      {true, false, Verdict::kUnhealthy, true},  //
      {true, true, Verdict::kHealthy, true},     // a deploy that nobody confirms
      {false, false, Verdict::kUnhealthy, false},
  };
  for (const auto& one : cases) {
    Driver driver;
    CommitStep commit;
    commit.unattended.undo_when_unhealthy = one.undo_when_unhealthy;
    commit.unattended.undo_when_unconfirmed = one.undo_when_unconfirmed;
    driver.Take(TaskArrived{MakeTask("c", 1, commit)});
    const std::vector<AgentEffect> committed = driver.Take(StepEnded{Done("c", HostState::kCommitted)});
    const auto* armed = Find<ArmPatience>(committed);
    ASSERT_NE(armed, nullptr);
    const uint64_t number = armed->number;
    EXPECT_TRUE(driver.Take(PatienceEnded{"bot", number + 1}).empty()) << "a timer of another commit";
    const std::vector<AgentEffect> verify = driver.Take(PatienceEnded{"bot", number});
    ASSERT_NE(Find<RunStep>(verify), nullptr);
    EXPECT_EQ(Find<RunStep>(verify)->task.step_id, "alone/op/verify");
    const std::vector<AgentEffect> judged =
        driver.Take(StepEnded{Done("alone/op/verify", HostState::kCommitted, one.verdict)});
    ASSERT_NE(Find<SendResult>(judged), nullptr);
    EXPECT_TRUE(Find<SendResult>(judged)->result.done_alone);
    EXPECT_EQ(Find<RunStep>(judged) != nullptr, one.reverts);
  }
}

TEST(AgentState, AHostThatHasCommittedGoesOnToVerify) {
  CommitStep commit;
  commit.unattended.verify.deadline = absl::Seconds(60);
  commit.next_step_id = "v1";
  const Task task = MakeTask("c1", 3, commit);
  const auto begun = [](const std::vector<AgentEffect>& effects) {
    const auto* run = Find<RunStep>(effects);
    return run == nullptr ? "" : run->task.step_id;
  };
  {
    Driver driver;
    driver.Take(TaskArrived{task});
    const std::vector<AgentEffect> effects = driver.Take(StepEnded{Done("c1", HostState::kCommitted)});
    EXPECT_EQ(Find<SendResult>(effects)->result.began_step_id, "v1");
    ASSERT_EQ(begun(effects), "v1");
    const Task& verification = Find<RunStep>(effects)->task;
    EXPECT_EQ(std::get<VerifyStep>(verification.step).policy.deadline, absl::Seconds(60));
    EXPECT_EQ(verification.fencing_number, 3u);
    // A controller that does not know of it asks for it: it runs once.
    EXPECT_TRUE(driver.Take(TaskArrived{verification}).empty());
    AgentState replayed;
    for (const AgentEvent& event : driver.journal) replayed = Decide(replayed, event, kServices).state;
    EXPECT_EQ(begun(Decide(replayed, Restarted{}, kServices).effects), "v1") << "a restart goes on with it";
    // What is given again does not promise what may be over and forgotten.
    EXPECT_EQ(Find<SendResult>(driver.Take(TaskArrived{task}))->result.began_step_id, "");
    EXPECT_EQ(Find<SendResult>(driver.Take(LinkOpened{}))->result.began_step_id, "");
    driver.Take(StepEnded{Done("v1", HostState::kCommitted, Verdict::kHealthy)});
    EXPECT_EQ(Find<SendResult>(driver.Take(TaskArrived{verification}))->result.verdict, Verdict::kHealthy);
  }
  {
    Driver driver;
    driver.Take(TaskArrived{task});
    TaskResult failed = Done("c1", HostState::kCommitted);
    failed.status = absl::InternalError("does not start");
    const std::vector<AgentEffect> effects = driver.Take(StepEnded{failed});
    EXPECT_EQ(Find<SendResult>(effects)->result.began_step_id, "");
    EXPECT_EQ(begun(effects), "") << "a commit that failed is not verified";
  }
  {
    Driver driver;
    driver.Take(TaskArrived{task});
    driver.Take(TaskArrived{MakeTask("r1", 3, RevertStep())});
    const std::vector<AgentEffect> effects = driver.Take(StepEnded{Done("c1", HostState::kCommitted)});
    EXPECT_EQ(Find<SendResult>(effects)->result.began_step_id, "");
    EXPECT_EQ(begun(effects), "r1") << "whoever waits comes first";
  }
}

TEST(AgentState, WhoeverKeepsOrRevertsTakesOverFromTheTimer) {
  Driver driver;
  driver.Take(TaskArrived{MakeTask("c", 1, CommitStep())});
  const uint64_t number = Find<ArmPatience>(driver.Take(StepEnded{Done("c", HostState::kCommitted)}))->number;
  driver.Take(TaskArrived{MakeTask("k", 1, KeepStep())});
  driver.Take(StepEnded{Done("k", HostState::kKept)});
  EXPECT_TRUE(driver.Take(PatienceEnded{"bot", number}).empty());
}

TEST(AgentState, ReplayingTheJournalGivesTheSameAndFinishesWhatRan) {
  Driver driver;
  driver.Take(TaskArrived{MakeTask("p", 3, PrepareStep())});
  driver.Take(StepEnded{Done("p", HostState::kPrepared)});
  driver.Take(ResultStored{"p"});
  driver.Take(TaskArrived{MakeTask("c", 3, CommitStep())});
  AgentState replayed;
  for (const AgentEvent& event : driver.journal) replayed = Decide(std::move(replayed), event, kServices).state;
  EXPECT_EQ(replayed.services.at("bot").highest_fencing_number, 3u);
  EXPECT_TRUE(replayed.owed.empty());
  const AgentDecision restarted = Decide(replayed, Restarted{}, kServices);
  ASSERT_NE(Find<RunStep>(restarted.effects), nullptr);
  EXPECT_EQ(Find<RunStep>(restarted.effects)->task.step_id, "c");
}

TEST(Verifier, HealthyFromTheFirstRoundAfterWhichNothingFailed) {
  VerifyPolicy policy;
  policy.deadline = absl::Seconds(10);
  policy.soak = absl::Seconds(5);
  ProbeResult pass;
  pass.passed = true;
  ProbeResult fail;
  Verifier verifier(policy, absl::ZeroDuration());
  EXPECT_EQ(verifier.Take({pass, fail}, absl::Seconds(1)), Verdict::kUnknown);
  EXPECT_EQ(verifier.Take({pass, pass}, absl::Seconds(2)), Verdict::kUnknown);
  EXPECT_EQ(verifier.Take({fail, pass}, absl::Seconds(3)), Verdict::kUnknown);
  EXPECT_EQ(verifier.Take({pass, pass}, absl::Seconds(4)), Verdict::kUnknown);
  EXPECT_EQ(verifier.Take({pass, pass}, absl::Seconds(9)), Verdict::kHealthy);
  EXPECT_EQ(verifier.healthy_since(), absl::Seconds(4));
  Verifier late(policy, absl::ZeroDuration());
  EXPECT_EQ(late.Take({fail}, absl::Seconds(10)), Verdict::kUnhealthy);
  Verifier hopeless(policy, absl::ZeroDuration());
  fail.may_recover = false;
  EXPECT_EQ(hopeless.Take({fail}, absl::Seconds(1)), Verdict::kUnhealthy);
}

TEST(Verifier, WhatTheServiceDependsOnIsNotTheReleasesFault) {
  VerifyPolicy policy;
  policy.deadline = absl::Seconds(10);
  ProbeResult pass;
  pass.passed = true;
  ProbeResult external;
  external.external = true;
  // Not even when it is final, nor when it is past the deadline.
  external.may_recover = false;
  Verifier verifier(policy, absl::ZeroDuration());
  EXPECT_EQ(verifier.Take({pass, external}, absl::Seconds(1)), Verdict::kHealthy);
  Verifier late(policy, absl::ZeroDuration());
  EXPECT_EQ(late.Take({external, pass}, absl::Seconds(11)), Verdict::kHealthy);
  ProbeResult fail;
  Verifier both(policy, absl::ZeroDuration());
  EXPECT_EQ(both.Take({external, fail}, absl::Seconds(1)), Verdict::kUnknown) << "the service may still come up";
  EXPECT_EQ(both.Take({external, fail}, absl::Seconds(10)), Verdict::kUnhealthy);
}

Release MakeRelease(const std::string& name, const std::string& commit, int minute, Standing standing) {
  Release release;
  release.name = "bot/" + name;
  release.commit = commit;
  release.version = "v-" + name;
  release.captured_at = absl::UnixEpoch() + absl::Minutes(minute);
  release.standing = standing;
  release.durability = Durability::kProved;
  release.entry_count = 10;
  return release;
}

TEST(Candidates, WhatAReferenceMeans) {
  const std::vector<Release> releases = {
      MakeRelease("d", "dddd0000", 4, Standing::kUnknown), MakeRelease("c", "cccc0000", 3, Standing::kGood),
      MakeRelease("b", "bbbb0000", 2, Standing::kBad), MakeRelease("a", "aaaa0000", 1, Standing::kGood)};
  Current current;
  current.release_name = "bot/d";
  current.commit = "dddd0000";
  Components components;
  const auto first = [&](TargetReference::Kind kind, const std::string& name) -> std::string {
    TargetReference target;
    target.kind = kind;
    target.name = name;
    target.before = absl::UnixEpoch() + absl::Minutes(3);
    const std::vector<Candidate> chosen = ChooseReleases(target, releases, current, components);
    if (chosen.empty()) return "";
    return chosen[0].release.name + (chosen[0].refused_because.empty() ? "" : " refused");
  };
  using Kind = TargetReference::Kind;
  EXPECT_EQ(first(Kind::kLastGood, ""), "bot/c");
  EXPECT_EQ(first(Kind::kPrevious, ""), "bot/c");
  EXPECT_EQ(first(Kind::kBefore, ""), "bot/a");
  EXPECT_EQ(first(Kind::kNamed, "aaaa"), "bot/a");
  EXPECT_EQ(first(Kind::kNamed, "v-b"), "bot/b refused");
  EXPECT_EQ(first(Kind::kNamed, "bot/c"), "bot/c");
  EXPECT_EQ(first(Kind::kNamed, "c"), "bot/c");
  EXPECT_EQ(first(Kind::kNamed, "aa"), "") << "too short for a commit";
  current = Current();
  current.release_name = "bot/c";
  current.commit = "cccc0000";
  EXPECT_EQ(first(Kind::kLastGood, ""), "bot/a");
  components = {.code = false, .config = false, .data = true};
  EXPECT_EQ(first(Kind::kLastGood, ""), "bot/c") << "its data as it was, not that of another commit";
  components = Components();
  current.drifted = true;
  EXPECT_EQ(first(Kind::kLastGood, ""), "bot/c") << "changed by hand: its own release is the last good one";
}

TEST(Candidates, WhatIsBadDamagedOrEmptyIsTakenByForceAlone) {
  Release bad = MakeRelease("a", "aaaa0000", 1, Standing::kBad);
  Release damaged = MakeRelease("a", "aaaa0000", 1, Standing::kGood);
  damaged.durability = Durability::kCaptured;
  Release empty = MakeRelease("a", "aaaa0000", 1, Standing::kGood);
  empty.entry_count = 1;
  for (const auto& [release, why] :
       {std::make_pair(bad, "is bad"), std::make_pair(damaged, "is damaged"), std::make_pair(empty, "is empty")}) {
    TargetReference target;
    target.kind = TargetReference::Kind::kNamed;
    target.name = "aaaa0000";
    std::vector<Candidate> chosen = ChooseReleases(target, {release}, Current(), Components());
    ASSERT_EQ(chosen.size(), 1u) << why;
    EXPECT_EQ(chosen[0].refused_because.rfind(why, 0), 0u) << chosen[0].refused_because;
    target.force = true;
    chosen = ChooseReleases(target, {release}, Current(), Components());
    ASSERT_EQ(chosen.size(), 1u) << why;
    EXPECT_EQ(chosen[0].refused_because, "");
  }
}

TEST(Candidates, ACommitIsBadOnlyWhenNoReleaseOfItIsGood) {
  std::vector<Release> releases = {MakeRelease("b", "cccc0000", 2, Standing::kBad)};
  EXPECT_EQ(WhyCommitIsBad(releases, "cccc0000").substr(0, 6), "is bad");
  // Rolled back from with a damaged database, or with a config that was changed by hand.
  releases.push_back(MakeRelease("a", "cccc0000", 1, Standing::kGood));
  EXPECT_EQ(WhyCommitIsBad(releases, "cccc0000"), "");
  EXPECT_EQ(WhyCommitIsBad(releases, "dddd0000"), "");
}

}  // namespace
}  // namespace rb::agent
