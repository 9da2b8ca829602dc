#include "controller/core/plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/text.h"
#include "controller/core/names.h"

namespace rb::controller {

std::string NameOf(Method method) {
  switch (method) {
    case Method::kAuto:
      return "auto";
    case Method::kBackup:
      return "backup";
    case Method::kGit:
      return "git";
    case Method::kRedeploy:
      return "redeploy";
  }
  return "";
}

namespace {

// Long enough for the probes that need time.
constexpr absl::Duration kSoakOfAVerification = absl::Seconds(10);
// Named in a refusal.
constexpr size_t kMostCandidates = 20;

std::string Short(const std::string& commit) { return commit.substr(0, 7); }

std::string NameOfTarget(const OperationSpec& spec) {
  switch (spec.target.kind) {
    case TargetReference::Kind::kLastGood:
      return "last-good";
    case TargetReference::Kind::kPrevious:
      return "previous";
    case TargetReference::Kind::kBefore:
      return absl::StrCat("before ", FormatUtc(spec.target.before));
    case TargetReference::Kind::kNamed:
      return Printable(spec.target.name);
  }
  return "";
}

bool IsWholeCommit(const std::string& text) {
  return text.size() == 40 && std::all_of(text.begin(), text.end(),
                                          [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); });
}

// A damaged backup is a reason for a redeploy; a bad commit is none.
bool IsOnlyDamaged(const Candidate& candidate) {
  return absl::StartsWith(candidate.refused_because, "is damaged") ||
         absl::StartsWith(candidate.refused_because, "is empty");
}

// What hosts have to agree on: the commit where it is known, else the state itself.
std::string IdentityOf(const Candidate& candidate) {
  if (!candidate.commit.empty()) return candidate.commit;
  return candidate.release.has_value() ? candidate.release->manifest_digest : "";
}

class Planner {
 public:
  Planner(const Scope& scope, const Fleet& fleet, const std::map<std::string, Inspection>& inspections,
          const PlanningHistory& history)
      : scope_(scope), fleet_(fleet), inspections_(inspections), history_(history) {
    plan_.spec = scope.spec;
    plan_.refusal = scope.refusal;
  }

  Plan Make() {
    if (plan_.refusal.refused()) return std::move(plan_);
    const FleetService& service = fleet_.services.at(spec().service);
    plan_.on_failure = spec().hold_on_failure ? OnFailure::kHold : service.on_failure;
    plan_.verify_deadline = service.verify_deadline;
    ExplainScope();
    CheckLock();
    if (!refused()) CheckHosts();
    if (!refused() && spec().kind == OperationKind::kUndo && !history_.undo_releases.has_value()) {
      Refuse(Refusal::Code::kUnknownOperation,
             absl::StrCat("there is no operation ", Printable(spec().undo_operation_id), " to undo here"),
             "rbctl history");
    }
    if (!refused()) ChooseSources();
    if (!refused()) CheckQuarantine();
    // A full disk is what pruning is for.
    if (!refused() && spec().kind != OperationKind::kVerification && spec().kind != OperationKind::kPrune) {
      CheckProblems();
    }
    if (!refused() && ChangesHosts(spec().kind)) CheckGates();
    if (!refused()) FillIn(service);
    if (!refused()) Predict();
    return std::move(plan_);
  }

 private:
  const OperationSpec& spec() const { return scope_.spec; }
  bool refused() const { return plan_.refusal.refused(); }
  void Refuse(Refusal::Code code, const std::string& message, const std::string& next = "") {
    plan_.refusal.code = code;
    plan_.refusal.message = absl::StrCat(message, ". Nothing was changed");
    plan_.refusal.next_command = next;
    Explain(Rule::kRefusal, message);
  }

  void Explain(Rule rule, absl::string_view text, const std::string& host = "") { plan_.reasons.Add(rule, text, host); }

  void ExplainScope() {
    const std::string where = absl::StrCat(spec().service, " in ", absl::StrJoin(EnvironmentsOf(spec()), ", then "));
    const std::string order = scope_.hosts.size() == 1 ? "" : "; in the order of the fleet file";
    Explain(Rule::kScope, spec().hosts.empty() ? absl::StrCat("every host of ", where, ": ", scope_.hosts.size(), order)
                                               : absl::StrCat("the hosts that were named, of ", where, ": ",
                                                              JoinSome(scope_.hosts), order));
  }

  void CheckLock() {
    if (history_.lock_holder.empty()) return;
    Refuse(Refusal::Code::kLocked,
           absl::StrCat("operation ", history_.lock_holder, " is at work on ", spec().service, " in ",
                        history_.locked_environment),
           absl::StrCat("rbctl watch ", history_.lock_holder, ", or the same command with --wait 10m"));
    plan_.refusal.holder_operation_id = history_.lock_holder;
  }

