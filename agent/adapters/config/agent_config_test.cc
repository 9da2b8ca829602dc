#include "agent/adapters/config/agent_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "common/test_util.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

using ::rb::testing::FailsWith;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const char kGood[] = R"(metrics_address: 127.0.0.1:0
services:
  rosey-bot:
    tree: /opt/rosey-bot
    unit: rosey-bot.service
    owner: root:root
    components: {config: ["config-*.json"], data: ["data/**"]}
    ignore: ["logs/**", "**/__pycache__/**"]
    sqlite: [data/bot.db]
    git: {remote: "https://git.example.org/rosey.git", branch: main}
    check_config: [{json: "config-*.json"}]
    probes:
      - unit: {stable_for: 10s, memory_below: 300MiB}
      - http: {url: "http://127.0.0.1:8001/api/health", json: {status: healthy}}
      - http: {url: "http://127.0.0.1:5000/", contains: online}
      - metrics: {url: "http://127.0.0.1:8001/metrics", require: [bot_messages_total]}
      - version: {file: VERSION}
      - command: {argv: [/usr/bin/true], expect: "^pong"}
      - tcp: {address: "chat.example.org:443"}
        external: true
      - journal: {expect: "Connected to CyTube", forbid: "ERROR|CRITICAL", within: 30s}
      - version: {url: "http://127.0.0.1:8001/api/health", json: version}
      - sqlite: {path: data/bot.db}
      - tcp: {address: "127.0.0.1:8001"}
      - command: {argv: [/bin/true]}
    database_hooks:
      - name: main
        dump: [pg_dump, --format=custom, rosey]
        restore: [/usr/local/sbin/restore-rosey]
        timeout: 20m
        user: root
)";

std::string Problems(const std::string& yaml) {
  v1::AgentConfig config;
  return FormatProblems("f", ParseAgentConfig(yaml, AgentConfigOptions(), &config));
}

TEST(AgentConfig, ReadsTheDocumentedFile) {
  v1::AgentConfig config;
  ASSERT_EQ(FormatProblems("f", ParseAgentConfig(kGood, AgentConfigOptions(), &config)), "");
  RB_ASSERT_OK_AND_ASSIGN(const ServiceTree tree, ToServiceTree("rosey-bot", config.services().at("rosey-bot")));
  EXPECT_EQ(tree.service, "rosey-bot");
  EXPECT_EQ(tree.tree, "/opt/rosey-bot");
  EXPECT_EQ(tree.owner_uid, 0);
  EXPECT_THAT(tree.config_globs, ElementsAre("config-*.json"));
  EXPECT_THAT(tree.data_globs, ElementsAre("data/**"));
  EXPECT_THAT(tree.ignore_globs, ElementsAre("logs/**", "**/__pycache__/**"));
  EXPECT_THAT(tree.sqlite_paths, ElementsAre("data/bot.db"));
}

