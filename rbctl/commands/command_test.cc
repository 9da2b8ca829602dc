#include "rbctl/commands/command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace rb::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ParseResult Parse(const std::vector<std::string>& args) { return ParseCommandLine(args, absl::FromUnixSeconds(10000)); }

TEST(CommandTest, RollbackWithEverything) {
  const ParseResult result =
      Parse({"rollback",    "prod",      "bot",    "--to",   "abc123f", "--method",     "git", "--only",      "config",
             "--with-data", "--host",    "prod-1", "--host", "prod-2",  "--reason",     "why", "--emergency", "--force",
             "--no-revert", "--no-wait", "--yes",  "-o",     "json",    "--controller", "c:1", "--identity",  "/i"});
  ASSERT_TRUE(result.command) << result.err;
  const Command& command = *result.command;
  EXPECT_EQ(command.verb, Verb::kStart);
  EXPECT_EQ(command.spec.kind(), v1::OPERATION_KIND_ROLLBACK);
  EXPECT_EQ(command.spec.environment(), "prod");
  EXPECT_EQ(command.spec.service(), "bot");
  EXPECT_EQ(command.spec.target().kind(), v1::TargetReference::KIND_NAMED);
  EXPECT_EQ(command.spec.target().name(), "abc123f");
  EXPECT_TRUE(command.spec.target().force());
  EXPECT_EQ(command.spec.method(), v1::METHOD_GIT);
  EXPECT_THAT(command.spec.components(), ElementsAre(v1::COMPONENT_CONFIG, v1::COMPONENT_DATA));
  EXPECT_THAT(command.spec.hosts(), ElementsAre("prod-1", "prod-2"));
  EXPECT_EQ(command.spec.reason(), "why");
  EXPECT_TRUE(command.spec.emergency() && command.spec.force() && command.spec.hold_on_failure());
  EXPECT_TRUE(command.yes && command.json && !command.wait);
  EXPECT_EQ(command.controller, "c:1");
  EXPECT_EQ(command.identity, "/i");
}

TEST(CommandTest, Targets) {
  const auto kind = [](const std::vector<std::string>& args) { return Parse(args).command->spec.target().kind(); };
  EXPECT_EQ(kind({"rollback", "prod"}), v1::TargetReference::KIND_LAST_GOOD);
  EXPECT_EQ(kind({"rollback", "prod", "--to", "last-good"}), v1::TargetReference::KIND_LAST_GOOD);
  EXPECT_EQ(kind({"rollback", "prod", "--to", "previous"}), v1::TargetReference::KIND_PREVIOUS);
  for (const char* before : {"1970-01-01T02:00:00Z", "1970-01-01 02:00", "2800s"}) {
    const v1::TargetReference target = Parse({"rollback", "prod", "--to-before", before}).command->spec.target();
    EXPECT_EQ(target.kind(), v1::TargetReference::KIND_BEFORE);
    EXPECT_EQ(target.before().seconds(), 7200) << before;
  }
}

TEST(CommandTest, WithDataKeepsCodeAndConfig) {
  EXPECT_THAT(Parse({"rollback", "prod", "--with-data"}).command->spec.components(),
              ElementsAre(v1::COMPONENT_CODE, v1::COMPONENT_CONFIG, v1::COMPONENT_DATA));
}

