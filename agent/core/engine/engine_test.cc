#include "agent/core/engine/engine.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/core/engine/codec.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/engine/text_diff.h"
#include "agent/core/engine/transaction.h"
#include "agent/core/engine/tree_files.h"
#include "agent/core/engine/walk.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::testing::Each;
using testing::FailsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TemporaryFolder;

// Every attribute of every path, folder times included.
std::map<std::string, std::string> Describe(const std::string& tree) {
  std::map<std::string, std::string> all;
  const UniqueFd root(open(tree.c_str(), O_RDONLY | O_DIRECTORY));
  ServiceTree bare;
  bare.tree = tree;
  const absl::StatusOr<LiveTree> live = WalkTree(root.get(), bare, true);
  if (!live.ok()) return {{"error", live.status().ToString()}};
  for (const LiveEntry& entry : live->entries) {
    std::string text =
        absl::StrCat(static_cast<int>(entry.entry.type), " ", entry.entry.attributes.mode, " ",
                     entry.entry.attributes.uid, ":", entry.entry.attributes.gid, " ", entry.entry.attributes.mtime_ns,
                     " ", entry.entry.size, " ", *entry.entry.link_target, " group ", entry.entry.hard_link_group);
    for (const auto& [name, value] : *entry.entry.attributes.xattrs) absl::StrAppend(&text, " ", name, "=", value);
    if (entry.entry.type == EntryType::kFile) {
      const absl::StatusOr<Place> place = LocateBeneath(root.get(), entry.entry.path);
      const UniqueFd fd(openat(place->parent.get(), place->name.c_str(), O_RDONLY));
      std::string content(entry.entry.size, '\0');
      if (pread(fd.get(), content.data(), content.size(), 0) != static_cast<ssize_t>(content.size())) text += " short";
      absl::StrAppend(&text, " ", Sha256Of(content).ToHex());
    }
    all[entry.entry.path] = text;
  }
  return all;
}

void Put(const std::string& path, const std::string& content, mode_t mode = 0644) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::filesystem::remove(path);
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600));
  ASSERT_EQ(write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  ASSERT_EQ(fchmod(fd.get(), mode), 0);
}

class FakeCopier final : public DatabaseCopier {
 public:
  absl::Status Copy(const std::string& source, const std::string& destination) override {
    RB_ASSIGN_OR_RETURN(const std::string content, ReadFile(source));
    if (absl::StrContains(content, "broken")) return absl::DataLossError("malformed");
    return WriteFileDurably(destination, content);
  }
  absl::Status Check(const std::string& path) override {
    RB_ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
    return absl::StrContains(content, "broken") ? absl::DataLossError("malformed") : absl::OkStatus();
  }
  // A byte is a row.
  absl::StatusOr<std::map<std::string, uint64_t>> CountRows(const std::string& path) override {
    RB_ASSIGN_OR_RETURN(const std::string content, ReadFile(path));
    return std::map<std::string, uint64_t>{{"bytes", content.size()}, {"same", 7}};
  }
};

class FakeSnapshot final : public SnapshotSource {
 public:
  explicit FakeSnapshot(std::map<std::string, std::string> files) : files_(std::move(files)) {}
  absl::Status ForEach(const std::function<absl::Status(const Entry&)>& visit) override {
    for (const auto& [path, content] : files_) {
      Entry entry;
      entry.path = path;
      entry.content_id = "id-" + content;
      entry.size = content.size();
      if (path == "run.py") entry.type = Entry::Type::kExecutable;
      RB_RETURN_IF_ERROR(visit(entry));
    }
    return absl::OkStatus();
  }
  absl::Status Read(const std::string& content_id, std::string* content) override {
    *content = content_id.substr(3);
    return absl::OkStatus();
  }
  absl::Time ModificationTime() override { return absl::FromUnixSeconds(1700000000); }

 private:
  std::map<std::string, std::string> files_;
};

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    tree_.service = "bot";
    tree_.tree = folder_ / "tree";
    tree_.config_globs = {"config-*.json"};
    tree_.data_globs = {"data/**"};
    tree_.ignore_globs = {"logs/**", "**/__pycache__/**"};
    tree_.sqlite_paths = {"data/bot.db"};
    std::filesystem::create_directory(tree_.tree);
    Open();
  }
  void TearDown() override { SetFileFaultForTest(nullptr); }
  void Open() {
    engine_.reset();
    Engine::Options options;
    options.state_folder = folder_ / "state";
    options.clock = &clock_;
    options.database_copier = &copier_;
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Open(options, tree_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  std::string At(const std::string& path) { return tree_.tree + "/" + path; }
  void MakeFirst() {
    Put(At("run.py"), "print(1)\n", 0755);
    Put(At("lib/bot.py"), "v1\n");
    Put(At("lib/old/only1.py"), "1");
    Put(At("config-prod.json"), "{\n  \"a\": 1\n}\n");
    Put(At("data/bot.db"), "database one");
    Put(At("logs/today"), "log");
    ASSERT_EQ(symlink("run.py", At("start").c_str()), 0);
  }
  void MakeSecond() {
    Put(At("lib/bot.py"), "v2 broken code\n");
    std::filesystem::remove_all(At("lib/old"));
    Put(At("lib/new/deep/only2.py"), "2");
    Put(At("config-prod.json"), "{\n  \"a\": 2\n}\n");
    Put(At("data/bot.db"), "database two");
    std::filesystem::remove(At("start"));
    std::filesystem::create_directory(At("start"));
    Put(At("start/now-a-folder"), "x");
  }
  // The entries of `all` outside data and logs.
  static std::map<std::string, std::string> WithoutData(std::map<std::string, std::string> all) {
    for (auto at = all.begin(); at != all.end();) {
      at = absl::StartsWith(at->first, "data") || absl::StartsWith(at->first, "logs") ? all.erase(at) : std::next(at);
    }
    return all;
  }
  absl::Status RollBack(const std::string& operation, const std::string& release, Components components = {}) {
    EngineTarget target;
    target.release_name = release;
    RB_RETURN_IF_ERROR(engine_->Prepare(operation, target, components, "why").status());
    return engine_->Commit(operation).status();
  }

  TemporaryFolder folder_;
  FakeClock clock_{absl::FromUnixSeconds(1795000000)};
  FakeCopier copier_;
  ServiceTree tree_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, ARollbackBringsBackEveryAttributeAndLeavesDataAlone) {
  MakeFirst();
  const auto first = Describe(tree_.tree);
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({Cause::kBackup, "abc1234def", "v1.4.2", "", "why"}));
  EXPECT_EQ(release.name, "bot/2026-11-18T11-06-40Z-v1.4.2-abc1234");
  MakeSecond();
  const auto second = Describe(tree_.tree);
  EngineTarget target;
  target.release_name = release.name;
  RB_ASSERT_OK_AND_ASSIGN(const PreparedTransaction prepared, engine_->Prepare("op", target, Components{}, "why"));
  EXPECT_EQ(Describe(tree_.tree), second) << "prepare must not touch the tree";
  EXPECT_THAT(prepared.delta.config_diff, HasSubstr("-  \"a\": 2\n+  \"a\": 1\n"));
  EXPECT_EQ(prepared.delta.files_changed, 2u);
  RB_ASSERT_OK(engine_->Commit("op"));
  EXPECT_EQ(WithoutData(Describe(tree_.tree)), WithoutData(first));
  EXPECT_EQ(Describe(tree_.tree)["data/bot.db"], second.at("data/bot.db"));
  RB_ASSERT_OK_AND_ASSIGN(const Release kept, engine_->Keep("op", Cause::kDeploy, true, true, "bad"));
  EXPECT_EQ(kept.name, release.name);
  EXPECT_EQ(kept.standing, Standing::kGood);
  RB_ASSERT_OK_AND_ASSIGN(const Release again, engine_->Keep("op", Cause::kDeploy, true, true, "bad"));
  EXPECT_EQ(again.name, release.name);
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Release> releases, engine_->Releases());
  ASSERT_EQ(releases.size(), 2u);
  EXPECT_EQ(releases[0].name, prepared.replaced.name);
  EXPECT_EQ(releases[0].standing, Standing::kBad);
  // What was replaced can be gone back to: the rollback itself is undone.
  RB_ASSERT_OK(RollBack("op-2", prepared.replaced.name));
  EXPECT_EQ(WithoutData(Describe(tree_.tree)), WithoutData(second));
}

