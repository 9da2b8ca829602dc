#include "controller/core/drill.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/failpoint.h"
#include "common/text.h"

namespace rb::controller {
namespace {

// Longest waits for answers; a fault that is in is bounded by its own time as well.
constexpr absl::Duration kInjectPatience = absl::Minutes(3);
constexpr absl::Duration kUndoPatience = absl::Minutes(3);
constexpr absl::Duration kEndRetry = absl::Seconds(1);
constexpr absl::Duration kRefusedRetry = absl::Seconds(1);
// Two looks that are closer to each other than this are one.
constexpr absl::Duration kConfirmAfter = absl::Milliseconds(300);

// The recovery was refused for want of room, before anything was changed.
bool ChangedNothing(const Drill& drill) {
  return drill.spec.fault == FaultKind::kDiskFull && drill.executed.has_value() && !drill.verifying.has_value();
}

bool ServiceIsMeantToRun(FaultKind kind) { return kind == FaultKind::kBadDatabase || kind == FaultKind::kDiskFull; }

// Whether a failing probe has noticed the fault. While the service may still be starting, most probes fail also when
// all is well; those that look at the broken thing itself, and a process that has ended, tell at once.
bool Notices(FaultKind fault, absl::string_view probe_kind, bool may_be_starting) {
  if (!may_be_starting || LooksInside(probe_kind)) return true;
  return !ServiceIsMeantToRun(fault) && (probe_kind == "unit" || probe_kind == "recovery");
}

class Decider {
 public:
  Decider(const Drill& drill, const DrillEventRecord& event) : now_(event.elapsed), at_(event.at) {
    decision_.drill = drill;
    drill_().last_sequence = event.sequence;
  }

  void operator()(const DrillAccepted& event) {
    Drill& drill = drill_();
    if (!drill.id.empty()) return;
    drill.id = event.id;
    drill.spec = event.spec;
    drill.policy = event.policy;
    drill.requested_by = event.requested_by;
    drill.idempotency_key = event.idempotency_key;
    drill.after_drill_id = event.after_drill_id;
    drill.accepted_at = at_;
    for (const auto& [name, has_fault] : event.hosts) {
      DrillHost host;
      host.host = name;
      host.has_fault = has_fault;
      drill.hosts.push_back(std::move(host));
    }
    Note("", absl::StrCat("accepted from ", drill.requested_by,
                          drill.spec.reason.empty() ? "" : absl::StrCat(": ", drill.spec.reason)));
    if (drill.policy.needs_approval) {
      Arm(kLongestDrillWait);
      Note("", "waits for a second operator");
    } else {
      Go(DrillState::kSafetyRelease);
    }
  }

  void operator()(const DrillApproved& event) {
    if (drill_().state != DrillState::kPlanned || !drill_().approved_by.empty()) return;
    drill_().approved_by = event.by;
    Note("", absl::StrCat("approved by ", event.by, event.reason.empty() ? "" : absl::StrCat(": ", event.reason)));
    Go(DrillState::kSafetyRelease);
  }

  void operator()(const OperationBegan& event) {
    Drill& drill = drill_();
    if (drill.spec.by_hand && event.role == DrillRole::kRecovery) {
      // Whoever was quicker than the probes has detected it.
      if (drill.state != DrillState::kDetecting && drill.state != DrillState::kRecovering) return;
      if (drill.state == DrillState::kDetecting) Go(DrillState::kRecovering);
      if (!drill.decided.has_value()) drill.decided = now_;
      drill.recovered_by = event.by;
    } else if (event.role != RoleOfState() || !Waits(event.role)) {
      return;
    }
    DrillOperation& operation = drill.operations[event.role];
    operation = DrillOperation();
    operation.id = event.operation_id;
    if (event.role == DrillRole::kRecovery && !drill.decided.has_value()) drill.decided = now_;
    Note("", absl::StrCat(NameOf(event.role), ": ", event.operation_id));
  }

