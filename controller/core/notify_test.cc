#include "controller/core/notify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "absl/strings/str_cat.h"

namespace rb::controller {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Operation Rollback(OperationState state) {
  Operation operation;
  operation.id = "op-1";
  operation.state = state;
  operation.requested_by = "alice";
  operation.summary = "prod is healthy on v1";
  operation.plan.spec.environment = "prod";
  operation.plan.spec.service = "bot";
  operation.plan.spec.reason = "it burns {summary}";
  operation.hosts.resize(2);
  operation.hosts[0].plan.host = "p1";
  operation.hosts[1].plan.host = "p2";
  return operation;
}

std::vector<std::string> KeysOf(const std::vector<Notification>& notifications) {
  std::vector<std::string> keys;
  for (const Notification& one : notifications) keys.push_back(one.key);
  return keys;
}

TEST(Notify, EachRuleGetsWhatItAskedFor) {
  NotificationRule all{"all", {}, {}, ""};
  NotificationRule test{"test", {"test"}, {}, ""};
  NotificationRule started{"started", {"prod"}, {"started"}, ""};
  const std::vector<NotificationRule> rules = {all, test, started};
  EXPECT_THAT(KeysOf(NotificationsFor(Rollback(OperationState::kSucceeded), rules, false)),
              ElementsAre("op-1/succeeded/all"));
  EXPECT_THAT(KeysOf(NotificationsFor(Rollback(OperationState::kCommitting), rules, false)),
              ElementsAre("op-1/started/started"));
  EXPECT_THAT(KeysOf(NotificationsFor(Rollback(OperationState::kNeedsAttention), rules, false)),
              ElementsAre("op-1/needs-attention/all"));
  // One that goes through test is of interest there as well.
  Operation through = Rollback(OperationState::kReverted);
  through.plan.spec.through = {"test", "prod"};
  EXPECT_THAT(KeysOf(NotificationsFor(through, rules, false)), ElementsAre("op-1/reverted/all", "op-1/reverted/test"));
}

TEST(Notify, TheSecondWaitIsAnother) {
  const std::vector<NotificationRule> rules = {{"all", {}, {}, ""}};
  Operation operation = Rollback(OperationState::kWaiting);
  operation.waits = 2;
  EXPECT_THAT(KeysOf(NotificationsFor(operation, rules, false)), ElementsAre("op-1/waiting-2/all"));
}

TEST(Notify, HostsAreSilencedWhileTheyChange) {
  EXPECT_THAT(KeysOf(NotificationsFor(Rollback(OperationState::kPreparing), {}, true)),
              ElementsAre("op-1/silence/alertmanager silence"));
  for (const OperationState state : kAllOperationStates) {
    if (!IsFinal(state)) continue;
    const std::vector<Notification> owed = NotificationsFor(Rollback(state), {}, true);
    ASSERT_EQ(owed.size(), 1u) << "whatever the end";
    EXPECT_EQ(owed[0].event, kEventLift);
    EXPECT_THAT(owed[0].hosts, ElementsAre("p1", "p2"));
  }
  Operation backup = Rollback(OperationState::kPreparing);
  backup.plan.spec.kind = OperationKind::kBackup;
  EXPECT_THAT(NotificationsFor(backup, {}, true), IsEmpty());
}

TEST(Notify, ATemplateIsFilledInOnce) {
  const std::vector<NotificationRule> rules = {{"a", {}, {}, "{by}: {reason} on {hosts}"}};
  EXPECT_EQ(NotificationsFor(Rollback(OperationState::kSucceeded), rules, false).at(0).text,
            "alice: it burns {summary} on p1, p2");
  EXPECT_THAT(UnknownPlaceholders("{by} {who} {"), ElementsAre("who"));
  EXPECT_THAT(UnknownPlaceholders(kDefaultTemplate), IsEmpty());
}

TEST(Notify, AttemptsAreBounded) {
  EXPECT_EQ(WaitBeforeAttempt(0), absl::Seconds(1));
  EXPECT_EQ(WaitBeforeAttempt(3), absl::Seconds(8));
  absl::Duration all;
  for (uint32_t i = 0; i < kMostAttempts; ++i) all += WaitBeforeAttempt(i);
  EXPECT_GT(all, absl::Hours(12));
  EXPECT_LT(all, absl::Hours(36));
}

TEST(Notify, AnAnnouncementIsMadeBeforeAndAfter) {
  NotificationRule users{"users", {"prod"}, {"announcement"}, ""};
  NotificationRule others{"others", {"test"}, {"announcement"}, ""};
  NotificationRule own{"own", {}, {"announcement"}, "<{announcement}>"};
  const std::vector<NotificationRule> rules = {users, others, own};
  Operation operation = Rollback(OperationState::kPreparing);
  EXPECT_THAT(NotificationsFor(operation, rules, false), IsEmpty());
  operation.plan.spec.announcement = "back in a minute";
  std::vector<Notification> owed = NotificationsFor(operation, rules, false);
  EXPECT_THAT(KeysOf(owed), ElementsAre("op-1/announcement-before/users", "op-1/announcement-before/own"));
  EXPECT_EQ(owed[0].text, "prod/bot: back in a minute (a rollback begins)");
  EXPECT_EQ(owed[0].event, "announcement");
  EXPECT_EQ(owed[1].text, "<back in a minute>");
  // Whatever the end.
  for (const OperationState end : {OperationState::kSucceeded, OperationState::kAborted, OperationState::kReverted,
                                   OperationState::kNeedsAttention}) {
    operation.state = end;
    owed = NotificationsFor(operation, rules, false);
    EXPECT_THAT(KeysOf(owed), ElementsAre("op-1/announcement-after/users", "op-1/announcement-after/own"));
    EXPECT_THAT(owed[0].text, HasSubstr("prod/bot: back in a minute (over: "));
  }
  EXPECT_TRUE(TellsAnnouncements(rules, {"prod"}));
  EXPECT_FALSE(TellsAnnouncements({others}, {"prod"}));
  EXPECT_FALSE(TellsAnnouncements({{"chat", {}, {"failed"}, ""}}, {"prod"}));
}

TEST(Notify, ADrillIsToldAsOneAndItsOperationsAreNot) {
  const std::vector<NotificationRule> rules = {{"all", {}, {}, "{kind} {outcome}: {summary}"}};
  Operation rehearsed = Rollback(OperationState::kReverted);
  rehearsed.plan.spec.drill_id = "drill-1";
  EXPECT_THAT(NotificationsFor(rehearsed, rules, false), IsEmpty());
  rehearsed.state = OperationState::kNeedsAttention;
  EXPECT_THAT(KeysOf(NotificationsFor(rehearsed, rules, false)), ElementsAre("op-1/needs-attention/all"));

  Drill drill;
  drill.id = "drill-1";
  drill.spec.environment = "prod";
  drill.spec.service = "bot";
  drill.hosts.resize(1);
  drill.hosts[0].host = "p1";
  EXPECT_THAT(NotificationsFor(drill, rules, true), IsEmpty()) << "it may wait for an approval";
  drill.state = DrillState::kInjecting;
  std::vector<Notification> owed = NotificationsFor(drill, rules, true);
  EXPECT_THAT(KeysOf(owed), ElementsAre("drill-1/silence/alertmanager silence"));
  EXPECT_THAT(owed[0].hosts, ElementsAre("p1"));
  // Whatever the end, the silence is lifted.
  drill.summary = "as it should";
  for (const auto& [end, event] :
       {std::pair{DrillState::kPassed, "drill-passed"}, std::pair{DrillState::kMissedTarget, "drill-failed"},
        std::pair{DrillState::kFailed, "drill-failed"}, std::pair{DrillState::kStopped, "drill-failed"}}) {
    drill.state = end;
    owed = NotificationsFor(drill, rules, true);
    EXPECT_THAT(KeysOf(owed),
                ElementsAre("drill-1/lift/alertmanager silence", absl::StrCat("drill-1/", event, "/all")));
    EXPECT_THAT(owed[1].text, HasSubstr(": as it should"));
  }
}

}  // namespace
}  // namespace rb::controller
