// The process is killed at every system call that changes something while a rollback with its databases is under way,
// and again in the middle of the recovery from it: code and databases are of one state afterwards, whichever that is.
//
// RB_KILL_STEP: only every so manieth call (default 1).
#include <fcntl.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "agent/core/engine/engine.h"
#include "agent/core/ports/database_hooks.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/test_util.h"
#include "common/unique_fd.h"
#include "tests/crash/syscall_rig.h"

namespace rb::crash {
namespace {

using agent::Components;
using agent::Engine;
using agent::EngineTarget;

constexpr size_t kSchedules = 2;
constexpr size_t kRecoveriesKilled = 3;
constexpr size_t kMostCalls = 20000;

// Two databases that are files outside of the tree, written in place: a restore that is killed leaves a part of it.
class FileDatabases final : public agent::DatabaseHooks {
 public:
  explicit FileDatabases(std::string folder) : folder_(std::move(folder)) {}
  std::vector<std::string> Names() const override { return {"audit", "main"}; }
  absl::Status Dump(const std::string& name, const Sink& sink) override {
    RB_ASSIGN_OR_RETURN(const std::string content, ReadFile(PathOf(name)));
    return sink(content);
  }
  absl::Status Restore(const std::string& name, const Source& source) override {
    const std::string path = PathOf(name);
    const UniqueFd fd(open(path.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
    if (!fd.valid()) return ErrnoStatus(errno, path);
    while (true) {
      RB_ASSIGN_OR_RETURN(const std::string piece, source());
      if (piece.empty()) return absl::OkStatus();
      for (size_t at = 0; at < piece.size(); at += 1000) {
        RB_RETURN_IF_ERROR(WriteAll(fd.get(), absl::string_view(piece).substr(at, 1000), path));
      }
    }
  }
  std::string PathOf(const std::string& name) const { return absl::StrCat(folder_, "/", name); }

 private:
  const std::string folder_;
};

class Scenario {
 public:
  explicit Scenario(const std::string& root) : root_(root), databases_(root + "/databases") {}

  absl::Status Prepare() {
    RB_RETURN_IF_ERROR(MakeFolders(root_ + "/tree"));
    RB_RETURN_IF_ERROR(MakeFolders(root_ + "/databases"));
    RB_RETURN_IF_ERROR(Serve("one"));
    RB_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine());
    RB_ASSIGN_OR_RETURN(const agent::Release release, engine->Capture({}));
    release_ = release.name;
    return Serve("two");
  }
  absl::Status Run(const std::function<void(const std::string&)>& acknowledge) {
    RB_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine());
    RB_RETURN_IF_ERROR(PrepareRollback(*engine, "op"));
    acknowledge("prepared");
    RB_RETURN_IF_ERROR(engine->Commit("op").status());
    acknowledge("committed");
    RB_RETURN_IF_ERROR(engine->Undo("op"));
    acknowledge("undone");
    return absl::OkStatus();
  }
  absl::Status Recover() {
    RB_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine());
    return engine->Recover().status();
  }
  // What is wrong, or "".
  std::string Check(const std::string& last) {
    const absl::Status recovered = Recover();
    if (!recovered.ok()) return absl::StrCat("recover: ", recovered.ToString());
    const std::string now = Served();
    const bool may_be_one = last == "prepared" || last == "committed";
    if (now == "one" ? !may_be_one : now != "two") {
      return absl::StrCat("after '", last, "' there is ", now);
    }
    const absl::StatusOr<std::unique_ptr<Engine>> engine = OpenEngine();
    if (!engine.ok()) return engine.status().ToString();
    const absl::StatusOr<agent::OpenTransaction> open = (*engine)->GetOpenTransaction();
    if (!open.ok() || open->is_torn) return absl::StrCat("torn: ", open.status().ToString());
    // The way back is still there, and so is the next way forward.
    if (const absl::Status undone = (*engine)->Undo("op"); !undone.ok()) return undone.ToString();
    if (Served() != "two") return absl::StrCat("undone afterwards, there is ", Served());
    if (const absl::Status again = PrepareRollback(**engine, "again"); !again.ok()) return again.ToString();
    if (const absl::Status again = (*engine)->Commit("again").status(); !again.ok()) return again.ToString();
    if (Served() != "one") return absl::StrCat("committed afterwards, there is ", Served());
    return "";
  }