TEST_F(EngineTest, DataGoesBackOnlyWhenAskedAndWithItsJournalFiles) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  MakeSecond();
  Put(At("data/bot.db-wal"), "newer pages");
  Put(At("data/bot.db-shm"), "index");
  Components all;
  all.data = true;
  RB_ASSERT_OK(RollBack("op", release.name, all));
  RB_ASSERT_OK_AND_ASSIGN(const std::string database, ReadFile(At("data/bot.db")));
  EXPECT_EQ(database, "database one");
  EXPECT_FALSE(std::filesystem::exists(At("data/bot.db-wal")));
  EXPECT_FALSE(std::filesystem::exists(At("data/bot.db-shm")));
  RB_ASSERT_OK(engine_->Undo("op"));
  RB_ASSERT_OK_AND_ASSIGN(const std::string log, ReadFile(At("data/bot.db-wal")));
  EXPECT_EQ(log, "newer pages");
}

TEST_F(EngineTest, UndoGivesBackWhatWasThereAlsoWhatTheServiceWroteOver) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  MakeSecond();
  const auto second = Describe(tree_.tree);
  RB_ASSERT_OK(RollBack("op", release.name));
  Put(At("lib/bot.py"), "written by the service meanwhile");
  std::filesystem::create_directories(At("lib/new"));
  std::filesystem::remove_all(At("lib/old"));
  RB_ASSERT_OK(engine_->Undo("op"));
  EXPECT_EQ(WithoutData(Describe(tree_.tree)), WithoutData(second));
  RB_ASSERT_OK(engine_->Undo("op"));
  RB_ASSERT_OK_AND_ASSIGN(const OpenTransaction open, engine_->GetOpenTransaction());
  EXPECT_EQ(open.phase, TransactionPhase::kNone);
}

TEST_F(EngineTest, AnUnpreparedOrForeignOperationIsRefusedAndNothingChanges) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  MakeSecond();
  EXPECT_THAT(engine_->Commit("op"), FailsWith(absl::StatusCode::kFailedPrecondition, "not prepared"));
  EngineTarget target;
  target.release_name = release.name;
  RB_ASSERT_OK(engine_->Prepare("op", target, Components{}, ""));
  EXPECT_THAT(engine_->Prepare("other", target, Components{}, ""),
              FailsWith(absl::StatusCode::kFailedPrecondition, "operation op is open"));
  Open();
  RB_ASSERT_OK(engine_->Recover());
  RB_ASSERT_OK_AND_ASSIGN(const OpenTransaction open, engine_->GetOpenTransaction());
  EXPECT_EQ(open.phase, TransactionPhase::kPrepared) << "a prepared operation survives a restart";
  RB_ASSERT_OK(engine_->Undo("op"));
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / ".rb-staging-bot"));
}

TEST_F(EngineTest, APathThatWasChangedAfterPrepareStopsTheCommitBeforeAnyRename) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  MakeSecond();
  EngineTarget target;
  target.release_name = release.name;
  RB_ASSERT_OK(engine_->Prepare("op", target, Components{}, ""));
  Put(At("lib/bot.py"), "edited by hand");
  const auto before = Describe(tree_.tree);
  EXPECT_THAT(engine_->Commit("op"), FailsWith(absl::StatusCode::kAborted, "lib/bot.py was changed by someone else"));
  EXPECT_EQ(Describe(tree_.tree), before);
}

TEST_F(EngineTest, IgnoredContentKeepsItsFolder) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Put(At("lib/new/mod.py"), "2");
  Put(At("lib/new/__pycache__/mod.pyc"), "cache");
  RB_ASSERT_OK(RollBack("op", release.name));
  EXPECT_FALSE(std::filesystem::exists(At("lib/new/mod.py")));
  EXPECT_TRUE(std::filesystem::exists(At("lib/new/__pycache__/mod.pyc")));
}

TEST_F(EngineTest, ACommitRemovesOnlyWhatCameFromTheCommitBefore) {
  MakeFirst();
  Put(At("untracked.txt"), "mine");
  FakeSnapshot current({{"lib/bot.py", "v1\n"}, {"run.py", "print(1)\n"}, {"lib/old/only1.py", "1"}});
  FakeSnapshot next({{"lib/bot.py", "v3\n"}, {"run.py", "print(1)\n"}, {"lib/added.py", "3"}});
  EngineTarget target;
  target.snapshot = &next;
  target.commit = std::string(40, 'c');
  target.version = "v3";
  target.baseline = &current;
  const auto before = Describe(tree_.tree);
  RB_ASSERT_OK_AND_ASSIGN(const PreparedTransaction prepared, engine_->Prepare("op", target, Components{}, ""));
  EXPECT_EQ(prepared.delta.files_added, 1u);
  EXPECT_EQ(prepared.delta.files_changed, 1u);
  EXPECT_EQ(prepared.delta.files_removed, 1u);
  RB_ASSERT_OK(engine_->Commit("op"));
  EXPECT_FALSE(std::filesystem::exists(At("lib/old")));
  EXPECT_TRUE(std::filesystem::exists(At("untracked.txt")));
  EXPECT_EQ(Describe(tree_.tree)["run.py"], before.at("run.py")) << "what is the same keeps its time and mode";
  RB_ASSERT_OK_AND_ASSIGN(const Release kept, engine_->Keep("op", Cause::kDeploy, true, false, ""));
  EXPECT_EQ(kept.commit, std::string(40, 'c'));
  RB_ASSERT_OK_AND_ASSIGN(const Current now, engine_->CheckDrift());
  EXPECT_EQ(now.release_name, kept.name);
  EXPECT_FALSE(now.drifted);
  Put(At("lib/bot.py"), "by hand");
  RB_ASSERT_OK_AND_ASSIGN(const Current drifted, engine_->CheckDrift());
  EXPECT_TRUE(drifted.drifted);
}

