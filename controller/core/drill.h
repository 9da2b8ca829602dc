// One drill as a state machine: pure, total and deterministic, of the same shape as operation.h. A drill *uses*
// ordinary operations (a backup as safety release, a rollback as recovery, a verification), so that what is rehearsed
// is the same code as in an incident.
//
//   PLANNED → [approved] → SAFETY_RELEASE → INJECTING → DETECTING → RECOVERING → VERIFYING → UNDOING → PASSED
//                                              │                                                     | MISSED_TARGET
//                                              └→ RECOVERING (faults that strike in the middle of it) | FAILED
//   whatever goes wrong, a stop, a real incident: → UNDOING (where a fault may be in) → FAILED | STOPPED
//
// Nothing but UNDOING lies between a fault that may be in and an end: and should the controller never come back, each
// agent ends its fault alone.
#ifndef RB_CONTROLLER_CORE_DRILL_H_
#define RB_CONTROLLER_CORE_DRILL_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "controller/core/fleet.h"
#include "controller/core/plan.h"

namespace rb::controller {

// In the wire's order, which is one higher.
enum class FaultKind { kBadCode, kBadDatabase, kBadConfig, kHostPowerCut, kAgentKilled, kControllerKilled, kDiskFull };
inline constexpr FaultKind kAllFaultKinds[] = {
    FaultKind::kBadCode,     FaultKind::kBadDatabase,      FaultKind::kBadConfig, FaultKind::kHostPowerCut,
    FaultKind::kAgentKilled, FaultKind::kControllerKilled, FaultKind::kDiskFull};
// "bad-code".
absl::string_view NameOf(FaultKind kind);
bool ParseFaultKind(absl::string_view text, FaultKind* kind);
// It strikes in the middle of the recovery, instead of being what is recovered from.
bool StrikesDuringRecovery(FaultKind kind);
// A probe of this kind looks at what is broken itself, instead of at what the service says of itself.
bool LooksInside(absl::string_view probe_kind);

enum class DrillState {
  kPlanned,
  kSafetyRelease,
  kInjecting,
  kDetecting,
  kRecovering,
  kVerifying,
  kUndoing,
  kPassed,
  kMissedTarget,
  kFailed,
  kStopped,
};
inline constexpr DrillState kAllDrillStates[] = {
    DrillState::kPlanned,      DrillState::kSafetyRelease, DrillState::kInjecting, DrillState::kDetecting,
    DrillState::kRecovering,   DrillState::kVerifying,     DrillState::kUndoing,   DrillState::kPassed,
    DrillState::kMissedTarget, DrillState::kFailed,        DrillState::kStopped};
absl::string_view NameOf(DrillState state);
bool IsFinal(DrillState state);
bool IsLegalTransition(DrillState from, DrillState to);

struct DrillSpec {
  FaultKind fault = FaultKind::kBadCode;
  std::string environment;
  std::string service;
  std::vector<std::string> hosts;
  Method method = Method::kAuto;
  bool by_hand = false;
  std::string reason;
  // Environments that follow, each when the one before has passed.
  std::vector<std::string> then;
  // The schedule that asked for it; empty: a person.
  std::string schedule;
};

// Of the fleet file, as it was when the drill was accepted.
struct DrillPolicy {
  absl::Duration longest = absl::Minutes(10);
  absl::Duration detect = absl::Minutes(1);
  absl::Duration decide = absl::Seconds(30);
  absl::Duration verify = absl::Minutes(1);
  // How long the service may take to become healthy after a start.
  absl::Duration start = absl::Seconds(60);
  bool needs_approval = false;
};

struct DrillPhase {
  std::string name;
  std::optional<absl::Duration> took;
  absl::Duration target;
  bool met = false;
};

// What an ended drill says to those who count.
struct LastDrill {
  std::string id;
  std::string environment;
  std::string service;
  FaultKind fault = FaultKind::kBadCode;
  DrillState outcome = DrillState::kPassed;
  absl::Time ended_at;
  std::vector<DrillPhase> phases;
};

struct FaultReport {
  enum class State { kUnknown, kRecorded, kIn, kEnding, kEnded };
  State state = State::kUnknown;
  absl::Time injected_at;
  absl::Time ends_at;
  std::string what;
  uint32_t put_back = 0;
  bool ended_alone = false;
  bool struck = false;
  absl::Duration away;
};

struct DrillHost {
  std::string host;
  // The fault strikes here; others are only watched.
  bool has_fault = false;
  FaultReport fault;
  bool injected = false;
  bool ended = false;
  // On the drill's clock, see DrillEventRecord::elapsed.
  absl::Duration injected_at;
  // Seen failing since then; a second look confirms it.
  std::optional<absl::Duration> suspect_since;
  std::string suspect_probe;
  std::optional<absl::Duration> detected_after;
  std::string detected_by;
  std::string error;
};

enum class DrillRole { kSafety, kRecovery, kVerification };
absl::string_view NameOf(DrillRole role);

// What an operation has come to, as far as a drill cares.
struct DrillOperation {
  std::string id;
  bool ended = false;
  bool ok = false;
  // Nothing was changed anywhere.
  bool aborted = false;
  std::string summary;
  // Accepted → the last host healthy.
  absl::Duration recovery;
  absl::Duration target;
  // What was given up for it, for a person.
  std::string lost;
  std::string requested_by;
};

struct Drill {
  std::string id;
  DrillSpec spec;
  DrillPolicy policy;
  DrillState state = DrillState::kPlanned;
  // What it ends as, once undone.
  DrillState ending = DrillState::kPassed;
  std::string summary;
  std::string requested_by;
  std::string approved_by;
  std::string recovered_by;
  std::string idempotency_key;
  std::string after_drill_id;
  absl::Time accepted_at;
  absl::Time ended_at = absl::InfiniteFuture();
  // In the order of the fleet file.
  std::vector<DrillHost> hosts;
  std::map<DrillRole, DrillOperation> operations;
  // On the drill's clock; absent when it did not come to it.
  std::optional<absl::Duration> injected;
  std::optional<absl::Duration> detected;
  std::optional<absl::Duration> decided;
  std::optional<absl::Duration> executed;
  std::optional<absl::Duration> verifying;
  std::optional<absl::Duration> verified;
  // Of the state that it is in: timers of earlier ones do not count.
  uint32_t timer = 0;
  absl::Duration timer_at;
  bool killed_controller = false;
  uint64_t last_sequence = 0;
};

// Events. Each is written to the journal before it is acted on.
struct DrillAccepted {
  std::string id;
  DrillSpec spec;
  DrillPolicy policy;
  std::string requested_by;
  std::string idempotency_key;
  std::string after_drill_id;
  // Hosts of the operation; those where the fault is to strike are marked.
  std::vector<std::pair<std::string, bool>> hosts;
};
struct DrillApproved {
  std::string by;
  std::string reason;
};
struct OperationBegan {
  DrillRole role = DrillRole::kSafety;
  std::string operation_id;
  std::string by;
};
struct OperationRefused {
  DrillRole role = DrillRole::kSafety;
  std::string why;
  // A host cannot do it as it is, and has said why: a full disk, for one.
  bool by_host = false;
};
// Its wave commits: the moment for what strikes in the middle.
struct OperationCommits {
  std::string operation_id;
};
struct OperationEnded {
  DrillOperation operation;
};
struct FaultAnswered {
  std::string host;
  bool of_end = false;
  bool ok = false;
  std::string message;
  FaultReport report;
};
struct HostSeen {
  std::string host;
  bool healthy = false;
  // The first probe that fails: its kind, and what it saw.
  std::string probe_kind;
  std::string probe;
};
struct StopAsked {
  std::string by;
  std::string reason;
};
struct IncidentSeen {
  std::string what;
};
struct DrillTimeUp {
  uint32_t timer = 0;
};

struct DrillEventRecord {
  // From 1 in each drill, without gaps.
  uint64_t sequence = 0;
  absl::Time at;
  // Since the drill was accepted, monotonic.
  absl::Duration elapsed;
  std::variant<DrillAccepted, DrillApproved, OperationBegan, OperationRefused, OperationCommits, OperationEnded,
               FaultAnswered, HostSeen, StopAsked, IncidentSeen, DrillTimeUp>
      body;
};

// Effects.
struct BeginOperation {
  DrillRole role = DrillRole::kSafety;
  OperationSpec spec;
};
// Only while nothing was changed by it; else it is at its end soon.
struct AbortOperation {
  std::string operation_id;
  std::string reason;
};
struct SendFault {
  std::string host;
  bool end = false;
  absl::Duration delay;
};
struct ArmDrillTimer {
  uint32_t timer = 0;
  absl::Duration after;
};
struct KillThisController {};
using DrillEffect = std::variant<BeginOperation, AbortOperation, SendFault, ArmDrillTimer, KillThisController>;

struct DrillDecision {
  Drill drill;
  std::vector<DrillEffect> effects;
  // (host or "", text).
  std::vector<std::pair<std::string, std::string>> notes;
};

// Takes the drill one event further. An event that no longer matters changes nothing but last_sequence.
DrillDecision DecideDrill(const Drill& drill, const DrillEventRecord& event);

// What the drill asks for in that role.
OperationSpec DrillOperationSpec(const Drill& drill, DrillRole role);

// What may not have been carried out: for a controller that has just started, and for a host that has just connected
// again (`host`; empty: all). `elapsed` is now, on the drill's clock.
std::vector<DrillEffect> OutstandingDrillEffects(const Drill& drill, absl::string_view host, absl::Duration elapsed);

// detect, decide, execute, verify; without detect and decide where the fault strikes in the middle.
std::vector<DrillPhase> PhasesOf(const Drill& drill);

// What an alert would say; empty before there is one.
std::string AlertOf(const Drill& drill);
std::string ExpectedOf(FaultKind kind);
std::string ObservedOf(const Drill& drill);

// What has to be known of a service before it may be broken.
struct DrillCandidate {
  std::string host;
  bool connected = false;
  Verdict verdict = Verdict::kUnknown;
  std::string failing;
  std::vector<FaultKind> allowed;
  // A fault of another drill is in.
  bool has_fault = false;
};
// Checks the request against fleet, hosts and what runs, fills in what may be left out, and gives the accepted drill's
// policy and hosts. `busy`: the drill or operation that is at work there; empty if none.
struct DrillScope {
  DrillSpec spec;
  DrillPolicy policy;
  std::vector<std::pair<std::string, bool>> hosts;
  Refusal refusal;
};
DrillScope ResolveDrill(const DrillSpec& spec, const Fleet& fleet, const std::map<std::string, DrillCandidate>& hosts,
                        absl::string_view busy, absl::Time now);

inline constexpr absl::Duration kLongestDrillWait = absl::Hours(4);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_DRILL_H_
