// Method B in plans and operations: CI is asked once, the agents decide, and nothing is reverted under CI's hands.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "controller/core/operation.h"
#include "controller/core/plan.h"

namespace rb::controller {
namespace {

using ::testing::HasSubstr;

const char kCommit[] = "1111111111111111111111111111111111111111";

Candidate BackupOf(const std::string& commit, const std::string& refused = "") {
  Candidate candidate;
  candidate.method = Method::kBackup;
  candidate.release.emplace();
  candidate.release->name = "bot/a";
  candidate.release->commit = commit;
  candidate.release->durability = Durability::kProved;
  candidate.release->standing = Standing::kGood;
  candidate.commit = commit;
  candidate.version = "v1";
  candidate.refused_because = refused;
  return candidate;
}

struct World {
  Fleet fleet;
  std::map<std::string, Inspection> inspections;
  PlanningHistory history;
  OperationSpec spec;

  World() {
    fleet.environments.resize(1);
    fleet.environments[0].name = "prod";
    FleetService service;
    service.name = "bot";
    service.hosts["prod"] = {"p1", "p2"};
    service.wave = {1, 0};
    service.has_ci = true;
    fleet.services["bot"] = service;
    for (const char* host : {"p1", "p2"}) {
      inspections[host].connected = true;
      inspections[host].candidates = {BackupOf(kCommit)};
    }
    spec.environment = "prod";
    spec.service = "bot";
    spec.reason = "x";
    spec.target.kind = TargetReference::Kind::kNamed;
    spec.target.name = "v1";
  }
  Plan Make() { return MakePlan(ResolveScope(spec, fleet), fleet, inspections, history); }
};

TEST(RedeployPlan, IsTheLastFallbackOfTheOthers) {
  World world;
  const Plan plan = world.Make();
  ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
  for (const HostPlan& host : plan.hosts) {
    EXPECT_EQ(host.method, Method::kBackup);
    ASSERT_EQ(host.fallbacks.size(), 1u);
    EXPECT_EQ(host.fallbacks[0].method, Method::kRedeploy);
    EXPECT_EQ(host.fallbacks[0].commit, kCommit);
  }
  EXPECT_EQ(plan.target, absl::Minutes(3));
}

TEST(RedeployPlan, IsForAllHostsAtOnceWhereOneHasNoOtherSource) {
  World world;
  world.inspections["p2"].candidates.clear();
  const Plan plan = world.Make();
  ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
  ASSERT_EQ(plan.hosts.size(), 2u);
  for (const HostPlan& host : plan.hosts) EXPECT_EQ(host.method, Method::kRedeploy);
  EXPECT_EQ(plan.wave_count, 1u);
  EXPECT_EQ(plan.target, absl::Minutes(10));
  // A damaged backup is a reason as well.
  world.inspections["p2"].candidates = {BackupOf(kCommit, "is damaged or unfinished")};
  EXPECT_EQ(world.Make().hosts.at(0).method, Method::kRedeploy);
}

TEST(RedeployPlan, SaysWhyItIsNotOffered) {
  World world;
  world.spec.method = Method::kRedeploy;
  ASSERT_FALSE(world.Make().refusal.refused());
  const auto refused = [](World& changed) {
    const Plan plan = changed.Make();
    EXPECT_EQ(plan.refusal.code, Refusal::Code::kNoCandidate);
    return plan.refusal.message;
  };
  World off = world;
  off.fleet.services["bot"].ci_off_because = "runners are down";
  EXPECT_THAT(refused(off), HasSubstr("switched off in the fleet file: runners are down"));
  World none = world;
  none.fleet.services["bot"].has_ci = false;
  EXPECT_THAT(refused(none), HasSubstr("names no CI"));
  World unavailable = world;
  unavailable.history.ci_unavailable_because = "GitHub answered 401";
  EXPECT_THAT(refused(unavailable), HasSubstr("GitHub answered 401"));
  World some = world;
  some.spec.hosts = {"p1"};
  EXPECT_THAT(refused(some), HasSubstr("--host"));
  World bad = world;
  bad.inspections["p2"].candidates = {BackupOf(kCommit, "is bad: it burns")};
  EXPECT_THAT(refused(bad), HasSubstr("is bad: it burns"));
  // With another source it is a note.
  off.spec.method = Method::kAuto;
  const Plan plan = off.Make();
  EXPECT_FALSE(plan.refusal.refused());
  EXPECT_THAT(plan.notes, ::testing::Contains(HasSubstr("redeploy through CI is not offered")));
}

// An operation, driven by hand.
class Op {
 public:
  explicit Op(const Plan& plan) {
    Accepted accepted;
    accepted.id = "op-1";
    accepted.plan = plan;
    Take(accepted);
    Take(LockTaken{});
  }
  template <typename Body>
  void Take(Body body) {
    Event event;
    event.sequence = operation.last_sequence + 1;
    event.elapsed = absl::Seconds(static_cast<double>(event.sequence));
    event.body = std::move(body);
    const OperationState before = operation.state;
    Decision decision = Decide(operation, event);
    operation = std::move(decision.operation);
    if (operation.state != before) {
      EXPECT_TRUE(IsFinal(operation.state) || operation.state != before);
    }
    for (Effect& effect : decision.effects) {
      if (const auto* ask = std::get_if<AskCi>(&effect)) asked.push_back(*ask);
      if (const auto* cancel = std::get_if<CancelCi>(&effect)) cancelled.push_back(*cancel);
    }
  }
  void Answer(const std::string& host, HostState state, Verdict verdict = Verdict::kUnknown,
              StatusCode code = StatusCode::kOk) {
    StepEnded ended;
    ended.host = host;
    for (const HostProgress& progress : operation.hosts) {
      if (progress.plan.host == host) ended.result.step_id = progress.step_id;
    }
    ASSERT_FALSE(ended.result.step_id.empty()) << host << " is asked for nothing";
    ended.result.state = state;
    ended.result.verdict = verdict;
    ended.result.code = code;
    ended.result.release.name = "bot/before";
    Take(ended);
  }
  void AnswerAll(HostState state, Verdict verdict = Verdict::kUnknown, StatusCode code = StatusCode::kOk) {
    for (const char* host : {"p1", "p2"}) Answer(host, state, verdict, code);
  }
  StepKind kind(size_t host) const { return operation.hosts[host].step_kind; }