TEST(AgentConfig, SaysEverythingThatIsWrongWithItsLine) {
  EXPECT_EQ(Problems(R"(metrics_address: nowhere
services:
  bot:
    tree: opt/bot
    unit: bot
    process: {command: [x]}
    owner: no-such-user
    ignore: ["../x", "a[b"]
    sqlite: [/abs.db, "a/../b", "*.db"]
    git: {remote: "git@host:x", branch: "a b"}
    probes:
      - http: {url: "ftp://x"}
      - http: {url: "http://127.0.0.1:99999/", status: 700, timeout: 0s}
      - log: {expect: "(", within: 3s}
      - tcp: {address: "127.0.0.1"}
      - {}
      - command: {argv: []}
      - version: {url: "http://h/"}
      - sqlite: {path: ../x}
)"),
            "f:1: metrics_address: wants a loopback address and port, such as 127.0.0.1:9400\n"
            "f:4: services.bot.tree: wants an absolute path\n"
            "f:5: services.bot.unit: wants the name of a unit with its suffix, such as rosey-bot.service\n"
            "f:6: services.bot.process: unit and process exclude each other: give one\n"
            "f:7: services.bot.owner: there is no user no-such-user on this server\n"
            "f:8: services.bot.ignore[0]: must not hold empty elements, \".\" or \"..\"\n"
            "f:8: services.bot.ignore[1]: has a \"[\" without \"]\"\n"
            "f:9: services.bot.sqlite[0]: is relative to the tree: must not begin with a slash\n"
            "f:9: services.bot.sqlite[1]: must not hold empty elements, \".\" or \"..\"\n"
            "f:9: services.bot.sqlite[2]: wants one file: no globs here\n"
            "f:10: services.bot.git.remote: wants file:///…, https://… or ssh://…\n"
            "f:10: services.bot.git.branch: is not the name of a branch\n"
            "f:12: services.bot.probes[0].http.url: wants a URL that begins with http:// or https://\n"
            "f:13: services.bot.probes[1].http.url: has a bad port\n"
            "f:13: services.bot.probes[1].http.status: wants a status from 100 to 599\n"
            "f:13: services.bot.probes[1].http.timeout: wants more than 0s\n"
            "f:14: services.bot.probes[2].log.expect: is not a regular expression: Mismatched '(' and ')' in regular "
            "expression\n"
            "f:15: services.bot.probes[3].tcp.address: wants host:port\n"
            "f:16: services.bot.probes[4]: names no probe: give one of unit, http, log, journal, sqlite, tcp, command, "
            "version, metrics, disk\n"
            "f:17: services.bot.probes[5].command: argv is required: a list of the program and its arguments\n"
            "f:18: services.bot.probes[6].version: json is required: the field to compare\n"
            "f:19: services.bot.probes[7].sqlite.path: must not hold empty elements, \".\" or \"..\"\n");
}

TEST(AgentConfig, SaysWhatIsWrongWithADatabaseHook) {
  EXPECT_EQ(Problems(R"(services:
  bot:
    tree: /opt/bot
    unit: bot.service
    database_hooks:
      - dump: [pg_dump, bot]
        restore: [""]
      - {name: Main_DB, dump: [bin/dump], restore: [pg_restore], timeout: 0s}
      - {name: a-name-that-is-longer-than-the-forty-letters, dump: [a], restore: [b], timeout: 25h}
      - {name: main, dump: [a], restore: [b], user: no-such-user}
      - {name: main, dump: [/opt/bot/dump], restore: [/opt/bot/restore]}
      - {name: audit, dump: [/opt/bot/dump], restore: [/opt/botanic/restore], user: "0"}
)"),
            "f:6: services.bot.database_hooks[0]: name is required: releases know the database by it\n"
            "f:6: services.bot.database_hooks[0]: restore is required: a list of the program and its arguments\n"
            "f:8: services.bot.database_hooks[1].name: wants 1 to 40 of a-z, 0-9 and '-'\n"
            "f:8: services.bot.database_hooks[1].dump: wants a program by its absolute path, or by a name without "
            "slashes\n"
            "f:8: services.bot.database_hooks[1].timeout: wants more than 0s\n"
            "f:9: services.bot.database_hooks[2].name: wants 1 to 40 of a-z, 0-9 and '-'\n"
            "f:9: services.bot.database_hooks[2].timeout: wants at most 24h\n"
            "f:10: services.bot.database_hooks[3].user: there is no user no-such-user on this server\n"
            "f:11: services.bot.database_hooks[4].name: is given twice\n"
            "f:12: services.bot.database_hooks[5].dump: a program that lies in the tree is not run as root: the "
            "service's user may change it\n");
  EXPECT_THAT(Problems("services: {bot: {tree: /b, unit: b.service, database_hooks: [{name: a, dmup: [a]}]}}\n"),
              HasSubstr("f:1: services.bot.database_hooks[0]: unknown key \"dmup\"; did you mean \"dump\"?"));
  EXPECT_THAT(Problems("services: {bot: {tree: /b, unit: b.service, database_hooks: [{name: a, dump: pg_dump bot}]}}"),
              HasSubstr("database_hooks[0].dump"))
      << "a command line is no list: there is no shell to take it apart";
}

