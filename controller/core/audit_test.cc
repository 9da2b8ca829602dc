#include "controller/core/audit.h"

#include <algorithm>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/test_util.h"

namespace rb::controller {
namespace {

using ::testing::HasSubstr;

std::vector<AuditRecord> Log(size_t count) {
  std::vector<AuditRecord> log;
  Digest before;
  for (size_t i = 1; i <= count; ++i) {
    AuditRecord record;
    record.number = i;
    record.at = absl::FromUnixSeconds(1'800'000'000) + absl::Microseconds(i);
    record.who = i % 3 == 0 ? "ben" : "anna";
    record.role = "operator";
    record.from = absl::StrCat("ipv4:127.0.0.1:", 4000 + i);
    record.request = "StartOperation";
    record.subject = absl::StrCat("rollback prod/bot ", i);
    record.reason = "it broke";
    record.allowed = i % 4 != 0;
    if (!record.allowed) record.refusal = "the role viewer may not do that";
    record.hash = before = AuditHash(before, record);
    log.push_back(record);
  }
  return log;
}

// Empty when it is intact.
std::string ProblemOf(const std::vector<AuditRecord>& log, std::optional<Digest> expected = std::nullopt) {
  AuditCheck check(expected);
  for (const AuditRecord& record : log) {
    if (!check.Take(record)) return check.problem();
  }
  return check.Finish() ? "" : check.problem();
}

TEST(Audit, AnIntactLogIsIntactAndItsHeadIsItsLastHash) {
  const std::vector<AuditRecord> log = Log(20);
  EXPECT_EQ(ProblemOf(log), "");
  EXPECT_EQ(ProblemOf(log, log[7].hash), "") << "an earlier head";
  EXPECT_EQ(ProblemOf({}), "");
  AuditCheck check(std::nullopt);
  for (const AuditRecord& record : log) EXPECT_TRUE(check.Take(record));
  EXPECT_TRUE(check.Finish());
  EXPECT_EQ(check.count(), 20u);
  EXPECT_EQ(check.head(), log.back().hash);
}

TEST(Audit, AnEditOfAnyFieldIsFoundAndNamed) {
  const std::function<void(AuditRecord*)> edits[] = {
      [](AuditRecord* record) { record->at += absl::Microseconds(1); },
      [](AuditRecord* record) { record->who = "carl"; },
      [](AuditRecord* record) { record->role = "admin"; },
      [](AuditRecord* record) { record->from += "0"; },
      [](AuditRecord* record) { record->request = "GetOperation"; },
      [](AuditRecord* record) { record->subject.clear(); },
      [](AuditRecord* record) { record->reason += "."; },
      [](AuditRecord* record) { record->allowed = !record->allowed; },
      [](AuditRecord* record) { record->refusal += "x"; },
      [](AuditRecord* record) { record->hash.bytes[31] ^= 1; },
      // What moves from one field to the next is no other record.
      [](AuditRecord* record) {
        record->reason = record->subject.substr(record->subject.size() - 1) + record->reason;
        record->subject.pop_back();
      },
  };
  for (const auto& edit : edits) {
    std::vector<AuditRecord> log = Log(9);
    edit(&log[4]);
    EXPECT_THAT(ProblemOf(log), HasSubstr("record 5 is not what was written"));
  }
}

TEST(Audit, RemovalReorderingAndTruncationAreFound) {
  std::vector<AuditRecord> log = Log(9);
  log.erase(log.begin() + 4);
  EXPECT_THAT(ProblemOf(log), HasSubstr("record 5 is missing"));
  for (size_t i = 4; i < log.size(); ++i) --log[i].number;
  EXPECT_THAT(ProblemOf(log), HasSubstr("record 5 is not what was written")) << "numbered anew";
  log = Log(9);
  std::swap(log[4], log[5]);
  std::swap(log[4].number, log[5].number);
  EXPECT_THAT(ProblemOf(log), HasSubstr("record 5"));
  log = Log(9);
  const Digest head = log.back().hash;
  log.pop_back();
  EXPECT_EQ(ProblemOf(log), "") << "which the chain alone cannot tell";
  EXPECT_THAT(ProblemOf(log, head), HasSubstr("cut off"));
  EXPECT_THAT(ProblemOf({}, head), HasSubstr("cut off"));
  // All of it made anew, with one record less.
  std::vector<AuditRecord> other = Log(9);
  other.erase(other.begin() + 2);
  Digest before;
  for (size_t i = 0; i < other.size(); ++i) {
    other[i].number = i + 1;
    other[i].hash = before = AuditHash(before, other[i]);
  }
  EXPECT_EQ(ProblemOf(other), "");
  EXPECT_THAT(ProblemOf(other, head), HasSubstr("written anew"));
}

TEST(Audit, ARecordWithANumberThatWasNeverGivenIsFound) {
  for (const uint64_t number : {uint64_t{0}, static_cast<uint64_t>(-1)}) {
    std::vector<AuditRecord> log = Log(3);
    AuditRecord extra = log[0];
    extra.number = number;
    log.insert(log.begin(), extra);
    EXPECT_THAT(ProblemOf(log), HasSubstr("was never given"));
  }
}

TEST(AuditThrottle, ChangesAreAlwaysOnRecordReadsOnceInAWhile) {
  using What = AuditThrottle::What;
  AuditThrottle throttle;
  const absl::Time begin = absl::FromUnixSeconds(1'800'000'000);
  uint64_t left_out = 0;
  size_t reads = 0;
  size_t changes = 0;
  size_t refusals = 0;
  // A day of a dashboard, of a person at work, and of a script that is refused, each once a second.
  for (int second = 0; second < 24 * 3600; ++second) {
    const absl::Time now = begin + absl::Seconds(second);
    if (throttle.Take(What::kRead, "anna", "GetStatus", now, &left_out)) {
      EXPECT_EQ(left_out, reads == 0 ? 0u : 599u);
      ++reads;
    }
    changes += throttle.Take(What::kChange, "anna", "StartOperation", now, &left_out) ? 1 : 0;
    refusals += throttle.Take(What::kRefusal, "vera", "StartOperation", now, &left_out) ? 1 : 0;
  }
  EXPECT_EQ(reads, 24u * 6);
  EXPECT_EQ(changes, 24u * 3600);
  EXPECT_EQ(refusals, 24u * 6 * AuditThrottle::kRefusalsInWindow);
  // Others, and other calls, have windows of their own; so has a clock that was set back.
  EXPECT_TRUE(throttle.Take(What::kRead, "ben", "GetStatus", begin + absl::Hours(24), &left_out));
  EXPECT_TRUE(throttle.Take(What::kRead, "ben", "ListAgents", begin + absl::Hours(24), &left_out));
  EXPECT_FALSE(throttle.Take(What::kRead, "ben", "GetStatus", begin + absl::Hours(24), &left_out));
  EXPECT_TRUE(throttle.Take(What::kRead, "ben", "GetStatus", begin, &left_out));
  EXPECT_EQ(left_out, 1u);
}

TEST(Audit, AnyDamageToAnyRecordIsFound) {
  std::mt19937 random(1);
  const std::vector<AuditRecord> log = Log(12);
  for (int round = 0; round < 5000; ++round) {
    std::vector<AuditRecord> damaged = log;
    const size_t at = random() % log.size();
    const size_t other = random() % log.size();
    switch (random() % 4) {
      case 0:
        damaged.erase(damaged.begin() + static_cast<ptrdiff_t>(at));
        // What is cut off at the end needs the head to be known.
        if (at == log.size() - 1) continue;
        break;
      case 1:
        if (at == other) continue;
        std::swap(damaged[at], damaged[other]);
        break;
      case 2:
        damaged.insert(damaged.begin() + static_cast<ptrdiff_t>(at), log[other]);
        break;
      default:
        damaged[at].subject[random() % damaged[at].subject.size()] ^= static_cast<char>(1 + random() % 127);
        break;
    }
    ASSERT_NE(ProblemOf(damaged), "") << "round " << round;
  }
}

}  // namespace
}  // namespace rb::controller
