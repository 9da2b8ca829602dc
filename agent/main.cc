// rb-agent: one on every server. Knows how services here are stopped, started, checked and brought back.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>

#include "agent/adapters/config/agent_config.h"
#include "agent/adapters/link/daemon.h"
#include "agent/adapters/link/join.h"
#include "agent/adapters/local/guard.h"
#include "agent/adapters/local/local_commands.h"
#include "agent/adapters/local/recover.h"
#include "agent/adapters/supervisor/unit_drop_ins.h"
#include "agent/core/engine/engine.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/text.h"
#include "rb/v1/agent_config.pb.h"

namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "rb-agent: %s\n", std::string(status.message()).c_str());
  return 1;
}

int Check(const std::string& config_path) {
  const std::vector<rb::YamlProblem> problems = rb::agent::CheckAgentConfig(config_path);
  if (problems.empty()) {
    std::printf("%s is fine\n", config_path.c_str());
    return 0;
  }
  std::fprintf(stderr, "%s", rb::FormatProblems(config_path, problems).c_str());
  return 2;
}

// Units that are left as they are when this fails: rolling back goes on without.
void SetUnitDropIns(const rb::v1::AgentConfig& config, const std::string& config_path,
                    const std::string& state_folder) {
  std::map<std::string, std::string> units;
  for (const auto& [name, service] : config.services()) {
    if (!service.unit().empty()) units.emplace(service.unit(), name);
  }
  rb::agent::UnitDropIns drop_ins(rb::agent::SystemdDropIns(state_folder, config_path));
  if (units.empty()) {
    const auto listed = drop_ins.List();
    if (listed.ok() && listed->empty()) return;
  }
  if (const absl::Status set = drop_ins.Set(units); !set.ok()) {
    rb::LogError("agent", "units do not wait for recovery before they start: ", set.message());
  }
}

int Serve(const std::string& config_path, const std::string& state_folder, const std::string& settle) {
  const auto config = rb::agent::LoadAgentConfig(config_path);
  if (!config.ok()) return Fail(config.status());
  if (const absl::Status made = rb::MakeFolders(state_folder); !made.ok()) return Fail(made);
  const auto lock = rb::FileLock::TryAcquire(state_folder + "/agent.lock");
  if (!lock.ok()) return Fail(absl::UnavailableError("another rb-agent runs on " + state_folder));
  rb::agent::DaemonOptions options;
  if (!absl::ParseDuration(settle, &options.external_settle) || options.external_settle < absl::ZeroDuration()) {
    return Fail(absl::InvalidArgumentError("--external-settle wants a time such as 20s, not " + settle));
  }
  options.state_folder = state_folder;
  SetUnitDropIns(**config, std::filesystem::absolute(config_path), std::filesystem::absolute(state_folder));
  options.config_path = config_path;
  options.metrics = rb::agent::MetricsOptionsOf(**config);
  const absl::Status ran = rb::agent::RunDaemon(**config, options, rb::SystemClock());
  return ran.ok() ? 0 : Fail(ran);
}

int Units(const std::string& state_folder, bool remove) {
  rb::agent::UnitDropIns drop_ins(rb::agent::SystemdDropIns(state_folder, ""));
  const auto listed = drop_ins.List();
  if (!listed.ok()) return Fail(listed.status());
  if (remove && !listed->empty()) {
    if (const absl::Status set = drop_ins.Set({}); !set.ok()) return Fail(set);
  }
  for (const std::string& unit : *listed)
    std::printf("%s%s\n", remove ? "removed " : "", drop_ins.PathOf(unit).c_str());
  return 0;
}

