#include "controller/adapters/folder_owner.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace rb::controller {
namespace {

// The group first: whoever is not root any more cannot choose one.
bool Become(uid_t uid, gid_t gid) { return setegid(gid) == 0 && seteuid(uid) == 0; }

// Only ever back to what the process was: that it cannot fail is what saved ids are for.
void GoBack(uid_t uid, gid_t gid) {
  if (seteuid(uid) != 0 || setegid(gid) != 0) std::abort();
}

}  // namespace

ActAsOwner::ActAsOwner(const std::string& folder) {
  struct stat info;
  if (geteuid() != 0 || stat(folder.c_str(), &info) != 0 || info.st_uid == 0) return;
  switched_ = true;
  if (!Become(info.st_uid, info.st_gid)) status_ = ErrnoStatus(errno, absl::StrCat("acting as the owner of ", folder));
}

ActAsOwner::~ActAsOwner() {
  if (switched_) GoBack(getuid(), getgid());
}

ActAsCaller::ActAsCaller() : uid_(geteuid()), gid_(getegid()) { GoBack(getuid(), getgid()); }

ActAsCaller::~ActAsCaller() {
  if (!Become(uid_, gid_)) std::abort();
}

}  // namespace rb::controller
