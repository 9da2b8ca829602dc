// A service user who keeps swapping folders and files of the tree for links while root captures and restores: nothing
// outside of the tree is ever written, and nothing that the user may not read gets into it.
//
// RB_RACE_SECONDS: how long (default 10; CI takes 60).
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "agent/core/engine/engine.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

constexpr uid_t kServiceUser = 54321;
constexpr int kFiles = 6;
constexpr char kSecret[] = "what only root may read";

std::string FileName(int i) { return absl::StrCat("m", i, ".py"); }

// All of a folder that must not change. (The number of names and ctime are left out: where the kernel lets the attacker
// give a file another name, he changes these himself.)
std::map<std::string, std::string> Describe(const std::string& folder) {
  std::map<std::string, std::string> all;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    struct stat info {};
    if (lstat(entry.path().c_str(), &info) != 0) continue;
    const absl::StatusOr<std::string> content =
        S_ISREG(info.st_mode) ? ReadFile(entry.path().string()) : absl::StatusOr<std::string>("");
    all[entry.path().string()] =
        absl::StrCat(info.st_ino, " ", info.st_mode, " ", info.st_uid, ":", info.st_gid, " ", info.st_mtim.tv_sec, ".",
                     info.st_mtim.tv_nsec, " ", content.ok() ? *content : content.status().ToString());
  }
  return all;
}

// The attackers get the last processor for themselves, and we the others: on the processor on which we run, an attacker
// does nothing. With one processor there is nothing to share.
void TakeProcessors(bool attacker) {
  cpu_set_t all;
  CPU_ZERO(&all);
  if (sched_getaffinity(0, sizeof(all), &all) != 0 || CPU_COUNT(&all) < 2) return;
  size_t last = 0;
  for (size_t i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &all)) last = i;
  }
  cpu_set_t ours;
  CPU_ZERO(&ours);
  if (attacker) {
    CPU_SET(last, &ours);
  } else {
    ours = all;
    CPU_CLR(last, &ours);
  }
  EXPECT_EQ(sched_setaffinity(0, sizeof(ours), &ours), 0) << errno;
}

volatile sig_atomic_t g_enough = 0;

// Never returns: as the service user, swaps what it owns for links to `outside` and back, at random. Ends at SIGTERM
// with everything put back: what an attacker leaves in a folder's place, nobody else can put right.
// Works in the folder it is started in, wherever that is moved, on `folders` that no other attacker swaps.
[[noreturn]] void Attack(const std::string& start, const std::vector<std::string>& folders, const std::string& outside,
                         unsigned seed) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  TakeProcessors(true);
  signal(SIGTERM, [](int) { g_enough = 1; });
  if (setgid(kServiceUser) != 0 || setuid(kServiceUser) != 0 || chdir(start.c_str()) != 0) _exit(1);
  std::mt19937 random(seed);
  const auto spin = [&](size_t most) {
    for (size_t left = random() % most; left > 0; --left) getppid();
  };
  while (g_enough == 0) {
    const std::string& folder = folders[random() % folders.size()];
    const std::string aside = folder + ".aside";
    if (random() % 2 == 0) {
      if (rename(folder.c_str(), aside.c_str()) == 0) {
        if (symlink(outside.c_str(), folder.c_str()) == 0) {
          spin(3000);
          unlink(folder.c_str());
        }
        rename(aside.c_str(), folder.c_str());
      }
    } else {
      // One file for a link to a file, or for another name of a file outside (where the kernel allows that).
      const std::string file = absl::StrCat(folder, "/", FileName(static_cast<int>(random() % kFiles)));
      const std::string target = absl::StrCat(outside, random() % 2 == 0 ? "/secret" : "/m0.py");
      if (rename(file.c_str(), aside.c_str()) == 0) {
        if ((random() % 2 == 0 ? symlink(target.c_str(), file.c_str()) : link(target.c_str(), file.c_str())) == 0) {
          spin(3000);
          unlink(file.c_str());
        }
        rename(aside.c_str(), file.c_str());
      }
    }
    spin(30000);
  }
  _exit(0);
}

