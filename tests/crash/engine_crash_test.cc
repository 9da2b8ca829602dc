// The tree transaction and the release store, held against the states that a power cut can leave: the tree is wholly
// the old or wholly the new one, what was acknowledged is there, and every release that is left can really be restored.
//
// RB_CRASH_STATES: states a filesystem (default 300).
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/core/engine/engine.h"
#include "common/clock.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/test_util.h"
#include "tests/crash/crash_rig.h"

namespace rb::agent {
namespace {

using crash::RigOptions;
using crash::RigReport;
using crash::Workload;

ServiceTree TreeAt(const std::string& root) {
  ServiceTree tree;
  tree.service = "bot";
  tree.tree = root + "/tree";
  tree.data_globs = {"data/**"};
  tree.ignore_globs = {"logs/**"};
  return tree;
}

absl::StatusOr<std::unique_ptr<Engine>> OpenEngine(const std::string& root) {
  Engine::Options options;
  options.state_folder = root + "/state";
  options.clock = &SystemClock();
  return Engine::Open(options, TreeAt(root));
}

// Everything about code and config that a rollback has to bring back.
std::string Fingerprint(const std::string& tree) {
  std::map<std::string, std::string> entries;
  for (auto at = std::filesystem::recursive_directory_iterator(tree);
       at != std::filesystem::recursive_directory_iterator(); ++at) {
    const std::string path = std::filesystem::relative(at->path(), tree).string();
    if (path == "data" || path == "logs") {
      at.disable_recursion_pending();
      continue;
    }
    struct stat info {};
    if (lstat(at->path().c_str(), &info) != 0) return "lstat failed: " + path;
    std::string text = absl::StrCat(info.st_mode, " ", info.st_uid, " ", info.st_gid);
    if (S_ISREG(info.st_mode)) {
      const absl::StatusOr<std::string> content = ReadFile(at->path().string());
      if (!content.ok()) return content.status().ToString();
      absl::StrAppend(&text, " ", info.st_size, " ", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec, " ",
                      Sha256Of(*content).ToHex());
    } else if (S_ISLNK(info.st_mode)) {
      absl::StrAppend(&text, " -> ", std::filesystem::read_symlink(at->path()).string());
    }
    entries[path] = text;
  }
  std::string all;
  for (const auto& [path, text] : entries) absl::StrAppend(&all, path, ": ", text, "\n");
  return all;
}

// The first line that differs, for a finding that a person can read.
std::string FirstDifference(const std::string& a, const std::string& b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t at = 0;
  while (at < limit && a[at] == b[at]) ++at;
  const size_t line = a.rfind('\n', at) == std::string::npos ? 0 : a.rfind('\n', at) + 1;
  return absl::StrCat("'", a.substr(line, a.find('\n', at) - line), "' against '",
                      line < b.size() ? b.substr(line, b.find('\n', line) - line) : "", "'");
}

absl::Status Put(const std::string& path, const std::string& content, mode_t mode = 0644) {
  RB_RETURN_IF_ERROR(MakeFolders(path.substr(0, path.rfind('/')), 0755));
  RB_RETURN_IF_ERROR(WriteFileDurably(path, content));
  if (chmod(path.c_str(), mode) != 0) return absl::InternalError("chmod " + path);
  return absl::OkStatus();
}

absl::Status MakeFirstTree(const std::string& tree) {
  for (int i = 0; i < 8; ++i) {
    RB_RETURN_IF_ERROR(
        Put(absl::StrCat(tree, "/lib/m", i, ".py"), std::string(2000 + 700 * i, static_cast<char>('a' + i % 8))));
  }
  RB_RETURN_IF_ERROR(Put(tree + "/run.sh", "#!/bin/sh\n", 0755));
  RB_RETURN_IF_ERROR(Put(tree + "/old/only-in-first", "1"));
  RB_RETURN_IF_ERROR(Put(tree + "/data/state", "keep me"));
  if (symlink("run.sh", (tree + "/start").c_str()) != 0) return absl::InternalError("symlink");
  return absl::OkStatus();
}

absl::Status MakeSecondTree(const std::string& tree) {
  for (int i = 0; i < 8; i += 2) {
    RB_RETURN_IF_ERROR(
        Put(absl::StrCat(tree, "/lib/m", i, ".py"), std::string(3000 + 500 * i, static_cast<char>('A' + i % 8))));
  }
  RB_RETURN_IF_ERROR(Put(tree + "/new/deep/only-in-second", "2"));
  std::filesystem::remove_all(tree + "/old");
  std::filesystem::remove(tree + "/start");
  RB_RETURN_IF_ERROR(Put(tree + "/start", "now a file"));
  return absl::OkStatus();
}

struct Scenario {
  std::string first;   // fingerprint of the release that is gone back to
  std::string second;  // and of what is live when the recording begins
  std::string first_release;
  std::string replaced_release;  // known once the first operation is prepared
};

Workload RollbackWorkload(Scenario* scenario) {
  Workload workload;
  workload.prepare = [scenario](const std::string& root) -> absl::Status {
    RB_RETURN_IF_ERROR(MakeFirstTree(root + "/tree"));
    scenario->first = Fingerprint(root + "/tree");
    RB_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(root));
    RB_ASSIGN_OR_RETURN(const Release release, engine->Capture({}));
    scenario->first_release = release.name;
    RB_RETURN_IF_ERROR(engine->SetStanding(release.name, Standing::kGood, ""));
    RB_RETURN_IF_ERROR(MakeSecondTree(root + "/tree"));
    scenario->second = Fingerprint(root + "/tree");
    sync();
    return absl::OkStatus();
  };
  workload.run = [scenario](const std::string& root, const auto& acknowledge) -> absl::Status {
    RB_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, OpenEngine(root));
    EngineTarget target;
    target.release_name = scenario->first_release;
    RB_ASSIGN_OR_RETURN(const PreparedTransaction prepared, engine->Prepare("op-1", target, Components{}, "test"));
    scenario->replaced_release = prepared.replaced.name;
    acknowledge("prepared");
    RB_RETURN_IF_ERROR(engine->Commit("op-1").status());
    acknowledge("committed");
    RB_RETURN_IF_ERROR(engine->Keep("op-1", Cause::kDeploy, true, true, "test").status());
    acknowledge("kept");
    target.release_name = scenario->replaced_release;
    RB_RETURN_IF_ERROR(engine->Prepare("op-2", target, Components{}, "undo").status());
    RB_RETURN_IF_ERROR(engine->Commit("op-2").status());
    acknowledge("committed-2");
    RB_RETURN_IF_ERROR(engine->Undo("op-2"));
    acknowledge("undone-2");
    RB_RETURN_IF_ERROR(engine->Prune(1, {}).status());
    acknowledge("pruned");
    return absl::OkStatus();
  };
  workload.check = [scenario](const std::string& root, const std::vector<std::string>& acknowledged) -> std::string {
    const absl::StatusOr<std::unique_ptr<Engine>> engine = OpenEngine(root);
    if (!engine.ok()) return absl::StrCat("open: ", engine.status().ToString());
    const absl::StatusOr<std::string> recovered = (*engine)->Recover();
    if (!recovered.ok()) return absl::StrCat("recover: ", recovered.status().ToString());
    const std::string last = acknowledged.empty() ? "" : acknowledged.back();
    // What may have begun after the last acknowledgement decides which states are right.
    const bool may_be_first = !last.empty();
    const bool may_be_second = last.empty() || last == "prepared" || last == "kept" || last == "committed-2";
    const std::string now = Fingerprint(root + "/tree");
    if (now == scenario->first ? !may_be_first : now == scenario->second ? !may_be_second : true) {
      return absl::StrCat("after '", last, "' the tree is ",
                          now == scenario->first    ? "the first"
                          : now == scenario->second ? "the second"
                                                    : "torn: " + FirstDifference(now, scenario->first),
                          "; recovery said: ", *recovered);
    }
    const absl::StatusOr<std::string> data = ReadFile(root + "/tree/data/state");
    if (!data.ok() || *data != "keep me") return "data was touched";
    const absl::StatusOr<std::vector<Release>> releases = (*engine)->Releases();
    if (!releases.ok()) return absl::StrCat("releases: ", releases.status().ToString());
    std::set<std::string> names;
    for (const Release& release : *releases) {
      names.insert(release.name);
      const absl::StatusOr<ProofReport> proof = (*engine)->Prove(release.name);
      if (!proof.ok()) return absl::StrCat("prove ", release.name, ": ", proof.status().ToString());
      if (!proof->findings.empty()) return absl::StrCat(release.name, ": ", absl::StrJoin(proof->findings, "; "));
    }
    if (names.count(scenario->first_release) == 0) return "the good release is gone";
    const bool pruning = last == "undone-2" || last == "pruned";
    if (!last.empty() && !pruning && names.count(scenario->replaced_release) == 0) {
      return "what was replaced was not kept as a release";
    }
    // The host has to be of use afterwards, not only whole.
    const absl::StatusOr<OpenTransaction> open = (*engine)->GetOpenTransaction();
    if (!open.ok()) return absl::StrCat("open transaction: ", open.status().ToString());
    if (last == "prepared" && open->phase == TransactionPhase::kNone && now == scenario->second) {
      return "a prepared transaction was forgotten";
    }
    return "";
  };
  return workload;
}

