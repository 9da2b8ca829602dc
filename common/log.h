// A small logger: one line a message on standard error, "2026-11-23T03:14:07.123Z INFO agent: text key=value".
#ifndef RB_COMMON_LOG_H_
#define RB_COMMON_LOG_H_

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace rb {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Messages below the level are dropped. Default kInfo. Thread-safe.
void SetLogLevel(LogLevel level);

// Thread-safe; one write(2) a line. Control characters are escaped. Never pass secrets.
void LogMessage(LogLevel level, absl::string_view component, absl::string_view text);

template <typename... Args>
void LogDebug(absl::string_view component, const Args&... args) {
  LogMessage(LogLevel::kDebug, component, absl::StrCat(args...));
}
template <typename... Args>
void LogInfo(absl::string_view component, const Args&... args) {
  LogMessage(LogLevel::kInfo, component, absl::StrCat(args...));
}
template <typename... Args>
void LogWarning(absl::string_view component, const Args&... args) {
  LogMessage(LogLevel::kWarning, component, absl::StrCat(args...));
}
template <typename... Args>
void LogError(absl::string_view component, const Args&... args) {
  LogMessage(LogLevel::kError, component, absl::StrCat(args...));
}

}  // namespace rb

#endif  // RB_COMMON_LOG_H_
