#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "rbctl/render/json.h"
#include "rbctl/render/redraw.h"
#include "rbctl/render/text.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

using ::testing::HasSubstr;

// With RB_UPDATE_GOLDEN set, writes the file instead; read the difference before it is kept.
void ExpectGolden(const std::string& name, const std::string& text) {
  const std::string path = std::string(RBCTL_TESTDATA) + "/" + name;
  if (std::getenv("RB_UPDATE_GOLDEN") != nullptr) {
    std::ofstream(path) << text;
  }
  std::ifstream file(path);
  std::stringstream expected;
  expected << file.rdbuf();
  EXPECT_EQ(expected.str(), text) << path;
}

void SetSeconds(google::protobuf::Duration* duration, double seconds) {
  duration->set_seconds(static_cast<int64_t>(seconds));
  duration->set_nanos(static_cast<int32_t>((seconds - static_cast<double>(duration->seconds())) * 1e9));
}

v1::Operation SampleOperation() {
  v1::Operation operation;
  operation.set_id("op-20261123T031407Z-4f2a9c");
  v1::OperationSpec* spec = operation.mutable_spec();
  spec->set_kind(v1::OPERATION_KIND_ROLLBACK);
  spec->set_environment("prod");
  spec->set_service("sample-bot");
  spec->mutable_target()->set_kind(v1::TargetReference::KIND_NAMED);
  spec->mutable_target()->set_name("v1.1.0");
  spec->set_reason("it does not start");
  operation.set_state(v1::OPERATION_STATE_SUCCEEDED);
  operation.set_summary("prod/sample-bot runs v1.1.0 on 2 hosts");
  operation.set_requested_by("alice");
  operation.mutable_accepted_at()->set_seconds(1795403647);
  operation.mutable_ended_at()->set_seconds(1795403650);
  SetSeconds(operation.mutable_recovery(), 1.5);
  SetSeconds(operation.mutable_target(), 180);
  operation.set_target_met(true);
  operation.set_last_sequence(9);
  for (const char* name : {"prod-1", "prod-2"}) {
    v1::HostProgress* host = operation.add_hosts();
    host->set_host(name);
    host->set_wave(1);
    host->set_connected(true);
    host->set_state(v1::HOST_STATE_KEPT);
    host->set_method(v1::METHOD_BACKUP);
    host->set_from_version("v1.2.0");
    host->set_from_commit("1111111111111111111111111111111111111111");
    host->set_to_version("v1.1.0");
    host->set_to_commit("2222222222222222222222222222222222222222");
    SetSeconds(host->mutable_times()->mutable_prepare(), 0.42);
    SetSeconds(host->mutable_times()->mutable_downtime(), 0.31);
    SetSeconds(host->mutable_times()->mutable_recovery(), 1.25);
    SetSeconds(host->mutable_target(), 180);
    host->set_target_met(true);
    host->set_verdict(v1::VERDICT_HEALTHY);
    host->set_replaced_release("sample-bot/2026-11-23T03-14-07Z-v1.2.0-1111111");
  }
  return operation;
}

v1::Operation BrokenOperation() {
  v1::Operation operation = SampleOperation();
  operation.set_state(v1::OPERATION_STATE_NEEDS_ATTENTION);
  operation.set_summary("prod-1 is unhealthy");
  operation.clear_recovery();
  v1::HostProgress* host = operation.mutable_hosts(0);
  host->set_verdict(v1::VERDICT_UNHEALTHY);
  host->set_state(v1::HOST_STATE_COMMITTED);
  host->mutable_times()->clear_recovery();
  host->mutable_times()->clear_downtime();
  host->set_error("it runs v1.1.0 and is unhealthy\x1b[2J");
  v1::ProbeResult* probe = host->add_probes();
  probe->set_name("http http://127.0.0.1:8001/api/health");
  probe->set_observed("503");
  probe->set_expected("200");
  operation.add_next_commands("rbctl rollback prod");
  return operation;
}

TEST(RenderTest, Reports) {
  ExpectGolden("report-succeeded.txt", RenderReport(SampleOperation(), {}));
  ExpectGolden("report-succeeded-colour.txt", RenderReport(SampleOperation(), {true}));
  ExpectGolden("report-needs-attention.txt", RenderReport(BrokenOperation(), {}));
  ExpectGolden("operation.json", JsonOperation(SampleOperation(), 0));
}

TEST(RenderTest, Refusal) {
  v1::Refusal refusal;
  refusal.set_code(v1::Refusal::CODE_NO_CANDIDATE);
  refusal.set_message("nothing is called v9. Nothing was changed.");
  refusal.set_next_command("rbctl backup list prod");
  v1::HostCandidates* host = refusal.add_candidates();
  host->set_host("prod-1");
  v1::Candidate* candidate = host->add_candidates();
  candidate->set_method(v1::METHOD_BACKUP);
  candidate->set_version("v1.1.0");
  candidate->mutable_release()->set_name("sample-bot/2026-11-22T03-14-07Z-v1.1.0-2222222");
  candidate->mutable_release()->set_standing(v1::STANDING_GOOD);
  candidate->mutable_release()->mutable_last_proved_at()->set_seconds(1795403647);
  candidate = host->add_candidates();
  candidate->set_method(v1::METHOD_BACKUP);
  candidate->set_version("v1.2.0");
  candidate->set_refused_because("it was rolled back from");
  candidate->mutable_release()->set_name("sample-bot/2026-11-23T03-14-07Z-v1.2.0-1111111");
  candidate->mutable_release()->set_standing(v1::STANDING_BAD);
  ExpectGolden("refusal.txt", RenderRefusal(refusal, {}));
  ExpectGolden("refusal.json", JsonRefusal(SampleOperation().spec(), refusal, 5));
}

