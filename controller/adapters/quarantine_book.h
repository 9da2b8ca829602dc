// The quarantine as the controller keeps it (core/quarantine.h): folded from the store, told to agents.
#ifndef RB_CONTROLLER_ADAPTERS_QUARANTINE_BOOK_H_
#define RB_CONTROLLER_ADAPTERS_QUARANTINE_BOOK_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/clock.h"
#include "controller/adapters/agent_registry.h"
#include "controller/adapters/store.h"
#include "controller/core/fleet.h"
#include "controller/core/quarantine.h"
#include "rb/v1/agent_link.pb.h"
#include "rb/v1/quarantine_service.pb.h"

namespace rb::controller {

// All methods are called on the loop.
class QuarantineBook {
 public:
  // Nothing is owned.
  QuarantineBook(const Fleet& fleet, Store& store, AgentSender& sender, Clock& clock)
      : fleet_(fleet), store_(store), sender_(sender), clock_(clock) {}

  absl::Status Load();
  const Quarantine& all() const { return quarantine_; }

  // What the end of an operation changes, numbered; empty when it has not ended. To be kept with its last event, and
  // only then taken.
  std::vector<QuarantineChange> ChangesOf(const Operation& operation) const;
  // Agents that have the services are told.
  void Take(const std::vector<QuarantineChange>& changes);

  v1::ListQuarantineResponse List(const v1::ListQuarantineRequest& request) const;
  // Durable when it is not refused. An error of the store: nothing was changed.
  absl::Status Release(const v1::ReleaseQuarantineRequest& request, const std::string& by, Refusal* refusal,
                       v1::QuarantineEntry* released);
  void Tell(const std::string& agent) const;

 private:
  const Fleet& fleet_;
  Store& store_;
  AgentSender& sender_;
  Clock& clock_;
  Quarantine quarantine_;
  uint64_t last_number_ = 0;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_QUARANTINE_BOOK_H_