  const Inspection& InspectionOf(const std::string& host) const {
    static const Inspection* const none = new Inspection;
    const auto found = inspections_.find(host);
    return found == inspections_.end() ? *none : found->second;
  }

  void CheckHosts() {
    std::vector<std::string> offline;
    std::vector<std::string> failing;
    for (const std::string& host : scope_.hosts) {
      const Inspection& inspection = InspectionOf(host);
      if (!inspection.connected) {
        offline.push_back(host);
      } else if (!inspection.error.empty()) {
        failing.push_back(absl::StrCat(host, ": ", inspection.error));
      }
    }
    if (spec().skip_offline && offline.size() < scope_.hosts.size()) {
      for (const std::string& host : offline) {
        plan_.missed[host] = scope_.environment_of_host.at(host);
        plan_.notes.push_back(absl::StrCat(host, ": offline, and left out; when it is back: rbctl repair ", host));
        Explain(Rule::kNotTouched, "left out (--skip-offline): offline", host);
      }
      offline.clear();
    }
    if (!offline.empty()) {
      Refuse(Refusal::Code::kHostOffline,
             absl::StrCat(JoinSome(offline), offline.size() == 1 ? " is offline" : " are offline",
                          "; an operation moves all of its hosts or none"),
             offline.size() < scope_.hosts.size()
                 ? absl::StrCat("bring the agent back (on the host: systemctl status rb-agent), or the same command "
                                "with --skip-offline")
                 : "rbctl agents");
      NameHosts(offline);
    } else if (!failing.empty()) {
      Refuse(Refusal::Code::kHostProblem, JoinSome(failing, "; "), "rbctl status " + spec().environment);
    }
  }

  // A refusal travels in the trailer of an answer: it has to be small.
  void NameHosts(const std::vector<std::string>& hosts) {
    plan_.refusal.hosts.assign(hosts.begin(),
                               hosts.begin() + static_cast<std::ptrdiff_t>(std::min(hosts.size(), kMostNamed)));
  }

  // Why the sources that were not taken were not.
  void ExplainOthers(const std::string& host, const Inspection& inspection, const Candidate& best) {
    for (const Candidate& candidate : inspection.candidates) {
      if (candidate.refused_because.empty()) continue;
      // Names differ from host to host; what counts is the rule.
      Explain(Rule::kNotChosen,
              absl::StrCat(NameOf(candidate.method), " ", Short(candidate.commit), ": ", candidate.refused_because),
              host);
    }
    if (best.method == Method::kGit && spec().method == Method::kAuto && ChangesHosts(spec().kind) &&
        std::none_of(inspection.candidates.begin(), inspection.candidates.end(),
                     [](const Candidate& one) { return one.method == Method::kBackup; })) {
      Explain(Rule::kNotChosen, "backup: the host has no release of it", host);
    }
  }

  // Method B is about all hosts of an environment, and about code and config together.
  void LookAtCi() {
    const FleetService& service = fleet_.services.at(spec().service);
    plan_.ci_deadline = service.ci_deadline;
    plan_.redeploy_target = service.target_redeploy;
    if (spec().method != Method::kAuto && spec().method != Method::kRedeploy) return;
    if (spec().kind != OperationKind::kRollback) {
      no_ci_because_ = "only a rollback goes through CI";
    } else if (!service.has_ci) {
      no_ci_because_ = absl::StrCat("the fleet file names no CI for ", service.name);
    } else if (!service.ci_off_because.empty()) {
      no_ci_because_ = absl::StrCat("CI is switched off in the fleet file: ", service.ci_off_because);
    } else if (!spec().hosts.empty()) {
      no_ci_because_ = "CI deploys to every host of an environment at once, and --host names some of them";
    } else if (!spec().components.empty()) {
      no_ci_because_ = "CI deploys everything at once, and components were chosen";
    } else if (!history_.ci_unavailable_because.empty()) {
      no_ci_because_ = history_.ci_unavailable_because;
    } else {
      ResolveForCi();
    }
    if (service.has_ci && spec().kind == OperationKind::kRollback && !no_ci_because_.empty() &&
        spec().method == Method::kAuto) {
      plan_.notes.push_back(absl::StrCat("redeploy through CI is not offered: ", no_ci_because_));
      Explain(Rule::kNotChosen, plan_.notes.back());
    }
  }

