#include "agent/core/engine/database_dumps.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/core/engine/engine.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/transaction.h"
#include "agent/core/ports/fake_database_hooks.h"
#include "common/durable_file.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FailsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using testing::TemporaryFolder;

std::string RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(size, '\0');
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<char>(random()); });
  return bytes;
}

uint64_t SizeOfStore(const std::string& folder) {
  uint64_t size = 0;
  for (const auto& each : std::filesystem::directory_iterator(folder)) size += each.file_size();
  return size;
}

class NoCommit final : public SnapshotSource {
 public:
  absl::Status ForEach(const std::function<absl::Status(const Entry&)>&) override { return absl::OkStatus(); }
  absl::Status Read(const std::string&, std::string*) override { return absl::OkStatus(); }
  absl::Time ModificationTime() override { return absl::FromUnixSeconds(1); }
};

// A service with one file and two databases, "audit" and "main".
class DatabaseDumpsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    tree_.service = "bot";
    tree_.tree = folder_ / "tree";
    std::filesystem::create_directory(tree_.tree);
    all_.data = true;
    Serve("one");
    Open();
  }
  void Open() {
    engine_.reset();
    Engine::Options options;
    options.state_folder = folder_ / "state";
    options.clock = &clock_;
    options.database_hooks = has_hooks_ ? &hooks_ : nullptr;
    absl::StatusOr<std::unique_ptr<Engine>> engine = Engine::Open(options, tree_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  // What code and databases hold from now on.
  void Serve(const std::string& what) {
    RB_ASSERT_OK(WriteFileDurably(tree_.tree + "/code", what, 0644));
    hooks_.databases["main"] = absl::StrCat("main ", what);
    hooks_.databases["audit"] = absl::StrCat("audit ", what);
    hooks_.calls.clear();
  }
  // "one", "two", …; otherwise everything, for a person.
  std::string Served() {
    const absl::StatusOr<std::string> code = ReadFile(tree_.tree + "/code");
    const std::string what = code.ok() ? *code : std::string(code.status().message());
    if (hooks_.databases["main"] == "main " + what && hooks_.databases["audit"] == "audit " + what) return what;
    return absl::StrCat("code ", what, ", ", hooks_.databases["main"], ", ", hooks_.databases["audit"]);
  }
  absl::StatusOr<PreparedTransaction> Prepare(const std::string& operation, const std::string& release,
                                              const Components& components) {
    EngineTarget target;
    target.release_name = release;
    return engine_->Prepare(operation, target, components, "why");
  }
  absl::Status RollBack(const std::string& operation, const std::string& release, const Components& components) {
    const absl::Status prepared = Prepare(operation, release, components).status();
    return prepared.ok() ? engine_->Commit(operation).status() : prepared;
  }
  size_t CountReleases() { return engine_->Releases()->size(); }

  TemporaryFolder folder_;
  FakeClock clock_{absl::FromUnixSeconds(1795000000)};
  FakeDatabaseHooks hooks_;
  bool has_hooks_ = true;
  ServiceTree tree_;
  Components all_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(DatabaseDumpsTest, ABackupHoldsADumpOfEachDatabaseAndNoFileMore) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  EXPECT_THAT(hooks_.calls, ElementsAre("dump audit", "dump main"));
  EXPECT_THAT(release.databases, ElementsAre("audit", "main"));
  EXPECT_EQ(release.entry_count, 2u) << "the root and one file";
  EXPECT_EQ(release.content_bytes, 3u + 9u + 8u);
  Open();
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Release> releases, engine_->Releases());
  ASSERT_THAT(releases, SizeIs(1));
  EXPECT_THAT(releases[0].databases, ElementsAre("audit", "main"));
  RB_ASSERT_OK_AND_ASSIGN(const Release again, engine_->Capture({}));
  EXPECT_EQ(again.name, release.name) << "equal dumps make an equal release";
  hooks_.databases["main"] += " and a row";
  RB_ASSERT_OK_AND_ASSIGN(const Release changed, engine_->Capture({}));
  EXPECT_NE(changed.name, release.name);
}

TEST_F(DatabaseDumpsTest, WithoutDataNoHookIsRun) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Serve("two");
  RB_ASSERT_OK(RollBack("op", release.name, Components()));
  EXPECT_EQ(Served(), "code one, main two, audit two");
  RB_ASSERT_OK(engine_->Undo("op"));
  EXPECT_EQ(Served(), "two");
  EXPECT_THAT(hooks_.calls, IsEmpty());
}