 private:
  absl::StatusOr<std::unique_ptr<Engine>> OpenEngine() {
    Engine::Options options;
    options.state_folder = root_ + "/state";
    options.clock = &SystemClock();
    options.database_hooks = &databases_;
    agent::ServiceTree tree;
    tree.service = "bot";
    tree.tree = root_ + "/tree";
    return Engine::Open(options, tree);
  }
  absl::Status PrepareRollback(Engine& engine, const std::string& operation) {
    EngineTarget target;
    target.release_name = release_;
    Components all;
    all.data = true;
    return engine.Prepare(operation, target, all, "test").status();
  }
  static std::string Content(const std::string& database, const std::string& what) {
    std::string content;
    for (int row = 0; row < 300; ++row) absl::StrAppend(&content, database, " ", what, " ", row, "\n");
    return content;
  }
  absl::Status Serve(const std::string& what) {
    RB_RETURN_IF_ERROR(WriteFileDurably(root_ + "/tree/code", what));
    for (const std::string& name : databases_.Names()) {
      RB_RETURN_IF_ERROR(WriteFileDurably(databases_.PathOf(name), Content(name, what)));
    }
    return absl::OkStatus();
  }
  // "one", "two", or what does not fit together.
  std::string Served() const {
    const absl::StatusOr<std::string> code = ReadFile(root_ + "/tree/code");
    if (!code.ok()) return code.status().ToString();
    for (const std::string& name : databases_.Names()) {
      const absl::StatusOr<std::string> content = ReadFile(databases_.PathOf(name));
      if (!content.ok() || *content != Content(name, *code)) {
        return absl::StrCat("code ", *code, " with another database ", name);
      }
    }
    return *code;
  }

  const std::string root_;
  FileDatabases databases_;
  std::string release_;
};

TEST(DatabaseKill, KilledAtEveryCallAndAgainInRecoveryCodeAndDatabasesAreOfOneState) {
  size_t step = 1;
  if (const char* text = std::getenv("RB_KILL_STEP"); text != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(text, &step) && step > 0) << "RB_KILL_STEP is not a number: " << text;
  }
  size_t killed = 0;
  size_t killed_in_recovery = 0;
  bool ended = false;
  for (size_t at = 1; !ended; at += step) {
    ASSERT_LT(at, kMostCalls) << "the operation does not end";
    for (size_t schedule = 0; schedule < kSchedules && !ended; ++schedule) {
      const testing::TemporaryFolder root;
      Scenario scenario(root.path());
      RB_ASSERT_OK(scenario.Prepare());
      Interruption interruption{Interruption::Kind::kKill, at, 0};
      const absl::StatusOr<TracedRun> run =
          RunTraced(CallSet::kChanging, interruption, [&](const auto& say) { return scenario.Run(say).ToString(); });
      if (absl::IsUnavailable(run.status()) && at == 1) GTEST_SKIP() << run.status();
      RB_ASSERT_OK(run);
      if (!run->interrupted) {
        ASSERT_EQ(run->result, "OK");
        ended = true;
      } else {
        ++killed;
      }
      std::string trail = absl::StrCat("killed at call ", at, " (", run->call, ")");
      for (size_t again = 0; run->interrupted && again < kRecoveriesKilled; ++again) {
        interruption.at = 1 + (at / step + again * 7 + schedule * 5) % 32;
        RB_ASSERT_OK_AND_ASSIGN(const TracedRun recovery, RunTraced(CallSet::kChanging, interruption, [&](const auto&) {
                                  return scenario.Recover().ToString();
                                }));
        if (!recovery.interrupted) {
          ASSERT_EQ(recovery.result, "OK") << trail;
          break;
        }
        ++killed_in_recovery;
        absl::StrAppend(&trail, ", then in recovery at call ", interruption.at, " (", recovery.call, ")");
      }
      ASSERT_EQ(scenario.Check(run->said.empty() ? "" : run->said.back()), "") << trail;
    }
  }
  std::printf("killed at %zu calls of the operation and %zu of recoveries, all recovered\n", killed,
              killed_in_recovery);
  EXPECT_GE((killed + killed_in_recovery) * step, 200u);
}

}  // namespace
}  // namespace rb::crash
