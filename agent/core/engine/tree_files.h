// System calls on a tree whose owner may be an enemy: everything is opened beneath a handle, without following links.
#ifndef RB_AGENT_CORE_ENGINE_TREE_FILES_H_
#define RB_AGENT_CORE_ENGINE_TREE_FILES_H_

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "agent/core/engine/manifest.h"
#include "common/unique_fd.h"

namespace rb::agent {

// Test seam: called before each call that changes something, with its name and path. Returns 0 to go on, an errno to
// fail with, or does not return. Null outside tests. Not thread-safe: set before anything runs.
void SetFileFaultForTest(std::function<int(const char* call, const std::string& path)> fault);

// Opens the folder at `path` ("" is the handle's own) beneath `root`, however long the path is. Never through a link, a
// mount or "..".
absl::StatusOr<UniqueFd> OpenFolderBeneath(int root, absl::string_view path);

// An open parent folder and a name in it.
struct Place {
  UniqueFd parent;
  std::string name;
};
absl::StatusOr<Place> LocateBeneath(int root, absl::string_view path);

struct FileIdentity {
  bool exists = false;
  uint64_t inode = 0;
  int64_t ctime_ns = 0;
  uint32_t type_and_mode = 0;
};
// exists=false when it, or its parent, is not there.
absl::StatusOr<FileIdentity> IdentifyBeneath(int root, absl::string_view path);

// Attributes of what `fd` refers to (open, or O_PATH), with its extended attributes.
absl::StatusOr<Attributes> ReadAttributes(int fd, const struct stat& info, const std::string& path_for_errors);
// Attributes without any extended ones.
Attributes PlainAttributes(const struct stat& info);
// Owner, then mode, then extended attributes, then times: each of the earlier ones can undo a later one (chown clears
// setuid and capabilities). `name` beneath `parent` is not followed if it is a link. ABORTED when it is of another
// type.
absl::Status ApplyAttributes(int parent, const std::string& name, EntryType type, const Attributes& attributes,
                             const std::string& path_for_errors);

// The same for a file that this process has just made with the mode 0600 in a folder without a default ACL, open for
// writing: nothing of it has to be looked at or removed first.
absl::Status ApplyAttributesToNewFile(int fd, const Attributes& attributes, const std::string& path_for_errors);
// The modification time of what `fd` is open on: `path`, for errors, as it is, since hundreds are set while the service
// is stopped. "" is the tree's root.
absl::Status SetTime(int fd, int64_t mtime_ns, const std::string& path);

// rename of `from` beneath one folder to `to` beneath another. `exchange`: both have to be there; else `to` must not
// be. `path` is for errors, as it is.
absl::Status RenameBeneath(int from_parent, const std::string& from, int to_parent, const std::string& to,
                           bool exchange, const std::string& path);

// Names in an open folder, sorted, without "." and "..".
absl::StatusOr<std::vector<std::string>> ListFolder(int folder);
// The same by path.
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path);

absl::Status MakeFolderAt(int parent, const std::string& name, mode_t mode, const std::string& path_for_errors);
absl::StatusOr<UniqueFd> CreateFileAt(int parent, const std::string& name, const std::string& path_for_errors);
absl::Status WriteToFile(int fd, absl::string_view data, const std::string& path_for_errors);
absl::Status SyncFd(int fd, const std::string& path_for_errors);
// syncfs: all that was written to the filesystem `fd` lies on.
absl::Status SyncFilesystem(int fd, const std::string& path_for_errors);
// Asks the fault hook on behalf of a call that is made elsewhere.
absl::Status CheckFault(const char* call, const std::string& path);

// Removes a folder and all in it, without following links or crossing into other filesystems. One that is not there is
// fine.
absl::Status RemoveTreeAt(int parent, const std::string& name);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_TREE_FILES_H_