TEST_F(DatabaseDumpsTest, WithDataTheDatabasesGoBackAndWhatWasReplacedCanBeGoneBackTo) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Serve("two");
  RB_ASSERT_OK_AND_ASSIGN(const PreparedTransaction prepared, Prepare("op", release.name, all_));
  EXPECT_THAT(hooks_.calls, ElementsAre("dump audit", "dump main"));
  EXPECT_THAT(prepared.replaced.databases, ElementsAre("audit", "main"));
  EXPECT_THAT(prepared.delta.databases, ElementsAre("audit", "main"));
  EXPECT_EQ(Served(), "two") << "prepare changes nothing";
  RB_ASSERT_OK(engine_->Commit("op"));
  EXPECT_EQ(Served(), "one");
  EXPECT_THAT(hooks_.calls, ElementsAre("dump audit", "dump main", "restore audit", "restore main"));
  RB_ASSERT_OK(engine_->Commit("op"));
  EXPECT_THAT(hooks_.calls, SizeIs(4)) << "a repeated commit restores nothing again";
  RB_ASSERT_OK(engine_->Keep("op", Cause::kDeploy, true, false, ""));
  RB_ASSERT_OK(RollBack("back", prepared.replaced.name, all_));
  EXPECT_EQ(Served(), "two");
}

TEST_F(DatabaseDumpsTest, UndoBringsTheDatabasesBackToWhatTheyHeldWhenItWasPrepared) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Serve("two");
  RB_ASSERT_OK(RollBack("op", release.name, all_));
  hooks_.databases["main"] += ", and what the old release wrote";
  RB_ASSERT_OK(engine_->Undo("op"));
  EXPECT_EQ(Served(), "two");
  RB_ASSERT_OK_AND_ASSIGN(const OpenTransaction open, engine_->GetOpenTransaction());
  EXPECT_EQ(open.phase, TransactionPhase::kNone);
  // Thrown away before its commit, there is nothing to restore.
  RB_ASSERT_OK(Prepare("other", release.name, all_));
  hooks_.calls.clear();
  RB_ASSERT_OK(engine_->Undo("other"));
  EXPECT_THAT(hooks_.calls, IsEmpty());
}

TEST_F(DatabaseDumpsTest, APlanSaysWhichDatabasesGoBack) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  EngineTarget target;
  target.release_name = release.name;
  RB_ASSERT_OK_AND_ASSIGN(const Delta without, engine_->Compare(target, Components()));
  EXPECT_TRUE(without.empty());
  hooks_.calls.clear();
  RB_ASSERT_OK_AND_ASSIGN(const Delta delta, engine_->Compare(target, all_));
  EXPECT_FALSE(delta.empty()) << "whether the databases differ is not known";
  EXPECT_THAT(delta.sample_paths,
              ElementsAre("database audit (from its dump, 9 B)", "database main (from its dump, 8 B)"));
  EXPECT_THAT(hooks_.calls, IsEmpty());
}

TEST_F(DatabaseDumpsTest, AFailedDumpFailsTheCaptureAndLeavesNothing) {
  hooks_.databases["main"] = RandomBytes(3 << 20, 1);
  const std::string packs = folder_ / "state/store/packs";
  const uint64_t before = SizeOfStore(packs);
  hooks_.Fail("dump main", absl::InternalError("database main: out of disk"));
  EXPECT_THAT(engine_->Capture({}), FailsWith(absl::StatusCode::kInternal, "database main: out of disk"));
  EXPECT_EQ(CountReleases(), 0u);
  EXPECT_EQ(SizeOfStore(packs), before);
}

TEST_F(DatabaseDumpsTest, WithoutASafetyDumpNothingIsPrepared) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Serve("two");
  hooks_.Fail("dump main", absl::InternalError("database main: connection refused"));
  EXPECT_THAT(RollBack("op", release.name, all_),
              FailsWith(absl::StatusCode::kInternal,
                        "nothing was changed, since what is about to be replaced could not "
                        "be kept: database main: connection refused"));
  EXPECT_EQ(Served(), "two");
  RB_ASSERT_OK_AND_ASSIGN(const OpenTransaction open, engine_->GetOpenTransaction());
  EXPECT_EQ(open.phase, TransactionPhase::kNone);
  EXPECT_EQ(CountReleases(), 1u);
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / ".rb-staging-bot"));
  RB_ASSERT_OK(RollBack("op", release.name, Components())) << "code and config need no database server";
}

