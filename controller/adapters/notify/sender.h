// Sends one notification to where its rule says. Blocks, for a bounded time.
#ifndef RB_CONTROLLER_ADAPTERS_NOTIFY_SENDER_H_
#define RB_CONTROLLER_ADAPTERS_NOTIFY_SENDER_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "controller/core/notify.h"
#include "rb/v1/fleet_config.pb.h"

namespace rb::controller {

// What is wrong with `notifications` in the fleet file: (".key.key", what). Opens no file.
std::vector<std::pair<std::string, std::string>> CheckNotifications(const v1::NotificationsConfig& config,
                                                                    const std::vector<std::string>& environments);
std::vector<NotificationRule> RulesOf(const v1::NotificationsConfig& config);

// UNAVAILABLE: worth trying again. No error holds a secret, nor an address that is one. `now`: UTC.
absl::Status Send(const v1::NotificationsConfig& config, const Notification& notification, absl::Time now);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_NOTIFY_SENDER_H_
