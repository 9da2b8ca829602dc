#include "controller/core/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace rb::controller {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const absl::Time kNow = absl::FromUnixSeconds(1795000000);

Release Good(const std::string& name, absl::Duration age) {
  Release release;
  release.name = name;
  release.standing = Standing::kGood;
  release.durability = Durability::kProved;
  release.captured_at = kNow - age;
  release.last_proved_at = release.captured_at + absl::Minutes(1);
  release.content_bytes = 1 << 20;
  return release;
}

Examined Healthy() {
  Examined host;
  host.environment = "prod";
  host.service = "bot";
  host.host = "prod-1";
  host.connected = true;
  host.knows_service = true;
  host.last_seen_at = kNow;
  host.certificate_expires_at = kNow + absl::Hours(24 * 300);
  host.program_version = "1.0";
  host.asked_at = kNow - absl::Milliseconds(50);
  host.answered_at = kNow;
  host.tree = "/opt/bot";
  host.state_folder = "/var/lib/rb-agent";
  host.unit = "bot.service";
  host.releases = {Good("bot/c", absl::Hours(1)), Good("bot/b", absl::Hours(2)), Good("bot/a", absl::Hours(3))};
  host.current_release = "bot/c";
  host.verdict = Verdict::kHealthy;
  HostFacts facts;
  facts.clock_at = kNow - absl::Milliseconds(20);
  facts.tree_disk = facts.state_disk = {uint64_t{50} << 30, uint64_t{100} << 30, 900, 1000};
  facts.expected_owner = facts.tree_owner = "bot:bot";
  facts.has_git = true;
  facts.git_fetched_at = kNow - absl::Hours(1);
  host.facts = facts;
  return host;
}

DoctorContext Context() { return {kNow, "1.0", {}}; }

std::vector<std::string> CodesOf(const std::vector<Finding>& findings) {
  static constexpr absl::string_view kNames[] = {"info", "warning", "error"};
  std::vector<std::string> codes;
  for (const Finding& finding : findings) {
    codes.push_back(absl::StrCat(kNames[static_cast<int>(finding.severity)], " ", finding.code));
    EXPECT_FALSE(finding.seen.empty()) << finding.code;
    EXPECT_FALSE(finding.mend.empty()) << finding.code;
    EXPECT_EQ(finding.host, "prod-1");
  }
  return codes;
}

TEST(Doctor, SaysNothingOfAHostThatIsWell) { EXPECT_THAT(Diagnose({Healthy()}, Context()), IsEmpty()); }

