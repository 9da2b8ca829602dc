#include "agent/adapters/supervisor/make_supervisor.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "agent/adapters/supervisor/process_supervisor.h"
#include "agent/adapters/supervisor/systemd_supervisor.h"
#include "common/status.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {

std::string ProcessLogPath(const std::string& service, const v1::AgentServiceConfig& config,
                           const std::string& state_folder) {
  return config.process().log().empty() ? absl::StrCat(state_folder, "/", service, ".log") : config.process().log();
}

absl::StatusOr<std::unique_ptr<Supervisor>> MakeSupervisor(const std::string& service,
                                                           const v1::AgentServiceConfig& config,
                                                           const std::string& state_folder, Clock& clock) {
  if (!config.unit().empty()) {
    return std::unique_ptr<Supervisor>(new SystemdSupervisor(
        config.unit(), clock, std::vector<std::string>(config.also_restart().begin(), config.also_restart().end())));
  }
  const v1::ProcessConfig& process = config.process();
  ProcessSupervisor::Options options;
  options.service = service;
  options.command.assign(process.command().begin(), process.command().end());
  options.environment.insert(process.environment().begin(), process.environment().end());
  options.folder = config.tree();
  options.log_path = ProcessLogPath(service, config, state_folder);
  options.open_log_as_user = !process.log().empty();
  options.state_folder = absl::StrCat(state_folder, "/supervisor");
  if (process.has_stop_timeout()) {
    options.stop_timeout =
        absl::Seconds(process.stop_timeout().seconds()) + absl::Nanoseconds(process.stop_timeout().nanos());
  }
  if (process.user().empty()) {
    options.user = LookUpUid(geteuid(), getegid());
  } else {
    RB_ASSIGN_OR_RETURN(options.user, LookUpUser(process.user()));
    options.switch_user = options.user.uid != geteuid() || options.user.gid != getegid();
  }
  RB_ASSIGN_OR_RETURN(std::unique_ptr<Supervisor> supervisor, ProcessSupervisor::Create(std::move(options), clock));
  return supervisor;
}

}  // namespace rb::agent