TEST(CommandTest, Verbs) {
  const auto verb = [](const std::vector<std::string>& args) {
    const ParseResult result = Parse(args);
    EXPECT_TRUE(result.command) << args[0] << ": " << result.err;
    return result.command ? result.command->verb : Verb::kPrint;
  };
  EXPECT_EQ(verb({"rollback", "prod", "--plan"}), Verb::kPlan);
  EXPECT_EQ(verb({"plan", "prod"}), Verb::kPlan);
  EXPECT_EQ(verb({"status"}), Verb::kStatus);
  EXPECT_EQ(verb({"history", "prod", "--limit", "3"}), Verb::kHistory);
  EXPECT_EQ(verb({"show", "op"}), Verb::kShow);
  EXPECT_EQ(verb({"watch", "op"}), Verb::kWatch);
  EXPECT_EQ(verb({"abort", "op", "--reason", "x"}), Verb::kAbort);
  EXPECT_EQ(verb({"backup", "list", "prod", "-o", "json"}), Verb::kBackupList);
  EXPECT_EQ(verb({"-o", "json", "agents"}), Verb::kAgents);
  EXPECT_EQ(Parse({"plan", "--deploy", "prod", "--to", "v1"}).command->spec.kind(), v1::OPERATION_KIND_DEPLOY);
  EXPECT_EQ(Parse({"undo", "op-1"}).command->spec.undo_operation_id(), "op-1");
  EXPECT_TRUE(Parse({"backup", "create", "prod", "--pin"}).command->spec.pin());
}

TEST(CommandTest, UsageErrorsEndWithTwoAndSayWhat) {
  const struct {
    std::vector<std::string> args;
    const char* says;
  } cases[] = {
      {{}, "a command is missing"},
      {{"rollbakc", "prod"}, "did you mean rollback"},
      {{"rollback"}, "ENV"},
      {{"rollback", "prod", "--two", "v1"}, "unknown option --two"},
      {{"rollback", "prod", "--reasn", "v1"}, "did you mean --reason"},
      {{"rollback", "prod", "--to", "a", "--to-before", "1h"}, "--to"},
      {{"rollback", "prod", "--to-before", "noon"}, "not a time"},
      {{"rollback", "prod", "--method", "ftp"}, "ftp"},
      {{"rollback", "prod", "--only", "code,confg"}, "did you mean config"},
      {{"rollback", "prod", "a", "--service", "b"}, "two services"},
      {{"deploy", "prod"}, "--to REF"},
      {{"backup"}, "backup"},
      {{"status", "-o", "xml"}, "xml"},
      {{"completion", "tcsh"}, "tcsh"},
  };
  for (const auto& each : cases) {
    const ParseResult result = Parse(each.args);
    EXPECT_FALSE(result.command);
    EXPECT_EQ(result.exit_code, kUsage);
    EXPECT_THAT(result.err, HasSubstr(each.says));
    EXPECT_EQ(result.out, "");
  }
}

TEST(CommandTest, HelpHasExamples) {
  for (const std::string name : {"rollback", "deploy", "undo", "plan", "status", "history"}) {
    const ParseResult result = Parse({name, "--help"});
    EXPECT_EQ(result.exit_code, kDone);
    EXPECT_THAT(result.out, HasSubstr("rbctl " + name)) << name;
  }
}

TEST(CommandTest, CompletionKnowsEveryCommand) {
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    const std::string text = Parse({"completion", shell}).command->text;
    for (const char* word : {"rollback", "history", "to-before", "agents"}) {
      EXPECT_THAT(text, HasSubstr(word)) << shell;
    }
    EXPECT_THAT(text, HasSubstr("auto backup git redeploy")) << shell;
    EXPECT_THAT(text, ::testing::Not(::testing::ContainsRegex("@[A-Z]")));
  }
}

TEST(CommandTest, CompletionIsWhatItsShellUnderstands) {
  for (const std::string shell : {"bash", "zsh", "fish"}) {
    if (std::system(absl::StrCat("command -v ", shell, " >/dev/null").c_str()) != 0) continue;
    const std::string path = absl::StrCat(testing::TempDir(), "/completion.", shell);
    std::ofstream(path) << Parse({"completion", shell}).command->text;
    EXPECT_EQ(std::system(absl::StrCat(shell, " -n ", path).c_str()), 0) << shell;
    if (shell != "bash") continue;
    const std::string ask = absl::StrCat("bash -c '. ", path,
                                         "; COMP_WORDS=(rbctl rollback prod --method re); COMP_CWORD=4; _rbctl; "
                                         "test \"${COMPREPLY[*]}\" = redeploy'");
    EXPECT_EQ(std::system(ask.c_str()), 0);
  }
}

}  // namespace
}  // namespace rb::cli
