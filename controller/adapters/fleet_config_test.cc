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

}  // namespace
}  // namespace rb::controller