class EngineCrashStates : public ::testing::TestWithParam<const char*> {};

TEST_P(EngineCrashStates, TheTreeIsWholeAndNothingAcknowledgedIsLost) {
  RigOptions options;
  options.filesystem = GetParam();
  options.states = 300;
  if (const char* states = std::getenv("RB_CRASH_STATES"); states != nullptr) {
    ASSERT_TRUE(absl::SimpleAtoi(states, &options.states)) << "RB_CRASH_STATES is not a number: " << states;
  }
  Scenario scenario;
  const absl::StatusOr<RigReport> report = VisitCrashStates(RollbackWorkload(&scenario), options);
  if (absl::IsUnavailable(report.status())) GTEST_SKIP() << report.status();
  ASSERT_TRUE(report.ok()) << report.status();
  std::printf("%s: %zu operations, %zu states (%zu reordered), %zu bad\n", GetParam(), report->operations,
              report->states, report->reordered_states, report->bad_states);
  EXPECT_EQ(report->states, options.states);
  EXPECT_EQ(report->bad_states, 0u) << absl::StrJoin(report->findings, "\n");
}

INSTANTIATE_TEST_SUITE_P(Filesystems, EngineCrashStates, ::testing::Values("ext4", "xfs", "btrfs"),
                         [](const auto& parameter) { return std::string(parameter.param); });

}  // namespace
}  // namespace rb::agent