class LinkRace : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root: it works as another user too";
    // The service user has to get to it.
    ASSERT_EQ(chmod(folder_.path().c_str(), 0755), 0);
    ASSERT_EQ(mkdir(outside_.c_str(), 0755), 0);
    ASSERT_EQ(mkdir((outside_ + "/deep").c_str(), 0755), 0);  // as lib/deep, for who follows a link at lib
    for (int i = 0; i < kFiles; ++i) {
      RB_ASSERT_OK(WriteFileDurably(outside_ + "/" + FileName(i), "outside"));
      RB_ASSERT_OK(WriteFileDurably(outside_ + "/deep/" + FileName(i), "outside, too"));
    }
    RB_ASSERT_OK(WriteFileDurably(outside_ + "/secret", kSecret));
    ASSERT_EQ(chmod((outside_ + "/secret").c_str(), 0600), 0);
    ASSERT_EQ(mkdir(tree_.c_str(), 0755), 0);
    FillTree("first");
    ServiceTree service;
    service.service = "bot";
    service.tree = tree_;
    Engine::Options options;
    options.state_folder = folder_ / "state";
    options.clock = &SystemClock();
    RB_ASSERT_OK_AND_ASSIGN(engine_, Engine::Open(options, service));
  }
  void TearDown() override { EndAttackers(); }

  void FillTree(const std::string& content) {
    for (const char* sub : {"lib", "lib/deep", "new"}) {
      const std::string path = tree_ + "/" + sub;
      std::filesystem::create_directory(path);
      for (int i = 0; i < kFiles; ++i) {
        RB_ASSERT_OK(WriteFileDurably(path + "/" + FileName(i), absl::StrCat(content, " ", sub, " ", i)));
        ASSERT_EQ(chown((path + "/" + FileName(i)).c_str(), kServiceUser, kServiceUser), 0);
      }
      ASSERT_EQ(chown(path.c_str(), kServiceUser, kServiceUser), 0);
    }
    ASSERT_EQ(chown(tree_.c_str(), kServiceUser, kServiceUser), 0);
  }
  void StartAttackers() {
    const std::vector<std::pair<std::string, std::vector<std::string>>> plans = {{tree_, {"lib", "new"}},
                                                                                 {tree_ + "/lib", {"deep"}}};
    for (const auto& [start, folders] : plans) {
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) Attack(start, folders, outside_, static_cast<unsigned>(attackers_.size() + 1));
      attackers_.push_back(child);
    }
    TakeProcessors(false);
  }
  void EndAttackers() {
    for (const pid_t attacker : attackers_) {
      kill(attacker, SIGTERM);
      waitpid(attacker, nullptr, 0);
    }
    attackers_.clear();
  }

  testing::TemporaryFolder folder_;
  const std::string outside_ = folder_ / "outside";
  const std::string tree_ = folder_ / "tree";
  std::unique_ptr<Engine> engine_;
  std::vector<pid_t> attackers_;
};

TEST_F(LinkRace, NothingOutsideIsWrittenAndNoSecretGetsIn) {
  int64_t seconds = 10;
  if (const char* text = std::getenv("RB_RACE_SECONDS"); text != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(text, &seconds)) << "RB_RACE_SECONDS is not a number: " << text;
  }
  RB_ASSERT_OK_AND_ASSIGN(const Release first, engine_->Capture({}));
  FillTree("second");
  RB_ASSERT_OK_AND_ASSIGN(const Release second, engine_->Capture({}));
  RB_ASSERT_OK(engine_->SetPinned(first.name, true));
  RB_ASSERT_OK(engine_->SetPinned(second.name, true));
  const auto outside = Describe(outside_);
  ASSERT_NO_FATAL_FAILURE(StartAttackers());

  const absl::Duration end = SystemClock().Monotonic() + absl::Seconds(seconds);
  size_t rounds = 0;
  size_t committed = 0;
  size_t refused = 0;
  while (SystemClock().Monotonic() < end) {
    const std::string operation = absl::StrCat("op-", ++rounds);
    EngineTarget target;
    target.release_name = rounds % 2 == 0 ? first.name : second.name;
    absl::Status done = engine_->Prepare(operation, target, Components{}, "race").status();
    if (done.ok()) done = engine_->Commit(operation).status();
    if (done.ok()) {
      ++committed;
      // Every other one is taken back under attack, too.
      if (rounds % 3 == 0) {
        engine_->Undo(operation).IgnoreError();
      } else {
        engine_->Keep(operation, Cause::kDeploy, false, false, "").IgnoreError();
      }
    } else {
      ++refused;
      engine_->Undo(operation).IgnoreError();
    }
    engine_->Recover().IgnoreError();
    if (rounds % 50 == 0) engine_->Prune(1, {}).IgnoreError();
    ASSERT_EQ(Describe(outside_), outside) << "round " << rounds << ", " << done;
  }
  EndAttackers();
  std::printf("%zu rounds, %zu committed, %zu refused\n", rounds, committed, refused);
  EXPECT_GT(committed, 0u);
  EXPECT_GT(refused, 0u) << "the attack was too weak to be met";

  // The attack over, everything works, and no release holds the secret.
  RB_ASSERT_OK(engine_->Recover());
  RB_ASSERT_OK_AND_ASSIGN(const OpenTransaction open, engine_->GetOpenTransaction());
  RB_ASSERT_OK(engine_->Undo(open.operation_id));
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Release> releases, engine_->Releases());
  std::vector<Release> all(releases.rbegin(), releases.rend());
  all.push_back(first);  // and to a tree that is known
  size_t restored = 0;
  for (const Release& release : all) {
    const std::string operation = absl::StrCat("after-", ++restored);
    EngineTarget target;
    target.release_name = release.name;
    RB_ASSERT_OK(engine_->Prepare(operation, target, Components{}, "look"));
    RB_ASSERT_OK(engine_->Commit(operation));
    for (const auto& [path, text] : Describe(tree_)) {
      ASSERT_FALSE(absl::StrContains(text, kSecret)) << release.name << ": " << path;
    }
    RB_ASSERT_OK(engine_->Keep(operation, Cause::kDeploy, false, false, ""));
  }
  EXPECT_EQ(Describe(outside_), outside);
  for (const char* sub : {"lib", "lib/deep", "new"}) {
    for (int i = 0; i < kFiles; ++i) {
      RB_ASSERT_OK_AND_ASSIGN(const std::string content, ReadFile(absl::StrCat(tree_, "/", sub, "/", FileName(i))));
      EXPECT_EQ(content, absl::StrCat("first ", sub, " ", i));
    }
  }
}

}  // namespace
}  // namespace rb::agent