  void operator()(const OperationRefused& event) {
    if (event.role != RoleOfState() || !Waits(event.role)) return;
    if (drill_().state == DrillState::kSafetyRelease) {
      End(DrillState::kFailed, absl::StrCat("no safety release: ", event.why, ". Nothing was broken"));
      return;
    }
    Drill& drill = drill_();
    if (drill.spec.fault == FaultKind::kDiskFull && event.role == DrillRole::kRecovery && event.by_host) {
      // Refused before anything was changed: as good an end as any on a full disk.
      drill.decided = drill.executed = now_;
      DrillOperation& recovery = drill.operations[event.role];
      recovery.ended = recovery.aborted = true;
      recovery.summary = absl::StrCat("refused: ", event.why);
      Note("", absl::StrCat("recovery: ", recovery.summary));
      Undo(DrillState::kPassed, "");
      return;
    }
    Undo(DrillState::kFailed, absl::StrCat("the ", NameOf(event.role), " was refused: ", event.why));
  }

  void operator()(const OperationCommits& event) {
    Drill& drill = drill_();
    if (drill.spec.fault != FaultKind::kControllerKilled || drill.state != DrillState::kRecovering ||
        drill.killed_controller || drill.operations[DrillRole::kRecovery].id != event.operation_id) {
      return;
    }
    drill.killed_controller = true;
    for (DrillHost& host : drill.hosts) {
      if (!host.has_fault) continue;
      host.fault.state = FaultReport::State::kEnded;
      host.fault.struck = true;
      host.ended = true;
    }
    Note("", "the controller kills itself now");
    decision_.effects.emplace_back(KillThisController{});
  }

  void operator()(const OperationEnded& event) {
    Drill& drill = drill_();
    for (auto& [role, operation] : drill.operations) {
      if (operation.id != event.operation.id || operation.ended) continue;
      operation = event.operation;
      operation.ended = true;
      if (drill.state == DrillState::kUndoing || IsFinal(drill.state)) return;
      if (role == RoleOfState()) OperationIsOver(role, operation);
      return;
    }
  }

  void operator()(const FaultAnswered& event) {
    Drill& drill = drill_();
    for (DrillHost& host : drill.hosts) {
      if (host.host != event.host || !host.has_fault) continue;
      if (event.report.state != FaultReport::State::kUnknown) {
        if (event.report.struck && !host.fault.struck) {
          Note(host.host, absl::StrCat("struck; at work again after ", FormatSeconds(event.report.away)));
        }
        host.fault = event.report;
      }
      if (event.of_end) {
        Ended(&host, event);
      } else if (drill.state == DrillState::kInjecting && !host.injected) {
        // A host that was cut off in the middle of it has put it back, and may say so before it is asked again.
        FaultAnswered answer = event;
        if (event.report.state == FaultReport::State::kEnded && !RB_PLANTED_BUG("ended-taken-for-injected")) {
          host.ended = true;
          answer.ok = false;
          if (answer.message.empty()) answer.message = "it was cut off in the middle, and has put it back";
        }
        Injected(&host, answer);
      } else if (event.report.state == FaultReport::State::kEnded && event.report.ended_alone && !host.ended) {
        host.ended = true;
        Note(host.host, "its time was up: the agent has ended the fault alone");
      }
      return;
    }
  }

  void operator()(const HostSeen& event) {
    Drill& drill = drill_();
    for (DrillHost& host : drill.hosts) {
      if (host.host != event.host) continue;
      if (!host.injected) return;
      if (drill.state != DrillState::kInjecting && drill.state != DrillState::kDetecting) return;
      Look(&host, event);
      if (drill.state == DrillState::kDetecting) DetectedEverywhere();
      return;
    }
  }

  void operator()(const StopAsked& event) {
    if (IsFinal(drill_().state)) return;
    Stop(absl::StrCat("stopped by ", event.by, event.reason.empty() ? "" : absl::StrCat(": ", event.reason)));
  }