  // The one commit that the reference means on the hosts that know it.
  void ResolveForCi() {
    std::map<std::string, std::string> versions;
    for (const std::string& host : scope_.hosts) {
      bool first_only = spec().target.kind != TargetReference::Kind::kNamed;
      for (const Candidate& candidate : InspectionOf(host).candidates) {
        if (candidate.commit.empty() || !(candidate.refused_because.empty() || IsOnlyDamaged(candidate))) continue;
        std::string& version = versions[candidate.commit];
        if (version.empty()) version = candidate.version;
        if (first_only) break;
      }
    }
    if (versions.empty() && IsWholeCommit(spec().target.name)) versions[spec().target.name];
    if (versions.size() != 1) {
      no_ci_because_ = versions.empty() ? absl::StrCat("no host knows the commit of '", NameOfTarget(spec()), "'")
                                        : absl::StrCat("'", NameOfTarget(spec()), "' is more than one commit");
      return;
    }
    const auto& [commit, version] = *versions.begin();
    for (const std::string& host : scope_.hosts) {
      for (const Candidate& candidate : InspectionOf(host).candidates) {
        if (candidate.commit != commit || candidate.refused_because.empty() || IsOnlyDamaged(candidate)) continue;
        if (absl::StartsWith(candidate.refused_because, "is not ")) continue;
        no_ci_because_ = absl::StrCat(Short(commit), " ", candidate.refused_because, " (", host, ")");
        return;
      }
    }
    Candidate through_ci;
    through_ci.method = Method::kRedeploy;
    through_ci.commit = commit;
    through_ci.version = version;
    through_ci_ = through_ci;
  }

  // For every host, since CI deploys to all of them.
  void ChooseCi(const std::string& because) {
    plan_.hosts.clear();
    identities_.clear();
    bool all_there = true;
    for (const std::string& host : scope_.hosts) {
      if (plan_.missed.contains(host)) continue;
      const Inspection& inspection = InspectionOf(host);
      HostPlan plan;
      plan.host = host;
      plan.environment = scope_.environment_of_host.at(host);
      plan.from_release = inspection.current_release;
      plan.from_commit = inspection.current_commit;
      plan.from_version = inspection.current_version;
      plan.method = Method::kRedeploy;
      plan.method_because = because;
      plan.commit = through_ci_->commit;
      plan.version = through_ci_->version;
      bool was_good = false;
      for (const Candidate& candidate : inspection.candidates) {
        if (candidate.commit != plan.commit) continue;
        was_good = was_good || (candidate.release.has_value() && candidate.release->standing == Standing::kGood);
        plan.already_there = plan.already_there || (candidate.already_there && candidate.refused_because.empty());
        plan.delta = candidate.delta;
      }
      Explain(Rule::kMethod, absl::StrCat("redeploy: ", because), host);
      was_good_ = was_good_ && was_good;
      all_there = all_there && plan.already_there;
      plan_.hosts.push_back(std::move(plan));
    }
    for (HostPlan& host : plan_.hosts) host.already_there = all_there;
    if (all_there) return;
    plan_.notes.emplace_back("CI deploys to all hosts of an environment at once: no waves within one");
  }

