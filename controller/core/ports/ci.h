// What can deploy a commit to every host of an environment: the fleet's CI. Adapters: controller/adapters/ci.
#ifndef RB_CONTROLLER_CORE_PORTS_CI_H_
#define RB_CONTROLLER_CORE_PORTS_CI_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace rb::controller {

struct CiRequest {
  // The same request has the same key, also after a restart of the controller: of one key there is one run.
  std::string key;
  std::string service;
  std::string environment;
  // 40 hexadecimal digits.
  std::string commit;
  // Its tag; empty when there is none.
  std::string version;
  std::string reason;
  // UTC. The run that was made for it was not made before.
  absl::Time asked_at;
};

struct CiRunHandle {
  // What the provider calls it.
  std::string id;
  // For people; may be empty.
  std::string url;
  // A revert commit, with the files of the one that was asked for; empty: that one itself.
  std::string deployed_commit;
};

struct CiRunStatus {
  enum class State { kQueued, kRunning, kSucceeded, kFailed, kCancelled };
  State state = State::kQueued;
  // For people: what it does now, or why it failed. One line; no secrets.
  std::string text;

  bool ended() const { return state != State::kQueued && state != State::kRunning; }
};

// Methods block, for a bounded time, and may be called from several threads. Errors:
//   UNAVAILABLE: not now; worth trying again, after RetryAfter(status) where that is known. From Dispatch with such a
//   wait: nothing was begun; without: a run may have been begun all the same.
//   all others: no use in trying again; the message says what to mend. No message ever holds a secret.
class CiProvider {
 public:
  virtual ~CiProvider() = default;
  // Whether it could be asked now: reachable, the token valid, the workflow there and not disabled. Changes nothing.
  virtual absl::Status Check() = 0;
  // The run that was begun for the request's key, by this process or one before it; nullopt when none is known (yet).
  virtual absl::StatusOr<std::optional<CiRunHandle>> Find(const CiRequest& request) = 0;
  // Begins a run. nullopt: it was begun, and Find will tell it before long.
  virtual absl::StatusOr<std::optional<CiRunHandle>> Dispatch(const CiRequest& request) = 0;
  virtual absl::StatusOr<CiRunStatus> Look(const CiRequest& request, const CiRunHandle& run) = 0;
  // Dispatch gives the run that was begun for the same key before, and never begins another.
  virtual bool IsIdempotent() const { return false; }
  // Asks the run to stop; Look says when it has. OK when it has ended already.
  virtual absl::Status Cancel(const CiRequest& request, const CiRunHandle& run) = 0;
};

// How long to wait before trying again, where the provider said so; zero where it did not.
absl::Duration RetryAfter(const absl::Status& status);
absl::Status WithRetryAfter(absl::Status status, absl::Duration wait);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_PORTS_CI_H_
