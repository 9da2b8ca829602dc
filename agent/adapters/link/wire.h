// Between the wire's messages and the core's types.
#ifndef RB_AGENT_ADAPTERS_LINK_WIRE_H_
#define RB_AGENT_ADAPTERS_LINK_WIRE_H_

#include "absl/status/statusor.h"
#include "agent/core/task/task.h"
#include "rb/v1/agent_link.pb.h"
#include "rb/v1/types.pb.h"

namespace rb::agent {

// INVALID_ARGUMENT for a task without a step, or with values that make no sense.
absl::StatusOr<Task> FromWire(const v1::Task& task);
TaskResult FromWire(const v1::TaskResult& result);
v1::Task ToWire(const Task& task);
v1::TaskResult ToWire(const TaskResult& result);
v1::TaskProgress ToWire(const TaskProgress& progress);
v1::Release ToWire(const Release& release);
v1::ProbeResult ToWire(const ProbeResult& probe);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LINK_WIRE_H_