  void ChooseSources() {
    if (!spec().announcement.empty()) {
      plan_.notes.push_back(absl::StrCat("announced before and after: ", spec().announcement));
    }
    LookAtCi();
    if (spec().method == Method::kRedeploy) {
      if (through_ci_.has_value()) {
        ChooseCi("it was asked for");
        return;
      }
      Refuse(Refusal::Code::kNoCandidate, absl::StrCat("redeploy through CI is not offered: ", no_ci_because_),
             absl::StrCat("rbctl plan ", spec().environment, " --method auto"));
      GiveCandidates();
      return;
    }
    if (spec().kind == OperationKind::kRollback && spec().method == Method::kAuto) {
      Explain(Rule::kMethod,
              "auto tries, in this order: a proved backup, git, a backup that is not proved, redeploy through CI");
    }
    for (const std::string& host : scope_.hosts) {
      if (plan_.missed.contains(host)) continue;
      const Inspection& inspection = InspectionOf(host);
      HostPlan plan;
      plan.host = host;
      plan.environment = scope_.environment_of_host.at(host);
      plan.from_release = inspection.current_release;
      plan.from_commit = inspection.current_commit;
      plan.from_version = inspection.current_version;
      if (!ChangesHosts(spec().kind)) {
        plan.method_because = spec().kind == OperationKind::kBackup  ? "a backup changes nothing"
                              : spec().kind == OperationKind::kPrune ? "pruning touches old releases alone"
                                                                     : "a verification changes nothing";
        plan_.hosts.push_back(std::move(plan));
        continue;
      }
      std::vector<Candidate> usable;
      for (const Candidate& candidate : inspection.candidates) {
        if (Fits(host, candidate)) usable.push_back(candidate);
      }
      if (usable.empty()) {
        if (through_ci_.has_value() && spec().method == Method::kAuto) {
          ChooseCi(absl::StrCat(host, " has neither a usable backup nor the commit in its git mirror"));
        } else {
          NoCandidate(host);
        }
        return;
      }
      Rank(&usable);
      const Candidate best = usable.front();
      for (size_t i = 1; i < usable.size(); ++i) {
        if (IdentityOf(usable[i]) != IdentityOf(best)) {
          if (spec().target.kind == TargetReference::Kind::kNamed) {
            Ambiguous(absl::StrCat("'", NameOfTarget(spec()), "' is more than one thing on ", host));
            return;
          }
          continue;
        }
        if (usable[i].method != best.method) plan.fallbacks.push_back(usable[i]);
      }
      if (through_ci_.has_value() && through_ci_->commit == best.commit) plan.fallbacks.push_back(*through_ci_);
      plan.method = best.method;
      plan.commit = best.commit;
      plan.version = best.version;
      plan.delta = best.delta;
      plan.already_there = best.already_there;
      if (best.release.has_value()) {
        plan.release_name = best.release->name;
        plan.durability = best.release->durability;
        plan.last_proved_at = best.release->last_proved_at;
      }
      plan.method_because = Because(best);
      Explain(Rule::kMethod, absl::StrCat(NameOf(best.method), ": ", RuleOf(best)), host);
      ExplainOthers(host, inspection, best);
      for (const Candidate& fallback : plan.fallbacks) {
        Explain(Rule::kFallback, absl::StrCat(NameOf(fallback.method), ", if that fails"), host);
      }
      if (best.method == Method::kBackup && best.release.has_value() &&
          best.release->durability != Durability::kProved) {
        plan_.notes.push_back(absl::StrCat(host, ": ", plan.release_name, " has not been proved by a restore yet"));
      }
      was_good_ = was_good_ && best.release.has_value() && best.release->standing == Standing::kGood;
      identities_[IdentityOf(best)].push_back(host);
      plan_.hosts.push_back(std::move(plan));
    }
    if (spec().kind != OperationKind::kUndo && identities_.size() > 1) {
      std::vector<std::string> parts;
      for (const auto& [identity, hosts] : identities_) {
        parts.push_back(absl::StrCat(Short(identity), " on ", JoinSome(hosts)));
      }
      Ambiguous(absl::StrCat("'", NameOfTarget(spec()), "' is not the same on all hosts: ", JoinSome(parts, "; ")));
    }
  }

  bool Fits(const std::string& host, const Candidate& candidate) const {
    if (!candidate.refused_because.empty()) return false;
    if (spec().kind == OperationKind::kDeploy) return candidate.method == Method::kGit;
    if (spec().kind == OperationKind::kUndo) {
      const auto wanted = history_.undo_releases->find(host);
      return wanted != history_.undo_releases->end() && candidate.release.has_value() &&
             candidate.release->name == wanted->second;
    }
    return spec().method == Method::kAuto || spec().method == candidate.method;
  }

  // A proved backup, then git, then a backup that is not proved. Among backups a good one first.
  static int RankOf(const Candidate& candidate) {
    if (candidate.method != Method::kBackup) return 2;
    const bool proved = candidate.release.has_value() && candidate.release->durability == Durability::kProved;
    const bool good = candidate.release.has_value() && candidate.release->standing == Standing::kGood;
    return (proved ? 0 : 3) + (good ? 0 : 1);
  }
  static void Rank(std::vector<Candidate>* candidates) {
    std::stable_sort(candidates->begin(), candidates->end(),
                     [](const Candidate& a, const Candidate& b) { return RankOf(a) < RankOf(b); });
  }

  std::string Because(const Candidate& best) const {
    const std::string rule = RuleOf(best);
    const bool proved = spec().method == Method::kAuto && best.method == Method::kBackup && best.release.has_value() &&
                        best.release->durability == Durability::kProved && ByMethod();
    return proved ? absl::StrCat(rule, "; proved ", FormatUtc(best.release->last_proved_at)) : rule;
  }

  // The source follows from how good it is, not from what was asked.
  bool ByMethod() const {
    return spec().kind != OperationKind::kDeploy && spec().kind != OperationKind::kRepair &&
           spec().kind != OperationKind::kUndo;
  }

