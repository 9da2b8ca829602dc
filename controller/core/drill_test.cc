#include "controller/core/drill.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"

namespace rb::controller {
namespace {

using testing::HasSubstr;

FaultReport Report(FaultReport::State state, uint32_t put_back = 0) {
  FaultReport report;
  report.state = state;
  report.what = "run.py: the first 100 bytes overwritten";
  report.put_back = put_back;
  return report;
}

// Takes a drill along, and keeps what it asks for.
class DrillTest : public testing::Test {
 protected:
  template <typename Body>
  void Take(Body body) {
    DrillEventRecord event;
    event.sequence = drill_.last_sequence + 1;
    event.at = absl::UnixEpoch() + now_;
    event.elapsed = now_;
    event.body = std::move(body);
    DrillDecision decision = DecideDrill(drill_, event);
    effects_ = std::move(decision.effects);
    journal_.push_back(event);
    drill_ = std::move(decision.drill);
  }
  void Accept(FaultKind fault, bool by_hand = false, bool needs_approval = false) {
    DrillAccepted body;
    body.id = "drill-1";
    body.spec.fault = fault;
    body.spec.environment = "test";
    body.spec.service = "bot";
    body.spec.by_hand = by_hand;
    body.policy.needs_approval = needs_approval;
    body.requested_by = "alice";
    body.hosts = {{"test-1", true}, {"test-2", true}};
    Take(std::move(body));
  }
  void Operation(DrillRole role, const std::string& id, bool ok = true) {
    Take(OperationBegan{role, id, "alice"});
    now_ += absl::Seconds(2);
    DrillOperation operation;
    operation.id = id;
    operation.ok = ok;
    operation.summary = ok ? "well" : "reverted";
    operation.recovery = absl::Seconds(1);
    operation.target = absl::Minutes(3);
    Take(OperationEnded{operation});
  }
  void Inject() {
    for (const char* host : {"test-1", "test-2"}) {
      Take(FaultAnswered{host, false, true, "", Report(FaultReport::State::kIn)});
    }
  }
  // Until the patience for noticing the fault is over.
  void WaitInVain(FaultKind fault) {
    Accept(fault);
    Operation(DrillRole::kSafety, "op-1");
    Inject();
    now_ += absl::Minutes(2);
    Take(DrillTimeUp{drill_.timer});
  }
  void See(const std::string& host, bool healthy, const std::string& kind = "unit") {
    Take(HostSeen{host, healthy, kind, kind + ": broken"});
  }
  void Notice(const std::string& kind = "unit") {
    for (int look = 0; look < 2; ++look) {
      now_ += absl::Seconds(1);
      See("test-1", false, kind);
      See("test-2", false, kind);
    }
  }
  void EndFaults(uint32_t put_back = 0) {
    for (const char* host : {"test-1", "test-2"}) {
      Take(FaultAnswered{host, true, true, "", Report(FaultReport::State::kEnded, put_back)});
    }
  }
  template <typename Effect>
  std::vector<Effect> Effects() const {
    std::vector<Effect> found;
    for (const DrillEffect& effect : effects_) {
      if (const auto* one = std::get_if<Effect>(&effect)) found.push_back(*one);
    }
    return found;
  }

