#include "controller/adapters/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace rb::controller {
namespace {

using ::testing::HasSubstr;

// A newer rbctl may ask for what this controller has never heard of: doing something else instead is not an answer.
TEST(SpecFromWire, WhatIsNotKnownIsRefused) {
  v1::OperationSpec wire;
  wire.set_kind(v1::OPERATION_KIND_ROLLBACK);
  EXPECT_TRUE(FromWire(wire).ok()) << "what is left out has a default";
  for (const Method method : {Method::kAuto, Method::kBackup, Method::kGit, Method::kRedeploy}) {
    OperationSpec spec;
    spec.method = method;
    spec.announcement = "soon";
    const absl::StatusOr<OperationSpec> again = FromWire(ToWire(spec));
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->method, method);
    EXPECT_EQ(again->announcement, "soon");
  }
  for (const int unknown : {-1, v1::METHOD_REDEPLOY + 1, 99}) {
    wire.set_method(static_cast<v1::Method>(unknown));
    const absl::Status refused = FromWire(wire).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << unknown;
    EXPECT_THAT(std::string(refused.message()),
                HasSubstr("it knows auto, backup, git and redeploy. Nothing was changed"));
  }
  wire.clear_method();
  wire.mutable_target()->set_kind(static_cast<v1::TargetReference::Kind>(99));
  EXPECT_EQ(FromWire(wire).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace rb::controller
