#include "common/adapters/yaml_message.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "rb/v1/agent_config.pb.h"
#include "rb/v1/fleet_config.pb.h"

namespace rb {
namespace {

using ::testing::HasSubstr;

std::string Problems(const std::string& yaml, google::protobuf::Message* message) {
  return FormatProblems("f.yaml", ReadYamlMessage(yaml, message));
}
std::string AgentProblems(const std::string& yaml) {
  v1::AgentConfig config;
  return Problems(yaml, &config);
}

TEST(YamlMessage, ReadsAnAgentFile) {
  v1::AgentConfig config;
  YamlLines lines;
  const auto problems = ReadYamlMessage(R"(
services:
  rosey-bot:
    tree: /opt/rosey-bot
    process:
      command: [python3, bot.py, 8001]
      environment: {PORT: 8001, DEBUG: true}
      stop_timeout: 1m30s
    components: {config: ["config-*.json"], data: ["data/**"]}
    probes:
      - unit:
      - http: {url: "http://127.0.0.1:8001/api/health", status: 204, json: {status: healthy, ready: true, count: 3, error: null}, timeout: 0s}
      - journal: {expect: "Connected", within: 250ms}
)",
                                        &config, &lines);
  ASSERT_EQ(FormatProblems("f", problems), "");
  const auto& service = config.services().at("rosey-bot");
  EXPECT_EQ(service.tree(), "/opt/rosey-bot");
  EXPECT_EQ(service.process().command(2), "8001");
  EXPECT_EQ(service.process().environment().at("DEBUG"), "true");
  EXPECT_EQ(service.process().stop_timeout().seconds(), 90);
  EXPECT_EQ(service.components().data(0), "data/**");
  ASSERT_EQ(service.probes_size(), 3);
  EXPECT_TRUE(service.probes(0).has_unit());
  EXPECT_EQ(service.probes(1).http().status(), 204u);
  EXPECT_EQ(service.probes(1).http().json().at("count"), "3");
  EXPECT_EQ(service.probes(1).http().json().at("error"), "null");
  EXPECT_TRUE(service.probes(1).http().has_timeout());
  EXPECT_EQ(service.probes(2).journal().within().nanos(), 250000000);
  EXPECT_EQ(lines.at("services.rosey-bot.tree"), 4);
  EXPECT_EQ(LineOf(lines, "services.rosey-bot.probes[2].journal.forbid"), 13);
  EXPECT_EQ(LineOf(lines, "nowhere"), 0);
}

TEST(YamlMessage, ReadsAFleetFileWithPlainHostLists) {
  v1::FleetConfig config;
  ASSERT_EQ(Problems(R"(
environments:
  test: {order: 1}
  prod: {order: 2, gate: {passed_in: test}}
services:
  rosey-bot:
    hosts: {test: [test-1, test-2], prod: [prod-1, prod-2]}
    targets: {backup: 3m, redeploy: 10m, git: 2m}
    wave: {size: 50%, on_failure: revert}
    retain: {releases: 10}
)",
                     &config),
            "");
  const auto& service = config.services().at("rosey-bot");
  EXPECT_EQ(service.hosts().at("prod").values(1), "prod-2");
  EXPECT_EQ(service.targets().backup().seconds(), 180);
  EXPECT_EQ(service.wave().size(), "50%");
  EXPECT_EQ(config.environments().at("prod").order(), 2u);
}

// In the order of the contract.
std::string KeysOf(const google::protobuf::Descriptor& message) {
  std::vector<std::string> keys;
  for (int i = 0; i < message.field_count(); ++i) keys.push_back(message.field(i)->name());
  return absl::StrJoin(keys, ", ");
}

TEST(YamlMessage, SaysEverythingThatIsWrongAtOnceWithItsLine) {
  EXPECT_EQ(
      AgentProblems(R"(services:
  bot:
    tre: /opt/bot
    tree: [a]
    sqlite: data/bot.db
    tree: /x
    process: {stop_timeout: 90}
    probes:
      - {unit: {}, http: {url: x, status: many}}
      - quux: {}
  bot: {}
)"),
      absl::StrCat(
          "f.yaml:3: services.bot: unknown key \"tre\"; did you mean \"tree\"? keys here: ",
          KeysOf(*v1::AgentServiceConfig::descriptor()),
          "\n"
          "f.yaml:4: services.bot.tree: wants text, found a list\n"
          "f.yaml:5: services.bot.sqlite: wants a list, found a single value\n"
          "f.yaml:6: services.bot: duplicate key \"tree\", first on line 4\n"
          "f.yaml:7: services.bot.process.stop_timeout: wants a duration such as 90s, 3m or 1h30m, found \"90\" (the "
          "unit is missing)\n"
          "f.yaml:9: services.bot.probes[0]: \"unit\" and \"http\" exclude each other: give only one here (a list "
          "takes each as an item of its own)\n"
          "f.yaml:10: services.bot.probes[1]: unknown key \"quux\"; keys here: ",
          KeysOf(*v1::ProbeConfig::descriptor()), "\nf.yaml:11: services: duplicate key \"bot\", first on line 2\n"));
}

