#include "agent/core/engine/tree_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

std::function<int(const char*, const std::string&)>& Fault() {
  static auto* const fault = new std::function<int(const char*, const std::string&)>;
  return *fault;
}

int OpenAt2(int root, const char* path, uint64_t flags) {
  open_how how{};
  how.flags = flags | O_CLOEXEC | O_NOFOLLOW;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  if (RB_PLANTED_BUG("links-followed")) how.resolve = 0;
  return static_cast<int>(syscall(SYS_openat2, root, path, &how, sizeof(how)));
}

// A path that other calls can take for what an O_PATH descriptor refers to, a link included.
std::string ProcPath(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

// The whole path of an open file or folder, for an error: asking takes no descriptor, of which there may be none left.
std::string WhereIs(int fd) {
  std::string path(4096, '\0');
  const ssize_t size = readlink(ProcPath(fd).c_str(), path.data(), path.size());
  if (size <= 0) return "of an unknown path";
  path.resize(static_cast<size_t>(size));
  return Printable(path);
}

mode_t TypeBits(EntryType type) {
  switch (type) {
    case EntryType::kFile:
      return S_IFREG;
    case EntryType::kFolder:
      return S_IFDIR;
    case EntryType::kSymlink:
      return S_IFLNK;
    case EntryType::kFifo:
      return S_IFIFO;
  }
  return 0;
}

// Sorted; none where the filesystem has no extended attributes. `path` is one of ProcPath.
absl::StatusOr<std::vector<std::string>> ListXattrs(const std::string& path, const std::string& path_for_errors) {
  std::string names(64 << 10, '\0');  // XATTR_LIST_MAX
  const ssize_t size = listxattr(path.c_str(), names.data(), names.size());
  if (size < 0 && errno == ENOTSUP) return std::vector<std::string>();
  if (size < 0) return ErrnoStatus(errno, absl::StrCat("list extended attributes of ", path_for_errors));
  names.resize(static_cast<size_t>(size));
  std::vector<std::string> list = absl::StrSplit(names, '\0', absl::SkipEmpty());
  // What xfs shows of an ACL besides the ACL itself.
  list.erase(std::remove_if(list.begin(), list.end(),
                            [](const std::string& key) { return absl::StartsWith(key, "trusted.SGI_ACL_"); }),
             list.end());
  std::sort(list.begin(), list.end());
  return list;
}

timespec ToTimespec(int64_t ns) {
  timespec time{};
  time.tv_sec = ns / 1000000000;
  time.tv_nsec = ns % 1000000000;
  if (time.tv_nsec < 0) {
    time.tv_nsec += 1000000000;
    --time.tv_sec;
  }
  return time;
}

}  // namespace

void SetFileFaultForTest(std::function<int(const char* call, const std::string& path)> fault) {
  Fault() = std::move(fault);
}

absl::Status CheckFault(const char* call, const std::string& path) {
  if (!Fault()) return absl::OkStatus();
  const int error_number = Fault()(call, path);
  return error_number == 0 ? absl::OkStatus() : ErrnoStatus(error_number, absl::StrCat(call, " ", Printable(path)));
}

absl::StatusOr<UniqueFd> OpenFolderBeneath(int root, absl::string_view path) {
  UniqueFd current;
  int at = root;
  // In parts, since a path may be longer than the kernel takes at once.
  do {
    absl::string_view part = path;
    if (part.size() > 3000) part = part.substr(0, part.rfind('/', 3000));
    path.remove_prefix(std::min(path.size(), part.size() + 1));
    const std::string text = part.empty() ? "." : std::string(part);
    UniqueFd next(OpenAt2(at, text.c_str(), O_RDONLY | O_DIRECTORY));
    if (!next.valid()) {
      const int error_number = errno;
      return ErrnoStatus(error_number, absl::StrCat("open folder ", part.empty() ? WhereIs(at) : Printable(text)));
    }
    current = std::move(next);
    at = current.get();
  } while (!path.empty());
  return current;
}

absl::StatusOr<Place> LocateBeneath(int root, absl::string_view path) {
  Place place;
  RB_ASSIGN_OR_RETURN(place.parent, OpenFolderBeneath(root, ParentPath(path)));
  place.name = std::string(BaseName(path));
  return place;
}

