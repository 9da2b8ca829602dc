#include "tests/fidelity/random_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/digest.h"
#include "common/text.h"

namespace rb::testing {
namespace {

constexpr size_t kDeepest = 4;

template <typename T>
T Must(T result, const char* call, const std::string& name) {
  if (result < 0) {
    throw std::system_error(errno, std::generic_category(), absl::StrCat(call, " ", Printable(name)));
  }
  return result;
}

UniqueFd OpenFolder(int parent, const std::string& name) {
  return UniqueFd(Must(openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), "open", name));
}

std::vector<std::string> NamesIn(int folder) {
  DIR* const stream = fdopendir(Must(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), "open", "."));
  std::vector<std::string> names;
  while (const dirent* entry = readdir(stream)) {  // NOLINT(concurrency-mt-unsafe): safe on distinct streams
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

struct stat Look(int parent, const std::string& name) {
  struct stat info {};
  Must(fstatat(parent, name.c_str(), &info, AT_SYMLINK_NOFOLLOW), "look at", name);
  return info;
}

void RemoveAll(int parent, const std::string& name) {
  if (S_ISDIR(Look(parent, name).st_mode)) {
    const UniqueFd folder = OpenFolder(parent, name);
    for (const std::string& child : NamesIn(folder.get())) RemoveAll(folder.get(), child);
    Must(unlinkat(parent, name.c_str(), AT_REMOVEDIR), "remove folder", name);
  } else {
    Must(unlinkat(parent, name.c_str(), 0), "remove", name);
  }
}

std::vector<std::string> XattrsOf(const std::string& name) {
  std::string names(64 << 10, '\0');
  names.resize(static_cast<size_t>(Must(llistxattr(name.c_str(), names.data(), names.size()), "list xattrs", name)));
  std::vector<std::string> list = absl::StrSplit(names, '\0', absl::SkipEmpty());
  // What xfs shows of an ACL besides the ACL.
  list.erase(std::remove_if(list.begin(), list.end(),
                            [](const std::string& key) { return absl::StartsWith(key, "trusted.SGI_ACL_"); }),
             list.end());
  std::sort(list.begin(), list.end());
  return list;
}

void Append16(uint16_t value, std::string* out) { out->append(reinterpret_cast<const char*>(&value), sizeof(value)); }
void Append32(uint32_t value, std::string* out) { out->append(reinterpret_cast<const char*>(&value), sizeof(value)); }

}  // namespace

std::string RandomTree::Bytes(size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(1 + Below(255));  // never zeros: those would be holes
  return bytes;
}

std::string RandomTree::Name() {
  const std::string number = absl::StrCat(names_++);
  switch (Below(10)) {
    case 0:
      return absl::StrCat("not-utf8-\xff\xfe\x80", number);
    case 1:
      return absl::StrCat("two\nlines ", number, "\n");
    case 2:
      return absl::StrCat(std::string(255 - number.size(), 'n'), number);
    case 3:
      return absl::StrCat("-rf *\\x0a'\"$(", number, ")");
    case 4:
      return absl::StrCat("\x01\x7f\xc2\x85", number);
    default:
      return absl::StrCat("f", number);
  }
}

namespace {

struct AclEntry {
  uint16_t tag;
  uint16_t permissions;
  uint32_t id;
};

// Version 2, then tag, permissions and id of each entry.
std::string EncodeAcl(const std::vector<AclEntry>& entries) {
  std::string acl;
  Append32(2, &acl);
  for (const AclEntry& entry : entries) {
    Append16(entry.tag, &acl);
    Append16(entry.permissions, &acl);
    Append32(entry.id, &acl);
  }
  return acl;
}

}  // namespace

std::string AclFor(uint32_t user) {
  return EncodeAcl(
      {{0x01, 7, UINT32_MAX}, {0x02, 4, user}, {0x04, 5, UINT32_MAX}, {0x10, 5, UINT32_MAX}, {0x20, 5, UINT32_MAX}});
}

std::string RandomTree::Acl() {
  const auto permissions = [this] { return static_cast<uint16_t>(Below(8)); };
  const auto id = [this] { return static_cast<uint32_t>(1 + Below(90000)); };
  std::vector<AclEntry> entries = {{0x01, permissions(), UINT32_MAX}};  // owner
  entries.push_back({0x02, permissions(), id()});                       // a user
  entries.push_back({0x04, permissions(), UINT32_MAX});                 // owning group
  entries.push_back({0x08, permissions(), id()});                       // a group
  entries.push_back({0x10, permissions(), UINT32_MAX});                 // mask
  entries.push_back({0x20, permissions(), UINT32_MAX});                 // others
  return EncodeAcl(entries);
}

// Owner, mode, extended attributes and time, each drawn anew.
void RandomTree::Decorate(int parent, const std::string& name) {
  const struct stat info = Look(parent, name);
  const bool is_folder = S_ISDIR(info.st_mode);
  const bool is_file = S_ISREG(info.st_mode);
  const bool is_link = S_ISLNK(info.st_mode);
  static constexpr uint32_t kIds[] = {0, 1, 1000, 65534, 4000000000};
  Must(fchownat(parent, name.c_str(), kIds[Below(5)], kIds[Below(5)], AT_SYMLINK_NOFOLLOW), "chown", name);
  Must(fchdir(parent), "chdir to the parent of", name);
  if (!is_link) Must(fchmodat(parent, name.c_str(), static_cast<mode_t>(Below(010000)), 0), "chmod", name);
  const auto set = [&](const std::string& key, const std::string& value) {
    Must(lsetxattr(name.c_str(), key.c_str(), value.data(), value.size(), 0), key.c_str(), name);
  };
  for (const std::string& key : XattrsOf(name)) Must(lremovexattr(name.c_str(), key.c_str()), key.c_str(), name);
  if ((is_file || is_folder) && OneIn(3)) set(absl::StrCat("user.a\xff\n", Below(3)), Bytes(Below(300)));
  if (OneIn(4)) set(absl::StrCat("trusted.rb", Below(3)), Bytes(Below(300)));
  if (OneIn(6)) set("security.rb", Bytes(Below(30)));
  if (!is_link && OneIn(4)) set("system.posix_acl_access", Acl());
  if (is_folder && OneIn(4)) set("system.posix_acl_default", Acl());
  if (is_file && OneIn(4)) {
    std::string capability;
    Append32(0x02000001, &capability);  // version 2, effective
    for (int i = 0; i < 4; ++i) Append32(i < 2 ? static_cast<uint32_t>(Below(1 << 16)) : 0, &capability);
    set("security.capability", capability);
  }
  // From 1903 to 2242, to the nanosecond.
  const timespec times[2] = {
      {0, UTIME_OMIT}, {static_cast<time_t>(Below(10700000000)) - 2100000000, static_cast<long>(Below(1000000000))}};
  Must(utimensat(parent, name.c_str(), times, AT_SYMLINK_NOFOLLOW), "set time of", name);
}

void RandomTree::AddFile(int parent, const std::string& name) {
  const UniqueFd fd(Must(openat(parent, name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600), "create", name));
  const auto put = [&](size_t offset, const std::string& bytes) {
    Must(pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)), "write", name);
  };
  switch (Below(8)) {
    case 0:
      return;  // empty
    case 1: {  // single blocks between holes, in a file that is cut by content
      const size_t blocks = 512 + Below(512);
      for (size_t i = Below(2); i < blocks; i += 2) put(i * 4096, Bytes(4096));
      Must(ftruncate(fd.get(), static_cast<off_t>(blocks * 4096)), "truncate", name);
      return;
    }
    case 2:  // little in much
      put(Below(32) << 16, Bytes(1 + Below(70000)));
      Must(ftruncate(fd.get(), static_cast<off_t>((3 << 20) + Below(9000))), "truncate", name);
      return;
    case 3:
      return put(0, Bytes((1 << 20) + Below(2 << 20)));
    case 4:
      return put(0, std::string(1 + Below(10000), '\0'));
    default:
      return put(0, Bytes(1 + Below(9000)));
  }
}

