#ifndef RB_AGENT_CORE_PORTS_PROBE_H_
#define RB_AGENT_CORE_PORTS_PROBE_H_

#include <string>

#include "absl/time/time.h"

namespace rb::agent {

struct ProbeResult {
  // Unique within the service, for example "http http://127.0.0.1:8001/api/health".
  std::string name;
  // "unit", "http", "log", "journal", "sqlite", "tcp", "command", "version", "metrics", "disk".
  std::string kind;
  bool passed = false;
  // Passing or failing may still change without anything being wrong: keep asking until the deadline. False when it can
  // only stay failed (a forbidden log line was seen): the verdict is final at once.
  bool may_recover = true;
  // The service was started so recently that not passing says nothing yet.
  bool is_waiting = false;
  std::string observed;
  std::string expected;
  absl::Duration took;
  // It is of something that the service depends on: no rollback mends it, so it decides nothing.
  bool external = false;
};

// Whether it speaks against the release that runs.
inline bool CountsAgainst(const ProbeResult& probe) { return !probe.passed && !probe.external; }

// What a run of probes is about.
struct ProbeContext {
  // When we last started the service, UTC, for logs; absl::InfinitePast() when unknown.
  absl::Time started_at = absl::InfinitePast();
  // Same moment on the monotonic clock.
  absl::Duration started_at_monotonic;
  // What should be running, for the version probe; empty when unknown: that probe then passes and says so.
  std::string expected_commit;
  std::string expected_version;
  // Skip waiting for stability (unit: stable_for): one good look is enough.
  bool quick = false;
};

// One health check. Run blocks, for at most the probe's own timeout; one caller at a time.
class Probe {
 public:
  virtual ~Probe() = default;
  virtual ProbeResult Run(const ProbeContext& context) = 0;
  // Called right before the service is started by us (not when it runs already), so that a probe can remember where
  // logs end and what the process was.
  virtual void BeforeStart() {}
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_PROBE_H_
