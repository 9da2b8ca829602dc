// Commands that root types on the controller's host work in a folder that the service's own user can write: they do it
// as that user, so that no file is left that the service cannot read, and no link planted there leads root anywhere.
#ifndef RB_CONTROLLER_ADAPTERS_FOLDER_OWNER_H_
#define RB_CONTROLLER_ADAPTERS_FOLDER_OWNER_H_

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"

namespace rb::controller {

// Until it is destroyed, the process acts as the owner of `folder`, when it is root and somebody else owns it. Else, or
// when there is no such folder, nothing changes. While there is one thread alone.
class ActAsOwner {
 public:
  explicit ActAsOwner(const std::string& folder);
  ~ActAsOwner();
  ActAsOwner(const ActAsOwner&) = delete;
  ActAsOwner& operator=(const ActAsOwner&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  bool switched_ = false;
  absl::Status status_;
};

// Within it: as whoever typed the command again, for files of theirs.
class ActAsCaller {
 public:
  ActAsCaller();
  ~ActAsCaller();
  ActAsCaller(const ActAsCaller&) = delete;
  ActAsCaller& operator=(const ActAsCaller&) = delete;

 private:
  const uid_t uid_;
  const gid_t gid_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_FOLDER_OWNER_H_
