#ifndef RB_AGENT_CORE_PORTS_FAULT_TOOLS_H_
#define RB_AGENT_CORE_PORTS_FAULT_TOOLS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/core/fault/fault.h"

namespace rb::agent {

// Breaks a service's files on purpose, and mends them. One caller at a time; the service is stopped while Break and
// Mend work on its files.
class FaultTools {
 public:
  virtual ~FaultTools() = default;
  // What would be broken, and how that is undone; changes nothing but what a clean stop would (a database's journal is
  // written back). FAILED_PRECONDITION when it cannot be done here.
  virtual absl::StatusOr<FaultPlan> Plan(FaultKind kind, const std::string& drill_id) = 0;
  // Durable when OK. After an error some of it may be broken: Mend.
  virtual absl::Status Break(const FaultPlan& plan) = 0;
  // OK when the fault is one that would be noticed: SQLite really refuses the database.
  virtual absl::Status CheckBroken(const FaultPlan& plan) = 0;
  // How many places are still broken by this plan.
  virtual absl::StatusOr<uint32_t> CountBroken(const FaultPlan& plan) = 0;
  // Puts back what is still broken by this plan, and nothing else; any number of times. How many places that were.
  virtual absl::StatusOr<uint32_t> Mend(const FaultPlan& plan) = 0;
  // Kills this process, or cuts this host's power. Returns only when that failed.
  virtual absl::Status Strike(FaultKind kind) = 0;
};

// Keeps the one fault of a service, durable when a call returns OK.
class FaultRecords {
 public:
  virtual ~FaultRecords() = default;
  // NOT_FOUND when there never was one.
  virtual absl::StatusOr<FaultRecord> Load() = 0;
  virtual absl::Status Save(const FaultRecord& record) = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_FAULT_TOOLS_H_
