#include "agent/adapters/fault/tree_fault_tools.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "agent/adapters/database/sqlite_copier.h"
#include "agent/adapters/fault/fault_records.h"

namespace rb::agent {
namespace {

class TreeFaultToolsTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/rb-fault-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    tree_ = folder_ + "/tree";
    mkdir(tree_.c_str(), 0755);
    Write("run.py",
          "#!/usr/bin/env python3\nprint('a program that is longer than one hundred bytes, so that only a "
          "part of it is overwritten')\n");
    Write("config.json", "{\"port\": 1}\n");
    options_.tree.service = "bot";
    options_.tree.tree = tree_;
    options_.code_file = "run.py";
    options_.config_file = "config.json";
    options_.database = "bot.db";
    options_.copier = &copier_;
  }
  void TearDown() override { std::system(absl::StrCat("rm -rf ", folder_).c_str()); }

  void Write(const std::string& name, const std::string& text) { std::ofstream(tree_ + "/" + name) << text; }
  std::string Read(const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(tree_ + "/" + name).rdbuf();
    return text.str();
  }
  void MakeDatabase(bool wal) {
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open((tree_ + "/bot.db").c_str(), &database), SQLITE_OK);
    if (wal) sqlite3_exec(database, "PRAGMA journal_mode=WAL", nullptr, nullptr, nullptr);
    sqlite3_exec(database, "CREATE TABLE t(x); INSERT INTO t VALUES (1), (2)", nullptr, nullptr, nullptr);
    sqlite3_close(database);
  }

  std::string folder_;
  std::string tree_;
  SqliteCopier copier_;
  TreeFaultTools::Options options_;
};

TEST_F(TreeFaultToolsTest, BreaksAndMendsWithoutATrace) {
  for (const FaultKind kind : {FaultKind::kBadCode, FaultKind::kBadConfig}) {
    TreeFaultTools tools(options_);
    const std::string name = kind == FaultKind::kBadCode ? "run.py" : "config.json";
    const std::string before = Read(name);
    struct stat was;
    ASSERT_EQ(stat((tree_ + "/" + name).c_str(), &was), 0);
    const auto plan = tools.Plan(kind, "drill-1");
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_EQ(Read(name), before) << "planning breaks nothing";
    ASSERT_TRUE(tools.Break(*plan).ok());
    EXPECT_NE(Read(name), before);
    EXPECT_EQ(*tools.CountBroken(*plan), 1u);
    EXPECT_EQ(*tools.Mend(*plan), 1u);
    EXPECT_EQ(Read(name), before);
    struct stat is;
    ASSERT_EQ(stat((tree_ + "/" + name).c_str(), &is), 0);
    EXPECT_EQ(is.st_mtim.tv_nsec, was.st_mtim.tv_nsec);
    EXPECT_EQ(*tools.Mend(*plan), 0u);
  }
}

TEST_F(TreeFaultToolsTest, WhatACrashHasLeftHalfWrittenIsMended) {
  TreeFaultTools tools(options_);
  for (const FaultKind kind : {FaultKind::kBadCode, FaultKind::kBadConfig}) {
    const std::string name = kind == FaultKind::kBadCode ? "run.py" : "config.json";
    const std::string before = Read(name);
    const auto plan = tools.Plan(kind, "drill-1");
    ASSERT_TRUE(plan.ok()) << plan.status();
    const FaultEdit& edit = plan->edits[0];
    for (size_t written = 0; written <= edit.after.size(); ++written) {
      std::string half = before;
      half.replace(edit.offset, std::min(written, before.size() - edit.offset), edit.after.substr(0, written));
      Write(name, half);
      ASSERT_TRUE(tools.Mend(*plan).ok());
      ASSERT_EQ(Read(name), before) << name << " after " << written << " bytes";
    }
  }
}

TEST_F(TreeFaultToolsTest, WhatSomebodyElseHasWrittenIsNotTouched) {
  TreeFaultTools tools(options_);
  const auto plan = tools.Plan(FaultKind::kBadCode, "drill-1");
  ASSERT_TRUE(tools.Break(*plan).ok());
  for (const std::string text : {"print('another release')\n", "", "x"}) {
    Write("run.py", text);
    EXPECT_EQ(*tools.Mend(*plan), 0u);
    EXPECT_EQ(Read("run.py"), text);
  }
  unlink((tree_ + "/run.py").c_str());
  EXPECT_EQ(*tools.Mend(*plan), 0u);
}

TEST_F(TreeFaultToolsTest, LinksAreNotFollowedAndHardLinksRefused) {
  TreeFaultTools tools(options_);
  ASSERT_EQ(link((tree_ + "/run.py").c_str(), (tree_ + "/other").c_str()), 0);
  EXPECT_FALSE(tools.Plan(FaultKind::kBadCode, "drill-1").ok());
  unlink((tree_ + "/other").c_str());
  std::ofstream(folder_ + "/outside") << "root's own file, which is to stay as it is";
  unlink((tree_ + "/config.json").c_str());
  ASSERT_EQ(symlink((folder_ + "/outside").c_str(), (tree_ + "/config.json").c_str()), 0);
  EXPECT_FALSE(tools.Plan(FaultKind::kBadConfig, "drill-1").ok());
}

