// Commits from the agent's own bare mirror of a git repository: no network is needed to go to what was fetched once.
#ifndef RB_AGENT_ADAPTERS_GIT_GIT_MIRROR_H_
#define RB_AGENT_ADAPTERS_GIT_GIT_MIRROR_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "agent/core/ports/commit_source.h"
#include "common/clock.h"

struct git_repository;

namespace rb::agent {

// The mirror is <state>/mirrors/<service>.git, made by the first Open. Nothing of the service's tree is read, and no
// hook, filter, submodule or configuration of anyone else takes part: a commit is its blobs. Objects are never removed
// from the mirror, so a commit stays reachable by its id after a forced push upstream.
class GitMirror final : public CommitSource {
 public:
  struct Options {
    std::string service;
    // file://, https:// or ssh://. Host keys are checked against the agent user's known_hosts.
    std::string remote;
    std::string branch = "main";
    std::string state_folder;
    // Of the service; "": no clone is looked for.
    std::string tree;
    // Fetch gives up after this (where libgit2 lets us: connecting is bounded by TCP alone).
    absl::Duration fetch_timeout = absl::Minutes(5);
  };

  static absl::StatusOr<std::unique_ptr<GitMirror>> Create(Options options, Clock& clock);
  ~GitMirror() override;

  // Whether the remote answers and lets us in. Changes nothing; may take as long as TCP does.
  static absl::Status Reach(const std::string& remote);
  // When the service's mirror was last brought up to date; absl::InfinitePast() if never.
  static absl::Time FetchedAt(const std::string& state_folder, const std::string& service);

  // All branches and tags; moved tags are moved, removed ones removed.
  absl::Status Fetch() override;
  absl::StatusOr<Commit> Resolve(absl::string_view reference) override;
  absl::StatusOr<std::vector<Commit>> Recent(size_t limit) override;
  // FAILED_PRECONDITION from ForEach for a commit with submodules, naming them, and for names that must not be written
  // ("..", ".git"). The snapshot may outlive the mirror; one caller at a time.
  absl::StatusOr<std::unique_ptr<SnapshotSource>> Open(const std::string& commit_id) override;
  absl::StatusOr<std::unique_ptr<SnapshotSource>> OpenForTree(const std::string& commit_id,
                                                              const std::string& from_commit) override;

 private:
  GitMirror(Options options, Clock& clock, std::string path, git_repository* repository);

  const Options options_;
  Clock& clock_;
  const std::string path_;
  git_repository* const repository_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_GIT_GIT_MIRROR_H_
