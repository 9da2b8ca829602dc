#include "controller/adapters/fleet_config.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/adapters/proto_time.h"
#include "common/durable_file.h"
#include "common/edit_distance.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/text.h"
#include "controller/adapters/ci/check_ci.h"
#include "controller/adapters/notify/sender.h"
#include "controller/core/cron.h"
#include "controller/core/drill.h"
#include "controller/core/plan.h"
#include "rb/v1/fleet_config.pb.h"

namespace rb::controller {
namespace {

class Reader {
 public:
  Reader(const v1::FleetConfig& config, const YamlLines& lines, Fleet* fleet)
      : config_(config), lines_(lines), fleet_(fleet) {}

  std::vector<YamlProblem> Read() {
    Environments();
    for (const auto& [name, service] : config_.services()) Service(name, service);
    for (const auto& [name, schedule] : config_.schedules()) Schedule(name, schedule);
    std::sort(fleet_->schedules.begin(), fleet_->schedules.end(),
              [](const ScheduleEntry& a, const ScheduleEntry& b) { return a.name < b.name; });
    Metrics();
    if (config_.environments().empty()) Complain("", "there are no environments");
    if (config_.services().empty()) Complain("", "there are no services");
    std::vector<std::string> names;
    for (const Environment& one : fleet_->environments) names.push_back(one.name);
    for (const auto& [key, text] : CheckNotifications(config_.notifications(), names)) {
      Complain(absl::StrCat("notifications", key), text);
    }
    const std::vector<NotificationRule> rules = RulesOf(config_.notifications());
    for (const std::string& name : names) {
      if (TellsAnnouncements(rules, {name})) fleet_->announces_in.push_back(name);
    }
    std::sort(problems_.begin(), problems_.end(), [](const YamlProblem& a, const YamlProblem& b) {
      return std::tie(a.line, a.path, a.text) < std::tie(b.line, b.path, b.text);
    });
    return std::move(problems_);
  }

 private:
  void Complain(const std::string& path, const std::string& text) {
    YamlProblem problem;
    // Names that people chose are part of both; lines are known by what can be printed.
    problem.path = Printable(path);
    problem.line = LineOf(lines_, problem.path);
    problem.text = Printable(text);
    problems_.push_back(std::move(problem));
  }
  void CheckName(const std::string& path, const std::string& name) {
    if (!IsValidName(name)) {
      Complain(path, absl::StrCat("'", name, "' is not a name: 1 to 63 of a-z, 0-9, '-', '_' and '.'"));
    }
  }

  void Environments() {
    std::map<uint32_t, std::string> orders;
    std::vector<std::string> names;
    for (const auto& [name, environment] : config_.environments()) names.push_back(name);
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      const v1::EnvironmentConfig& config = config_.environments().at(name);
      const std::string path = absl::StrCat("environments.", name);
      CheckName(path, name);
      if (config.order() == 0) {
        Complain(path, "`order` is missing: 1 for the first environment");
      } else if (const auto [other, is_new] = orders.emplace(config.order(), name); !is_new) {
        Complain(path + ".order", absl::StrCat("has the same order as ", other->second));
      }
      Environment environment;
      environment.name = name;
      environment.order = config.order();
      environment.gate_passed_in = config.gate().passed_in();
      const std::string& gate = environment.gate_passed_in;
      if (!gate.empty()) {
        const auto before = config_.environments().find(gate);
        if (before == config_.environments().end()) {
          const std::string nearest = NearestSpelling(gate, names);
          Complain(path + ".gate.passed_in", absl::StrCat("there is no environment '", gate, "'",
                                                          nearest.empty() ? "" : "; did you mean " + nearest + "?"));
        } else if (before->second.order() >= config.order()) {
          Complain(path + ".gate.passed_in", absl::StrCat(gate, " does not come before ", name));
        }
      }
      if (config.gate().has_passed_within()) {
        environment.gate_passed_within = FromProto(config.gate().passed_within());
        if (gate.empty())
          Complain(path + ".gate.passed_within", "says how long ago at most, but `passed_in` is missing");
        if (environment.gate_passed_within <= absl::ZeroDuration()) {
          Complain(path + ".gate.passed_within", "is more than 0s");
        }
      }
      environment.gate_approval = config.gate().approval();
      for (const std::string& text : config.gate().windows()) {
        Window window;
        if (!ParseWindow(text, &window)) {
          Complain(path + ".gate.windows",
                   absl::StrCat("'", text,
                                "' is not a window; write \"Mon-Fri 09:00-17:00\", \"Sat,Sun 10:00-12:00\" or "
                                "\"22:00-02:00\" (UTC)"));
        }
        environment.gate_windows.push_back(std::move(window));
      }
      Drills(path, config, &environment);
      fleet_->environments.push_back(std::move(environment));
    }
    std::sort(fleet_->environments.begin(), fleet_->environments.end(),
              [](const Environment& a, const Environment& b) { return a.order < b.order; });
  }

