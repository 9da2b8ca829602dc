#include "controller/core/notify.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/text.h"

namespace rb::controller {
namespace {

constexpr size_t kLongestText = 1500;
constexpr absl::Duration kFirstPause = absl::Seconds(1);
constexpr absl::Duration kLongestPause = absl::Hours(1);

const char* const kPlaceholders[] = {"operation", "kind", "environment", "service", "outcome", "summary",
                                     "reason",    "by",   "recovery",    "target",  "hosts",   "announcement"};
constexpr char kAnnouncement[] = "{announcement}";
constexpr char kAnnouncedBefore[] = "{environment}/{service}: {announcement} (a {kind} begins)";
constexpr char kAnnouncedAfter[] = "{environment}/{service}: {announcement} (over: {outcome}. {summary})";

std::string KindOf(const Operation& operation) {
  switch (operation.plan.spec.kind) {
    case OperationKind::kRollback:
      return "rollback";
    case OperationKind::kDeploy:
      return "deploy";
    case OperationKind::kBackup:
      return "backup";
    case OperationKind::kUndo:
      return "undo";
    case OperationKind::kVerification:
      return "verification";
    case OperationKind::kRepair:
      return "repair";
    case OperationKind::kLocal:
      return "local";
    case OperationKind::kExternal:
      return "external";
    case OperationKind::kPrune:
      return "prune";
  }
  return "operation";
}

// What has happened last that somebody may want to know.
std::string EventOf(const Operation& operation) {
  switch (operation.state) {
    case OperationState::kSucceeded:
      return kEventSucceeded;
    case OperationState::kAborted:
      return kEventFailed;
    case OperationState::kReverted:
      return kEventReverted;
    case OperationState::kNeedsAttention:
      return kEventNeedsAttention;
    case OperationState::kWaiting:
      return kEventWaiting;
    default:
      return kEventStarted;
  }
}

bool Contains(const std::vector<std::string>& list, const std::string& one) {
  return std::find(list.begin(), list.end(), one) != list.end();
}

std::vector<std::string> HostsOf(const Operation& operation) {
  std::vector<std::string> hosts;
  for (const HostProgress& host : operation.hosts) hosts.push_back(host.plan.host);
  return hosts;
}

// What the placeholders stand for.
struct Words {
  std::string id, kind, environment, service, outcome, summary, reason, by, recovery, target, announcement;
  std::vector<std::string> hosts;
};

// What people wrote is replaced once: a brace in a reason stays one.
std::string Fill(const std::string& text, const Words& words) {
  const std::string filled = absl::StrReplaceAll(text, {{"{operation}", words.id},
                                                        {"{kind}", words.kind},
                                                        {"{environment}", words.environment},
                                                        {"{service}", words.service},
                                                        {"{outcome}", words.outcome},
                                                        {"{summary}", words.summary},
                                                        {"{reason}", words.reason},
                                                        {"{by}", words.by},
                                                        {"{recovery}", words.recovery},
                                                        {"{target}", words.target},
                                                        {kAnnouncement, words.announcement},
                                                        {"{hosts}", absl::StrJoin(words.hosts, ", ")}});
  return Truncate(Printable(std::string(absl::StripAsciiWhitespace(filled))), kLongestText);
}

Words WordsOf(const Operation& operation, const std::string& event) {
  const OperationSpec& spec = operation.plan.spec;
  Words words;
  words.id = operation.id;
  words.kind = KindOf(operation);
  words.environment = spec.environment;
  words.service = spec.service;
  words.outcome = event;
  words.summary = event == kEventWaiting ? WaitsFor(operation) : operation.summary;
  words.reason = spec.reason;
  words.by = operation.requested_by;
  if (IsFinal(operation.state)) words.recovery = FormatSeconds(operation.recovery);
  words.target = FormatSeconds(operation.plan.target);
  words.announcement = spec.announcement;
  words.hosts = HostsOf(operation);
  return words;
}

bool IsOf(const NotificationRule& rule, const std::vector<std::string>& environments) {
  return rule.environments.empty() ||
         std::any_of(environments.begin(), environments.end(),
                     [&](const std::string& one) { return Contains(rule.environments, one); });
}

bool Takes(const NotificationRule& rule, const std::string& event) {
  return rule.events.empty() ? event != kEventStarted : Contains(rule.events, event);
}

}  // namespace

std::vector<std::string> UnknownPlaceholders(const std::string& text) {
  std::vector<std::string> unknown;
  for (size_t begin = text.find('{'); begin != std::string::npos; begin = text.find('{', begin + 1)) {
    const size_t end = text.find('}', begin);
    if (end == std::string::npos) break;
    const std::string name = text.substr(begin + 1, end - begin - 1);
    const bool known =
        std::any_of(std::begin(kPlaceholders), std::end(kPlaceholders), [&](const char* one) { return name == one; });
    if (!known) unknown.push_back(name);
  }
  return unknown;
}

std::vector<Notification> NotificationsFor(const Operation& operation, const std::vector<NotificationRule>& rules,
                                           bool silences) {
  std::vector<Notification> owed;
  if (operation.id.empty()) return owed;
  const std::string event = EventOf(operation);
  const auto make = [&](const std::string& rule, const std::string& what) {
    Notification notification;
    notification.key = absl::StrCat(
        operation.id, "/", what, what == kEventWaiting ? absl::StrCat("-", operation.waits) : std::string(), "/", rule);
    notification.rule = rule;
    notification.event = what;
    notification.operation_id = operation.id;
    notification.environment = operation.plan.spec.environment;
    notification.service = operation.plan.spec.service;
    notification.hosts = HostsOf(operation);
    return notification;
  };
  const bool ended = IsFinal(operation.state);
  if (silences && ChangesHosts(operation.plan.spec.kind)) {
    Notification notification = make(kSilence, ended ? kEventLift : kEventSilence);
    notification.text = absl::StrCat(operation.id, ": ", KindOf(operation), " of ", operation.plan.spec.environment,
                                     "/", operation.plan.spec.service);
    owed.push_back(std::move(notification));
  }
  const std::vector<std::string> environments = EnvironmentsOf(operation.plan.spec);
  const bool is_rehearsed =
      !operation.plan.spec.drill_id.empty() && event != kEventNeedsAttention && event != kEventWaiting;
  for (const NotificationRule& rule : rules) {
    if (!IsOf(rule, environments)) continue;
    if (!operation.plan.spec.announcement.empty() && Takes(rule, kEventAnnouncement)) {
      Notification notification = make(rule.name, absl::StrCat(kEventAnnouncement, ended ? "-after" : "-before"));
      notification.event = kEventAnnouncement;
      notification.text = Fill(absl::StrContains(rule.text, kAnnouncement) ? rule.text
                               : ended                                     ? kAnnouncedAfter
                                                                           : kAnnouncedBefore,
                               WordsOf(operation, event));
      owed.push_back(std::move(notification));
    }
    if (is_rehearsed || !Takes(rule, event)) continue;
    Notification notification = make(rule.name, event);
    notification.text = Fill(rule.text.empty() ? kDefaultTemplate : rule.text, WordsOf(operation, event));
    owed.push_back(std::move(notification));
  }
  return owed;
}

std::vector<Notification> NotificationsFor(const Drill& drill, const std::vector<NotificationRule>& rules,
                                           bool silences) {
  std::vector<Notification> owed;
  if (drill.id.empty()) return owed;
  const bool ended = IsFinal(drill.state);
  Words words;
  words.id = drill.id;
  words.kind = absl::StrCat("drill of ", NameOf(drill.spec.fault));
  words.environment = drill.spec.environment;
  words.service = drill.spec.service;
  words.outcome = std::string(NameOf(drill.state));
  words.summary = drill.summary;
  words.reason = drill.spec.reason;
  words.by = drill.requested_by;
  if (const auto recovery = drill.operations.find(DrillRole::kRecovery); ended && recovery != drill.operations.end()) {
    words.recovery = FormatSeconds(recovery->second.recovery);
    words.target = FormatSeconds(recovery->second.target);
  }
  for (const DrillHost& host : drill.hosts) words.hosts.push_back(host.host);
  const auto make = [&](const std::string& rule, const std::string& event, std::string text) {
    Notification notification;
    notification.key = absl::StrCat(drill.id, "/", event, "/", rule);
    notification.rule = rule;
    notification.event = event;
    notification.operation_id = drill.id;
    notification.environment = drill.spec.environment;
    notification.service = drill.spec.service;
    notification.hosts = words.hosts;
    notification.text = std::move(text);
    owed.push_back(std::move(notification));
  };
  // One that waits for an approval breaks nothing yet.
  if (silences && drill.state != DrillState::kPlanned) {
    make(kSilence, ended ? kEventLift : kEventSilence,
         absl::StrCat(drill.id, ": ", words.kind, " in ", drill.spec.environment, "/", drill.spec.service));
  }
  if (!ended) return owed;
  const char* const event = drill.state == DrillState::kPassed ? kEventDrillPassed : kEventDrillFailed;
  for (const NotificationRule& rule : rules) {
    if (!IsOf(rule, {drill.spec.environment}) || !Takes(rule, event)) continue;
    make(rule.name, event, Fill(rule.text.empty() ? kDefaultTemplate : rule.text, words));
  }
  return owed;
}

bool TellsAnnouncements(const std::vector<NotificationRule>& rules, const std::vector<std::string>& environments) {
  return std::any_of(rules.begin(), rules.end(), [&](const NotificationRule& rule) {
    return IsOf(rule, environments) && Takes(rule, kEventAnnouncement);
  });
}

absl::Duration WaitBeforeAttempt(uint32_t attempts_made) {
  return std::min(kLongestPause, kFirstPause * (int64_t{1} << std::min(attempts_made, 12u)));
}

}  // namespace rb::controller
