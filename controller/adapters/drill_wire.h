// Between messages (the wire's, the journal's) and the core's types of drills.
#ifndef RB_CONTROLLER_ADAPTERS_DRILL_WIRE_H_
#define RB_CONTROLLER_ADAPTERS_DRILL_WIRE_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "controller/core/drill.h"
#include "rb/v1/agent_link.pb.h"
#include "rb/v1/drill_service.pb.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// INVALID_ARGUMENT for a request that contradicts the contract.
absl::StatusOr<DrillSpec> FromWire(const v1::DrillSpec& wire);
v1::DrillSpec ToWire(const DrillSpec& spec);
// Without what is secret while a drill by hand runs.
v1::Drill ToWire(const Drill& drill);
v1::DrillState ToWire(DrillState state);
FaultReport FromWire(const v1::FaultReport& wire);
v1::FaultReport ToWire(const FaultReport& report, const Drill& drill);
// What a drill cares about.
DrillOperation DrillOperationOf(const v1::Operation& operation);
v1::Task FaultTask(const Drill& drill, const SendFault& effect);

std::string EncodeDrillEvent(const DrillEventRecord& event);
// DATA_LOSS. Total.
absl::StatusOr<DrillEventRecord> DecodeDrillEvent(absl::string_view bytes);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DRILL_WIRE_H_