  void Windows(const std::string& path, const google::protobuf::RepeatedPtrField<std::string>& texts,
               std::vector<Window>* windows) {
    for (const std::string& text : texts) {
      Window window;
      if (!ParseWindow(text, &window)) {
        Complain(path, absl::StrCat("'", text, "' is not a window; write \"Sun 03:00-05:00\" (UTC)"));
      }
      windows->push_back(std::move(window));
    }
  }

  void CheckFault(const std::string& path, const std::string& fault) {
    FaultKind kind = FaultKind::kBadCode;
    if (ParseFaultKind(fault, &kind)) return;
    std::vector<std::string> known;
    for (const FaultKind one : kAllFaultKinds) known.emplace_back(NameOf(one));
    const std::string nearest = NearestSpelling(fault, known);
    Complain(path, absl::StrCat("'", fault, "' is no fault",
                                nearest.empty() ? absl::StrCat(": ", absl::StrJoin(known, ", "))
                                                : absl::StrCat("; did you mean ", nearest, "?")));
  }

  void Drills(const std::string& environment_path, const v1::EnvironmentConfig& config, Environment* environment) {
    const std::string path = environment_path + ".drills";
    const v1::EnvironmentDrillsConfig& drills = config.drills();
    environment->allow_drills = config.allow_drills();
    for (const std::string& fault : drills.allow()) {
      CheckFault(path + ".allow", fault);
      environment->drill_faults.push_back(fault);
    }
    Windows(path + ".windows", drills.windows(), &environment->drill_windows);
    if (drills.has_longest()) environment->drill_longest = FromProto(drills.longest());
    if (environment->drill_longest < absl::Seconds(10) || environment->drill_longest > absl::Hours(4)) {
      Complain(path + ".longest", "is 10s to 4h");
    }
    const v1::DrillTargetsConfig& targets = drills.targets();
    if (targets.has_detect()) environment->drill_detect = FromProto(targets.detect());
    if (targets.has_decide()) environment->drill_decide = FromProto(targets.decide());
    if (targets.has_verify()) environment->drill_verify = FromProto(targets.verify());
    if (environment->drill_detect <= absl::ZeroDuration()) Complain(path + ".targets.detect", "is more than 0s");
    if (environment->drill_verify <= absl::ZeroDuration()) Complain(path + ".targets.verify", "is more than 0s");
  }

