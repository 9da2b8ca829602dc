#include "controller/adapters/watchers.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace rb::controller {
namespace {

constexpr size_t kMostWatchers = 1000;

}  // namespace

absl::StatusOr<uint64_t> Watchers::Add(const v1::Operation& operation, const std::vector<v1::OperationEvent>& history,
                                       bool is_running, uint64_t after_sequence, Watcher watcher) {
  if (entries_.size() >= kMostWatchers) return absl::ResourceExhaustedError("too many are watching");
  bool told = false;
  for (size_t i = 0; i < history.size(); ++i) {
    if (history[i].sequence() <= after_sequence) continue;
    v1::WatchOperationResponse update;
    *update.mutable_event() = history[i];
    const bool is_newest = i + 1 == history.size();
    if (is_newest) *update.mutable_operation() = operation;
    told = is_newest;
    if (!watcher(update, is_newest && !is_running)) return 0;
  }
  if (!told) {
    v1::WatchOperationResponse update;
    *update.mutable_operation() = operation;
    if (!watcher(update, !is_running)) return 0;
  }
  if (!is_running) return 0;
  entries_[next_] = {operation.id(), std::move(watcher)};
  return next_++;
}

bool Watchers::Any(const std::string& operation_id) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const auto& entry) { return entry.second.operation_id == operation_id; });
}

void Watchers::Tell(const v1::Operation& operation, const std::vector<v1::OperationEvent>& history, size_t first_new,
                    bool ended) {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    if (entry->second.operation_id != operation.id()) {
      ++entry;
      continue;
    }
    bool alive = true;
    for (size_t i = first_new; alive && i < history.size(); ++i) {
      v1::WatchOperationResponse update;
      *update.mutable_event() = history[i];
      const bool is_newest = i + 1 == history.size();
      if (is_newest) *update.mutable_operation() = operation;
      alive = entry->second.watcher(update, is_newest && ended);
    }
    if (first_new >= history.size()) {
      v1::WatchOperationResponse update;
      *update.mutable_operation() = operation;
      alive = entry->second.watcher(update, ended);
    }
    entry = alive && !ended ? std::next(entry) : entries_.erase(entry);
  }
}

}  // namespace rb::controller
