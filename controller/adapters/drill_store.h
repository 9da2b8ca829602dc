// What the controller keeps of drills and schedules: tables of their own in its SQLite file.
#ifndef RB_CONTROLLER_ADAPTERS_DRILL_STORE_H_
#define RB_CONTROLLER_ADAPTERS_DRILL_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

struct sqlite3;

namespace rb::controller {

struct StoredDrill {
  std::string id;
  std::string environment;
  std::string service;
  bool ended = false;
  // rb.v1.Drill, as it is after the last event.
  std::string snapshot;
};

// One run of a schedule. `due_at` without its jitter: a run is known by it, and there is no second one.
struct ScheduleRun {
  std::string schedule;
  absl::Time due_at;
  absl::Time began_at;
  // "running", "done", "failed", "refused" or "missed".
  std::string outcome;
  std::string message;
};

// On the loop alone. Everything is durable when a call returns OK.
class DrillStore {
 public:
  static absl::StatusOr<std::unique_ptr<DrillStore>> Open(const std::string& path);
  ~DrillStore();
  DrillStore(const DrillStore&) = delete;
  DrillStore& operator=(const DrillStore&) = delete;

  // Appends an event and replaces the snapshot, in one transaction. ALREADY_EXISTS when the key was used before.
  absl::Status AppendEvent(const StoredDrill& drill, uint64_t sequence, absl::string_view event,
                           const std::string& idempotency_key);
  absl::StatusOr<std::vector<std::string>> Events(const std::string& id);
  // By id or unambiguous prefix. NOT_FOUND, INVALID_ARGUMENT.
  absl::StatusOr<StoredDrill> Find(const std::string& id_or_prefix);
  // Empty when the key is not known.
  absl::StatusOr<std::string> DrillOfKey(const std::string& idempotency_key);
  // Newest first. Empty environment or service: all.
  absl::StatusOr<std::vector<StoredDrill>> List(const std::string& environment, const std::string& service,
                                                size_t limit);
  absl::StatusOr<std::vector<std::string>> Unfinished();

  // ALREADY_EXISTS when this run has begun before: it is not to begin again.
  absl::Status BeginRun(const ScheduleRun& run);
  absl::Status EndRun(const ScheduleRun& run);
  // The newest of each schedule, by due_at.
  absl::StatusOr<std::vector<ScheduleRun>> LastRuns();

 private:
  explicit DrillStore(sqlite3* database) : database_(database) {}
  sqlite3* const database_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DRILL_STORE_H_
