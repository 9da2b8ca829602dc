#ifndef RB_AGENT_ADAPTERS_FAULT_FAULT_RECORDS_H_
#define RB_AGENT_ADAPTERS_FAULT_FAULT_RECORDS_H_

#include <string>

#include "agent/core/ports/fault_tools.h"

namespace rb::agent {

// One file: <state_folder>/faults/<service>.
class FileFaultRecords final : public FaultRecords {
 public:
  FileFaultRecords(const std::string& state_folder, const std::string& service);
  // DATA_LOSS when the file cannot be read.
  absl::StatusOr<FaultRecord> Load() override;
  absl::Status Save(const FaultRecord& record) override;

 private:
  const std::string folder_;
  const std::string path_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_FAULT_FAULT_RECORDS_H_