  std::string RuleOf(const Candidate& best) const {
    if (spec().kind == OperationKind::kDeploy) return "a deploy comes from git";
    if (spec().kind == OperationKind::kRepair) return "it is what the others run";
    if (spec().kind == OperationKind::kUndo) return "it is what the operation replaced";
    if (spec().method != Method::kAuto) return "it was asked for";
    if (best.method == Method::kGit) return "no proved backup of it is on the host, and the git mirror has it";
    if (best.release.has_value() && best.release->durability == Durability::kProved) {
      return "a proved backup is the fastest";
    }
    return "a backup is there, though not proved, and the git mirror does not have it";
  }

  // A commit that was rolled back from, or reverted, anywhere. A rollback and a deploy go there with --force alone; an
  // undo and a repair mean that very commit, and say so.
  void CheckQuarantine() {
    std::set<std::string> said;
    for (const HostPlan& host : plan_.hosts) {
      const auto found = history_.quarantined.find(host.commit);
      if (host.commit.empty() || found == history_.quarantined.end() || !said.insert(host.commit).second) continue;
      const QuarantinedCommit& why = found->second;
      const std::string what = absl::StrCat(Short(host.commit), " is quarantined since ", FormatUtc(why.since), " (",
                                            why.operation_id, ": ", why.reason, ")");
      if (spec().kind == OperationKind::kUndo) {
        const bool ends = why.operation_id == spec().undo_operation_id;
        plan_.notes.push_back(
            absl::StrCat(what, "; an undo goes back to it all the same, and it ",
                         ends ? "is released from quarantine when the undo has succeeded" : "stays quarantined"));
      } else if (spec().kind == OperationKind::kRepair) {
        plan_.notes.push_back(absl::StrCat(what, "; it is what the others run"));
      } else if (spec().force || spec().target.force) {
        plan_.notes.push_back(absl::StrCat(what, "; --force goes past that, and it stays quarantined"));
      } else {
        RefuseQuarantined(host.commit, why);
        return;
      }
    }
  }

  void RefuseQuarantined(const std::string& commit, const QuarantinedCommit& why) {
    Refuse(Refusal::Code::kQuarantined,
           absl::StrCat(Short(commit), " is bad, and quarantined since ", FormatUtc(why.since), " (", why.operation_id,
                        ": ", why.reason, ")"),
           absl::StrCat("rbctl quarantine release ", Short(commit),
                        " --reason \"...\", or the same command with --force --reason \"...\""));
    GiveCandidates();
  }

  void GiveCandidates() {
    // Of the first hosts, as much as fits in a refusal.
    size_t given = 0;
    for (const std::string& host : scope_.hosts) {
      std::vector<Candidate> candidates = InspectionOf(host).candidates;
      given += candidates.size();
      if (given > kMostCandidates && !plan_.refusal.candidates.empty()) return;
      // What would change is for a plan to say.
      for (Candidate& candidate : candidates) candidate.delta = DeltaSummary();
      plan_.refusal.candidates[host] = std::move(candidates);
    }
  }

  void NoCandidate(const std::string& host) {
    const Inspection& inspection = InspectionOf(host);
    // What was asked for by name is there, and not to be used: that is the reason, and not that nothing is there.
    for (const Candidate& candidate : inspection.candidates) {
      const auto found = history_.quarantined.find(candidate.commit);
      const bool meant = spec().target.kind == TargetReference::Kind::kNamed &&
                         !absl::StartsWith(candidate.refused_because, "is not ") &&
                         (spec().kind == OperationKind::kRollback || spec().kind == OperationKind::kDeploy);
      if (candidate.commit.empty() || found == history_.quarantined.end() || !meant) continue;
      RefuseQuarantined(candidate.commit, found->second);
      plan_.refusal.hosts.push_back(host);
      return;
    }
    std::string why;
    for (const Candidate& candidate : inspection.candidates) {
      if (candidate.refused_because.empty() || absl::StartsWith(candidate.refused_because, "is not ")) continue;
      why = absl::StrCat("; ", candidate.release.has_value() ? candidate.release->name : Short(candidate.commit), " ",
                         candidate.refused_because);
      break;
    }
    const std::string problems =
        inspection.problems.empty() ? "" : absl::StrCat(" (", absl::StrJoin(inspection.problems, "; "), ")");
    if (spec().kind == OperationKind::kUndo) {
      Refuse(Refusal::Code::kNoCandidate,
             absl::StrCat(host, " no longer has what ", spec().undo_operation_id, " replaced", why),
             absl::StrCat("rbctl backup list ", spec().environment));
    } else {
      Refuse(Refusal::Code::kNoCandidate,
             absl::StrCat(host, " has nothing to go to for '", NameOfTarget(spec()), "'", why, problems,
                          fleet_.services.at(spec().service).has_ci && !no_ci_because_.empty()
                              ? absl::StrCat("; redeploy through CI is not offered: ", no_ci_because_)
                              : ""),
             absl::StrCat("rbctl backup list ", spec().environment));
    }
    plan_.refusal.hosts.push_back(host);
    GiveCandidates();
  }

