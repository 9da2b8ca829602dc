// What a release keeps: everything. Random trees are captured, damaged and brought back, and every attribute of every
// path is compared, on each filesystem that servers have.
//
// RB_FIDELITY_TREES: trees for each filesystem (default 20). RB_FIDELITY_SEED: the first one's seed (default 1).
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "agent/core/engine/engine.h"
#include "common/clock.h"
#include "common/test_util.h"
#include "common/text.h"
#include "tests/fidelity/loop_filesystem.h"
#include "tests/fidelity/random_tree.h"

namespace rb::agent {
namespace {

using testing::DescribedEntry;
using testing::DescribeTree;
using testing::LoopFilesystem;
using testing::RandomTree;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): no threads yet
  uint64_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

// The first differences, one a line; "" when there is none. A file may not lie on the disk in much more space than
// before: its holes are holes again.
std::string Differences(const std::map<std::string, DescribedEntry>& before,
                        const std::map<std::string, DescribedEntry>& after) {
  std::string found;
  int count = 0;
  const auto add = [&](const std::string& path, const std::string& text) {
    if (++count <= 5) absl::StrAppend(&found, "'", Printable(path), "': ", text, "\n");
  };
  for (const auto& [path, entry] : before) {
    const auto other = after.find(path);
    if (other == after.end()) {
      add(path, "is gone: " + entry.text);
    } else if (other->second.text != entry.text) {
      add(path, absl::StrCat("was\n    ", entry.text, "\n  is\n    ", other->second.text));
    } else if (other->second.allocated_bytes > entry.allocated_bytes + entry.size / 8 + (64 << 10)) {
      add(path, absl::StrCat("took ", entry.allocated_bytes, " bytes of ", entry.size, ", takes ",
                             other->second.allocated_bytes));
    }
  }
  for (const auto& [path, entry] : after) {
    if (!before.contains(path)) add(path, "is new: " + entry.text);
  }
  if (count > 5) absl::StrAppend(&found, "and ", count - 5, " more\n");
  return found;
}

::testing::AssertionResult IsAs(const std::map<std::string, DescribedEntry>& before, const std::string& tree) {
  const std::string found = Differences(before, DescribeTree(tree));
  return found.empty() ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << found;
}

// What has to come back must have been there: how often each kind was met.
class Kinds {
 public:
  void Count(const std::map<std::string, DescribedEntry>& tree) {
    for (const auto& [path, entry] : tree) {
      const std::string name = path.substr(path.rfind('/') + 1);
      const mode_t type = entry.mode & S_IFMT;
      const auto has = [&all = entry.text](const char* text) { return absl::StrContains(all, text); };
      // A folder sorts before all that it holds, its own name and a slash before them.
      const auto inside = tree.lower_bound(path + "/");
      const bool is_empty = inside == tree.end() || inside->first.compare(0, path.size() + 1, path + "/") != 0;
      const std::pair<const char*, bool> kinds[] = {
          {"setuid", (entry.mode & S_ISUID) != 0},
          {"setgid", (entry.mode & S_ISGID) != 0},
          {"sticky", (entry.mode & S_ISVTX) != 0},
          {"symlink", type == S_IFLNK},
          {"fifo", type == S_IFIFO},
          {"empty folder", type == S_IFDIR && is_empty},
          {"further name of a file", has(" same as ")},
          {"sparse file", type == S_IFREG && entry.allocated_bytes + (64 << 10) < entry.size},
          {"file cut by content", type == S_IFREG && entry.size > (1 << 20)},
          {"extended attribute", has(" user.") || has(" trusted.")},
          {"ACL", has(" system.posix_acl_access=")},
          {"default ACL", has(" system.posix_acl_default=")},
          {"capability", has(" security.capability=")},
          {"name that is not UTF-8", absl::StrContains(name, '\xff')},
          {"name with a newline", absl::StrContains(name, '\n')},
          {"name of 255 bytes", name.size() == 255},
          {"path beyond PATH_MAX", path.size() > 4096},
      };
      for (const auto& [kind, is_met] : kinds) met_[kind] += is_met ? 1 : 0;
    }
  }
  std::string Missing() const {
    std::string missing;
    for (const auto& [kind, count] : met_) {
      if (count == 0) absl::StrAppend(&missing, kind, "\n");
    }
    return missing;
  }

