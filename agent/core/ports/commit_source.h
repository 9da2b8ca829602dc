#ifndef RB_AGENT_CORE_PORTS_COMMIT_SOURCE_H_
#define RB_AGENT_CORE_PORTS_COMMIT_SOURCE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "agent/core/ports/snapshot_source.h"

namespace rb::agent {

struct Commit {
  // 40 hexadecimal digits.
  std::string id;
  // Newest tag that names exactly this commit; empty when there is none.
  std::string version;
  absl::Time committed_at;
  // First line of its message.
  std::string subject;
};

// Commits that this host can go to without any network: its own bare mirror. One caller at a time.
class CommitSource {
 public:
  virtual ~CommitSource() = default;
  // Brings the mirror up to date. The mirror stays usable when it fails.
  virtual absl::Status Fetch() = 0;
  // A full id, an unambiguous prefix of at least 4 digits, a tag, or the branch's name. NOT_FOUND; INVALID_ARGUMENT
  // when a prefix is ambiguous, naming the commits.
  virtual absl::StatusOr<Commit> Resolve(absl::string_view reference) = 0;
  // The newest `limit` commits of the branch, newest first.
  virtual absl::StatusOr<std::vector<Commit>> Recent(size_t limit) = 0;
  virtual absl::StatusOr<std::unique_ptr<SnapshotSource>> Open(const std::string& commit_id) = 0;
  // For bringing the tree there. Where the tree is itself a clone, the snapshot holds what makes its HEAD and index
  // follow as well; `from_commit` is what the tree is at, or "".
  virtual absl::StatusOr<std::unique_ptr<SnapshotSource>> OpenForTree(const std::string& commit_id,
                                                                      const std::string& from_commit) {
    static_cast<void>(from_commit);
    return Open(commit_id);
  }
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_COMMIT_SOURCE_H_
