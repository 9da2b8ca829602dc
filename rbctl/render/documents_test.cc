#include "rbctl/render/documents.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "rbctl/render/checklist.h"
#include "rbctl/render/doctor.h"
#include "rbctl/render/markdown.h"
#include "rbctl/render/text.h"

namespace rb::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kNow = 1795403647;  // 2026-11-23T03:14:07Z

// With RB_UPDATE_GOLDEN set, writes the file instead; read the difference before it is kept.
void ExpectGolden(const std::string& path, const std::string& text) {
  if (std::getenv("RB_UPDATE_GOLDEN") != nullptr) std::ofstream(path) << text;
  std::ifstream file(path);
  std::stringstream expected;
  expected << file.rdbuf();
  EXPECT_EQ(expected.str(), text) << path << ": written by docs/make-runbook";
}

void SetSeconds(google::protobuf::Duration* duration, double seconds) {
  duration->set_seconds(static_cast<int64_t>(seconds));
  duration->set_nanos(static_cast<int32_t>((seconds - static_cast<double>(duration->seconds())) * 1e9));
}

void AddProbe(v1::ServiceReport* report, const std::string& name, const std::string& expected, bool external = false) {
  v1::ProbeResult* probe = report->add_probes();
  probe->set_name(name);
  probe->set_kind(name.substr(0, name.find(' ')));
  probe->set_passed(true);
  probe->set_expected(expected);
  probe->set_external(external);
}

// The sample fleet, as two hosts of it would report.
v1::GetRunbookResponse SampleRunbook() {
  v1::GetRunbookResponse runbook;
  runbook.set_environment("prod");
  runbook.mutable_at()->set_seconds(kNow);
  runbook.set_reason_required(true);
  runbook.add_gates("the same target has passed in test before");
  v1::RunbookService* service = runbook.add_services();
  service->set_service("sample-bot");
  SetSeconds(service->mutable_target_backup(), 180);
  SetSeconds(service->mutable_target_redeploy(), 600);
  SetSeconds(service->mutable_target_git(), 120);
  for (const char* name : {"prod-1", "prod-2"}) {
    v1::RunbookHost* host = service->add_hosts();
    host->set_host(name);
    host->set_connected(true);
    v1::ServiceReport* report = host->mutable_report();
    report->set_service("sample-bot");
    report->set_tree("/opt/sample-bot");
    report->set_current_release("sample-bot/2026-11-22T10-00-00Z-v1.1.0-b2e0d69");
    report->set_current_commit("b2e0d69000000000000000000000000000000000");
    report->set_current_version("v1.1.0");
    for (const char* version : {"v1.1.0-b2e0d69", "v1.0.0-1d9e3c5"}) {
      v1::Release* release = report->add_releases();
      release->set_name(absl::StrCat("sample-bot/2026-11-", version[3] == '1' ? "22" : "20", "T10-00-00Z-", version));
      release->set_version(std::string(version).substr(0, 6));
      release->set_commit(std::string(version).substr(7) + std::string(33, '0'));
      release->set_standing(v1::STANDING_GOOD);
      release->set_durability(v1::DURABILITY_PROVED);
      release->mutable_last_proved_at()->set_seconds(kNow - 3600);
    }
    AddProbe(report, "unit", "active, the same process for 10.0 s");
    AddProbe(report, "http http://127.0.0.1:8001/api/health", "status 200, status = healthy");
    AddProbe(report, "journal sample-bot.service", "a line with /Connected to chat/, no line with /ERROR|CRITICAL/");
    AddProbe(report, "version http://127.0.0.1:8001/api/health", "v1.1.0 or b2e0d6900000");
    AddProbe(report, "sqlite data/bot.db", "integrity_check says ok");
    AddProbe(report, "metrics http://127.0.0.1:8001/metrics", "status 200, Prometheus text");
    AddProbe(report, "tcp chat.example.org:443", "accepts connections", true);
    v1::ServiceSetup* setup = report->mutable_setup();
    setup->set_unit("sample-bot.service");
    setup->set_owner("sample:sample");
    setup->add_config("config-*.json");
    setup->add_data("data/**");
    setup->add_sqlite("data/bot.db");
    setup->set_git_remote("https://git.example.org/sample-bot.git");
    setup->set_git_branch("main");
    setup->set_state_folder("/var/lib/rb-agent");
    setup->add_clears("**/__pycache__");
    setup->add_restarts("sample-dashboard.service");
  }
  return runbook;
}

