#include "controller/core/cron.h"

#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/civil_time.h"
#include "common/text.h"

namespace rb::controller {
namespace {

constexpr int kYearsAhead = 10;

struct Field {
  absl::string_view name;
  int least;
  int most;
  // The value of the first is `least`.
  std::vector<absl::string_view> names;
};

bool ParseValue(const Field& field, absl::string_view text, int* value) {
  const std::string lower = absl::AsciiStrToLower(text);
  for (size_t i = 0; i < field.names.size(); ++i) {
    if (field.names[i] == lower) {
      *value = field.least + static_cast<int>(i);
      return true;
    }
  }
  // Not SimpleAtoi alone: it takes spaces and signs.
  for (const char c : text) {
    if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) return false;
  }
  return text.size() <= 2 && absl::SimpleAtoi(text, value) && *value >= field.least && *value <= field.most;
}

bool ParsePart(const Field& field, absl::string_view part, uint64_t* bits) {
  const std::vector<absl::string_view> by_step = absl::StrSplit(part, '/');
  int step = 1;
  if (by_step.size() > 2) return false;
  if (by_step.size() == 2) {
    for (const char c : by_step[1]) {
      if (!absl::ascii_isdigit(static_cast<unsigned char>(c))) return false;
    }
    if (!absl::SimpleAtoi(by_step[1], &step) || step < 1 || step > field.most) return false;
  }
  int first = field.least;
  int last = field.most;
  if (by_step[0] != "*") {
    const std::vector<absl::string_view> range = absl::StrSplit(by_step[0], '-');
    if (range.size() > 2 || !ParseValue(field, range[0], &first)) return false;
    last = by_step.size() == 2 && range.size() == 1 ? field.most : first;
    if (range.size() == 2 && !ParseValue(field, range[1], &last)) return false;
    if (last < first) return false;
  }
  for (int value = first; value <= last; value += step) *bits |= uint64_t{1} << value;
  return true;
}

bool Has(uint64_t bits, int value) { return (bits >> value & 1) != 0; }

}  // namespace

bool ParseCron(absl::string_view text, Cron* cron, std::string* problem) {
  *cron = Cron();
  static constexpr std::pair<absl::string_view, absl::string_view> kNamed[] = {{"@hourly", "0 * * * *"},
                                                                               {"@daily", "0 0 * * *"},
                                                                               {"@weekly", "0 0 * * 0"},
                                                                               {"@monthly", "0 0 1 * *"},
                                                                               {"@yearly", "0 0 1 1 *"}};
  for (const auto& [name, meaning] : kNamed) {
    if (text == name) text = meaning;
  }
  const std::vector<absl::string_view> words = absl::StrSplit(text, ' ', absl::SkipEmpty());
  const Field fields[] = {
      {"minute", 0, 59, {}},
      {"hour", 0, 23, {}},
      {"day of month", 1, 31, {}},
      {"month", 1, 12, {"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
      {"day of week", 0, 7, {"sun", "mon", "tue", "wed", "thu", "fri", "sat"}}};
  uint64_t* const bits[] = {&cron->minutes, &cron->hours, &cron->days, &cron->months, &cron->weekdays};
  if (words.size() != 5) {
    *problem = "wants five fields: minute hour day-of-month month day-of-week, for example \"30 3 * * mon-fri\"";
    return false;
  }
  for (size_t i = 0; i < 5; ++i) {
    for (const absl::string_view part : absl::StrSplit(words[i], ',')) {
      if (ParsePart(fields[i], part, bits[i])) continue;
      *problem = absl::StrCat("'", Printable(part), "' is no ", fields[i].name, " from ", fields[i].least, " to ",
                              fields[i].most);
      return false;
    }
  }
  if (Has(cron->weekdays, 7)) cron->weekdays |= 1;
  cron->any_day = words[2][0] == '*';
  cron->any_weekday = words[4][0] == '*';
  return true;
}

absl::Time NextAfter(const Cron& cron, absl::Time after) {
  const absl::TimeZone utc = absl::UTCTimeZone();
  absl::CivilMinute minute = absl::ToCivilMinute(after, utc) + 1;
  const absl::CivilYear end = absl::CivilYear(minute) + kYearsAhead;
  while (absl::CivilYear(minute) < end) {
    if (!Has(cron.months, minute.month())) {
      minute = absl::CivilMinute(absl::CivilMonth(minute) + 1);
      continue;
    }
    const absl::CivilDay day(minute);
    // Monday is 0 there.
    const bool weekday = Has(cron.weekdays, (static_cast<int>(absl::GetWeekday(day)) + 1) % 7);
    const bool of_month = Has(cron.days, day.day());
    const bool fits = cron.any_day || cron.any_weekday ? weekday && of_month : weekday || of_month;
    if (!fits) {
      minute = absl::CivilMinute(day + 1);
    } else if (!Has(cron.hours, minute.hour())) {
      minute = absl::CivilMinute(absl::CivilHour(minute) + 1);
    } else if (!Has(cron.minutes, minute.minute())) {
      minute += 1;
    } else {
      return absl::FromCivil(minute, utc);
    }
  }
  return absl::InfiniteFuture();
}

}  // namespace rb::controller