 private:
  std::map<std::string, size_t> met_;
};

class Fidelity : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root: it mounts filesystems and gives files away";
    if (access("/dev/loop-control", R_OK | W_OK) != 0) GTEST_SKIP() << "needs loop devices (/dev/loop-control)";
    RB_ASSERT_OK_AND_ASSIGN(filesystem_, LoopFilesystem::Mount(GetParam()));
    // What lies beside the trees inherits a group and an ACL, and must not pass them on.
    ASSERT_EQ(chown(filesystem_->path().c_str(), 0, 1234), 0);
    ASSERT_EQ(chmod(filesystem_->path().c_str(), 02755), 0);
    const std::string acl = testing::AclFor(4321);
    ASSERT_EQ(setxattr(filesystem_->path().c_str(), "system.posix_acl_default", acl.data(), acl.size(), 0), 0);
  }
  // A tree and an engine of its own.
  void Start(const std::string& name) {
    engine_.reset();
    tree_.service = "bot";
    tree_.tree = absl::StrCat(filesystem_->path(), "/", name);
    std::filesystem::create_directory(tree_.tree);
    Engine::Options options;
    options.state_folder = absl::StrCat(filesystem_->path(), "/", name, "-state");
    options.clock = &SystemClock();
    RB_ASSERT_OK_AND_ASSIGN(engine_, Engine::Open(options, tree_));
  }
  void RollBack(const std::string& operation, const std::string& release, std::string* replaced) {
    EngineTarget target;
    target.release_name = release;
    RB_ASSERT_OK_AND_ASSIGN(const PreparedTransaction prepared,
                            engine_->Prepare(operation, target, Components{}, "why"));
    *replaced = prepared.replaced.name;
    RB_ASSERT_OK(engine_->Commit(operation));
    RB_ASSERT_OK(engine_->Keep(operation, Cause::kDeploy, true, false, ""));
  }

  std::unique_ptr<LoopFilesystem> filesystem_;
  ServiceTree tree_;
  std::unique_ptr<Engine> engine_;
};

TEST_P(Fidelity, EveryAttributeComesBackThereAndBackAgain) {
  const uint64_t first_seed = FromEnvironment("RB_FIDELITY_SEED", 1);
  const uint64_t trees = FromEnvironment("RB_FIDELITY_TREES", 20);
  size_t entries = 0;
  Kinds kinds;
  for (uint64_t seed = first_seed; seed < first_seed + trees && !HasFailure(); ++seed) {
    SCOPED_TRACE(absl::StrCat(GetParam(), ", to see it again: RB_FIDELITY_TREES=1 RB_FIDELITY_SEED=", seed));
    const std::string name = absl::StrCat("tree", seed);
    ASSERT_NO_FATAL_FAILURE(Start(name));
    RandomTree random(seed);
    random.Fill(tree_.tree);
    const auto first = DescribeTree(tree_.tree);
    entries += first.size();
    kinds.Count(first);
    RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
    EXPECT_TRUE(IsAs(first, tree_.tree)) << "after the capture, which must change nothing";
    RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
    EXPECT_THAT(proof.findings, ::testing::IsEmpty());
    random.Damage(tree_.tree);
    const auto damaged = DescribeTree(tree_.tree);
    std::string replaced;
    std::string again;
    ASSERT_NO_FATAL_FAILURE(RollBack("there", release.name, &replaced));
    EXPECT_TRUE(IsAs(first, tree_.tree)) << "after the rollback";
    ASSERT_NO_FATAL_FAILURE(RollBack("back", replaced, &again));
    EXPECT_TRUE(IsAs(damaged, tree_.tree)) << "after going back to what was replaced";
    engine_.reset();
    std::filesystem::remove_all(tree_.tree + "-state");
    RB_ASSERT_OK(testing::RunProgram({"rm", "-rf", tree_.tree}));
  }
  // A few trees, as under a sanitizer, need not have all of it.
  if (trees >= 10) {
    EXPECT_EQ(kinds.Missing(), "");
  }
  std::printf("%s: %zu entries in %llu trees\n", GetParam(), entries, static_cast<unsigned long long>(trees));
}

TEST_P(Fidelity, WhatCannotBeKeptIsListed) {
  ASSERT_NO_FATAL_FAILURE(Start("odd"));
  std::filesystem::create_directory(tree_.tree + "/run");
  ASSERT_EQ(mknod((tree_.tree + "/run/device\n").c_str(), S_IFCHR | 0600, makedev(1, 3)), 0);
  ASSERT_EQ(mknod((tree_.tree + "/run/disk").c_str(), S_IFBLK | 0600, makedev(7, 200)), 0);
  ASSERT_EQ(mknod((tree_.tree + "/run/socket").c_str(), S_IFSOCK | 0600, 0), 0);
  std::vector<std::string> expected = {"run/device\\x0a", "run/disk", "run/socket"};
  if (GetParam() == std::string("btrfs")) {
    RB_ASSERT_OK(testing::RunProgram({"btrfs", "subvolume", "create", tree_.tree + "/run/volume"}));
    expected.push_back("run/volume (another filesystem)");
  }
  const auto before = DescribeTree(tree_.tree);
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  EngineTarget target;
  target.release_name = release.name;
  RB_ASSERT_OK_AND_ASSIGN(const Delta delta, engine_->Compare(target, Components{}));
  EXPECT_EQ(delta.not_captured, expected);
  // They stay where they are.
  std::filesystem::create_directory(tree_.tree + "/run/new");
  std::string replaced;
  ASSERT_NO_FATAL_FAILURE(RollBack("op", release.name, &replaced));
  EXPECT_TRUE(IsAs(before, tree_.tree));
}

INSTANTIATE_TEST_SUITE_P(Filesystems, Fidelity, ::testing::Values("ext4", "xfs", "btrfs"),
                         [](const auto& which) { return std::string(which.param); });

}  // namespace
}  // namespace rb::agent
