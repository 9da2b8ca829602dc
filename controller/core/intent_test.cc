#include "controller/core/intent.h"

#include "common/test_util.h"

namespace rb::controller {
namespace {

using ::testing::HasSubstr;
using Ended = OperationEnd::Host::Ended;

constexpr absl::Time kThen = absl::FromUnixSeconds(1'800'000'000);

OperationEnd End(std::vector<OperationEnd::Host> hosts, const std::string& id = "op-1",
                 const std::string& to = "aaaa") {
  OperationEnd end;
  end.id = id;
  end.service = "bot";
  end.at = kThen;
  end.to_commit = to;
  end.to_version = "v1";
  end.hosts = std::move(hosts);
  return end;
}

OperationSpec Repair(const std::string& host) {
  OperationSpec spec;
  spec.kind = OperationKind::kRepair;
  spec.hosts = {host};
  return spec;
}

TEST(Intent, AHostThatMissedItIsMeantToBeWhereTheOthersAre) {
  const struct {
    const char* what;
    Ended first;
    Ended second;
    const char* second_is_meant_to_run;
  } cases[] = {
      {"both there", Ended::kOnTarget, Ended::kOnTarget, ""},
      {"both back", Ended::kOnOld, Ended::kOnOld, ""},
      {"one offline", Ended::kOnTarget, Ended::kMissed, "aaaa"},
      {"one offline, the other went back", Ended::kOnOld, Ended::kMissed, ""},
      {"one silent", Ended::kOnTarget, Ended::kUnknown, "aaaa"},
      {"one silent, the other went back", Ended::kOnOld, Ended::kUnknown, "oooo"},
  };
  for (const auto& one : cases) {
    Intents intents;
    LearnEnd(End({{"h1", "prod", one.first, "oooo"}, {"h2", "prod", one.second, "oooo"}}), &intents);
    EXPECT_FALSE(intents.contains({"bot", "h1"})) << one.what;
    const auto found = intents.find({"bot", "h2"});
    ASSERT_EQ(found != intents.end(), one.second_is_meant_to_run[0] != '\0') << one.what;
    if (found == intents.end()) continue;
    EXPECT_EQ(found->second.commit, one.second_is_meant_to_run) << one.what;
    EXPECT_EQ(found->second.expires_at, kThen + kIntentLife) << one.what;
  }
}

TEST(Intent, IsGoneWhenTheHostHasTakenPartOrRunsIt) {
  Intents intents;
  const OperationEnd missed = End({{"h1", "prod", Ended::kOnTarget, ""}, {"h2", "prod", Ended::kMissed, ""}});
  LearnEnd(missed, &intents);
  LearnReport("bot", "h2", "bbbb", false, &intents);
  LearnReport("bot", "h2", "aaaa", true, &intents);
  EXPECT_EQ(intents.size(), 1u) << "it runs something else, or something changed by hand";
  LearnReport("bot", "h2", "aaaa", false, &intents);
  EXPECT_TRUE(intents.empty());
  LearnEnd(missed, &intents);
  LearnEnd(End({{"h2", "prod", Ended::kOnTarget, ""}}, "op-2", "cccc"), &intents);
  EXPECT_TRUE(intents.empty());
}

TEST(Intent, ARepairGoesWhereTheHostIsMeantToBeUntilThatExpires) {
  Intents intents;
  LearnEnd(End({{"h1", "prod", Ended::kOnTarget, ""}, {"h2", "prod", Ended::kMissed, ""}}), &intents);
  OperationSpec spec = Repair("h2");
  ASSERT_FALSE(ResolveRepair(intents, kThen + kIntentLife - absl::Seconds(1), &spec).refused());
  EXPECT_EQ(spec.environment, "prod");
  EXPECT_EQ(spec.service, "bot");
  EXPECT_EQ(spec.target.name, "aaaa");
  spec = Repair("h2");
  const Refusal late = ResolveRepair(intents, kThen + kIntentLife, &spec);
  EXPECT_THAT(late.message, HasSubstr("expired"));
  EXPECT_EQ(late.next_command, "rbctl rollback prod --host h2 --to aaaa");
  spec = Repair("h1");
  EXPECT_THAT(ResolveRepair(intents, kThen, &spec).message, HasSubstr("has missed nothing"));
  spec = Repair("h2");
  spec.hosts.clear();
  EXPECT_EQ(ResolveRepair(intents, kThen, &spec).code, Refusal::Code::kBadRequest);
  intents[{"web", "h2"}] = intents[{"bot", "h2"}];
  spec = Repair("h2");
  EXPECT_EQ(ResolveRepair(intents, kThen, &spec).code, Refusal::Code::kUnknownService);
}

}  // namespace
}  // namespace rb::controller
