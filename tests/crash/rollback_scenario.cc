#include "tests/crash/rollback_scenario.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace rb::crash {
namespace {

using agent::Cause;
using agent::Components;
using agent::Current;
using agent::Engine;
using agent::EngineTarget;
using agent::OpenTransaction;
using agent::PreparedTransaction;
using agent::ProofReport;
using agent::PruneReport;
using agent::Release;
using agent::ServiceTree;
using agent::Standing;
using agent::TransactionPhase;

ServiceTree TreeAt(const std::string& root) {
  ServiceTree tree;
  tree.service = "bot";
  tree.tree = root + "/tree";
  tree.data_globs = {"data/**"};
  tree.ignore_globs = {"logs/**"};
  return tree;
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
      absl::StrAppend(&text, " ", info.st_nlink, " names", info.st_blocks * 512 < info.st_size ? ", holes" : "");
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
  if (chmod(path.c_str(), mode) != 0) return ErrnoStatus(errno, "chmod " + path);
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
  if (symlink("run.sh", (tree + "/start").c_str()) != 0) return ErrnoStatus(errno, "symlink");
  // What is staged by calls of its own: a second name, and a file that is mostly hole.
  if (link((tree + "/old/only-in-first").c_str(), (tree + "/old/second-name").c_str()) != 0) {
    return ErrnoStatus(errno, "link");
  }
  RB_RETURN_IF_ERROR(Put(tree + "/old/sparse", "begin"));
  if (truncate((tree + "/old/sparse").c_str(), 1 << 20) != 0) return ErrnoStatus(errno, "truncate");
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

const std::string kLastData(6000, 'e');  // NOLINT(cert-err58-cpp)

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> RollbackScenario::OpenEngine(const std::string& root) {
  Engine::Options options;
  options.state_folder = root + "/state";
  options.clock = &SystemClock();
  return Engine::Open(options, TreeAt(root));
}

absl::Status RollbackScenario::PutMoreFiles(const std::string& tree, char content) const {
  for (int i = 0; i < more_files_; ++i) {
    const std::string folder = absl::StrCat(tree, "/more/", i % 40);
    RB_RETURN_IF_ERROR(MakeFolders(folder, 0755));
    const std::string path = absl::StrCat(folder, "/f", i);
    unlink(path.c_str());  // another inode, as a deploy makes it
    const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
    if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("create ", path));
    RB_RETURN_IF_ERROR(WriteAll(fd.get(), absl::StrCat(std::string(300, content), i), path));
  }
  return absl::OkStatus();
}

absl::Status RollbackScenario::Prepare(const std::string& root) {
  RB_RETURN_IF_ERROR(MakeFirstTree(root + "/tree"));
  RB_RETURN_IF_ERROR(PutMoreFiles(root + "/tree", 'm'));
  first_ = Fingerprint(root + "/tree");
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, OpenEngine(root));
  RB_ASSIGN_OR_RETURN(const Release release, engine->Capture({}));
  first_release_ = release.name;
  RB_RETURN_IF_ERROR(engine->SetStanding(release.name, Standing::kGood, ""));
  RB_RETURN_IF_ERROR(MakeSecondTree(root + "/tree"));
  RB_RETURN_IF_ERROR(PutMoreFiles(root + "/tree", 'M'));
  second_ = Fingerprint(root + "/tree");
  return absl::OkStatus();
}

absl::Status RollbackScenario::Run(const std::string& root,
                                   const std::function<void(const std::string&)>& acknowledge) {
  RB_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, OpenEngine(root));
  EngineTarget target;
  target.release_name = first_release_;
  RB_ASSIGN_OR_RETURN(const PreparedTransaction prepared, engine->Prepare("op-1", target, Components{}, "test"));
  acknowledge("prepared");
  RB_RETURN_IF_ERROR(engine->Commit("op-1").status());
  acknowledge("committed");
  RB_RETURN_IF_ERROR(engine->Keep("op-1", Cause::kDeploy, true, true, "test").status());
  acknowledge("kept");
  // Data only: code and config stay as they are.
  RB_RETURN_IF_ERROR(Put(root + "/tree/data/more", std::string(5000, 'd')));
  RB_RETURN_IF_ERROR(engine->Capture({}).status());
  acknowledge("backed-up");
  target.release_name = prepared.replaced.name;
  Components with_data;
  with_data.data = true;
  RB_RETURN_IF_ERROR(engine->Prepare("op-2", target, with_data, "undo").status());
  acknowledge("prepared-2");
  // The service goes on until it is stopped.
  RB_RETURN_IF_ERROR(Put(root + "/tree/data/more", kLastData));
  RB_RETURN_IF_ERROR(engine->Commit("op-2").status());
  acknowledge("committed-2");
  RB_RETURN_IF_ERROR(engine->Undo("op-2"));
  acknowledge("undone-2");
  RB_ASSIGN_OR_RETURN(const PruneReport pruned, engine->Prune(1, {}));
  if (pruned.removed.empty()) return absl::InternalError("the prune had nothing to remove");
  // Not where a failure before has let content be stored once more, in packs that are not worth being written anew.
  if (pruned.bytes_freed != 0) acknowledge("collected");
  acknowledge("pruned");
  return absl::OkStatus();
}

