// What was asked for, what the hosts answered, and what would be done about it. Pure: the same spec, fleet and answers
// give the same plan. Field meanings: proto/rb/v1/fleet_service.proto and types.proto.
#ifndef RB_CONTROLLER_CORE_PLAN_H_
#define RB_CONTROLLER_CORE_PLAN_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "controller/core/explain.h"
#include "controller/core/fleet.h"

namespace rb::controller {

// The last two are never asked for: agents report them, see operation.h.
enum class OperationKind { kRollback, kDeploy, kBackup, kUndo, kVerification, kRepair, kLocal, kExternal, kPrune };
enum class Method { kAuto, kBackup, kGit, kRedeploy };
// "auto", "backup", "git" or "redeploy".
std::string NameOf(Method method);
enum class Component { kCode, kConfig, kData };
enum class Cause { kBackup, kDeploy, kReplaced, kExternal };
enum class Durability { kCaptured, kDurable, kVerified, kProved };
enum class Standing { kUnknown, kGood, kBad };
enum class Verdict { kUnknown, kHealthy, kUnhealthy };
enum class HostState { kUnspecified, kUntouched, kPrepared, kCommitted, kKept, kReverted };

struct TargetReference {
  enum class Kind { kLastGood, kNamed, kPrevious, kBefore };
  Kind kind = Kind::kLastGood;
  std::string name;
  absl::Time before;
  bool force = false;
};

struct OperationSpec {
  OperationKind kind = OperationKind::kRollback;
  std::string environment;
  std::string service;
  std::vector<std::string> hosts;
  TargetReference target;
  Method method = Method::kAuto;
  // Empty: code and config.
  std::vector<Component> components;
  std::string reason;
  bool hold_on_failure = false;
  bool emergency = false;
  bool force = false;
  std::string undo_operation_id;
  bool pin = false;
  // Backup: really restored before it ends.
  bool prove = false;
  bool even_if_already_there = false;
  // See EnvironmentsOf.
  std::vector<std::string> through;
  std::vector<std::string> override_gates;
  absl::Duration wait_for_lock;
  bool skip_offline = false;
  // Part of a drill; empty: for real.
  std::string drill_id;
  // Told before and after; empty: nothing is.
  std::string announcement;
};

// The environments that an operation changes, in order; each has a lock of its own.
std::vector<std::string> EnvironmentsOf(const OperationSpec& spec);
// We change hosts: not with a backup or a verification, nor was it we where a host reports what was done there.
bool ChangesHosts(OperationKind kind);
// Not where config or data alone were chosen.
bool BringsCode(const OperationSpec& spec);

struct Release {
  std::string name;
  std::string manifest_digest;
  std::string commit;
  std::string version;
  Cause cause = Cause::kBackup;
  absl::Time captured_at;
  Durability durability = Durability::kCaptured;
  Standing standing = Standing::kUnknown;
  absl::Time last_proved_at = absl::InfinitePast();
  uint64_t entry_count = 0;
  uint64_t content_bytes = 0;
  bool pinned = false;
  std::string operation_id;
  std::string reason;
};

struct TableRows {
  std::string database;
  std::string table;
  uint64_t now = 0;
  uint64_t then = 0;
};

struct DeltaSummary {
  uint64_t files_added = 0;
  uint64_t files_changed = 0;
  uint64_t files_removed = 0;
  uint64_t other_changes = 0;
  uint64_t bytes_to_stage = 0;
  std::vector<std::string> sample_paths;
  std::string config_diff;
  std::vector<std::string> not_captured;
  absl::Duration data_age;
  std::vector<TableRows> table_rows;
};

struct Candidate {
  Method method = Method::kBackup;
  // For kBackup.
  std::optional<Release> release;
  std::string commit;
  std::string version;
  // Empty when it can be used.
  std::string refused_because;
  DeltaSummary delta;
  bool already_there = false;
};

struct ProbeResult {
  std::string name;
  std::string kind;
  bool passed = false;
  std::string observed;
  std::string expected;
  absl::Duration took;
  // Of something that the service depends on: its failure says nothing about the release.
  bool external = false;
};

// What one host answered to the inspect step of planning; `connected` false: it could not be asked.
struct Inspection {
  bool connected = false;
  // The agent does not know the service, or failed to inspect: what it said.
  std::string error;
  std::vector<Candidate> candidates;
  std::vector<std::string> problems;
  Verdict verdict = Verdict::kUnknown;
  std::vector<ProbeResult> probes;
  std::string current_release;
  std::string current_commit;
  std::string current_version;
};

struct HostPlan {
  std::string host;
  std::string environment;
  Method method = Method::kBackup;
  std::string method_because;
  std::string release_name;
  std::string commit;
  std::string version;
  std::string from_release;
  std::string from_commit;
  std::string from_version;
  DeltaSummary delta;
  bool already_there = false;
  // Tried in this order when preparing by `method` fails.
  std::vector<Candidate> fallbacks;
  // From 1.
  uint32_t wave = 1;
  Durability durability = Durability::kCaptured;
  absl::Time last_proved_at = absl::InfinitePast();
  // samples 0: nothing like it was measured yet.
  Prediction prediction;
};

struct Refusal {
  enum class Code {
    kNone,
    kBadRequest,
    kUnknownEnvironment,
    kUnknownHost,
    kUnknownService,
    kHostOffline,
    kLocked,
    kNoCandidate,
    kAmbiguous,
    kHostProblem,
    kReasonRequired,
    kPermission,
    kGate,
    kUnknownOperation,
    kQuarantined,
    kStoreFull,
  };
  Code code = Code::kNone;
  std::string message;
  std::string next_command;
  std::string holder_operation_id;
  // Host → what there is.
  std::map<std::string, std::vector<Candidate>> candidates;
  std::vector<std::string> hosts;