v1::GetOperationResponse SampleOperation() {
  v1::GetOperationResponse response;
  v1::Operation* operation = response.mutable_operation();
  operation->set_id("op-20261123T031407Z-4f2a9c");
  v1::OperationSpec* spec = operation->mutable_spec();
  spec->set_kind(v1::OPERATION_KIND_ROLLBACK);
  spec->set_environment("prod");
  spec->set_service("sample-bot");
  spec->mutable_target()->set_kind(v1::TargetReference::KIND_NAMED);
  spec->mutable_target()->set_name("v1.1.0");
  spec->set_reason("v1.2.0 does not start");
  operation->set_state(v1::OPERATION_STATE_SUCCEEDED);
  operation->set_summary("prod is healthy on v1.1.0 (b2e0d69); recovery 1.25 s, within the target of 3m 00s");
  operation->set_requested_by("alice");
  operation->mutable_accepted_at()->set_seconds(kNow);
  operation->mutable_ended_at()->set_seconds(kNow + 3);
  SetSeconds(operation->mutable_recovery(), 1.25);
  SetSeconds(operation->mutable_target(), 180);
  operation->set_target_met(true);
  for (const char* name : {"prod-1", "prod-2"}) {
    v1::HostPlan* plan = operation->mutable_plan()->add_hosts();
    plan->set_host(name);
    plan->set_method(v1::METHOD_BACKUP);
    plan->mutable_last_proved_at()->set_seconds(kNow - 3600);
    plan->mutable_delta()->set_config_diff("--- config-prod.json\n-  \"room\": \"a\"\n+  \"room\": \"b\"\n");
    v1::HostProgress* host = operation->add_hosts();
    host->set_host(name);
    host->set_state(v1::HOST_STATE_KEPT);
    host->set_method(v1::METHOD_BACKUP);
    host->set_from_version("v1.2.0");
    host->set_from_commit("c403d66000000000000000000000000000000000");
    host->set_to_version("v1.1.0");
    host->set_to_commit("b2e0d69000000000000000000000000000000000");
    SetSeconds(host->mutable_times()->mutable_prepare(), 0.42);
    SetSeconds(host->mutable_times()->mutable_stop(), 0.05);
    SetSeconds(host->mutable_times()->mutable_swap(), 0.01);
    SetSeconds(host->mutable_times()->mutable_start(), 0.02);
    SetSeconds(host->mutable_times()->mutable_downtime(), 0.8);
    SetSeconds(host->mutable_times()->mutable_recovery(), 1.25);
    SetSeconds(host->mutable_target(), 180);
    host->set_target_met(true);
    host->set_verdict(v1::VERDICT_HEALTHY);
    host->set_replaced_release("sample-bot/2026-11-23T03-14-07Z-v1.2.0-c403d66");
    v1::ProbeResult* probe = host->add_probes();
    probe->set_name("unit");
    probe->set_kind("unit");
    probe->set_passed(true);
    probe->set_observed("active, process 812 for 0.70 s");
    probe->set_expected("active");
    probe = host->add_probes();
    probe->set_name("log /opt/sample-bot/logs/bot.log");
    probe->set_kind("log");
    probe->set_passed(true);
    probe->set_observed("\"03:14:08 Connected to chat\"");
    probe->set_expected("a line with /Connected to chat/");
    probe = host->add_probes();
    probe->set_name("tcp chat.example.org:443");
    probe->set_kind("tcp");
    probe->set_external(true);
    probe->set_observed("Connection refused");
    probe->set_expected("accepts connections");
    host->add_log_lines("sample-bot v1.1.0 starts on port 8001");
    host->add_log_lines("| `03:14:08` Connected to <chat>");
  }
  for (const auto& [state, name, text] :
       {std::tuple{v1::OPERATION_STATE_PLANNED, "", "accepted from alice: v1.2.0 does not start"},
        std::tuple{v1::OPERATION_STATE_COMMITTING, "prod-1", "committed: stop 0.05 s, swap 0.01 s, start 0.02 s"},
        std::tuple{v1::OPERATION_STATE_SUCCEEDED, "", "succeeded"}}) {
    v1::OperationEvent* event = response.add_events();
    event->set_sequence(static_cast<uint64_t>(response.events_size()));
    event->mutable_at()->set_seconds(kNow + response.events_size());
    event->set_state(state);
    event->set_host(name);
    event->set_text(text);
  }
  return response;
}

