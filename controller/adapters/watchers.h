// Those who watch operations; they come and go, and may be slow: what happens meanwhile is told in one message then.
#ifndef RB_CONTROLLER_ADAPTERS_WATCHERS_H_
#define RB_CONTROLLER_ADAPTERS_WATCHERS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/event_loop.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// All methods are called on the loop, and all callbacks run on it.
class Watchers {
 public:
  enum class Taken {
    kYes,
    // Later: it has not sent yet what it has.
    kBusy,
    kGone,
  };
  // The update is moved from when it is taken.
  using Watcher = std::function<Taken(v1::WatchOperationResponse&& update, bool is_last)>;

  // How an operation stands, for as long as `keep` is held.
  struct View {
    const std::vector<v1::OperationEvent>* history = nullptr;
    // With these hosts and without the plan; null: all of it.
    std::function<v1::Operation(const std::set<std::string>* hosts)> show;
    bool ended = false;
    std::shared_ptr<const void> keep;
  };
  using Look = std::function<absl::StatusOr<View>(const std::string& operation_id)>;

  // Nothing is owned.
  Watchers(EventLoop& loop, Clock& clock, Look look) : loop_(loop), clock_(clock), look_(std::move(look)) {}

  // Tells `watcher` what was after `after_sequence`, then what comes, until the operation has ended. Returns a number
  // for Remove; 0 when everything was told.
  absl::StatusOr<uint64_t> Add(const std::string& operation_id, uint64_t after_sequence, Watcher watcher);
  void Remove(uint64_t number);
  // The operation, or (with `host`) that host of it, has changed.
  void Touch(const std::string& operation_id, const std::string& host = "");
  // It has ended: what is left is told at once.
  void End(const std::string& operation_id);

  // So long changes are gathered before they are told.
  static constexpr absl::Duration kTick = absl::Milliseconds(100);
  static constexpr size_t kMostWatchers = 1000;
  static constexpr size_t kMostEventsInOne = 1000;

 private:
  struct Entry {
    std::string operation_id;
    Watcher watcher;
    // Of the last event that was told.
    uint64_t sequence = 0;
    // Of the last change that was told; see Watched.
    uint64_t version = 0;
    bool told_whole = false;
    bool busy = false;
  };
  struct Watched {
    uint64_t version = 1;
    // Host → the version in which it changed last.
    std::map<std::string, uint64_t> hosts;
    size_t watchers = 0;
  };

  // False when it is over for the entry: it is gone, or was told everything.
  bool Serve(Entry* entry, const View& view);
  void ServeAll(const std::string& operation_id);
  void Tick();
  void TickLater();

  EventLoop& loop_;
  Clock& clock_;
  const Look look_;
  std::map<uint64_t, Entry> entries_;
  std::map<std::string, Watched> watched_;
  std::set<std::string> touched_;
  bool ticking_ = false;
  uint64_t next_ = 1;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_WATCHERS_H_
