#include "agent/adapters/fault/fault_records.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "fault_record.pb.h"

namespace rb::agent {

FileFaultRecords::FileFaultRecords(const std::string& state_folder, const std::string& service)
    : folder_(absl::StrCat(state_folder, "/faults")), path_(absl::StrCat(folder_, "/", service)) {}

absl::StatusOr<FaultRecord> FileFaultRecords::Load() {
  RB_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(path_));
  rb::agent_fault::Record wire;
  if (!wire.ParseFromString(bytes)) return absl::DataLossError(absl::StrCat(path_, " cannot be read"));
  FaultRecord record;
  record.drill_id = wire.drill_id();
  record.plan.kind = static_cast<FaultKind>(std::clamp(wire.kind(), 0, static_cast<int>(FaultKind::kDiskFull)));
  record.state = static_cast<FaultState>(std::clamp(wire.state(), 0, static_cast<int>(FaultState::kEnded)));
  for (const rb::agent_fault::Edit& one : wire.edits()) {
    FaultEdit edit;
    edit.path = one.path();
    edit.offset = one.offset();
    edit.before = one.before();
    edit.after = one.after();
    edit.mtime_ns = one.mtime_ns();
    record.plan.edits.push_back(std::move(edit));
  }
  record.plan.database = wire.database();
  record.plan.filler = wire.filler();
  record.plan.filler_bytes = wire.filler_bytes();
  record.plan.what = wire.what();
  record.injected_at = FromProto(wire.injected_at());
  record.longest = FromProto(wire.longest());
  record.ends_at = FromProto(wire.ends_at());
  record.ends_at_monotonic = FromProto(wire.ends_at_monotonic());
  record.struck = wire.struck();
  record.struck_at = FromProto(wire.struck_at());
  record.away = FromProto(wire.away());
  record.ended_alone = wire.ended_alone();
  record.put_back = wire.put_back();
  record.ended_drills.assign(wire.ended_drills().begin(), wire.ended_drills().end());
  return record;
}

absl::Status FileFaultRecords::Save(const FaultRecord& record) {
  rb::agent_fault::Record wire;
  wire.set_drill_id(record.drill_id);
  wire.set_kind(static_cast<int>(record.plan.kind));
  wire.set_state(static_cast<int>(record.state));
  for (const FaultEdit& edit : record.plan.edits) {
    rb::agent_fault::Edit* one = wire.add_edits();
    one->set_path(edit.path);
    one->set_offset(edit.offset);
    one->set_before(edit.before);
    one->set_after(edit.after);
    one->set_mtime_ns(edit.mtime_ns);
  }
  wire.set_database(record.plan.database);
  wire.set_filler(record.plan.filler);
  wire.set_filler_bytes(record.plan.filler_bytes);
  wire.set_what(record.plan.what);
  *wire.mutable_injected_at() = ToProto(record.injected_at);
  *wire.mutable_longest() = ToProto(record.longest);
  *wire.mutable_ends_at() = ToProto(record.ends_at);
  *wire.mutable_ends_at_monotonic() = ToProto(record.ends_at_monotonic);
  wire.set_struck(record.struck);
  *wire.mutable_struck_at() = ToProto(record.struck_at);
  *wire.mutable_away() = ToProto(record.away);
  wire.set_ended_alone(record.ended_alone);
  wire.set_put_back(record.put_back);
  wire.mutable_ended_drills()->Add(record.ended_drills.begin(), record.ended_drills.end());
  RB_RETURN_IF_ERROR(MakeFolders(folder_));
  return WriteFileDurably(path_, wire.SerializeAsString());
}

}  // namespace rb::agent
