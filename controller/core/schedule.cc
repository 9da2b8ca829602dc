#include "controller/core/schedule.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/digest.h"

namespace rb::controller {
namespace {

constexpr absl::Duration kBelieved = absl::Hours(24);
// Of an every-minute schedule that is a week.
constexpr uint32_t kMostMissed = 10080;

}  // namespace

absl::Duration JitterOf(const ScheduleEntry& entry, absl::Time due) {
  const int64_t most = absl::ToInt64Seconds(entry.jitter);
  if (most <= 0) return absl::ZeroDuration();
  const std::string hex = Sha256Of(absl::StrCat(entry.name, "/", absl::ToUnixSeconds(due))).ToHex();
  uint64_t number = 0;
  for (size_t i = 0; i < 15; ++i) {
    const char c = hex[i];
    number = number * 16 + static_cast<uint64_t>(c <= '9' ? c - '0' : c - 'a' + 10);
  }
  return absl::Seconds(static_cast<int64_t>(number % static_cast<uint64_t>(most + 1)));
}

absl::Time BeginOf(const ScheduleEntry& entry, absl::Time due) {
  const absl::Time begin = due + JitterOf(entry, due);
  if (entry.windows.empty() || IsOpen(entry.windows, begin)) return begin;
  return NextOpening(entry.windows, begin);
}

ScheduleDecision DecideSchedule(const ScheduleEntry& entry, const Cron& cron, absl::Time last_due, absl::Time now) {
  if (last_due > now + kBelieved) last_due = now;
  ScheduleDecision decision;
  absl::Time due = NextAfter(cron, last_due);
  while (due != absl::InfiniteFuture() && due <= now && BeginOf(entry, due) <= now && decision.missed < kMostMissed) {
    if (decision.due.has_value()) ++decision.missed;
    decision.due = due;
    due = NextAfter(cron, due);
  }
  if (decision.due.has_value()) decision.is_late = now - BeginOf(entry, *decision.due) > kOnTime;
  if (due != absl::InfiniteFuture()) decision.next = std::max(now, BeginOf(entry, due));
  return decision;
}

}  // namespace rb::controller
