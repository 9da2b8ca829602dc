// Injects and ends the fault of one service. What undoes it is on the disk before anything is broken, so that it is
// undone whoever is killed: by the drill, when its time is up, or at the next start of the agent.
#ifndef RB_AGENT_CORE_FAULT_FAULT_KEEPER_H_
#define RB_AGENT_CORE_FAULT_FAULT_KEEPER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "agent/core/fault/fault.h"
#include "agent/core/ports/fault_tools.h"
#include "common/clock.h"

namespace rb::agent {

// All calls on the service's own thread, one after another, between its steps.
class FaultKeeper {
 public:
  struct Ports {
    FaultTools* tools = nullptr;
    FaultRecords* records = nullptr;
    Clock* clock = nullptr;
    // Stop and start the service, as a step does.
    std::function<absl::Status()> stop;
    std::function<absl::Status()> start;
    // The operation that is open on this host; empty if none.
    std::function<std::string()> open_operation;
    // What the server's own file allows.
    std::vector<FaultKind> allowed;
    absl::Duration longest = absl::Minutes(15);
  };

  // Nothing is owned, but by the functions.
  explicit FaultKeeper(Ports ports) : ports_(std::move(ports)) {}

  // At the start of the agent, before anything else: learns what an earlier process has left.
  absl::Status Recover();

  // OK: it is in (or armed), and so it was if it was before. FAILED_PRECONDITION: not allowed, another fault is in, an
  // operation is open, or this drill's has ended already: nothing was broken then. After any other error nothing is
  // left broken, or the record is open and the end is tried again.
  absl::Status Inject(FaultKind kind, const std::string& drill_id, absl::Duration duration);

  // OK: nothing is broken any more, whoever mended it. UNAVAILABLE: an operation is open, whose undo might bring the
  // broken state back: what is broken is mended, and the record stays open until the operation is over.
  absl::Status End(const std::string& drill_id);

  // Ends it when its time is up. Called every now and then, while IsOpen.
  void Tick();

  // A step has come to its most dangerous place: what is armed strikes.
  void OnSwapping();

  const FaultRecord& record() const { return record_; }
  const std::vector<FaultKind>& allowed() const { return ports_.allowed; }

 private:
  absl::Status Save();
  absl::Status MendNow(bool may_be_stopped, uint32_t* put_back);

  const Ports ports_;
  FaultRecord record_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_FAULT_FAULT_KEEPER_H_