// Longer than any path the kernel takes at once.
void RandomTree::AddDeepPath(int parent) {
  UniqueFd at(fcntl(parent, F_DUPFD_CLOEXEC, 0));
  std::vector<std::pair<UniqueFd, std::string>> made;
  for (int i = 0; i < 18; ++i) {
    const std::string name(255 - static_cast<size_t>(i), static_cast<char>('a' + i));
    Must(mkdirat(at.get(), name.c_str(), 0700), "mkdir", name);
    UniqueFd next = OpenFolder(at.get(), name);
    made.emplace_back(std::move(at), name);
    at = std::move(next);
  }
  AddFile(at.get(), "bottom");
  Decorate(at.get(), "bottom");
  Must(symlinkat("../bottom", at.get(), "link"), "symlink", "link");
  Decorate(at.get(), "link");
  for (auto folder = made.rbegin(); folder != made.rend(); ++folder) Decorate(folder->first.get(), folder->second);
}

void RandomTree::AddEntry(int parent, const std::string& name, size_t depth) {
  const size_t kind = Below(20);
  if (kind < 5 && depth < kDeepest) {
    Must(mkdirat(parent, name.c_str(), 0700), "mkdir", name);
    const UniqueFd folder = OpenFolder(parent, name);
    if (!OneIn(4)) FillFolder(folder.get(), depth + 1);
  } else if (kind < 8) {
    const std::string target = OneIn(4) ? Bytes(1 + Below(1000)) : absl::StrCat("../", Name());
    Must(symlinkat(target.c_str(), parent, name.c_str()), "symlink", name);
  } else if (kind < 10) {
    Must(mkfifoat(parent, name.c_str(), 0600), "mkfifo", name);
  } else if (kind < 13 && !linkable_.empty()) {
    const int from = linkable_[Below(linkable_.size())].get();
    struct stat info {};
    Must(fstat(from, &info), "look at", "a linked file");
    if (info.st_nlink > 0) {  // else it was removed meanwhile
      Must(linkat(from, "", parent, name.c_str(), AT_EMPTY_PATH), "link", name);
      return;  // decorated already
    }
    AddFile(parent, name);
  } else {
    AddFile(parent, name);
  }
  Decorate(parent, name);
  if (!S_ISDIR(Look(parent, name).st_mode) && OneIn(3)) {
    linkable_.emplace_back(Must(openat(parent, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC), "open", name));
  }
}