TEST(AgentConfig, WantsATreeAndASupervisorForEachService) {
  EXPECT_EQ(
      Problems("services:\n  bot: {}\n  Bad Name: {tree: /x, unit: x.service}\n"),
      "f:2: services.bot: tree is required: the absolute path of the folder that the service lives in\n"
      "f:2: services.bot: one of unit (a systemd unit) and process (a command) is required\n"
      "f:3: services.Bad Name: a service's name is 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter "
      "or digit\n");
}

TEST(AgentConfig, WhatItSaysIsSafeToPrintAndHasItsLine) {
  EXPECT_EQ(Problems("services:\n  \"a\\nb\": {tree: /x, unit: a.service}\n"),
            "f:2: services.a\\x0ab: a service's name is 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter "
            "or digit\n");
}

TEST(AgentConfig, RefusesTreesThatLieWithinOneAnother) {
  EXPECT_THAT(Problems("services:\n  a: {tree: /opt/a, unit: a.service}\n  b: {tree: /opt/a/b, unit: b.service}\n"
                       "  c: {tree: /opt/ab, unit: c.service}\n"),
              "f:3: services.b.tree: overlaps the tree of a (/opt/a)\n");
}

TEST(AgentConfig, AJournalProbeNeedsAUnitAndALogProbeAFile) {
  EXPECT_THAT(Problems("services:\n  a:\n    tree: /opt/a\n    process: {command: [x]}\n    probes:\n"
                       "      - journal: {expect: a}\n      - log: {expect: a}\n"),
              "f:6: services.a.probes[0].journal: wants a systemd unit: for a process, use log\n");
  EXPECT_THAT(Problems("services:\n  a:\n    tree: /opt/a\n    unit: a.service\n    probes: [{log: {forbid: a}}]\n"),
              HasSubstr("file is required"));
}

TEST(AgentConfig, AfterRestoreStaysInTheTree) {
  EXPECT_EQ(Problems(R"(services:
  bot:
    tree: /opt/bot
    unit: bot.service
    after_restore:
      clear: ["cache/", "**/__pycache__", ../cache, /var/cache/bot, ""]
      restart: [dashboard.service, dashboard, a/b.service, bot.service]
      timeout: 6m
)"),
            "f:6: services.bot.after_restore.clear[2]: must not hold empty elements, \".\" or \"..\"\n"
            "f:6: services.bot.after_restore.clear[3]: is relative to the tree: must not begin with a slash\n"
            "f:6: services.bot.after_restore.clear[4]: is empty\n"
            "f:7: services.bot.after_restore.restart[1]: wants the name of a unit with its suffix, such as "
            "dashboard.service\n"
            "f:7: services.bot.after_restore.restart[2]: wants the name of a unit with its suffix, such as "
            "dashboard.service\n"
            "f:7: services.bot.after_restore.restart[3]: is the service itself: it is started anyway\n"
            "f:8: services.bot.after_restore.timeout: wants at most 5m\n");
}

TEST(AgentConfig, SaysWhichProbesCanNeverPass) {
  EXPECT_EQ(Problems(R"(services:
  bot:
    tree: /opt/bot
    unit: bot.service
    probes:
      - unit: {memory_below: 300 apples}
      - disk: {free: plenty}
      - command: {argv: [/bin/true], expect: "["}
      - version: {url: "http://h/", file: VERSION, json: v}
      - version: {file: /etc/passwd}
      - metrics: {url: nowhere, require: ["a b", "1a", "ok_total"]}
)"),
            "f:6: services.bot.probes[0].unit.memory_below: wants a size, such as 300MiB or 1GiB\n"
            "f:7: services.bot.probes[1].disk.free: wants a size, such as 500MiB or 2GiB\n"
            "f:8: services.bot.probes[2].command.expect: is not a regular expression: Unexpected character within "
            "'[...]' in regular expression\n"
            "f:9: services.bot.probes[3].version: give one of url and file\n"
            "f:10: services.bot.probes[4].version.file: is relative to the tree: must not begin with a slash\n"
            "f:11: services.bot.probes[5].metrics.url: wants a URL that begins with http:// or https://\n"
            "f:11: services.bot.probes[5].metrics.require[0]: is not the name of a metric\n"
            "f:11: services.bot.probes[5].metrics.require[1]: is not the name of a metric\n");
  EXPECT_EQ(ParseByteCount("300MiB").value_or(0), uint64_t{300} << 20);
  for (const char* bad : {"", "0", "300MB", "-1", "99999999GiB", "1.5GiB"})
    EXPECT_FALSE(ParseByteCount(bad).ok()) << bad;
}