TEST_F(TreeFaultToolsTest, SqliteReallyNoticesTheDatabaseFault) {
  for (const bool wal : {false, true}) {
    unlink((tree_ + "/bot.db").c_str());
    MakeDatabase(wal);
    TreeFaultTools tools(options_);
    const std::string before = Read("bot.db");
    const auto plan = tools.Plan(FaultKind::kBadDatabase, "drill-1");
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_FALSE(tools.CheckBroken(*plan).ok()) << "it is well still";
    ASSERT_TRUE(tools.Break(*plan).ok());
    EXPECT_TRUE(tools.CheckBroken(*plan).ok());
    EXPECT_EQ(*tools.Mend(*plan), 1u);
    EXPECT_TRUE(copier_.Check(tree_ + "/bot.db").ok());
    EXPECT_EQ(Read("bot.db").size(), before.size());
  }
  Write("bot.db", "garbage");
  EXPECT_FALSE(TreeFaultTools(options_).Plan(FaultKind::kBadDatabase, "drill-1").ok()) << "damaged as it is";
}

TEST_F(TreeFaultToolsTest, FillsTheDiskUpToItsReserve) {
  if (mount("none", folder_.c_str(), "tmpfs", 0, "size=32m") != 0) GTEST_SKIP() << "only root can mount";
  mkdir(tree_.c_str(), 0755);
  // By default what a recovery wants: the engine's spare, room to write in, and to copy the database.
  options_.tree.sqlite_paths = {"bot.db", "not-there.db"};
  Write("bot.db", std::string(3 << 20, 'd'));
  const auto by_default = TreeFaultTools(options_).Plan(FaultKind::kDiskFull, "drill-1");
  EXPECT_TRUE(by_default.ok()) << by_default.status();
  if (by_default.ok()) {
    EXPECT_NEAR(static_cast<double>(by_default->filler_bytes), (32 - 3 - (16 + 8 + 3)) << 20, 64 << 10);
  }
  options_.reserve_bytes = 1 << 20;
  TreeFaultTools tools(options_);
  const auto plan = tools.Plan(FaultKind::kDiskFull, "drill-1");
  EXPECT_TRUE(plan.ok()) << plan.status();
  if (plan.ok()) {
    EXPECT_TRUE(tools.Break(*plan).ok());
    struct statvfs space;
    EXPECT_EQ(statvfs(folder_.c_str(), &space), 0);
    EXPECT_NEAR(static_cast<double>(space.f_bavail * space.f_frsize), 1 << 20, 64 << 10);
    EXPECT_EQ(*tools.Mend(*plan), 1u);
    EXPECT_EQ(*tools.CountBroken(*plan), 0u);
  }
  options_.most_bytes = 1 << 20;
  EXPECT_FALSE(TreeFaultTools(options_).Plan(FaultKind::kDiskFull, "drill-1").ok()) << "more than is allowed";
  EXPECT_EQ(umount(folder_.c_str()), 0);
}

TEST_F(TreeFaultToolsTest, ThePowerIsCutByTheCommandOfTheFile) {
  // In place of one that would cut it: the agent goes on, and says that it was not cut.
  options_.power_cut_command = {"/usr/bin/touch", folder_ + "/cut"};
  options_.power_cut_patience = absl::Milliseconds(300);
  const absl::Status failed = TreeFaultTools(options_).Strike(FaultKind::kHostPowerCut);
  EXPECT_THAT(failed.message(), testing::HasSubstr("touch did not cut the power within"));
  struct stat info;
  EXPECT_EQ(stat((folder_ + "/cut").c_str(), &info), 0);
}

TEST_F(TreeFaultToolsTest, RecordsComeBackAsTheyWere) {
  FileFaultRecords records(folder_, "bot");
  EXPECT_TRUE(absl::IsNotFound(records.Load().status()));
  FaultRecord record;
  record.drill_id = "drill-1";
  record.state = FaultState::kIn;
  record.plan.kind = FaultKind::kBadConfig;
  record.plan.edits = {{"config.json", 12, std::string("\0\xff", 2), "after", 5}};
  record.ends_at = absl::FromUnixSeconds(100);
  record.longest = absl::Minutes(3);
  record.ended_drills = {"drill-0"};
  ASSERT_TRUE(records.Save(record).ok());
  const auto loaded = FileFaultRecords(folder_, "bot").Load();
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->plan.edits[0].before, record.plan.edits[0].before);
  EXPECT_EQ(loaded->ends_at, record.ends_at);
  EXPECT_EQ(loaded->ended_drills, record.ended_drills);
  EXPECT_EQ(loaded->plan.kind, FaultKind::kBadConfig);
}

}  // namespace
}  // namespace rb::agent
