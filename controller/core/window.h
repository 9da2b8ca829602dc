// Maintenance windows: when an environment may be changed.
#ifndef RB_CONTROLLER_CORE_WINDOW_H_
#define RB_CONTROLLER_CORE_WINDOW_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb::controller {

// Every week, in UTC. A window that ends before it begins ends on the next day.
struct Window {
  // Monday is 0. On which days it begins.
  bool on_day[7] = {};
  // Since midnight; to the minute.
  absl::Duration begin;
  absl::Duration end;
  // As it was written.
  std::string text;
};

// "Mon-Fri 09:00-17:00", "Sat,Sun 10:00-12:00", "22:00-02:00" (every day), "Fri-Mon 00:00-24:00". False for anything
// else, and for one of no length.
bool ParseWindow(absl::string_view text, Window* window);

// No windows: always open.
bool IsOpen(const std::vector<Window>& windows, absl::Time at);
// `at` when one is open then. `windows` is not empty.
absl::Time NextOpening(const std::vector<Window>& windows, absl::Time at);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_WINDOW_H_
