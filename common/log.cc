#include "common/log.h"

#include <unistd.h>

#include <atomic>
#include <string>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/text.h"

namespace rb {
namespace {

std::atomic<LogLevel> minimum_level{LogLevel::kInfo};

absl::string_view NameOf(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "DEBUG";
    case LogLevel::kInfo:
      return "INFO";
    case LogLevel::kWarning:
      return "WARNING";
    case LogLevel::kError:
      return "ERROR";
  }
  return "?";
}

}  // namespace

void SetLogLevel(LogLevel level) { minimum_level = level; }

void LogMessage(LogLevel level, absl::string_view component, absl::string_view text) {
  if (level < minimum_level.load(std::memory_order_relaxed)) return;
  const std::string line =
      absl::StrCat(absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", SystemClock().Now(), absl::UTCTimeZone()), " ",
                   NameOf(level), " ", component, ": ", Printable(text), "\n");
  // A log that cannot be written must not stop a rollback.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace rb