  void Ambiguous(const std::string& message) {
    Refuse(Refusal::Code::kAmbiguous, message, "the same command with a whole commit or release name");
    GiveCandidates();
  }

  void CheckProblems() {
    std::vector<std::string> problems;
    std::vector<std::string> hosts;
    for (const std::string& host : scope_.hosts) {
      for (const std::string& problem : InspectionOf(host).problems) {
        problems.push_back(absl::StrCat(host, ": ", problem));
        hosts.push_back(host);
      }
    }
    if (problems.empty()) return;
    Refuse(Refusal::Code::kHostProblem, JoinSome(problems, "; "));
    NameHosts(hosts);
  }

  // Whether a gate that is shut is gone past; says so in the plan, and with it in the history.
  bool IsOverridden(absl::string_view gate, const std::string& what) {
    const std::vector<std::string>& overridden = spec().override_gates;
    const bool named = std::find(overridden.begin(), overridden.end(), gate) != overridden.end();
    if (!named && !spec().emergency) return false;
    plan_.notes.push_back(absl::StrCat("gate ", gate, " skipped (",
                                       named ? absl::StrCat("--override-gate ", gate) : "--emergency", "): ", what));
    Explain(Rule::kGate, plan_.notes.back());
    return true;
  }

  void CheckGates() {
    const std::vector<std::string> environments = EnvironmentsOf(spec());
    for (const Environment& environment : fleet_.environments) {
      const auto place = std::find(environments.begin(), environments.end(), environment.name);
      if (place == environments.end()) continue;
      CheckWindow(environment);
      const std::string& before = environment.gate_passed_in;
      const bool passes_on_the_way = std::find(environments.begin(), place, before) != place;
      const bool brings_new = spec().kind == OperationKind::kRollback || spec().kind == OperationKind::kDeploy;
      if (!refused() && brings_new && !before.empty() && !passes_on_the_way) CheckPassedIn(environment);
      if (refused()) return;
    }
  }

  void CheckWindow(const Environment& environment) {
    if (IsOpen(environment.gate_windows, history_.now)) {
      if (!environment.gate_windows.empty()) {
        Explain(Rule::kGate, absl::StrCat("gate window is open for ", environment.name));
      }
      return;
    }
    const std::string opens = FormatUtc(NextOpening(environment.gate_windows, history_.now));
    if (IsOverridden(kGateWindow, absl::StrCat(environment.name, " may be changed from ", opens))) return;
    std::vector<std::string> windows;
    for (const Window& window : environment.gate_windows) windows.push_back(window.text);
    Refuse(Refusal::Code::kGate,
           absl::StrCat(environment.name, " may be changed ", absl::StrJoin(windows, ", "),
                        " UTC; the next window opens ", opens),
           "the same command with --override-gate window --reason \"...\"");
  }

  void CheckPassedIn(const Environment& environment) {
    const std::string& before = environment.gate_passed_in;
    const std::string& commit = plan_.hosts.front().commit;
    const std::string what = commit.empty() ? "the target" : Short(commit);
    absl::Time last = absl::InfinitePast();
    if (const auto passed = history_.passed.find(before); passed != history_.passed.end()) {
      for (const PlanningHistory::Passed& one : passed->second) {
        if (one.commit == commit) last = std::max(last, one.at);
      }
    }
    const bool ever = last != absl::InfinitePast();
    if (ever && history_.now - last <= environment.gate_passed_within) {
      Explain(Rule::kGate, absl::StrCat("gate passed_in is open for ", environment.name, ": ", what, " passed in ",
                                        before, " at ", FormatUtc(last)));
      return;
    }
    const std::string lacks = ever ? absl::StrCat(what, " passed in ", before, " at ", FormatUtc(last),
                                                  ", longer ago than ", FormatSeconds(environment.gate_passed_within))
                                   : absl::StrCat(what, " has not passed in ", before);
    if (IsOverridden(kGatePassedIn, lacks)) return;
    Refuse(Refusal::Code::kGate,
           absl::StrCat(environment.name, " wants ", what, " to have succeeded in ", before, " first: ", lacks),
           absl::StrCat("rbctl ", spec().kind == OperationKind::kDeploy ? "deploy " : "rollback ", before, " --to ",
                        Short(commit), ", or both in one: the same command with --through ", before, ",",
                        environment.name));
  }

