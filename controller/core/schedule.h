// When what is done again and again is due. Pure: the same file, the same last run and the same clock give the same.
#ifndef RB_CONTROLLER_CORE_SCHEDULE_H_
#define RB_CONTROLLER_CORE_SCHEDULE_H_

#include <cstdint>
#include <optional>

#include "absl/time/time.h"
#include "controller/core/cron.h"
#include "controller/core/fleet.h"

namespace rb::controller {

// Between zero and entry.jitter, the same for the same schedule and time, so that a restart does not draw anew.
absl::Duration JitterOf(const ScheduleEntry& entry, absl::Time due);
// When a run that is due then begins: with its jitter, in a window.
absl::Time BeginOf(const ScheduleEntry& entry, absl::Time due);

struct ScheduleDecision {
  // The run that is due now, by its due time; earlier ones that were missed are not done one by one.
  std::optional<absl::Time> due;
  // How many that were due before it have been missed.
  uint32_t missed = 0;
  // It is late: nobody looked when it should have begun.
  bool is_late = false;
  // When the next one begins that is not due yet.
  absl::Time next = absl::InfiniteFuture();
};

// `last_due`: of the newest run on record, or when the schedule was first seen. One that lies in the future (the clock
// was moved back) is believed for a day: nothing runs twice; one further ahead was a wrong clock.
ScheduleDecision DecideSchedule(const ScheduleEntry& entry, const Cron& cron, absl::Time last_due, absl::Time now);

// Later than this is late.
inline constexpr absl::Duration kOnTime = absl::Minutes(5);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_SCHEDULE_H_