TEST(RenderTest, TheRest) {
  v1::GetOperationResponse show;
  *show.mutable_operation() = BrokenOperation();
  v1::OperationEvent* event = show.add_events();
  event->set_sequence(1);
  event->mutable_at()->set_seconds(1795403647);
  event->set_state(v1::OPERATION_STATE_PREPARING);
  event->set_host("prod-1");
  event->set_text("two\nlines");
  ExpectGolden("show.txt", RenderShow(show, {}));
  v1::ListOperationsResponse history;
  *history.add_operations() = SampleOperation();
  *history.add_operations() = BrokenOperation();
  ExpectGolden("history.txt", RenderHistory(history, {}));
  v1::GetStatusResponse status;
  v1::HostStatus* host = status.add_hosts();
  host->set_environment("prod");
  host->set_service("sample-bot");
  host->set_host("prod-1");
  host->set_connected(true);
  host->set_operation_id("op-1");
  host->set_operation_state(v1::OPERATION_STATE_PREPARING);
  host->mutable_report()->set_current_version("v1.1.0");
  host->mutable_report()->set_drifted(true);
  host->mutable_report()->set_verdict(v1::VERDICT_HEALTHY);
  host = status.add_hosts();
  host->set_environment("prod");
  host->set_service("sample-bot");
  host->set_host("prod-2");
  ExpectGolden("status.json", JsonStatus(status));
  // While an operation is at work on a host, nobody is told that a hand was.
  host = status.add_hosts();
  *host = status.hosts(0);
  host->set_host("prod-3");
  host->clear_operation_id();
  ExpectGolden("status.txt", RenderStatus(status, {}));
  v1::Plan plan;
  *plan.mutable_spec() = SampleOperation().spec();
  v1::HostPlan* planned = plan.add_hosts();
  planned->set_host("prod-1");
  planned->set_wave(1);
  planned->set_method(v1::METHOD_BACKUP);
  planned->set_method_because("it is proved and on the host");
  planned->add_fallback_methods(v1::METHOD_GIT);
  planned->set_version("v1.1.0");
  planned->mutable_delta()->set_files_changed(2);
  planned->mutable_delta()->add_sample_paths("config-prod.json");
  planned->mutable_delta()->set_config_diff("-a\n+b\n");
  planned->mutable_delta()->mutable_data_age()->set_seconds(2240);
  v1::TableRows* rows = planned->mutable_delta()->add_table_rows();
  rows->set_database("data/bot.db");
  rows->set_table("users");
  rows->set_now(120);
  rows->set_then(100);
  plan.add_notes("prod-1: not proved yet");
  plan.add_notes("the window of prod is shut, and was overridden");
  for (const auto& [rule, reason] : {std::make_pair(v1::Reason::RULE_WAVE, "2 waves of 50%: the fleet file says so"),
                                     {v1::Reason::RULE_SCOPE, "every host of prod, in the fleet file's order"},
                                     {v1::Reason::RULE_METHOD, "backup: it is proved and on the host"},
                                     {v1::Reason::RULE_GATE, "the window of prod is shut, and was overridden"}}) {
    plan.add_reasons()->set_rule(rule);
    plan.mutable_reasons()->rbegin()->set_text(reason);
  }
  plan.set_wave_count(1);
  ExpectGolden("plan.txt", RenderPlan(plan, {}));
}

TEST(RenderTest, NothingRemoteReachesTheTerminalRaw) {
  const std::string text = RenderReport(BrokenOperation(), {});
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
}

TEST(RenderTest, JsonSurvivesBytesThatAreNoText) {
  v1::Operation operation = SampleOperation();
  operation.set_summary("\xff\xfe");
  EXPECT_FALSE(nlohmann::json::parse(JsonOperation(operation, 0)).is_discarded());
}

TEST(RenderTest, ExitCodes) {
  const struct {
    v1::OperationState state;
    int code;
    const char* outcome;
  } cases[] = {{v1::OPERATION_STATE_SUCCEEDED, 0, "succeeded"},
               {v1::OPERATION_STATE_ABORTED, 1, "aborted"},
               {v1::OPERATION_STATE_NEEDS_ATTENTION, 3, "needs_attention"},
               {v1::OPERATION_STATE_REVERTED, 6, "reverted"},
               {v1::OPERATION_STATE_COMMITTING, 3, "running"}};
  for (const auto& each : cases) {
    v1::Operation operation;
    operation.set_state(each.state);
    EXPECT_EQ(ExitCodeFor(operation), each.code);
    EXPECT_EQ(Outcome(operation), each.outcome);
  }
}

TEST(RedrawTest, GoesUpOverWhatWasDrawnAndClearsTheRest) {
  size_t previous = 0;
  EXPECT_EQ(Redraw({"one", "two"}, 80, 24, &previous), "one\x1b[K\ntwo\x1b[K\n\x1b[J");
  EXPECT_EQ(previous, 2u);
  EXPECT_EQ(Redraw({"x"}, 80, 24, &previous), "\x1b[2A\rx\x1b[K\n\x1b[J");
  EXPECT_EQ(previous, 1u);
}

TEST(RedrawTest, FitsTheTerminal) {
  EXPECT_EQ(FitWidth("abcdef", 3), "abc");
  EXPECT_EQ(FitWidth("äöüx", 3), "äöü");
  EXPECT_EQ(FitWidth("\x1b[31mabc\x1b[0m", 2), "\x1b[31mab\x1b[0m");
  size_t previous = 0;
  const std::string bytes = Redraw({"1", "2", "3", "4", "5"}, 80, 4, &previous);
  EXPECT_EQ(previous, 3u);
  EXPECT_THAT(bytes, HasSubstr("and 3 more lines"));
}

}  // namespace
}  // namespace rb::cli
