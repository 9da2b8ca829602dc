// From rounds of probes to a verdict. Pure; the step runner runs the probes.
#ifndef RB_AGENT_CORE_TASK_VERIFIER_H_
#define RB_AGENT_CORE_TASK_VERIFIER_H_

#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "agent/core/ports/probe.h"
#include "agent/core/task/task.h"

namespace rb::agent {

// All times on one monotonic clock.
class Verifier {
 public:
  Verifier(VerifyPolicy policy, absl::Duration now) : policy_(policy), began_(now) {}

  // Takes one round, which ended at `now`. kUnknown: ask again.
  Verdict Take(const std::vector<ProbeResult>& round, absl::Duration now);
  // When the probes began to pass, without interruption until now; absent when they do not.
  std::optional<absl::Duration> healthy_since() const { return healthy_since_; }
  // How long to wait before the next round: short at first, since downtime is what is measured.
  absl::Duration NextWait();

 private:
  const VerifyPolicy policy_;
  const absl::Duration began_;
  std::optional<absl::Duration> healthy_since_;
  absl::Duration wait_ = absl::Milliseconds(5);
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_TASK_VERIFIER_H_
