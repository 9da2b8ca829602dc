#ifndef RB_AGENT_ADAPTERS_FAULT_TREE_FAULT_TOOLS_H_
#define RB_AGENT_ADAPTERS_FAULT_TREE_FAULT_TOOLS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "agent/core/ports/database_copier.h"
#include "agent/core/ports/fault_tools.h"
#include "agent/core/service.h"

namespace rb::v1 {
class AgentServiceConfig;
}  // namespace rb::v1

namespace rb::agent {

// Works on the files of the tree in place, so that owner, mode and attributes stay; never through a link, and never on
// what has other names or capabilities.
class TreeFaultTools final : public FaultTools {
 public:
  struct Options {
    ServiceTree tree;
    // Relative to the tree. Code and config, when empty: the first such file that `command` names; with none, and
    // without a database, that fault is refused.
    std::string code_file;
    std::string config_file;
    std::string database;
    std::vector<std::string> command;
    // Not owned; may be null without a database.
    DatabaseCopier* copier = nullptr;
    // What stays free of a full disk. Absent: what a recovery of this very tree takes, so that one can succeed.
    std::optional<uint64_t> reserve_bytes;
    uint64_t most_bytes = uint64_t{10} << 30;
    // On the tree's filesystem; empty: the folder that the tree lies in.
    std::string filler_folder;
    std::vector<std::string> power_cut_command;
    absl::Duration power_cut_patience = absl::Seconds(15);
  };
  // What agent.yaml says, with its defaults.
  static Options OptionsFor(const v1::AgentServiceConfig& config, const ServiceTree& tree, DatabaseCopier* copier);

  explicit TreeFaultTools(Options options) : options_(std::move(options)) {}

  absl::StatusOr<FaultPlan> Plan(FaultKind kind, const std::string& drill_id) override;
  absl::Status Break(const FaultPlan& plan) override;
  absl::Status CheckBroken(const FaultPlan& plan) override;
  absl::StatusOr<uint32_t> CountBroken(const FaultPlan& plan) override;
  absl::StatusOr<uint32_t> Mend(const FaultPlan& plan) override;
  absl::Status Strike(FaultKind kind) override;

 private:
  // Looked for at each fault: when the agent starts, the tree may not be there yet.
  std::string CommandFile(const std::string& named, Component component) const;
  absl::Status PlanDiskFull(const std::string& drill_id, FaultPlan* plan) const;
  uint64_t ReserveBytes() const;

  const Options options_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_FAULT_TREE_FAULT_TOOLS_H_
