// Begins what is due, and keeps what came of it.
#ifndef RB_CONTROLLER_ADAPTERS_SCHEDULES_H_
#define RB_CONTROLLER_ADAPTERS_SCHEDULES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/adapters/metrics/metric_set.h"
#include "common/clock.h"
#include "common/event_loop.h"
#include "controller/adapters/drill_store.h"
#include "controller/adapters/drills.h"
#include "controller/adapters/driver.h"
#include "controller/core/fleet.h"
#include "controller/core/schedule.h"
#include "rb/v1/drill_service.pb.h"

namespace rb::controller {

// All methods are called on the loop.
class Schedules {
 public:
  // Nothing is owned; `fleet` is copied.
  Schedules(Fleet fleet, DrillStore& store, Driver& driver, Drills& drills, EventLoop& loop, Clock& clock);

  // Reads what is on record, and goes on looking at the clock from then on.
  absl::Status Resume();
  v1::ListSchedulesResponse List() const;
  // As they are now.
  void Measure(MetricSamples* samples) const;

 private:
  struct Entry {
    ScheduleEntry entry;
    Cron cron;
    ScheduleRun last;
    // Of the run under way.
    std::vector<std::string> operations;
    std::string drill;
    size_t waiting = 0;
    // Its run was under way when an earlier controller ended, and is to be taken up again.
    bool resumes = false;
    std::string problem;
    // Since the start: runs that did not begin when they were due.
    uint64_t missed = 0;
  };

  void Look();
  void BeginDue(Entry* one);
  void Execute(const std::string& name);
  // Whether it is known how its hosts are, or has been waited for that for long enough.
  bool HostsAreKnown(const Entry& one) const;
  void SeeEnds(Entry* one);
  void End(Entry* one, const std::string& outcome, const std::string& message);
  bool IsOverdue(const Entry& one) const;

  const Fleet fleet_;
  DrillStore& store_;
  Driver& driver_;
  Drills& drills_;
  EventLoop& loop_;
  Clock& clock_;
  std::map<std::string, Entry> entries_;
  absl::Duration began_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_SCHEDULES_H_
