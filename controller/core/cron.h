// Cron expressions: "minute hour day-of-month month day-of-week", in UTC.
#ifndef RB_CONTROLLER_CORE_CRON_H_
#define RB_CONTROLLER_CORE_CRON_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb::controller {

// Each bit is a value that fits.
struct Cron {
  uint64_t minutes = 0;
  uint64_t hours = 0;
  uint64_t days = 0;      // 1 to 31
  uint64_t months = 0;    // 1 to 12
  uint64_t weekdays = 0;  // Sunday is 0
  // "*": where both days are given, one that fits is enough, as cron has it.
  bool any_day = true;
  bool any_weekday = true;
};

// Lists, ranges, steps and names ("*/15 2-4 1,15 jan-mar mon-fri"), and @hourly, @daily, @weekly, @monthly, @yearly.
// Sunday is 0 or 7. False, and why, for anything else.
bool ParseCron(absl::string_view text, Cron* cron, std::string* problem);

// The first minute after `after` that fits; InfiniteFuture when there is none in the next ten years ("0 0 30 2 *").
absl::Time NextAfter(const Cron& cron, absl::Time after);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_CRON_H_