TEST_F(EngineTest, WhatADeployByOtherMeansRemovedComesBackAndNothingElseChanges) {
  MakeFirst();
  Put(At(".env"), "TOKEN=1", 0640);
  Put(At("data/uploads/a.png"), std::string(3'000'000, 'x'), 0600);
  RB_ASSERT_OK_AND_ASSIGN(const Release before, engine_->Capture({}));
  const std::map<std::string, std::string> first = Describe(tree_.tree);
  // rsync --delete: another code, and all else is gone; a journal file of the old database was left behind.
  for (const auto& entry : std::filesystem::directory_iterator(tree_.tree)) std::filesystem::remove_all(entry.path());
  Put(At("run.py"), "print('new')\n");
  Put(At("data/bot.db-wal"), "of another database");
  const std::map<std::string, std::string> deployed = Describe(tree_.tree);
  BringBack back;
  back.release_name = before.name;
  back.wanted = [](const std::string& path) {
    return path == ".env" || absl::StartsWith(path, "data") || absl::StartsWith(path, "config");
  };
  EngineTarget target;
  target.bring_back = &back;
  target.commit = std::string(40, 'c');
  target.version = "v9";
  Components all;
  all.data = true;
  RB_ASSERT_OK_AND_ASSIGN(const PreparedTransaction prepared, engine_->Prepare("guard-1", target, all, "job 7"));
  EXPECT_EQ(prepared.delta.files_changed, 0u);
  RB_ASSERT_OK(engine_->Commit("guard-1").status());
  RB_ASSERT_OK_AND_ASSIGN(const Release after, engine_->Keep("guard-1", Cause::kExternal, false, false, "job 7"));
  EXPECT_EQ(after.cause, Cause::kExternal);
  EXPECT_EQ(after.commit, target.commit);
  RB_ASSERT_OK_AND_ASSIGN(const Current current, engine_->GetCurrent());
  EXPECT_EQ(current.release_name, after.name);
  std::map<std::string, std::string> now = Describe(tree_.tree);
  EXPECT_EQ(now["run.py"], deployed.at("run.py"));
  for (const auto& [path, facts] : first) {
    const bool wanted = path == ".env" || absl::StartsWith(path, "data/") || absl::StartsWith(path, "config");
    if (wanted) {
      EXPECT_EQ(now[path], facts) << path;
    }
    if (!wanted && !path.empty() && path != "run.py" && path != "data") {
      EXPECT_EQ(now.count(path), 0u) << path;
    }
  }
  EXPECT_EQ(now.count("data/bot.db-wal"), 0u) << "it is no part of the database that came back";
  // Nothing is missing any more.
  RB_ASSERT_OK_AND_ASSIGN(const PreparedTransaction again, engine_->Prepare("guard-2", target, all, "job 7"));
  EXPECT_TRUE(again.delta.empty());
  RB_ASSERT_OK(engine_->Undo("guard-2"));
}

TEST_F(EngineTest, WhatStandsInTheWayStays) {
  MakeFirst();
  Put(At("data/uploads/a.png"), "old");
  Put(At("config-local.json"), "{\"from\": \"before\"}");
  RB_ASSERT_OK_AND_ASSIGN(const Release before, engine_->Capture({}));
  std::filesystem::remove_all(At("data/uploads"));
  Put(At("data/uploads"), "a file now");
  Put(At("config-local.json"), "{\"from\": \"the deploy\"}");
  BringBack back;
  back.release_name = before.name;
  back.wanted = [](const std::string&) { return true; };
  EngineTarget target;
  target.bring_back = &back;
  Components all;
  all.data = true;
  RB_ASSERT_OK_AND_ASSIGN(const PreparedTransaction prepared, engine_->Prepare("guard-1", target, all, ""));
  EXPECT_TRUE(prepared.delta.empty()) << absl::StrJoin(prepared.delta.sample_paths, ",");
}

TEST_F(EngineTest, ATreeThatOthersChangedBecomesCurrentWhenItIsCaptured) {
  MakeFirst();
  CaptureRequest request;
  request.cause = Cause::kExternal;
  request.commit = std::string(40, 'd');
  request.make_current = true;
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture(request));
  RB_ASSERT_OK_AND_ASSIGN(const Current known, engine_->CheckDrift());
  EXPECT_EQ(known.release_name, release.name);
  EXPECT_EQ(known.commit, request.commit);
  EXPECT_TRUE(known.live_digest.empty());
  Put(At("lib/bot.py"), "by hand");
  RB_ASSERT_OK_AND_ASSIGN(const Current one, engine_->CheckDrift());
  RB_ASSERT_OK_AND_ASSIGN(const Current same, engine_->CheckDrift());
  EXPECT_TRUE(one.drifted);
  EXPECT_EQ(one.live_digest, same.live_digest);
  Put(At("lib/bot.py"), "by han!");
  RB_ASSERT_OK_AND_ASSIGN(const Current other, engine_->CheckDrift());
  EXPECT_NE(one.live_digest, other.live_digest);
}

TEST_F(EngineTest, ABrokenDatabaseStopsABackupButNotARollback) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  MakeSecond();
  Put(At("data/bot.db"), "broken");
  EXPECT_THAT(engine_->Capture({}), FailsWith(absl::StatusCode::kDataLoss, "data/bot.db"));
  RB_ASSERT_OK(RollBack("op", release.name));
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Release> releases, engine_->Releases());
  EXPECT_THAT(releases[0].reason, HasSubstr("data/bot.db: malformed"));
}

TEST_F(EngineTest, EveryDamagedByteOfAPackIsFoundNamedAndNeverRestored) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  const auto first = Describe(tree_.tree);
  // Nothing of it is left in the tree to heal it from.
  std::filesystem::remove_all(tree_.tree);
  MakeSecond();
  Put(At("run.py"), "print(2)\n");
  Put(At("config-prod.json"), "{}");
  Put(At("data/bot.db"), "another database");
  const auto second = Describe(tree_.tree);
  const std::string pack = folder_ / "state/store/packs/00000001.pack";
  RB_ASSERT_OK_AND_ASSIGN(const std::string whole, ReadFile(pack));
  size_t found = 0;
  for (size_t at = 0; at < whole.size(); at += 7) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x40);
    RB_ASSERT_OK(WriteFileDurably(pack, damaged));
    RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
    ASSERT_FALSE(proof.findings.empty()) << "byte " << at;
    ++found;
    EXPECT_THAT(proof.findings[0], HasSubstr("is damaged"));
    Components all;
    all.data = true;
    EngineTarget target;
    target.release_name = release.name;
    const absl::Status prepared = engine_->Prepare("op", target, all, "").status();
    if (prepared.ok()) {
      // What is damaged is not needed to get there.
      RB_ASSERT_OK(engine_->Commit("op"));
      ASSERT_EQ(Describe(tree_.tree), first) << "byte " << at;
    } else {
      EXPECT_THAT(prepared, FailsWith(absl::StatusCode::kDataLoss, release.name));
    }
    RB_ASSERT_OK(engine_->Undo("op"));
    EXPECT_EQ(Describe(tree_.tree), second);
  }
  EXPECT_GT(found, 5u);
  RB_ASSERT_OK(WriteFileDurably(pack, whole));
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
  EXPECT_THAT(proof.findings, IsEmpty());
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Release> releases, engine_->Releases());
  EXPECT_EQ(releases.back().durability, Durability::kProved);
}

