// What the agent keeps beside its engine: the fleet's quarantine, for when the controller is away, and records of what
// was done here without the controller, until it has them in its history. Small durable files below the state folder,
// so that the daemon, `rb-agent local` and `rb-agent guard` can use them side by side.
#ifndef RB_AGENT_ADAPTERS_RECORDS_HOST_RECORDS_H_
#define RB_AGENT_ADAPTERS_RECORDS_HOST_RECORDS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/core/task/quarantine.h"
#include "rb/v1/agent_link.pb.h"

namespace rb::agent {

// Beyond so many, the oldest are forgotten: a host that never hears of a controller again is not to fill its disk.
inline constexpr size_t kMostRecordsOwed = 500;

// Fills in the id. Durable when OK.
absl::Status OweRecord(const std::string& state_folder, v1::HostRecord record);
// Oldest first.
std::vector<v1::HostRecord> RecordsOwed(const std::string& state_folder);
absl::Status ForgetRecord(const std::string& state_folder, const std::string& id);

std::vector<QuarantineEntry> LoadQuarantine(const std::string& state_folder);
absl::Status SaveQuarantine(const std::string& state_folder, const v1::QuarantineList& list);
std::vector<QuarantineEntry> FromWire(const v1::QuarantineList& list);

// Between `rb-agent guard before` and `after`; absent when nobody deploys. `from_release` holds what was there before.
std::optional<v1::HostRecord> LoadGuard(const std::string& state_folder, const std::string& service);
absl::Status SaveGuard(const std::string& state_folder, const v1::HostRecord& guard);
absl::Status RemoveGuard(const std::string& state_folder, const std::string& service);

// Who is at work here, as sudo says or else the process's own user.
std::string UserOfHost();

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_RECORDS_HOST_RECORDS_H_