  // Environments one after the other; in each, hosts that stay as they are take no place in a wave.
  void AssignAllWaves(const FleetService& service) {
    const WaveSize everything;
    const bool at_once =
        !ChangesHosts(spec().kind) || (!plan_.hosts.empty() && plan_.hosts.front().method == Method::kRedeploy);
    for (const std::string& environment : EnvironmentsOf(spec())) {
      std::vector<HostPlan*> changing;
      std::vector<bool> healthy;
      for (HostPlan& host : plan_.hosts) {
        if (host.already_there || host.environment != environment) continue;
        changing.push_back(&host);
        healthy.push_back(InspectionOf(host.host).verdict != Verdict::kUnhealthy);
      }
      // As with the soak.
      const bool has_canary = service.canary.has_value() && IsNewCode() && !spec().emergency && !at_once;
      const std::vector<uint32_t> waves =
          AssignWaves(healthy, at_once ? everything : service.wave, at_once ? everything : service.max_unavailable,
                      has_canary ? service.canary : std::nullopt);
      for (size_t i = 0; i < changing.size(); ++i) changing[i]->wave = plan_.wave_count + waves[i];
      if (!changing.empty()) {
        NeedApproval(environment, plan_.wave_count + 1);
        const uint32_t count = waves.back();
        Explain(Rule::kWave, at_once ? absl::StrCat(environment, ": all at once; nothing is changed")
                                     : absl::StrCat(environment, ": ", changing.size(),
                                                    changing.size() == 1 ? " host in " : " hosts in ", count,
                                                    count == 1 ? " wave" : " waves", " (",
                                                    has_canary ? "canary " + TextOf(*service.canary) + ", " : "",
                                                    "size ", TextOf(service.wave), ", max_unavailable ",
                                                    TextOf(service.max_unavailable), ")"));
      }
      plan_.wave_count += waves.empty() ? 0 : waves.back();
    }
  }

  static std::string TextOf(const WaveSize& size) {
    return size.count != 0 ? absl::StrCat(size.count) : absl::StrCat(size.percent, "%");
  }

  void NeedApproval(const std::string& environment, uint32_t wave) {
    if (!ChangesHosts(spec().kind) || plan_.approval_before_wave != 0) return;
    for (const Environment& one : fleet_.environments) {
      if (one.name != environment || !one.gate_approval) continue;
      if (IsOverridden(kGateApproval, absl::StrCat("nobody approves the change of ", environment))) return;
      plan_.approval_before_wave = wave;
      plan_.notes.push_back(
          absl::StrCat("before the first host of ", environment, " is changed, another operator has to approve"));
      Explain(Rule::kGate, absl::StrCat("gate approval: ", plan_.notes.back()));
    }
  }

  void FillIn(const FleetService& service) {
    for (HostPlan& host : plan_.hosts) {
      const bool healthy = InspectionOf(host.host).verdict == Verdict::kHealthy;
      host.already_there = host.already_there && healthy && !spec().even_if_already_there;
    }
    const bool some_change =
        std::any_of(plan_.hosts.begin(), plan_.hosts.end(), [](const HostPlan& host) { return !host.already_there; });
    for (HostPlan& host : plan_.hosts) {
      if (host.method == Method::kRedeploy && some_change) host.already_there = false;
    }
    AssignAllWaves(service);
    for (const HostPlan& host : plan_.hosts) {
      plan_.target = std::max(plan_.target, host.method == Method::kGit        ? service.target_git
                                            : host.method == Method::kRedeploy ? service.target_redeploy
                                                                               : service.target_backup);
    }
    plan_.verify_soak = spec().emergency || !IsNewCode() ? absl::ZeroDuration() : service.verify_soak;
    if (spec().kind == OperationKind::kVerification) {
      plan_.verify_soak = service.verify_watch >= absl::ZeroDuration()
                              ? service.verify_watch
                              : std::max(service.verify_soak, kSoakOfAVerification);
    }
    ExplainVerification();
    if (spec().emergency) {
      plan_.notes.emplace_back(
          "emergency: gates, the soak and the probes that need time are skipped; a verification follows");
    }
    for (const HostPlan& host : plan_.hosts) {
      if (!host.already_there) continue;
      plan_.notes.push_back(absl::StrCat(host.host, ": already there and healthy; not touched"));
      Explain(Rule::kNotTouched, "already there and healthy", host.host);
    }
    LeaveDetailsOut();
  }

  // What was good before needs neither soak nor canary: they are for new code.
  bool IsNewCode() const { return spec().kind == OperationKind::kDeploy || !was_good_; }

