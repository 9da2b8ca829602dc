#include "controller/core/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/core/names.h"
#include "controller/core/plan.h"

namespace rb::controller {
namespace {

std::vector<TimeSample> OneToHundred() {
  std::vector<TimeSample> samples;
  // In no order.
  for (int i = 0; i < 100; ++i) {
    const int n = (i * 37) % 100 + 1;
    samples.push_back({absl::Seconds(n), absl::Milliseconds(n)});
  }
  return samples;
}

TEST(Predict, OneHostByNearestRank) {
  const Prediction prediction = PredictHost(OneToHundred());
  EXPECT_EQ(prediction.samples, 100u);
  EXPECT_EQ(prediction.p50, absl::Seconds(50) + absl::Milliseconds(50));
  EXPECT_EQ(prediction.p95, absl::Seconds(95) + absl::Milliseconds(95));
  EXPECT_EQ(PredictHost({}).samples, 0u);
  const Prediction single = PredictHost({{absl::Seconds(3), absl::Seconds(1)}});
  EXPECT_EQ(single.p50, absl::Seconds(4));
  EXPECT_EQ(single.p95, absl::Seconds(4));
}

TEST(Predict, TheSlowestOfManyCounts) {
  const std::vector<TimeSample> samples = OneToHundred();
  const Prediction one = PredictOperation({{&samples, {1}}}, absl::ZeroDuration());
  EXPECT_EQ(one.p50, absl::Seconds(50) + absl::Milliseconds(50));
  // Half the time all of ten are under the 94th of a hundred: 0.5^(1/10) = 0.933.
  const Prediction ten = PredictOperation({{&samples, {10}}}, absl::ZeroDuration());
  EXPECT_EQ(ten.p50, absl::Seconds(94) + absl::Milliseconds(94));
  EXPECT_EQ(ten.p95, absl::Seconds(100) + absl::Milliseconds(100));
}

TEST(Predict, WavesComeOneAfterTheOtherWithTheirSoaks) {
  const std::vector<TimeSample> samples = {{absl::Seconds(1), absl::Seconds(2)}};
  const Prediction three = PredictOperation({{&samples, {1, 1, 1}}}, absl::Seconds(10));
  EXPECT_EQ(three.p50, absl::Seconds(1 + 3 * 2 + 2 * 10));
}

TEST(Predict, NothingWhereAGroupWasNeverMeasured) {
  const std::vector<TimeSample> samples = OneToHundred();
  EXPECT_EQ(PredictOperation({{&samples, {1}}, {nullptr, {1}}}, absl::ZeroDuration()).samples, 0u);
}

TEST(ReasonList, TheSameForManyHostsIsOneAndItIsBounded) {
  Reasons reasons;
  for (int i = 0; i < 2000; ++i) reasons.Add(Rule::kMethod, "backup", absl::StrCat("h", i));
  ASSERT_EQ(reasons.list().size(), 1u);
  EXPECT_EQ(reasons.list()[0].host_count, 2000u);
  EXPECT_EQ(reasons.list()[0].hosts.size(), kMostNamed);
  for (int i = 0; i < 2000; ++i) reasons.Add(Rule::kEvent, absl::StrCat("text ", i), "h");
  EXPECT_EQ(reasons.list().size(), Reasons::kMost);
}

TEST(Names, SomeAndTheNumberOfTheOthers) {
  EXPECT_EQ(JoinSome({"a", "b"}), "a, b");
  EXPECT_EQ(JoinSome({"a", "b", "c"}, "; ", 2), "a; b and 1 others");
}

// A fleet of 2,000 and what its hosts say.
class LargePlan : public ::testing::Test {
 protected:
  LargePlan() {
    Environment prod;
    prod.name = "prod";
    fleet_.environments = {prod};
    FleetService service;
    service.name = "bot";
    service.wave = {0, 50};
    for (int i = 0; i < 2000; ++i) service.hosts["prod"].push_back(absl::StrCat("host-", i));
    fleet_.services["bot"] = service;
    spec_.environment = "prod";
    spec_.reason = "it broke";
    history_.now = absl::FromUnixSeconds(1'800'000'000);
    history_.times[{"prod", Method::kBackup}] = {{absl::Seconds(1), absl::Seconds(2)}};
    for (const std::string& host : service.hosts["prod"]) {
      Candidate candidate;
      candidate.release = Release();
      candidate.release->name = "bot/v1";
      candidate.release->durability = Durability::kProved;
      candidate.release->standing = Standing::kGood;
      candidate.release->manifest_digest = "d";
      candidate.delta.config_diff = std::string(16 << 10, 'x');
      Candidate bad = candidate;
      bad.refused_because = "is bad";
      inspections_[host].connected = true;
      inspections_[host].verdict = Verdict::kHealthy;
      inspections_[host].candidates = {candidate, bad};
    }
  }
  Plan Make() { return MakePlan(ResolveScope(spec_, fleet_), fleet_, inspections_, history_); }
  static std::vector<std::string> Texts(const Plan& plan, Rule rule) {
    std::vector<std::string> texts;
    for (const Reason& reason : plan.reasons.list()) {
      if (reason.rule == rule) texts.push_back(reason.text);
    }
    return texts;
  }

  Fleet fleet_;
  OperationSpec spec_;
  PlanningHistory history_;
  std::map<std::string, Inspection> inspections_;
};

TEST_F(LargePlan, SaysWhyAndHowLongAndStaysSmall) {
  const Plan plan = Make();
  ASSERT_FALSE(plan.refusal.refused()) << plan.refusal.message;
  EXPECT_THAT(Texts(plan, Rule::kMethod),
              ::testing::ElementsAre("auto tries, in this order: a proved backup, git, a backup that is not proved, "
                                     "redeploy through CI",
                                     "backup: a proved backup is the fastest"));
  EXPECT_THAT(absl::StrJoin(Texts(plan, Rule::kNotChosen), ";"), ::testing::HasSubstr("is bad"));
  EXPECT_THAT(absl::StrJoin(Texts(plan, Rule::kWave), ";"), ::testing::HasSubstr("2000 hosts in 2 waves (size 50%"));
  EXPECT_THAT(Texts(plan, Rule::kScope), ::testing::SizeIs(1));
  EXPECT_LT(plan.reasons.list().size(), 20u);
  EXPECT_EQ(plan.prediction.p50, absl::Seconds(1 + 2 + 2));
  EXPECT_EQ(plan.prediction.basis, "backup in prod");
  EXPECT_EQ(plan.hosts[1999].prediction.p50, absl::Seconds(3));
  size_t details = 0;
  for (const HostPlan& host : plan.hosts) details += host.delta.config_diff.size();
  EXPECT_LE(details, kMostDetailedHosts * (16 << 10));
}

TEST_F(LargePlan, ARefusalNamesSomeAndCountsTheOthers) {
  for (auto& [host, inspection] : inspections_) inspection.connected = false;
  Plan plan = Make();
  EXPECT_EQ(plan.refusal.code, Refusal::Code::kHostOffline);
  EXPECT_THAT(plan.refusal.message, ::testing::HasSubstr("and 1990 others are offline"));
  EXPECT_LT(plan.refusal.message.size(), 1000u);
  EXPECT_EQ(plan.refusal.hosts.size(), kMostNamed);
  EXPECT_THAT(Texts(plan, Rule::kRefusal), ::testing::SizeIs(1));
  for (auto& [host, inspection] : inspections_) {
    inspection.connected = true;
    for (Candidate& candidate : inspection.candidates) candidate.refused_because = "is bad";
  }
  plan = Make();
  EXPECT_EQ(plan.refusal.code, Refusal::Code::kNoCandidate);
  size_t named = 0;
  for (const auto& [host, candidates] : plan.refusal.candidates) named += candidates.size();
  EXPECT_LE(named, 20u);
  EXPECT_GT(named, 0u);
}

TEST_F(LargePlan, WithoutAMeasurementItPredictsNothing) {
  history_.times.clear();
  EXPECT_EQ(Make().prediction.samples, 0u);
  // Of another environment it says so.
  history_.times[{"test", Method::kBackup}] = {{absl::Seconds(1), absl::Seconds(2)}};
  EXPECT_EQ(Make().prediction.basis, "backup in test");
}

}  // namespace
}  // namespace rb::controller