  void operator()(const IncidentSeen& event) {
    if (IsFinal(drill_().state) || drill_().state == DrillState::kUndoing) return;
    Stop(absl::StrCat("stopped, something real happened: ", event.what));
  }

  void operator()(const DrillTimeUp& event) {
    Drill& drill = drill_();
    if (event.timer != drill.timer || IsFinal(drill.state)) return;
    switch (drill.state) {
      case DrillState::kPlanned:
        End(DrillState::kStopped, "nobody approved it in time. Nothing was broken");
        return;
      case DrillState::kInjecting:
        Undo(DrillState::kFailed, "the fault could not be injected everywhere in time");
        return;
      case DrillState::kDetecting:
        Note("", absl::StrCat("not noticed within ", FormatSeconds(now_ - drill.injected.value_or(now_)),
                              "; going on without"));
        Recover();
        return;
      case DrillState::kRecovering:
        Undo(DrillState::kFailed, drill.spec.by_hand ? "nobody recovered it in time" : "the recovery took too long");
        return;
      case DrillState::kUndoing:
        Finish();
        return;
      default:
        return;
    }
  }

  DrillDecision Take() { return std::move(decision_); }

 private:
  Drill& drill_() { return decision_.drill; }
  void Note(const std::string& host, std::string text) { decision_.notes.emplace_back(host, std::move(text)); }

  void Arm(absl::Duration after) {
    Drill& drill = drill_();
    ++drill.timer;
    drill.timer_at = now_ + after;
    decision_.effects.emplace_back(ArmDrillTimer{drill.timer, after});
  }
  void Disarm() { ++drill_().timer; }

  DrillRole RoleOfState() {
    switch (drill_().state) {
      case DrillState::kSafetyRelease:
        return DrillRole::kSafety;
      case DrillState::kVerifying:
        return DrillRole::kVerification;
      default:
        return DrillRole::kRecovery;
    }
  }
  bool Waits(DrillRole role) {
    const DrillState state = drill_().state;
    return (state == DrillState::kSafetyRelease || state == DrillState::kRecovering ||
            state == DrillState::kVerifying) &&
           (drill_().operations.count(role) == 0 || drill_().operations[role].id.empty());
  }

  void Begin(DrillRole role) {
    drill_().operations.erase(role);
    decision_.effects.emplace_back(BeginOperation{role, DrillOperationSpec(drill_(), role)});
  }

  void Go(DrillState state) {
    Drill& drill = drill_();
    drill.state = state;
    Disarm();
    switch (state) {
      case DrillState::kSafetyRelease:
        Note("", "taking a safety release");
        Begin(DrillRole::kSafety);
        return;
      case DrillState::kInjecting:
        Inject();
        return;
      case DrillState::kDetecting:
        drill.injected = now_;
        Note("", "the fault is in; who notices?");
        Arm(std::min(drill.policy.detect * 2, drill.policy.longest / 2));
        DetectedEverywhere();
        return;
      case DrillState::kRecovering:
        if (drill.spec.by_hand) {
          Note("", "over to you: recover it with rbctl");
          Arm(std::max(absl::Seconds(1), drill.policy.longest - (now_ - drill.injected.value_or(now_))));
        } else {
          Note("", "recovering");
          Begin(DrillRole::kRecovery);
        }
        return;
      case DrillState::kVerifying:
        drill.verifying = now_;
        Note("", "verifying with every probe");
        Begin(DrillRole::kVerification);
        return;
      case DrillState::kUndoing:
        Note("", "ending the fault wherever it may be in");
        Arm(kUndoPatience);
        for (DrillHost& host : drill.hosts) {
          if (host.has_fault && !host.ended) decision_.effects.emplace_back(SendFault{host.host, true, {}});
        }
        if (AllEnded()) Finish();
        return;
      default:
        return;
    }
  }