void RandomTree::FillFolder(int folder, size_t depth) {
  for (size_t count = 1 + Below(7); count > 0; --count) AddEntry(folder, Name(), depth);
}

void RandomTree::Fill(const std::string& folder) {
  const UniqueFd root = OpenFolder(AT_FDCWD, folder);
  for (size_t count = 10 + Below(10); count > 0; --count) AddEntry(root.get(), Name(), 0);
  if (OneIn(2)) AddDeepPath(root.get());
  Decorate(root.get(), ".");
  Must(chdir("/"), "chdir", "/");
}

void RandomTree::DamageEntry(int parent, const std::string& name, size_t depth) {
  const struct stat before = Look(parent, name);
  const timespec times[2] = {{0, UTIME_OMIT}, before.st_mtim};
  switch (Below(9)) {
    case 0:
      return RemoveAll(parent, name);
    case 1:  // something else in its place
      RemoveAll(parent, name);
      return AddEntry(parent, name, depth);
    case 2:
      return Decorate(parent, name);
    case 3: {
      const std::string other = Name();
      Must(renameat(parent, name.c_str(), parent, other.c_str()), "rename", name);
      return;
    }
    case 4:  // its time alone
      return Decorate(parent, name);
    case 5:  // an equal file, linked otherwise
      if (!S_ISREG(before.st_mode)) return;
      Must(unlinkat(parent, name.c_str(), 0), "remove", name);
      return AddEntry(parent, name, kDeepest);
    default:
      break;
  }
  if (S_ISREG(before.st_mode)) {
    const UniqueFd fd(Must(openat(parent, name.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC), "open", name));
    if (before.st_size > 0 && OneIn(2)) {
      // Other content of the same size, with the time it had.
      const std::string bytes = Bytes(1);
      Must(pwrite(fd.get(), bytes.data(), 1, static_cast<off_t>(Below(static_cast<size_t>(before.st_size)))), "write",
           name);
      Must(futimens(fd.get(), times), "set time of", name);
    } else {
      Must(ftruncate(fd.get(), static_cast<off_t>(Below(2 << 20))), "truncate", name);
    }
  } else if (S_ISLNK(before.st_mode)) {
    Must(unlinkat(parent, name.c_str(), 0), "remove", name);
    Must(symlinkat("elsewhere", parent, name.c_str()), "symlink", name);
    Must(utimensat(parent, name.c_str(), times, AT_SYMLINK_NOFOLLOW), "set time of", name);
  }
}

