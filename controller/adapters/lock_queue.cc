#include "controller/adapters/lock_queue.h"

#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "controller/adapters/planning.h"

namespace rb::controller {
namespace {

constexpr size_t kMostQueued = 100;
// Whoever has given up is noticed by then.
constexpr absl::Duration kLook = absl::Seconds(1);

}  // namespace

bool LockQueue::full() const { return queue_.size() >= kMostQueued; }

void LockQueue::Add(StartRequest request) {
  // Whoever stood in it before keeps the place.
  const auto place = request.was_first ? queue_.begin() : queue_.end();
  queue_.insert(place, std::move(request));
  LookLater();
}

void LockQueue::LookLater() {
  if (queue_.empty() || timer_) return;
  timer_ = true;
  loop_.PostAt(clock_.Monotonic() + kLook, [this] {
    timer_ = false;
    Serve();
    LookLater();
  });
}

void LockQueue::Serve() {
  std::set<std::string> served;
  std::list<StartRequest> go;
  for (auto request = queue_.begin(); request != queue_.end();) {
    const bool is_over = clock_.Monotonic() >= request->until || (request->is_given_up && request->is_given_up());
    std::string environment;
    const absl::StatusOr<std::string> holder = LockHolder(store_, request->spec, &environment);
    bool is_first = true;
    for (const std::string& one : EnvironmentsOf(request->spec)) {
      is_first = served.insert(absl::StrCat(request->spec.service, "/", one)).second && is_first;
    }
    const auto next = std::next(request);
    if (is_over || (is_first && holder.ok() && holder->empty())) go.splice(go.end(), queue_, request);
    request = next;
  }
  for (StartRequest& request : go) {
    request.was_first = true;
    try_to_start_(std::move(request));
  }
}

}  // namespace rb::controller