TEST_F(EngineTest, EveryDamagedByteOfWhatAReleaseIsIsFoundAndNothingElseIsRestored) {
  Put(At("same"), "in both");
  Put(At("only"), "in one");
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  const auto first = Describe(tree_.tree);
  Put(At("same"), "no longer");
  Put(At("only"), "here");
  const auto second = Describe(tree_.tree);
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_ / "state")) {
    const std::string kind = entry.path().extension();
    if (kind != ".pack" && kind != ".index" && kind != ".manifest" && kind != ".release") continue;
    RB_ASSERT_OK_AND_ASSIGN(files[entry.path()], ReadFile(entry.path()));
  }
  ASSERT_EQ(files.size(), 4u);
  for (const auto& [path, whole] : files) {
    for (size_t at = 0; at < whole.size(); ++at) {
      SCOPED_TRACE(absl::StrCat(path, " byte ", at));
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));
      ASSERT_NO_FATAL_FAILURE(Put(path, damaged));
      Open();  // nothing is remembered
      const absl::StatusOr<ProofReport> proof = engine_->Prove(release.name);
      ASSERT_FALSE(proof.ok() && proof->findings.empty());
      EXPECT_THAT(proof.ok() ? absl::StrJoin(proof->findings, "; ") : std::string(proof.status().message()),
                  HasSubstr(release.name.substr(4)));
      if (at % 4 == 0) {
        EngineTarget target;
        target.release_name = release.name;
        if (engine_->Prepare("op", target, Components{}, "").ok()) {
          // The damage is in nothing that is needed to get there.
          RB_ASSERT_OK(engine_->Commit("op"));
          ASSERT_EQ(Describe(tree_.tree), first);
        }
        RB_ASSERT_OK(engine_->Undo("op"));
        ASSERT_EQ(Describe(tree_.tree), second);
      }
      // Whatever a failed attempt has recorded of the release.
      for (const auto& [each, content] : files) ASSERT_NO_FATAL_FAILURE(Put(each, content));
    }
  }
}

TEST_F(EngineTest, DamageNamesTheReleasesThatItHurtsAndNoOther) {
  std::vector<std::string> names;
  for (const char* const shared : {"shared", "shared", "another"}) {
    Put(At("lib/shared"), shared);
    Put(At("lib/own"), absl::StrCat("of release ", names.size()));
    RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
    names.push_back(release.name);
    clock_.Advance(absl::Minutes(1));
  }
  const std::string pack = folder_ / "state/store/packs/00000001.pack";
  RB_ASSERT_OK_AND_ASSIGN(std::string content, ReadFile(pack));
  // zstd keeps as it is what is so short.
  const size_t at = content.find("shared");
  ASSERT_NE(at, std::string::npos);
  content[at] = 'S';
  RB_ASSERT_OK(WriteFileDurably(pack, content));
  for (size_t i = 0; i < names.size(); ++i) {
    RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(names[i]));
    if (i == 2) {
      EXPECT_THAT(proof.findings, IsEmpty());
      continue;
    }
    ASSERT_EQ(proof.findings.size(), 1u);
    EXPECT_THAT(proof.findings[0], HasSubstr(absl::StrCat("It is needed by: ", names[1], ", ", names[0], ".")));
  }
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Release> releases, engine_->Releases());
  ASSERT_EQ(releases.size(), 3u);
  EXPECT_EQ(releases[0].durability, Durability::kProved);
  EXPECT_EQ(releases[1].durability, Durability::kCaptured);
  EXPECT_EQ(releases[2].durability, Durability::kCaptured);
}

TEST_F(EngineTest, DamageIsHealedFromTheLiveTreeWhereTheDigestMatches) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  const auto first = Describe(tree_.tree);
  const std::string pack = folder_ / "state/store/packs/00000001.pack";
  RB_ASSERT_OK_AND_ASSIGN(const std::string whole, ReadFile(pack));
  RB_ASSERT_OK(WriteFileDurably(pack, std::string(whole.size(), '\0')));
  // One under another name, one changed, the others as they were.
  std::filesystem::rename(At("lib/bot.py"), At("lib/renamed.py"));
  Put(At("lib/old/only1.py"), "?");
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
  EXPECT_EQ(proof.findings.size(), 1u) << absl::StrJoin(proof.findings, "\n");
  EXPECT_THAT(proof.findings[0], HasSubstr(release.name));
  EXPECT_THAT(absl::StrJoin(proof.healed, "\n"), HasSubstr("healed from the live tree's lib/renamed.py"));
  Put(At("lib/old/only1.py"), "1");
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport again, engine_->Prove(release.name));
  EXPECT_THAT(again.findings, IsEmpty());
  EXPECT_EQ(again.healed.size(), 1u) << absl::StrJoin(again.healed, "\n");
  // From here on the live tree is not needed, nor is the damaged pack.
  std::filesystem::remove_all(tree_.tree);
  std::filesystem::create_directory(tree_.tree);
  RB_ASSERT_OK(engine_->Prune(1, {}));
  Open();
  EngineTarget target;
  target.release_name = release.name;
  Components all;
  all.data = true;
  RB_ASSERT_OK(engine_->Prepare("op", target, all, ""));
  RB_ASSERT_OK(engine_->Commit("op"));
  auto restored = Describe(tree_.tree);
  EXPECT_EQ(restored["lib/bot.py"], first.at("lib/bot.py"));
  EXPECT_EQ(restored["data/bot.db"], first.at("data/bot.db"));
}

TEST_F(EngineTest, DamageWithinALargeFileIsHealedPieceByPiece) {
  std::mt19937_64 random(7);
  std::string large(size_t{4} << 20, '\0');
  for (char& c : large) c = static_cast<char>(random());
  Put(At("data/large"), large);
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  const std::string pack = folder_ / "state/store/packs/00000001.pack";
  RB_ASSERT_OK_AND_ASSIGN(const std::string whole, ReadFile(pack));
  RB_ASSERT_OK(WriteFileDurably(pack, std::string(whole.size(), '\0')));
  // All of it is there but its last piece.
  std::string changed = large;
  changed.back() = static_cast<char>(~changed.back());
  Put(At("data/large"), changed);
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
  EXPECT_EQ(proof.findings.size(), 1u) << absl::StrJoin(proof.findings, "\n");
  EXPECT_GE(proof.healed.size(), 4u) << absl::StrJoin(proof.healed, "\n");
  EXPECT_THAT(proof.healed, Each(HasSubstr("healed from the live tree's data/large")));
  Put(At("data/large"), large);
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport again, engine_->Prove(release.name));
  EXPECT_THAT(again.findings, IsEmpty());
  EXPECT_EQ(again.healed.size(), 1u) << absl::StrJoin(again.healed, "\n");
}

