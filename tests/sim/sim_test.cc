// Whole worlds, thousands of them, each from one number.
//
//   sim_test                       twenty thousand (CI takes a hundred thousand)
//   RB_SIM_SEEDS=100000 sim_test   so many
//   RB_SIM_SEED=42 sim_test        one of them, with everything that happens in it
#include <errno.h>

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/test_util.h"
#include "controller/core/operation.h"
#include "tests/sim/world.h"

namespace rb::sim {
namespace {

constexpr uint64_t kSeeds = 20'000;
constexpr uint64_t kSeedsForABug = 10'000;
constexpr size_t kFailuresShown = 5;

Outcome Live(uint64_t seed, Bug bug = Bug::kNone, bool keep_log = false) { return World(seed, bug, keep_log).Run(); }

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  uint64_t number = otherwise;
  return text != nullptr && absl::SimpleAtoi(text, &number) ? number : otherwise;
}

struct Tally {
  // By seed.
  std::map<uint64_t, Outcome> failures;
  std::map<int, int> ends;
  uint64_t events = 0;
  uint64_t refusals = 0;
  // Of all outcomes, whatever the order in which they came.
  uint64_t digest = 0;
};

// Worlds know nothing of each other, so threads share nothing but the next number.
Tally LiveAll(uint64_t seeds, unsigned int threads) {
  constexpr uint64_t kBlock = 100;
  Tally tally;
  std::mutex mutex;
  std::atomic<uint64_t> next{1};
  const auto work = [&] {
    Tally own;
    for (uint64_t first = next.fetch_add(kBlock); first <= seeds; first = next.fetch_add(kBlock)) {
      for (uint64_t seed = first; seed <= std::min(seeds, first + kBlock - 1); ++seed) {
        Outcome outcome = Live(seed);
        for (const auto& [state, count] : outcome.ends) own.ends[state] += count;
        own.events += outcome.events;
        own.refusals += static_cast<uint64_t>(outcome.refusals);
        own.digest += outcome.digest * (2 * seed + 1);
        if (!outcome.invariant.empty()) own.failures.emplace(seed, std::move(outcome));
      }
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [state, count] : own.ends) tally.ends[state] += count;
    tally.events += own.events;
    tally.refusals += own.refusals;
    tally.digest += own.digest;
    tally.failures.merge(own.failures);
  };
  std::vector<std::thread> workers;
  for (unsigned int i = 1; i < threads; ++i) workers.emplace_back(work);
  work();
  for (std::thread& worker : workers) worker.join();
  return tally;
}

TEST(Simulation, WhatMustHoldHolds) {
  if (std::getenv("RB_SIM_SEED") != nullptr) {
    const Outcome outcome = Live(FromEnvironment("RB_SIM_SEED", 1), Bug::kNone, true);
    std::fputs(outcome.log.c_str(), stdout);
    EXPECT_EQ(outcome.invariant, "") << outcome.details;
    return;
  }
  const uint64_t seeds = FromEnvironment("RB_SIM_SEEDS", kSeeds);
  const Tally tally = LiveAll(seeds, std::max(1u, std::thread::hardware_concurrency()));
  size_t shown = 0;
  for (const auto& [seed, outcome] : tally.failures) {
    if (++shown > kFailuresShown) break;
    ADD_FAILURE() << "seed " << seed << ": " << outcome.invariant << ": " << outcome.details
                  << "\nto see it again: RB_SIM_SEED=" << seed << " " << program_invocation_name
                  << " --gtest_filter=Simulation.WhatMustHoldHolds";
  }
  EXPECT_EQ(tally.failures.size(), 0u);
  std::printf("%" PRIu64 " worlds, %" PRIu64 " events, %" PRIu64 " refusals", seeds, tally.events, tally.refusals);
  for (const auto& [state, count] : tally.ends) {
    std::printf(", %d %s", count, std::string(NameOf(static_cast<controller::OperationState>(state))).c_str());
  }
  std::printf("\n");
  // All four ends are met, so the worlds are not all alike.
  if (seeds >= 1000) {
    EXPECT_GE(tally.ends.size(), 4u);
  }
}

TEST(Simulation, ASeedGivesTheSameWorldAgain) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    const Outcome one = Live(seed, Bug::kNone, true);
    const Outcome other = Live(seed, Bug::kNone, true);
    ASSERT_EQ(one.log, other.log) << "seed " << seed;
    ASSERT_EQ(one.digest, other.digest) << "seed " << seed;
    // Looking at it changes nothing.
    ASSERT_EQ(one.digest, Live(seed).digest) << "seed " << seed;
    ASSERT_GT(one.log.size(), 100u);
  }
  // Nor does how many threads there are.
  EXPECT_EQ(LiveAll(1000, 1).digest, LiveAll(1000, 3).digest);
}

// Each is found within ten thousand worlds, and by what is there to find it.
TEST(Simulation, PlantedBugsAreFound) {
  const struct {
    Bug bug;
    const char* invariant;
  } planted[] = {
      {Bug::kCommitBeforeAllPrepared, "no host commits before all have prepared"},
      {Bug::kWaveGateSkipped, "no wave begins before the one before is verified"},
      {Bug::kControllerActsBeforePersisting, "no step begins that is not written down"},
      {Bug::kAgentActsBeforePersisting, "no step begins that is not written down"},
      {Bug::kStaleFencingAccepted, "nothing is done for a stale fencing number"},
      {Bug::kStepRunTwice, "a step that has ended is not run again"},
      {Bug::kLockReleasedEarly, "one operation at a time on a service"},
      {Bug::kControllerRecordLost, "the journal gives the same state again"},
      {Bug::kAgentRecordLost, "the journal gives the same state again"},
      {Bug::kAcknowledgedBeforeStored, "what was acknowledged is not forgotten"},
      {Bug::kRecoverySkipped, "every tree is wholly old or wholly new"},
      {Bug::kDeadlineForgotten, "every operation ends"},
      {Bug::kFencingNumberUsedTwice, "each operation has a higher fencing number than any before"},
      {Bug::kDeadlineByWallClock, "every operation ends"},
  };
  for (const auto& [bug, invariant] : planted) {
    uint64_t first = 0;
    uint64_t seed = 1;
    uint64_t found = 0;
    std::string details;
    for (; seed <= kSeedsForABug && (first == 0 || seed <= 100); ++seed) {
      const Outcome outcome = Live(seed, bug);
      if (outcome.invariant.empty()) continue;
      ++found;
      if (first == 0 && outcome.invariant == invariant) {
        first = seed;
        details = outcome.details;
      }
    }
    const std::string name(NameOf(bug));
    EXPECT_NE(first, 0u) << name;
    std::printf("%s: in %" PRIu64 " of %" PRIu64 " worlds; seed %" PRIu64 ": %s: %s\n", name.c_str(), found, seed - 1,
                first, invariant, details.c_str());
  }
}

}  // namespace
}  // namespace rb::sim