  void Schedule(const std::string& name, const v1::ScheduleConfig& config) {
    const std::string path = absl::StrCat("schedules.", name);
    CheckName(path, name);
    ScheduleEntry entry;
    entry.name = name;
    entry.kind = config.kind();
    constexpr absl::string_view kKinds[] = {"backup", "proof", "drill", "prune"};
    if (std::find(std::begin(kKinds), std::end(kKinds), entry.kind) == std::end(kKinds)) {
      Complain(path + ".kind", absl::StrCat("'", entry.kind, "' is not one of: ", absl::StrJoin(kKinds, ", ")));
    }
    entry.cron = config.cron();
    Cron cron;
    std::string problem;
    if (!ParseCron(entry.cron, &cron, &problem)) {
      Complain(path + ".cron", problem);
    } else if (NextAfter(cron, absl::FromUnixSeconds(0)) == absl::InfiniteFuture()) {
      Complain(path + ".cron", "never comes");
    }
    entry.environments.assign(config.environments().begin(), config.environments().end());
    if (entry.environments.empty()) Complain(path, "`environments` is missing: a list");
    for (const std::string& environment : entry.environments) {
      if (config_.environments().count(environment) == 0) {
        Complain(path + ".environments", absl::StrCat("there is no environment '", environment, "'"));
      }
    }
    entry.service = config.service();
    if (!entry.service.empty() && config_.services().count(entry.service) == 0) {
      Complain(path + ".service", absl::StrCat("there is no service '", entry.service, "'"));
    }
    if (entry.service.empty() && config_.services_size() > 1) Complain(path, "`service` is missing: there are several");
    entry.jitter = FromProto(config.jitter());
    if (entry.jitter > absl::Hours(24)) Complain(path + ".jitter", "is at most 24h");
    Windows(path + ".windows", config.windows(), &entry.windows);
    entry.fault = config.fault();
    if (entry.kind == "drill") {
      CheckFault(path + ".fault", entry.fault);
    } else if (!entry.fault.empty()) {
      Complain(path + ".fault", "is for drills");
    }
    entry.method = config.method();
    if (!entry.method.empty() && entry.method != "auto" && entry.method != "backup" && entry.method != "git") {
      Complain(path + ".method", absl::StrCat("'", entry.method, "' is not one of: auto, backup, git"));
    }
    if (!config.missed().empty() && config.missed() != "make-up" && config.missed() != "report") {
      Complain(path + ".missed", absl::StrCat("'", config.missed(), "' is not one of: make-up, report"));
    }
    entry.only_report_missed = config.missed() == "report";
    fleet_->schedules.push_back(std::move(entry));
  }

  void Metrics() {
    const v1::FleetMetricsConfig& config = config_.metrics();
    fleet_->metrics = {config.certificate(), config.key(), config.password_file(), config.targets_file()};
    if (config.certificate().empty() != config.key().empty())
      Complain("metrics", "`certificate` and `key` come together");
    const std::pair<const char*, const std::string&> files[] = {{"certificate", config.certificate()},
                                                                {"key", config.key()},
                                                                {"password_file", config.password_file()},
                                                                {"targets_file", config.targets_file()}};
    for (const auto& [key, path] : files) {
      if (!path.empty() && path[0] != '/') Complain(absl::StrCat("metrics.", key), "wants an absolute path");
    }
  }