TEST_F(EngineTest, AProofComparesWhatIsGivenBack) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
  EXPECT_THAT(proof.findings, IsEmpty()) << absl::StrJoin(proof.findings, "\n");
}

TEST_F(EngineTest, DamageOfOneOfTwoCopiesIsHealedFromTheOther) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  // Both packs hold all of it, as when two captures ran side by side.
  const std::string packs = folder_ / "state/store/packs/";
  for (const char* suffix : {".pack", ".index"}) {
    std::filesystem::copy_file(packs + "00000001" + suffix, packs + "00000002" + suffix);
  }
  RB_ASSERT_OK_AND_ASSIGN(const std::string whole, ReadFile(packs + "00000002.pack"));
  std::filesystem::remove_all(tree_.tree);
  std::filesystem::create_directory(tree_.tree);
  RB_ASSERT_OK(WriteFileDurably(packs + "00000002.pack", whole.substr(0, whole.size() / 2)));
  // Collecting garbage must not take the whole copy for the needless one.
  RB_ASSERT_OK(engine_->Prune(1, {}));
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
  EXPECT_THAT(proof.findings, IsEmpty());
  RB_ASSERT_OK(engine_->Prune(1, {}));
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport again, engine_->Prove(release.name));
  EXPECT_THAT(again.findings, IsEmpty());
  EXPECT_THAT(again.healed, IsEmpty());
}

TEST_F(EngineTest, APlanForDataSaysWhatIsLost) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  clock_.Advance(absl::Minutes(37));
  Put(At("data/bot.db"), "database one and 8 more");
  EngineTarget target;
  target.release_name = release.name;
  RB_ASSERT_OK_AND_ASSIGN(const Delta without, engine_->Compare(target, Components{}));
  EXPECT_EQ(without.data_age, absl::ZeroDuration());
  Components all;
  all.data = true;
  RB_ASSERT_OK_AND_ASSIGN(const Delta with, engine_->Compare(target, all));
  EXPECT_EQ(with.data_age, absl::Minutes(37));
  ASSERT_EQ(with.table_rows.size(), 1u);
  EXPECT_EQ(with.table_rows[0].database, "data/bot.db");
  EXPECT_EQ(with.table_rows[0].table, "bytes");
  EXPECT_EQ(with.table_rows[0].now, 23u);
  EXPECT_EQ(with.table_rows[0].then, 12u);
}

TEST_F(EngineTest, DatabaseJournalsGoWithTheDatabaseAndComeBackWithIt) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Put(At("data/bot.db"), "database two");
  Put(At("data/bot.db-wal"), "belongs to two");
  Put(At("data/bot.db-shm"), "belongs to two as well");
  const auto second = Describe(tree_.tree);
  EngineTarget target;
  target.release_name = release.name;
  Components all;
  all.data = true;
  RB_ASSERT_OK(engine_->Prepare("op", target, all, ""));
  RB_ASSERT_OK(engine_->Commit("op"));
  EXPECT_FALSE(std::filesystem::exists(At("data/bot.db-wal"))) << "SQLite would apply it to another database";
  EXPECT_FALSE(std::filesystem::exists(At("data/bot.db-shm")));
  RB_ASSERT_OK(engine_->Undo("op"));
  EXPECT_EQ(Describe(tree_.tree), second);
}

TEST_F(EngineTest, DataThatChangedUntilTheServiceStoppedIsReplacedAllTheSame) {
  MakeFirst();
  Put(At("data/upload"), "old upload");
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  const auto first = Describe(tree_.tree);
  Put(At("data/bot.db"), "database two");
  Put(At("data/bot.db-shm"), "gone with a clean stop");
  Put(At("data/upload"), "new upload");
  EngineTarget target;
  target.release_name = release.name;
  Components all;
  all.data = true;
  RB_ASSERT_OK(engine_->Prepare("op", target, all, ""));
  // The service was running, and is stopped now.
  Put(At("data/bot.db"), "database two, and one more commit");
  std::filesystem::remove(At("data/bot.db-shm"));
  Put(At("data/bot.db-wal"), "left by a service that was killed");
  std::filesystem::remove(At("data/upload"));
  const auto stopped = Describe(tree_.tree);
  RB_ASSERT_OK(engine_->Commit("op"));
  EXPECT_EQ(Describe(tree_.tree), first);
  Open();  // what Commit found is in the journal
  RB_ASSERT_OK(engine_->Recover());
  RB_ASSERT_OK(engine_->Undo("op"));
  auto now = Describe(tree_.tree);
  now["data"] = stopped.at("data");  // its time is that of before the last changes
  EXPECT_EQ(now, stopped);
  // Code that somebody changes meanwhile is another matter.
  Put(At("lib/bot.py"), "v2");
  RB_ASSERT_OK(engine_->Prepare("op-2", target, all, ""));
  Put(At("lib/bot.py"), "by hand");
  EXPECT_THAT(engine_->Commit("op-2"), FailsWith(absl::StatusCode::kAborted, "lib/bot.py"));
}

// Prunes through another engine on the same store when it is asked to copy.
class PruningCopier final : public DatabaseCopier {
 public:
  explicit PruningCopier(Engine* other) : other_(other) {}
  absl::Status Copy(const std::string& source, const std::string& destination) override {
    pruned_ = other_->Prune(1, {}).status();
    RB_ASSIGN_OR_RETURN(const std::string content, ReadFile(source));
    return WriteFileDurably(destination, content);
  }
  absl::Status Check(const std::string&) override { return absl::OkStatus(); }
  absl::StatusOr<std::map<std::string, uint64_t>> CountRows(const std::string&) override {
    return std::map<std::string, uint64_t>();
  }
  const absl::Status& pruned() const { return pruned_; }

 private:
  Engine* const other_;
  absl::Status pruned_ = absl::UnknownError("was not asked");
};

TEST_F(EngineTest, GarbageCollectionBesideARunningCaptureTakesNothingOfIt) {
  MakeFirst();
  // Enough that the capture's pack is on disk when the prune comes.
  std::mt19937_64 random(1);
  std::string noise(3 << 20, '\0');
  for (char& byte : noise) byte = static_cast<char>(random());
  Put(At("lib/noise"), noise);
  ServiceTree other_tree = tree_;
  other_tree.service = "other";
  other_tree.tree = folder_ / "other";
  std::filesystem::create_directory(other_tree.tree);
  Engine::Options options;
  options.state_folder = folder_ / "state";
  options.clock = &clock_;
  RB_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Engine> other, Engine::Open(options, other_tree));
  PruningCopier copier(other.get());
  options.database_copier = &copier;
  RB_ASSERT_OK_AND_ASSIGN(engine_, Engine::Open(options, tree_));
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  RB_ASSERT_OK(copier.pruned());
  std::filesystem::remove_all(tree_.tree);  // nothing to heal it from
  std::filesystem::create_directory(tree_.tree);
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
  EXPECT_THAT(proof.findings, IsEmpty());
}

