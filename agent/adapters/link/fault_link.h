// Faults over the link.
#ifndef RB_AGENT_ADAPTERS_LINK_FAULT_LINK_H_
#define RB_AGENT_ADAPTERS_LINK_FAULT_LINK_H_

#include "agent/core/fault/fault_keeper.h"
#include "rb/v1/agent_link.pb.h"

namespace rb::agent {

v1::FaultReport ToWire(const FaultRecord& record);
// Which faults are allowed, and which is in.
void FillFaults(const FaultKeeper& faults, v1::ServiceReport* report);
// Carries a fault step out; on the service's own thread.
v1::TaskResult RunFaultTask(const v1::Task& task, FaultKeeper& faults);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LINK_FAULT_LINK_H_