TEST(YamlMessage, RefusesWhatHidesMeaning) {
  EXPECT_THAT(AgentProblems("services: &a {}\n"), HasSubstr("f.yaml:1: anchors"));
  EXPECT_THAT(AgentProblems("services:\n  a: *x\n"), HasSubstr("f.yaml:2: "));
  EXPECT_THAT(AgentProblems("metrics_address: !!binary aGk=\n"), HasSubstr("tags"));
  EXPECT_THAT(AgentProblems("metrics_address: a\n---\nmetrics_address: b\n"), HasSubstr("second document"));
  EXPECT_THAT(AgentProblems("metrics_address: \"a\\0b\"\n"), HasSubstr("control characters"));
  EXPECT_THAT(AgentProblems("metrics_address: \xff\n"), HasSubstr("f.yaml:1: a byte that is not UTF-8"));
  EXPECT_THAT(AgentProblems(std::string("a: b\n\0", 6)), HasSubstr("f.yaml:2: a byte that is not UTF-8"));
  EXPECT_THAT(AgentProblems("services: {a: {process: {stop_timeout: -3s}}}"), HasSubstr("between 0s"));
  EXPECT_THAT(AgentProblems("services: {a: {process: {stop_timeout: inf}}}"), HasSubstr("between 0s"));
  EXPECT_THAT(AgentProblems("services: {a: {probes: [{http: {status: \"200\"}}]}}"), HasSubstr("without quotes"));
  EXPECT_THAT(AgentProblems("services: {a: {probes: [{http: {status: -1}}]}}"), HasSubstr("not negative"));
  EXPECT_THAT(AgentProblems("- a\n"), HasSubstr("found a list"));
  EXPECT_THAT(AgentProblems("services: {a: {tree: }}"), HasSubstr("wants text, found nothing"));
  EXPECT_THAT(AgentProblems("services: {[a]: {}}"), HasSubstr("a key is a single word"));
}

TEST(YamlMessage, BoundsDepthSizeAndProblems) {
  EXPECT_THAT(AgentProblems(std::string(100000, '[')), HasSubstr("levels of nesting"));
  EXPECT_THAT(AgentProblems(std::string(kLargestYamlBytes + 1, '#')), HasSubstr("at most"));
  std::string many;
  for (int i = 0; i < 1000; ++i) many += "k" + std::to_string(i) + ": 1\n";
  v1::AgentConfig config;
  EXPECT_EQ(ReadYamlMessage(many, &config).size(), 100u);
}

TEST(YamlMessage, AnEmptyFileIsAnEmptyMessage) {
  EXPECT_EQ(AgentProblems(""), "");
  EXPECT_EQ(AgentProblems("# nothing\n"), "");
}

// Total on any bytes: neither random text nor damaged files crash it or hang it.
TEST(YamlMessage, SurvivesDamagedFiles) {
  const std::string good =
      "services:\n  bot:\n    tree: \"/opt\"\n    process: {command: [a, 'b'], stop_timeout: 3s}\n    probes:\n"
      "      - unit: {stable_for: 1s}\n      - log: {expect: \"a|b\", within: 30s}\n    ignore: |\n      x\n";
  const std::string alphabet = "abc:{}[],-?!&*#|>%@`'\"\\ \n\t0~<=.\xc3\xa9";
  std::mt19937 random(20261123);
  for (int i = 0; i < 5000; ++i) {
    std::string text = i % 2 == 0 ? good : std::string();
    const int edits = 1 + static_cast<int>(random() % 12);
    for (int k = 0; k < edits * (i % 2 == 0 ? 1 : 8); ++k) {
      const size_t at = text.empty() ? 0 : random() % text.size();
      const char c = random() % 8 == 0 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
      if (!text.empty() && random() % 3 == 0) {
        text.erase(at, 1 + random() % 5);
      } else {
        text.insert(at, 1 + random() % 3, c);
      }
    }
    v1::AgentConfig config;
    for (const YamlProblem& problem : ReadYamlMessage(text, &config)) ASSERT_FALSE(problem.text.empty());
  }
}

}  // namespace
}  // namespace rb