v1::GetOperationResponse FailedOperation() {
  v1::GetOperationResponse response = SampleOperation();
  v1::Operation* operation = response.mutable_operation();
  operation->set_state(v1::OPERATION_STATE_NEEDS_ATTENTION);
  operation->set_summary("prod-2 is not healthy");
  operation->clear_recovery();
  operation->mutable_spec()->set_emergency(true);
  operation->add_next_commands("rbctl rollback prod --host prod-2 --to v1.0.0");
  operation->mutable_plan()->add_missed_hosts()->set_host("prod-3");
  operation->mutable_plan()->mutable_hosts(1)->clear_last_proved_at();
  v1::HostProgress* host = operation->mutable_hosts(1);
  host->set_verdict(v1::VERDICT_UNHEALTHY);
  host->set_state(v1::HOST_STATE_COMMITTED);
  host->mutable_times()->clear_recovery();
  host->set_error("not healthy: unit: failed | `rm` <b>\n# no title");
  host->mutable_probes(0)->set_passed(false);
  host->mutable_probes(0)->set_observed("failed; last: exited with status 1");
  return response;
}

TEST(Documents, Goldens) {
  const std::string data = RBCTL_TESTDATA;
  ExpectGolden(std::string(RBCTL_DOCS) + "/ROLLBACK-RUNBOOK.md", RenderRunbook(SampleRunbook()));
  ExpectGolden(data + "/incident.md", RenderIncident(SampleOperation()));
  ExpectGolden(data + "/incident-failed.md", RenderIncident(FailedOperation()));
  ExpectGolden(data + "/notes.md", RenderNotes(SampleOperation()));
  ExpectGolden(data + "/notes-failed.md", RenderNotes(FailedOperation()));
}

TEST(Documents, ARunbookIsRightForItsHosts) {
  v1::GetRunbookResponse runbook = SampleRunbook();
  const std::string text = RenderRunbook(runbook);
  EXPECT_THAT(text,
              HasSubstr("rb-agent local rollback sample-bot --to sample-bot/2026-11-20T10-00-00Z-v1.0.0-1d9e3c5"));
  EXPECT_THAT(text, HasSubstr("#### On prod-1, prod-2"));
  EXPECT_THAT(text, HasSubstr("mv \"$f\" \"$db.bad-$stamp/\""));
  EXPECT_THAT(text, HasSubstr("\"$db-wal\" \"$db-shm\" \"$db-journal\""));
  EXPECT_THAT(text, Not(HasSubstr("cp -r ")));
  // Hosts that are not alike are written about each on its own.
  runbook.mutable_services(0)->mutable_hosts(1)->mutable_report()->set_tree("/srv/it's here");
  const std::string two = RenderRunbook(runbook);
  EXPECT_THAT(two, HasSubstr("#### On prod-2\n"));
  EXPECT_THAT(two, HasSubstr("tree='/srv/it'\\''s here'"));
  // One that has never reported is not made up.
  runbook.mutable_services(0)->mutable_hosts(1)->clear_report();
  EXPECT_THAT(RenderRunbook(runbook), HasSubstr("prod-2: it has not reported yet"));
}

