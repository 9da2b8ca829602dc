#include "common/clock.h"

#include <ctime>

#include "absl/time/clock.h"

namespace rb {
namespace {

class RealClock final : public Clock {
 public:
  absl::Time Now() override { return absl::Now(); }
  absl::Duration Monotonic() override {
    timespec now{};
    clock_gettime(CLOCK_BOOTTIME, &now);
    return absl::DurationFromTimespec(now);
  }
  void Sleep(absl::Duration duration) override { absl::SleepFor(duration); }
};

}  // namespace

Clock& SystemClock() {
  static RealClock* const clock = new RealClock;
  return *clock;
}

absl::Time FakeClock::Now() {
  MutexLock lock(mutex_);
  return now_;
}

absl::Duration FakeClock::Monotonic() {
  MutexLock lock(mutex_);
  return monotonic_;
}

void FakeClock::Advance(absl::Duration duration) {
  MutexLock lock(mutex_);
  now_ += duration;
  monotonic_ += duration;
}

void FakeClock::SetNow(absl::Time now) {
  MutexLock lock(mutex_);
  now_ = now;
}

std::string FormatUtc(absl::Time time) { return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", time, absl::UTCTimeZone()); }

}  // namespace rb
