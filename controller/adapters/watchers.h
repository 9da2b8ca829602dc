// Those who watch operations; they come and go.
#ifndef RB_CONTROLLER_ADAPTERS_WATCHERS_H_
#define RB_CONTROLLER_ADAPTERS_WATCHERS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// All methods are called on the loop, and all callbacks run on it.
class Watchers {
 public:
  // Returns false when it cannot take more; it is then dropped.
  using Watcher = std::function<bool(const v1::WatchOperationResponse& update, bool is_last)>;

  // Calls `watcher` for what was after `after_sequence`, then (while `is_running`) for what comes. Returns a number for
  // Remove; 0 when everything was told.
  absl::StatusOr<uint64_t> Add(const v1::Operation& operation, const std::vector<v1::OperationEvent>& history,
                               bool is_running, uint64_t after_sequence, Watcher watcher);
  void Remove(uint64_t number) { entries_.erase(number); }
  bool Any(const std::string& operation_id) const;
  // Tells what is new in `history` from `first_new` on, and the operation as it is now. After `ended` nothing follows.
  void Tell(const v1::Operation& operation, const std::vector<v1::OperationEvent>& history, size_t first_new,
            bool ended);

 private:
  struct Entry {
    std::string operation_id;
    Watcher watcher;
  };
  std::map<uint64_t, Entry> entries_;
  uint64_t next_ = 1;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_WATCHERS_H_
