#include "agent/core/engine/walk.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/tree_files.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kSamplesKept = 20;
// Deeper is refused: an open folder may be held for each level.
constexpr size_t kDeepest = 2000;

// A folder that was found and is to be read, and what was found in it.
struct FolderNode {
  LiveEntry folder;
  std::shared_ptr<UniqueFd> parent;  // closed with the last folder that is reached through it
  std::string name;                  // in `parent`
  size_t depth = 0;
  // In path order; a folder among them is the next of `folders`.
  std::vector<LiveEntry> entries;
  std::vector<std::unique_ptr<FolderNode>> folders;
  bool holds_unmanaged = false;  // directly
};

// The names in one folder, as they lie in the buffer that the kernel has filled. Made once for many folders.
class FolderNames {
 public:
  // Unlike ListFolder, from the descriptor itself: nobody else reads from it.
  absl::Status Read(int folder) {
    filled_ = 0;
    sorted_.clear();
    while (true) {
      if (buffer_.size() - filled_ < kLeastRoom) buffer_.resize(buffer_.size() * 2);
      const ssize_t got = getdents64(folder, buffer_.data() + filled_, buffer_.size() - filled_);
      if (got < 0) return ErrnoStatus(errno, "read");
      if (got == 0) break;
      filled_ += static_cast<size_t>(got);
    }
    for (size_t at = 0; at < filled_;) {
      const auto* entry = reinterpret_cast<const dirent64*>(buffer_.data() + at);
      const absl::string_view name = entry->d_name;
      if (name != "." && name != "..") sorted_.push_back(entry->d_name);
      at += entry->d_reclen;
    }
    std::sort(sorted_.begin(), sorted_.end(), [](const char* a, const char* b) { return std::strcmp(a, b) < 0; });
    return absl::OkStatus();
  }
  // Valid until the next Read.
  const std::vector<const char*>& sorted() const { return sorted_; }

 private:
  static constexpr size_t kLeastRoom = 4 << 10;

  std::vector<char> buffer_ = std::vector<char>(32 << 10);
  size_t filled_ = 0;
  std::vector<const char*> sorted_;
};

// Folders are read by two threads: most of the time goes into the kernel's looking up of each name.
class Walker {
 public:
  Walker(const ServiceTree& tree, bool with_sidecars) : tree_(tree), with_sidecars_(with_sidecars) {}

