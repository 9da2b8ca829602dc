// The controller's decisions: by tables, and by a few thousand random lives of an operation.
#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/test_util.h"
#include "controller/core/access.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"

namespace rb::controller {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

Fleet TestFleet() {
  Fleet fleet;
  Environment test;
  test.name = "test";
  test.order = 1;
  Environment prod;
  prod.name = "prod";
  prod.order = 2;
  prod.gate_passed_in = "test";
  fleet.environments = {test, prod};
  FleetService service;
  service.name = "bot";
  service.hosts = {{"test", {"test-1"}}, {"prod", {"prod-1", "prod-2"}}};
  fleet.services["bot"] = service;
  return fleet;
}

Candidate Backup(const std::string& commit, Durability durability, Standing standing = Standing::kGood) {
  Candidate candidate;
  candidate.method = Method::kBackup;
  candidate.release = Release();
  candidate.release->name = "bot/" + commit;
  candidate.release->commit = commit;
  candidate.release->durability = durability;
  candidate.release->standing = standing;
  candidate.commit = commit;
  return candidate;
}

Candidate Git(const std::string& commit) {
  Candidate candidate;
  candidate.method = Method::kGit;
  candidate.commit = commit;
  return candidate;
}

Inspection Answer(std::vector<Candidate> candidates) {
  Inspection inspection;
  inspection.connected = true;
  inspection.verdict = Verdict::kHealthy;
  inspection.candidates = std::move(candidates);
  return inspection;
}

OperationSpec Rollback(const std::string& environment = "prod") {
  OperationSpec spec;
  spec.environment = environment;
  spec.reason = "it broke";
  return spec;
}

PlanningHistory Passed(const std::string& commit) {
  PlanningHistory history;
  history.now = absl::FromUnixSeconds(1'800'000'000);
  history.passed["test"] = {{commit, history.now - absl::Hours(1)}};
  return history;
}

TEST(Access, OnlyWhatTheTableAllows) {
  const struct {
    const char* method;
    Role least;
  } calls[] = {
      {"PlanOperation", Role::kViewer},
      {"StartOperation", Role::kOperator},
      {"GetOperation", Role::kViewer},
      {"ListOperations", Role::kViewer},
      {"WatchOperation", Role::kViewer},
      {"AbortOperation", Role::kOperator},
      {"PauseOperation", Role::kOperator},
      {"ResumeOperation", Role::kOperator},
      {"ApproveOperation", Role::kOperator},
      {"ListAuditRecords", Role::kOperator},
      {"VerifyAudit", Role::kOperator},
      {"ListReleases", Role::kViewer},
      {"ListAgents", Role::kViewer},
      {"GetStatus", Role::kViewer},
      {"QuarantineService/ListQuarantine", Role::kViewer},
      {"QuarantineService/ReleaseQuarantine", Role::kOperator},
  };
  for (const auto& call : calls) {
    const std::string method =
        absl::StrCat("/rb.v1.", absl::StrContains(call.method, '/') ? "" : "FleetService/", call.method);
    EXPECT_FALSE(IsAllowed(Role::kNone, method)) << method;
    EXPECT_FALSE(IsAllowed(Role::kAgent, method)) << method;
    for (const Role role : {Role::kViewer, Role::kOperator, Role::kAdmin}) {
      EXPECT_EQ(IsAllowed(role, method), role >= call.least) << method;
    }
  }
  for (const Role role : {Role::kNone, Role::kViewer, Role::kOperator, Role::kAdmin}) {
    EXPECT_FALSE(IsAllowed(role, "/rb.v1.AgentLink/Connect"));
    EXPECT_FALSE(IsAllowed(role, "/rb.v1.FleetService/SomethingNew"));
  }
  for (const char* method : {"/rb.v1.DoctorService/Diagnose", "/rb.v1.DoctorService/GetRunbook"}) {
    EXPECT_TRUE(IsAllowed(Role::kViewer, method));
    EXPECT_FALSE(IsAllowed(Role::kAgent, method));
    EXPECT_FALSE(ChangesSomething(method));
  }
  EXPECT_TRUE(IsAllowed(Role::kAgent, "/rb.v1.AgentLink/Connect"));
}

TEST(Waves, Table) {
  WaveSize size;
  for (const char* bad : {"", "0", "0%", "101%", "500%", "-1", " 2", "2 ", "50%%", "x"}) {
    EXPECT_FALSE(ParseWaveSize(bad, &size)) << bad;
  }
  ASSERT_TRUE(ParseWaveSize("50%", &size));
  const WaveSize any;
  const auto healthy = [](size_t count) { return std::vector<bool>(count, true); };
  const std::optional<WaveSize> none;
  EXPECT_THAT(AssignWaves(healthy(5), size, any, none), ElementsAre(1, 1, 1, 2, 2));
  ASSERT_TRUE(ParseWaveSize("1", &size));
  EXPECT_THAT(AssignWaves(healthy(3), size, any, none), ElementsAre(1, 2, 3));
  ASSERT_TRUE(ParseWaveSize("1%", &size));
  EXPECT_THAT(AssignWaves(healthy(2), size, any, none), ElementsAre(1, 2));
  EXPECT_TRUE(AssignWaves({}, size, any, none).empty());
  // At most one healthy host away at a time; those that are down already cost nothing.
  WaveSize one;
  ASSERT_TRUE(ParseWaveSize("1", &one));
  EXPECT_THAT(AssignWaves(healthy(3), any, one, none), ElementsAre(1, 2, 3));
  EXPECT_THAT(AssignWaves({false, false, true, true, false}, any, one, none), ElementsAre(1, 1, 1, 2, 2));
  EXPECT_THAT(AssignWaves({false, false, false}, any, one, none), ElementsAre(1, 1, 1));
  // The first wave alone is as small as the canary, and never larger than the others, nor than may be away.
  EXPECT_THAT(AssignWaves(healthy(5), WaveSize{2, 0}, any, one), ElementsAre(1, 2, 2, 3, 3));
  EXPECT_THAT(AssignWaves(healthy(4), WaveSize{1, 0}, any, WaveSize{3, 0}), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(AssignWaves(healthy(4), any, one, WaveSize{2, 0}), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(AssignWaves(healthy(5), any, any, WaveSize{0, 25}), ElementsAre(1, 1, 2, 2, 2));
}

TEST(Scope, RefusesWithTheNearestSpellingAndChangesNothing) {
  const Fleet fleet = TestFleet();
  OperationSpec spec = Rollback("prodd");
  Scope scope = ResolveScope(spec, fleet);
  EXPECT_EQ(scope.refusal.code, Refusal::Code::kUnknownEnvironment);
  EXPECT_THAT(scope.refusal.message, HasSubstr("did you mean prod?"));
  EXPECT_THAT(scope.refusal.message, HasSubstr("Nothing was changed"));
  spec = Rollback();
  spec.hosts = {"prod-3"};
  EXPECT_EQ(ResolveScope(spec, fleet).refusal.code, Refusal::Code::kUnknownHost);
  spec = Rollback();
  spec.service = "bott";
  EXPECT_EQ(ResolveScope(spec, fleet).refusal.code, Refusal::Code::kUnknownService);
  spec = Rollback();
  spec.reason = "  ";
  EXPECT_EQ(ResolveScope(spec, fleet).refusal.code, Refusal::Code::kReasonRequired);
  spec.environment = "test";
  EXPECT_FALSE(ResolveScope(spec, fleet).refusal.refused());
  spec.force = true;
  EXPECT_EQ(ResolveScope(spec, fleet).refusal.code, Refusal::Code::kReasonRequired);
  spec = Rollback();
  spec.reason = "two\nlines";
  EXPECT_EQ(ResolveScope(spec, fleet).refusal.code, Refusal::Code::kBadRequest);
  spec = Rollback();
  spec.hosts = {"prod-2"};
  EXPECT_THAT(ResolveScope(spec, fleet).hosts, ElementsAre("prod-2"));
}

TEST(Window, Table) {
  Window window;
  for (const char* bad : {"", "Mon", "09:00", "9:00-17:00", "Mon-Fri 09:00", "Mon-Fri 09:00-09:00", "mon 09:00-10:00",
                          "Mon 24:00-25:00", "Mon 09:60-10:00", "Mon-Fri-Sat 09:00-10:00", "Mon  09:00-10:00",
                          "Mon 24:00-02:00", "Mon-Fri 09:00-17:00 ", "Mon, 09:00-10:00"}) {
    EXPECT_FALSE(ParseWindow(bad, &window)) << bad;
  }
  const auto at = [](int day, int hour, int minute) {
    // The 1st of February 2027 is a Monday.
    return absl::FromCivil(absl::CivilMinute(2027, 2, day, hour, minute), absl::UTCTimeZone());
  };
  const struct {
    std::vector<const char*> windows;
    absl::Time now;
    bool open;
    absl::Time next;
  } cases[] = {
      {{"Mon-Fri 09:00-17:00"}, at(1, 9, 0), true, at(1, 9, 0)},
      {{"Mon-Fri 09:00-17:00"}, at(1, 8, 59), false, at(1, 9, 0)},
      {{"Mon-Fri 09:00-17:00"}, at(5, 17, 0), false, at(8, 9, 0)},
      {{"Sat,Sun 10:00-12:00"}, at(3, 0, 0), false, at(6, 10, 0)},
      {{"22:00-02:00"}, at(2, 1, 59), true, at(2, 1, 59)},
      {{"22:00-02:00"}, at(2, 2, 0), false, at(2, 22, 0)},
      {{"Mon 22:00-02:00"}, at(2, 1, 0), true, at(2, 1, 0)},
      {{"Mon 22:00-02:00"}, at(1, 1, 0), false, at(1, 22, 0)},
      {{"Fri-Mon 00:00-24:00"}, at(7, 23, 59), true, at(7, 23, 59)},
      {{"Fri-Mon 00:00-24:00"}, at(3, 12, 0), false, at(5, 0, 0)},
      {{"Mon 09:00-10:00", "Wed 09:00-10:00"}, at(1, 10, 0), false, at(3, 9, 0)},
  };
  for (const auto& one : cases) {
    std::vector<Window> windows;
    for (const char* text : one.windows) {
      ASSERT_TRUE(ParseWindow(text, &window)) << text;
      windows.push_back(window);
    }
    EXPECT_EQ(IsOpen(windows, one.now), one.open) << one.windows[0] << " at " << one.now;
    EXPECT_EQ(NextOpening(windows, one.now), one.next) << one.windows[0] << " at " << one.now;
  }
  EXPECT_TRUE(IsOpen({}, at(1, 0, 0)));
}

TEST(Scope, AnUndoIsAboutWhatItsOperationWasAbout) {
  Scope scope;
  scope.spec.kind = OperationKind::kUndo;
  scope.hosts = {"prod-1", "prod-2", "prod-3"};
  PlanningHistory history;
  NarrowToUndone(history, &scope);
  EXPECT_EQ(scope.hosts.size(), 3u) << "an unknown operation narrows nothing";
  history.undo_releases = {{"prod-2", "bot/a"}, {"prod-3", "bot/b"}};
  history.undo_components = {Component::kCode, Component::kConfig, Component::kData};
  Scope named = scope;
  named.spec.hosts = named.hosts = {"prod-1"};
  NarrowToUndone(history, &named);
  EXPECT_EQ(named.hosts, std::vector<std::string>{"prod-1"}) << "which the plan then refuses";
  NarrowToUndone(history, &scope);
  EXPECT_EQ(scope.hosts, (std::vector<std::string>{"prod-2", "prod-3"}));
  EXPECT_EQ(scope.spec.components, history.undo_components);
}

TEST(Plan, AProvedBackupThenGitThenABackupThatIsNotProved) {
  const Fleet fleet = TestFleet();
  const Scope scope = ResolveScope(Rollback(), fleet);
  const auto plan_with = [&](const std::vector<Candidate>& candidates) {
    return MakePlan(scope, fleet, {{"prod-1", Answer(candidates)}, {"prod-2", Answer(candidates)}}, Passed("aaaa"));
  };
  Plan plan = plan_with({Git("aaaa"), Backup("aaaa", Durability::kProved)});
  ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
  EXPECT_EQ(plan.hosts[0].method, Method::kBackup);
  ASSERT_EQ(plan.hosts[0].fallbacks.size(), 1u);
  EXPECT_EQ(plan.hosts[0].fallbacks[0].method, Method::kGit);
  EXPECT_EQ(plan.verify_soak, absl::ZeroDuration());
  plan = plan_with({Backup("aaaa", Durability::kDurable), Git("aaaa")});
  EXPECT_EQ(plan.hosts[0].method, Method::kGit);
  plan = plan_with({Backup("aaaa", Durability::kDurable)});
  EXPECT_EQ(plan.hosts[0].method, Method::kBackup);
  EXPECT_THAT(plan.notes, Contains(HasSubstr("has not been proved")));
}

// To what both hosts of prod offer as aaaa.
Plan PlanOf(const Fleet& fleet, OperationKind kind, const Candidate& target, bool emergency) {
  OperationSpec spec = Rollback();
  spec.kind = kind;
  spec.emergency = emergency;
  spec.target.kind = TargetReference::Kind::kNamed;
  spec.target.name = "aaaa";
  return MakePlan(ResolveScope(spec, fleet), fleet, {{"prod-1", Answer({target})}, {"prod-2", Answer({target})}},
                  Passed("aaaa"));
}

// Soaks are meant for new code; all at once is an outage, whatever is gone back to.
TEST(Plan, WhatWasGoodBeforeNeedsNoSoakAndStillGoesWaveByWave) {
  Fleet fleet = TestFleet();
  fleet.services["bot"].verify_soak = absl::Minutes(2);
  fleet.services["bot"].wave = WaveSize{1, 0};
  const struct {
    OperationKind kind;
    Candidate target;
    bool emergency;
    absl::Duration soak;
  } cases[] = {
      {OperationKind::kRollback, Backup("aaaa", Durability::kProved), false, absl::ZeroDuration()},
      {OperationKind::kRollback, Backup("aaaa", Durability::kProved, Standing::kUnknown), false, absl::Minutes(2)},
      {OperationKind::kRollback, Backup("aaaa", Durability::kProved, Standing::kUnknown), true, absl::ZeroDuration()},
      {OperationKind::kDeploy, Git("aaaa"), false, absl::Minutes(2)},
  };
  for (const auto& one : cases) {
    const Plan plan = PlanOf(fleet, one.kind, one.target, one.emergency);
    ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
    EXPECT_EQ(plan.verify_soak, one.soak) << (&one - cases);
    EXPECT_EQ(plan.wave_count, 2u) << (&one - cases);
  }
}

TEST(Plan, NewCodeGoesToTheCanaryFirst) {
  Fleet fleet = TestFleet();
  fleet.services["bot"].canary = WaveSize{1, 0};
  const struct {
    OperationKind kind;
    Candidate target;
    bool emergency;
    uint32_t waves;
  } cases[] = {
      {OperationKind::kDeploy, Git("aaaa"), false, 2},
      {OperationKind::kDeploy, Git("aaaa"), true, 1},
      {OperationKind::kRollback, Backup("aaaa", Durability::kProved), false, 1},
      {OperationKind::kRollback, Backup("aaaa", Durability::kProved, Standing::kUnknown), false, 2},
  };
  for (const auto& one : cases) {
    const Plan plan = PlanOf(fleet, one.kind, one.target, one.emergency);
    ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
    EXPECT_EQ(plan.wave_count, one.waves) << (&one - cases);
  }
}

TEST(Plan, Refusals) {
  const Fleet fleet = TestFleet();
  const Candidate good = Backup("aaaa", Durability::kProved);
  const struct {
    const char* what;
    std::function<void(OperationSpec*, std::map<std::string, Inspection>*, PlanningHistory*)> change;
    Refusal::Code code;
  } cases[] = {
      {"offline", [](auto*, auto* answers, auto*) { (*answers)["prod-2"].connected = false; },
       Refusal::Code::kHostOffline},
      {"problem", [](auto*, auto* answers, auto*) { (*answers)["prod-1"].problems = {"no space"}; },
       Refusal::Code::kHostProblem},
      {"inspection failed", [](auto*, auto* answers, auto*) { (*answers)["prod-1"].error = "no such service"; },
       Refusal::Code::kHostProblem},
      {"locked", [](auto*, auto*, auto* history) { history->lock_holder = "op-1"; }, Refusal::Code::kLocked},
      {"nothing", [](auto*, auto* answers, auto*) { (*answers)["prod-2"].candidates.clear(); },
       Refusal::Code::kNoCandidate},
      {"bad", [](auto*, auto* answers, auto*) { (*answers)["prod-2"].candidates[0].refused_because = "is bad"; },
       Refusal::Code::kNoCandidate},
      {"hosts differ",
       [](auto*, auto* answers, auto*) { (*answers)["prod-2"].candidates = {Backup("bbbb", Durability::kProved)}; },
       Refusal::Code::kAmbiguous},
      {"gate", [](auto*, auto*, auto* history) { history->passed.clear(); }, Refusal::Code::kGate},
      {"ambiguous",
       [](auto* spec, auto* answers, auto*) {
         spec->target.kind = TargetReference::Kind::kNamed;
         spec->target.name = "aa";
         (*answers)["prod-1"].candidates.push_back(Backup("aabb", Durability::kProved));
       },
       Refusal::Code::kAmbiguous},
  };
  for (const auto& one : cases) {
    OperationSpec spec = Rollback();
    std::map<std::string, Inspection> answers = {{"prod-1", Answer({good})}, {"prod-2", Answer({good})}};
    PlanningHistory history = Passed("aaaa");
    one.change(&spec, &answers, &history);
    const Plan plan = MakePlan(ResolveScope(spec, fleet), fleet, answers, history);
    EXPECT_EQ(plan.refusal.code, one.code) << one.what << ": " << plan.refusal.message;
    EXPECT_THAT(plan.refusal.message, HasSubstr("Nothing was changed")) << one.what;
  }
  OperationSpec emergency = Rollback();
  emergency.emergency = true;
  const Plan plan = MakePlan(ResolveScope(emergency, fleet), fleet,
                             {{"prod-1", Answer({good})}, {"prod-2", Answer({good})}}, PlanningHistory());
  EXPECT_FALSE(plan.refusal.refused());
  EXPECT_THAT(plan.notes, Contains(HasSubstr("gate passed_in skipped (--emergency)")));
}

// Test and prod in one operation, or prod alone behind its gates.
class GatesTest : public ::testing::Test {
 protected:
  GatesTest() {
    history_.now = absl::FromCivil(absl::CivilMinute(2027, 2, 1, 3, 0), absl::UTCTimeZone());  // a Monday
    spec_.target.kind = TargetReference::Kind::kNamed;
    spec_.target.name = "aaaa";
  }
  Plan Make() {
    const Scope scope = ResolveScope(spec_, fleet_);
    std::map<std::string, Inspection> answers;
    for (const std::string& host : scope.hosts) answers[host] = Answer({Backup("aaaa", Durability::kProved)});
    return MakePlan(scope, fleet_, answers, history_);
  }
  Environment& prod() { return fleet_.environments[1]; }

  Fleet fleet_ = TestFleet();
  OperationSpec spec_ = Rollback();
  PlanningHistory history_;
};

TEST_F(GatesTest, ThroughTestToProd) {
  spec_.through = {"test", "prod"};
  const Plan plan = Make();
  ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
  std::vector<std::string> order;
  for (const HostPlan& host : plan.hosts) order.push_back(absl::StrCat(host.wave, host.environment, "/", host.host));
  EXPECT_THAT(order, ElementsAre("1test/test-1", "2prod/prod-1", "2prod/prod-2"));
  EXPECT_EQ(plan.wave_count, 2u);
  for (const std::vector<std::string>& bad :
       {std::vector<std::string>{"prod", "test"}, {"test"}, {"test", "test", "prod"}, {"prod", "prod"}}) {
    spec_.through = bad;
    EXPECT_EQ(Make().refusal.code, Refusal::Code::kBadRequest);
  }
  spec_.through = {"tets", "prod"};
  EXPECT_EQ(Make().refusal.code, Refusal::Code::kUnknownEnvironment);
}

TEST_F(GatesTest, PassedInCountsForASetTime) {
  EXPECT_EQ(Make().refusal.code, Refusal::Code::kGate);
  history_.passed["test"] = {{"bbbb", history_.now}, {"aaaa", history_.now - absl::Hours(25)}};
  EXPECT_FALSE(Make().refusal.refused());
  prod().gate_passed_within = absl::Hours(24);
  const Plan late = Make();
  EXPECT_EQ(late.refusal.code, Refusal::Code::kGate);
  EXPECT_THAT(late.refusal.message, HasSubstr("longer ago than"));
  history_.passed["test"].push_back({"aaaa", history_.now - absl::Hours(1)});
  EXPECT_FALSE(Make().refusal.refused());
}

TEST_F(GatesTest, WhatHasPassedIsCodeThatWasChangedThereWithAllProbes) {
  const struct {
    const char* what;
    std::function<void(OperationSpec*)> change;
    bool passes;
  } cases[] = {
      {"a rollback", [](auto*) {}, true},
      {"a deploy", [](auto* spec) { spec->kind = OperationKind::kDeploy; }, true},
      {"a drill's recovery", [](auto* spec) { spec->drill_id = "drill-1"; }, true},
      {"through both",
       [](auto* spec) {
         spec->through = {"test", "prod"};
       },
       true},
      {"code and data",
       [](auto* spec) {
         spec->components = {Component::kCode, Component::kData};
       },
       true},
      {"data alone", [](auto* spec) { spec->components = {Component::kData}; }, false},
      {"an emergency", [](auto* spec) { spec->emergency = true; }, false},
      {"a verification", [](auto* spec) { spec->kind = OperationKind::kVerification; }, false},
      {"a backup", [](auto* spec) { spec->kind = OperationKind::kBackup; }, false},
      {"elsewhere", [](auto* spec) { spec->environment = "prod"; }, false},
  };
  for (const auto& one : cases) {
    history_.passed.clear();
    OperationSpec before = Rollback("test");
    one.change(&before);
    LearnPassed(before, "aaaa", history_.now - absl::Hours(1), &history_);
    EXPECT_EQ(Make().refusal.code == Refusal::Code::kGate, !one.passes) << one.what;
  }
}

TEST_F(GatesTest, AWindowIsOpenOrSaysWhenItOpens) {
  history_.passed["test"] = {{"aaaa", history_.now}};
  Window window;
  ASSERT_TRUE(ParseWindow("Mon-Fri 09:00-17:00", &window));
  prod().gate_windows = {window};
  const Plan shut = Make();
  EXPECT_EQ(shut.refusal.code, Refusal::Code::kGate);
  EXPECT_THAT(shut.refusal.message, HasSubstr("the next window opens 2027-02-01T09:00:00Z"));
  history_.now += absl::Hours(6);
  EXPECT_FALSE(Make().refusal.refused());
}

TEST_F(GatesTest, EachIsOverriddenByNameWithAReasonAndAllByAnEmergency) {
  Window window;
  ASSERT_TRUE(ParseWindow("Mon-Fri 09:00-17:00", &window));
  prod().gate_windows = {window};
  prod().gate_approval = true;
  spec_.override_gates = {"window"};
  EXPECT_THAT(Make().refusal.message, HasSubstr("has not passed in test")) << "one by one";
  spec_.override_gates = {"window", "passed_in"};
  Plan plan = Make();
  ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
  EXPECT_EQ(plan.approval_before_wave, 1u);
  EXPECT_THAT(plan.notes, Contains(HasSubstr("gate window skipped (--override-gate window)")));
  spec_.override_gates = {"window", "passed_in", "approval"};
  EXPECT_EQ(Make().approval_before_wave, 0u);
  spec_.override_gates = {"windw"};
  plan = Make();
  EXPECT_EQ(plan.refusal.code, Refusal::Code::kBadRequest);
  EXPECT_THAT(plan.refusal.message, HasSubstr("did you mean window?"));
  spec_.override_gates.clear();
  spec_.emergency = true;
  plan = Make();
  ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
  EXPECT_EQ(plan.approval_before_wave, 0u);
  for (const char* gate : {"window", "passed_in", "approval"}) {
    EXPECT_THAT(plan.notes, Contains(HasSubstr(absl::StrCat("gate ", gate, " skipped (--emergency)"))));
  }
  spec_.environment = "test";
  spec_.emergency = false;
  spec_.override_gates = {"window"};
  spec_.reason.clear();
  EXPECT_EQ(Make().refusal.code, Refusal::Code::kReasonRequired);
}

// ---- a model fleet

struct ModelHost {
  enum class Tree { kOld, kNew } tree = Tree::kOld;
  bool prepared = false;
  bool gone = false;  // never answers again
  bool prepare_fails = false;
  bool commit_fails = false;
  bool new_is_unhealthy = false;
  bool revert_fails = false;
  std::map<std::string, StepResult> answered;
};

struct Life {
  Operation operation;
  std::vector<Event> journal;
  std::map<std::string, ModelHost> hosts;
  bool lock_held = false;
  std::set<std::pair<OperationState, OperationState>> edges;
  std::vector<std::string> violations;
};

Plan TwoWavePlan(size_t count, OnFailure on_failure, size_t wave_size) {
  Plan plan;
  plan.spec = Rollback();
  plan.on_failure = on_failure;
  plan.target = absl::Minutes(3);
  WaveSize size;
  size.count = static_cast<uint32_t>(wave_size);
  const std::vector<uint32_t> waves = AssignWaves(std::vector<bool>(count, true), size, WaveSize(), std::nullopt);
  for (size_t i = 0; i < count; ++i) {
    HostPlan host;
    host.host = absl::StrCat("h", i);
    host.commit = "aaaa";
    host.wave = waves[i];
    plan.hosts.push_back(host);
  }
  plan.wave_count = waves.back();
  return plan;
}

// One whole life from a seed. `planted`: a bug to plant, 0 for none.
Life Live(uint64_t seed, int planted) {
  std::mt19937_64 random(seed);
  const auto chance = [&](int percent) { return static_cast<int>(random() % 100) < percent; };
  Life life;
  const size_t count = 1 + random() % 5;
  const OnFailure policies[] = {OnFailure::kRevertWave, OnFailure::kRevertAll, OnFailure::kHold};
  Plan plan = TwoWavePlan(count, policies[random() % 3], 1 + random() % count);
  if (chance(8)) {
    constexpr OperationKind kKinds[] = {OperationKind::kBackup, OperationKind::kVerification, OperationKind::kPrune};
    plan.spec.kind = kKinds[random() % std::size(kKinds)];
  } else if (chance(20)) {
    plan.approval_before_wave = 1 + static_cast<uint32_t>(random() % plan.wave_count);
  } else if (chance(3)) {
    for (HostPlan& host : plan.hosts) host.already_there = true;
  }
  for (const HostPlan& host : plan.hosts) {
    ModelHost& model = life.hosts[host.host];
    model.gone = chance(4);
    model.prepare_fails = chance(5);
    model.commit_fails = chance(5);
    model.new_is_unhealthy = chance(10);
    model.revert_fails = chance(5);
  }
  const bool aborts = chance(15);
  const bool pauses = chance(30);
  std::vector<Effect> pending;
  std::vector<Event> on_the_way;
  absl::Duration elapsed;
  const auto violate = [&](const std::string& text) { life.violations.push_back(text); };
  const auto take = [&](auto body) {
    Event event;
    event.sequence = life.operation.last_sequence + 1;
    event.elapsed = elapsed += absl::Milliseconds(10);
    event.body = std::move(body);
    const OperationState before = life.operation.state;
    Decision decision = Decide(life.operation, event);
    if (planted == 1 && before == OperationState::kPreparing &&
        decision.operation.state == OperationState::kReverting) {
      decision.operation.state = OperationState::kSucceeded;  // a failure called a success
    }
    // Within one decision several edges may be walked; each has to be legal.
    std::vector<OperationState> walked = {before};
    for (const auto& [host, text] : decision.notes) {
      if (!host.empty()) continue;
      for (const OperationState state : kAllOperationStates) {
        if (text == NameOf(state) || absl::StartsWith(text, absl::StrCat(std::string(NameOf(state)), " wave"))) {
          walked.push_back(state);
        }
      }
    }
    if (walked.back() != decision.operation.state) walked.push_back(decision.operation.state);
    for (size_t i = 1; i < walked.size(); ++i) {
      if (walked[i - 1] != walked[i]) life.edges.emplace(walked[i - 1], walked[i]);
      if (walked[i - 1] != walked[i] && !IsLegalTransition(walked[i - 1], walked[i])) {
        violate(absl::StrCat("illegal: ", std::string(NameOf(walked[i - 1])), " to ", std::string(NameOf(walked[i]))));
      }
    }
    life.journal.push_back(event);
    life.operation = std::move(decision.operation);
    pending.insert(pending.end(), decision.effects.begin(), decision.effects.end());
  };
  const auto answer = [&](const StartStep& step) {
    ModelHost& host = life.hosts[step.host];
    if (host.gone) return;
    const auto known = host.answered.find(step.step_id);
    StepResult result;
    if (known != host.answered.end()) {
      result = known->second;
    } else {
      result.step_id = step.step_id;
      result.verdict = Verdict::kUnknown;
      switch (step.kind) {
        case StepKind::kPrepare:
          if (host.prepare_fails) {
            result.code = StatusCode::kFailed;
            result.message = "no";
            result.state = HostState::kUntouched;
          } else {
            host.prepared = true;
            result.state = HostState::kPrepared;
            result.release.name = "replaced";
          }
          break;
        case StepKind::kCommit: {
          for (const HostProgress& other : life.operation.hosts) {
            if (!life.hosts[other.plan.host].prepared && !life.hosts[other.plan.host].gone) {
              violate("a host committed before all had prepared");
            }
            const bool earlier = other.plan.wave < life.operation.wave;
            if (earlier && other.verdict != Verdict::kHealthy)
              violate("a wave began before the one before was healthy");
          }
          if (host.commit_fails) {
            result.code = StatusCode::kFailed;
            result.message = "no";
            result.state = HostState::kPrepared;
          } else {
            host.tree = ModelHost::Tree::kNew;
            result.state = HostState::kCommitted;
            result.times.stop = absl::Milliseconds(5);
          }
          break;
        }
        case StepKind::kVerify:
          result.state = HostState::kCommitted;
          result.verdict = host.new_is_unhealthy ? Verdict::kUnhealthy : Verdict::kHealthy;
          result.times.downtime = absl::Milliseconds(50);
          break;
        case StepKind::kRevert:
          if (host.revert_fails && host.tree == ModelHost::Tree::kNew) {
            result.code = StatusCode::kFailed;
            result.state = HostState::kCommitted;
          } else {
            result.state = host.tree == ModelHost::Tree::kNew ? HostState::kReverted : HostState::kUntouched;
            host.tree = ModelHost::Tree::kOld;
            result.verdict = Verdict::kHealthy;
          }
          break;
        case StepKind::kKeep:
          result.state = HostState::kKept;
          result.release.name = "kept";
          break;
        default:
          break;
      }
      host.answered[step.step_id] = result;
    }
    if (chance(5)) return;  // the answer is lost; it is asked for again, or times out
    Event event;
    event.body = StepEnded{step.host, result};
    on_the_way.push_back(event);
    if (chance(10)) on_the_way.push_back(event);  // doubled
  };

  Accepted accepted;
  accepted.id = "op";
  accepted.plan = plan;
  accepted.requested_by = "test";
  take(accepted);
  for (int turn = 0; turn < 2000; ++turn) {
    if (IsFinal(life.operation.state) && pending.empty() && on_the_way.empty()) break;
    if (chance(3)) {
      // The controller dies: what it had not written down is gone; it reads its journal and begins again.
      Operation replayed;
      for (const Event& event : life.journal) {
        if (planted == 2 && std::holds_alternative<StepEnded>(event.body) && chance(50)) continue;  // journal forgets
        replayed = Decide(replayed, event).operation;
      }
      if (planted != 1 &&
          (replayed.state != life.operation.state || replayed.last_sequence != life.operation.last_sequence)) {
        violate("replaying the journal gives another state");
      }
      life.operation = std::move(replayed);
      pending = OutstandingEffects(life.operation, "");
    }
    if (aborts && chance(10)) take(AbortRequested{"someone", "changed my mind"});
    if (pauses && chance(20)) {
      life.operation.paused ? take(ResumeRequested{"someone"}) : take(PauseRequested{"someone", "to look"});
    }
    if (life.operation.state == OperationState::kWaiting && chance(10)) {
      // While it waits, a host goes back by its own hand.
      StepResult alone;
      alone.step_id = "alone/op/revert";
      alone.done_alone = true;
      const std::string host = life.operation.hosts[random() % count].plan.host;
      if (life.hosts[host].tree == ModelHost::Tree::kNew) {
        life.hosts[host].tree = ModelHost::Tree::kOld;
        take(StepEnded{host, alone});
      }
    }
    if (!pending.empty()) {
      const Effect effect = pending.front();
      pending.erase(pending.begin());
      if (std::holds_alternative<TakeLock>(effect)) {
        life.lock_held = true;
        take(LockTaken{});
      } else if (std::holds_alternative<ReleaseLock>(effect)) {
        life.lock_held = false;
      } else if (const auto* step = std::get_if<StartStep>(&effect)) {
        if (step->deadline <= absl::ZeroDuration()) violate("a step without a deadline");
        answer(*step);
      }
      continue;
    }
    if (!on_the_way.empty()) {
      const size_t which = random() % on_the_way.size();
      const Event event = on_the_way[which];
      on_the_way.erase(on_the_way.begin() + static_cast<ptrdiff_t>(which));
      take(std::get<StepEnded>(event.body));
      continue;
    }
    // Nothing moves: a deadline passes, or a host connects again and is asked again.
    if (life.operation.state == OperationState::kWaiting && chance(50)) {
      take(Approved{"another", "go"});
      if (life.operation.paused) take(ResumeRequested{"someone"});
    }
    const std::vector<Effect> outstanding = OutstandingEffects(life.operation, "");
    if (outstanding.empty()) break;
    const Effect& effect = outstanding[random() % outstanding.size()];
    if (const auto* step = std::get_if<StartStep>(&effect)) {
      if (chance(50)) {
        answer(*step);
      } else {
        take(StepTimedOut{step->host, step->step_id});
      }
    } else if (const auto* wait = std::get_if<ArmWait>(&effect)) {
      take(WaitEnded{wait->number});
    } else {
      pending.push_back(effect);
    }
  }

  // What has to be true at the end.
  if (!IsFinal(life.operation.state)) {
    violate(absl::StrCat("never ended: ", std::string(NameOf(life.operation.state))));
    return life;
  }
  if (life.lock_held) violate("the lock was kept");
  if (!ChangesHosts(plan.spec.kind) || life.operation.already_there) return life;
  for (const auto& [name, host] : life.hosts) {
    const bool is_new = host.tree == ModelHost::Tree::kNew;
    const OperationState state = life.operation.state;
    if (state == OperationState::kSucceeded && (!is_new || host.new_is_unhealthy)) {
      violate(absl::StrCat("succeeded, but ", name, " is not on a healthy new state"));
    }
    if ((state == OperationState::kAborted || state == OperationState::kReverted) && is_new) {
      violate(absl::StrCat(std::string(NameOf(state)), ", but ", name, " is on the new state"));
    }
    if (state == OperationState::kNeedsAttention && !absl::StrContains(life.operation.summary, name)) {
      violate(absl::StrCat("needs attention, but ", name, " is not named"));
    }
  }
  return life;
}

TEST(Operation, EveryLifeEndsAndSaysWhatIsTrue) {
  std::map<OperationState, int> outcomes;
  std::set<std::pair<OperationState, OperationState>> edges;
  for (uint64_t seed = 1; seed <= 6000; ++seed) {
    const Life life = Live(seed, 0);
    ASSERT_TRUE(life.violations.empty()) << "seed " << seed << ": " << life.violations[0];
    ++outcomes[life.operation.state];
    edges.insert(life.edges.begin(), life.edges.end());
  }
  // Every edge of the drawing was walked.
  for (const OperationState from : kAllOperationStates) {
    for (const OperationState to : kAllOperationStates) {
      EXPECT_EQ(edges.contains({from, to}), IsLegalTransition(from, to)) << NameOf(from) << " to " << NameOf(to);
    }
  }
  // All four ends were met, so the lives are not all alike.
  EXPECT_EQ(outcomes.size(), 4u);
  for (const auto& [state, count] : outcomes) EXPECT_GT(count, 20) << NameOf(state);
}

TEST(Operation, TheModelFindsPlantedBugs) {
  for (const int planted : {1, 2}) {
    bool found = false;
    for (uint64_t seed = 1; seed <= 2000 && !found; ++seed) found = !Live(seed, planted).violations.empty();
    EXPECT_TRUE(found) << "planted bug " << planted;
  }
}

// An operation at its first wave: every host has prepared.
struct Walk {
  Operation operation;
  std::vector<Effect> effects;
  template <typename Body>
  void Take(Body body) {
    Event event;
    event.sequence = operation.last_sequence + 1;
    event.body = std::move(body);
    Decision decision = Decide(operation, event);
    operation = std::move(decision.operation);
    effects = std::move(decision.effects);
  }
  void Begin(Plan plan) {
    Accepted accepted;
    accepted.id = "op";
    accepted.plan = std::move(plan);
    accepted.requested_by = "anna";
    Take(accepted);
    Take(LockTaken{});
  }
  // Each step under way ends well.
  void EndSteps() {
    for (const HostProgress& host : std::vector<HostProgress>(operation.hosts)) {
      if (!host.busy()) continue;
      StepResult result;
      result.step_id = host.step_id;
      result.state = host.step_kind == StepKind::kPrepare  ? HostState::kPrepared
                     : host.step_kind == StepKind::kKeep   ? HostState::kKept
                     : host.step_kind == StepKind::kRevert ? HostState::kReverted
                                                           : HostState::kCommitted;
      result.verdict = Verdict::kHealthy;
      Take(StepEnded{host.plan.host, result});
    }
  }
};

TEST(Operation, APauseHoldsTheNextWaveBackAndNothingElse) {
  Walk walk;
  walk.Begin(TwoWavePlan(2, OnFailure::kRevertAll, 1));
  walk.EndSteps();
  ASSERT_EQ(walk.operation.state, OperationState::kCommitting);
  EXPECT_EQ(WhyRefused(walk.operation, PauseRequested{"anna", ""}), "");
  walk.Take(PauseRequested{"anna", "to look"});
  EXPECT_THAT(WhyRefused(walk.operation, PauseRequested{"anna", ""}), HasSubstr("paused already"));
  walk.EndSteps();
  ASSERT_EQ(walk.operation.state, OperationState::kCommitting) << "what is under way goes on to its verification";
  walk.EndSteps();
  ASSERT_EQ(walk.operation.state, OperationState::kWaiting);
  ASSERT_EQ(walk.effects.size(), 1u);
  EXPECT_EQ(std::get<ArmWait>(walk.effects[0]).after, kLongestWait) << "not for ever";
  EXPECT_THAT(WaitsFor(walk.operation), HasSubstr("rbctl resume op"));
  const Operation waiting = walk.operation;
  walk.Take(WaitEnded{waiting.waits - 1});
  EXPECT_EQ(walk.operation.state, OperationState::kWaiting) << "an earlier wait's end is not this one's";
  walk.Take(ResumeRequested{"anna"});
  EXPECT_EQ(walk.operation.state, OperationState::kCommitting);
  EXPECT_EQ(walk.operation.wave, 2u);
  EXPECT_THAT(WhyRefused(walk.operation, ResumeRequested{"anna"}), HasSubstr("is not paused"));
  EXPECT_THAT(WhyRefused(walk.operation, PauseRequested{"anna", ""}), HasSubstr("no further wave"));

  walk.operation = waiting;
  walk.Take(WaitEnded{waiting.waits});
  EXPECT_EQ(walk.operation.state, OperationState::kReverting);
  walk.EndSteps();
  EXPECT_EQ(walk.operation.state, OperationState::kReverted);
  for (const OperatorRequest& request : {OperatorRequest(AbortRequested{}), OperatorRequest(PauseRequested{}),
                                         OperatorRequest(ResumeRequested{}), OperatorRequest(Approved{})}) {
    EXPECT_THAT(WhyRefused(walk.operation, request), HasSubstr("op has ended"));
  }
}

TEST(Operation, AHostThatIsThereAlreadyIsNotTouched) {
  for (const bool fails : {false, true}) {
    Walk walk;
    Plan plan = TwoWavePlan(3, OnFailure::kRevertAll, 3);
    plan.hosts[1].already_there = true;
    plan.hosts[1].wave = 0;
    walk.Begin(plan);
    for (int turn = 0; turn < 10 && !IsFinal(walk.operation.state); ++turn) {
      for (const Effect& effect : OutstandingEffects(walk.operation, "")) {
        const auto* step = std::get_if<StartStep>(&effect);
        ASSERT_TRUE(step == nullptr || step->host != "h1");
      }
      if (fails && walk.operation.state == OperationState::kCommitting) {
        StepResult sick;
        sick.step_id = walk.operation.hosts[0].step_id;
        sick.code = StatusCode::kFailed;
        walk.Take(StepEnded{"h0", sick});
      }
      walk.EndSteps();
    }
    EXPECT_EQ(walk.operation.state, fails ? OperationState::kReverted : OperationState::kSucceeded);
    EXPECT_EQ(walk.operation.hosts[1].state, HostState::kUntouched);
    EXPECT_EQ(walk.operation.hosts[1].attempt, 0u);
  }
}

TEST(Operation, AnApprovalIsAnotherOperators) {
  Plan plan = TwoWavePlan(2, OnFailure::kRevertAll, 2);
  plan.approval_before_wave = 1;
  Walk walk;
  walk.Begin(plan);
  walk.EndSteps();
  ASSERT_EQ(walk.operation.state, OperationState::kWaiting);
  EXPECT_THAT(WhyRefused(walk.operation, Approved{"anna", ""}), HasSubstr("another operator"));
  walk.Take(Approved{"anna", ""});
  EXPECT_EQ(walk.operation.state, OperationState::kWaiting) << "refused in the machine as well";
  walk.Take(Approved{"ben", "go"});
  EXPECT_EQ(walk.operation.state, OperationState::kCommitting);
  EXPECT_EQ(walk.operation.approved_by, "ben");
  EXPECT_THAT(WhyRefused(walk.operation, Approved{"carl", ""}), HasSubstr("approved already, by ben"));
}

TEST(Operation, ABusyHostIsAskedAgainABoundedNumberOfTimes) {
  Walk walk;
  walk.Begin(TwoWavePlan(1, OnFailure::kRevertAll, 1));
  std::vector<absl::Duration> delays;
  while (walk.operation.state == OperationState::kPreparing) {
    ASSERT_LT(delays.size(), 10u);
    StepResult busy;
    busy.step_id = walk.operation.hosts[0].step_id;
    busy.code = StatusCode::kUnavailable;
    busy.message = "at work on something else";
    walk.Take(StepEnded{"h0", busy});
    if (walk.operation.state == OperationState::kPreparing) {
      delays.push_back(std::get<StartStep>(walk.effects.at(0)).delay);
    }
  }
  EXPECT_THAT(delays, ElementsAre(absl::Seconds(1), absl::Seconds(2), absl::Seconds(4)));
  EXPECT_EQ(walk.operation.state, OperationState::kAborted);
}

TEST(Operation, TheLogsOfTheFirstHostsAreKept) {
  constexpr uint32_t kHosts = 25;
  constexpr uint32_t kMost = 20;
  Plan plan = TwoWavePlan(kHosts, OnFailure::kRevertAll, kHosts);
  plan.spec.kind = OperationKind::kVerification;
  Walk walk;
  walk.Begin(plan);
  const auto say = [&](size_t host, std::vector<std::string> lines, StatusCode code) {
    StepResult result;
    result.step_id = walk.operation.hosts[host].step_id;
    result.verdict = Verdict::kHealthy;
    result.code = code;
    result.log_lines = std::move(lines);
    walk.Take(StepEnded{walk.operation.hosts[host].plan.host, result});
  };
  say(0, {}, StatusCode::kOk);
  EXPECT_EQ(walk.operation.logged_hosts, 0u);
  // One that is asked again counts once, when it has an answer.
  say(1, {"busy"}, StatusCode::kUnavailable);
  EXPECT_EQ(walk.operation.logged_hosts, 0u);
  for (size_t i = 1; i < kHosts; ++i) say(i, {absl::StrCat("line of ", i)}, StatusCode::kOk);
  EXPECT_EQ(walk.operation.state, OperationState::kSucceeded);
  EXPECT_EQ(walk.operation.logged_hosts, kMost);
  for (size_t i = 0; i < kHosts; ++i) {
    EXPECT_EQ(walk.operation.hosts[i].log_lines.empty(), i == 0 || i > kMost) << i;
  }
  // What one of them says later takes the place of what it said, and of nobody else's.
  Walk again;
  again.Begin(TwoWavePlan(2, OnFailure::kRevertAll, 2));
  again.EndSteps();
  again.EndSteps();
  ASSERT_EQ(again.operation.hosts[0].step_kind, StepKind::kVerify);
  StepResult sick;
  sick.state = HostState::kCommitted;
  sick.verdict = Verdict::kUnhealthy;
  sick.log_lines = {"sick"};
  for (const size_t host : {0u, 1u}) {
    sick.step_id = again.operation.hosts[host].step_id;
    again.Take(StepEnded{again.operation.hosts[host].plan.host, sick});
  }
  ASSERT_EQ(again.operation.state, OperationState::kReverting);
  EXPECT_EQ(again.operation.logged_hosts, 2u);
  StepResult back;
  back.step_id = again.operation.hosts[0].step_id;
  back.state = HostState::kReverted;
  back.verdict = Verdict::kHealthy;
  back.log_lines = {"well"};
  again.Take(StepEnded{again.operation.hosts[0].plan.host, back});
  EXPECT_THAT(again.operation.hosts[0].log_lines, ElementsAre("well"));
  EXPECT_EQ(again.operation.logged_hosts, 2u);
}

TEST(Operation, AVerificationThatTheHostHasBegunIsNotSent) {
  Walk walk;
  walk.Begin(TwoWavePlan(3, OnFailure::kRevertAll, 3));
  walk.EndSteps();
  ASSERT_EQ(walk.operation.state, OperationState::kCommitting);
  const std::vector<Effect> commits = OutstandingEffects(walk.operation, "");
  ASSERT_EQ(commits.size(), 3u);
  const auto verification_after = [&](size_t host, const std::string& began_step_id) {
    StepResult committed;
    committed.step_id = walk.operation.hosts[host].step_id;
    committed.state = HostState::kCommitted;
    committed.began_step_id = began_step_id;
    walk.Take(StepEnded{walk.operation.hosts[host].plan.host, committed});
    return std::get<StartStep>(walk.effects.at(0));
  };
  // It was told the step with the commit, and says that it is at it: the deadline runs, and nothing is sent.
  const std::string told = std::get<StartStep>(commits[0]).next_step_id;
  const StartStep begun = verification_after(0, told);
  EXPECT_EQ(begun.kind, StepKind::kVerify);
  EXPECT_EQ(begun.step_id, told);
  EXPECT_GT(begun.deadline, absl::ZeroDuration());
  EXPECT_TRUE(begun.has_begun);
  EXPECT_FALSE(verification_after(1, "").has_begun) << "an older agent waits for it";
  EXPECT_FALSE(verification_after(2, told).has_begun) << "that is another host's";
  for (const Effect& effect : OutstandingEffects(walk.operation, "")) {
    EXPECT_FALSE(std::get<StartStep>(effect).has_begun) << "who connects anew is asked for what is outstanding";
  }
}

TEST(Operation, WhatPreparedAfterAllIsThrownAway) {
  Walk walk;
  walk.Begin(TwoWavePlan(2, OnFailure::kRevertAll, 2));
  const std::string step = walk.operation.hosts[0].step_id;
  StepResult result;
  result.step_id = step;
  result.code = StatusCode::kFailed;
  walk.Take(StepEnded{"h0", result});
  result.code = StatusCode::kOk;
  result.state = HostState::kPrepared;
  walk.Take(StepEnded{"h0", result});
  EXPECT_EQ(walk.operation.state, OperationState::kPreparing) << "h1 is still at it";
  walk.EndSteps();
  ASSERT_EQ(walk.operation.state, OperationState::kReverting);
  EXPECT_TRUE(walk.operation.hosts[0].busy()) << "it holds staged files";
  walk.EndSteps();
  EXPECT_EQ(walk.operation.state, OperationState::kAborted);
}

// Two waves of two hosts; h1 is cut off in the first one, h0 is healthy.
Walk CutOffInTheFirstWave(OperationKind kind, OnFailure on_failure) {
  Plan plan = TwoWavePlan(4, on_failure, 2);
  plan.spec.kind = kind;
  Walk walk;
  walk.Begin(plan);
  walk.EndSteps();
  StepResult result;
  result.state = HostState::kCommitted;
  result.step_id = walk.operation.hosts[0].step_id;
  walk.Take(StepEnded{"h0", result});
  result.step_id = walk.operation.hosts[0].step_id;
  result.verdict = Verdict::kHealthy;
  walk.Take(StepEnded{"h0", result});
  walk.Take(StepTimedOut{"h1", walk.operation.hosts[1].step_id});
  return walk;
}

TEST(Operation, ALostReportAloneUndoesNoHealthyHost) {
  for (const OnFailure policy : {OnFailure::kRevertWave, OnFailure::kRevertAll, OnFailure::kHold}) {
    Walk walk = CutOffInTheFirstWave(OperationKind::kRollback, policy);
    ASSERT_EQ(walk.operation.state, OperationState::kKeeping);
    EXPECT_EQ(walk.operation.hosts[0].step_kind, StepKind::kKeep);
    EXPECT_FALSE(walk.operation.hosts[1].busy()) << "it ends alone, and nobody waits for it";
    EXPECT_EQ(walk.operation.hosts[2].step_kind, StepKind::kRevert) << "no further wave begins";
    walk.EndSteps();
    ASSERT_EQ(walk.operation.state, OperationState::kNeedsAttention);
    EXPECT_THAT(walk.operation.summary, HasSubstr("h0: on the new state, healthy; h1: state not known"));
    EXPECT_THAT(walk.operation.next_commands, ::testing::Contains("when h1 is back: rbctl repair h1"));
  }
  // A deploy that nobody confirms is taken back by the host that was lost, so the others go back as well.
  Walk walk = CutOffInTheFirstWave(OperationKind::kDeploy, OnFailure::kRevertWave);
  EXPECT_EQ(walk.operation.state, OperationState::kReverting);
  EXPECT_EQ(walk.operation.hosts[0].step_kind, StepKind::kRevert);
}

// h0 was verified, then left alone for so long that it looked again; what it found comes while it is being kept.
TEST(Operation, AHostThatFellIllBeforeItWasKeptIsNoSuccess) {
  Walk walk;
  walk.Begin(TwoWavePlan(1, OnFailure::kHold, 1));
  for (int i = 0; i < 3; ++i) walk.EndSteps();
  ASSERT_EQ(walk.operation.state, OperationState::kKeeping);
  StepResult alone;
  alone.step_id = "alone/op/verify";
  alone.done_alone = true;
  alone.state = HostState::kCommitted;
  alone.verdict = Verdict::kUnhealthy;
  alone.message = "http: 503";
  walk.Take(StepEnded{"h0", alone});
  walk.EndSteps();
  EXPECT_EQ(walk.operation.state, OperationState::kNeedsAttention);
  EXPECT_THAT(walk.operation.summary, HasSubstr("h0: on the new state, NOT healthy (not healthy any more: http: 503)"));
}

TEST(Operation, AHostThatCannotBeReachedIsNotWaitedForAsLongAsOneThatCan) {
  Walk walk;
  Plan plan = TwoWavePlan(1, OnFailure::kRevertAll, 1);
  plan.verify_deadline = absl::Seconds(20);
  walk.Begin(plan);
  const auto& prepare = std::get<StartStep>(walk.effects.at(0));
  EXPECT_EQ(prepare.lost_deadline, absl::Seconds(20));
  EXPECT_GT(prepare.deadline, absl::Minutes(10));
  plan.verify_deadline = absl::Seconds(1);
  walk = Walk();
  walk.Begin(plan);
  EXPECT_EQ(std::get<StartStep>(walk.effects.at(0)).lost_deadline, absl::Seconds(10)) << "a restart takes some seconds";
}

TEST(Operation, AnEmergencyCallsNothingGoodYet) {
  for (const bool emergency : {false, true}) {
    Plan plan = TwoWavePlan(1, OnFailure::kRevertAll, 1);
    plan.spec.emergency = emergency;
    Walk walk;
    walk.Begin(plan);
    while (walk.operation.state != OperationState::kKeeping) walk.EndSteps();
    const auto keep = std::get<StartStep>(OutstandingEffects(walk.operation, "").at(0));
    EXPECT_EQ(keep.good, !emergency);
    EXPECT_TRUE(keep.replaced_is_bad);
  }
}

TEST(Operation, AVerificationChangesNothing) {
  Plan plan = TwoWavePlan(2, OnFailure::kRevertAll, 2);
  plan.spec.kind = OperationKind::kVerification;
  Walk walk;
  walk.Begin(plan);
  for (const Effect& effect : walk.effects) EXPECT_EQ(std::get<StartStep>(effect).kind, StepKind::kVerify);
  const Operation begun = walk.operation;
  walk.EndSteps();
  EXPECT_EQ(walk.operation.state, OperationState::kSucceeded);
  walk.operation = begun;
  StepResult sick;
  sick.step_id = begun.hosts[1].step_id;
  sick.verdict = Verdict::kUnhealthy;
  sick.message = "http: 503";
  walk.Take(StepEnded{"h1", sick});
  walk.EndSteps();
  EXPECT_EQ(walk.operation.state, OperationState::kNeedsAttention);
  EXPECT_THAT(walk.operation.summary, HasSubstr("h1"));
  EXPECT_THAT(walk.operation.summary, HasSubstr("Nothing was changed"));
}

TEST(Operation, APruneSaysWhatItRemoved) {
  Plan plan = TwoWavePlan(2, OnFailure::kRevertAll, 2);
  plan.spec.kind = OperationKind::kPrune;
  for (const bool fails : {false, true}) {
    Walk walk;
    walk.Begin(plan);
    ASSERT_EQ(walk.effects.size(), 2u);
    for (const Effect& effect : walk.effects) EXPECT_EQ(std::get<StartStep>(effect).kind, StepKind::kPrune);
    const Operation begun = walk.operation;
    for (size_t i = 0; i < 2; ++i) {
      StepResult pruned;
      pruned.step_id = begun.hosts[i].step_id;
      pruned.pruned_releases = 3;
      pruned.pruned_bytes = 2048;
      if (fails && i == 1) {
        pruned.code = StatusCode::kFailed;
        pruned.message = "the store is damaged";
      }
      walk.Take(StepEnded{begun.hosts[i].plan.host, pruned});
    }
    EXPECT_EQ(walk.operation.state, fails ? OperationState::kAborted : OperationState::kSucceeded);
    EXPECT_THAT(walk.operation.summary,
                HasSubstr(fails ? "not pruned on h1: not pruned: the store is damaged; removed 3 "
                                  "releases on 1 hosts, freed 2.0 KiB"
                                : "removed 6 releases on 2 hosts, freed 4.0 KiB"));
  }
  EXPECT_FALSE(ChangesHosts(OperationKind::kPrune)) << "no gate, no silence, no quarantine";
}

TEST(Operation, WhatDataIsPartOfMayTakeLonger) {
  absl::Duration prepare_without;
  for (const bool with_data : {false, true}) {
    Accepted accepted;
    accepted.id = "op";
    accepted.plan = TwoWavePlan(2, OnFailure::kRevertAll, 2);
    if (with_data) accepted.plan.spec.components = {Component::kCode, Component::kConfig, Component::kData};
    Event event;
    event.sequence = 1;
    event.body = accepted;
    Decision decision = Decide(Operation(), event);
    event.sequence = 2;
    event.body = LockTaken{};
    decision = Decide(decision.operation, event);
    const auto* step = std::get_if<StartStep>(&decision.effects.at(0));
    ASSERT_NE(step, nullptr);
    ASSERT_EQ(step->kind, StepKind::kPrepare);
    if (with_data) {
      EXPECT_EQ(step->deadline, prepare_without + StepDeadlines().with_data);
    } else {
      prepare_without = step->deadline;
    }
  }
}

TEST(Operation, WhenAllIsThereAlreadyNothingIsDone) {
  Accepted accepted;
  accepted.id = "op";
  accepted.plan = TwoWavePlan(2, OnFailure::kRevertAll, 2);
  for (HostPlan& host : accepted.plan.hosts) host.already_there = true;
  Event event;
  event.sequence = 1;
  event.body = accepted;
  Decision decision = Decide(Operation(), event);
  event.sequence = 2;
  event.body = LockTaken{};
  decision = Decide(decision.operation, event);
  EXPECT_EQ(decision.operation.state, OperationState::kSucceeded);
  EXPECT_TRUE(decision.operation.already_there);
  ASSERT_EQ(decision.effects.size(), 1u);
  EXPECT_TRUE(std::holds_alternative<ReleaseLock>(decision.effects[0]));
}

}  // namespace
}  // namespace rb::controller
