#include "controller/core/schedule.h"

#include <gtest/gtest.h>

#include "common/clock.h"

namespace rb::controller {
namespace {

absl::Time At(const std::string& text) {
  absl::Time time;
  std::string error;
  EXPECT_TRUE(absl::ParseTime("%Y-%m-%d %H:%M:%S", text, absl::UTCTimeZone(), &time, &error)) << text << error;
  return time;
}

Cron Parsed(const std::string& text) {
  Cron cron;
  std::string problem;
  EXPECT_TRUE(ParseCron(text, &cron, &problem)) << text << ": " << problem;
  return cron;
}

TEST(CronTest, Next) {
  struct Case {
    const char* cron;
    const char* after;
    const char* next;
  };
  // 2026-11-27 is a Friday.
  for (const Case& c : {Case{"* * * * *", "2026-11-27 10:00:00", "2026-11-27T10:01:00Z"},
                        Case{"* * * * *", "2026-11-27 10:00:59", "2026-11-27T10:01:00Z"},
                        Case{"*/15 * * * *", "2026-11-27 10:15:00", "2026-11-27T10:30:00Z"},
                        Case{"30 3 * * mon-fri", "2026-11-27 03:30:00", "2026-11-30T03:30:00Z"},
                        Case{"0 0 29 2 *", "2026-11-27 00:00:00", "2028-02-29T00:00:00Z"},
                        Case{"0 12 1,15 jan-mar *", "2026-11-27 00:00:00", "2027-01-01T12:00:00Z"},
                        Case{"0 4 * * 7", "2026-11-27 00:00:00", "2026-11-29T04:00:00Z"},
                        Case{"0 4 13 * fri", "2026-11-27 05:00:00", "2026-12-04T04:00:00Z"},  // either day is enough
                        Case{"0 4 1-7 * *", "2026-11-27 05:00:00", "2026-12-01T04:00:00Z"},
                        Case{"5/20 * * * *", "2026-11-27 10:06:00", "2026-11-27T10:25:00Z"},
                        Case{"59 23 31 12 *", "2026-12-31 23:59:00", "2027-12-31T23:59:00Z"},
                        Case{"@weekly", "2026-11-27 00:00:00", "2026-11-29T00:00:00Z"}}) {
    EXPECT_EQ(FormatUtc(NextAfter(Parsed(c.cron), At(c.after))), c.next) << c.cron;
  }
  EXPECT_EQ(NextAfter(Parsed("0 0 30 2 *"), At("2026-01-01 00:00:00")), absl::InfiniteFuture());
}

TEST(CronTest, Refused) {
  for (const char* text : {"", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *",
                           "* * * * 8", "*/0 * * * *", "5-3 * * * *", "1,,2 * * * *", "a * * * *", "-1 * * * *",
                           "1-2-3 * * * *", "1/2/3 * * * *", "+1 * * * *", "@never", "*/ * * * *", "1- * * * *"}) {
    Cron cron;
    std::string problem;
    EXPECT_FALSE(ParseCron(text, &cron, &problem)) << text;
    EXPECT_NE(problem, "") << text;
  }
}

ScheduleEntry Nightly() {
  ScheduleEntry entry;
  entry.name = "nightly";
  entry.cron = "0 3 * * *";
  return entry;
}

TEST(ScheduleTest, RunsOnceForEachTimeAndMakesMissedOnesUpOnce) {
  const ScheduleEntry entry = Nightly();
  const Cron cron = Parsed(entry.cron);
  const absl::Time last = At("2026-11-20 03:00:00");
  EXPECT_FALSE(DecideSchedule(entry, cron, last, At("2026-11-21 02:59:59")).due.has_value());
  const ScheduleDecision due = DecideSchedule(entry, cron, last, At("2026-11-21 03:00:00"));
  ASSERT_TRUE(due.due.has_value());
  EXPECT_EQ(*due.due, At("2026-11-21 03:00:00"));
  EXPECT_FALSE(due.is_late);
  EXPECT_FALSE(DecideSchedule(entry, cron, *due.due, At("2026-11-21 03:00:01")).due.has_value()) << "never twice";
  // Three nights without a controller: one run, of the newest.
  const ScheduleDecision missed = DecideSchedule(entry, cron, last, At("2026-11-23 09:00:00"));
  ASSERT_TRUE(missed.due.has_value());
  EXPECT_EQ(*missed.due, At("2026-11-23 03:00:00"));
  EXPECT_EQ(missed.missed, 2u);
  EXPECT_TRUE(missed.is_late);
  EXPECT_EQ(missed.next, At("2026-11-24 03:00:00"));
}

TEST(ScheduleTest, ClockThatJumpsRunsNothingTwice) {
  const ScheduleEntry entry = Nightly();
  const Cron cron = Parsed(entry.cron);
  const absl::Time done = At("2026-11-21 03:00:00");
  EXPECT_FALSE(DecideSchedule(entry, cron, done, At("2026-11-21 02:00:00")).due.has_value()) << "moved back by hours";
  // A clock that was far ahead does not stop the schedule for ever.
  const ScheduleDecision again = DecideSchedule(entry, cron, At("2030-01-01 03:00:00"), At("2026-11-21 10:00:00"));
  EXPECT_FALSE(again.due.has_value());
  EXPECT_EQ(again.next, At("2026-11-22 03:00:00"));
}

TEST(ScheduleTest, JitterIsTheSameForTheSameRun) {
  ScheduleEntry entry = Nightly();
  entry.jitter = absl::Minutes(30);
  const absl::Time due = At("2026-11-21 03:00:00");
  const absl::Duration jitter = JitterOf(entry, due);
  EXPECT_EQ(jitter, JitterOf(entry, due));
  EXPECT_GE(jitter, absl::ZeroDuration());
  EXPECT_LE(jitter, entry.jitter);
  EXPECT_NE(jitter, JitterOf(entry, due + absl::Hours(24)));
  ScheduleEntry other = entry;
  other.name = "other";
  EXPECT_NE(jitter, JitterOf(other, due));
  const Cron cron = Parsed(entry.cron);
  EXPECT_FALSE(DecideSchedule(entry, cron, due - absl::Hours(24), due + jitter - absl::Seconds(1)).due.has_value());
  EXPECT_TRUE(DecideSchedule(entry, cron, due - absl::Hours(24), due + jitter).due.has_value());
}

TEST(ScheduleTest, WaitsForItsWindow) {
  ScheduleEntry entry = Nightly();
  entry.windows.resize(1);
  ASSERT_TRUE(ParseWindow("Sun 02:00-05:00", &entry.windows[0]));
  const Cron cron = Parsed("0 3 * * fri");
  const absl::Time last = At("2026-11-20 03:00:00");
  EXPECT_FALSE(DecideSchedule(entry, cron, last, At("2026-11-28 12:00:00")).due.has_value());
  EXPECT_TRUE(DecideSchedule(entry, cron, last, At("2026-11-29 02:00:00")).due.has_value());
}

}  // namespace
}  // namespace rb::controller