  void Inject() {
    Drill& drill = drill_();
    if (drill.spec.fault == FaultKind::kControllerKilled) {
      drill.injected = now_;
      for (DrillHost& host : drill.hosts) host.injected = host.has_fault;
      Go(DrillState::kRecovering);
      return;
    }
    Arm(kInjectPatience);
    Note("", absl::StrCat("injecting ", NameOf(drill.spec.fault)));
    for (DrillHost& host : drill.hosts) {
      if (host.has_fault) decision_.effects.emplace_back(SendFault{host.host, false, {}});
    }
  }

  void Injected(DrillHost* host, const FaultAnswered& event) {
    Drill& drill = drill_();
    if (!event.ok) {
      host->error = event.message;
      Note(host->host, absl::StrCat("not injected: ", event.message));
      Undo(DrillState::kFailed, absl::StrCat("the fault could not be injected on ", host->host, ": ", event.message));
      return;
    }
    host->injected = true;
    host->injected_at = now_;
    if (!drill.spec.by_hand) Note(host->host, absl::StrCat("injected: ", host->fault.what));
    const bool all = std::all_of(drill.hosts.begin(), drill.hosts.end(),
                                 [](const DrillHost& one) { return one.injected || !one.has_fault; });
    if (!all) return;
    if (StrikesDuringRecovery(drill.spec.fault)) {
      drill.injected = now_;
      Go(DrillState::kRecovering);
    } else {
      Go(DrillState::kDetecting);
    }
  }

  void Look(DrillHost* host, const HostSeen& event) {
    if (host->detected_after.has_value()) return;
    if (event.healthy) {
      host->suspect_since.reset();
      return;
    }
    const bool may_be_starting = now_ - host->injected_at < drill_().policy.start;
    if (!Notices(drill_().spec.fault, event.probe_kind, may_be_starting)) return;
    if (!host->suspect_since.has_value()) {
      host->suspect_since = now_;
      host->suspect_probe = event.probe;
      return;
    }
    if (now_ - *host->suspect_since < kConfirmAfter) return;
    host->detected_after = *host->suspect_since - host->injected_at;
    host->detected_by = host->suspect_probe;
    Note(host->host, absl::StrCat("noticed after ", FormatSeconds(*host->detected_after), ": ", host->detected_by));
  }

  void DetectedEverywhere() {
    const bool all = std::all_of(drill_().hosts.begin(), drill_().hosts.end(), [](const DrillHost& host) {
      return host.detected_after.has_value() || !host.has_fault;
    });
    if (!all) return;
    Drill& drill = drill_();
    absl::Duration last;
    for (const DrillHost& host : drill.hosts) {
      if (host.has_fault) last = std::max(last, host.injected_at + *host.detected_after);
    }
    drill.detected = std::max(last, drill.injected.value_or(now_));
    Recover();
  }
  void Recover() { Go(DrillState::kRecovering); }

  void OperationIsOver(DrillRole role, const DrillOperation& operation) {
    Drill& drill = drill_();
    switch (role) {
      case DrillRole::kSafety:
        if (!operation.ok) {
          End(DrillState::kFailed, absl::StrCat("no safety release: ", operation.summary, ". Nothing was broken"));
        } else {
          Go(DrillState::kInjecting);
        }
        return;
      case DrillRole::kRecovery: {
        Note("", absl::StrCat("recovery: ", operation.summary));
        // A full disk may refuse it, as long as nothing is changed by that.
        const bool may_refuse = drill.spec.fault == FaultKind::kDiskFull && operation.aborted;
        if (!operation.ok && !may_refuse) {
          if (drill.spec.by_hand) {
            drill.operations.erase(DrillRole::kRecovery);
            return;
          }
          Undo(DrillState::kFailed, absl::StrCat("the recovery failed: ", operation.summary));
          return;
        }
        drill.executed = now_;
        // What strikes in the middle is over; a full disk is in the way of everything that comes.
        if (may_refuse) {
          Undo(DrillState::kPassed, "");
        } else {
          Go(DrillState::kVerifying);
        }
        return;
      }
      case DrillRole::kVerification:
        if (!operation.ok) {
          Undo(DrillState::kFailed, absl::StrCat("not healthy after the recovery: ", operation.summary));
          return;
        }
        drill.verified = now_;
        Undo(DrillState::kPassed, "");
        return;
    }
  }

