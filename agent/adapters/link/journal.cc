#include "agent/adapters/link/journal.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/adapters/link/wire.h"
#include "common/status.h"

namespace rb::agent {
namespace {

// First byte of a record.
constexpr char kTask = 'T';
constexpr char kEnded = 'E';
constexpr char kStored = 'S';
constexpr char kOver = 'O';
constexpr char kPatience = 'P';

constexpr uint64_t kLargeBytes = 4 << 20;
// What a shorter journal begins with: the newest records, enough for every service's results.
constexpr size_t kRecordsKept = 1000;

std::string Encode(const AgentEvent& event) {
  if (const auto* task = std::get_if<TaskArrived>(&event)) {
    return absl::StrCat(std::string(1, kTask), ToWire(task->task).SerializeAsString());
  }
  if (const auto* ended = std::get_if<StepEnded>(&event)) {
    return absl::StrCat(std::string(1, kEnded), ToWire(ended->result).SerializeAsString());
  }
  if (const auto* stored = std::get_if<ResultStored>(&event)) {
    return absl::StrCat(std::string(1, kStored), stored->step_id);
  }
  if (const auto* over = std::get_if<OperationIsOver>(&event)) {
    return absl::StrCat(std::string(1, kOver), over->operation_id);
  }
  const auto& patience = std::get<PatienceEnded>(event);
  return absl::StrCat(std::string(1, kPatience), patience.number, " ", patience.service);
}

absl::StatusOr<AgentEvent> Decode(const std::string& record) {
  const absl::Status damaged = absl::DataLossError("the step journal has a record that cannot be read");
  if (record.empty()) return damaged;
  const std::string body = record.substr(1);
  switch (record[0]) {
    case kTask: {
      v1::Task wire;
      if (!wire.ParseFromString(body)) return damaged;
      RB_ASSIGN_OR_RETURN(Task task, FromWire(wire));
      return AgentEvent(TaskArrived{std::move(task)});
    }
    case kEnded: {
      v1::TaskResult wire;
      if (!wire.ParseFromString(body)) return damaged;
      return AgentEvent(StepEnded{FromWire(wire)});
    }
    case kStored:
      return AgentEvent(ResultStored{body});
    case kOver:
      return AgentEvent(OperationIsOver{body});
    case kPatience: {
      const std::pair<std::string, std::string> parts = absl::StrSplit(body, absl::MaxSplits(' ', 1));
      PatienceEnded patience;
      patience.service = parts.second;
      if (!absl::SimpleAtoi(parts.first, &patience.number)) return damaged;
      return AgentEvent(patience);
    }
    default:
      return damaged;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<AgentJournal>> AgentJournal::Open(const std::string& state_folder,
                                                                 const std::vector<std::string>& services,
                                                                 AgentState* state) {
  std::vector<std::string> records;
  RB_ASSIGN_OR_RETURN(std::unique_ptr<RecordJournal> journal,
                      RecordJournal::Open(absl::StrCat(state_folder, "/steps.journal"), &records));
  for (const std::string& record : records) {
    RB_ASSIGN_OR_RETURN(const AgentEvent event, Decode(record));
    *state = Decide(std::move(*state), event, services).state;
  }
  const bool idle = [&] {
    for (const auto& [name, service] : state->services) {
      if (service.running.has_value() || service.next.has_value() || service.unattended.has_value()) return false;
    }
    return true;
  }();
  // Only between operations: then the newest records hold all that may still be asked for, the highest fencing numbers
  // among them, since every task carries one.
  if (idle && journal->size_bytes() > kLargeBytes && records.size() > kRecordsKept) {
    records.erase(records.begin(), records.end() - static_cast<ptrdiff_t>(kRecordsKept));
    RB_RETURN_IF_ERROR(journal->Rewrite(records));
  }
  return std::unique_ptr<AgentJournal>(new AgentJournal(std::move(journal)));
}

absl::Status AgentJournal::Append(const AgentEvent& event) { return journal_->Append(Encode(event)); }

}  // namespace rb::agent