TEST_F(EngineTest, WhatAnotherProcessHasCollectedIsStoredAgain) {
  Put(At("lib/once"), "here, gone, and here again");
  RB_ASSERT_OK_AND_ASSIGN(const Release first, engine_->Capture({}));
  clock_.Advance(absl::Minutes(1));
  Put(At("lib/once"), "another");
  RB_ASSERT_OK_AND_ASSIGN(const Release second, engine_->Capture({}));
  RB_ASSERT_OK(engine_->SetStanding(second.name, Standing::kGood, ""));
  RB_ASSERT_OK(engine_->SetStanding(first.name, Standing::kGood, ""));
  {
    Engine::Options options;
    options.state_folder = folder_ / "state";
    options.clock = &clock_;
    RB_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Engine> other, Engine::Open(options, tree_));
    RB_ASSERT_OK_AND_ASSIGN(const PruneReport report, other->Prune(1, {}));
    ASSERT_THAT(report.removed, ::testing::ElementsAre(first.name));
    ASSERT_GT(report.bytes_freed, 0u);
  }
  clock_.Advance(absl::Minutes(1));
  Put(At("lib/once"), "here, gone, and here again");
  RB_ASSERT_OK_AND_ASSIGN(const Release again, engine_->Capture({}));
  std::filesystem::remove(At("lib/once"));  // nothing to heal it from
  Open();
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(again.name));
  EXPECT_THAT(proof.findings, IsEmpty());
}

TEST_F(EngineTest, APruneCollectsWhatACrashHasLeftOfARelease) {
  Put(At("lib/once"), "only there");
  RB_ASSERT_OK_AND_ASSIGN(const Release left, engine_->Capture({}));
  clock_.Advance(absl::Minutes(1));
  Put(At("lib/once"), "another");
  RB_ASSERT_OK_AND_ASSIGN(const Release kept, engine_->Capture({}));
  RB_ASSERT_OK(engine_->SetStanding(kept.name, Standing::kGood, ""));
  // Of the same second: a name that begins with another one's.
  Put(At("lib/once"), "a third");
  RB_ASSERT_OK_AND_ASSIGN(const Release beside, engine_->Capture({}));
  ASSERT_EQ(beside.name.substr(0, kept.name.size()), kept.name);
  const std::string stem = absl::StrCat(folder_ / "state/services/", left.name.substr(0, left.name.find('/')),
                                        "/releases/", left.name.substr(left.name.find('/') + 1));
  // As after a crash: the manifest comes first and goes last.
  ASSERT_TRUE(std::filesystem::remove(stem + ".release"));
  ASSERT_TRUE(std::filesystem::exists(stem + ".manifest"));
  RB_ASSERT_OK_AND_ASSIGN(const PruneReport report, engine_->Prune(1, {}));
  EXPECT_THAT(report.removed, IsEmpty());
  EXPECT_GT(report.bytes_freed, 0u);
  EXPECT_FALSE(std::filesystem::exists(stem + ".manifest"));
  for (const Release* release : {&kept, &beside}) {
    RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release->name));
    EXPECT_THAT(proof.findings, IsEmpty());
  }
}

TEST_F(EngineTest, OfManyThatCannotBeKeptTheListSaysHowManyItDoesNotName) {
  MakeFirst();
  for (int i = 10; i < 33; ++i) ASSERT_EQ(mknod(At(absl::StrCat("socket", i)).c_str(), S_IFSOCK | 0600, 0), 0);
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  EngineTarget target;
  target.release_name = release.name;
  RB_ASSERT_OK_AND_ASSIGN(const Delta delta, engine_->Compare(target, Components{}));
  ASSERT_EQ(delta.not_captured.size(), 21u);
  EXPECT_EQ(delta.not_captured[19], "socket29");
  EXPECT_EQ(delta.not_captured[20], "... and 3 more");
}

TEST_F(EngineTest, PruneKeepsWhatMayBeNeededAndCollectsTheRest) {
  std::vector<std::string> names;
  for (int i = 0; i < 6; ++i) {
    Put(At("lib/bot.py"), absl::StrCat("version ", i, std::string(50000, static_cast<char>('a' + i))));
    RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({Cause::kBackup, "", "", "", "", i == 0}));
    RB_ASSERT_OK(engine_->SetStanding(release.name, i == 3 ? Standing::kBad : Standing::kGood, ""));
    names.push_back(release.name);
    clock_.Advance(absl::Minutes(1));
  }
  RB_ASSERT_OK(engine_->Prove(names[1]));
  RB_ASSERT_OK_AND_ASSIGN(const PruneReport report, engine_->Prune(2, {}));
  // Kept: the two newest good ones (5, 4), the only proved one (1), the pinned one (0).
  EXPECT_THAT(report.removed, ::testing::UnorderedElementsAre(names[2], names[3]));
  EXPECT_GT(report.bytes_freed, 0u);
  for (const int i : {0, 1, 4, 5}) {
    RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(names[static_cast<size_t>(i)]));
    EXPECT_THAT(proof.findings, IsEmpty()) << i;
  }
}

TEST_F(EngineTest, AnUnchangedTreeGivesTheSameRelease) {
  MakeFirst();
  RB_ASSERT_OK_AND_ASSIGN(const Release first, engine_->Capture({}));
  RB_ASSERT_OK_AND_ASSIGN(const Release second, engine_->Capture({}));
  EXPECT_EQ(first.name, second.name);
}

TEST_F(EngineTest, AStateFolderOfANewerVersionIsRefusedUntouched) {
  engine_.reset();
  RB_ASSERT_OK(WriteFileDurably(folder_ / "state/format", "2\n"));
  Engine::Options options;
  options.state_folder = folder_ / "state";
  options.clock = &clock_;
  EXPECT_THAT(Engine::Open(options, tree_), FailsWith(absl::StatusCode::kFailedPrecondition, "newer rb-agent"));
}

TEST_F(EngineTest, ALargeFileThatChangesALittleAddsALittle) {
  std::mt19937_64 random(7);
  std::string content(24 << 20, '\0');
  for (size_t i = 0; i + 8 <= content.size(); i += 8) {
    const uint64_t value = random();
    std::memcpy(content.data() + i, &value, 8);
  }
  Put(At("big"), content);
  RB_ASSERT_OK(engine_->Capture({}));
  content.insert(12 << 20, "a few bytes that move all that follows");
  Put(At("big"), content);
  RB_ASSERT_OK(engine_->Capture({}));
  EXPECT_LT(std::filesystem::file_size(folder_ / "state/store/packs/00000002.pack"), 2u << 20);
}

// --- every call that changes something fails once, or is the last thing the process does

// Runs a whole rollback; the tree is left wholly old or wholly new.
absl::Status WholeRollback(Engine* engine, const std::string& release, bool undo) {
  EngineTarget target;
  target.release_name = release;
  RB_RETURN_IF_ERROR(engine->Prepare("op", target, Components{}, "").status());
  RB_RETURN_IF_ERROR(engine->Commit("op").status());
  if (undo) return engine->Undo("op");
  return engine->Keep("op", Cause::kDeploy, true, true, "").status();
}

