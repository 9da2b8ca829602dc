#include "controller/core/notify.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
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
                                     "reason",    "by",   "recovery",    "target",  "hosts"};

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

// What people wrote is replaced once: a brace in a reason stays one.
std::string Fill(const std::string& text, const Operation& operation, const std::string& event) {
  const OperationSpec& spec = operation.plan.spec;
  const bool ended = IsFinal(operation.state);
  const std::string filled =
      absl::StrReplaceAll(text, {{"{operation}", operation.id},
                                 {"{kind}", KindOf(operation)},
                                 {"{environment}", spec.environment},
                                 {"{service}", spec.service},
                                 {"{outcome}", event},
                                 {"{summary}", event == kEventWaiting ? WaitsFor(operation) : operation.summary},
                                 {"{reason}", spec.reason},
                                 {"{by}", operation.requested_by},
                                 {"{recovery}", ended ? FormatSeconds(operation.recovery) : ""},
                                 {"{target}", FormatSeconds(operation.plan.target)},
                                 {"{hosts}", absl::StrJoin(HostsOf(operation), ", ")}});
  return Truncate(Printable(std::string(absl::StripAsciiWhitespace(filled))), kLongestText);
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
  if (silences && ChangesHosts(operation.plan.spec.kind)) {
    const bool ended = IsFinal(operation.state);
    Notification notification = make(kSilence, ended ? kEventLift : kEventSilence);
    notification.text = absl::StrCat(operation.id, ": ", KindOf(operation), " of ", operation.plan.spec.environment,
                                     "/", operation.plan.spec.service);
    owed.push_back(std::move(notification));
  }
  const std::vector<std::string> environments = EnvironmentsOf(operation.plan.spec);
  for (const NotificationRule& rule : rules) {
    const bool of_environment = rule.environments.empty() ||
                                std::any_of(environments.begin(), environments.end(),
                                            [&](const std::string& one) { return Contains(rule.environments, one); });
    const bool of_event = rule.events.empty() ? event != kEventStarted : Contains(rule.events, event);
    if (!of_environment || !of_event) continue;
    Notification notification = make(rule.name, event);
    notification.text = Fill(rule.text.empty() ? kDefaultTemplate : rule.text, operation, event);
    owed.push_back(std::move(notification));
  }
  return owed;
}

absl::Duration WaitBeforeAttempt(uint32_t attempts_made) {
  return std::min(kLongestPause, kFirstPause * (int64_t{1} << std::min(attempts_made, 12u)));
}

}  // namespace rb::controller
