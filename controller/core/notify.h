// Who is told what of an operation. Pure: from what an operation is now to the messages that are owed for it. Each has
// a key; whoever sends them keeps which keys were sent, so that asking again tells nobody twice.
#ifndef RB_CONTROLLER_CORE_NOTIFY_H_
#define RB_CONTROLLER_CORE_NOTIFY_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "controller/core/drill.h"
#include "controller/core/operation.h"

namespace rb::controller {

struct NotificationRule {
  std::string name;
  // Empty: all.
  std::vector<std::string> environments;
  // Empty: all but "started".
  std::vector<std::string> events;
  // Empty: kDefaultTemplate.
  std::string text;
};

struct Notification {
  // Unique: "OPERATION/EVENT/RULE". A drill has an id like an operation.
  std::string key;
  // The rule's name, or kSilence.
  std::string rule;
  std::string event;
  std::string operation_id;
  std::string environment;
  std::string service;
  std::string text;
  // Of the operation; for a silence.
  std::vector<std::string> hosts;
};

inline constexpr char kEventStarted[] = "started";
inline constexpr char kEventWaiting[] = "waiting";
inline constexpr char kEventSucceeded[] = "succeeded";
inline constexpr char kEventFailed[] = "failed";
inline constexpr char kEventReverted[] = "reverted";
inline constexpr char kEventNeedsAttention[] = "needs-attention";
// What --announce says, when the operation begins and when it is over.
inline constexpr char kEventAnnouncement[] = "announcement";
// A rehearsal has ended; its own operations are not told of, but for those that somebody has to look at.
inline constexpr char kEventDrillPassed[] = "drill-passed";
inline constexpr char kEventDrillFailed[] = "drill-failed";
inline const char* const kNotificationEvents[] = {kEventStarted,      kEventWaiting,     kEventSucceeded,
                                                  kEventFailed,       kEventReverted,    kEventNeedsAttention,
                                                  kEventAnnouncement, kEventDrillPassed, kEventDrillFailed};

// Rules may not be called so: the messages that make and lift silences.
inline constexpr char kSilence[] = "alertmanager silence";
inline constexpr char kEventSilence[] = "silence";
inline constexpr char kEventLift[] = "lift";

inline constexpr char kDefaultTemplate[] =
    "{kind} of {environment}/{service} ({operation}, {by}): {outcome}. {summary} {reason}";

// Placeholders of a template that there are not. Empty: it is right.
std::vector<std::string> UnknownPlaceholders(const std::string& text);

// What is owed for the operation as it is now. `silences`: Alertmanager is told as well, of whatever changes hosts.
std::vector<Notification> NotificationsFor(const Operation& operation, const std::vector<NotificationRule>& rules,
                                           bool silences);

std::vector<Notification> NotificationsFor(const Drill& drill, const std::vector<NotificationRule>& rules,
                                           bool silences);
// Whether somebody would be told of an announcement in one of these environments.
bool TellsAnnouncements(const std::vector<NotificationRule>& rules, const std::vector<std::string>& environments);

// One that could not be sent is tried again after so long; at most kMostAttempts times, which is about a day.
absl::Duration WaitBeforeAttempt(uint32_t attempts_made);
inline constexpr uint32_t kMostAttempts = 30;

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_NOTIFY_H_