TEST_F(EngineTest, WhenTheNthCallFailsTheTreeIsWholeAndTheErrorSaysWhat) {
  MakeFirst();
  const auto first = WithoutData(Describe(tree_.tree));
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  MakeSecond();
  const auto second = WithoutData(Describe(tree_.tree));
  RB_ASSERT_OK_AND_ASSIGN(const Release second_release, engine_->Capture({}));
  size_t failures = 0;
  for (const int error_number : {ENOSPC, EIO}) {
    for (const bool undo : {false, true}) {
      bool passed_untouched = false;
      for (int n = 1; !passed_untouched; ++n) {
        ASSERT_LT(n, 500);
        int calls = 0;
        SetFileFaultForTest([&](const char*, const std::string&) { return ++calls == n ? error_number : 0; });
        const absl::Status status = WholeRollback(engine_.get(), release.name, undo);
        SetFileFaultForTest(nullptr);
        passed_untouched = calls < n;
        const auto now = WithoutData(Describe(tree_.tree));
        EXPECT_TRUE(now == first || now == second) << "call " << n << ": " << status;
        if (!status.ok()) {
          ++failures;
          EXPECT_GT(status.message().size(), 10u);
        }
        // Recovery, then back to the second state for the next round.
        RB_ASSERT_OK(engine_->Recover());
        RB_ASSERT_OK(engine_->Undo("op"));
        const auto recovered = WithoutData(Describe(tree_.tree));
        ASSERT_TRUE(recovered == first || recovered == second) << "call " << n;
        if (recovered == first) {
          RB_ASSERT_OK(RollBack("back", second_release.name));
          RB_ASSERT_OK(engine_->Keep("back", Cause::kDeploy, true, false, ""));
        }
        ASSERT_EQ(WithoutData(Describe(tree_.tree)), second)
            << "call " << n << " undo " << undo << " untouched " << passed_untouched << status;
        std::filesystem::remove(folder_ / "state/services/bot/kept");
      }
    }
  }
  EXPECT_GT(failures, 60u);
}

TEST_F(EngineTest, WhenTheProcessDiesAtTheNthCallRecoveryFindsAWholeTree) {
  MakeFirst();
  const auto first = WithoutData(Describe(tree_.tree));
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  MakeSecond();
  const auto second = WithoutData(Describe(tree_.tree));
  RB_ASSERT_OK_AND_ASSIGN(const Release second_release, engine_->Capture({}));
  size_t deaths = 0;
  for (const bool undo : {false, true}) {
    bool lived = false;
    for (int n = 1; !lived; ++n) {
      ASSERT_LT(n, 500);
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        int calls = 0;
        SetFileFaultForTest([&](const char*, const std::string&) {
          if (++calls == n) _exit(77);
          return 0;
        });
        _exit(WholeRollback(engine_.get(), release.name, undo).ok() ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFEXITED(status));
      ASSERT_NE(WEXITSTATUS(status), 1);
      lived = WEXITSTATUS(status) == 0;
      if (!lived) ++deaths;
      Open();
      RB_ASSERT_OK(engine_->Recover());
      const auto now = WithoutData(Describe(tree_.tree));
      ASSERT_TRUE(now == first || now == second) << "died at call " << n << (undo ? " of undo" : "");
      RB_ASSERT_OK(engine_->Undo("op"));
      if (WithoutData(Describe(tree_.tree)) == first) {
        RB_ASSERT_OK(RollBack("back", second_release.name));
        RB_ASSERT_OK(engine_->Keep("back", Cause::kDeploy, true, false, ""));
      }
      ASSERT_EQ(WithoutData(Describe(tree_.tree)), second);
      std::filesystem::remove(folder_ / "state/services/bot/kept");
    }
  }
  EXPECT_GT(deaths, 30u);
}

// --- properties

TEST_F(EngineTest, AnyTreeComesBackFromAnyDamage) {
  const bool is_root = geteuid() == 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    std::filesystem::remove_all(tree_.tree);
    std::filesystem::create_directory(tree_.tree);
    std::mt19937_64 random(seed);
    const auto pick = [&](size_t n) { return static_cast<size_t>(random() % n); };
    const std::vector<std::string> names = {
        "a", "b.txt", "with space", "new\nline", "\xff\xfe raw", "\xc3\xa9", std::string(254, 'L'), "-dash", "c", "d"};
    std::vector<std::string> folders = {tree_.tree};
    std::vector<std::string> paths;
    const auto make_some = [&](size_t count) {
      for (size_t i = 0; i < count; ++i) {
        const std::string path =
            folders[pick(folders.size())] + "/" + names[pick(names.size())] + std::to_string(pick(4));
        if (path.size() - tree_.tree.size() > 2000 || std::filesystem::exists(std::filesystem::symlink_status(path)) ||
            path.substr(path.rfind('/') + 1).size() > 255) {
          continue;
        }
        switch (pick(8)) {
          case 0:
            if (mkdir(path.c_str(), 0700 | static_cast<mode_t>(pick(64))) == 0) folders.push_back(path);
            continue;
          case 1:
            ASSERT_EQ(symlink("no/where", path.c_str()), 0);
            continue;
          case 2:
            ASSERT_EQ(mkfifo(path.c_str(), 0640), 0);
            continue;
          case 3:
            if (!paths.empty() && link(paths[pick(paths.size())].c_str(), path.c_str()) == 0) paths.push_back(path);
            continue;
          default: {
            Put(path, std::string(pick(20000), static_cast<char>('a' + pick(26))),
                static_cast<mode_t>(0400 | pick(04000)));
            paths.push_back(path);
            if (pick(4) == 0) setxattr(path.c_str(), "user.note", "x", 1, 0);
            if (is_root && pick(3) == 0) {
              ASSERT_EQ(chown(path.c_str(), static_cast<uid_t>(1000 + pick(3)), 1001), 0);
              ASSERT_EQ(chmod(path.c_str(), static_cast<mode_t>(pick(07777))), 0);
            }
            if (pick(5) == 0) {
              ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(1 << 17)), 0);  // a hole
            }
            const timespec times[2] = {{0, UTIME_OMIT}, {static_cast<time_t>(pick(2000000000)), 123456789}};
            ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
          }
        }
      }
    };
    make_some(60);
    const auto before = Describe(tree_.tree);
    RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
    // Damage: some go, some are overwritten, some change their kind or attributes, some are new.
    for (const std::string& path : paths) {
      switch (pick(5)) {
        case 0:
          unlink(path.c_str());
          break;
        case 1:
          if (std::filesystem::exists(path)) Put(path, "damaged", 0600);
          break;
        case 2:
          chmod(path.c_str(), 0777);
          break;
        case 3:
          unlink(path.c_str());
          mkdir(path.c_str(), 0755);
          break;
        default:
          break;
      }
    }
    if (folders.size() > 1) std::filesystem::remove_all(folders[1 + pick(folders.size() - 1)]);
    folders.erase(std::remove_if(folders.begin(), folders.end(),
                                 [](const std::string& path) { return !std::filesystem::is_directory(path); }),
                  folders.end());
    make_some(20);
    const auto damaged = Describe(tree_.tree);
    const std::string operation = absl::StrCat("op-", seed);
    RB_ASSERT_OK(RollBack(operation, release.name)) << "seed " << seed;
    EXPECT_EQ(Describe(tree_.tree), before) << "seed " << seed;
    RB_ASSERT_OK(engine_->Undo(operation)) << "seed " << seed;
    EXPECT_EQ(Describe(tree_.tree), damaged) << "undo, seed " << seed;
    RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
    EXPECT_THAT(proof.findings, IsEmpty()) << "seed " << seed;
  }
}

