#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "agent/core/task/external.h"
#include "agent/core/task/quarantine.h"

namespace rb::agent {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kCommit(40, 'b');

QuarantineEntry Entry(uint64_t number, bool released = false) {
  QuarantineEntry entry;
  entry.service = "bot";
  entry.commit = kCommit;
  entry.version = "v1.2.0";
  entry.reason = "rolled back from: it broke";
  entry.released = released;
  entry.release_reason = "mended";
  entry.number = number;
  return entry;
}

TEST(Quarantine, ByCommitPrefixAndVersion) {
  for (const std::string& reference : {kCommit, kCommit.substr(0, 7), std::string("BBBBBBBB"), std::string("v1.2.0")}) {
    EXPECT_THAT(WhyQuarantined({Entry(1)}, "bot", reference), HasSubstr("it broke")) << reference;
    EXPECT_THAT(WhyQuarantined({Entry(1)}, "web", reference), IsEmpty());
    EXPECT_THAT(WhyQuarantined({Entry(2, true)}, "bot", reference), IsEmpty());
  }
  for (const std::string& reference :
       {std::string("bbbbbb"), std::string("v1.2"), std::string(40, 'c'), std::string()}) {
    EXPECT_THAT(WhyQuarantined({Entry(1)}, "bot", reference), IsEmpty()) << reference;
  }
}

TEST(Quarantine, EachChangeIsLearntOnce) {
  const auto first = StandingChanges({}, {Entry(1)});
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].standing, Standing::kBad);
  EXPECT_THAT(StandingChanges({Entry(1)}, {Entry(1)}), IsEmpty()) << "a local --force is not taken back each time";
  const auto released = StandingChanges({Entry(1)}, {Entry(2, true)});
  ASSERT_EQ(released.size(), 1u);
  EXPECT_EQ(released[0].standing, Standing::kUnknown);
  EXPECT_THAT(released[0].reason, HasSubstr("mended"));
  EXPECT_THAT(StandingChanges({Entry(2, true)}, {Entry(1)}), IsEmpty()) << "an older list";
}

using What = ExternalWatch::What;

TEST(External, IsCapturedOnceItHasSettled) {
  ExternalWatch watch(absl::Seconds(60));
  const auto at = [](int seconds) { return absl::Seconds(seconds); };
  EXPECT_EQ(watch.Take({"", false}, at(0)), What::kNothing);
  EXPECT_EQ(watch.Take({"a", false}, at(30)), What::kLookAgain);
  EXPECT_EQ(watch.Take({"a", false}, at(60)), What::kLookAgain);
  EXPECT_EQ(watch.Take({"b", false}, at(90)), What::kLookAgain) << "still being copied";
  EXPECT_EQ(watch.Take({"b", false}, at(149)), What::kLookAgain);
  EXPECT_EQ(watch.Take({"b", false}, at(150)), What::kCapture);
  EXPECT_EQ(watch.Take({"b", false}, at(151)), What::kCapture) << "the capture failed";
}

TEST(External, NotWhileSomebodyIsAtWork) {
  ExternalWatch watch(absl::Seconds(60));
  EXPECT_EQ(watch.Take({"a", false}, absl::Seconds(0)), What::kLookAgain);
  EXPECT_EQ(watch.Take({"a", true}, absl::Seconds(30)), What::kNothing);
  EXPECT_EQ(watch.Take({"a", false}, absl::Seconds(70)), What::kLookAgain) << "from the start";
  EXPECT_EQ(watch.Take({"a", false}, absl::Seconds(130)), What::kCapture);
}

TEST(External, AServiceThatChangesItselfIsNotCapturedAllTheTime) {
  ExternalWatch watch(absl::Seconds(1));
  int captures = 0;
  for (int second = 0; second < 6 * 3600; ++second) {
    const std::string digest(1, static_cast<char>('a' + second / 10 % 26));
    if (watch.Take({digest, false}, absl::Seconds(second)) != What::kCapture) continue;
    ++captures;
    watch.Captured(false, absl::Seconds(second));
  }
  EXPECT_LE(captures, 6);
  EXPECT_GE(captures, 5);
  // A new commit is not held back.
  watch.Captured(true, absl::Hours(7));
  EXPECT_EQ(watch.Take({"x", false}, absl::Hours(7)), What::kLookAgain);
  EXPECT_EQ(watch.Take({"x", false}, absl::Hours(7) + absl::Seconds(1)), What::kCapture);
}

}  // namespace
}  // namespace rb::agent