  void Service(const std::string& name, const v1::FleetServiceConfig& config) {
    const std::string path = absl::StrCat("services.", name);
    CheckName(path, name);
    FleetService service;
    service.name = name;
    if (config.hosts().empty()) Complain(path, "`hosts` is missing: environment → list of agents");
    std::set<std::string> everywhere;
    for (const auto& [environment, hosts] : config.hosts()) {
      const std::string hosts_path = absl::StrCat(path, ".hosts.", environment);
      if (config_.environments().count(environment) == 0) {
        std::vector<std::string> known;
        for (const Environment& one : fleet_->environments) known.push_back(one.name);
        const std::string nearest = NearestSpelling(environment, known);
        Complain(hosts_path, absl::StrCat("there is no environment '", environment, "'",
                                          nearest.empty() ? "" : "; did you mean " + nearest + "?"));
      }
      if (hosts.values().empty()) Complain(hosts_path, "has no hosts");
      for (const std::string& host : hosts.values()) {
        CheckName(hosts_path, host);
        if (!everywhere.insert(host).second) Complain(hosts_path, absl::StrCat(host, " is named twice"));
        service.hosts[environment].push_back(host);
      }
    }
    if (config.targets().has_backup()) service.target_backup = FromProto(config.targets().backup());
    if (config.targets().has_redeploy()) service.target_redeploy = FromProto(config.targets().redeploy());
    if (config.targets().has_git()) service.target_git = FromProto(config.targets().git());
    if (!config.wave().size().empty() && !ParseWaveSize(config.wave().size(), &service.wave)) {
      Complain(path + ".wave.size", absl::StrCat("'", config.wave().size(),
                                                 "' is neither a number of hosts from 1 nor "
                                                 "a percentage from 1% to 100%"));
    }
    const std::string& most = config.wave().max_unavailable();
    if (!most.empty() && !ParseWaveSize(most, &service.max_unavailable)) {
      Complain(path + ".wave.max_unavailable",
               absl::StrCat("'", most, "' is neither a number of hosts from 1 nor a percentage from 1% to 100%"));
    }
    if (!config.wave().canary().empty() && !ParseWaveSize(config.wave().canary(), &service.canary.emplace())) {
      Complain(path + ".wave.canary", absl::StrCat("'", config.wave().canary(),
                                                   "' is neither a number of hosts from 1 nor "
                                                   "a percentage from 1% to 100%"));
    }
    const std::string& on_failure = config.wave().on_failure();
    if (on_failure == "revert") {
      service.on_failure = OnFailure::kRevertWave;
    } else if (on_failure == "hold") {
      service.on_failure = OnFailure::kHold;
    } else if (!on_failure.empty() && on_failure != "revert-all") {
      Complain(path + ".wave.on_failure", absl::StrCat("'", on_failure, "' is not one of: revert, revert-all, hold"));
    }
    if (config.has_retain()) {
      if (config.retain().releases() == 0) Complain(path + ".retain.releases", "is at least 1");
      service.retain_releases = config.retain().releases();
    }
    if (config.verify().has_deadline()) service.verify_deadline = FromProto(config.verify().deadline());
    if (config.verify().has_soak()) service.verify_soak = FromProto(config.verify().soak());
    if (config.verify().has_watch()) service.verify_watch = FromProto(config.verify().watch());
    if (service.verify_deadline < absl::Seconds(1)) Complain(path + ".verify.deadline", "is at least 1s");
    service.ci_deadline = 2 * service.target_redeploy;
    if (config.has_ci()) {
      service.has_ci = true;
      service.ci_off_because = config.ci().off_because();
      if (config.ci().has_deadline()) service.ci_deadline = FromProto(config.ci().deadline());
      for (const auto& [key, text] : CheckCi(config.ci())) Complain(absl::StrCat(path, ".ci", key), text);
    }
    fleet_->services.emplace(name, std::move(service));
  }

  const v1::FleetConfig& config_;
  const YamlLines& lines_;
  Fleet* const fleet_;
  std::vector<YamlProblem> problems_;
};

}  // namespace

std::vector<YamlProblem> ParseFleet(absl::string_view yaml, Fleet* fleet, v1::FleetConfig* file) {
  *fleet = Fleet();
  v1::FleetConfig config;
  YamlLines lines;
  std::vector<YamlProblem> problems = ReadYamlMessage(yaml, &config, &lines);
  if (!problems.empty()) return problems;
  problems = Reader(config, lines, fleet).Read();
  if (file != nullptr) *file = std::move(config);
  return problems;
}

absl::StatusOr<Fleet> LoadFleet(const std::string& path, v1::FleetConfig* file) {
  RB_ASSIGN_OR_RETURN(const std::string yaml, ReadFile(path, kLargestYamlBytes));
  Fleet fleet;
  const std::vector<YamlProblem> problems = ParseFleet(yaml, &fleet, file);
  if (!problems.empty()) return absl::InvalidArgumentError(FormatProblems(path, problems));
  return fleet;
}

}  // namespace rb::controller
