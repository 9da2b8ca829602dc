// One operation as a state machine: pure, total and deterministic. The driver (adapters/driver) keeps it:
//
//   event → Decide(operation, event) → append the event to the journal → replace the operation → carry out the effects
//
// Recovery is the same code fed from the journal: fold Decide over the events, drop the effects, then carry out
// OutstandingEffects once. Steps have ids that follow from the operation, so that a repeated one is recognised.
//
//   PLANNED → LOCKED → PREPARING ─┬→ [WAITING] → COMMITTING w → VERIFYING w ─┬→ [WAITING] → COMMITTING w+1 …
//                                 │      │             │            │        └→ KEEPING → SUCCEEDED
//                                 │      └─────────────┴────────────┴→ REVERTING → REVERTED
//                                 └→ REVERTING (throw staging away) → ABORTED
//   WAITING: for an approval, or paused; left after kLongestWait by REVERTING
//   on_failure hold: COMMITTING or VERIFYING → KEEPING (not good) → NEEDS_ATTENTION
//   on_failure revert-wave after the first wave: REVERTING → KEEPING (earlier waves) → NEEDS_ATTENTION
//   any host that does not answer, or fails to revert: … → NEEDS_ATTENTION, naming it
//   backup, prune: LOCKED → PREPARING → SUCCEEDED or ABORTED
//   verification: LOCKED → VERIFYING → SUCCEEDED or NEEDS_ATTENTION
//   every host already there and healthy: PLANNED → LOCKED → SUCCEEDED (already_there)
//   method B: COMMITTING asks CI, once for all hosts of an environment, and each host awaits the target; what CI says
//   decides nothing but how long they go on looking. No host is reverted before the run has ended.
#ifndef RB_CONTROLLER_CORE_OPERATION_H_
#define RB_CONTROLLER_CORE_OPERATION_H_

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "controller/core/plan.h"

namespace rb::controller {

enum class OperationState {
  kPlanned,
  kLocked,
  kPreparing,
  kCommitting,
  kVerifying,
  kKeeping,
  kReverting,
  kSucceeded,
  kAborted,
  kReverted,
  kNeedsAttention,
  kWaiting,
};
inline constexpr OperationState kAllOperationStates[] = {
    OperationState::kPlanned,   OperationState::kLocked,   OperationState::kPreparing,      OperationState::kCommitting,
    OperationState::kVerifying, OperationState::kKeeping,  OperationState::kReverting,      OperationState::kSucceeded,
    OperationState::kAborted,   OperationState::kReverted, OperationState::kNeedsAttention, OperationState::kWaiting};

bool IsFinal(OperationState state);
// The edges of the drawing above; Decide never takes another.
bool IsLegalTransition(OperationState from, OperationState to);
absl::string_view NameOf(OperationState state);

enum class StepKind { kInspect, kBackup, kPrepare, kCommit, kVerify, kRevert, kKeep, kAwait, kPrune };

struct HostTimes {
  absl::Duration prepare;
  absl::Duration stop;
  absl::Duration swap;
  absl::Duration start;
  absl::Duration downtime;
  absl::Duration recovery;
};

enum class StatusCode { kOk, kFailed, kUnavailable, kDeadlineExceeded, kRefused, kCancelled };

struct StepResult {
  std::string step_id;
  StatusCode code = StatusCode::kOk;
  std::string message;
  HostState state = HostState::kUnspecified;
  HostTimes times;
  Verdict verdict = Verdict::kUnknown;
  std::vector<ProbeResult> probes;
  std::vector<std::string> log_lines;
  std::vector<Candidate> candidates;
  std::vector<std::string> problems;
  Release release;
  DeltaSummary delta;
  std::string from_release;
  std::string from_commit;
  std::string from_version;
  bool done_alone = false;
  // kCommit: the host goes on with this step by itself, see StartStep.
  std::string began_step_id;
  // kPrune
  uint64_t pruned_releases = 0;
  uint64_t pruned_bytes = 0;
};

// Where one host stands within the operation.
struct HostProgress {
  HostPlan plan;
  HostState state = HostState::kUntouched;
  // The step that is under way; empty if none.
  std::string step_id;
  StepKind step_kind = StepKind::kPrepare;
  // How often the step was started anew (fallback methods, retries).
  uint32_t attempt = 0;
  // How often the host was too busy for the step under way; see kMostRetries.
  uint32_t retries = 0;
  // Which of the plan's candidates is used: 0 is plan itself, n is plan.fallbacks[n-1].
  uint32_t candidate = 0;
  HostTimes times;
  absl::Duration target;
  bool target_met = false;
  Verdict verdict = Verdict::kUnknown;
  std::vector<ProbeResult> probes;
  // Of at most kMostLogged hosts.
  std::vector<std::string> log_lines;
  std::string error;
  // Holds what was replaced; and its commit, empty when what was replaced is no commit's.
  std::string replaced_release;
  std::string replaced_commit;
  std::string replaced_version;
  std::string to_release;
  // kPrune
  uint64_t pruned_releases = 0;
  uint64_t pruned_bytes = 0;
  // The step under way ended in failure, or no answer came in time: what the host holds may be unknown.
  bool failed = false;
  bool state_unknown = false;
  // The new state ran here, and probes did not pass. Stays true when the host has gone back.
  bool found_unhealthy = false;
  // Event::elapsed when the commit step's result came in: the service had just been started.
  absl::Duration committed_at;

