#ifndef RB_CONTROLLER_ADAPTERS_DRIVER_OBSERVER_H_
#define RB_CONTROLLER_ADAPTERS_DRIVER_OBSERVER_H_

#include <string>

#include "controller/core/operation.h"
#include "controller/core/plan.h"
#include "rb/v1/agent_link.pb.h"

namespace rb::controller {

// Who rehearses with the driver's operations. Called on the loop, in the middle of the driver's own work: what is to be
// done about it is posted.
class DriverObserver {
 public:
  virtual ~DriverObserver() = default;
  // After each event of it. `is_new`: it was just accepted.
  virtual void OnOperation(const Operation& operation, bool is_new) = 0;
  virtual void OnAgentConnected(const std::string& agent) = 0;
  virtual void OnReport(const std::string& agent, const v1::ServiceReport& report) = 0;
  // False when it is none of a fault.
  virtual bool OnFaultResult(const std::string& agent, const v1::TaskResult& result) = 0;
  // The drill that a person's operation is part of; empty if none.
  virtual std::string DrillOf(const OperationSpec& spec) = 0;
  // True when the operation that holds the lock is a rehearsal, and ends soon for the sake of this request.
  virtual bool GiveWay(const std::string& holder_operation_id, const OperationSpec& spec) = 0;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DRIVER_OBSERVER_H_
