#include "controller/core/ports/ci.h"

#include "absl/strings/cord.h"

namespace rb::controller {
namespace {
constexpr char kRetryAfter[] = "rb/retry-after";
}  // namespace

absl::Duration RetryAfter(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfter);
  absl::Duration wait;
  if (payload.has_value()) absl::ParseDuration(std::string(*payload), &wait);
  return wait;
}

absl::Status WithRetryAfter(absl::Status status, absl::Duration wait) {
  status.SetPayload(kRetryAfter, absl::Cord(absl::FormatDuration(wait)));
  return status;
}

}  // namespace rb::controller