  bool busy() const { return !step_id.empty(); }
};

// Of the candidate that the host uses.
Method MethodOf(const HostProgress& host);

// Method B: the run of CI for the wave under way.
struct CiRun {
  enum class Phase { kNone, kAsked, kRunning, kCancelling, kOver };
  Phase phase = Phase::kNone;
  // The same for the same wave, however often it is asked for.
  std::string key;
  std::string environment;
  absl::Time asked_at;
  // What the provider calls it; empty until it is known.
  std::string run;
  std::string url;
  // When it is not the target itself: a revert commit with the target's files.
  std::string deployed_commit;
  // It was never begun.
  bool never_ran = false;
  // Nobody can say that it has ended: nothing is brought back under its hands.
  bool lost = false;

  bool busy() const { return phase == Phase::kAsked || phase == Phase::kCancelling; }
};

struct Operation {
  std::string id;
  Plan plan;
  OperationState state = OperationState::kPlanned;
  std::string summary;
  bool already_there = false;
  std::string requested_by;
  std::string idempotency_key;
  absl::Time accepted_at;
  absl::Time ended_at = absl::InfiniteFuture();
  // On the operation's own monotonic clock, see Event::elapsed.
  absl::Duration recovery;
  bool target_met = false;
  // In plan order.
  std::vector<HostProgress> hosts;
  uint32_t wave = 0;
  bool abort_requested = false;
  std::string abort_reason;
  bool paused = false;
  std::string paused_by;
  std::string approved_by;
  CiRun ci;
  // Counts how often it began to wait.
  uint32_t waits = 0;
  uint64_t fencing_number = 0;
  uint64_t last_sequence = 0;
  std::vector<std::string> next_commands;
  // What was decided while it ran.
  Reasons reasons;
  // Steps under way.
  uint32_t busy_hosts = 0;
  // Hosts whose log_lines are not empty.
  uint32_t logged_hosts = 0;
  // Places in `hosts`, by name.
  std::vector<uint32_t> by_name;