std::string RollbackScenario::CheckTree(const std::string& root, const std::string& last) const {
  // What may have begun after the last acknowledgement decides which states are right.
  const bool may_be_first = !last.empty();
  const bool may_be_second =
      last.empty() || last == "prepared" || last == "taken-back" || last == "prepared-2" || last == "committed-2";
  const std::string now = Fingerprint(root + "/tree");
  if (now == first_ ? !may_be_first : now == second_ ? !may_be_second : true) {
    return absl::StrCat("after '", last, "' the tree is ",
                        now == first_    ? "the first"
                        : now == second_ ? "the second"
                                         : "torn: " + FirstDifference(now, first_));
  }
  const absl::StatusOr<std::string> data = ReadFile(root + "/tree/data/state");
  if (!data.ok() || *data != "keep me") return "data was touched";
  if (last == "undone-2" || last == "collected" || last == "pruned") {
    const absl::StatusOr<std::string> more = ReadFile(root + "/tree/data/more");
    if (!more.ok() || *more != kLastData) return "the last data did not come back";
  }
  return "";
}

std::string RollbackScenario::Check(const std::string& root, const std::vector<std::string>& acknowledged) const {
  const absl::StatusOr<std::unique_ptr<Engine>> engine = OpenEngine(root);
  if (!engine.ok()) return absl::StrCat("open: ", engine.status().ToString());
  const absl::StatusOr<std::string> recovered = (*engine)->Recover();
  if (!recovered.ok()) return absl::StrCat("recover: ", recovered.status().ToString());
  const std::string last = acknowledged.empty() ? "" : acknowledged.back();
  const auto reached = [&](const char* what) {
    return std::find(acknowledged.begin(), acknowledged.end(), what) != acknowledged.end();
  };
  if (const std::string wrong = CheckTree(root, last); !wrong.empty()) {
    return absl::StrCat(wrong, "; recovery said: ", *recovered);
  }
  const absl::StatusOr<std::vector<Release>> releases = (*engine)->Releases();
  if (!releases.ok()) return absl::StrCat("releases: ", releases.status().ToString());
  bool has_first = false;
  for (const Release& release : *releases) {
    has_first = has_first || release.name == first_release_;
    const absl::StatusOr<ProofReport> proof = (*engine)->Prove(release.name);
    if (!proof.ok()) return absl::StrCat("prove ", release.name, ": ", proof.status().ToString());
    if (!proof->findings.empty()) return absl::StrCat(release.name, ": ", absl::StrJoin(proof->findings, "; "));
    // The live tree must not be what makes them whole.
    if (!proof->healed.empty()) return absl::StrCat(release.name, ": ", absl::StrJoin(proof->healed, "; "));
  }
  if (!has_first) return "the good release is gone";
  // The first, what was replaced, the backup; the prune takes the second of these.
  const size_t least = reached("undone-2") ? 2 : reached("backed-up") ? 3 : reached("prepared") ? 2 : 1;
  if (releases->size() < least) {
    return absl::StrCat("after '", last, "' there are only ", releases->size(), " releases");
  }
  if (last == "kept") {
    const absl::StatusOr<Current> current = (*engine)->GetCurrent();
    if (!current.ok()) return absl::StrCat("current: ", current.status().ToString());
    const auto standing_of = [&](const std::string& name) {
      const auto found = std::find_if(releases->begin(), releases->end(),
                                      [&](const Release& release) { return release.name == name; });
      return found == releases->end() ? Standing::kUnknown : found->standing;
    };
    if (standing_of(first_release_) != Standing::kGood) return "what was kept as good is not";
    const auto bad = std::find_if(releases->begin(), releases->end(),
                                  [](const Release& release) { return release.standing == Standing::kBad; });
    if (bad == releases->end()) return "what was replaced as bad is not";
    // The backup after it may have been taken before it was acknowledged.
    const bool is_backup = releases->size() > 2 && current->release_name != bad->name;
    if (current->release_name != first_release_ && !is_backup) return "what was kept is not the current release";
  }
  // The host has to be of use afterwards, not only whole.
  const absl::StatusOr<OpenTransaction> open = (*engine)->GetOpenTransaction();
  if (!open.ok()) return absl::StrCat("open transaction: ", open.status().ToString());
  if (last == "prepared" && open->phase == TransactionPhase::kNone && Fingerprint(root + "/tree") == second_) {
    return "a prepared transaction was forgotten";
  }
  if (open->phase != TransactionPhase::kNone) {
    const absl::Status undone = (*engine)->Undo(open->operation_id);
    if (!undone.ok()) return absl::StrCat("undo what was open: ", undone.ToString());
  }
  EngineTarget target;
  target.release_name = first_release_;
  const absl::Status prepared = (*engine)->Prepare("op-afterwards", target, Components{}, "").status();
  if (!prepared.ok()) return absl::StrCat("prepare another operation: ", prepared.ToString());
  return "";
}

}  // namespace rb::crash