  Drill drill_;
  absl::Duration now_;
  std::vector<DrillEffect> effects_;
  std::vector<DrillEventRecord> journal_;
};

TEST_F(DrillTest, MainRoad) {
  Accept(FaultKind::kBadCode);
  ASSERT_EQ(Effects<BeginOperation>().size(), 1u);
  EXPECT_EQ(Effects<BeginOperation>()[0].spec.kind, OperationKind::kBackup);
  EXPECT_EQ(Effects<BeginOperation>()[0].spec.drill_id, "drill-1");
  EXPECT_TRUE(Effects<SendFault>().empty()) << "nothing is broken before there is a safety release";
  Operation(DrillRole::kSafety, "op-1");
  EXPECT_EQ(Effects<SendFault>().size(), 2u);
  Inject();
  EXPECT_EQ(drill_.state, DrillState::kDetecting);
  Notice();
  EXPECT_EQ(drill_.state, DrillState::kRecovering);
  ASSERT_EQ(Effects<BeginOperation>().size(), 1u);
  EXPECT_EQ(Effects<BeginOperation>()[0].spec.kind, OperationKind::kRollback);
  EXPECT_EQ(drill_.hosts[0].detected_after, absl::Seconds(1)) << "when it was first seen, not when confirmed";
  Operation(DrillRole::kRecovery, "op-2");
  EXPECT_EQ(drill_.state, DrillState::kVerifying);
  Operation(DrillRole::kVerification, "op-3");
  EXPECT_EQ(drill_.state, DrillState::kUndoing);
  EXPECT_EQ(Effects<SendFault>().size(), 2u);
  EXPECT_TRUE(Effects<SendFault>()[0].end);
  EndFaults();
  EXPECT_EQ(drill_.state, DrillState::kPassed) << drill_.summary;
  for (const DrillPhase& phase : PhasesOf(drill_)) EXPECT_TRUE(phase.met) << phase.name;
  // The journal gives the same drill again.
  Drill again;
  for (const DrillEventRecord& event : journal_) again = DecideDrill(again, event).drill;
  EXPECT_EQ(again.state, drill_.state);
  EXPECT_EQ(again.summary, drill_.summary);
}

TEST_F(DrillTest, WithoutASafetyReleaseNothingIsBroken) {
  Accept(FaultKind::kBadCode);
  Operation(DrillRole::kSafety, "op-1", false);
  EXPECT_EQ(drill_.state, DrillState::kFailed);
  EXPECT_TRUE(Effects<SendFault>().empty());
}

TEST_F(DrillTest, OneHostThatCannotBeBrokenPutsTheOthersBack) {
  Accept(FaultKind::kBadCode);
  Operation(DrillRole::kSafety, "op-1");
  Take(FaultAnswered{"test-1", false, true, "", Report(FaultReport::State::kIn)});
  Take(FaultAnswered{"test-2", false, false, "not allowed", {}});
  EXPECT_EQ(drill_.state, DrillState::kUndoing);
  EXPECT_EQ(Effects<SendFault>().size(), 2u) << "whoever may have it is asked to end it";
  EndFaults(1);
  EXPECT_EQ(drill_.state, DrillState::kFailed);
  EXPECT_THAT(drill_.summary, HasSubstr("put back"));
}

TEST_F(DrillTest, AServiceThatJustStartsIsNotTheFaultNoticed) {
  Accept(FaultKind::kBadDatabase);
  Operation(DrillRole::kSafety, "op-1");
  Inject();
  Notice("http");
  EXPECT_EQ(drill_.state, DrillState::kDetecting) << "it was restarted a moment ago";
  Notice("sqlite");
  EXPECT_EQ(drill_.state, DrillState::kRecovering);
  EXPECT_EQ(drill_.hosts[0].detected_by, "sqlite: broken");
}

TEST_F(DrillTest, AServiceThatDoesNotAnswerYetIsNotBrokenCodeNoticed) {
  Accept(FaultKind::kBadCode);
  Operation(DrillRole::kSafety, "op-1");
  Inject();
  Notice("http");
  EXPECT_EQ(drill_.state, DrillState::kDetecting) << "any service that starts does not answer at first";
  now_ += drill_.policy.start;
  Notice("http");
  EXPECT_EQ(drill_.state, DrillState::kRecovering) << "it has had its time";
}

TEST_F(DrillTest, OneFailedLookIsNoDetection) {
  Accept(FaultKind::kBadCode);
  Operation(DrillRole::kSafety, "op-1");
  Inject();
  See("test-1", false);
  See("test-2", false);
  now_ += absl::Seconds(1);
  See("test-1", true);
  See("test-2", true);
  now_ += absl::Seconds(1);
  See("test-1", false);
  EXPECT_EQ(drill_.state, DrillState::kDetecting);
}

TEST_F(DrillTest, WhatNobodyNoticesIsAMissedTarget) {
  WaitInVain(FaultKind::kBadDatabase);
  EXPECT_EQ(drill_.state, DrillState::kRecovering);
  Operation(DrillRole::kRecovery, "op-2");
  Operation(DrillRole::kVerification, "op-3");
  EndFaults();
  EXPECT_EQ(drill_.state, DrillState::kMissedTarget);
  EXPECT_THAT(drill_.summary, HasSubstr("detect: never"));
}

TEST_F(DrillTest, WhatTheRecoveryLeavesBrokenIsNotPassed) {
  Accept(FaultKind::kBadCode);
  Operation(DrillRole::kSafety, "op-1");
  Inject();
  Notice();
  Operation(DrillRole::kRecovery, "op-2");
  Operation(DrillRole::kVerification, "op-3");
  EndFaults(1);
  EXPECT_EQ(drill_.state, DrillState::kMissedTarget);
}

TEST_F(DrillTest, StopInEveryStateEndsTheFaultWhereverItMayBe) {
  for (int steps = 0; steps < 5; ++steps) {
    drill_ = Drill();
    now_ = absl::ZeroDuration();
    Accept(FaultKind::kBadCode);
    if (steps > 0) Operation(DrillRole::kSafety, "op-1");
    if (steps > 1) Inject();
    if (steps > 2) Notice();
    if (steps > 3) Operation(DrillRole::kRecovery, "op-2");
    Take(IncidentSeen{"ben has begun op-9"});
    if (steps == 0) {
      EXPECT_EQ(drill_.state, DrillState::kStopped);
      continue;
    }
    EXPECT_EQ(drill_.state, DrillState::kUndoing) << steps;
    EXPECT_EQ(Effects<SendFault>().size(), 2u) << steps;
    EndFaults(1);
    EXPECT_EQ(drill_.state, DrillState::kStopped) << steps;
    EXPECT_THAT(drill_.summary, HasSubstr("ben has begun op-9"));
  }
}

TEST_F(DrillTest, AnEndThatIsRefusedIsAskedForAgainAndSaidInTheEnd) {
  Accept(FaultKind::kBadCode);
  Operation(DrillRole::kSafety, "op-1");
  Inject();
  Take(StopAsked{"alice", ""});
  Take(FaultAnswered{"test-1", true, false, "op-9 is open", {}});
  ASSERT_EQ(Effects<SendFault>().size(), 1u);
  EXPECT_GT(Effects<SendFault>()[0].delay, absl::ZeroDuration());
  now_ += absl::Minutes(3);
  Take(DrillTimeUp{drill_.timer});
  EXPECT_EQ(drill_.state, DrillState::kFailed);
  EXPECT_THAT(drill_.summary, HasSubstr("test-1, test-2 have not said"));
}

TEST_F(DrillTest, ByHandWaitsForAPerson) {
  Accept(FaultKind::kBadCode, true);
  Operation(DrillRole::kSafety, "op-1");
  Inject();
  Notice();
  EXPECT_EQ(drill_.state, DrillState::kRecovering);
  EXPECT_TRUE(Effects<BeginOperation>().empty());
  EXPECT_THAT(AlertOf(drill_), HasSubstr("test-1: unit: broken"));
  now_ += absl::Seconds(20);
  Take(OperationBegan{DrillRole::kRecovery, "op-7", "ben"});
  DrillOperation failed;
  failed.id = "op-7";
  Take(OperationEnded{failed});
  EXPECT_EQ(drill_.state, DrillState::kRecovering) << "a person may try again";
  Take(OperationBegan{DrillRole::kRecovery, "op-8", "ben"});
  DrillOperation well;
  well.id = "op-8";
  well.ok = true;
  now_ += absl::Seconds(5);
  Take(OperationEnded{well});
  EXPECT_EQ(drill_.state, DrillState::kVerifying);
  EXPECT_EQ(drill_.recovered_by, "ben");
  Operation(DrillRole::kVerification, "op-9");
  EndFaults();
  EXPECT_EQ(PhasesOf(drill_)[1].took, absl::Seconds(21)) << "from the first look that failed to what was begun first";
}

TEST_F(DrillTest, ControllerIsKilledOnceWhenTheRecoveryCommits) {
  Accept(FaultKind::kControllerKilled);
  Operation(DrillRole::kSafety, "op-1");
  EXPECT_EQ(drill_.state, DrillState::kRecovering);
  EXPECT_TRUE(Effects<SendFault>().empty());
  Take(OperationBegan{DrillRole::kRecovery, "op-2", "alice"});
  Take(OperationCommits{"op-9"});
  EXPECT_TRUE(Effects<KillThisController>().empty()) << "another operation";
  Take(OperationCommits{"op-2"});
  EXPECT_EQ(Effects<KillThisController>().size(), 1u);
  Take(OperationCommits{"op-2"});
  EXPECT_TRUE(Effects<KillThisController>().empty()) << "not again";
}

TEST_F(DrillTest, AFullDiskMayRefuseTheRecovery) {
  WaitInVain(FaultKind::kDiskFull);
  Take(OperationBegan{DrillRole::kRecovery, "op-2", "alice"});
  DrillOperation aborted;
  aborted.id = "op-2";
  aborted.aborted = true;
  aborted.summary = "no space";
  Take(OperationEnded{aborted});
  EndFaults(1);
  EXPECT_THAT(drill_.summary, HasSubstr("nothing was changed, but detect took")) << "by the refusal, late";
}

TEST_F(DrillTest, AFullDiskThatNobodyNoticesMissesItsTarget) {
  WaitInVain(FaultKind::kDiskFull);
  Operation(DrillRole::kRecovery, "op-2");
  Operation(DrillRole::kVerification, "op-3");
  EndFaults(1);
  EXPECT_EQ(drill_.state, DrillState::kMissedTarget);
  EXPECT_THAT(drill_.summary, HasSubstr("recovered, but detect: never")) << "a recovery that works has noticed nothing";
}

TEST_F(DrillTest, AFullDiskMayBeSaidBeforeTheRecoveryBegins) {
  for (const bool by_host : {true, false}) {
    drill_ = Drill();
    Accept(FaultKind::kDiskFull);
    Operation(DrillRole::kSafety, "op-1");
    Inject();
    Notice("disk");
    EXPECT_EQ(drill_.state, DrillState::kRecovering) << "noticed at once: no start brings the room back";
    Take(OperationRefused{DrillRole::kRecovery, "test-1: not enough space", by_host});
    EndFaults(1);
    EXPECT_EQ(drill_.state, by_host ? DrillState::kPassed : DrillState::kFailed) << drill_.summary;
    EXPECT_THAT(by_host ? ObservedOf(drill_) : drill_.summary, HasSubstr("not enough space"));
    EXPECT_EQ(absl::StrContains(drill_.summary, "changed nothing"), by_host) << drill_.summary;
  }
}

TEST_F(DrillTest, AnInjectThatWasCutOffInTheMiddleIsNoFaultThatIsIn) {
  Accept(FaultKind::kDiskFull);
  Operation(DrillRole::kSafety, "op-1");
  Take(FaultAnswered{"test-2", false, true, "", Report(FaultReport::State::kIn)});
  // The agent was killed, has put back what it had on record, and reports that.
  FaultReport ended = Report(FaultReport::State::kEnded);
  ended.ended_alone = true;
  Take(FaultAnswered{"test-1", false, true, "", ended});
  EXPECT_EQ(drill_.state, DrillState::kUndoing);
  EXPECT_THAT(drill_.summary, HasSubstr("test-1: it was cut off in the middle"));
  ASSERT_EQ(Effects<SendFault>().size(), 1u) << "there is nothing to end on test-1";
  EXPECT_EQ(Effects<SendFault>()[0].host, "test-2");
  Take(FaultAnswered{"test-2", true, true, "", Report(FaultReport::State::kEnded, 1)});
  EXPECT_EQ(drill_.state, DrillState::kFailed);
}

TEST_F(DrillTest, ApprovalComesFirst) {
  Accept(FaultKind::kBadCode, false, true);
  EXPECT_EQ(drill_.state, DrillState::kPlanned);
  EXPECT_TRUE(Effects<BeginOperation>().empty());
  Take(DrillApproved{"ben", ""});
  EXPECT_EQ(drill_.state, DrillState::kSafetyRelease);
}

TEST_F(DrillTest, AControllerThatComesBackAsksForWhatIsOwed) {
  Accept(FaultKind::kBadCode);
  const auto count = [&](auto is) {
    const std::vector<DrillEffect> owed = OutstandingDrillEffects(drill_, "", now_);
    return std::count_if(owed.begin(), owed.end(), is);
  };
  const auto begins = [](const DrillEffect& effect) { return std::holds_alternative<BeginOperation>(effect); };
  const auto sends = [](const DrillEffect& effect) { return std::holds_alternative<SendFault>(effect); };
  EXPECT_EQ(count(begins), 1);
  Operation(DrillRole::kSafety, "op-1");
  EXPECT_EQ(count(sends), 2);
  Take(FaultAnswered{"test-1", false, true, "", Report(FaultReport::State::kIn)});
  EXPECT_EQ(count(sends), 1);
  Take(StopAsked{"alice", ""});
  EXPECT_EQ(count(sends), 2);
  EXPECT_EQ(OutstandingDrillEffects(drill_, "test-2", now_).size(), 1u);
}

TEST(ResolveDrillTest, Refusals) {
  Fleet fleet;
  Environment test;
  test.name = "test";
  test.order = 1;
  test.drill_faults = {"bad-code"};
  Environment prod;
  prod.name = "prod";
  prod.order = 2;
  fleet.environments = {test, prod};
  FleetService service;
  service.name = "bot";
  service.hosts = {{"test", {"test-1"}}, {"prod", {"prod-1"}}};
  fleet.services["bot"] = service;
  DrillCandidate host;
  host.connected = true;
  host.verdict = Verdict::kHealthy;
  host.allowed = {FaultKind::kBadCode, FaultKind::kDiskFull};
  std::map<std::string, DrillCandidate> hosts = {{"test-1", host}, {"prod-1", host}};
  DrillSpec spec;
  spec.environment = "test";
  const auto why = [&](absl::string_view busy = "") {
    return ResolveDrill(spec, fleet, hosts, busy, absl::UnixEpoch()).refusal.message;
  };
  EXPECT_EQ(why(), "");
  EXPECT_THAT(why("op-1"), HasSubstr("op-1 is at work"));
  spec.fault = FaultKind::kDiskFull;
  EXPECT_THAT(why(), HasSubstr("does not allow disk-full"));
  spec.fault = FaultKind::kBadCode;
  hosts["test-1"].verdict = Verdict::kUnhealthy;
  EXPECT_THAT(why(), HasSubstr("not healthy"));
  hosts["test-1"].verdict = Verdict::kHealthy;
  hosts["test-1"].allowed.clear();
  EXPECT_THAT(why(), HasSubstr("its own agent.yaml"));
  hosts["test-1"].connected = false;
  EXPECT_THAT(why(), HasSubstr("not connected"));
  spec.environment = "prod";
  EXPECT_THAT(why(), HasSubstr("drills are not allowed in prod"));
  fleet.environments[1].allow_drills = true;
  EXPECT_THAT(why(), HasSubstr("fleet file does not allow"));
  fleet.environments[1].drill_faults = {"bad-code"};
  EXPECT_THAT(why(), HasSubstr("needs a reason"));
  spec.reason = "quarterly";
  EXPECT_EQ(why(), "");
  EXPECT_TRUE(ResolveDrill(spec, fleet, hosts, "", absl::UnixEpoch()).policy.needs_approval);
  fleet.environments[1].drill_windows.resize(1);
  ASSERT_TRUE(ParseWindow("00:00-24:00", &fleet.environments[1].drill_windows[0]));
  EXPECT_FALSE(ResolveDrill(spec, fleet, hosts, "", absl::UnixEpoch()).policy.needs_approval);
}

}  // namespace
}  // namespace rb::controller
