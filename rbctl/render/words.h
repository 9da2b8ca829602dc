// The words of the design for the numbers on the wire, and small conversions. Pure.
#ifndef RB_RBCTL_RENDER_WORDS_H_
#define RB_RBCTL_RENDER_WORDS_H_

#include <string>

#include "absl/time/time.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::cli {

// Lower case, for example "needs_attention"; "unknown" for what this version does not know.
std::string Word(v1::OperationKind kind);
std::string Word(v1::OperationState state);
std::string Word(v1::Method method);
std::string Word(v1::Component component);
std::string Word(v1::Durability durability);
std::string Word(v1::Standing standing);
std::string Word(v1::Cause cause);
std::string Word(v1::Verdict verdict);
std::string Word(v1::HostState state);
std::string Word(v1::TaskProgress::Stage stage);
std::string Word(v1::Refusal::Code code);

absl::Time ToTime(const google::protobuf::Timestamp& timestamp);
absl::Duration ToDuration(const google::protobuf::Duration& duration);

// SUCCEEDED, ABORTED, REVERTED or NEEDS_ATTENTION.
bool HasEnded(v1::OperationState state);
// "succeeded", "already_there", "aborted", "reverted", "needs_attention", or "running" when it has not ended.
std::string Outcome(const v1::Operation& operation);
// The promised exit status for how an operation ended. Needs attention for a state that is not an end.
int ExitCodeFor(const v1::Operation& operation);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_WORDS_H_
