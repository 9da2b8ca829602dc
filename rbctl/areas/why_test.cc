#include "rbctl/areas/why.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace rb::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

v1::Operation Sample() {
  v1::Operation operation;
  operation.set_id("op-1");
  operation.mutable_spec()->set_kind(v1::OPERATION_KIND_ROLLBACK);
  operation.mutable_spec()->set_environment("prod");
  operation.set_state(v1::OPERATION_STATE_REVERTED);
  operation.set_requested_by("anna");
  v1::Reason* method = operation.mutable_plan()->add_reasons();
  method->set_rule(v1::Reason::RULE_METHOD);
  method->set_text("backup: a proved backup is the fastest");
  method->add_hosts("prod-1");
  method->set_host_count(2000);
  v1::Reason* scope = operation.mutable_plan()->add_reasons();
  scope->set_rule(v1::Reason::RULE_SCOPE);
  scope->set_text("every host");
  v1::Reason* event = operation.add_reasons();
  event->set_rule(v1::Reason::RULE_EVENT);
  event->set_text("it goes back\x1b[31m");
  return operation;
}

TEST(Why, SaysEachRuleInTheOrderOfDeciding) {
  const std::string text = RenderWhy(Sample());
  EXPECT_THAT(text, HasSubstr("Hosts:\n  every host\n"));
  EXPECT_THAT(text, HasSubstr("Source:\n  backup: a proved backup is the fastest (prod-1 and 1999 others)\n"));
  EXPECT_LT(text.find("Hosts:"), text.find("Source:"));
  EXPECT_LT(text.find("Source:"), text.find("While it ran:"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b")));
  EXPECT_THAT(text, HasSubstr("ended: reverted"));
}

TEST(Why, AsJson) {
  const auto document = nlohmann::json::parse(JsonWhy(Sample()));
  EXPECT_EQ(document["outcome"], "reverted");
  ASSERT_EQ(document["reasons"].size(), 3u);
  EXPECT_EQ(document["reasons"][0]["rule"], "method");
  EXPECT_EQ(document["reasons"][0]["host_count"], 2000);
}

TEST(Why, AnOperationOfAnEarlierVersionHasNone) {
  v1::Operation operation;
  operation.set_state(v1::OPERATION_STATE_SUCCEEDED);
  EXPECT_THAT(RenderWhy(operation), HasSubstr("not kept"));
}

TEST(Why, SaysWhichRuleRefusedARequest) {
  v1::AuditRecord record;
  record.set_number(7);
  record.set_who("anna");
  record.set_request("StartOperation");
  record.set_subject("rollback prod");
  record.set_refusal("gate: the window of prod is shut. Nothing was changed");
  EXPECT_THAT(RenderWhy(record), HasSubstr("Refused by the rule: gate\n  the window of prod is shut"));
  EXPECT_EQ(nlohmann::json::parse(JsonWhy(record))["rule"], "gate");
  // As an earlier version wrote it.
  record.set_refusal("The window of prod is shut: wait");
  EXPECT_THAT(RenderWhy(record), HasSubstr("not on record\n  The window of prod is shut: wait"));
}

}  // namespace
}  // namespace rb::cli