TEST_F(DatabaseDumpsTest, AFailedRestoreIsTakenBackWithTheSwap) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Serve("two");
  RB_ASSERT_OK(Prepare("op", release.name, all_));
  // The first restore fails, the one that takes it back does not.
  hooks_.Fail("restore audit", absl::InternalError("database audit: no such table"));
  hooks_.OnCall([&](const std::string& call) {
    if (std::count(hooks_.calls.begin(), hooks_.calls.end(), call) == 2) hooks_.Fail(call, absl::OkStatus());
  });
  EXPECT_THAT(engine_->Commit("op"),
              FailsWith(absl::StatusCode::kInternal,
                        "the swap failed and was taken back; the tree is as it was; database audit restored to what it "
                        "held when the operation was prepared: database audit: no such table"));
  EXPECT_EQ(Served(), "two");
  EXPECT_THAT(hooks_.calls, ElementsAre("dump audit", "dump main", "restore audit", "restore audit"))
      << "main was not touched, so it keeps what was written to it since";
  RB_ASSERT_OK_AND_ASSIGN(const OpenTransaction open, engine_->GetOpenTransaction());
  EXPECT_EQ(open.phase, TransactionPhase::kNone);
}

TEST_F(DatabaseDumpsTest, WhatCannotBeTakenBackIsTornUntilRecoveryDoesIt) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Serve("two");
  RB_ASSERT_OK_AND_ASSIGN(const PreparedTransaction prepared, Prepare("op", release.name, all_));
  hooks_.Fail("restore main", absl::InternalError("database main: the server is down"));
  EXPECT_THAT(engine_->Commit("op"),
              FailsWith(absl::StatusCode::kInternal,
                        absl::StrCat("but database main holds what a restore has left half-way, and could not be "
                                     "restored from ",
                                     prepared.replaced.name, ". Keep the service stopped")));
  EXPECT_NE(Served(), "two");
  EXPECT_EQ(hooks_.databases["audit"], "audit two") << "what could be brought back was";
  RB_ASSERT_OK_AND_ASSIGN(OpenTransaction open, engine_->GetOpenTransaction());
  EXPECT_TRUE(open.is_torn);
  Open();
  EXPECT_THAT(engine_->Recover(), FailsWith(absl::StatusCode::kInternal, "the server is down"));
  hooks_.Fail("restore main", absl::OkStatus());
  RB_ASSERT_OK_AND_ASSIGN(const std::string said, engine_->Recover());
  EXPECT_THAT(said, AllOf(HasSubstr("the tree is wholly what it was before it"),
                          HasSubstr("databases audit and main restored to what it held when")));
  EXPECT_EQ(Served(), "two");
  RB_ASSERT_OK_AND_ASSIGN(open, engine_->GetOpenTransaction());
  EXPECT_FALSE(open.is_torn);
}

// Ends this "agent" in a child process at its `nth` call of `call`; the databases are then what the parent says.
TEST_F(DatabaseDumpsTest, AfterACrashInTheMiddleOfARestoreRecoveryRestoresAgain) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  for (const bool undo : {false, true}) {
    for (const char* const call : {"restore audit", "restore main"}) {
      Serve("two");
      const pid_t child = fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        const auto nth = undo ? 2 : 1;
        hooks_.OnCall([&](const std::string& each) {
          if (each == call && std::count(hooks_.calls.begin(), hooks_.calls.end(), each) == nth) _exit(77);
        });
        RollBack("op", release.name, all_).IgnoreError();
        engine_->Undo("op").IgnoreError();
        _exit(1);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      ASSERT_EQ(WEXITSTATUS(status), 77);
      hooks_.databases["main"] = "half a restore";
      hooks_.databases["audit"] = "half a restore";
      Open();
      RB_ASSERT_OK_AND_ASSIGN(OpenTransaction open, engine_->GetOpenTransaction());
      EXPECT_TRUE(open.is_torn);
      RB_ASSERT_OK_AND_ASSIGN(const std::string said, engine_->Recover());
      EXPECT_THAT(said, HasSubstr("databases audit and main restored"));
      EXPECT_EQ(Served(), undo ? "two" : "one") << call;
      RB_ASSERT_OK_AND_ASSIGN(open, engine_->GetOpenTransaction());
      EXPECT_FALSE(open.is_torn);
      EXPECT_EQ(open.phase, undo ? TransactionPhase::kNone : TransactionPhase::kCommitted);
      RB_ASSERT_OK(engine_->Undo("op"));
      EXPECT_EQ(Served(), "two") << call;
    }
  }
}

