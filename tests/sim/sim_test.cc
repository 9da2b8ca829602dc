// Whole worlds, thousands of them, each from one number.
//
//   RB_SIM_SEEDS=100000 sim_test   so many worlds
//   RB_SIM_SEED=42 sim_test        one world, with everything that happens in it
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/test_util.h"
#include "tests/sim/world.h"

namespace rb::sim {
namespace {

constexpr uint64_t kSeeds = 10'000;

Outcome Live(uint64_t seed, Bug bug = Bug::kNone, bool keep_log = false) { return World(seed, bug, keep_log).Run(); }

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  uint64_t number = otherwise;
  return text != nullptr && absl::SimpleAtoi(text, &number) ? number : otherwise;
}

TEST(Simulation, EverythingThatMustHoldHolds) {
  if (std::getenv("RB_SIM_SEED") != nullptr) {
    const uint64_t seed = FromEnvironment("RB_SIM_SEED", 1);
    const Outcome outcome = Live(seed, Bug::kNone, true);
    std::fputs(outcome.log.c_str(), stdout);
    EXPECT_EQ(outcome.invariant, "") << outcome.details;
    return;
  }
  const uint64_t seeds = FromEnvironment("RB_SIM_SEEDS", kSeeds);
  std::map<std::string, uint64_t> broken;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const Outcome outcome = Live(seed);
    if (!outcome.invariant.empty()) {
      if (broken[outcome.invariant]++ < 5)
        std::printf("seed %" PRIu64 ": %s: %s\n", seed, outcome.invariant.c_str(), outcome.details.c_str());
    }
  }
  for (const auto& [what, count] : broken) std::printf("%s: %" PRIu64 "\n", what.c_str(), count);
  EXPECT_TRUE(broken.empty());
}

}  // namespace
}  // namespace rb::sim
