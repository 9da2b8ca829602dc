// Time as a seam: durations from the monotonic clock, records in UTC. Nothing else in this project reads a clock.
#ifndef RB_COMMON_CLOCK_H_
#define RB_COMMON_CLOCK_H_

#include <string>

#include "absl/time/time.h"
#include "common/mutex.h"

namespace rb {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // UTC, for records only: it may jump either way.
  virtual absl::Time Now() = 0;
  // Since an arbitrary moment, for durations and deadlines: never goes back, counts suspended time (CLOCK_BOOTTIME).
  // Not comparable between machines or boots.
  virtual absl::Duration Monotonic() = 0;
  // Blocks the calling thread. Only for polling something outside that cannot notify us.
  virtual void Sleep(absl::Duration duration) = 0;
};

// The machine's clocks. Never destroyed.
Clock& SystemClock();

// Moves only when told; Sleep advances it at once.
class FakeClock final : public Clock {
 public:
  explicit FakeClock(absl::Time now = absl::UnixEpoch()) : now_(now) {}
  absl::Time Now() override;
  absl::Duration Monotonic() override;
  void Sleep(absl::Duration duration) override { Advance(duration); }
  // Moves both clocks forward.
  void Advance(absl::Duration duration);
  // Jumps the UTC clock alone, as a person or an NTP step does.
  void SetNow(absl::Time now);

 private:
  Mutex mutex_;
  absl::Time now_ ABSL_GUARDED_BY(mutex_);
  absl::Duration monotonic_ ABSL_GUARDED_BY(mutex_) = absl::Hours(1);
};

// "2026-11-23T03:14:07Z".
std::string FormatUtc(absl::Time time);

}  // namespace rb

#endif  // RB_COMMON_CLOCK_H_
