#include "agent/core/task/verifier.h"

#include <algorithm>

namespace rb::agent {

Verdict Verifier::Take(const std::vector<ProbeResult>& round, absl::Duration now) {
  const bool all_pass =
      std::all_of(round.begin(), round.end(), [](const ProbeResult& probe) { return !CountsAgainst(probe); });
  if (all_pass) {
    if (!healthy_since_.has_value()) healthy_since_ = now;
    return now - *healthy_since_ >= policy_.soak ? Verdict::kHealthy : Verdict::kUnknown;
  }
  healthy_since_.reset();
  const bool is_final = std::any_of(
      round.begin(), round.end(), [](const ProbeResult& probe) { return CountsAgainst(probe) && !probe.may_recover; });
  if (is_final || now - began_ >= policy_.deadline) return Verdict::kUnhealthy;
  return Verdict::kUnknown;
}

absl::Duration Verifier::NextWait() {
  const absl::Duration wait = wait_;
  wait_ = std::min(wait_ * 1.3, absl::Milliseconds(250));
  return wait;
}

}  // namespace rb::agent