  void Ended(DrillHost* host, const FaultAnswered& event) {
    if (drill_().state != DrillState::kUndoing || host->ended) return;
    if (!event.ok) {
      host->error = event.message;
      decision_.effects.emplace_back(SendFault{host->host, true, kEndRetry});
      return;
    }
    host->error.clear();
    host->ended = true;
    Note(host->host, event.report.put_back > 0
                         ? absl::StrCat("the fault is ended; ", event.report.put_back,
                                        event.report.put_back == 1 ? " place" : " places", " had to be put back")
                         : "the fault is ended; nothing of it was left");
    if (AllEnded()) Finish();
  }

  bool AllEnded() {
    return std::all_of(drill_().hosts.begin(), drill_().hosts.end(),
                       [](const DrillHost& host) { return host.ended || !host.has_fault; });
  }

  void Stop(const std::string& why) {
    Drill& drill = drill_();
    for (const auto& [role, operation] : drill.operations) {
      // What a person began is theirs.
      const bool is_ours = !(drill.spec.by_hand && role == DrillRole::kRecovery);
      if (is_ours && !operation.ended) decision_.effects.emplace_back(AbortOperation{operation.id, why});
    }
    const bool may_be_in = drill.state != DrillState::kPlanned && drill.state != DrillState::kSafetyRelease;
    if (drill.state == DrillState::kUndoing) {
      drill.ending = DrillState::kStopped;
      drill.summary = why;
      Note("", why);
    } else if (may_be_in) {
      Undo(DrillState::kStopped, why);
    } else {
      End(DrillState::kStopped, absl::StrCat(why, ". Nothing was broken"));
    }
  }

  void Undo(DrillState ending, const std::string& why) {
    Drill& drill = drill_();
    drill.ending = ending;
    drill.summary = why;
    if (!why.empty()) Note("", why);
    Go(DrillState::kUndoing);
  }

  void Finish() {
    Drill& drill = drill_();
    std::vector<std::string> open;
    for (const DrillHost& host : drill.hosts) {
      if (host.has_fault && !host.ended) open.push_back(host.host);
    }
    if (!open.empty()) {
      const std::string who = absl::StrJoin(open, ", ");
      End(DrillState::kFailed,
          absl::StrCat(drill.summary, drill.summary.empty() ? "" : "; ", who, open.size() == 1 ? " has" : " have",
                       " not said that the fault is ended: each agent ends it alone, "
                       "at the latest ",
                       FormatSeconds(drill.policy.longest), " after it was injected"));
      return;
    }
    if (drill.ending != DrillState::kPassed) {
      End(drill.ending, absl::StrCat(drill.summary, "; what was broken is put back"));
      return;
    }
    std::vector<std::string> missed;
    for (const DrillPhase& phase : PhasesOf(drill)) {
      if (phase.met) continue;
      missed.push_back(phase.took.has_value() ? absl::StrCat(phase.name, " took ", FormatSeconds(*phase.took), " of ",
                                                             FormatSeconds(phase.target))
                                              : absl::StrCat(phase.name, ": never"));
    }
    for (const DrillHost& host : drill.hosts) {
      if (host.has_fault && StrikesDuringRecovery(drill.spec.fault) && !host.fault.struck) {
        missed.push_back(absl::StrCat("the fault never struck ", host.host));
      }
      // Who leaves it to the fault's end has not recovered it. A full disk is for nobody else to empty.
      if (host.fault.put_back > 0 && drill.spec.fault != FaultKind::kDiskFull) {
        missed.push_back(absl::StrCat("the recovery left ", host.fault.put_back, " broken on ", host.host));
      }
    }
    const bool refused = ChangedNothing(drill);
    if (missed.empty()) {
      End(DrillState::kPassed, refused
                                   ? "noticed in time; the recovery was refused for want of room, and changed nothing"
                                   : "noticed, recovered and verified, each in time");
    } else {
      End(DrillState::kMissedTarget,
          absl::StrCat(refused ? "nothing was changed, but " : "recovered, but ", absl::StrJoin(missed, "; ")));
    }
  }

