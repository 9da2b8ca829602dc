#ifndef RB_AGENT_ADAPTERS_PROBE_SERVICE_LOGS_H_
#define RB_AGENT_ADAPTERS_PROBE_SERVICE_LOGS_H_

#include <memory>
#include <string>

#include "agent/core/ports/service_log.h"
#include "common/clock.h"

namespace rb::agent {

// What the unit has written, and what systemd has said of it.
std::unique_ptr<ServiceLog> MakeJournalLog(std::string unit, Clock& clock);
// A file, absolute; opened beneath `tree` when it lies in it. One that was rotated or cut is read from its beginning.
std::unique_ptr<ServiceLog> MakeFileLog(std::string file, std::string tree);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_PROBE_SERVICE_LOGS_H_
