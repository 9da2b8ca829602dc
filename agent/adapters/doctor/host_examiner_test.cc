#include "agent/adapters/doctor/host_examiner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "agent/core/ports/fake_supervisor.h"
#include "common/test_util.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

using ::rb::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class HostExaminerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(folder_ / "tree/data");
    std::filesystem::create_directories(folder_ / "state/identity");
    for (const char* path : {"state", "state/identity"}) ASSERT_EQ(chmod((folder_ / path).c_str(), 0700), 0);
    std::ofstream(folder_ / "tree/bot.py") << "x\n";
    std::ofstream(folder_ / "tree/VERSION") << "v1\n";
    config_.set_tree(folder_ / "tree");
    config_.add_probes()->mutable_version()->set_file("VERSION");
    config_.add_probes()->mutable_http()->set_url("http://127.0.0.1:1/");
    config_.add_probes()->mutable_tcp()->set_address("localhost:1");
  }
  HostFacts Examine(const std::string& config_path = "") {
    HostExaminerOptions options;
    options.service = "bot";
    options.state_folder = folder_ / "state";
    options.supervisor = &supervisor_;
    options.config_path = config_path;
    return MakeHostExaminer(config_, options, SystemClock())->Examine(hurry_);
  }

  TemporaryFolder folder_;
  v1::AgentServiceConfig config_;
  FakeSupervisor supervisor_;
  std::atomic<bool> hurry_{false};
};

TEST_F(HostExaminerTest, SaysNothingBadOfAHostThatIsWell) {
  const HostFacts facts = Examine();
  EXPECT_GT(facts.tree_disk.total_bytes, facts.tree_disk.free_bytes);
  EXPECT_GT(facts.state_disk.total_bytes, 0u);
  EXPECT_FALSE(facts.tree_owner.empty());
  EXPECT_EQ(facts.expected_owner, "");
  EXPECT_EQ(facts.foreign_entries, 0u);
  EXPECT_THAT(facts.exposed_folders, IsEmpty());
  EXPECT_THAT(facts.probe_problems, IsEmpty());
  EXPECT_THAT(facts.config_problems, IsEmpty());
  EXPECT_FALSE(facts.has_git);
  EXPECT_TRUE(facts.looked_at_all);
  EXPECT_LT(absl::AbsDuration(facts.clock_at - SystemClock().Now()), absl::Seconds(30));
}

TEST_F(HostExaminerTest, ProbesThatCannotPass) {
  config_.add_probes()->mutable_log()->set_file("logs/none.log");
  config_.add_probes()->mutable_sqlite()->set_path("data/none.db");
  config_.add_probes()->mutable_http()->set_url("http://no-such-host.invalid:80/");
  const HostFacts facts = Examine();
  EXPECT_THAT(facts.probe_problems,
              UnorderedElementsAre(HasSubstr("logs/none.log is not there"), HasSubstr("data/none.db is not there"),
                                   HasSubstr("no-such-host.invalid")));
}

TEST_F(HostExaminerTest, TheGitRemoteAndTheFileAsItIsNow) {
  config_.mutable_git()->set_remote("file://" + (folder_ / "no-repository"));
  std::ofstream(folder_ / "agent.yaml") << "services: {bot: {tre: /x}}\n";
  ASSERT_EQ(chmod((folder_ / "agent.yaml").c_str(), 0644), 0);
  const HostFacts facts = Examine(folder_ / "agent.yaml");
  EXPECT_TRUE(facts.has_git);
  EXPECT_THAT(facts.git_problem, HasSubstr("no-repository"));
  EXPECT_EQ(facts.git_fetched_at, absl::InfinitePast());
  ASSERT_FALSE(facts.config_problems.empty());
  EXPECT_THAT(facts.config_problems.back(), HasSubstr("did you mean \"tree\"?"));
}

TEST_F(HostExaminerTest, WhatOthersCouldGetAt) {
  ASSERT_EQ(chmod((folder_ / "state").c_str(), 0777), 0);
  std::filesystem::create_directory(folder_ / ".rb-staging-bot");
  ASSERT_EQ(chmod((folder_ / ".rb-staging-bot").c_str(), 0755), 0);
  EXPECT_THAT(Examine().exposed_folders, ElementsAre(HasSubstr("/state ("), HasSubstr(" 755)")));
}

TEST_F(HostExaminerTest, FilesOfSomebodyElseButNotWhatIsIgnoredOrBehindALink) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  config_.set_owner("nobody:nogroup");
  config_.add_ignore("logs/**");
  std::filesystem::create_directories(folder_ / "tree/logs");
  std::filesystem::create_directories(folder_ / "outside/many");
  std::filesystem::create_symlink(folder_ / "outside", folder_ / "tree/link");
  std::ofstream(folder_ / "tree/logs/x") << "x";
  const auto give = [&](const std::string& path) { ASSERT_EQ(lchown((folder_ / path).c_str(), 65534, 65534), 0); };
  for (const char* path : {"tree", "tree/data", "tree/VERSION", "tree/link"}) give(path);
  const HostFacts facts = Examine();
  EXPECT_EQ(facts.tree_owner, "nobody:nogroup");
  EXPECT_EQ(facts.expected_owner, "nobody:nogroup");
  EXPECT_THAT(facts.foreign_samples, ElementsAre("bot.py (root)"));
  EXPECT_EQ(facts.foreign_entries, 1u);
}

TEST_F(HostExaminerTest, GivesUpItsPlaceWhenAStepWaits) {
  hurry_ = true;
  config_.mutable_git()->set_remote("https://192.0.2.1/never-answers.git");
  const absl::Duration begun = SystemClock().Monotonic();
  EXPECT_FALSE(Examine().looked_at_all);
  EXPECT_LT(SystemClock().Monotonic() - begun, absl::Seconds(5));
}

}  // namespace
}  // namespace rb::agent
