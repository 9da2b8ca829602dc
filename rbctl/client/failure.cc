#include "rbctl/client/failure.h"

#include "absl/strings/str_cat.h"
#include "common/text.h"
#include "rbctl/client/fleet_client.h"
#include "rbctl/render/json.h"
#include "rbctl/render/text.h"

namespace rb::cli {

int Failed(const Command& command, const absl::Status& status, bool may_have_begun, const Terminal& terminal) {
  if (const auto refusal = RefusalOf(status)) {
    if (command.json) {
      terminal.out(JsonRefusal(command.spec, *refusal, kRefused));
    } else {
      terminal.err(RenderRefusal(*refusal, terminal.style));
    }
    return kRefused;
  }
  const std::string message = Printable(std::string(status.message()));
  switch (status.code()) {
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnimplemented:
      return Error(command, "refused", kRefused, "refused: " + message, "Nothing was changed by this command.",
                   command.operation_id.empty() ? "rbctl status" : "rbctl history", terminal);
    default:
      break;
  }
  const bool lost = absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
  if (may_have_begun && !WasNotSent(status)) {
    return Error(command, "unknown", kNotReached, "the controller's answer was lost: " + message,
                 "It is unknown whether the operation was accepted.",
                 absl::StrCat("rbctl history ", Printable(command.spec.environment())), terminal);
  }
  if (lost) {
    return Error(command, "unreachable", kNotReached, "the controller was not reached: " + message,
                 "Nothing was changed by this command. The services run as they did.",
                 "see that rb-controller runs and that its address is right (RBCTL_IDENTITY, --controller); without "
                 "it, on a server: rb-agent local rollback …",
                 terminal);
  }
  return Error(command, "failed", kFailedNothingChanged, message, "Nothing was changed by this command.",
               "rbctl status", terminal);
}

int Error(const Command& command, const std::string& outcome, int code, const std::string& message,
          const std::string& state, const std::string& next, const Terminal& terminal) {
  if (command.json) {
    terminal.out(JsonError(outcome, code, message, state, next));
  } else {
    terminal.err(absl::StrCat("rbctl: ", message, "\n", state, "\nNext: ", next, "\n"));
  }
  return code;
}

}  // namespace rb::cli