TEST(Doctor, EachThingThatIsWrongIsFoundAndNothingElse) {
  const struct {
    std::string code;
    std::function<void(Examined&)> harm;
  } cases[] = {
      {"error agent-unknown",
       [](Examined& h) {
         h.connected = false;
         h.last_seen_at = absl::InfinitePast();
       }},
      {"error agent-offline",
       [](Examined& h) {
         h.connected = false;
         h.facts.reset();
       }},
      {"warning agent-version", [](Examined& h) { h.program_version = "0.9"; }},
      {"error service-unknown", [](Examined& h) { h.knows_service = false; }},
      {"error no-answer", [](Examined& h) { h.facts.reset(); }},
      {"warning certificate-expires", [](Examined& h) { h.certificate_expires_at = kNow + absl::Hours(24 * 20); }},
      {"error certificate-expires", [](Examined& h) { h.certificate_expires_at = kNow + absl::Hours(24 * 6); }},
      {"error certificate-expires", [](Examined& h) { h.certificate_expires_at = kNow - absl::Hours(1); }},
      {"error no-backup", [](Examined& h) { h.releases.clear(); }},
      {"error no-good-release",
       [](Examined& h) {
         for (Release& release : h.releases) release.standing = Standing::kUnknown;
       }},
      {"warning few-backups", [](Examined& h) { h.releases.pop_back(); }},
      {"error never-proved",
       [](Examined& h) {
         for (Release& release : h.releases) {
           release.durability = Durability::kVerified;
           release.last_proved_at = absl::InfinitePast();
         }
       }},
      {"warning proof-is-old",
       [](Examined& h) {
         for (Release& release : h.releases) release.last_proved_at = kNow - absl::Hours(24 * 9);
       }},
      {"warning newest-not-proved", [](Examined& h) { h.releases[0].durability = Durability::kVerified; }},
      {"error tree-owner", [](Examined& h) { h.facts->tree_owner = "root:root"; }},
      {"warning foreign-files",
       [](Examined& h) {
         h.facts->foreign_entries = 3;
         h.facts->foreign_samples = {"data/bot.db"};
       }},
      {"error exposed-folder", [](Examined& h) { h.facts->exposed_folders = {"/var/lib/rb-agent (root:root 0755)"}; }},
      {"error disk-full", [](Examined& h) { h.facts->tree_disk.free_bytes = uint64_t{2} << 30; }},
      {"warning disk-low", [](Examined& h) { h.facts->state_disk.free_bytes = uint64_t{9} << 30; }},
      {"error disk-full", [](Examined& h) { h.releases[0].content_bytes = uint64_t{60} << 30; }},
      {"error inodes-low", [](Examined& h) { h.facts->tree_disk.free_inodes = 10; }},
      {"warning clock-skew", [](Examined& h) { h.facts->clock_at = kNow + absl::Seconds(5); }},
      {"error clock-skew", [](Examined& h) { h.facts->clock_at = kNow - absl::Minutes(5); }},
      {"warning unit-needs-reload", [](Examined& h) { h.facts->unit_needs_reload = true; }},
      {"error unit-unknown", [](Examined& h) { h.facts->unit_problem = "systemd knows no such unit"; }},
      {"warning git-unreachable", [](Examined& h) { h.facts->git_problem = "connection refused"; }},
      {"warning git-never-fetched", [](Examined& h) { h.facts->git_fetched_at = absl::InfinitePast(); }},
      {"info git-stale", [](Examined& h) { h.facts->git_fetched_at = kNow - absl::Hours(30); }},
      {"error agent-config", [](Examined& h) { h.facts->config_problems = {"agent.yaml:3: tree: is not there"}; }},
      {"error probe-cannot-pass", [](Examined& h) { h.facts->probe_problems = {"log /x: is not there"}; }},
      {"warning drift", [](Examined& h) { h.drifted = true; }},
      {"error unhealthy",
       [](Examined& h) {
         h.probes = {{"unit", "unit", false, "failed", "active", absl::ZeroDuration(), false}};
       }},
      {"warning external-down",
       [](Examined& h) {
         h.probes = {{"tcp chat:443", "tcp", false, "refused", "accepts", absl::ZeroDuration(), true}};
       }},
  };
  for (const auto& each : cases) {
    Examined host = Healthy();
    each.harm(host);
    std::vector<std::string> codes = CodesOf(Diagnose({host}, Context()));
    // The tree's and the agent's disk may be the same one.
    codes.erase(std::unique(codes.begin(), codes.end()), codes.end());
    EXPECT_THAT(codes, ElementsAre(each.code));
  }
}

TEST(Doctor, WhatIsNewHasItsTimeToBeProved) {
  Examined host = Healthy();
  host.releases = {Good("bot/a", absl::Minutes(5))};
  host.releases[0].durability = Durability::kDurable;
  host.releases[0].last_proved_at = absl::InfinitePast();
  host.current_release = "bot/a";
  EXPECT_THAT(CodesOf(Diagnose({host}, Context())),
              ElementsAre("warning few-backups", "info only-what-runs", "info never-proved"));
}

TEST(Doctor, ASlowAnswerIsNoSkew) {
  Examined host = Healthy();
  host.asked_at = kNow - absl::Seconds(30);
  host.facts->clock_at = kNow - absl::Seconds(29);
  EXPECT_THAT(Diagnose({host}, Context()), IsEmpty());
}

TEST(Doctor, WhatAnOperationIsAtWorkOnIsNotJudged) {
  Examined host = Healthy();
  host.drifted = true;
  DoctorContext context = Context();
  context.busy = {"prod/bot"};
  EXPECT_THAT(Diagnose({host}, context), IsEmpty());
}

TEST(Doctor, TheWorstComesFirstAndTheMendNamesTheHost) {
  Examined first = Healthy();
  first.releases.pop_back();
  Examined second = Healthy();
  second.host = "prod-2";
  second.releases.clear();
  const std::vector<Finding> findings = Diagnose({first, second}, Context());
  ASSERT_EQ(findings.size(), 2u);
  EXPECT_EQ(findings[0].host, "prod-2");
  EXPECT_THAT(findings[0].mend, HasSubstr("rbctl backup create prod bot --host prod-2"));
  EXPECT_EQ(findings[1].code, "few-backups");
}

}  // namespace
}  // namespace rb::controller
