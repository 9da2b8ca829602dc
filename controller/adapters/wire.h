// Between messages (the wire's, the journal's) and the core's types.
#ifndef RB_CONTROLLER_ADAPTERS_WIRE_H_
#define RB_CONTROLLER_ADAPTERS_WIRE_H_

#include <optional>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "controller/core/intent.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"
#include "controller/core/quarantine.h"
#include "rb/v1/agent_link.pb.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// INVALID_ARGUMENT for a request that contradicts the contract.
absl::StatusOr<OperationSpec> FromWire(const v1::OperationSpec& wire);
v1::OperationSpec ToWire(const OperationSpec& spec);
v1::Plan ToWire(const Plan& plan);
v1::Refusal ToWire(const Refusal& refusal);
StepResult FromWire(const v1::TaskResult& wire);
Inspection InspectionFromWire(const v1::TaskResult& wire);
v1::Operation ToWire(const Operation& operation);
// Without the plan, and with these hosts only.
v1::Operation ToWire(const Operation& operation, const std::set<std::string>& hosts);
v1::OperationState ToWire(OperationState state);
// Absent for one that runs, or moved no host.
std::optional<OperationEnd> EndOf(const v1::Operation& operation);

// What a host reports as the event that puts it into the history.
Reported ReportedFrom(const v1::HostRecord& record, const std::string& operation_id, const std::string& host,
                      const std::string& environment);
v1::QuarantineEntry ToWire(const QuarantineEntry& entry);

v1::Task TaskFor(const Operation& operation, const StartStep& step);
v1::Task InspectTask(const OperationSpec& spec, const std::string& step_id, const std::string& undo_release);

std::string EncodeEvent(const Event& event);
// DATA_LOSS. Total.
absl::StatusOr<Event> DecodeEvent(absl::string_view bytes);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_WIRE_H_
