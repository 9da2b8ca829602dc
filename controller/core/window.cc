#include "controller/core/window.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace rb::controller {
namespace {

constexpr absl::string_view kDays[] = {"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"};

bool ParseDay(absl::string_view text, int* day) {
  const auto* const found = std::find(std::begin(kDays), std::end(kDays), text);
  *day = static_cast<int>(found - std::begin(kDays));
  return found != std::end(kDays);
}

// Two digits each.
bool ParseTimeOfDay(absl::string_view text, absl::Duration* time) {
  int hours = 0;
  int minutes = 0;
  const bool digits = text.size() == 5 && text[2] == ':' && absl::ascii_isdigit(static_cast<unsigned char>(text[0])) &&
                      absl::ascii_isdigit(static_cast<unsigned char>(text[3])) &&
                      absl::SimpleAtoi(text.substr(0, 2), &hours) && absl::SimpleAtoi(text.substr(3), &minutes);
  *time = absl::Hours(hours) + absl::Minutes(minutes);
  return digits && hours <= 24 && minutes <= 59 && *time <= absl::Hours(24);
}

absl::Time Midnight(absl::Time at) {
  const absl::CivilDay day = absl::ToCivilDay(at, absl::UTCTimeZone());
  return absl::FromCivil(day, absl::UTCTimeZone());
}

int DayOfWeek(absl::Time at) {
  // The enumerators begin with Monday.
  return static_cast<int>(absl::GetWeekday(absl::ToCivilDay(at, absl::UTCTimeZone())));
}

}  // namespace

bool ParseWindow(absl::string_view text, Window* window) {
  *window = Window();
  window->text = std::string(text);
  std::vector<absl::string_view> words = absl::StrSplit(text, ' ');
  if (words.empty() || words.size() > 2) return false;
  if (words.size() == 1) {
    std::fill(std::begin(window->on_day), std::end(window->on_day), true);
  } else {
    for (const absl::string_view part : absl::StrSplit(words[0], ',')) {
      const std::pair<absl::string_view, absl::string_view> range = absl::StrSplit(part, absl::MaxSplits('-', 1));
      int first = 0;
      int last = 0;
      if (!ParseDay(range.first, &first)) return false;
      last = first;
      if (part.size() > 3 && !ParseDay(range.second, &last)) return false;
      for (int day = first;; day = (day + 1) % 7) {
        window->on_day[day] = true;
        if (day == last) break;
      }
    }
  }
  const std::vector<absl::string_view> times = absl::StrSplit(words.back(), '-');
  if (times.size() != 2 || !ParseTimeOfDay(times[0], &window->begin) || !ParseTimeOfDay(times[1], &window->end)) {
    return false;
  }
  if (window->begin == absl::Hours(24) || window->begin == window->end) return false;
  if (window->end < window->begin) window->end += absl::Hours(24);
  return true;
}

bool IsOpen(const std::vector<Window>& windows, absl::Time at) {
  if (windows.empty()) return true;
  const absl::Time today = Midnight(at);
  return std::any_of(windows.begin(), windows.end(), [&](const Window& window) {
    // One that began yesterday may still be open.
    for (const absl::Time midnight : {today, Midnight(today - absl::Hours(1))}) {
      if (window.on_day[DayOfWeek(midnight)] && at >= midnight + window.begin && at < midnight + window.end)
        return true;
    }
    return false;
  });
}

absl::Time NextOpening(const std::vector<Window>& windows, absl::Time at) {
  if (IsOpen(windows, at)) return at;
  absl::Time next = absl::InfiniteFuture();
  absl::Time midnight = Midnight(at);
  for (int days = 0; days <= 7; ++days) {
    for (const Window& window : windows) {
      const absl::Time opening = midnight + window.begin;
      if (window.on_day[DayOfWeek(midnight)] && opening >= at) next = std::min(next, opening);
    }
    midnight = Midnight(midnight + absl::Hours(36));
  }
  return next;
}

}  // namespace rb::controller