  absl::Status Walk(int root) {
    struct stat info {};
    if (fstat(root, &info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", tree_.tree));
    device_ = info.st_dev;
    root_ = std::make_unique<FolderNode>();
    FillFrom(info, "", &root_->folder);
    RB_ASSIGN_OR_RETURN(root_->folder.entry.attributes, ReadAttributes(root, info, ""));
    RB_ASSIGN_OR_RETURN(UniqueFd own, OpenFolderBeneath(root, ""));
    root_->parent = std::make_shared<UniqueFd>(std::move(own));
    root_->name = ".";
    {
      MutexLock lock(mutex_);
      to_read_.push_back(root_.get());
    }
    std::thread first([this] { Work(); });
    std::thread second([this] { Work(); });
    first.join();
    second.join();
    MutexLock lock(mutex_);
    return failure_;
  }

  LiveTree Take() {
    {
      MutexLock lock(mutex_);
      result_.entries.reserve(found_ + 1);
      result_.not_captured = std::move(not_captured_);
    }
    Assemble(root_.get());
    std::sort(result_.not_captured.begin(), result_.not_captured.end());
    if (result_.not_captured.size() > kSamplesKept) {
      const size_t more = result_.not_captured.size() - kSamplesKept;
      result_.not_captured.resize(kSamplesKept);
      result_.not_captured.push_back(absl::StrCat("... and ", more, " more"));
    }
    // Hard links are known once all names are: numbered by the first of them in path order.
    std::map<uint64_t, std::vector<size_t>> names;
    for (const size_t i : linked_) names[result_.entries[i].inode].push_back(i);
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
  static constexpr uint32_t kMaybeLinked = UINT32_MAX;  // until all names are known

  static void FillFrom(const struct stat& info, std::string path, LiveEntry* live) {
    live->entry.path = std::move(path);
    live->inode = info.st_ino;
    live->ctime_ns = info.st_ctim.tv_sec * 1000000000 + info.st_ctim.tv_nsec;
    if (S_ISDIR(info.st_mode)) {
      live->entry.type = EntryType::kFolder;
    } else if (S_ISREG(info.st_mode)) {
      live->entry.type = EntryType::kFile;
      live->entry.size = static_cast<uint64_t>(info.st_size);
      live->entry.sparse = info.st_blocks * 512 < info.st_size;
    } else if (S_ISLNK(info.st_mode)) {
      live->entry.type = EntryType::kSymlink;
    } else {
      live->entry.type = EntryType::kFifo;
    }
    if (!S_ISDIR(info.st_mode) && info.st_nlink > 1) live->entry.hard_link_group = kMaybeLinked;
  }

  // One thread: takes folders until none is left and nobody may find another.
  void Work() {
    // A working folder of this thread's own lets extended attributes be asked for by name, without following links and
    // without opening each file.
    const bool has_own_folder = unshare(CLONE_FS) == 0;
    FolderNames names;
    mutex_.Lock();
    while (failure_.ok()) {
      if (to_read_.empty()) {
        if (at_work_ == 0) break;
        changed_.Wait(mutex_);
        continue;
      }
      FolderNode* node = to_read_.back();  // the deepest: few folders are held open
      to_read_.pop_back();
      ++at_work_;
      mutex_.Unlock();
      const absl::Status read = ReadFolder(node, has_own_folder, &names);
      mutex_.Lock();
      --at_work_;
      found_ += node->entries.size();
      if (!read.ok() && failure_.ok()) failure_ = read;
      for (auto folder = node->folders.rbegin(); folder != node->folders.rend(); ++folder) {
        to_read_.push_back(folder->get());
      }
      if (node->folders.size() > 1 || to_read_.empty() || !failure_.ok()) changed_.NotifyAll();
    }
    mutex_.Unlock();
    changed_.NotifyAll();
    // A thread that has been joined may still hold its working folder for a moment, and a filesystem with it.
    if (has_own_folder && chdir("/") != 0) return;
  }

  absl::Status ReadFolder(FolderNode* node, bool has_own_folder, FolderNames* names) {
    const std::string& path = node->folder.entry.path;
    if (node->depth > kDeepest) {
      return absl::FailedPreconditionError(
          absl::StrCat("folders are nested more than ", kDeepest, " deep in ", tree_.tree));
    }
    auto fd = std::make_shared<UniqueFd>(
        openat(node->parent->get(), node->name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd->valid()) return ErrnoStatus(errno, absl::StrCat("open folder ", Printable(path)));
    node->parent.reset();
    if (const absl::Status read = names->Read(fd->get()); !read.ok()) {
      return Annotate(read, absl::StrCat("folder ", Printable(path)));
    }
    const bool in_folder = has_own_folder && fchdir(fd->get()) == 0;
    node->entries.reserve(names->sorted().size());
    // Sorted as names, which is path order among the children of one folder.
    for (const char* const name : names->sorted()) {
      std::string child = path.empty() ? std::string(name) : absl::StrCat(path, "/", name);
      if (IsIgnored(tree_, child)) {
        node->holds_unmanaged = true;
        continue;
      }
      if (!with_sidecars_ && IsDatabaseSidecar(tree_, child)) continue;
      RB_RETURN_IF_ERROR(Child(fd, name, std::move(child), in_folder, node));
    }
    return absl::OkStatus();
  }

  absl::Status Child(const std::shared_ptr<UniqueFd>& parent, const char* name, std::string path, bool in_folder,
                     FolderNode* node) {
    struct stat info {};
    if (fstatat(parent->get(), name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
      if (errno == ENOENT) return absl::OkStatus();  // gone since the folder was read: the service is running
      return ErrnoStatus(errno, absl::StrCat("look at ", Printable(path)));
    }
    UniqueFd fd;
    // Of a file with content they are read together with it.
    const bool ask_for_xattrs = !S_ISREG(info.st_mode) || info.st_size == 0;
    if (ask_for_xattrs && !(in_folder && HasNoXattrs(name))) {
      // Both from one handle: the name may have been given to another file meanwhile.
      fd.Reset(openat(parent->get(), name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
      if (!fd.valid() || fstat(fd.get(), &info) != 0) {
        if (errno == ENOENT) return absl::OkStatus();
        return ErrnoStatus(errno, absl::StrCat("look at ", Printable(path)));
      }
    }
    if (info.st_dev != device_) {
      node->holds_unmanaged = true;
      MutexLock lock(mutex_);
      not_captured_.push_back(absl::StrCat(Printable(path), " (another filesystem)"));
      return absl::OkStatus();
    }
    if (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode) && !S_ISLNK(info.st_mode) && !S_ISFIFO(info.st_mode)) {
      node->holds_unmanaged = true;
      MutexLock lock(mutex_);
      not_captured_.push_back(Printable(path));
      return absl::OkStatus();
    }
    LiveEntry live;
    if (fd.valid()) {
      RB_ASSIGN_OR_RETURN(live.entry.attributes, ReadAttributes(fd.get(), info, Printable(path)));
    } else {
      live.entry.attributes = PlainAttributes(info);
    }
    if (S_ISLNK(info.st_mode)) {
      char target[4096];
      const ssize_t length = fd.valid() ? readlinkat(fd.get(), "", target, sizeof(target))
                                        : readlinkat(parent->get(), name, target, sizeof(target));
      if (length < 0 && (errno == ENOENT || errno == EINVAL)) {
        return absl::AbortedError(absl::StrCat(Printable(path), " changed while it was being captured; try again"));
      }
      if (length < 0) return ErrnoStatus(errno, absl::StrCat("read link ", Printable(path)));
      live.entry.link_target = std::string(target, static_cast<size_t>(length));
      live.entry.attributes.mode = 0777;
    }
    FillFrom(info, std::move(path), &live);
    if (live.entry.type == EntryType::kFolder) {
      auto folder = std::make_unique<FolderNode>();
      folder->folder = live;
      folder->parent = parent;
      folder->name = name;
      folder->depth = node->depth + 1;
      node->folders.push_back(std::move(folder));
    }
    node->entries.push_back(std::move(live));
    return absl::OkStatus();
  }

  // Of a name in this thread's working folder. False when it has some, or that cannot be said.
  static bool HasNoXattrs(const char* name) {
    char nothing[1];
    const ssize_t size = llistxattr(name, nothing, 0);
    return size == 0 || (size < 0 && errno == ENOTSUP);
  }

  // In path order: a folder, then all below it, without recursion over a depth that others choose. Returns through
  // `holds_unmanaged` of each folder what lies below it.
  void Assemble(FolderNode* root) {
    struct Level {
      FolderNode* node;
      size_t index;  // of the folder itself
      size_t next_entry = 0;
      size_t next_folder = 0;
    };
    result_.entries.push_back(std::move(root->folder));
    std::vector<Level> levels = {{root, 0}};
    while (!levels.empty()) {
      Level& level = levels.back();
      FolderNode* node = level.node;
      if (level.next_entry == node->entries.size()) {
        const bool unmanaged = node->holds_unmanaged;
        result_.entries[level.index].holds_unmanaged = unmanaged;
        std::vector<LiveEntry>().swap(node->entries);
        levels.pop_back();
        if (unmanaged && !levels.empty()) levels.back().node->holds_unmanaged = true;
        continue;
      }
      LiveEntry& entry = node->entries[level.next_entry++];
      const size_t index = result_.entries.size();
      const bool is_folder = entry.entry.type == EntryType::kFolder;
      if (entry.entry.hard_link_group != 0) {
        entry.entry.hard_link_group = 0;
        linked_.push_back(index);
      }
      result_.entries.push_back(std::move(entry));
      if (is_folder) {
        FolderNode* below = node->folders[level.next_folder++].get();
        levels.push_back({below, index});
      }
    }
  }

  const ServiceTree& tree_;
  const bool with_sidecars_;
  dev_t device_ = 0;
  std::unique_ptr<FolderNode> root_;
  std::vector<size_t> linked_;
  LiveTree result_;

  Mutex mutex_;
  CondVar changed_;
  std::vector<FolderNode*> to_read_ ABSL_GUARDED_BY(mutex_);
  size_t at_work_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t found_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> not_captured_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

bool IsDatabaseSidecar(const ServiceTree& tree, absl::string_view path) {
  if (tree.sqlite_paths.empty()) return false;
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
  RB_RETURN_IF_ERROR(walker.Walk(root));
  return walker.Take();
}

}  // namespace rb::agent
