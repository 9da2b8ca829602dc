// The tree's and the staging folder, and what may be wrong with them.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/core/engine/engine_impl.h"
#include "agent/core/engine/transaction.h"
#include "agent/core/engine/tree_files.h"
#include "common/durable_file.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {

std::vector<std::string> EngineImpl::Problems(const std::optional<Delta>& delta) {
  MutexLock lock(mutex_);
  return ProblemsLocked(delta);
}

absl::StatusOr<UniqueFd> EngineImpl::OpenTree() const {
  UniqueFd fd(open(tree_.tree.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open the tree ", tree_.tree));
  return fd;
}

absl::StatusOr<std::string> EngineImpl::StagingRoot() const {
  const size_t slash = tree_.tree.rfind('/');
  const std::string parent = slash == 0 ? "/" : tree_.tree.substr(0, slash);
  struct stat tree_info {};
  struct stat parent_info {};
  if (stat(tree_.tree.c_str(), &tree_info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", tree_.tree));
  if (stat(parent.c_str(), &parent_info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", parent));
  if (tree_info.st_dev != parent_info.st_dev) return absl::StrCat(tree_.tree, "/.rb-staging");
  return absl::StrCat(parent == "/" ? "" : parent, "/.rb-staging-", tree_.service);
}

void EngineImpl::SpreadFolders(int folder) {
  int flags = 0;
  if (ioctl(folder, FS_IOC_GETFLAGS, &flags) != 0) return;
  flags |= FS_TOPDIR_FL;
  [[maybe_unused]] const int ignored = ioctl(folder, FS_IOC_SETFLAGS, &flags);
}

absl::StatusOr<UniqueFd> EngineImpl::OpenStagingRoot() const {
  RB_ASSIGN_OR_RETURN(const std::string path, StagingRoot());
  const bool is_new = mkdir(path.c_str(), 0700) == 0;
  if (!is_new && errno != EEXIST) return ErrnoStatus(errno, absl::StrCat("mkdir ", path));
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open the staging folder ", path));
  if (is_new) SpreadFolders(fd.get());
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", path));
  if (info.st_uid != geteuid() || (info.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path,
                     " belongs to someone else or is open to others: it was not made by this agent. Nothing was "
                     "changed. Look at it, then remove it"));
  }
  // The folder it stands in may pass one on; what is staged has the attributes it is given, and no others.
  if (fremovexattr(fd.get(), "system.posix_acl_default") != 0 && errno != ENODATA && errno != ENOTSUP) {
    return ErrnoStatus(errno, absl::StrCat("remove the default ACL of ", path));
  }
  return fd;
}

absl::StatusOr<EngineImpl::Handles> EngineImpl::OpenHandles(const Intent& intent) const {
  Handles handles;
  RB_ASSIGN_OR_RETURN(handles.tree, OpenTree());
  RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenStagingRoot());
  RB_ASSIGN_OR_RETURN(handles.staging, OpenFolderBeneath(root.get(), intent.staging_name));
  return handles;
}

absl::Status EngineImpl::ClearStaging(const std::string& keep) {
  struct stat info {};
  if (stat(tree_.tree.c_str(), &info) != 0) return absl::OkStatus();
  RB_ASSIGN_OR_RETURN(const UniqueFd root, OpenStagingRoot());
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(root.get()));
  for (const std::string& name : names) {
    if (name != keep) RB_RETURN_IF_ERROR(RemoveTreeAt(root.get(), name));
  }
  return absl::OkStatus();
}

std::string EngineImpl::LackOfSpace(const Delta& delta) const {
  const absl::StatusOr<UniqueFd> staging = OpenStagingRoot();
  if (!staging.ok()) return std::string(staging.status().message());
  struct statvfs space {};
  if (fstatvfs(staging->get(), &space) != 0) return "";
  const uint64_t free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
  if (free_bytes >= delta.bytes_to_stage + kSpareBytes) return "";
  return absl::StrCat("not enough space beside ", tree_.tree, ": ", FormatBytes(delta.bytes_to_stage + kSpareBytes),
                      " are needed, ", FormatBytes(free_bytes), " are free");
}

std::vector<std::string> EngineImpl::ProblemsLocked(const std::optional<Delta>& delta) {
  std::vector<std::string> problems;
  absl::StatusOr<UniqueFd> tree = OpenTree();
  if (!tree.ok()) {
    problems.push_back(absl::StrCat(tree.status().message(), ". Make the folder, or mend `tree` of ", tree_.service));
    return problems;
  }
  absl::StatusOr<std::vector<std::string>> mounts = MountsBelow(tree_.tree);
  if (!mounts.ok()) {
    problems.emplace_back(mounts.status().message());
  } else {
    for (const std::string& mount : *mounts) {
      if (!IsIgnored(tree_, mount)) {
        problems.push_back(absl::StrCat("a mount lies inside the tree at ", Printable(mount),
                                        "; unmount it, or add it to `ignore` of ", tree_.service));
      }
    }
  }
  absl::StatusOr<UniqueFd> staging = OpenStagingRoot();
  if (!staging.ok()) {
    problems.emplace_back(staging.status().message());
    return problems;
  }
  if (const absl::Status exchange = TryExchange(staging->get()); !exchange.ok()) {
    problems.push_back(absl::StrCat("the filesystem of ", tree_.tree, " cannot exchange files: ", exchange.message()));
  }
  if (delta.has_value()) {
    if (std::string lack = LackOfSpace(*delta); !lack.empty()) problems.push_back(std::move(lack));
  }
  return problems;
}

absl::Status EngineImpl::TryExchange(int staging) {
  const std::string a = absl::StrCat("try-", RandomHex(4));
  const std::string b = absl::StrCat(a, "-2");
  absl::Status status = CreateFileAt(staging, a, a).status();
  if (status.ok()) status = CreateFileAt(staging, b, b).status();
  if (status.ok()) status = RenameBeneath(staging, a, staging, b, true, "two files in the staging folder");
  unlinkat(staging, a.c_str(), 0);
  unlinkat(staging, b.c_str(), 0);
  return status;
}

absl::StatusOr<std::vector<std::string>> EngineImpl::MountsBelow(const std::string& path) {
  RB_ASSIGN_OR_RETURN(const std::string table, ReadFile("/proc/self/mountinfo"));
  std::vector<std::string> mounts;
  const std::string prefix = path + "/";
  for (const absl::string_view line : absl::StrSplit(table, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ');
    if (fields.size() > 4 && absl::StartsWith(fields[4], prefix)) {
      mounts.emplace_back(fields[4].substr(prefix.size()));
    }
  }
  std::sort(mounts.begin(), mounts.end());
  return mounts;
}

}  // namespace rb::agent