TEST(Manifest, AnyBytesAreReadWithoutHarm) {
  Manifest manifest;
  for (const char* path : {"", "a", "a/b", "a.b"}) {
    Entry entry;
    entry.path = path;
    entry.chunks.push_back(Sha256Of(path));
    manifest.entries.push_back(entry);
  }
  const std::string encoded = EncodeManifest(manifest);
  RB_ASSERT_OK_AND_ASSIGN(const Manifest decoded, DecodeManifest(encoded));
  EXPECT_EQ(EncodeManifest(decoded), encoded);
  for (size_t i = 0; i < encoded.size(); ++i) {
    EXPECT_FALSE(DecodeManifest(encoded.substr(0, i)).ok()) << i;
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = encoded;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      DecodeManifest(flipped).IgnoreError();
      DecodeIntent(flipped).IgnoreError();
    }
  }
  for (const char* path : {"/etc/passwd", "../up", "a//b", "a/./b"}) {
    Manifest evil;
    evil.entries.resize(1);
    evil.entries[0].path = path;
    EXPECT_FALSE(DecodeManifest(EncodeManifest(evil)).ok()) << path;
  }
}

TEST(Manifest, WhatTheKernelWouldReadOtherwiseIsRefused) {
  const auto decode = [](const std::function<void(Entry*)>& change) {
    Manifest manifest;
    Entry entry;
    entry.path = "a";
    change(&entry);
    manifest.entries.push_back(entry);
    return DecodeManifest(EncodeManifest(manifest));
  };
  RB_EXPECT_OK(decode([](Entry*) {}));
  EXPECT_THAT(decode([](Entry* entry) { entry->link_target = std::string("a\0b", 3); }),
              FailsWith(absl::StatusCode::kDataLoss, ""));
  EXPECT_THAT(decode([](Entry* entry) {
                entry->attributes.xattrs = Xattrs{{std::string("user.a\0b", 8), ""}};
              }),
              FailsWith(absl::StatusCode::kDataLoss, ""));
  // An owner of more than 32 bits is not cut down to another one.
  std::string bytes = EncodeManifest([] {
    Manifest manifest;
    manifest.entries.emplace_back().attributes.uid = 0x0FFFFFFF;  // 4 bytes
    return manifest;
  }());
  const size_t at = bytes.find("\xFF\xFF\xFF\x7F");
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, 4, "\x80\x80\x80\x80\x10");  // 1 << 32
  EXPECT_THAT(DecodeManifest(bytes), FailsWith(absl::StatusCode::kDataLoss, ""));
}

TEST(Codec, ANumberOfMoreThan64BitsIsRefused) {
  Encoder out;
  out.Number(UINT64_MAX);
  std::string bytes = out.Take();
  Decoder most(bytes);
  EXPECT_EQ(most.Number(), UINT64_MAX);
  EXPECT_TRUE(most.ok());
  bytes.back() = 2;
  Decoder more(bytes);
  more.Number();
  EXPECT_FALSE(more.ok());
}

TEST(Intent, NoNameLeadsOutOfTheTreeOrOfStaging) {
  const auto decode = [](const std::string& staging, const std::string& path, const std::string& staged) {
    Intent intent;
    intent.staging_name = staging;
    PlannedRename rename;
    rename.path = path;
    rename.staged_name = staged;
    intent.renames.push_back(rename);
    return DecodeIntent(EncodeIntent(intent));
  };
  RB_EXPECT_OK(decode("tx-1", "lib/a.py", "e0"));
  EXPECT_THAT(decode("..", "a", "e0"), FailsWith(absl::StatusCode::kDataLoss, "staging folder"));
  EXPECT_THAT(decode("tx-1", "a/../../b", "e0"), FailsWith(absl::StatusCode::kDataLoss, "not safe"));
  EXPECT_THAT(decode("tx-1", "/etc/passwd", "e0"), FailsWith(absl::StatusCode::kDataLoss, "not safe"));
  EXPECT_THAT(decode("tx-1", "a", "../e0"), FailsWith(absl::StatusCode::kDataLoss, "not safe"));
}

TEST(PackIndex, PlacesThatNoFileHasAreRefused) {
  PackedObject object;
  object.offset = 100;
  object.stored_bytes = 200;
  EXPECT_THAT(DecodePackIndex(EncodePackIndex({object})), testing::IsOk());
  object.offset = UINT64_MAX - 100;
  EXPECT_THAT(DecodePackIndex(EncodePackIndex({object})), FailsWith(absl::StatusCode::kDataLoss, "damaged"));
  object.offset = INT64_MAX;
  EXPECT_THAT(DecodePackIndex(EncodePackIndex({object})), FailsWith(absl::StatusCode::kDataLoss, "damaged"));
}

// What the kernel has made room for, FDSize, is more than what is open only where somebody has asked for it.
TEST(PrepareProcess, ASwapFindsRoomForItsFoldersInTheTableOfDescriptors) {
  Engine::PrepareProcess();
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const absl::StatusOr<std::string> status = ReadFile("/proc/self/status", 1 << 20);
  ASSERT_TRUE(status.ok()) << status.status();
  const size_t at = status->find("FDSize:");
  ASSERT_NE(at, std::string::npos);
  EXPECT_GE(std::stoull(status->substr(at + 7)), std::min<uint64_t>(limit.rlim_cur / 2, 8192));
}

TEST(PathOrder, AFolderComesRightBeforeWhatItHolds) {
  EXPECT_TRUE(PathLess("a", "a/b"));
  EXPECT_TRUE(PathLess("a/b", "a.b"));
  EXPECT_TRUE(PathLess("", "a"));
  EXPECT_FALSE(PathLess("a", "a"));
}

TEST(Components, Table) {
  ServiceTree tree;
  tree.config_globs = {"config-*.json"};
  tree.data_globs = {"data/**"};
  tree.sqlite_paths = {"bot.db"};
  tree.ignore_globs = {"logs/**"};
  EXPECT_EQ(ComponentOf(tree, "config-prod.json"), Component::kConfig);
  EXPECT_EQ(ComponentOf(tree, "data"), Component::kData);
  EXPECT_EQ(ComponentOf(tree, "data/x/y"), Component::kData);
  EXPECT_EQ(ComponentOf(tree, "bot.db"), Component::kData);
  EXPECT_EQ(ComponentOf(tree, "bot.db-wal"), Component::kData);
  EXPECT_EQ(ComponentOf(tree, "lib/x.py"), Component::kCode);
  EXPECT_TRUE(IsIgnored(tree, "logs"));
  EXPECT_TRUE(IsIgnored(tree, "logs/x"));
  EXPECT_FALSE(IsIgnored(tree, "logs2"));
}

}  // namespace
}  // namespace rb::agent
