// What the wire does between the controller's types and the agent's, without the wire.
#ifndef RB_TESTS_SIM_TRANSLATE_H_
#define RB_TESTS_SIM_TRANSLATE_H_

#include <string>

#include "agent/core/task/task.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"

namespace rb::sim {

agent::Task TaskFor(const controller::Operation& operation, const controller::StartStep& step);
// `undo_release`: for an undo, what the operation replaced on that host.
agent::Task InspectTask(const controller::OperationSpec& spec, const std::string& step_id,
                        const std::string& undo_release);
controller::StepResult ResultFor(const agent::TaskResult& result);
controller::Inspection InspectionFor(const agent::TaskResult& result);

}  // namespace rb::sim

#endif  // RB_TESTS_SIM_TRANSLATE_H_
