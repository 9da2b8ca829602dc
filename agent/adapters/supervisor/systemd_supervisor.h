// Runs one service as a systemd unit, over D-Bus.
#ifndef RB_AGENT_ADAPTERS_SUPERVISOR_SYSTEMD_SUPERVISOR_H_
#define RB_AGENT_ADAPTERS_SUPERVISOR_SYSTEMD_SUPERVISOR_H_

#include <memory>
#include <string>

#include "agent/core/ports/supervisor.h"
#include "common/clock.h"

namespace rb::agent {

// Connects when it is first used, and again after the bus was lost: an agent starts before its bus, too. UNAVAILABLE
// when systemd cannot be reached, NOT_FOUND when it knows no such unit, PERMISSION_DENIED. Thread-safety as the port
// says.
class SystemdSupervisor final : public Supervisor {
 public:
  // `unit` with its suffix ("rosey-bot.service"). `clock` is not owned, and has to be one that runs by itself.
  SystemdSupervisor(std::string unit, Clock& clock);
  ~SystemdSupervisor() override;

  absl::Status Stop(absl::Duration timeout) override;
  absl::Status Start(absl::Duration timeout) override;
  absl::StatusOr<UnitState> GetState() override;

 private:
  class Bus;
  absl::StatusOr<std::shared_ptr<Bus>> Connect();

  const std::string unit_;
  Clock& clock_;
  struct Connection;
  const std::unique_ptr<Connection> connection_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_SUPERVISOR_SYSTEMD_SUPERVISOR_H_