TEST(Documents, NothingRemoteBecomesMarkup) {
  const std::string text = RenderIncident(FailedOperation());
  EXPECT_THAT(text, Not(HasSubstr("<b>")));
  EXPECT_THAT(text, Not(HasSubstr("\n# no title")));
  EXPECT_EQ(MarkdownCode("a`b|c\n"), "`a'b\\|c\\x0a`");
  EXPECT_EQ(ShellWord("$(reboot)"), "'$(reboot)'");
  EXPECT_EQ(ShellWord(""), "''");
}

TEST(Doctor, Renders) {
  v1::DiagnoseResponse response;
  response.set_hosts_asked(2);
  response.set_hosts_answered(2);
  EXPECT_EQ(RenderDiagnosis(response, {}),
            "2 services on hosts asked, 2 answered: nothing is in the way of a recovery.\n");
  EXPECT_FALSE(HasErrors(response));
  v1::Finding* finding = response.add_findings();
  finding->set_severity(v1::SEVERITY_WARNING);
  finding->set_code("clock-skew");
  finding->set_environment("prod");
  finding->set_service("bot");
  finding->set_host("prod-1");
  finding->set_seen("its clock is 5.00 s ahead\x1b[2J");
  finding->set_mend("timedatectl");
  EXPECT_FALSE(HasErrors(response));
  EXPECT_EQ(RenderDiagnosis(response, {}),
            "warning  prod/bot prod-1: its clock is 5.00 s ahead\\x1b[2J [clock-skew]\n  Mend: timedatectl\n"
            "2 services on hosts asked, 2 answered: 0 errors, 1 warning.\n");
  finding->set_severity(v1::SEVERITY_ERROR);
  EXPECT_TRUE(HasErrors(response));
  const auto json = nlohmann::json::parse(JsonDiagnosis(response, 3));
  EXPECT_EQ(json["findings"][0]["code"], "clock-skew");
  EXPECT_EQ(json["exit_code"], 3);
}

TEST(Checklist, EachCheckOnItsOwnAndTheTimeAmongThem) {
  const v1::GetOperationResponse response = FailedOperation();
  const std::vector<Check> good = ChecklistOf(response.operation().hosts(0));
  ASSERT_EQ(good.size(), 4u);
  EXPECT_EQ(ResultOf(good[0]), "passed");
  EXPECT_EQ(ResultOf(good[2]), "down (external)");
  EXPECT_EQ(good[3].name, "time under target");
  const std::vector<Check> bad = ChecklistOf(response.operation().hosts(1));
  ASSERT_EQ(bad.size(), 3u) << "no time is claimed for what has not recovered";
  EXPECT_EQ(ResultOf(bad[0]), "FAILED");
  // Who was there already, or has not recovered, has no time that could be judged.
  v1::HostProgress untimed = response.operation().hosts(0);
  untimed.set_already_there(true);
  untimed.set_target_met(false);
  SetSeconds(untimed.mutable_times()->mutable_recovery(), 0);
  EXPECT_EQ(ChecklistOf(untimed).size(), 3u);
  untimed.set_already_there(false);
  EXPECT_EQ(ChecklistOf(untimed).size(), 3u);
  // Many hosts: only those with something to be said.
  v1::Operation many = SampleOperation().operation();
  for (int i = 0; i < 20; ++i) {
    v1::HostProgress* host = many.add_hosts();
    *host = many.hosts(0);
    host->set_host(absl::StrCat("extra-", i));
    host->mutable_probes(2)->set_passed(true);
  }
  const std::string report = RenderReport(many, {});
  EXPECT_THAT(report, HasSubstr("20 hosts: every check has passed"));
  EXPECT_THAT(report, HasSubstr("down (external)"));
}

}  // namespace
}  // namespace rb::cli
