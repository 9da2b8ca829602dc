// Makes a commit whose files are those of a good one, on top of a branch, and pushes it: for deploy workflows that
// deploy whatever is pushed and take no commit as an input.
#ifndef RB_CONTROLLER_ADAPTERS_CI_REVERT_PUSHER_H_
#define RB_CONTROLLER_ADAPTERS_CI_REVERT_PUSHER_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "controller/core/ports/ci.h"
#include "rb/v1/fleet_config.pb.h"

namespace rb::controller {

struct RevertPushed {
  // The new commit, 40 hexadecimal digits.
  std::string commit;
  // Where it was pushed to: the configured branch, or one of its own for a pull request.
  std::string branch;
};

// Not thread-safe. Nothing is ever forced: a branch that moves meanwhile makes it UNAVAILABLE, to be tried again.
class RevertPusher {
 public:
  // `folder`: of a bare repository that this object keeps; made when missing.
  RevertPusher(std::string folder, const v1::RevertConfig& config) : folder_(std::move(folder)), config_(config) {}

  // Of one key there is one commit: where it was pushed before, that one is given. FAILED_PRECONDITION when the commit
  // is not in the repository, or the branch has its files already.
  absl::StatusOr<RevertPushed> Push(const CiRequest& request);
  // OK when the remote can be read with what is configured.
  absl::Status Check();

  std::string branch() const { return config_.branch().empty() ? "main" : config_.branch(); }

 private:
  const std::string folder_;
  const v1::RevertConfig config_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_CI_REVERT_PUSHER_H_