TEST_F(DatabaseDumpsTest, ARecoveryThatCannotRestoreGoesBack) {
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  Serve("two");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    hooks_.OnCall([&](const std::string& each) {
      if (each == "restore main") _exit(77);
    });
    RollBack("op", release.name, all_).IgnoreError();
    _exit(1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 77);
  Open();
  hooks_.Fail("restore main", absl::InternalError("no longer fits"));
  hooks_.OnCall([&](const std::string& call) {
    if (std::count(hooks_.calls.begin(), hooks_.calls.end(), call) == 2) hooks_.Fail(call, absl::OkStatus());
  });
  RB_ASSERT_OK_AND_ASSIGN(const std::string said, engine_->Recover());
  EXPECT_THAT(said, HasSubstr("took back the swap of operation op (no longer fits)"));
  EXPECT_EQ(Served(), "two");
}

TEST_F(DatabaseDumpsTest, ATargetThatLacksADumpIsRefusedAndOthersAreNamed) {
  RB_ASSERT_OK_AND_ASSIGN(const Release whole, engine_->Capture({}));
  has_hooks_ = false;
  Serve("two");
  Open();
  RB_ASSERT_OK_AND_ASSIGN(const Release bare, engine_->Capture({}));
  EXPECT_THAT(bare.databases, IsEmpty());
  EXPECT_THAT(RollBack("op", whole.name, all_),
              FailsWith(absl::StatusCode::kFailedPrecondition,
                        absl::StrCat(whole.name,
                                     " holds a dump of databases audit and main, for which the service has "
                                     "no hook")));
  has_hooks_ = true;
  Serve("three");
  Open();
  for (const absl::Status& refused : {RollBack("op", bare.name, all_), [&] {
                                        EngineTarget target;
                                        target.release_name = bare.name;
                                        return engine_->Compare(target, all_).status();
                                      }()}) {
    EXPECT_THAT(refused, FailsWith(absl::StatusCode::kFailedPrecondition,
                                   absl::StrCat(bare.name,
                                                " holds no dump of databases audit and main. Nothing was "
                                                "changed. Choose ",
                                                whole.name, " or leave the data as it is")));
  }
  NoCommit commit;
  EngineTarget target;
  target.snapshot = &commit;
  target.commit = std::string(40, 'c');
  EXPECT_THAT(engine_->Prepare("op", target, all_, ""),
              FailsWith(absl::StatusCode::kFailedPrecondition, "commit ccccccc holds no dump of databases audit"));
  EXPECT_THAT(hooks_.calls, IsEmpty()) << "no dump is taken for what is refused";
  EXPECT_EQ(Served(), "three");
}

TEST_F(DatabaseDumpsTest, AProofChecksEveryByteAndSaysWhatItCannotShow) {
  hooks_.databases["main"] = RandomBytes(3 << 20, 7);
  RB_ASSERT_OK_AND_ASSIGN(const Release release, engine_->Capture({}));
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport proof, engine_->Prove(release.name));
  EXPECT_THAT(proof.findings, IsEmpty());
  EXPECT_THAT(
      absl::StrJoin(proof.remarks, "\n"),
      HasSubstr("the dump of database main (3.0 MiB) is whole by its digests; it was not restored into a server"));
  EXPECT_GT(proof.bytes, uint64_t{3} << 20);
  const std::string pack = folder_ / "state/store/packs/00000001.pack";
  RB_ASSERT_OK_AND_ASSIGN(std::string bytes, ReadFile(pack));
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  RB_ASSERT_OK(WriteFileDurably(pack, bytes));
  RB_ASSERT_OK_AND_ASSIGN(const ProofReport damaged, engine_->Prove(release.name));
  EXPECT_THAT(absl::StrJoin(damaged.findings, "\n"), HasSubstr("the dump of database main is damaged: object "));
  Serve("two");
  EXPECT_THAT(RollBack("op", release.name, all_), FailsWith(absl::StatusCode::kDataLoss, "nothing was changed"));
  EXPECT_EQ(Served(), "two");
}

