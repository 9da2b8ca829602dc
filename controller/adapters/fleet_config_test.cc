#include "controller/adapters/fleet_config.h"

#include <gtest/gtest.h>

namespace rb::controller {
namespace {

TEST(FleetConfig, WhatItSaysIsSafeToPrintAndHasItsLine) {
  Fleet fleet;
  EXPECT_EQ(FormatProblems(
                "f", ParseFleet("environments:\n  \"a\\tb\": {order: 1}\nservices:\n  s: {hosts: {x: [h]}}\n", &fleet)),
            "f:2: environments.a\\x09b: 'a\\x09b' is not a name: 1 to 63 of a-z, 0-9, '-', '_' and '.'\n"
            "f:4: services.s.hosts.x: there is no environment 'x'\n");
}

TEST(FleetConfig, WhatNothingCarriesOutIsRefused) {
  Fleet fleet;
  const std::string unheard = "this version does not carry it out; take it out\n";
  EXPECT_EQ(FormatProblems("f", ParseFleet("environments:\n"
                                           "  prod: {order: 1, allow_drills: true}\n"
                                           "services:\n"
                                           "  s:\n"
                                           "    hosts: {prod: [h]}\n"
                                           "    ci: {off_because: moving}\n"
                                           "schedules:\n"
                                           "  nightly: {kind: backup, cron: \"30 3 * * *\"}\n",
                                           &fleet)),
            "f:2: environments.prod.allow_drills: " + unheard + "f:6: services.s.ci: " + unheard +
                "f:7: schedules: " + unheard);
}

}  // namespace
}  // namespace rb::controller
