#include "rbctl/render/words.h"

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"

namespace rb::cli {
namespace {

std::string Strip(const std::string& name, const char* prefix) {
  if (name.empty()) {
    return "unknown";
  }
  const std::string word = absl::AsciiStrToLower(absl::StripPrefix(name, prefix));
  return word == "unspecified" ? "unknown" : word;
}

}  // namespace

std::string Word(v1::OperationKind kind) { return Strip(v1::OperationKind_Name(kind), "OPERATION_KIND_"); }
std::string Word(v1::OperationState state) { return Strip(v1::OperationState_Name(state), "OPERATION_STATE_"); }
std::string Word(v1::Method method) { return Strip(v1::Method_Name(method), "METHOD_"); }
std::string Word(v1::Component component) { return Strip(v1::Component_Name(component), "COMPONENT_"); }
std::string Word(v1::Durability durability) { return Strip(v1::Durability_Name(durability), "DURABILITY_"); }
std::string Word(v1::Standing standing) { return Strip(v1::Standing_Name(standing), "STANDING_"); }
std::string Word(v1::Cause cause) { return Strip(v1::Cause_Name(cause), "CAUSE_"); }
std::string Word(v1::Verdict verdict) { return Strip(v1::Verdict_Name(verdict), "VERDICT_"); }
std::string Word(v1::HostState state) { return Strip(v1::HostState_Name(state), "HOST_STATE_"); }
std::string Word(v1::TaskProgress::Stage stage) { return Strip(v1::TaskProgress::Stage_Name(stage), "STAGE_"); }
std::string Word(v1::Refusal::Code code) { return Strip(v1::Refusal::Code_Name(code), "CODE_"); }

absl::Time ToTime(const google::protobuf::Timestamp& timestamp) {
  return absl::FromUnixSeconds(timestamp.seconds()) + absl::Nanoseconds(timestamp.nanos());
}

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

bool HasEnded(v1::OperationState state) {
  return state == v1::OPERATION_STATE_SUCCEEDED || state == v1::OPERATION_STATE_ABORTED ||
         state == v1::OPERATION_STATE_REVERTED || state == v1::OPERATION_STATE_NEEDS_ATTENTION;
}

std::string Outcome(const v1::Operation& operation) {
  if (!HasEnded(operation.state())) {
    return "running";
  }
  return operation.already_there() && operation.state() == v1::OPERATION_STATE_SUCCEEDED ? "already_there"
                                                                                         : Word(operation.state());
}

int ExitCodeFor(const v1::Operation& operation) {
  switch (operation.state()) {
    case v1::OPERATION_STATE_SUCCEEDED:
      return 0;
    case v1::OPERATION_STATE_ABORTED:
      return 1;
    case v1::OPERATION_STATE_REVERTED:
      return 6;
    default:
      return 3;
  }
}

}  // namespace rb::cli
