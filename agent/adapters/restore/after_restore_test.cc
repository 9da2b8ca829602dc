#include "agent/adapters/restore/after_restore.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "agent/core/ports/fake_supervisor.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::rb::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Lends a supervisor that the test keeps.
class Lent final : public Supervisor {
 public:
  explicit Lent(Supervisor& supervisor) : supervisor_(supervisor) {}
  absl::Status Stop(absl::Duration timeout) override { return supervisor_.Stop(timeout); }
  absl::Status Start(absl::Duration timeout) override { return supervisor_.Start(timeout); }
  absl::StatusOr<UnitState> GetState() override { return supervisor_.GetState(); }

 private:
  Supervisor& supervisor_;
};

class AfterRestoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_.tree.service = "bot";
    options_.tree.tree = folder_ / "tree";
    options_.tree.data_globs = {"data/**"};
    options_.tree.sqlite_paths = {"state/bot.db"};
    options_.supervisor_of = [this](const std::string& unit) { return std::make_unique<Lent>(units_[unit]); };
    for (const char* path : {"tree/cache/a/b.txt", "tree/cache/c.txt", "tree/lib/__pycache__/x.pyc", "tree/lib/x.py",
                             "tree/data/cache/kept.txt", "tree/data/__pycache__/kept.pyc", "tree/state/bot.db",
                             "tree/state/bot.db-wal", "tree/state/junk", "outside/kept.txt", "cache/kept.txt"}) {
      Write(path);
    }
  }
  void Write(const std::string& path) {
    std::filesystem::create_directories(std::filesystem::path(folder_ / path).parent_path());
    std::ofstream(folder_ / path) << path;
  }
  bool IsThere(const std::string& path) {
    return std::filesystem::exists(std::filesystem::symlink_status(folder_ / path));
  }
  std::vector<std::string> Clear(const std::vector<std::string>& globs) {
    options_.clear = globs;
    return MakeAfterRestore(options_, SystemClock())->BeforeStart();
  }

  TemporaryFolder folder_;
  AfterRestoreOptions options_;
  std::map<std::string, FakeSupervisor> units_;
};

TEST_F(AfterRestoreTest, ClearsTheFoldersThatAreNamedAndNothingElse) {
  EXPECT_THAT(Clear({"cache/", "**/__pycache__"}), IsEmpty());
  EXPECT_TRUE(IsThere("tree/cache"));
  EXPECT_FALSE(IsThere("tree/cache/a"));
  EXPECT_FALSE(IsThere("tree/cache/c.txt"));
  EXPECT_TRUE(IsThere("tree/lib/__pycache__"));
  EXPECT_FALSE(IsThere("tree/lib/__pycache__/x.pyc"));
  EXPECT_TRUE(IsThere("tree/lib/x.py"));
  EXPECT_TRUE(IsThere("tree/state/junk"));
  EXPECT_TRUE(IsThere("cache/kept.txt"));
}

TEST_F(AfterRestoreTest, DataIsNeverClearedUnlessItIsNamed) {
  EXPECT_THAT(Clear({"**/cache", "**/__pycache__", "**", "*"}), IsEmpty());
  EXPECT_TRUE(IsThere("tree/data/cache/kept.txt"));
  EXPECT_TRUE(IsThere("tree/data/__pycache__/kept.pyc"));
  // A folder that holds a database loses all but that.
  EXPECT_TRUE(IsThere("tree/state/bot.db"));
  EXPECT_TRUE(IsThere("tree/state/bot.db-wal"));
  EXPECT_FALSE(IsThere("tree/state/junk"));
  EXPECT_THAT(Clear({"data/cache"}), IsEmpty());
  EXPECT_FALSE(IsThere("tree/data/cache/kept.txt"));
  EXPECT_TRUE(IsThere("tree/data/__pycache__/kept.pyc"));
}

TEST_F(AfterRestoreTest, NeverLeavesTheTreeThroughALink) {
  std::filesystem::create_directory_symlink(folder_ / "outside", folder_ / "tree/linked");
  std::filesystem::create_directory_symlink(folder_ / "outside", folder_ / "tree/cache/inner");
  std::filesystem::remove_all(folder_ / "tree/lib/__pycache__");
  std::filesystem::create_directory_symlink(folder_ / "outside", folder_ / "tree/lib/__pycache__");
  EXPECT_THAT(Clear({"linked", "cache", "**/__pycache__", "**"}), IsEmpty());
  EXPECT_TRUE(IsThere("outside/kept.txt"));
  // A link that lies in a cache goes as itself; one that stands for a cache stays.
  EXPECT_FALSE(IsThere("tree/cache/inner"));
  EXPECT_TRUE(IsThere("tree/linked"));
}

TEST_F(AfterRestoreTest, NeverClearsAnotherFilesystemNorOurOwnStaging) {
  Write("tree/.rb-staging/undo");
  if (geteuid() != 0 || (std::filesystem::create_directory(folder_ / "tree/cache/mounted"),
                         mount("tmpfs", (folder_ / "tree/cache/mounted").c_str(), "tmpfs", 0, "size=1m") != 0)) {
    GTEST_SKIP() << "needs root, and to mount";
  }
  Write("tree/cache/mounted/kept.txt");
  const std::vector<std::string> problems = Clear({"cache", "**"});
  const bool kept = IsThere("tree/cache/mounted/kept.txt");
  umount((folder_ / "tree/cache/mounted").c_str());
  EXPECT_TRUE(kept);
  EXPECT_THAT(problems, ElementsAre(HasSubstr("cache/mounted could not be cleared: it is another filesystem")));
  EXPECT_TRUE(IsThere("tree/.rb-staging/undo"));
}

TEST_F(AfterRestoreTest, HasAnEnd) {
  options_.clear_timeout = absl::ZeroDuration();
  EXPECT_THAT(Clear({"cache"}), ElementsAre(HasSubstr("took longer than")));
  EXPECT_TRUE(IsThere("tree/cache/c.txt"));
}

TEST_F(AfterRestoreTest, RestartsDependantsThatRunAndSaysWhichCouldNot) {
  options_.restart = {"dashboard.service", "stopped.service", "broken.service"};
  RB_ASSERT_OK(units_["dashboard.service"].Start(absl::Seconds(1)));
  RB_ASSERT_OK(units_["broken.service"].Start(absl::Seconds(1)));
  const int64_t before = units_["dashboard.service"].GetState()->main_pid;
  units_["broken.service"].FailGetState(absl::UnavailableError("the bus is gone"));
  EXPECT_THAT(MakeAfterRestore(options_, SystemClock())->AfterStart(),
              ElementsAre("after_restore: broken.service could not be restarted: the bus is gone. On this host: "
                          "systemctl restart broken.service"));
  EXPECT_NE(units_["dashboard.service"].GetState()->main_pid, before);
  EXPECT_EQ(units_["stopped.service"].GetState()->activity, UnitState::Activity::kInactive);
}

}  // namespace
}  // namespace rb::agent
