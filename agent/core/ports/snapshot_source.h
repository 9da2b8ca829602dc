#ifndef RB_AGENT_CORE_PORTS_SNAPSHOT_SOURCE_H_
#define RB_AGENT_CORE_PORTS_SNAPSHOT_SOURCE_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb::agent {

// A tree that does not lie on the disk as a tree: a commit of a git mirror. The engine imports it into the store, so
// that everything behind is the same for every source.
class SnapshotSource {
 public:
  struct Entry {
    // Relative, no "." or "..". Nothing of a commit begins with ".git/": what does comes from
    // CommitSource::OpenForTree. Folders are implied by the paths below them.
    std::string path;
    enum class Type { kFile, kExecutable, kSymlink } type = Type::kFile;
    // What identifies the content in the source (a blob's object id); equal ids have equal content.
    std::string content_id;
    uint64_t size = 0;
  };

  virtual ~SnapshotSource() = default;
  // Calls `visit` for each entry, sorted by path; stops at the first error and returns it.
  virtual absl::Status ForEach(const std::function<absl::Status(const Entry&)>& visit) = 0;
  // The content of a file, or the target of a link.
  virtual absl::Status Read(const std::string& content_id, std::string* content) = 0;
  // The time given to files whose content differs from what is live (the commit's time).
  virtual absl::Time ModificationTime() = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_SNAPSHOT_SOURCE_H_
