// A task and its result, as the agent's core sees them; mirrors proto/rb/v1/agent_link.proto, where each field is
// explained. adapters/link converts.
#ifndef RB_AGENT_CORE_TASK_TASK_H_
#define RB_AGENT_CORE_TASK_TASK_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "agent/core/engine/engine.h"
#include "agent/core/ports/host_examiner.h"
#include "agent/core/ports/probe.h"
#include "agent/core/release.h"
#include "agent/core/service.h"

namespace rb::agent {

enum class Method { kAuto, kBackup, kGit, kRedeploy };
enum class Verdict { kUnknown, kHealthy, kUnhealthy };
enum class HostState { kUnspecified, kUntouched, kPrepared, kCommitted, kKept, kReverted };
enum class Stage {
  kAccepted,
  kCapturing,
  kStaging,
  kStopping,
  kSwapping,
  kStarting,
  kProbing,
  kHealthy,
  kUndoing,
};

struct TargetReference {
  enum class Kind { kNone, kNamed, kLastGood, kPrevious, kBefore };
  Kind kind = Kind::kNone;
  std::string name;
  absl::Time before;
  bool force = false;
};

struct VerifyPolicy {
  absl::Duration deadline = absl::Seconds(60);
  absl::Duration soak;
};

struct UnattendedPolicy {
  absl::Duration patience = absl::Seconds(30);
  bool undo_when_unhealthy = true;
  bool undo_when_unconfirmed = false;
  VerifyPolicy verify;
};

struct InspectStep {
  TargetReference target;
  Method method = Method::kAuto;
  Components components;
  bool fetch = false;
  // Nothing but this: look at the host itself.
  bool examine = false;
};
struct BackupStep {
  std::string reason;
  bool pin = false;
  bool prove = false;
};
struct PrepareStep {
  std::string release_name;
  std::string commit;
  Method method = Method::kBackup;
  Components components;
  std::string reason;
  bool deploy = false;
  bool check_config = true;
};
struct CommitStep {
  UnattendedPolicy unattended;
  // The verification with which the host goes on by itself; empty: it waits for the step.
  std::string next_step_id;
};
struct VerifyStep {
  VerifyPolicy policy;
  // Whoever put it there: no operation is open here, and none is taken over.
  bool of_what_runs = false;
};
struct RevertStep {
  std::string reason;
  VerifyPolicy verify;
  // Method B.
  std::string restore_release;
};
struct KeepStep {
  bool good = false;
  bool replaced_is_bad = false;
  std::string reason;
  // Method B.
  std::string redeployed_commit;
  std::string redeployed_version;
  std::string replaced_release;
};
struct AwaitStep {
  std::string commit;
  std::string version;
  std::string deployed_commit;
  absl::Duration arrives_within;
  VerifyPolicy verify;
  Components components;
};

struct PruneStep {
  // Good releases to keep: of the service's policy, which this host was told. 0: it was told none.
  uint32_t keep_good = 0;
};

struct Task {
  std::string operation_id;
  std::string step_id;
  uint64_t fencing_number = 0;
  std::string service;
  absl::Duration timeout;
  std::variant<InspectStep, BackupStep, PrepareStep, CommitStep, VerifyStep, RevertStep, KeepStep, AwaitStep, PruneStep>
      step;
};

struct Candidate {
  Method method = Method::kBackup;
  Release release;  // for kBackup
  std::string commit;
  std::string version;
  std::string refused_because;
  Delta delta;
  bool already_there = false;
};

struct HostTimes {
  absl::Duration prepare;
  absl::Duration stop;
  absl::Duration swap;
  absl::Duration start;
  absl::Duration downtime;
};

struct Pruned {
  uint64_t removed = 0;
  // The newest of them, at most kMostPrunedNamed.
  std::vector<std::string> releases;
  uint64_t freed_bytes = 0;
};
inline constexpr size_t kMostPrunedNamed = 100;

struct TaskResult {
  std::string operation_id;
  std::string step_id;
  std::string service;
  absl::Status status;
  HostState state = HostState::kUnspecified;
  HostTimes times;
  Verdict verdict = Verdict::kUnknown;
  std::vector<ProbeResult> probes;
  // Of a verification, a revert and a wait for CI: what the service has written since the operation began here.
  std::vector<std::string> log_lines;
  std::vector<Candidate> candidates;
  std::vector<std::string> problems;
  Release release;
  Delta delta;
  std::string from_release;
  std::string from_commit;
  std::string from_version;
  bool done_alone = false;
  // Of a commit: the verification with which this host goes on. Only in what is sent as it begins, never in what is
  // recorded: by the time that is given again, the verification may have ended, and its result be forgotten.
  std::string began_step_id;
  // Of a PruneStep.
  std::optional<Pruned> pruned;
  // Of an inspection with `examine`.
  std::optional<HostFacts> facts;
};

struct TaskProgress {
  std::string operation_id;
  std::string step_id;
  std::string service;
  Stage stage = Stage::kAccepted;
  std::string detail;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_TASK_TASK_H_
