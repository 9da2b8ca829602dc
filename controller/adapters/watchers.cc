#include "controller/adapters/watchers.h"

#include <algorithm>
#include <utility>

#include "common/status.h"

namespace rb::controller {

absl::StatusOr<uint64_t> Watchers::Add(const std::string& operation_id, uint64_t after_sequence, Watcher watcher) {
  if (entries_.size() >= kMostWatchers) return absl::ResourceExhaustedError("too many are watching");
  RB_ASSIGN_OR_RETURN(const View view, look_(operation_id));
  Entry entry;
  entry.operation_id = operation_id;
  entry.watcher = std::move(watcher);
  entry.sequence = after_sequence;
  ++watched_[operation_id].watchers;
  const uint64_t number = next_++;
  Entry& kept = entries_[number] = std::move(entry);
  if (!Serve(&kept, view)) {
    Remove(number);
    return 0;
  }
  if (kept.busy) TickLater();
  return number;
}

void Watchers::Remove(uint64_t number) {
  const auto entry = entries_.find(number);
  if (entry == entries_.end()) return;
  const auto watched = watched_.find(entry->second.operation_id);
  if (watched != watched_.end() && --watched->second.watchers == 0) watched_.erase(watched);
  entries_.erase(entry);
}

void Watchers::Touch(const std::string& operation_id, const std::string& host) {
  const auto watched = watched_.find(operation_id);
  if (watched == watched_.end()) return;
  ++watched->second.version;
  if (!host.empty()) watched->second.hosts[host] = watched->second.version;
  touched_.insert(operation_id);
  TickLater();
}

void Watchers::End(const std::string& operation_id) {
  touched_.erase(operation_id);
  ServeAll(operation_id);
}

void Watchers::TickLater() {
  if (ticking_) return;
  ticking_ = true;
  loop_.PostAt(clock_.Monotonic() + kTick, [this] {
    ticking_ = false;
    Tick();
  });
}

void Watchers::Tick() {
  for (const auto& [number, entry] : entries_) {
    if (entry.busy) touched_.insert(entry.operation_id);
  }
  for (const std::string& id : std::exchange(touched_, {})) ServeAll(id);
}

void Watchers::ServeAll(const std::string& operation_id) {
  if (watched_.find(operation_id) == watched_.end()) return;
  const absl::StatusOr<View> view = look_(operation_id);
  bool any_busy = false;
  std::vector<uint64_t> over;
  for (auto& [number, entry] : entries_) {
    if (entry.operation_id != operation_id) continue;
    // It cannot be read now; whoever asks anew is told why.
    if (view.ok() && Serve(&entry, *view)) {
      any_busy = any_busy || entry.busy;
    } else if (view.ok()) {
      over.push_back(number);
    } else {
      any_busy = entry.busy = true;
    }
  }
  for (const uint64_t number : over) Remove(number);
  if (any_busy) TickLater();
}

bool Watchers::Serve(Entry* entry, const View& view) {
  const Watched& watched = watched_[entry->operation_id];
  const std::vector<v1::OperationEvent>& history = *view.history;
  entry->busy = false;
  while (true) {
    const auto first = std::upper_bound(
        history.begin(), history.end(), entry->sequence,
        [](uint64_t sequence, const v1::OperationEvent& event) { return sequence < event.sequence(); });
    const auto left = static_cast<size_t>(history.end() - first);
    const size_t count = std::min(left, kMostEventsInOne);
    const bool is_newest = count == left;
    const bool is_last = is_newest && view.ended;
    if (count == 0 && entry->told_whole && entry->version == watched.version && !is_last) return true;
    v1::WatchOperationResponse update;
    if (count == 1) *update.mutable_event() = *first;
    if (count > 1) {
      update.mutable_events()->Add(first, first + static_cast<std::ptrdiff_t>(count));
    }
    if (!entry->told_whole || is_last) {
      *update.mutable_operation() = view.show(nullptr);
      update.set_is_whole(true);
    } else {
      std::set<std::string> changed;
      for (const auto& [host, version] : watched.hosts) {
        if (version > entry->version) changed.insert(host);
      }
      *update.mutable_operation() = view.show(&changed);
    }
    switch (entry->watcher(std::move(update), is_last)) {
      case Taken::kGone:
        return false;
      case Taken::kBusy:
        entry->busy = true;
        return true;
      case Taken::kYes:
        break;
    }
    entry->told_whole = true;
    entry->version = watched.version;
    if (count > 0) entry->sequence = (first + static_cast<std::ptrdiff_t>(count) - 1)->sequence();
    if (is_last) return false;
  }
}

}  // namespace rb::controller