TEST_F(DatabaseDumpsTest, ALargeDumpIsStoredInChunksOnceAndPruneKeepsIt) {
  const std::string large = RandomBytes(24 << 20, 3);
  hooks_.databases["main"] = large;
  RB_ASSERT_OK_AND_ASSIGN(const Release first, engine_->Capture({}));
  const std::string packs = folder_ / "state/store/packs";
  const uint64_t once = SizeOfStore(packs);
  hooks_.databases["main"].insert(12 << 20, "a row in the middle, which moves all that follows");
  RB_ASSERT_OK(engine_->Capture({}));
  EXPECT_LT(SizeOfStore(packs), once + (9u << 20));
  RB_ASSERT_OK(engine_->SetPinned(first.name, true));
  Serve("three");
  RB_ASSERT_OK_AND_ASSIGN(const Release last, engine_->Capture({}));
  RB_ASSERT_OK(engine_->SetStanding(last.name, Standing::kGood, ""));
  RB_ASSERT_OK_AND_ASSIGN(const PruneReport pruned, engine_->Prune(1, {}));
  EXPECT_THAT(pruned.removed, SizeIs(1));
  RB_ASSERT_OK(RollBack("op", first.name, all_));
  EXPECT_EQ(hooks_.databases["main"], large);
}

TEST_F(DatabaseDumpsTest, ACancelledDumpEndsAtItsNextPiece) {
  bool cancelled = false;
  hooks_.databases["main"] = RandomBytes(5000, 3);
  hooks_.OnCall([&](const std::string& call) { cancelled = call == "dump main"; });
  Engine::Options options;
  options.state_folder = folder_ / "state";
  options.clock = &clock_;
  options.database_hooks = &hooks_;
  options.is_cancelled = [&] { return cancelled; };
  RB_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Engine> engine, Engine::Open(options, tree_));
  EXPECT_THAT(engine->Capture({}), FailsWith(absl::StatusCode::kCancelled, "stopped as asked"));
}

TEST(ManifestOfDumps, IsReadBackAndRefusesWhatIsNone) {
  Manifest manifest;
  manifest.entries.emplace_back();
  const std::string bare = EncodeManifest(manifest);
  for (const char* name : {"audit", "main"}) {
    DatabaseDump dump;
    dump.name = name;
    dump.size = 7;
    dump.chunks = {Sha256Of("a"), Sha256Of("b")};
    manifest.dumps.push_back(dump);
  }
  const std::string encoded = EncodeManifest(manifest);
  EXPECT_EQ(encoded.substr(0, bare.size()), bare) << "releases without dumps keep their digests";
  RB_ASSERT_OK_AND_ASSIGN(const Manifest decoded, DecodeManifest(encoded));
  EXPECT_EQ(decoded.dumps, manifest.dumps);
  for (size_t end = 0; end < encoded.size(); ++end) {
    EXPECT_EQ(DecodeManifest(encoded.substr(0, end)).ok(), end == bare.size()) << end;
  }
  EXPECT_FALSE(DecodeManifest(encoded + "x").ok());
  EXPECT_FALSE(DecodeManifest(bare + std::string(1, '\0')).ok()) << "no dumps are not written as none";
  for (const char* name : {"", "Main", "a/b", "..", "this-name-is-one-letter-longer-than-forty0"}) {
    manifest.dumps[0].name = name;
    EXPECT_THAT(DecodeManifest(EncodeManifest(manifest)), FailsWith(absl::StatusCode::kDataLoss, "plain names"));
  }
  manifest.dumps[0].name = "main";
  EXPECT_THAT(DecodeManifest(EncodeManifest(manifest)), FailsWith(absl::StatusCode::kDataLoss, "not in order"));
}

TEST(IntentOfDumps, IsReadBackAndRefusesWhatIsNone) {
  Intent intent;
  intent.staging_name = "tx-1";
  const std::string bare = EncodeIntent(intent);
  intent.databases = {"audit", "main"};
  const std::string encoded = EncodeIntent(intent);
  RB_ASSERT_OK_AND_ASSIGN(const Intent decoded, DecodeIntent(encoded));
  EXPECT_EQ(decoded.databases, intent.databases);
  for (size_t end = 0; end < encoded.size(); ++end) {
    EXPECT_EQ(DecodeIntent(encoded.substr(0, end)).ok(), end == bare.size()) << end;
  }
  intent.databases = {"../x"};
  EXPECT_THAT(DecodeIntent(EncodeIntent(intent)), FailsWith(absl::StatusCode::kDataLoss, "names a database"));
}

}  // namespace
}  // namespace rb::agent
