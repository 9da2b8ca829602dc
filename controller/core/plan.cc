#include "controller/core/plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/text.h"

namespace rb::controller {
namespace {

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
    CheckLock();
    if (!refused()) CheckHosts();
    if (!refused() && spec().kind == OperationKind::kUndo && !history_.undo_releases.has_value()) {
      Refuse(Refusal::Code::kUnknownOperation,
             absl::StrCat("there is no operation ", Printable(spec().undo_operation_id), " to undo here"),
             "rbctl history");
    }
    if (!refused()) ChooseSources();
    if (!refused()) CheckProblems();
    if (!refused()) CheckGate();
    if (!refused()) FillIn(service);
    return std::move(plan_);
  }

 private:
  const OperationSpec& spec() const { return scope_.spec; }
  bool refused() const { return plan_.refusal.refused(); }
  void Refuse(Refusal::Code code, const std::string& message, const std::string& next = "") {
    plan_.refusal.code = code;
    plan_.refusal.message = absl::StrCat(message, ". Nothing was changed");
    plan_.refusal.next_command = next;
  }

  void CheckLock() {
    if (history_.lock_holder.empty()) return;
    Refuse(
        Refusal::Code::kLocked,
        absl::StrCat("operation ", history_.lock_holder, " is at work on ", spec().service, " in ", spec().environment),
        absl::StrCat("rbctl watch ", history_.lock_holder));
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
    if (!offline.empty()) {
      Refuse(Refusal::Code::kHostOffline,
             absl::StrCat(absl::StrJoin(offline, ", "), offline.size() == 1 ? " is offline" : " are offline",
                          "; an operation moves all of its hosts or none"),
             offline.size() < scope_.hosts.size()
                 ? absl::StrCat("bring the agent back, or name the others with --host; on the host: systemctl status "
                                "rb-agent")
                 : "rbctl agents");
      plan_.refusal.hosts = offline;
    } else if (!failing.empty()) {
      Refuse(Refusal::Code::kHostProblem, absl::StrJoin(failing, "; "), "rbctl status " + spec().environment);
    }
  }