  Operation operation;
  std::vector<AskCi> asked;
  std::vector<CancelCi> cancelled;
};

Plan Redeploy() {
  World world;
  world.spec.method = Method::kRedeploy;
  return world.Make();
}

TEST(RedeployOperation, AsksOnceAndBelievesTheAgents) {
  Op op(Redeploy());
  op.AnswerAll(HostState::kUntouched);
  ASSERT_EQ(op.asked.size(), 1u);
  EXPECT_EQ(op.asked[0].key, "op-1-1");
  EXPECT_EQ(op.asked[0].commit, kCommit);
  EXPECT_EQ(op.operation.state, OperationState::kCommitting);
  EXPECT_FALSE(op.operation.hosts[0].busy()) << "nothing is awaited before there is a run";
  op.Take(CiStarted{"op-1-1", "7", "https://ci/7", ""});
  EXPECT_EQ(op.kind(0), StepKind::kAwait);
  // CI has not said anything yet.
  op.AnswerAll(HostState::kCommitted, Verdict::kHealthy);
  EXPECT_EQ(op.operation.state, OperationState::kKeeping);
  ASSERT_EQ(op.cancelled.size(), 1u);
  EXPECT_TRUE(op.cancelled[0].leave);
  op.AnswerAll(HostState::kKept);
  EXPECT_EQ(op.operation.state, OperationState::kSucceeded);
  EXPECT_EQ(op.asked.size(), 1u);
}

TEST(RedeployOperation, ASuccessOfCiAloneIsNone) {
  Op op(Redeploy());
  op.AnswerAll(HostState::kUntouched);
  op.Take(CiStarted{"op-1-1", "7", "", ""});
  const std::string first = op.operation.hosts[0].step_id;
  op.Take(CiEnded{"op-1-1", CiEnded::Outcome::kSucceeded, "all well"});
  EXPECT_NE(op.operation.hosts[0].step_id, first) << "looks once more, for a short time";
  op.AnswerAll(HostState::kUntouched, Verdict::kUnhealthy, StatusCode::kRefused);
  EXPECT_EQ(op.operation.state, OperationState::kReverting);
  op.AnswerAll(HostState::kUntouched);
  EXPECT_EQ(op.operation.state, OperationState::kReverted);
}

TEST(RedeployOperation, AFailureOfCiAloneIsNone) {
  Op op(Redeploy());
  op.AnswerAll(HostState::kUntouched);
  op.Take(CiStarted{"op-1-1", "7", "", ""});
  op.Take(CiEnded{"op-1-1", CiEnded::Outcome::kFailed, "the mail was not sent"});
  op.AnswerAll(HostState::kCommitted, Verdict::kHealthy);
  EXPECT_EQ(op.operation.state, OperationState::kKeeping);
}

TEST(RedeployOperation, NothingIsRevertedBeforeTheRunHasEnded) {
  Op op(Redeploy());
  op.AnswerAll(HostState::kUntouched);
  op.Take(CiStarted{"op-1-1", "7", "", ""});
  op.Take(AbortRequested{"alice", ""});
  ASSERT_EQ(op.cancelled.size(), 1u);
  EXPECT_FALSE(op.cancelled[0].leave);
  op.AnswerAll(HostState::kCommitted, Verdict::kUnknown, StatusCode::kCancelled);
  EXPECT_EQ(op.operation.state, OperationState::kCommitting);
  op.Take(CiEnded{"op-1-1", CiEnded::Outcome::kCancelled, ""});
  EXPECT_EQ(op.operation.state, OperationState::kReverting);
  op.AnswerAll(HostState::kReverted, Verdict::kHealthy);
  EXPECT_EQ(op.operation.state, OperationState::kReverted);
}

TEST(RedeployOperation, ARunThatIsLostLeavesTheHostsAndSaysSo) {
  Op op(Redeploy());
  op.AnswerAll(HostState::kUntouched);
  op.Take(CiStarted{"op-1-1", "7", "https://ci/7", ""});
  op.Take(AbortRequested{"alice", ""});
  op.AnswerAll(HostState::kCommitted, Verdict::kUnknown, StatusCode::kCancelled);
  op.Take(CiEnded{"op-1-1", CiEnded::Outcome::kLost, ""});
  EXPECT_EQ(op.operation.state, OperationState::kNeedsAttention);
  EXPECT_THAT(op.operation.summary, HasSubstr("https://ci/7"));
}

TEST(RedeployOperation, ARunThatNeverBeganHasChangedNothing) {
  Op op(Redeploy());
  op.AnswerAll(HostState::kUntouched);
  op.Take(CiEnded{"op-1-1", CiEnded::Outcome::kNeverRan, "the token has expired"});
  EXPECT_EQ(op.operation.state, OperationState::kAborted);
  EXPECT_THAT(op.operation.summary, HasSubstr("the token has expired"));
}

TEST(RedeployOperation, ARestartedControllerAsksForTheSameRun) {
  Op op(Redeploy());
  op.AnswerAll(HostState::kUntouched);
  const auto asks = [&] {
    std::vector<AskCi> found;
    for (const Effect& effect : OutstandingEffects(op.operation, "")) {
      if (const auto* ask = std::get_if<AskCi>(&effect)) found.push_back(*ask);
    }
    return found;
  };
  ASSERT_EQ(asks().size(), 1u);
  EXPECT_EQ(asks()[0].key, op.asked[0].key);
  EXPECT_TRUE(asks()[0].again);
  op.Take(CiStarted{"op-1-1", "7", "", ""});
  ASSERT_EQ(asks().size(), 1u);
  EXPECT_EQ(asks()[0].run, "7");
  EXPECT_EQ(asks()[0].commit, kCommit);
}

TEST(RedeployOperation, IsGoneOverToWhenAHostCannotBePrepared) {
  World world;
  Op op(world.Make());
  op.Answer("p1", HostState::kPrepared);
  op.Answer("p2", HostState::kUntouched, Verdict::kUnknown, StatusCode::kFailed);
  EXPECT_EQ(op.operation.state, OperationState::kPreparing);
  for (const HostProgress& host : op.operation.hosts) {
    EXPECT_EQ(MethodOf(host), Method::kRedeploy);
    EXPECT_TRUE(host.busy());
    EXPECT_EQ(host.plan.wave, 1u);
    EXPECT_EQ(host.target, absl::Minutes(10));
  }
  EXPECT_EQ(op.operation.plan.wave_count, 1u);
  op.AnswerAll(HostState::kUntouched);
  EXPECT_EQ(op.asked.size(), 1u);
  op.Take(CiStarted{"op-1-1", "7", "", ""});
  op.AnswerAll(HostState::kCommitted, Verdict::kHealthy);
  op.AnswerAll(HostState::kKept);
  EXPECT_EQ(op.operation.state, OperationState::kSucceeded);
  EXPECT_THAT(op.operation.hosts[1].plan.method_because, HasSubstr("no other source"));
}

}  // namespace
}  // namespace rb::controller
