// The agent's journal: events of agent/core/task/agent_state.h as wire messages, one record each.
#ifndef RB_AGENT_ADAPTERS_LINK_JOURNAL_H_
#define RB_AGENT_ADAPTERS_LINK_JOURNAL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/core/task/agent_state.h"
#include "common/record_journal.h"

namespace rb::agent {

// Not thread-safe.
class AgentJournal {
 public:
  // Reads <state_folder>/steps.journal through Decide into `state`; starts a shorter file when it has grown large.
  static absl::StatusOr<std::unique_ptr<AgentJournal>> Open(const std::string& state_folder,
                                                            const std::vector<std::string>& services,
                                                            AgentState* state);
  // Durable when it returns OK.
  absl::Status Append(const AgentEvent& event);

 private:
  explicit AgentJournal(std::unique_ptr<RecordJournal> journal) : journal_(std::move(journal)) {}
  std::unique_ptr<RecordJournal> journal_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LINK_JOURNAL_H_
