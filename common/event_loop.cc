#include "common/event_loop.h"

namespace rb {

EventLoop::EventLoop(Clock& clock, size_t capacity) : clock_(clock), capacity_(capacity) {}

EventLoop::~EventLoop() { Stop(); }

void EventLoop::Start() {
  thread_ = std::thread([this] { Run(); });
}

void EventLoop::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    ready_.clear();
    timers_.clear();
  }
  changed_.NotifyAll();
  if (thread_.joinable()) thread_.join();
}

bool EventLoop::Post(Task task) {
  {
    MutexLock lock(mutex_);
    if (stopping_ || ready_.size() >= capacity_) return false;
    ready_.push_back(std::move(task));
  }
  changed_.NotifyOne();
  return true;
}

void EventLoop::PostResult(Task task) {
  {
    MutexLock lock(mutex_);
    if (stopping_) return;
    ready_.push_back(std::move(task));
  }
  changed_.NotifyOne();
}

void EventLoop::PostAt(absl::Duration when, Task task) {
  {
    MutexLock lock(mutex_);
    if (stopping_) return;
    timers_.emplace(std::make_pair(when, next_timer_++), std::move(task));
  }
  changed_.NotifyOne();
}

bool EventLoop::TakeReady(Task* task) {
  if (!timers_.empty() && timers_.begin()->first.first <= clock_.Monotonic()) {
    *task = std::move(timers_.begin()->second);
    timers_.erase(timers_.begin());
    return true;
  }
  if (ready_.empty()) return false;
  *task = std::move(ready_.front());
  ready_.pop_front();
  return true;
}

size_t EventLoop::depth() {
  MutexLock lock(mutex_);
  return ready_.size();
}

size_t EventLoop::RunReady() {
  for (size_t count = 0;; ++count) {
    Task task;
    {
      MutexLock lock(mutex_);
      if (stopping_ || !TakeReady(&task)) return count;
    }
    task();
  }
}

void EventLoop::Run() {
  while (true) {
    Task task;
    {
      MutexLock lock(mutex_);
      while (!stopping_ && !TakeReady(&task)) {
        if (timers_.empty()) {
          changed_.Wait(mutex_);
        } else {
          changed_.WaitFor(mutex_, timers_.begin()->first.first - clock_.Monotonic());
        }
      }
      if (stopping_) return;
    }
    task();
  }
}

}  // namespace rb
