#ifndef RB_CONTROLLER_ADAPTERS_DRIVER_OBSERVER_H_
#define RB_CONTROLLER_ADAPTERS_DRIVER_OBSERVER_H_

#include <string>

#include "controller/core/operation.h"
#include "controller/core/plan.h"
#include "rb/v1/agent_link.pb.h"

namespace rb::controller {

// Who follows the driver's operations, and may rehearse with them. Called on the loop, in the middle of the driver's
// own work: what is to be done about it is posted.
class DriverObserver {
 public:
  virtual ~DriverObserver() = default;
  // After each event of it. `is_new`: it was just accepted.
  virtual void OnOperation(const Operation& /*operation*/, bool /*is_new*/) {}
  // It was accepted or its state has changed, which is recorded; and by Resume, for the newest ones.
  virtual void OnState(const Operation& /*operation*/) {}
  virtual void OnAgentConnected(const std::string& /*agent*/) {}
  virtual void OnReport(const std::string& /*agent*/, const v1::ServiceReport& /*report*/) {}
  // False when it is none of a fault.
  virtual bool OnFaultResult(const std::string& /*agent*/, const v1::TaskResult& /*result*/) { return false; }
  // The drill that a person's operation is part of; empty if none.
  virtual std::string DrillOf(const OperationSpec& /*spec*/) { return ""; }
  // True when the operation that holds the lock is a rehearsal, and ends soon for the sake of this request.
  virtual bool GiveWay(const std::string& /*holder_operation_id*/, const OperationSpec& /*spec*/) { return false; }
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DRIVER_OBSERVER_H_