int Join(const std::string& token_file, const std::string& state_folder) {
  std::string token;
  if (token_file == "-") {
    token.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else {
    const auto content = rb::ReadFile(token_file, 1 << 20);
    if (!content.ok()) return Fail(content.status());
    token = *content;
  }
  const auto joined = rb::agent::JoinController(token, state_folder);
  if (!joined.ok()) return Fail(joined.status());
  std::printf("joined as %s\n", joined->c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Rolls the services of this server back. Usually run by systemd and asked by rb-controller.");
  app.require_subcommand(1);
  app.set_version_flag("--version", RB_VERSION);
  std::string config_path = "/etc/rb/agent.yaml";
  std::string state_folder = "/var/lib/rb-agent";
  std::string token_file;
  bool remove_units = false;
  rb::agent::RecoverRequest recovery;
  rb::agent::LocalRequest local;
  const auto with_files = [&](CLI::App* command) {
    command->add_option("--config", config_path, "What runs here, and how")->capture_default_str();
    command->add_option("--state", state_folder, "Releases, journals and identity")->capture_default_str();
    return command;
  };
  CLI::App* serve = with_files(app.add_subcommand("serve", "Serve the controller until stopped"));
  // For tests, hence not in the help: how long what other means change has to stay as it is.
  std::string external_settle = "20s";
  serve->add_option("--external-settle", external_settle)->group("");
  CLI::App* check =
      with_files(app.add_subcommand("check", "Say everything that is wrong with the file; change nothing"));
  CLI::App* recover = with_files(app.add_subcommand("recover", "Make half-done swaps whole (before a service starts)"));
  recover->add_option("service", recovery.service, "Only this service");
  recover->add_flag("--before-start", recovery.before_start,
                    "As asked by its unit: wait, and be quiet when all is well");
  CLI::App* units = app.add_subcommand("units", "List the units that wait for recover before they start");
  units->add_option("--state", state_folder, "Releases, journals and identity")->capture_default_str();
  units->add_flag("--remove", remove_units, "Take what was added to them away (before rb-agent is removed)");
  CLI::App* join = app.add_subcommand("join", "Become a known host of a controller");
  join->add_option("--state", state_folder, "Releases, journals and identity")->capture_default_str();
  join->add_option("--token-file", token_file, "One line from `rb-controller token`; - for standard input")->required();
  CLI::App* by_hand = app.add_subcommand("local", "Work on this server alone, without a controller");
  by_hand->require_subcommand(1);
  for (const char* verb : {"backup", "list", "plan", "rollback", "verify", "prune", "recover", "status"}) {
    CLI::App* command = with_files(by_hand->add_subcommand(verb));
    const std::string name = verb;
    command->add_option("service", local.service, "May be left out when there is only one");
    if (name == "plan" || name == "rollback" || name == "verify") {
      command->add_option("--to", local.to, "Commit, tag, release, last-good or previous");
    }
    if (name == "plan" || name == "rollback") {
      command->add_flag("--with-data", local.with_data, "Data goes back too");
      command->add_flag("--force", local.force, "Also to a bad release; needs --reason");
    }
    if (name == "backup" || name == "rollback") command->add_option("--reason", local.reason, "Kept with the release");
    if (name == "prune") command->add_option("--keep", local.keep_good, "Good releases to keep")->capture_default_str();
  }
  CLI::App* guard = app.add_subcommand("guard", "Before and after a deploy by other means (CI): one line each");
  guard->require_subcommand(1);
  rb::agent::GuardRequest guarded;
  std::string guard_output = "text";
  std::string guard_wait = "2m";
  for (const char* verb : {"before", "after"}) {
    const bool is_before = std::string(verb) == "before";
    CLI::App* command = with_files(guard->add_subcommand(
        verb, is_before ? "Refuse a quarantined commit (exit 5), and take a release of what is there"
                        : "Bring back the data and config that the deploy removed, and record what it left"));
    command->add_option("--service", guarded.service, "May be left out when there is only one");
    command->add_option("--commit", guarded.commit, "What is deployed: a commit, or a tag of the mirror");
    command->add_option("--reason", guarded.reason, "Kept with the release and in the history");
    if (is_before) command->add_flag("--force", guarded.force, "Also a quarantined commit; needs --reason");
    command->add_option("--wait", guard_wait, "For whatever is at work here, at most")->capture_default_str();
    command->add_option("-o,--output", guard_output, "text or json")
        ->check(CLI::IsMember({"text", "json"}))
        ->capture_default_str();
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  rb::agent::Engine::PrepareProcess();
  if (check->parsed()) return Check(config_path);
  if (serve->parsed()) return Serve(config_path, state_folder, external_settle);
  if (units->parsed()) return Units(state_folder, remove_units);
  if (recover->parsed()) {
    recovery.config_path = config_path;
    recovery.state_folder = state_folder;
    if (recovery.before_start && recovery.service.empty()) {
      std::fprintf(stderr, "rb-agent: --before-start needs the name of the service. Nothing was changed\n");
      return 2;
    }
    return rb::agent::RunRecover(recovery, rb::SystemClock());
  }
  if (join->parsed()) return Join(token_file, state_folder);
  if (guard->parsed()) {
    // Whoever may run this as root through sudo is not to choose whose commands root runs.
    const CLI::App* verb = guard->get_subcommands().front();
    // NOLINTNEXTLINE(concurrency-mt-unsafe): one thread, so far.
    const char* sudo_uid = std::getenv("SUDO_UID");
    const bool chooses_files = verb->get_option("--config")->count() + verb->get_option("--state")->count() > 0;
    if (sudo_uid != nullptr && std::string(sudo_uid) != "0" && chooses_files) {
      std::fprintf(stderr, "rb-agent: through sudo, guard takes neither --config nor --state. Nothing was changed\n");
      return 2;
    }
    guarded.verb = guard->get_subcommands().front()->get_name();
    guarded.json = guard_output == "json";
    if (guarded.force && guarded.reason.empty()) {
      std::fprintf(stderr, "rb-agent: --force needs --reason. Nothing was changed\n");
      return 2;
    }
    if (!absl::ParseDuration(guard_wait, &guarded.patience) || guarded.patience < absl::ZeroDuration() ||
        guarded.patience > absl::Hours(1)) {
      std::fprintf(stderr, "rb-agent: --wait is a duration of at most 1h, like 2m. Nothing was changed\n");
      return 2;
    }
    const auto config = rb::agent::LoadAgentConfig(config_path);
    if (!config.ok()) return Fail(config.status());
    return rb::agent::RunGuard(**config, state_folder, guarded, rb::SystemClock());
  }
  local.verb = by_hand->get_subcommands().front()->get_name();
  if (local.force && local.reason.empty()) {
    std::fprintf(stderr, "rb-agent: --force needs --reason. Nothing was changed\n");
    return 2;
  }
  const auto config = rb::agent::LoadAgentConfig(config_path);
  if (!config.ok()) return Fail(config.status());
  return rb::agent::RunLocal(**config, state_folder, local, rb::SystemClock());
}