absl::StatusOr<FileIdentity> IdentifyBeneath(int root, absl::string_view path) {
  FileIdentity identity;
  absl::StatusOr<Place> place = LocateBeneath(root, path);
  if (absl::IsNotFound(place.status())) return identity;
  RB_RETURN_IF_ERROR(place.status());
  struct stat info {};
  if (fstatat(place->parent.get(), place->name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return identity;
    return ErrnoStatus(errno, absl::StrCat("look at ", Printable(path)));
  }
  identity.exists = true;
  identity.inode = info.st_ino;
  identity.ctime_ns = info.st_ctim.tv_sec * 1000000000 + info.st_ctim.tv_nsec;
  identity.type_and_mode = info.st_mode;
  return identity;
}

Attributes PlainAttributes(const struct stat& info) {
  Attributes attributes;
  attributes.mode = info.st_mode & 07777;
  attributes.uid = info.st_uid;
  attributes.gid = info.st_gid;
  attributes.mtime_ns = info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec;
  return attributes;
}

absl::StatusOr<Attributes> ReadAttributes(int fd, const struct stat& info, const std::string& path_for_errors) {
  Attributes attributes = PlainAttributes(info);
  const std::string path = ProcPath(fd);
  // Through /proc the last element stands for what is open, a link itself included, so calls that follow are meant.
  char probe[1];
  ssize_t any = flistxattr(fd, probe, 0);
  if (any < 0 && errno == EBADF) any = listxattr(path.c_str(), probe, 0);  // an O_PATH descriptor
  if (any == 0 || (any < 0 && errno == ENOTSUP)) return attributes;
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> list, ListXattrs(path, path_for_errors));
  Xattrs xattrs;
  for (const std::string& name : list) {
    std::string value(64 << 10, '\0');  // XATTR_SIZE_MAX
    const ssize_t length = getxattr(path.c_str(), name.c_str(), value.data(), value.size());
    if (length < 0 && errno == ENODATA) continue;
    if (length < 0) return ErrnoStatus(errno, absl::StrCat("read extended attribute ", name, " of ", path_for_errors));
    value.resize(static_cast<size_t>(length));
    xattrs.emplace_back(name, value);
  }
  attributes.xattrs = std::move(xattrs);
  return attributes;
}

absl::Status ApplyAttributes(int parent, const std::string& name, EntryType type, const Attributes& attributes,
                             const std::string& path_for_errors) {
  RB_RETURN_IF_ERROR(CheckFault("set attributes of", path_for_errors));
  UniqueFd fd(OpenAt2(parent, name.c_str(), O_PATH));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path_for_errors));
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(errno, absl::StrCat("look at ", path_for_errors));
  if ((info.st_mode & S_IFMT) != TypeBits(type)) {
    // What has been put there meanwhile may be another name of a file outside of the tree.
    return absl::AbortedError(absl::StrCat(path_for_errors, " was replaced by something else meanwhile"));
  }
  if ((info.st_uid != attributes.uid || info.st_gid != attributes.gid) &&
      fchownat(fd.get(), "", attributes.uid, attributes.gid, AT_EMPTY_PATH) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set owner ", attributes.uid, ":", attributes.gid, " of ", path_for_errors));
  }
  const std::string path = ProcPath(fd.get());
  if (type != EntryType::kSymlink && chmod(path.c_str(), attributes.mode) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set mode of ", path_for_errors));
  }
  // An ACL that is no longer wanted goes; chmod changed its mask only.
  char nothing[1];
  if (listxattr(path.c_str(), nothing, 0) != 0) {  // nearly always there is none
    RB_ASSIGN_OR_RETURN(const std::vector<std::string> present, ListXattrs(path, path_for_errors));
    for (const std::string& key : present) {
      const bool wanted = std::any_of(attributes.xattrs->begin(), attributes.xattrs->end(),
                                      [&](const auto& xattr) { return xattr.first == key; });
      if (!wanted && removexattr(path.c_str(), key.c_str()) != 0 && errno != ENODATA) {
        return ErrnoStatus(errno, absl::StrCat("remove extended attribute ", key, " of ", path_for_errors));
      }
    }
  }
  for (const auto& [key, value] : *attributes.xattrs) {
    if (setxattr(path.c_str(), key.c_str(), value.data(), value.size(), 0) != 0) {
      return ErrnoStatus(errno, absl::StrCat("set extended attribute ", key, " of ", path_for_errors));
    }
  }
  const timespec times[2] = {{0, UTIME_OMIT}, ToTimespec(attributes.mtime_ns)};
  if (utimensat(AT_FDCWD, path.c_str(), times, 0) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set time of ", path_for_errors));
  }
  return absl::OkStatus();
}

absl::Status ApplyAttributesToNewFile(int fd, const Attributes& attributes, const std::string& path_for_errors) {
  RB_RETURN_IF_ERROR(CheckFault("set attributes of", path_for_errors));
  if (fchown(fd, attributes.uid, attributes.gid) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set owner ", attributes.uid, ":", attributes.gid, " of ", path_for_errors));
  }
  if (!RB_PLANTED_BUG("mode-not-restored") && fchmod(fd, attributes.mode) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set mode of ", path_for_errors));
  }
  for (const auto& [key, value] : *attributes.xattrs) {
    if (fsetxattr(fd, key.c_str(), value.data(), value.size(), 0) != 0) {
      return ErrnoStatus(errno, absl::StrCat("set extended attribute ", key, " of ", path_for_errors));
    }
  }
  const timespec times[2] = {{0, UTIME_OMIT}, ToTimespec(attributes.mtime_ns)};
  if (futimens(fd, times) != 0) return ErrnoStatus(errno, absl::StrCat("set time of ", path_for_errors));
  return absl::OkStatus();
}