  void ExplainVerification() {
    const std::string watched = spec().kind == OperationKind::kVerification
                                    ? absl::StrCat("through ", FormatSeconds(plan_.verify_soak))
                                : spec().emergency ? std::string("without a soak: an emergency")
                                : !IsNewCode()     ? std::string("without a soak: the target was good before")
                                : plan_.verify_soak == absl::ZeroDuration()
                                    ? std::string("without a soak: the fleet file names none")
                                    : absl::StrCat("new code: a soak of ", FormatSeconds(plan_.verify_soak));
    if (spec().kind == OperationKind::kBackup || spec().kind == OperationKind::kPrune) return;
    Explain(Rule::kVerification, absl::StrCat("probes within ", FormatSeconds(plan_.verify_deadline), ", ", watched));
    if (!ChangesHosts(spec().kind)) return;
    Explain(Rule::kVerification, spec().hold_on_failure                 ? "on failure: left as it is (--no-revert)"
                                 : plan_.on_failure == OnFailure::kHold ? "on failure: left as it is (the fleet file)"
                                 : plan_.on_failure == OnFailure::kRevertWave
                                     ? "on failure: the wave is taken back (the fleet file)"
                                     : "on failure: every changed host is taken back");
  }

  // A plan travels, and is kept with the operation.
  void LeaveDetailsOut() {
    if (plan_.hosts.size() <= kMostDetailedHosts) return;
    const auto strip = [](DeltaSummary* delta) {
      delta->sample_paths.clear();
      delta->config_diff.clear();
      delta->not_captured.clear();
      delta->table_rows.clear();
    };
    for (size_t i = kMostDetailedHosts; i < plan_.hosts.size(); ++i) {
      strip(&plan_.hosts[i].delta);
      for (Candidate& fallback : plan_.hosts[i].fallbacks) strip(&fallback.delta);
    }
    plan_.notes.push_back(absl::StrCat("paths and diffs are shown for the first ", kMostDetailedHosts,
                                       " hosts; for another one: --host NAME"));
  }

  // What was measured for the method in the host's environment; where nothing was, in any other.
  const std::vector<TimeSample>* SamplesFor(const HostPlan& host, std::string* where) const {
    const auto own = history_.times.find({host.environment, host.method});
    if (own != history_.times.end() && !own->second.empty()) {
      *where = host.environment;
      return &own->second;
    }
    for (const auto& [key, samples] : history_.times) {
      if (key.second != host.method || samples.empty()) continue;
      *where = key.first;
      return &samples;
    }
    return nullptr;
  }

  void Predict() {
    if (!ChangesHosts(spec().kind)) return;
    std::map<const std::vector<TimeSample>*, PredictedGroup> groups;
    std::map<const std::vector<TimeSample>*, Prediction> of_host;
    std::set<std::string> bases;
    for (HostPlan& host : plan_.hosts) {
      if (host.already_there) continue;
      std::string where;
      const std::vector<TimeSample>* samples = SamplesFor(host, &where);
      PredictedGroup& group = groups[samples];
      group.samples = samples;
      if (group.hosts_in_wave.size() < host.wave) group.hosts_in_wave.resize(host.wave);
      ++group.hosts_in_wave[host.wave - 1];
      if (samples == nullptr) continue;
      auto [found, is_new] = of_host.try_emplace(samples);
      if (is_new) {
        found->second = PredictHost(*samples);
        found->second.basis = absl::StrCat(NameOf(host.method), " in ", where);
        bases.insert(found->second.basis);
      }
      host.prediction = found->second;
    }
    std::vector<PredictedGroup> list;
    for (auto& [samples, group] : groups) list.push_back(std::move(group));
    plan_.prediction = list.empty() ? Prediction() : PredictOperation(list, plan_.verify_soak);
    if (plan_.prediction.samples > 0) plan_.prediction.basis = absl::StrJoin(bases, ", ");
  }

  const Scope& scope_;
  const Fleet& fleet_;
  const std::map<std::string, Inspection>& inspections_;
  const PlanningHistory& history_;
  std::map<std::string, std::vector<std::string>> identities_;
  bool was_good_ = true;
  // Method B: what every host can be brought to, or why it is not offered.
  std::optional<Candidate> through_ci_;
  std::string no_ci_because_;
  Plan plan_;
};

}  // namespace

Plan MakePlan(const Scope& scope, const Fleet& fleet, const std::map<std::string, Inspection>& inspections,
              const PlanningHistory& history) {
  return Planner(scope, fleet, inspections, history).Make();
}

}  // namespace rb::controller
