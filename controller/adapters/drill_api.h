#ifndef RB_CONTROLLER_ADAPTERS_DRILL_API_H_
#define RB_CONTROLLER_ADAPTERS_DRILL_API_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "controller/adapters/api_gate.h"
#include "controller/adapters/drills.h"
#include "controller/adapters/schedules.h"

namespace rb::controller {

// rb.v1.DrillService. Nothing is owned.
std::unique_ptr<grpc::Service> MakeDrillApi(ApiGate& gate, Drills& drills, Schedules& schedules);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DRILL_API_H_