void RandomTree::DamageFolder(int folder, size_t depth) {
  for (const std::string& name : NamesIn(folder)) {
    if (S_ISDIR(Look(folder, name).st_mode) && !OneIn(6)) {
      const UniqueFd below = OpenFolder(folder, name);
      DamageFolder(below.get(), depth + 1);
      if (OneIn(5)) Decorate(folder, name);
    } else if (OneIn(3)) {
      DamageEntry(folder, name, depth);
    }
  }
  if (OneIn(3)) AddEntry(folder, Name(), depth);
}

void RandomTree::Damage(const std::string& folder) {
  const UniqueFd root = OpenFolder(AT_FDCWD, folder);
  DamageFolder(root.get(), 0);
  if (OneIn(2)) Decorate(root.get(), ".");
  Must(chdir("/"), "chdir", "/");
}

namespace {

class Describer {
 public:
  void Describe(int parent, const std::string& name, const std::string& path) {
    const struct stat info = Look(parent, name);
    Must(fchdir(parent), "chdir to the parent of", name);
    DescribedEntry entry;
    entry.mode = info.st_mode;
    entry.size = static_cast<uint64_t>(info.st_size);
    entry.allocated_bytes = static_cast<uint64_t>(info.st_blocks) * 512;
    entry.text = absl::StrCat("mode ", absl::Hex(info.st_mode), " owner ", info.st_uid, ":", info.st_gid, " time ",
                              info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec);
    for (const std::string& key : XattrsOf(name)) {
      std::string value(64 << 10, '\0');
      value.resize(
          static_cast<size_t>(Must(lgetxattr(name.c_str(), key.c_str(), value.data(), value.size()), "xattr", key)));
      absl::StrAppend(&entry.text, " ", Printable(key), "=", absl::BytesToHexString(value));
    }
    if (!S_ISDIR(info.st_mode) && info.st_nlink > 1) {
      absl::StrAppend(&entry.text, " same as ", Printable(first_of_.try_emplace(info.st_ino, path).first->second));
    }
    if (S_ISREG(info.st_mode)) {
      const UniqueFd fd(Must(openat(parent, name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC), "open", name));
      std::string content(entry.size, '\0');
      const ssize_t got = Must(pread(fd.get(), content.data(), content.size(), 0), "read", name);
      absl::StrAppend(&entry.text, " size ", got, " sha256 ", Sha256Of(content).ToHex());
    } else if (S_ISLNK(info.st_mode)) {
      std::string target(4096, '\0');
      target.resize(
          static_cast<size_t>(Must(readlinkat(parent, name.c_str(), target.data(), target.size()), "read link", name)));
      absl::StrAppend(&entry.text, " to ", Printable(target));
    }
    all_[path] = entry;
    if (!S_ISDIR(info.st_mode)) return;
    const UniqueFd folder = OpenFolder(parent, name);
    for (const std::string& child : NamesIn(folder.get())) {
      Describe(folder.get(), child, path.empty() ? child : absl::StrCat(path, "/", child));
    }
  }
  std::map<std::string, DescribedEntry> Take() { return std::move(all_); }

 private:
  std::map<std::string, DescribedEntry> all_;
  std::map<uint64_t, std::string> first_of_;
};

}  // namespace

std::map<std::string, DescribedEntry> DescribeTree(const std::string& folder) {
  const UniqueFd root = OpenFolder(AT_FDCWD, folder);
  Must(syncfs(root.get()), "sync", folder);  // what is allocated is known once it is
  Describer describer;
  describer.Describe(root.get(), ".", "");
  Must(chdir("/"), "chdir", "/");
  return describer.Take();
}

}  // namespace rb::testing