  // Null when it has no such host.
  const HostProgress* Find(absl::string_view host) const;
};

// Events. Each is written to the journal before it is acted on.
struct Accepted {  // the first one; creates the operation
  std::string id;
  Plan plan;
  std::string requested_by;
  std::string idempotency_key;
  uint64_t fencing_number = 0;
};
struct LockTaken {};
struct StepEnded {
  std::string host;
  StepResult result;
};
// No answer within the step's deadline.
struct StepTimedOut {
  std::string host;
  std::string step_id;
};
struct AbortRequested {
  std::string by;
  std::string reason;
};

// No further wave begins. What is under way ends, and what fails is reverted.
struct PauseRequested {
  std::string by;
  std::string reason;
};
struct ResumeRequested {
  std::string by;
};
struct Approved {
  std::string by;
  std::string reason;
};
// It has waited for kLongestWait.
struct WaitEnded {
  uint32_t number = 0;
};

// The first one, and the only one: something was done on a host without the controller, and is put into the history.
// Creates an operation that has ended.
struct Reported {
  std::string id;
  std::string requested_by;
  std::string idempotency_key;
  // kind is kLocal or kExternal; service, environment, hosts and reason.
  OperationSpec spec;
  HostPlan host;
  HostState state = HostState::kKept;
  Verdict verdict = Verdict::kUnknown;
  HostTimes times;
  std::string to_release;
  std::string replaced_release;
  // What it went away from for good (a rollback); empty otherwise.
  std::string left_commit;
  bool succeeded = false;
  std::string summary;
  absl::Time began_at;
  absl::Time ended_at;
};

// Method B. `key`: of the run that was asked for. CI has a run for it.
struct CiStarted {
  std::string key;
  std::string run;
  std::string url;
  std::string deployed_commit;
};
// For people.
struct CiProgress {
  std::string key;
  std::string text;
};
struct CiEnded {
  enum class Outcome { kSucceeded, kFailed, kCancelled, kNeverRan, kLost };
  std::string key;
  Outcome outcome = Outcome::kFailed;
  std::string text;
};

struct Event {
  // From 1 in each operation, without gaps.
  uint64_t sequence = 0;
  // UTC, for the record.
  absl::Time at;
  // Since the operation was accepted, on the monotonic clock (across a restart of the controller the driver continues
  // it).
  absl::Duration elapsed;
  std::variant<Accepted, LockTaken, StepEnded, StepTimedOut, AbortRequested, PauseRequested, ResumeRequested, Approved,
               WaitEnded, Reported, CiStarted, CiProgress, CiEnded>
      body;
};

// Effects.
struct StartStep {
  std::string host;
  std::string step_id;
  StepKind kind = StepKind::kPrepare;
  // Send it only then: the host was busy.
  absl::Duration delay;
  // So long after it was sent the driver posts StepTimedOut. The agent gets the same, less a margin.
  absl::Duration deadline;
  // The same, so long after the host's connection was lost and has not come back. Zero: it is not looked at.
  absl::Duration lost_deadline;
  // kPrepare
  std::string release_name;
  std::string commit;
  Method method = Method::kBackup;
  bool deploy = false;
  bool check_config = true;
  // kCommit, kVerify, kRevert
  absl::Duration verify_deadline;
  absl::Duration verify_soak;
  bool undo_when_unhealthy = false;
  bool undo_when_unconfirmed = false;
  // kCommit: the verification that the host is to begin by itself once it has committed.
  std::string next_step_id;
  // kVerify: the host has begun it, so that it is not sent.
  bool has_begun = false;
  // kKeep
  bool good = false;
  bool replaced_is_bad = false;
  // Method B. kAwait: with `commit`.
  std::string version;
  std::string deployed_commit;
  absl::Duration arrives_within;
  // kRevert, kKeep: the release of what was there before.
  std::string replaced_release;
  // kKeep: what is there now; empty for the other methods.
  std::string redeployed_commit;
  std::string redeployed_version;
  // kBackup
  bool pin = false;
  bool prove = false;
  std::string reason;
};
struct CancelStep {
  std::string host;
  std::string step_id;
};
// After `after` the driver posts WaitEnded, if it still waits for the same.
struct ArmWait {
  uint32_t number = 0;
  absl::Duration after;
};
struct TakeLock {};
struct ReleaseLock {};
// The driver has CI deploy, follows the run, and posts CiStarted, CiProgress and at last CiEnded.
struct AskCi {
  std::string key;
  std::string service;
  std::string environment;
  std::string commit;
  std::string version;
  std::string reason;
  absl::Time asked_at;
  // Known already.
  std::string run;
  std::string url;
  std::string deployed_commit;
  // A controller that was killed may have asked already.
  bool again = false;
};
// `leave`: it is of no interest any more, and goes on. Else it is cancelled; CiEnded follows.
struct CancelCi {
  std::string key;
  bool leave = false;
};
using Effect = std::variant<StartStep, CancelStep, ArmWait, TakeLock, ReleaseLock, AskCi, CancelCi>;

struct Decision {
  Operation operation;
  std::vector<Effect> effects;
  // What happened, one line each for the history: (host or "", text).
  std::vector<std::pair<std::string, std::string>> notes;
};

// Takes the operation one event further. An event that no longer matters (an old step's result, an abort of an ended
// operation) changes nothing but last_sequence.
Decision Decide(Operation operation, const Event& event);

// What somebody asks of an operation that runs.
using OperatorRequest = std::variant<AbortRequested, PauseRequested, ResumeRequested, Approved>;
// Why it cannot be met, with what to type next; empty when it can. An operation that has ended takes none.
std::string WhyRefused(const Operation& operation, const OperatorRequest& request);

// What it waits for before its next wave, with what to type; empty when for nothing.
std::string WaitsFor(const Operation& operation);

// An operation that waits longer is aborted: locks and staged files are not kept for ever.
inline constexpr absl::Duration kLongestWait = absl::Hours(4);
// A host that is busy with something else is asked again so often, after 1, 2 and 4 s.
inline constexpr uint32_t kMostRetries = 3;

// After CI has ended, the target's files have to be on a host's disk within this.
inline constexpr absl::Duration kCiSettles = absl::Seconds(5);

// How long each kind of step may take before the controller goes on without its answer.
struct StepDeadlines {
  absl::Duration prepare = absl::Minutes(30);
  absl::Duration backup = absl::Minutes(60);
  absl::Duration commit = absl::Minutes(5);
  absl::Duration keep = absl::Minutes(10);
  // On top of the verification's own deadline and soak.
  absl::Duration verify_margin = absl::Seconds(30);
  absl::Duration revert_margin = absl::Minutes(5);
  // On top, for preparing, committing and reverting what data is part of: databases may be dumped and restored by
  // programs of their own.
  absl::Duration with_data = absl::Minutes(30);
  // A host that cannot be reached is waited for as long as it may take to be healthy, and at least so long: an agent
  // that is only restarted is back by then. What it was told to do it ends alone.
  absl::Duration least_lost = absl::Seconds(10);
};

// The effects that may not have been carried out: steps under way, a lock not yet taken or given back. For a controller
// that has just started, and for a host that has just connected again (`host`; empty: all).
std::vector<Effect> OutstandingEffects(const Operation& operation, absl::string_view host);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_OPERATION_H_
