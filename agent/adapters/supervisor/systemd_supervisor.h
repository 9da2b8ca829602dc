// Runs one service as a systemd unit, over D-Bus.
#ifndef RB_AGENT_ADAPTERS_SUPERVISOR_SYSTEMD_SUPERVISOR_H_
#define RB_AGENT_ADAPTERS_SUPERVISOR_SYSTEMD_SUPERVISOR_H_

#include <memory>
#include <string>
#include <vector>

#include "agent/core/ports/supervisor.h"
#include "common/clock.h"

namespace rb::agent {

// Connects when it is first used, and again after the bus was lost: an agent starts before its bus, too. UNAVAILABLE
// when systemd cannot be reached, NOT_FOUND when it knows no such unit, PERMISSION_DENIED. Thread-safety as the port
// says.
class SystemdSupervisor final : public Supervisor {
 public:
  // `unit` with its suffix ("rosey-bot.service"). `also_restart`: units that depend on it; Start restarts, in this
  // order, those that ran at the last Stop (all of them when this object has stopped nothing yet), and fails when one
  // fails. `clock` is not owned, and has to be one that runs by itself.
  SystemdSupervisor(std::string unit, Clock& clock, std::vector<std::string> also_restart = {});
  ~SystemdSupervisor() override;

  absl::Status Stop(absl::Duration timeout) override;
  absl::Status Start(absl::Duration timeout) override;
  absl::StatusOr<UnitState> GetState() override;

 private:
  class Bus;
  absl::StatusOr<std::shared_ptr<Bus>> Connect();
  absl::Status RestartDependants(Bus& bus, absl::Duration deadline);

  const std::string unit_;
  const std::vector<std::string> also_restart_;
  // Those of them that the next Start has to restart.
  std::vector<std::string> dependants_;
  bool knows_dependants_ = false;
  Clock& clock_;
  struct Connection;
  const std::unique_ptr<Connection> connection_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_SUPERVISOR_SYSTEMD_SUPERVISOR_H_
