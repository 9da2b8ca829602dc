#include "agent/adapters/link/fault_link.h"

#include "common/adapters/proto_time.h"
#include "common/text.h"

namespace rb::agent {

v1::FaultReport ToWire(const FaultRecord& record) {
  v1::FaultReport wire;
  wire.set_drill_id(record.drill_id);
  wire.set_kind(static_cast<v1::FaultKind>(static_cast<int>(record.plan.kind) + 1));
  wire.set_state(static_cast<v1::FaultReport::State>(static_cast<int>(record.state)));
  *wire.mutable_injected_at() = ToProto(record.injected_at);
  *wire.mutable_ends_at() = ToProto(record.ends_at);
  wire.set_what(Printable(record.plan.what));
  wire.set_put_back(record.put_back);
  wire.set_ended_alone(record.ended_alone);
  wire.set_struck(HasStruck(record));
  *wire.mutable_away() = ToProto(record.away);
  return wire;
}

void FillFaults(const FaultKeeper& faults, v1::ServiceReport* report) {
  for (const FaultKind kind : faults.allowed()) {
    report->add_allowed_faults(static_cast<v1::FaultKind>(static_cast<int>(kind) + 1));
  }
  if (faults.record().state != FaultState::kNone) *report->mutable_fault() = ToWire(faults.record());
}

v1::TaskResult RunFaultTask(const v1::Task& task, FaultKeeper& faults) {
  v1::TaskResult result;
  result.set_operation_id(task.operation_id());
  result.set_step_id(task.step_id());
  result.set_service(task.service());
  absl::Status status;
  if (task.fault().action() == v1::FaultStep::ACTION_END) {
    status = faults.End(task.operation_id());
  } else if (task.fault().action() != v1::FaultStep::ACTION_INJECT || task.fault().kind() < v1::FAULT_KIND_BAD_CODE ||
             task.fault().kind() > v1::FAULT_KIND_DISK_FULL) {
    status = absl::InvalidArgumentError("this agent does not know that fault. Nothing was changed");
  } else {
    status = faults.Inject(static_cast<FaultKind>(static_cast<int>(task.fault().kind()) - 1), task.operation_id(),
                           FromProto(task.fault().duration()));
  }
  result.set_code(static_cast<int>(status.code()));
  result.set_message(Truncate(Printable(std::string(status.message())), 4096));
  if (faults.record().drill_id == task.operation_id()) *result.mutable_fault() = ToWire(faults.record());
  return result;
}

}  // namespace rb::agent
