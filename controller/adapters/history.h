// What is kept of operations that are over, and what plans make of it.
#ifndef RB_CONTROLLER_ADAPTERS_HISTORY_H_
#define RB_CONTROLLER_ADAPTERS_HISTORY_H_

#include <vector>

#include "controller/adapters/store.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// For a list, of any length: without the plan, and of the hosts only what the first one went to.
v1::Operation Brief(v1::Operation operation);

// What its hosts took; none unless it has succeeded. At most kMostTimeSamples.
std::vector<StoredTime> TimesOf(const Operation& operation);
void LearnTimes(const std::vector<StoredTime>& stored, PlanningHistory* history);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_HISTORY_H_
