#include "agent/core/engine/retention.h"

#include <algorithm>
#include <cctype>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace rb::agent {
namespace {

using ::testing::ElementsAreArray;

// One letter a release, newest first: g good, d good and damaged, b bad, u not known; capital: proved; with ' after it:
// pinned; with * after it: referred to. Its name is its place.
struct Releases {
  std::vector<Release> newest_first;
  std::set<std::string> referred;
};

Releases Read(const std::string& text) {
  Releases all;
  for (const char c : text) {
    if (c == '\'') {
      all.newest_first.back().pinned = true;
    } else if (c == '*') {
      all.referred.insert(all.newest_first.back().name);
    } else {
      Release release;
      release.name = std::to_string(all.newest_first.size());
      const char standing = static_cast<char>(std::tolower(c));
      release.standing = standing == 'g' || standing == 'd' ? Standing::kGood
                         : standing == 'b'                  ? Standing::kBad
                                                            : Standing::kUnknown;
      release.durability = standing == 'd' ? Durability::kCaptured
                           : c == standing ? Durability::kVerified
                                           : Durability::kProved;
      all.newest_first.push_back(release);
    }
  }
  return all;
}

TEST(Retention, Table) {
  const struct {
    const char* releases;
    uint32_t keep_good;
    std::vector<std::string> removed;
    const char* because;
  } kCases[] = {
      {"", 2, {}, "nothing there"},
      {"gg", 2, {}, "as many as are kept"},
      {"gggg", 2, {"2", "3"}, "the newest good ones"},
      {"bgbgg", 2, {"4"}, "bad ones do not push a good one out"},
      {"bbbbbgg", 2, {"2", "3", "4"}, "nor do many, and they are bounded themselves"},
      {"uuuuugg", 2, {"2", "3", "4"}, "neither do those that nobody has judged"},
      {"ububgg", 2, {"2", "3"}, "both kinds share one bound"},
      {"ggbug", 2, {"2", "3", "4"}, "older than the oldest good one that is kept"},
      {"uuuuu", 2, {"2", "3", "4"}, "none is good yet"},
      {"bbbgbbb", 2, {"2", "4", "5", "6"}, "fewer good ones than are kept: still bounded"},
      {"gdgg", 2, {"3"}, "a damaged one does not push a good one out"},
      {"dddgg", 2, {"2"}, "nor do many, and they are bounded as bad ones are"},
      {"ggGg", 2, {"3"}, "the only proved one"},
      {"ggGG", 2, {"3"}, "the newest of the proved ones"},
      {"GggG", 2, {"2", "3"}, "a newer one is proved and kept"},
      {"BggG", 2, {}, "a bad one is none to go back to, however proved"},
      {"gggb'g'", 1, {"1", "2"}, "pinned"},
      {"ggb*g*u", 1, {"1", "4"}, "the current one, and what a transaction is about"},
      {"g'gg", 1, {"1", "2"}, "a pinned good one counts as one of them"},
      {"ub*bbg", 1, {"2", "3"}, "one that is referred to is kept beside the bound"},
      {"gbg", 1, {"1", "2"}, "the least there is"},
  };
  for (const auto& one : kCases) {
    const Releases all = Read(one.releases);
    EXPECT_THAT(ReleasesToRemove(all.newest_first, one.keep_good, all.referred), ElementsAreArray(one.removed))
        << one.releases << ": " << one.because;
  }
}

// What retention promises, for every row of up to six releases.
TEST(Retention, KeepsEnoughAndNotTooMuchWhateverThereIs) {
  const std::string kinds = "gbudGBU";
  for (size_t length = 1, count = kinds.size(); length <= 6; ++length, count *= kinds.size()) {
    for (size_t number = 0; number < count; ++number) {
      std::string text;
      for (size_t i = 0, rest = number; i < length; ++i, rest /= kinds.size()) text += kinds[rest % kinds.size()];
      const Releases all = Read(text);
      for (const uint32_t keep_good : {1u, 2u, 3u}) {
        const std::vector<std::string> removed = ReleasesToRemove(all.newest_first, keep_good, {});
        const std::set<std::string> gone(removed.begin(), removed.end());
        uint32_t good = 0;
        uint32_t others = 0;
        uint32_t good_before = 0;
        bool proved = false;
        bool proved_kept = false;
        for (const Release& release : all.newest_first) {
          const bool is_good = release.standing == Standing::kGood && release.durability != Durability::kCaptured;
          good_before += is_good ? 1 : 0;
          proved = proved || (release.durability == Durability::kProved && release.standing != Standing::kBad);
          if (gone.count(release.name) != 0) continue;
          good += is_good ? 1 : 0;
          others += is_good ? 0 : 1;
          proved_kept =
              proved_kept || (release.durability == Durability::kProved && release.standing != Standing::kBad);
        }
        ASSERT_GE(good, std::min(good_before, keep_good)) << text << " " << keep_good;
        // One more of either may be the only proved one.
        ASSERT_LE(good, keep_good + 1) << text << " " << keep_good;
        ASSERT_LE(others, keep_good + 1) << text << " " << keep_good;
        ASSERT_EQ(proved_kept, proved) << text << " " << keep_good;
      }
    }
  }
}

}  // namespace
}  // namespace rb::agent
