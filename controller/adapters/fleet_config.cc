#include "controller/adapters/fleet_config.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "common/durable_file.h"
#include "common/edit_distance.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/text.h"
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
    RefuseWhatNothingCarriesOut();
    if (config_.environments().empty()) Complain("", "there are no environments");
    if (config_.services().empty()) Complain("", "there are no services");
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
  // The contract is ahead of the program here. A key that is read and does nothing would be a promise that is not kept.
  void RefuseWhatNothingCarriesOut() {
    const auto refuse = [this](bool is_there, const std::string& path) {
      if (is_there) Complain(path, "this version does not carry it out; take it out");
    };
    refuse(!config_.schedules().empty(), "schedules");
    refuse(config_.has_notifications(), "notifications");
    refuse(config_.has_metrics(), "metrics");
    for (const auto& [name, environment] : config_.environments()) {
      refuse(environment.allow_drills(), absl::StrCat("environments.", name, ".allow_drills"));
      refuse(environment.has_drills(), absl::StrCat("environments.", name, ".drills"));
    }
    for (const auto& [name, service] : config_.services()) {
      refuse(service.has_ci(), absl::StrCat("services.", name, ".ci"));
    }
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
      fleet_->environments.push_back(std::move(environment));
    }
    std::sort(fleet_->environments.begin(), fleet_->environments.end(),
              [](const Environment& a, const Environment& b) { return a.order < b.order; });
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
    if (service.verify_deadline < absl::Seconds(1)) Complain(path + ".verify.deadline", "is at least 1s");
    fleet_->services.emplace(name, std::move(service));
  }

  const v1::FleetConfig& config_;
  const YamlLines& lines_;
  Fleet* const fleet_;
  std::vector<YamlProblem> problems_;
};

}  // namespace

std::vector<YamlProblem> ParseFleet(absl::string_view yaml, Fleet* fleet) {
  *fleet = Fleet();
  v1::FleetConfig config;
  YamlLines lines;
  std::vector<YamlProblem> problems = ReadYamlMessage(yaml, &config, &lines);
  if (!problems.empty()) return problems;
  return Reader(config, lines, fleet).Read();
}

absl::StatusOr<Fleet> LoadFleet(const std::string& path) {
  RB_ASSIGN_OR_RETURN(const std::string yaml, ReadFile(path, kLargestYamlBytes));
  Fleet fleet;
  const std::vector<YamlProblem> problems = ParseFleet(yaml, &fleet);
  if (!problems.empty()) return absl::InvalidArgumentError(FormatProblems(path, problems));
  return fleet;
}

}  // namespace rb::controller