  bool refused() const { return code != Code::kNone; }
};

struct Plan {
  OperationSpec spec;
  // In the order in which they are changed.
  std::vector<HostPlan> hosts;
  uint32_t wave_count = 0;
  absl::Duration target;
  std::vector<std::string> notes;
  Refusal refusal;
  // Policy of the fleet file, as it was when planned: an operation is not changed by editing the file.
  OnFailure on_failure = OnFailure::kRevertAll;
  absl::Duration verify_deadline = absl::Seconds(60);
  absl::Duration verify_soak;
  // The wave before which a second operator has to approve; 0: none.
  uint32_t approval_before_wave = 0;
  // Method B: the run of CI is given up when the target is not on every host by then; and what recovery by it must stay
  // under.
  absl::Duration ci_deadline;
  absl::Duration redeploy_target;
  // Were offline, and are left out: host → environment.
  std::map<std::string, std::string> missed;
  Prediction prediction;
  // For `rbctl why`.
  Reasons reasons;
};

// See quarantine.h.
struct QuarantinedCommit {
  std::string reason;
  std::string operation_id;
  absl::Time since;
};

// What planning has to know of the past.
struct PlanningHistory {
  // UTC. Windows are judged by it.
  absl::Time now;
  // Operation that holds the lock of the service in one of the environments, and which; empty if none.
  std::string lock_holder;
  std::string locked_environment;
  // What each environment was healthy on for this service (for gates), newest first, at most 100.
  struct Passed {
    std::string commit;
    absl::Time at;
  };
  std::map<std::string, std::vector<Passed>> passed;
  // Of the service, by commit.
  std::map<std::string, QuarantinedCommit> quarantined;
  // For undo: its whole id, and host → release that the operation replaced; absent when the operation is not known. And
  // its components.
  std::string undo_operation_id;
  std::optional<std::map<std::string, std::string>> undo_releases;
  std::vector<Component> undo_components;
  // What recoveries of this service took, newest first: (environment, method) → samples.
  std::map<std::pair<std::string, Method>, std::vector<TimeSample>> times;
  // Method B: why the service's CI cannot be asked now; empty when it can.
  std::string ci_unavailable_because;
};

// Of an operation that has succeeded, for the gate `passed_in`: its environments have passed with that commit, unless
// its code was left as it was, or probes were left out (an emergency).
void LearnPassed(const OperationSpec& spec, const std::string& commit, absl::Time ended_at, PlanningHistory* history);

// Of a plan with so many hosts the details (paths, diffs, rows) of the first ones are kept, the numbers of all.
inline constexpr size_t kMostDetailedHosts = 50;

// Checks the request against the fleet file alone, fills in what may be left out (the only service), and gives the
// hosts in scope. Refuses unknown names with the nearest spelling, missing reasons (rollback, deploy, undo of the
// environment with the highest order; any forced or emergency operation), and requests that contradict themselves.
struct Scope {
  OperationSpec spec;
  // By environment, in their order, and within one in that of the fleet file.
  std::vector<std::string> hosts;
  std::map<std::string, std::string> environment_of_host;
  Refusal refusal;
};
Scope ResolveScope(const OperationSpec& spec, const Fleet& fleet);
// An undo is about what its operation was about: its hosts (unless some are named), and its components.
void NarrowToUndone(const PlanningHistory& history, Scope* scope);

// The whole plan; plan.refusal says why it would not be carried out. `inspections` has an entry for each host in scope.
// All hosts must come to the same commit (or, where commits are not known, the same release standing): otherwise
// kAmbiguous with the candidates. Method auto: backup when a usable proved release exists; else git; else a backup that
// is verified but not proved, with a note; else, for all hosts, a redeploy through CI, which is the last fallback of
// the others as well.
Plan MakePlan(const Scope& scope, const Fleet& fleet, const std::map<std::string, Inspection>& inspections,
              const PlanningHistory& history);

// Wave numbers from 1, in the hosts' order. A wave has at most `size` of them (percent is rounded up), and at most
// `max_unavailable` of those that are healthy, but at least one; the first one at most `canary`, if that is given.
// `healthy`: an entry for each host that is to be changed.
std::vector<uint32_t> AssignWaves(const std::vector<bool>& healthy, const WaveSize& size,
                                  const WaveSize& max_unavailable, const std::optional<WaveSize>& canary);

// "50%" or "2". False for anything else, 0, or more than 100%.
bool ParseWaveSize(absl::string_view text, WaveSize* size);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_PLAN_H_