absl::Status SetTime(int fd, int64_t mtime_ns, const std::string& path) {
  RB_RETURN_IF_ERROR(CheckFault("set time of", path));
  const timespec times[2] = {{0, UTIME_OMIT}, ToTimespec(mtime_ns)};
  if (futimens(fd, times) != 0) {
    return ErrnoStatus(errno, absl::StrCat("set time of ", path.empty() ? "the tree's root" : Printable(path)));
  }
  return absl::OkStatus();
}

absl::Status RenameBeneath(int from_parent, const std::string& from, int to_parent, const std::string& to,
                           bool exchange, const std::string& path) {
  RB_RETURN_IF_ERROR(CheckFault("rename", path));
  const unsigned flags = exchange ? RENAME_EXCHANGE : RENAME_NOREPLACE;
  if (renameat2(from_parent, from.c_str(), to_parent, to.c_str(), flags) != 0) {
    return ErrnoStatus(errno, absl::StrCat(exchange ? "exchange " : "rename ", Printable(path)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ListFolder(int folder) {
  // A descriptor of its own: the position of a shared one would be shared too.
  const int own = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* stream = own < 0 ? nullptr : fdopendir(own);
  if (stream == nullptr) {
    const int error_number = errno;
    if (own >= 0) close(own);
    return ErrnoStatus(error_number, absl::StrCat("read folder ", WhereIs(folder)));
  }
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = readdir(stream)) {
    const absl::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
    errno = 0;
  }
  const int error_number = errno;
  closedir(stream);
  if (error_number != 0) return ErrnoStatus(error_number, absl::StrCat("read folder ", WhereIs(folder)));
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path) {
  const UniqueFd folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.valid()) return ErrnoStatus(errno, absl::StrCat("open folder ", path));
  return ListFolder(folder.get());
}

absl::Status MakeFolderAt(int parent, const std::string& name, mode_t mode, const std::string& path_for_errors) {
  RB_RETURN_IF_ERROR(CheckFault("mkdir", path_for_errors));
  if (mkdirat(parent, name.c_str(), mode) != 0) return ErrnoStatus(errno, absl::StrCat("mkdir ", path_for_errors));
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> CreateFileAt(int parent, const std::string& name, const std::string& path_for_errors) {
  RB_RETURN_IF_ERROR(CheckFault("create", path_for_errors));
  UniqueFd fd(openat(parent, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("create ", path_for_errors));
  return fd;
}

absl::Status WriteToFile(int fd, absl::string_view data, const std::string& path_for_errors) {
  RB_RETURN_IF_ERROR(CheckFault("write", path_for_errors));
  return WriteAll(fd, data, path_for_errors);
}

absl::Status SyncFd(int fd, const std::string& path_for_errors) {
  RB_RETURN_IF_ERROR(CheckFault("fsync", path_for_errors));
  if (fsync(fd) != 0) {
    const int error_number = errno;
    return ErrnoStatus(error_number,
                       absl::StrCat("fsync ", path_for_errors, path_for_errors.empty() ? "" : ", ", WhereIs(fd)));
  }
  return absl::OkStatus();
}

absl::Status SyncFilesystem(int fd, const std::string& path_for_errors) {
  RB_RETURN_IF_ERROR(CheckFault("syncfs", path_for_errors));
  if (syncfs(fd) != 0) {
    const int error_number = errno;
    return ErrnoStatus(error_number, absl::StrCat("syncfs ", path_for_errors, ", ", WhereIs(fd)));
  }
  return absl::OkStatus();
}

absl::Status RemoveTreeAt(int parent, const std::string& name) {
  if (unlinkat(parent, name.c_str(), 0) == 0 || errno == ENOENT) return absl::OkStatus();
  if (errno != EISDIR && errno != EPERM) return ErrnoStatus(errno, absl::StrCat("remove ", Printable(name)));
  UniqueFd folder(OpenAt2(parent, name.c_str(), O_RDONLY | O_DIRECTORY));
  if (!folder.valid()) return ErrnoStatus(errno, absl::StrCat("open folder ", Printable(name)));
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(folder.get()));
  for (const std::string& child : names) RB_RETURN_IF_ERROR(RemoveTreeAt(folder.get(), child));
  if (unlinkat(parent, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("remove folder ", Printable(name)));
  }
  return absl::OkStatus();
}

}  // namespace rb::agent