TEST(AgentConfig, LoadGivesAllProblemsAndCheckAlsoWhatIsMissing) {
  testing::TemporaryFolder folder;
  const std::string path = folder / "agent.yaml";
  std::ofstream(path) << "services: {bot: {tree: " << folder / "gone"
                      << ", process: {command: [./bot]}}}\n";
  ASSERT_EQ(chmod(path.c_str(), 0644), 0);
  RB_EXPECT_OK(LoadAgentConfig(path));
  EXPECT_THAT(FormatProblems("f", CheckAgentConfig(path)), HasSubstr("/gone is not there, or no folder"));
  EXPECT_THAT(FormatProblems("f", CheckAgentConfig(path)), HasSubstr("/bot is not there, or cannot be run"));
  std::ofstream(path) << "services: {bot: {tre: /x}}\n";
  EXPECT_THAT(LoadAgentConfig(path), FailsWith(absl::StatusCode::kInvalidArgument, "did you mean \"tree\"?"));
  EXPECT_THAT(LoadAgentConfig(folder / "none"), FailsWith(absl::StatusCode::kNotFound, "none"));
}

TEST(AgentConfig, RefusesAFileThatOthersCanWrite) {
  if (geteuid() != 0) GTEST_SKIP() << "ownership matters to root only";
  testing::TemporaryFolder folder;
  const std::string path = folder / "agent.yaml";
  std::ofstream(path) << "services: {}\n";
  ASSERT_EQ(chmod(path.c_str(), 0666), 0);
  EXPECT_THAT(LoadAgentConfig(path), FailsWith(absl::StatusCode::kPermissionDenied, "chmod go-w"));
  EXPECT_THAT(FormatProblems("f", CheckAgentConfig(path)), HasSubstr("written by others"));
  RB_EXPECT_OK(LoadAgentConfig(path, {.check_ownership = false}));
  ASSERT_EQ(chmod(path.c_str(), 0644), 0);
  RB_EXPECT_OK(LoadAgentConfig(path));
  ASSERT_EQ(chown(path.c_str(), 12345, 12345), 0);
  EXPECT_THAT(LoadAgentConfig(path), FailsWith(absl::StatusCode::kPermissionDenied, "belongs to user 12345"));
  ASSERT_EQ(chown(path.c_str(), 0, 0), 0);
  ASSERT_EQ(chmod(folder.path().c_str(), 0777), 0);
  EXPECT_THAT(LoadAgentConfig(path), FailsWith(absl::StatusCode::kPermissionDenied, "written by others"));
}

TEST(LookUpUser, ByNameAndNumber) {
  RB_ASSERT_OK_AND_ASSIGN(const UserAndGroup root, LookUpUser("root"));
  EXPECT_EQ(root.uid, 0u);
  EXPECT_FALSE(root.home.empty());
  RB_ASSERT_OK_AND_ASSIGN(const UserAndGroup number, LookUpUser("54321:54322"));
  EXPECT_EQ(number.uid, 54321u);
  EXPECT_EQ(number.gid, 54322u);
  EXPECT_THAT(LookUpUser("a:b:c"), FailsWith(absl::StatusCode::kInvalidArgument, "wants user"));
  EXPECT_THAT(LookUpUser("root:no-such-group"), FailsWith(absl::StatusCode::kNotFound, "no group"));
}

}  // namespace
}  // namespace rb::agent
