// Requests that stand in line for a lock that another operation holds.
#ifndef RB_CONTROLLER_ADAPTERS_LOCK_QUEUE_H_
#define RB_CONTROLLER_ADAPTERS_LOCK_QUEUE_H_

#include <functional>
#include <list>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/event_loop.h"
#include "controller/adapters/store.h"
#include "controller/core/plan.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// What comes of a request to begin an operation.
struct StartAnswer {
  absl::Status status;  // of the request itself
  Refusal refusal;
  v1::Operation operation;
};

struct StartRequest {
  OperationSpec spec;
  std::string by;
  std::string idempotency_key;
  // How long it stands in line; monotonic.
  absl::Duration until;
  bool was_first = false;
  // A rehearsal was asked to make room for it.
  bool gave_way = false;
  // Whoever asked is gone. May be empty.
  std::function<bool()> is_given_up;
  std::function<void(StartAnswer)> done;
};

// First come, first served, for each lock. All methods are called on the loop.
class LockQueue {
 public:
  // Nothing is owned. `try_to_start` gets those whose turn it is, or whose time is over.
  LockQueue(Store& store, EventLoop& loop, Clock& clock, std::function<void(StartRequest)> try_to_start)
      : store_(store), loop_(loop), clock_(clock), try_to_start_(std::move(try_to_start)) {}

  bool full() const;
  size_t size() const { return queue_.size(); }
  // One that was first before is first again.
  void Add(StartRequest request);
  // Called whenever a lock may have become free; looks by itself from time to time, too.
  void Serve();

 private:
  void LookLater();

  Store& store_;
  EventLoop& loop_;
  Clock& clock_;
  const std::function<void(StartRequest)> try_to_start_;
  // In the order in which they came.
  std::list<StartRequest> queue_;
  bool timer_ = false;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_LOCK_QUEUE_H_
