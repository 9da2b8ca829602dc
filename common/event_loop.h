// One thread that runs closures in order: the loop of both daemons. Everything that changes a daemon's state runs here,
// so state needs no locks; callbacks of gRPC, workers and timers only post.
#ifndef RB_COMMON_EVENT_LOOP_H_
#define RB_COMMON_EVENT_LOOP_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace rb {

// Post, PostAt and Stop are thread-safe.
class EventLoop {
 public:
  using Task = std::function<void()>;

  // `clock` is not owned. Starts no thread; call Start, or drive it by hand with RunReady in tests.
  EventLoop(Clock& clock, size_t capacity);
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Runs the loop on a thread of its own until Stop.
  void Start();
  // Ends the loop after the task that is running; what waits is dropped. Joins the thread. Not from the loop itself.
  void Stop();

  // Runs `task` on the loop. False when the loop is full or stopped: the caller pushes back on whoever asked.
  [[nodiscard]] bool Post(Task task);
  // As Post, for results of work that was admitted before and so is bounded already: not refused when full.
  void PostResult(Task task);
  // Runs `task` once the monotonic clock reaches `when`. From the loop's tasks and from other threads. Never refused:
  // callers bound their own timers.
  void PostAt(absl::Duration when, Task task);

  // How many tasks wait, without timers.
  size_t depth();

  // Runs what is ready now on the calling thread, timers included; returns how many ran.
  size_t RunReady();

 private:
  void Run();
  // Takes the next task that is ready, if any.
  bool TakeReady(Task* task) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Clock& clock_;
  const size_t capacity_;
  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_timer_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Task> ready_ ABSL_GUARDED_BY(mutex_);
  // Ordered by time, then by the order of posting.
  std::map<std::pair<absl::Duration, uint64_t>, Task> timers_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace rb

#endif  // RB_COMMON_EVENT_LOOP_H_