  void ChooseSources() {
    for (const std::string& host : scope_.hosts) {
      const Inspection& inspection = InspectionOf(host);
      HostPlan plan;
      plan.host = host;
      plan.from_release = inspection.current_release;
      plan.from_commit = inspection.current_commit;
      plan.from_version = inspection.current_version;
      if (spec().kind == OperationKind::kBackup) {
        plan.method_because = "a backup changes nothing";
        plan_.hosts.push_back(std::move(plan));
        continue;
      }
      std::vector<Candidate> usable;
      for (const Candidate& candidate : inspection.candidates) {
        if (Fits(host, candidate)) usable.push_back(candidate);
      }
      if (usable.empty()) {
        NoCandidate(host);
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
        parts.push_back(absl::StrCat(Short(identity), " on ", absl::StrJoin(hosts, ", ")));
      }
      Ambiguous(
          absl::StrCat("'", NameOfTarget(spec()), "' is not the same on all hosts: ", absl::StrJoin(parts, "; ")));
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
    if (candidate.method == Method::kGit) return 2;
    const bool proved = candidate.release.has_value() && candidate.release->durability == Durability::kProved;
    const bool good = candidate.release.has_value() && candidate.release->standing == Standing::kGood;
    return (proved ? 0 : 3) + (good ? 0 : 1);
  }
  static void Rank(std::vector<Candidate>* candidates) {
    std::stable_sort(candidates->begin(), candidates->end(),
                     [](const Candidate& a, const Candidate& b) { return RankOf(a) < RankOf(b); });
  }

  std::string Because(const Candidate& best) const {
    if (spec().kind == OperationKind::kDeploy) return "a deploy comes from git";
    if (spec().kind == OperationKind::kUndo) return "it is what the operation replaced";
    if (spec().method != Method::kAuto) return "it was asked for";
    if (best.method == Method::kGit) return "no proved backup of it is on the host, and the git mirror has it";
    if (best.release.has_value() && best.release->durability == Durability::kProved) {
      return absl::StrCat("a proved backup is the fastest; proved ", FormatUtc(best.release->last_proved_at));
    }
    return "a backup is there, though not proved, and the git mirror does not have it";
  }

  void GiveCandidates() {
    for (const std::string& host : scope_.hosts) plan_.refusal.candidates[host] = InspectionOf(host).candidates;
  }

  void NoCandidate(const std::string& host) {
    const Inspection& inspection = InspectionOf(host);
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
             absl::StrCat(host, " has nothing to go to for '", NameOfTarget(spec()), "'", why, problems),
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
    for (const std::string& host : scope_.hosts) {
      for (const std::string& problem : InspectionOf(host).problems) {
        problems.push_back(absl::StrCat(host, ": ", problem));
        plan_.refusal.hosts.push_back(host);
      }
    }
    if (problems.empty()) return;
    Refuse(Refusal::Code::kHostProblem, absl::StrJoin(problems, "; "));
  }

  void CheckGate() {
    if (spec().kind != OperationKind::kRollback && spec().kind != OperationKind::kDeploy) return;
    for (const Environment& environment : fleet_.environments) {
      if (environment.name != spec().environment || environment.gate_passed_in.empty()) continue;
      const std::string& before = environment.gate_passed_in;
      const std::string& commit = plan_.hosts.front().commit;
      const auto passed = history_.succeeded_commits.find(before);
      const bool has_passed = passed != history_.succeeded_commits.end() &&
                              std::find(passed->second.begin(), passed->second.end(), commit) != passed->second.end();
      if (has_passed) continue;
      if (spec().emergency) {
        plan_.notes.push_back(
            absl::StrCat("gate skipped (--emergency): ", Short(commit), " has not passed in ", before));
        continue;
      }
      Refuse(Refusal::Code::kGate,
             absl::StrCat(spec().environment, " wants ", commit.empty() ? "the target" : Short(commit),
                          " to have succeeded in ", before, " first, and it has not"),
             absl::StrCat("rbctl ", spec().kind == OperationKind::kDeploy ? "deploy " : "rollback ", before, " --to ",
                          Short(commit)));
    }
  }

  void FillIn(const FleetService& service) {
    // Hosts that stay as they are take no place in a wave.
    std::vector<HostPlan*> changing;
    for (HostPlan& host : plan_.hosts) {
      const bool healthy = InspectionOf(host.host).verdict == Verdict::kHealthy;
      host.already_there = host.already_there && healthy && !spec().even_if_already_there;
      if (!host.already_there) changing.push_back(&host);
    }
    const bool is_backup = spec().kind == OperationKind::kBackup;
    const WaveSize everything;
    const std::vector<uint32_t> waves = AssignWaves(changing.size(), is_backup ? everything : service.wave);
    for (size_t i = 0; i < changing.size(); ++i) changing[i]->wave = waves[i];
    plan_.wave_count = waves.empty() ? 0 : waves.back();
    for (const HostPlan& host : plan_.hosts) {
      plan_.target = std::max(plan_.target, host.method == Method::kGit ? service.target_git : service.target_backup);
    }
    // What was good before needs no soak: the soak is for new code.
    const bool new_code = spec().kind == OperationKind::kDeploy || !was_good_;
    plan_.verify_soak = spec().emergency || !new_code ? absl::ZeroDuration() : service.verify_soak;
    if (spec().emergency) plan_.notes.emplace_back("emergency: gates and soak are skipped");
    for (const HostPlan& host : plan_.hosts) {
      if (host.already_there)
        plan_.notes.push_back(absl::StrCat(host.host, ": already there and healthy; not touched"));
    }
  }

  const Scope& scope_;
  const Fleet& fleet_;
  const std::map<std::string, Inspection>& inspections_;
  const PlanningHistory& history_;
  std::map<std::string, std::vector<std::string>> identities_;
  bool was_good_ = true;
  Plan plan_;
};

}  // namespace

Plan MakePlan(const Scope& scope, const Fleet& fleet, const std::map<std::string, Inspection>& inspections,
              const PlanningHistory& history) {
  return Planner(scope, fleet, inspections, history).Make();
}

}  // namespace rb::controller
