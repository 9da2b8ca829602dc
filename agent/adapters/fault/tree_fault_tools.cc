#include "agent/adapters/fault/tree_fault_tools.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "agent/adapters/supervisor/spawn.h"
#include "agent/core/engine/engine.h"
#include "agent/core/engine/tree_files.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"
#include "common/unique_fd.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

constexpr size_t kOverwritten = 100;  // an SQLite header
// For what a recovery writes beside what it stages (manifests, journals) and what the service writes meanwhile.
constexpr uint64_t kMeanwhileBytes = 8 << 20;

struct TreeFile {
  UniqueFd fd;
  uint64_t size = 0;
  int64_t mtime_ns = 0;
};

// Absent when it is not there, or is no plain file.
absl::StatusOr<std::optional<TreeFile>> OpenInTree(const std::string& tree, const std::string& path, int flags) {
  const UniqueFd root(open(tree.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return ErrnoStatus(errno, tree);
  const absl::StatusOr<Place> place = LocateBeneath(root.get(), path);
  if (absl::IsNotFound(place.status())) return std::optional<TreeFile>();
  RB_RETURN_IF_ERROR(place.status());
  TreeFile file;
  file.fd = UniqueFd(
      openat(place->parent.get(), place->name.c_str(), flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (!file.fd.valid()) {
    if (errno == ENOENT || errno == ELOOP) return std::optional<TreeFile>();
    return ErrnoStatus(errno, path);
  }
  struct stat info;
  if (fstat(file.fd.get(), &info) != 0) return ErrnoStatus(errno, path);
  if (!S_ISREG(info.st_mode)) return std::optional<TreeFile>();
  if ((flags & O_ACCMODE) != O_RDONLY) {
    if (info.st_nlink != 1) {
      return absl::FailedPreconditionError(absl::StrCat(path, " has other names (hard links): not touched"));
    }
    if (fgetxattr(file.fd.get(), "security.capability", nullptr, 0) >= 0) {
      return absl::FailedPreconditionError(absl::StrCat(path, " has capabilities, which a change would lose"));
    }
  }
  file.size = static_cast<uint64_t>(info.st_size);
  file.mtime_ns = static_cast<int64_t>(info.st_mtim.tv_sec) * 1'000'000'000 + info.st_mtim.tv_nsec;
  return std::optional<TreeFile>(std::move(file));
}

absl::StatusOr<std::string> ReadAt(int fd, uint64_t offset, size_t size, const std::string& path) {
  std::string bytes(size, '\0');
  size_t have = 0;
  while (have < size) {
    const ssize_t got = pread(fd, bytes.data() + have, size - have, static_cast<off_t>(offset + have));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, path);
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  bytes.resize(have);
  return bytes;
}

absl::Status WriteAt(int fd, uint64_t offset, absl::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t wrote = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) return ErrnoStatus(errno, path);
    bytes.remove_prefix(static_cast<size_t>(wrote));
    offset += static_cast<uint64_t>(wrote);
  }
  return absl::OkStatus();
}

// Wholly or, after a crash, partly what the fault has written. What somebody else has written is not ours to mend.
bool IsOurs(const FaultEdit& edit, const std::string& now) {
  if (now == edit.before || now.size() < edit.before.size()) return false;
  for (size_t i = 0; i < now.size(); ++i) {
    if (now[i] == edit.after[i]) continue;
    if (i >= edit.before.size() || now[i] != edit.before[i]) return false;
  }
  return true;
}

std::string Garbage(const std::string& drill_id, size_t size) {
  // No program text, no config, and no database begins so.
  std::string text = absl::StrCat(")]}' broken on purpose by ", drill_id, " ");
  while (text.size() < size) text.push_back('!');
  text.resize(size);
  return text;
}

}  // namespace

TreeFaultTools::Options TreeFaultTools::OptionsFor(const v1::AgentServiceConfig& config, const ServiceTree& tree,
                                                   DatabaseCopier* copier) {
  const v1::AgentDrillsConfig& drills = config.drills();
  Options options;
  options.tree = tree;
  options.copier = copier;
  options.code_file = drills.bad_code().file();
  options.config_file = drills.bad_config().file();
  options.database = drills.bad_database().file();
  options.command.assign(config.process().command().begin(), config.process().command().end());
  if (options.database.empty() && config.sqlite_size() > 0) options.database = config.sqlite(0);
  if (drills.disk_full().reserve_mib() > 0) options.reserve_bytes = uint64_t{drills.disk_full().reserve_mib()} << 20;
  if (drills.disk_full().at_most_mib() > 0) options.most_bytes = uint64_t{drills.disk_full().at_most_mib()} << 20;
  options.filler_folder = drills.disk_full().folder();
  options.power_cut_command.assign(drills.host_power_cut().command().begin(), drills.host_power_cut().command().end());
  if (options.power_cut_command.empty()) {
    // By way of systemd: the agent's unit leaves it neither the capability nor the system call. Nothing is synced.
    options.power_cut_command = {"/usr/bin/systemd-run", "--quiet", "--collect", "--no-block", "--no-ask-password",
                                 "/sbin/reboot",         "-f",      "-f",        "-n"};
  }
  return options;
}

std::string TreeFaultTools::CommandFile(const std::string& named, Component component) const {
  if (!named.empty()) return named;
  for (const std::string& argument : options_.command) {
    if (argument.empty() || argument[0] == '-' || argument[0] == '/' || absl::StrContains(argument, "..")) continue;
    struct stat info;
    if (stat(absl::StrCat(options_.tree.tree, "/", argument).c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    if (ComponentOf(options_.tree, argument) == component) return argument;
  }
  return "";
}

absl::StatusOr<FaultPlan> TreeFaultTools::Plan(FaultKind kind, const std::string& drill_id) {
  FaultPlan plan;
  plan.kind = kind;
  if (kind == FaultKind::kDiskFull) {
    RB_RETURN_IF_ERROR(PlanDiskFull(drill_id, &plan));
    return plan;
  }
  const std::string path = kind == FaultKind::kBadCode     ? CommandFile(options_.code_file, Component::kCode)
                           : kind == FaultKind::kBadConfig ? CommandFile(options_.config_file, Component::kConfig)
                                                           : options_.database;
  if (path.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("which file to break for ", NameOf(kind),
                                                      " is not known: name it in agent.yaml, for example drills: {",
                                                      kind == FaultKind::kBadCode     ? "bad_code"
                                                      : kind == FaultKind::kBadConfig ? "bad_config"
                                                                                      : "bad_database",
                                                      ": {file: …}}"));
  }
  if (kind == FaultKind::kBadDatabase) {
    if (options_.copier == nullptr) return absl::FailedPreconditionError("there is no SQLite here");
    const std::string full = absl::StrCat(options_.tree.tree, "/", path);
    // Also writes back what its journal holds: with the header gone, SQLite would throw the journal away.
    RB_RETURN_IF_ERROR(Annotate(options_.copier->Check(full), "it is damaged already, or in use"));
    struct stat info;
    if (stat((full + "-wal").c_str(), &info) == 0 && info.st_size > 0) {
      return absl::FailedPreconditionError(absl::StrCat(path, "-wal holds what is not written back: somebody uses it"));
    }
    plan.database = path;
  }
  RB_ASSIGN_OR_RETURN(const std::optional<TreeFile> file, OpenInTree(options_.tree.tree, path, O_RDWR));
  if (!file.has_value()) return absl::FailedPreconditionError(absl::StrCat(path, " is no file of the tree"));
  FaultEdit edit;
  edit.path = path;
  edit.mtime_ns = file->mtime_ns;
  if (kind == FaultKind::kBadConfig) {
    edit.offset = file->size;
    edit.after = absl::StrCat("\n}{ broken on purpose by ", drill_id, "\n");
    plan.what = absl::StrCat(path, ": a line appended that does not parse");
  } else {
    RB_ASSIGN_OR_RETURN(edit.before, ReadAt(file->fd.get(), 0, kOverwritten, path));
    if (edit.before.size() < (kind == FaultKind::kBadDatabase ? kOverwritten : 1)) {
      return absl::FailedPreconditionError(absl::StrCat(path, " is too short to be broken"));
    }
    edit.after = Garbage(drill_id, edit.before.size());
    plan.what = absl::StrCat(path, ": the first ", edit.before.size(), " bytes overwritten");
  }
  plan.edits.push_back(std::move(edit));
  return plan;
}

uint64_t TreeFaultTools::ReserveBytes() const {
  if (options_.reserve_bytes.has_value()) return *options_.reserve_bytes;
  uint64_t bytes = kSpareBytes + kMeanwhileBytes;
  // The safety release has all else already; a database that was written to since is copied once more.
  for (const std::string& path : options_.tree.sqlite_paths) {
    const absl::StatusOr<std::optional<TreeFile>> file = OpenInTree(options_.tree.tree, path, O_RDONLY);
    if (file.ok() && file->has_value()) bytes += (*file)->size;
  }
  return bytes;
}

absl::Status TreeFaultTools::PlanDiskFull(const std::string& drill_id, FaultPlan* plan) const {
  std::string folder = options_.filler_folder;
  if (folder.empty()) folder = options_.tree.tree.substr(0, std::max<size_t>(options_.tree.tree.rfind('/'), 1));
  struct stat here;
  struct stat tree;
  struct statvfs space;
  if (stat(folder.c_str(), &here) != 0 || statvfs(folder.c_str(), &space) != 0) return ErrnoStatus(errno, folder);
  if (stat(options_.tree.tree.c_str(), &tree) != 0) return ErrnoStatus(errno, options_.tree.tree);
  if (here.st_dev != tree.st_dev) {
    return absl::FailedPreconditionError(absl::StrCat(
        folder, " lies on another filesystem than the tree: name one in agent.yaml, drills: {disk_full: {folder: …}}"));
  }
  const uint64_t free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
  const uint64_t reserve_bytes = ReserveBytes();
  if (free_bytes <= reserve_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("only ", FormatBytes(free_bytes), " are free here as it is, and ",
                                                      FormatBytes(reserve_bytes), " are to stay"));
  }
  plan->filler_bytes = free_bytes - reserve_bytes;
  if (plan->filler_bytes > options_.most_bytes) {
    return absl::FailedPreconditionError(absl::StrCat(FormatBytes(plan->filler_bytes),
                                                      " would have to be filled, and drills.disk_full.at_most_mib "
                                                      "allows ",
                                                      FormatBytes(options_.most_bytes)));
  }
  plan->filler = absl::StrCat(folder, "/.rb-fault-", options_.tree.service, "-", drill_id);
  plan->what =
      absl::StrCat("all but ", FormatBytes(reserve_bytes), " of the disk filled, ", FormatBytes(plan->filler_bytes));
  return absl::OkStatus();
}

absl::Status TreeFaultTools::Break(const FaultPlan& plan) {
  for (const FaultEdit& edit : plan.edits) {
    RB_ASSIGN_OR_RETURN(const std::optional<TreeFile> file, OpenInTree(options_.tree.tree, edit.path, O_RDWR));
    if (!file.has_value()) return absl::AbortedError(absl::StrCat(edit.path, " is gone"));
    RB_ASSIGN_OR_RETURN(const std::string now, ReadAt(file->fd.get(), edit.offset, edit.after.size(), edit.path));
    if (now != edit.before) return absl::AbortedError(absl::StrCat(edit.path, " was changed meanwhile"));
    RB_RETURN_IF_ERROR(WriteAt(file->fd.get(), edit.offset, edit.after, edit.path));
    RB_RETURN_IF_ERROR(SyncFd(file->fd.get(), edit.path));
  }
  if (plan.filler.empty()) return absl::OkStatus();
  const UniqueFd fd(open(plan.filler.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, plan.filler);
  if (const int error = posix_fallocate(fd.get(), 0, static_cast<off_t>(plan.filler_bytes)); error != 0) {
    return ErrnoStatus(error, plan.filler);
  }
  return absl::OkStatus();
}

absl::Status TreeFaultTools::CheckBroken(const FaultPlan& plan) {
  if (plan.database.empty()) return absl::OkStatus();
  const absl::Status checked = options_.copier->Check(absl::StrCat(options_.tree.tree, "/", plan.database));
  if (absl::IsDataLoss(checked)) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("SQLite does not notice that ", plan.database, " is broken: ",
                                          checked.ok() ? "it says ok" : std::string(checked.message())));
}

absl::StatusOr<uint32_t> TreeFaultTools::CountBroken(const FaultPlan& plan) {
  uint32_t broken = 0;
  for (const FaultEdit& edit : plan.edits) {
    RB_ASSIGN_OR_RETURN(const std::optional<TreeFile> file, OpenInTree(options_.tree.tree, edit.path, O_RDONLY));
    if (!file.has_value()) continue;
    RB_ASSIGN_OR_RETURN(const std::string now, ReadAt(file->fd.get(), edit.offset, edit.after.size(), edit.path));
    if (IsOurs(edit, now)) ++broken;
  }
  struct stat info;
  if (!plan.filler.empty() && lstat(plan.filler.c_str(), &info) == 0) ++broken;
  return broken;
}

absl::StatusOr<uint32_t> TreeFaultTools::Mend(const FaultPlan& plan) {
  uint32_t mended = 0;
  for (const FaultEdit& edit : plan.edits) {
    RB_ASSIGN_OR_RETURN(const std::optional<TreeFile> file, OpenInTree(options_.tree.tree, edit.path, O_RDWR));
    if (!file.has_value()) continue;
    RB_ASSIGN_OR_RETURN(const std::string now, ReadAt(file->fd.get(), edit.offset, edit.after.size(), edit.path));
    if (!IsOurs(edit, now)) continue;
    RB_RETURN_IF_ERROR(WriteAt(file->fd.get(), edit.offset, edit.before, edit.path));
    if (edit.before.size() < edit.after.size() && file->size <= edit.offset + edit.after.size()) {
      if (ftruncate(file->fd.get(), static_cast<off_t>(edit.offset + edit.before.size())) != 0) {
        return ErrnoStatus(errno, edit.path);
      }
    }
    RB_RETURN_IF_ERROR(SetTime(file->fd.get(), edit.mtime_ns, edit.path));
    RB_RETURN_IF_ERROR(SyncFd(file->fd.get(), edit.path));
    ++mended;
  }
  if (!plan.filler.empty()) {
    if (unlink(plan.filler.c_str()) == 0) {
      ++mended;
    } else if (errno != ENOENT) {
      return ErrnoStatus(errno, plan.filler);
    }
  }
  return mended;
}

absl::Status TreeFaultTools::Strike(FaultKind kind) {
  if (kind == FaultKind::kAgentKilled) {
    kill(getpid(), SIGKILL);
    return absl::InternalError("the agent could not kill itself");
  }
  SpawnOptions options;
  options.command = options_.power_cut_command;
  options.environment = CleanEnvironment(LookUpUid(geteuid(), getegid()));
  options.folder = "/";
  const UniqueFd nowhere(open("/dev/null", O_WRONLY | O_CLOEXEC));
  options.output = nowhere.get();
  const absl::StatusOr<Spawned> spawned = Spawn(options, [](const ProcessIdentity&) { return absl::OkStatus(); });
  RB_RETURN_IF_ERROR(spawned.status());
  // The power is gone before this is over.
  SystemClock().Sleep(options_.power_cut_patience);
  ReapChild(spawned->pidfd.get()).IgnoreError();
  return absl::InternalError(absl::StrCat(options_.power_cut_command[0], " did not cut the power within ",
                                          FormatSeconds(options_.power_cut_patience)));
}

}  // namespace rb::agent
