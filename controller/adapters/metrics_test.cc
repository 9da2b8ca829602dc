#include "controller/adapters/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/adapters/proto_time.h"
#include "common/durable_file.h"
#include "common/test_util.h"
#include "controller/adapters/drill_metrics.h"

namespace rb::controller {
namespace {

using ::rb::testing::TemporaryFolder;
using ::testing::HasSubstr;
using ::testing::Not;

Fleet FleetOf(const std::vector<std::string>& environments) {
  Fleet fleet;
  FleetService& bot = fleet.services["bot"];
  for (const std::string& environment : environments) bot.hosts[environment] = {environment + "-1"};
  return fleet;
}

v1::Operation Rollback(const std::string& environment, v1::OperationState state, int seconds,
                       const std::string& drill) {
  v1::Operation operation;
  operation.mutable_spec()->set_kind(v1::OPERATION_KIND_ROLLBACK);
  operation.mutable_spec()->set_service("bot");
  operation.mutable_spec()->set_environment(environment);
  operation.mutable_spec()->set_drill_id(drill);
  operation.set_state(state);
  *operation.mutable_ended_at() = ToProto(absl::FromUnixSeconds(1000));
  v1::HostProgress* host = operation.add_hosts();
  host->set_host(environment + "-1");
  host->set_environment(environment);
  host->set_method(v1::METHOD_GIT);
  host->set_target_met(seconds <= 120);
  *host->mutable_times()->mutable_recovery() = ToProto(absl::Seconds(seconds));
  return operation;
}

TEST(EndedOperations, CountsByTargetAndKeepsDrillsApart) {
  const Fleet fleet = FleetOf({"prod"});
  MetricSet values(MetricProgram::kController);
  EndedOperations ended(fleet, values);
  EXPECT_THAT(values.Text({}), HasSubstr("target=\"missed\"} 0\n")) << "so that the first is seen as one";
  ended.Count(Rollback("prod", v1::OPERATION_STATE_SUCCEEDED, 3, ""));
  ended.Count(Rollback("prod", v1::OPERATION_STATE_SUCCEEDED, 121, "D"));
  // Not recovered at all: missed as well, whatever it took to find out.
  ended.Count(Rollback("prod", v1::OPERATION_STATE_NEEDS_ATTENTION, 0, ""));
  MetricSamples samples;
  ended.Measure(&samples);
  const std::string text = values.Text(samples);
  const std::string series = "rb_recoveries_total{drill=\"";
  const std::string rest = "\",environment=\"prod\",method=\"git\",service=\"bot\",target=\"";
  EXPECT_THAT(text, HasSubstr(series + "false" + rest + "met\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(series + "false" + rest + "missed\"} 1\n"));
  EXPECT_THAT(text, HasSubstr(series + "true" + rest + "met\"} 0\n"));
  EXPECT_THAT(text, HasSubstr(series + "true" + rest + "missed\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("rb_operation_needs_attention{environment=\"prod\",service=\"bot\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("rb_recovery_last_seconds{drill=\"true\",environment=\"prod\",method=\"git\","
                              "service=\"bot\"} 121\n"));
}

TEST(EndedOperations, WhatIsNoLongerInTheFleetFileIsNotShown) {
  const Fleet fleet = FleetOf({"test"});
  MetricSet values(MetricProgram::kController);
  EndedOperations ended(fleet, values);
  for (const char* environment : {"test", "prod"}) {
    ended.Learn(Rollback(environment, v1::OPERATION_STATE_SUCCEEDED, 3, ""));
  }
  MetricSamples samples;
  ended.Measure(&samples);
  EXPECT_THAT(values.Text(samples), HasSubstr("rb_recovery_last_seconds{drill=\"false\",environment=\"test\""));
  EXPECT_THAT(values.Text(samples), Not(HasSubstr("prod")));
}

TEST(EndedDrills, TheLastOneThatNobodyStoppedCounts) {
  const Fleet fleet = FleetOf({"prod"});
  EndedDrills ended(fleet);
  const auto drill = [](const char* id, const char* environment, DrillState outcome, int at, int took) {
    return LastDrill{id,
                     environment,
                     "bot",
                     FaultKind::kBadCode,
                     outcome,
                     absl::FromUnixSeconds(at),
                     {{"execute", absl::Seconds(took), absl::Seconds(120), took <= 120}}};
  };
  ended.Learn(drill("D2", "prod", DrillState::kMissedTarget, 200, 130));
  ended.Learn(drill("D1", "prod", DrillState::kPassed, 100, 3));
  ended.Learn(drill("D3", "gone", DrillState::kPassed, 100, 3));
  ended.Count(drill("D4", "prod", DrillState::kStopped, 300, 1));
  MetricSamples samples;
  ended.Measure(&samples);
  const std::string text = MetricSet(MetricProgram::kController).Text(samples);
  const std::string of = "environment=\"prod\",fault=\"bad-code\",";
  EXPECT_THAT(text, HasSubstr("rb_drill_last_outcome{" + of + "outcome=\"missed_target\",service=\"bot\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("rb_drill_last_outcome{" + of + "outcome=\"passed\",service=\"bot\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("rb_drill_last_ended_timestamp_seconds{" + of + "service=\"bot\"} 200\n"));
  EXPECT_THAT(text, HasSubstr("rb_drill_last_phase_seconds{" + of + "phase=\"execute\",service=\"bot\"} 130\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE rb_drills_total counter\n"));
  EXPECT_THAT(text, HasSubstr("rb_drills_total{environment=\"prod\",outcome=\"stopped\",service=\"bot\"} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("gone")));
}

TEST(ReachableMetrics, IsWhatPrometheusCanScrapeFromHere) {
  EXPECT_EQ(ReachableMetrics("127.0.0.1:9465", "ipv4:127.0.0.1:40000", "prod-1"), "127.0.0.1:9465");
  EXPECT_EQ(ReachableMetrics("127.0.0.1:9465", "ipv4:10.0.0.7:40000", "prod-1"), "") << "another machine's loopback";
  EXPECT_EQ(ReachableMetrics("0.0.0.0:9465", "ipv4:10.0.0.7:40000", "prod-1"), "prod-1:9465");
  EXPECT_EQ(ReachableMetrics("10.0.0.7:9465", "ipv4:10.0.0.7:40000", "prod-1"), "10.0.0.7:9465");
  EXPECT_EQ(ReachableMetrics("nonsense", "ipv4:10.0.0.7:40000", "prod-1"), "");
}

TEST(ControllerMetrics, AHostThatLeftTheFleetFileLeavesTheFileOfTargets) {
  const TemporaryFolder folder;
  ControllerMetrics::Options options;
  options.server.address = "127.0.0.1:0";
  options.folder = folder.path();
  options.targets_file = folder / "targets.json";
  const std::string both = R"([{"targets": ["10.0.0.1:1"], "labels": {"host": "test-1", "__scheme__": "https"}},
                               {"targets": ["10.0.0.2:1"], "labels": {"host": "prod-1", "__scheme__": "https"}}])";
  RB_ASSERT_OK(WriteFileDurably(options.targets_file, both, 0644));
  EventLoop loop(SystemClock(), 10);
  RB_ASSERT_OK_AND_ASSIGN(const auto metrics, ControllerMetrics::Create(options, FleetOf({"test"})));
  metrics->AskOn(loop, SystemClock(), [](MetricSamples*) {});
  const std::string text = ReadFile(options.targets_file).value_or("");
  EXPECT_THAT(text, HasSubstr("10.0.0.1:1"));
  EXPECT_THAT(text, HasSubstr("\"environment\": \"test\""));
  EXPECT_THAT(text, Not(HasSubstr("prod-1")));
}

}  // namespace
}  // namespace rb::controller