  void End(DrillState state, std::string summary) {
    Drill& drill = drill_();
    drill.state = state;
    drill.summary = std::move(summary);
    drill.ended_at = at_;
    Disarm();
    Note("", absl::StrCat(NameOf(state), ": ", drill.summary));
  }

  DrillDecision decision_;
  const absl::Duration now_;
  const absl::Time at_;
};

}  // namespace

absl::string_view NameOf(FaultKind kind) {
  static constexpr absl::string_view kNames[] = {"bad-code",     "bad-database",      "bad-config", "host-power-cut",
                                                 "agent-killed", "controller-killed", "disk-full"};
  return kNames[static_cast<int>(kind)];
}

bool ParseFaultKind(absl::string_view text, FaultKind* kind) {
  for (const FaultKind one : kAllFaultKinds) {
    if (NameOf(one) != text) continue;
    *kind = one;
    return true;
  }
  return false;
}

bool LooksInside(absl::string_view probe_kind) {
  return probe_kind == "sqlite" || probe_kind == "log" || probe_kind == "journal" || probe_kind == "disk";
}

bool StrikesDuringRecovery(FaultKind kind) {
  return kind == FaultKind::kHostPowerCut || kind == FaultKind::kAgentKilled || kind == FaultKind::kControllerKilled;
}

absl::string_view NameOf(DrillState state) {
  static constexpr absl::string_view kNames[] = {"planned",       "safety release", "injecting", "detecting",
                                                 "recovering",    "verifying",      "undoing",   "passed",
                                                 "missed target", "failed",         "stopped"};
  return kNames[static_cast<int>(state)];
}

absl::string_view NameOf(DrillRole role) {
  return role == DrillRole::kSafety ? "safety release" : role == DrillRole::kRecovery ? "recovery" : "verification";
}

bool IsFinal(DrillState state) { return state >= DrillState::kPassed; }

bool IsLegalTransition(DrillState from, DrillState to) {
  if (from == to) return true;
  switch (from) {
    case DrillState::kPlanned:
      return to == DrillState::kSafetyRelease || to == DrillState::kStopped;
    case DrillState::kSafetyRelease:
      // Injecting is passed through where the controller itself is the fault.
      return to == DrillState::kInjecting || to == DrillState::kRecovering || to == DrillState::kFailed ||
             to == DrillState::kStopped;
    case DrillState::kInjecting:
      // With an answer from the last host, what was seen meanwhile may be enough.
      return to == DrillState::kDetecting || to == DrillState::kRecovering || to == DrillState::kUndoing || IsFinal(to);
    case DrillState::kDetecting:
      return to == DrillState::kRecovering || to == DrillState::kUndoing || IsFinal(to);
    case DrillState::kRecovering:
      return to == DrillState::kVerifying || to == DrillState::kUndoing || IsFinal(to);
    case DrillState::kVerifying:
      return to == DrillState::kUndoing || IsFinal(to);
    case DrillState::kUndoing:
      return IsFinal(to);
    default:
      return false;
  }
}

DrillDecision DecideDrill(const Drill& drill, const DrillEventRecord& event) {
  Decider decider(drill, event);
  std::visit(decider, event.body);
  return decider.Take();
}

std::vector<DrillEffect> OutstandingDrillEffects(const Drill& drill, absl::string_view host, absl::Duration elapsed) {
  std::vector<DrillEffect> effects;
  if (IsFinal(drill.state) || drill.id.empty()) return effects;
  if (host.empty() && drill.timer_at > absl::ZeroDuration()) {
    effects.emplace_back(ArmDrillTimer{drill.timer, std::max(absl::ZeroDuration(), drill.timer_at - elapsed)});
  }
  for (const DrillHost& one : drill.hosts) {
    if (!one.has_fault || (!host.empty() && one.host != host)) continue;
    if (drill.state == DrillState::kInjecting && !one.injected) effects.emplace_back(SendFault{one.host, false, {}});
    if (drill.state == DrillState::kUndoing && !one.ended) effects.emplace_back(SendFault{one.host, true, {}});
  }
  if (!host.empty()) return effects;
  // An operation that was to begin: its key finds the one that has begun.
  const auto begin = [&](DrillRole role) {
    const auto found = drill.operations.find(role);
    if (found != drill.operations.end() && !found->second.id.empty()) return;
    if (role == DrillRole::kRecovery && drill.spec.by_hand) return;
    effects.emplace_back(BeginOperation{role, DrillOperationSpec(drill, role)});
  };
  if (drill.state == DrillState::kSafetyRelease) begin(DrillRole::kSafety);
  if (drill.state == DrillState::kRecovering) begin(DrillRole::kRecovery);
  if (drill.state == DrillState::kVerifying) begin(DrillRole::kVerification);
  return effects;
}

OperationSpec DrillOperationSpec(const Drill& drill, DrillRole role) {
  OperationSpec spec;
  spec.environment = drill.spec.environment;
  spec.service = drill.spec.service;
  for (const DrillHost& host : drill.hosts) spec.hosts.push_back(host.host);
  spec.drill_id = drill.id;
  // Whoever recovers by hand reads the history.
  spec.reason = drill.spec.by_hand ? "drill" : absl::StrCat("drill ", NameOf(drill.spec.fault));
  // Something scheduled may just be at work.
  spec.wait_for_lock = absl::Seconds(30);
  if (role != DrillRole::kRecovery) {
    spec.kind = role == DrillRole::kSafety ? OperationKind::kBackup : OperationKind::kVerification;
    return spec;
  }
  spec.kind = OperationKind::kRollback;
  spec.method = drill.spec.method;
  // The newest good release, whatever is current: the safety release. Nothing good is taken while the fault is in, and
  // hosts' clocks may be ahead.
  spec.target.kind = TargetReference::Kind::kBefore;
  spec.target.before = drill.accepted_at + kLongestDrillWait * 2;
  // The drill went through gates of its own.
  spec.override_gates = {std::string(kGatePassedIn), std::string(kGateWindow), std::string(kGateApproval)};
  if (drill.spec.fault == FaultKind::kBadDatabase) spec.components = {Component::kData};
  spec.even_if_already_there = StrikesDuringRecovery(drill.spec.fault) || drill.spec.fault == FaultKind::kDiskFull;
  return spec;
}

std::vector<DrillPhase> PhasesOf(const Drill& drill) {
  std::vector<DrillPhase> phases;
  const auto add = [&phases](std::string name, const std::optional<absl::Duration>& from,
                             const std::optional<absl::Duration>& to, absl::Duration target) {
    DrillPhase phase;
    phase.name = std::move(name);
    if (from.has_value() && to.has_value()) phase.took = std::max(absl::ZeroDuration(), *to - *from);
    phase.target = target;
    phase.met = phase.took.has_value() && *phase.took <= target;
    phases.push_back(std::move(phase));
  };
  const DrillPolicy& policy = drill.policy;
  absl::Duration execute = absl::Minutes(3);
  std::optional<absl::Duration> executed = drill.executed;
  if (const auto found = drill.operations.find(DrillRole::kRecovery); found != drill.operations.end()) {
    const DrillOperation& operation = found->second;
    if (operation.target > absl::ZeroDuration()) execute = operation.target;
    // The last host healthy; the operation itself ends a little later.
    if (drill.decided.has_value() && operation.recovery > absl::ZeroDuration() && executed.has_value()) {
      executed = std::min(*executed, *drill.decided + operation.recovery);
    }
  }
  const bool strikes = StrikesDuringRecovery(drill.spec.fault);
  const bool refused = ChangedNothing(drill);
  if (!strikes) {
    // On a full disk that no probe looks at, the refusal of the recovery is what notices it.
    const std::optional<absl::Duration> detected =
        drill.detected.has_value() || !refused ? drill.detected : drill.executed;
    add("detect", drill.injected, detected, policy.detect);
    add("decide", detected.has_value() && drill.decided.has_value() ? std::min(*detected, *drill.decided) : detected,
        drill.decided, policy.decide);
  }
  add("execute", drill.decided, executed, execute);
  if (!refused) add("verify", drill.verifying, drill.verified, policy.verify);
  return phases;
}

std::string AlertOf(const Drill& drill) {
  std::vector<std::string> lines;
  for (const DrillHost& host : drill.hosts) {
    if (host.detected_after.has_value()) lines.push_back(absl::StrCat(host.host, ": ", host.detected_by));
  }
  const bool nothing = lines.empty() && drill.spec.by_hand && drill.state == DrillState::kRecovering;
  if (nothing) lines.emplace_back("users say that it does not work; no probe has noticed anything");
  if (lines.empty()) return "";
  return absl::StrCat(drill.spec.service, " in ", drill.spec.environment, " is unhealthy. ",
                      absl::StrJoin(lines, "; "));
}

std::string ExpectedOf(FaultKind kind) {
  switch (kind) {
    case FaultKind::kBadCode:
    case FaultKind::kBadConfig:
      return "the service does not start; the probes notice, and a rollback to the safety release makes it healthy";
    case FaultKind::kBadDatabase:
      return "the integrity probe or the log notices, whatever the service says; a rollback of its data brings it back";
    case FaultKind::kHostPowerCut:
      return "the host comes back on a whole release, and the rollback ends";
    case FaultKind::kAgentKilled:
      return "the agent comes back, finishes what it began, and the rollback succeeds";
    case FaultKind::kControllerKilled:
      return "the controller comes back, takes the rollback up again, and it succeeds";
    case FaultKind::kDiskFull:
      return "the service stays healthy on a whole release; the rollback succeeds, or changes nothing and says why";
  }
  return "";
}

std::string ObservedOf(const Drill& drill) {
  std::vector<std::string> parts;
  for (const DrillHost& host : drill.hosts) {
    if (!host.has_fault) continue;
    std::string text = host.host;
    if (!host.injected) {
      absl::StrAppend(&text, ": not injected");
    } else if (host.fault.struck && host.fault.away > absl::ZeroDuration()) {
      absl::StrAppend(&text, ": struck, at work again after ", FormatSeconds(host.fault.away));
    } else if (host.fault.struck) {
      absl::StrAppend(&text, ": struck");
    } else if (StrikesDuringRecovery(drill.spec.fault)) {
      absl::StrAppend(&text, ": has not struck");
    } else if (host.detected_after.has_value()) {
      absl::StrAppend(&text, ": noticed after ", FormatSeconds(*host.detected_after), " by ", host.detected_by);
    } else {
      absl::StrAppend(&text, ": no probe noticed it");
    }
    parts.push_back(std::move(text));
  }
  if (const auto found = drill.operations.find(DrillRole::kRecovery);
      found != drill.operations.end() && found->second.ended) {
    parts.push_back(absl::StrCat("recovery: ", found->second.summary));
  }
  return absl::StrJoin(parts, "; ");
}

}  // namespace rb::controller
