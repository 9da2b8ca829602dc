#include "controller/core/quarantine.h"

#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/test_util.h"

namespace rb::controller {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kGood(40, 'a');
const std::string kBad(40, 'b');

Plan PlanFor(OperationKind kind, const std::string& from, const std::string& to) {
  Plan plan;
  plan.spec.kind = kind;
  plan.spec.service = "bot";
  plan.spec.environment = "prod";
  plan.spec.reason = "it broke";
  plan.wave_count = 1;
  for (const char* name : {"prod-1", "prod-2"}) {
    HostPlan host;
    host.host = name;
    host.environment = "prod";
    host.from_commit = from;
    host.commit = to;
    plan.hosts.push_back(host);
  }
  return plan;
}

// Lives an operation to its end. `verdict`: what the probes of a host say of the new state.
Operation Live(Plan plan, const std::function<Verdict(const std::string& host)>& verdict,
               const std::string& aborted_by = "") {
  Operation operation;
  std::vector<Event> events;
  Event first;
  Accepted accepted;
  accepted.id = "op-1";
  accepted.plan = std::move(plan);
  first.body = accepted;
  events.push_back(first);
  bool has_aborted = false;
  for (uint64_t sequence = 1; !events.empty(); ++sequence) {
    Event event = events.front();
    events.erase(events.begin());
    event.sequence = sequence;
    event.at = absl::FromUnixSeconds(1'800'000'000) + absl::Seconds(sequence);
    event.elapsed = absl::Seconds(sequence);
    const Decision decision = Decide(operation, event);
    operation = decision.operation;
    for (const Effect& effect : decision.effects) {
      Event next;
      if (std::holds_alternative<TakeLock>(effect)) next.body = LockTaken{};
      if (const auto* step = std::get_if<StartStep>(&effect)) {
        StepResult result;
        result.step_id = step->step_id;
        result.verdict = step->kind == StepKind::kVerify ? verdict(step->host) : Verdict::kHealthy;
        result.state = step->kind == StepKind::kPrepare  ? HostState::kPrepared
                       : step->kind == StepKind::kRevert ? HostState::kReverted
                       : step->kind == StepKind::kKeep   ? HostState::kKept
                                                         : HostState::kCommitted;
        if (step->kind == StepKind::kPrepare) result.release.commit = operation.plan.hosts[0].from_commit;
        next.body = StepEnded{step->host, result};
        if (step->kind == StepKind::kVerify && !aborted_by.empty() && !has_aborted) {
          has_aborted = true;
          Event abort;
          abort.body = AbortRequested{aborted_by, "no"};
          events.push_back(abort);
        }
      }
      if (next.body.index() != 0) events.push_back(next);
    }
  }
  EXPECT_TRUE(IsFinal(operation.state)) << std::string(NameOf(operation.state));
  return operation;
}

const auto kHealthy = [](const std::string&) { return Verdict::kHealthy; };

std::vector<std::string> CommitsOf(const std::vector<QuarantineChange>& changes) {
  std::vector<std::string> commits;
  for (const QuarantineChange& change : changes) commits.push_back(change.commit);
  return commits;
}

TEST(Quarantine, WhatWasRolledBackFromIs) {
  const Operation operation = Live(PlanFor(OperationKind::kRollback, kBad, kGood), kHealthy);
  ASSERT_EQ(operation.state, OperationState::kSucceeded);
  const std::vector<QuarantineChange> changes = ChangesAtEnd(operation);
  EXPECT_THAT(CommitsOf(changes), ElementsAre(kBad)) << "once, though two hosts left it";
  EXPECT_EQ(changes[0].service, "bot");
  EXPECT_EQ(changes[0].by, "op-1");
  EXPECT_THAT(changes[0].reason, HasSubstr("it broke"));
}

TEST(Quarantine, ATreeThatWasNoCommitsSaysNothingOfOne) {
  Operation operation = Live(PlanFor(OperationKind::kRollback, kBad, kGood), kHealthy);
  for (HostProgress& host : operation.hosts) host.replaced_commit.clear();  // changed by hand before
  EXPECT_THAT(ChangesAtEnd(operation), IsEmpty());
  EXPECT_THAT(ChangesAtEnd(Live(PlanFor(OperationKind::kRollback, kGood, kGood), kHealthy)), IsEmpty());
}

TEST(Quarantine, ADeployThatWasRevertedIs) {
  const auto one_is_ill = [](const std::string& host) {
    return host == "prod-2" ? Verdict::kUnhealthy : Verdict::kHealthy;
  };
  const Operation operation = Live(PlanFor(OperationKind::kDeploy, kGood, kBad), one_is_ill);
  ASSERT_EQ(operation.state, OperationState::kReverted);
  EXPECT_THAT(CommitsOf(ChangesAtEnd(operation)), ElementsAre(kBad));
  EXPECT_THAT(ChangesAtEnd(operation)[0].reason, HasSubstr("prod-2"));
  EXPECT_THAT(ChangesAtEnd(Live(PlanFor(OperationKind::kDeploy, kGood, kBad), kHealthy)), IsEmpty());
}

TEST(Quarantine, WhatAPersonAbortsIsNotForThat) {
  const Operation operation = Live(PlanFor(OperationKind::kDeploy, kGood, kBad), kHealthy, "anna");
  ASSERT_EQ(operation.state, OperationState::kReverted);
  EXPECT_THAT(ChangesAtEnd(operation), IsEmpty());
}

TEST(Quarantine, ADrillsCommitsAreNot) {
  for (const OperationKind kind : {OperationKind::kRollback, OperationKind::kDeploy}) {
    Plan plan = PlanFor(kind, kBad, kGood);
    plan.spec.drill_id = "drill-1";
    const Operation operation = Live(plan, [&](const std::string&) {
      return kind == OperationKind::kDeploy ? Verdict::kUnhealthy : Verdict::kHealthy;
    });
    EXPECT_THAT(ChangesAtEnd(operation), IsEmpty());
  }
}

TEST(Quarantine, DataAloneTellsNothingOfTheCode) {
  Plan plan = PlanFor(OperationKind::kRollback, kBad, kGood);
  plan.spec.components = {Component::kData};
  EXPECT_THAT(ChangesAtEnd(Live(plan, kHealthy)), IsEmpty());
}

Quarantine WithOne() {
  Quarantine quarantine;
  uint64_t number = 0;
  for (QuarantineChange change : ChangesAtEnd(Live(PlanFor(OperationKind::kRollback, kBad, kGood), kHealthy))) {
    change.number = ++number;
    Apply(change, &quarantine);
  }
  return quarantine;
}

TEST(Quarantine, UndoOfWhatQuarantinedACommitReleasesIt) {
  Quarantine quarantine = WithOne();
  EXPECT_EQ(QuarantinedOf(quarantine, "bot").count(kBad), 1u);
  for (const char* undone : {"op-7", "op-1"}) {
    Plan plan = PlanFor(OperationKind::kUndo, kGood, kBad);
    plan.spec.undo_operation_id = undone;
    for (QuarantineChange change : ChangesAtEnd(Live(plan, kHealthy))) {
      change.number = 2;
      Apply(change, &quarantine);
    }
    EXPECT_EQ(QuarantinedOf(quarantine, "bot").empty(), std::string(undone) == "op-1");
  }
}

TEST(Quarantine, ReleaseTakesOneThatFits) {
  Quarantine quarantine = WithOne();
  QuarantineChange change;
  EXPECT_EQ(ResolveRelease(quarantine, "bbbb", "", " ", &change).code, Refusal::Code::kReasonRequired);
  EXPECT_EQ(ResolveRelease(quarantine, "bbb", "", "mended", &change).code, Refusal::Code::kNoCandidate);
  EXPECT_EQ(ResolveRelease(quarantine, "bbbb", "web", "mended", &change).code, Refusal::Code::kNoCandidate);
  EXPECT_EQ(ResolveRelease(quarantine, kGood, "", "mended", &change).code, Refusal::Code::kNoCandidate);
  QuarantineEntry other = quarantine.begin()->second;
  other.service = "web";
  quarantine[{"web", kBad}] = other;
  EXPECT_EQ(ResolveRelease(quarantine, "BBBB", "", "mended", &change).code, Refusal::Code::kAmbiguous);
  ASSERT_FALSE(ResolveRelease(quarantine, "BBBB", "bot", "mended", &change).refused());
  change.number = 9;
  change.by = "anna";
  Apply(change, &quarantine);
  EXPECT_TRUE(QuarantinedOf(quarantine, "bot").empty());
  EXPECT_EQ(QuarantinedOf(quarantine, "web").size(), 1u);
  EXPECT_EQ((quarantine[{"bot", kBad}].released_by), "anna");
  EXPECT_EQ((quarantine[{"bot", kBad}].number), 9u);
  const Refusal again = ResolveRelease(quarantine, "bbbb", "bot", "mended", &change);
  EXPECT_THAT(again.message, HasSubstr("released already, by anna"));
}

TEST(Quarantine, ItMayComeBack) {
  Quarantine quarantine = WithOne();
  QuarantineChange change;
  ASSERT_FALSE(ResolveRelease(quarantine, kBad, "", "mended", &change).refused());
  Apply(change, &quarantine);
  for (const QuarantineChange& one : ChangesAtEnd(Live(PlanFor(OperationKind::kRollback, kBad, kGood), kHealthy))) {
    Apply(one, &quarantine);
  }
  EXPECT_EQ(QuarantinedOf(quarantine, "bot").size(), 1u);
}

TEST(Quarantine, ALocalRollbackThatIsReportedCounts) {
  Event event;
  event.sequence = 1;
  Reported reported;
  reported.id = "op-2";
  reported.spec = PlanFor(OperationKind::kLocal, "", "").spec;
  reported.host = PlanFor(OperationKind::kLocal, kBad, kGood).hosts[0];
  reported.left_commit = kBad;
  reported.verdict = Verdict::kHealthy;
  reported.succeeded = true;
  reported.summary = "rb-agent local rollback: healthy";
  event.body = reported;
  const Operation operation = Decide(Operation(), event).operation;
  EXPECT_EQ(operation.state, OperationState::kSucceeded);
  EXPECT_EQ(Decide(operation, event).operation.hosts.size(), 1u) << "the same report again changes nothing";
  EXPECT_THAT(CommitsOf(ChangesAtEnd(operation)), ElementsAre(kBad));
  EXPECT_THAT(OutstandingEffects(operation, "prod-1"), IsEmpty());
}

// ---- what planning makes of it

PlanningHistory History() {
  PlanningHistory history;
  history.now = absl::FromUnixSeconds(1'800'000'000);
  history.quarantined[kBad] = {"rolled back from: it broke", "op-1", history.now - absl::Hours(1)};
  return history;
}

Plan PlanOf(OperationSpec spec, const PlanningHistory& history, const std::string& refused_because = "") {
  Fleet fleet;
  Environment prod;
  prod.name = "prod";
  fleet.environments = {prod};
  FleetService service;
  service.name = "bot";
  service.hosts = {{"prod", {"prod-1"}}};
  fleet.services["bot"] = service;
  spec.environment = "prod";
  if (spec.kind != OperationKind::kUndo) {
    spec.target.kind = TargetReference::Kind::kNamed;
    spec.target.name = kBad;
  }
  spec.reason = "a reason";
  Inspection inspection;
  inspection.connected = true;
  inspection.verdict = Verdict::kHealthy;
  Candidate candidate;
  candidate.method = spec.kind == OperationKind::kDeploy ? Method::kGit : Method::kBackup;
  candidate.commit = kBad;
  candidate.refused_because = refused_because;
  candidate.release = Release();
  candidate.release->name = "bot/bad";
  candidate.release->durability = Durability::kProved;
  inspection.candidates = {candidate};
  return MakePlan(ResolveScope(spec, fleet), fleet, {{"prod-1", inspection}}, history);
}

TEST(Quarantine, DeployAndRollbackToItAreRefusedWithoutForce) {
  for (const OperationKind kind : {OperationKind::kDeploy, OperationKind::kRollback}) {
    for (const std::string because : {"", "is bad: it broke"}) {
      OperationSpec spec;
      spec.kind = kind;
      const Plan refused = PlanOf(spec, History(), because);
      EXPECT_EQ(refused.refusal.code, Refusal::Code::kQuarantined);
      EXPECT_THAT(refused.refusal.message, HasSubstr("op-1: rolled back from: it broke"));
      EXPECT_THAT(refused.refusal.next_command, HasSubstr("rbctl quarantine release bbbbbbb"));
    }
    OperationSpec spec;
    spec.kind = kind;
    EXPECT_FALSE(PlanOf(spec, PlanningHistory()).refusal.refused());
    spec.force = spec.target.force = true;
    const Plan forced = PlanOf(spec, History());
    EXPECT_FALSE(forced.refusal.refused()) << forced.refusal.message;
    EXPECT_THAT(forced.notes, ::testing::Contains(HasSubstr("it stays quarantined")));
  }
}

TEST(Quarantine, AnUndoGoesThereAndThePlanSaysSo) {
  OperationSpec spec;
  spec.kind = OperationKind::kUndo;
  spec.undo_operation_id = "op-1";
  PlanningHistory history = History();
  history.undo_releases = std::map<std::string, std::string>{{"prod-1", "bot/bad"}};
  history.undo_operation_id = "op-1";
  Plan plan = PlanOf(spec, history);
  EXPECT_FALSE(plan.refusal.refused()) << plan.refusal.message;
  EXPECT_THAT(plan.notes, ::testing::Contains(HasSubstr("released from quarantine when the undo has succeeded")));
  spec.undo_operation_id = "op-2";
  plan = PlanOf(spec, history);
  EXPECT_THAT(plan.notes, ::testing::Contains(HasSubstr("stays quarantined")));
}

TEST(Quarantine, WhatIsReportedCannotBeAskedFor) {
  for (const OperationKind kind : {OperationKind::kLocal, OperationKind::kExternal}) {
    OperationSpec spec;
    spec.kind = kind;
    EXPECT_EQ(PlanOf(spec, PlanningHistory()).refusal.code, Refusal::Code::kBadRequest);
  }
}

}  // namespace
}  // namespace rb::controller
