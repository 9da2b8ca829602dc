#include "agent/adapters/supervisor/unit_drop_ins.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>

#include "common/durable_file.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class UnitDropInsTest : public ::testing::Test {
 protected:
  UnitDropIns Make() {
    UnitDropIns::Options options;
    options.state_folder = folder_.path() + "/state";
    options.units_folder = folder_.path() + "/units";
    options.config_path = "/etc/rb/agent.yaml";
    options.program = "/usr/bin/rb-agent";
    options.is_loaded = [this](const std::string& unit, const std::string&) { return loaded_.count(unit) != 0; };
    options.reload = [this] {
      ++reloads_;
      return reload_result_;
    };
    return UnitDropIns(options);
  }
  void SetUp() override { RB_ASSERT_OK(MakeFolders(folder_.path() + "/state")); }

  rb::testing::TemporaryFolder folder_;
  std::set<std::string> loaded_;
  int reloads_ = 0;
  absl::Status reload_result_;
};

TEST_F(UnitDropInsTest, ExactlyTheUnitsOfTheFileHaveOne) {
  UnitDropIns drop_ins = Make();
  RB_ASSERT_OK(drop_ins.Set({{"a.service", "a"}, {"b.service", "b"}}));
  EXPECT_EQ(reloads_, 1);
  EXPECT_THAT(
      *ReadFile(drop_ins.PathOf("a.service")),
      HasSubstr("\nExecStartPre=+\"/usr/bin/rb-agent\" recover --before-start --config \"/etc/rb/agent.yaml\" "));
  EXPECT_THAT(*drop_ins.List(), ElementsAre("a.service", "b.service"));
  loaded_ = {"a.service", "b.service"};
  RB_ASSERT_OK(Make().Set({{"a.service", "a"}, {"b.service", "b"}}));
  EXPECT_EQ(reloads_, 1) << "nothing has changed";

  RB_ASSERT_OK(WriteFileDurably(folder_.path() + "/units/b.service.d/other.conf", "[Unit]\n"));
  RB_ASSERT_OK(Make().Set({{"a.service", "a"}}));
  EXPECT_EQ(reloads_, 2);
  EXPECT_TRUE(absl::IsNotFound(ReadFile(drop_ins.PathOf("b.service")).status()));
  EXPECT_TRUE(ReadFile(folder_.path() + "/units/b.service.d/other.conf").ok()) << "somebody else's";
  EXPECT_THAT(*drop_ins.List(), ElementsAre("a.service"));

  RB_ASSERT_OK(Make().Set({}));
  struct stat status;
  EXPECT_NE(stat((folder_.path() + "/units/a.service.d").c_str(), &status), 0);
  EXPECT_THAT(*drop_ins.List(), IsEmpty());
}

TEST_F(UnitDropInsTest, WhatSystemdWasNotToldIsToldLater) {
  reload_result_ = absl::UnavailableError("no bus");
  EXPECT_FALSE(Make().Set({{"a.service", "a"}}).ok());
  reload_result_ = absl::OkStatus();
  RB_ASSERT_OK(Make().Set({{"a.service", "a"}}));
  EXPECT_EQ(reloads_, 2);
  // Removed from the list only when systemd knows that it is gone.
  reload_result_ = absl::UnavailableError("no bus");
  EXPECT_FALSE(Make().Set({}).ok());
  EXPECT_THAT(*Make().List(), ElementsAre("a.service"));
  reload_result_ = absl::OkStatus();
  loaded_ = {"a.service"};
  RB_ASSERT_OK(Make().Set({}));
  EXPECT_EQ(reloads_, 4);
  EXPECT_THAT(*Make().List(), IsEmpty());
}

TEST_F(UnitDropInsTest, NamesAreQuotedForAUnitFile) {
  UnitDropIns::Options options;
  options.program = "/opt/a b/rb-agent";
  options.config_path = "/etc/50%.yaml";
  EXPECT_THAT(UnitDropIns(options).TextFor("x"), HasSubstr("+\"/opt/a b/rb-agent\" recover"));
  EXPECT_THAT(UnitDropIns(options).TextFor("x"), HasSubstr("--config \"/etc/50%%.yaml\""));
}

}  // namespace
}  // namespace rb::agent
