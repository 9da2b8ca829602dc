#include "agent/core/engine/walk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/tree_files.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kSamplesKept = 20;
// Deeper is refused: each level holds an open folder.
constexpr size_t kDeepest = 2000;

class Walker {
 public:
  Walker(const ServiceTree& tree, bool with_sidecars) : tree_(tree), with_sidecars_(with_sidecars) {}

  absl::Status Root(int root) {
    struct stat info {};
    if (fstat(root, &info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", tree_.tree));
    device_ = info.st_dev;
    LiveEntry entry;
    RB_RETURN_IF_ERROR(Describe(root, info, "", &entry));
    result_.entries.push_back(std::move(entry));
    bool unmanaged = false;
    RB_RETURN_IF_ERROR(Folder(root, "", 0, &unmanaged));
    result_.entries[0].holds_unmanaged = unmanaged;
    return absl::OkStatus();
  }

  LiveTree Take() {
    std::sort(result_.not_captured.begin(), result_.not_captured.end());
    if (result_.not_captured.size() > kSamplesKept) result_.not_captured.resize(kSamplesKept);
    std::sort(result_.mounts.begin(), result_.mounts.end());
    // Hard links are known once all names are: numbered by the first of them in path order.
    std::map<uint64_t, std::vector<size_t>> names;
    for (size_t i = 0; i < result_.entries.size(); ++i) {
      if (linked_.count(result_.entries[i].inode) != 0 && result_.entries[i].entry.type == EntryType::kFile) {
        names[result_.entries[i].inode].push_back(i);
      }
    }
    std::vector<std::vector<size_t>> groups;
    for (auto& [inode, indices] : names) {
      if (indices.size() > 1) groups.push_back(std::move(indices));
    }
    std::sort(groups.begin(), groups.end());
    for (size_t g = 0; g < groups.size(); ++g) {
      for (const size_t i : groups[g]) result_.entries[i].entry.hard_link_group = static_cast<uint32_t>(g + 1);
    }
    return std::move(result_);
  }

 private:
  absl::Status Describe(int fd, const struct stat& info, const std::string& path, LiveEntry* live) {
    live->entry.path = path;
    live->inode = info.st_ino;
    live->ctime_ns = info.st_ctim.tv_sec * 1000000000 + info.st_ctim.tv_nsec;
    if (S_ISDIR(info.st_mode)) {
      live->entry.type = EntryType::kFolder;
    } else if (S_ISREG(info.st_mode)) {
      live->entry.type = EntryType::kFile;
      live->entry.size = static_cast<uint64_t>(info.st_size);
      live->entry.sparse = info.st_blocks * 512 < info.st_size;
      if (info.st_nlink > 1) linked_[info.st_ino] = true;
    } else if (S_ISLNK(info.st_mode)) {
      live->entry.type = EntryType::kSymlink;
    } else {
      live->entry.type = EntryType::kFifo;
    }
    RB_ASSIGN_OR_RETURN(live->entry.attributes, ReadAttributes(fd, info, Printable(path)));
    return absl::OkStatus();
  }

  absl::Status Folder(int fd, const std::string& path, size_t depth, bool* unmanaged) {
    if (depth > kDeepest) {
      return absl::FailedPreconditionError(
          absl::StrCat("folders are nested more than ", kDeepest, " deep in ", tree_.tree));
    }
    absl::StatusOr<std::vector<std::string>> listed = ListFolder(fd);
    if (!listed.ok()) return Annotate(listed.status(), absl::StrCat("folder ", Printable(path)));
    std::vector<std::string> names = *std::move(listed);
    std::sort(names.begin(), names.end(), PathLess);
    for (const std::string& name : names) {
      const std::string child = path.empty() ? name : absl::StrCat(path, "/", name);
      if (IsIgnored(tree_, child)) {
        *unmanaged = true;
        continue;
      }
      if (!with_sidecars_ && IsDatabaseSidecar(tree_, child)) continue;
      RB_RETURN_IF_ERROR(Child(fd, name, child, depth, unmanaged));
    }
    return absl::OkStatus();
  }

  absl::Status Child(int parent, const std::string& name, const std::string& path, size_t depth, bool* unmanaged) {
    UniqueFd fd(openat(parent, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    struct stat info {};
    if (!fd.valid() || fstat(fd.get(), &info) != 0) {
      if (errno == ENOENT) return absl::OkStatus();  // gone since the folder was read: the service is running
      return ErrnoStatus(errno, absl::StrCat("look at ", Printable(path)));
    }
    if (info.st_dev != device_) {
      result_.mounts.push_back(Printable(path));
      *unmanaged = true;
      return absl::OkStatus();
    }
    if (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode) && !S_ISLNK(info.st_mode) && !S_ISFIFO(info.st_mode)) {
      result_.not_captured.push_back(Printable(path));
      *unmanaged = true;
      return absl::OkStatus();
    }
    LiveEntry live;
    RB_RETURN_IF_ERROR(Describe(fd.get(), info, path, &live));
    if (live.entry.type == EntryType::kSymlink) {
      std::string target(4096, '\0');
      const ssize_t length = readlinkat(fd.get(), "", target.data(), target.size());
      if (length < 0) return ErrnoStatus(errno, absl::StrCat("read link ", Printable(path)));
      target.resize(static_cast<size_t>(length));
      live.entry.link_target = target;
      live.entry.attributes.mode = 0777;
    }
    const size_t index = result_.entries.size();
    const bool is_folder = live.entry.type == EntryType::kFolder;
    result_.entries.push_back(std::move(live));
    if (is_folder) {
      UniqueFd folder(openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (!folder.valid()) return ErrnoStatus(errno, absl::StrCat("open folder ", Printable(path)));
      bool below = false;
      RB_RETURN_IF_ERROR(Folder(folder.get(), path, depth + 1, &below));
      result_.entries[index].holds_unmanaged = below;
      if (below) *unmanaged = true;
    }
    return absl::OkStatus();
  }

  const ServiceTree& tree_;
  const bool with_sidecars_;
  dev_t device_ = 0;
  std::map<uint64_t, bool> linked_;
  LiveTree result_;
};

}  // namespace

bool IsDatabaseSidecar(const ServiceTree& tree, absl::string_view path) {
  for (const absl::string_view suffix : {"-wal", "-shm", "-journal"}) {
    absl::string_view database = path;
    if (!absl::ConsumeSuffix(&database, suffix)) continue;
    if (std::find(tree.sqlite_paths.begin(), tree.sqlite_paths.end(), std::string(database)) !=
        tree.sqlite_paths.end()) {
      return true;
    }
  }
  return false;
}

absl::StatusOr<LiveTree> WalkTree(int root, const ServiceTree& tree, bool with_sidecars) {
  Walker walker(tree, with_sidecars);
  RB_RETURN_IF_ERROR(walker.Root(root));
  return walker.Take();
}

}  // namespace rb::agent
