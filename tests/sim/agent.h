// A simulated server: the agent's core and its step runner unchanged, around them a small driver that does what the
// daemon does, on a disk and with a process that can die at any moment.
#ifndef RB_TESTS_SIM_AGENT_H_
#define RB_TESTS_SIM_AGENT_H_

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "agent/core/task/agent_state.h"
#include "agent/core/task/step_runner.h"
#include "common/clock.h"
#include "tests/sim/disk.h"
#include "tests/sim/fiber.h"
#include "tests/sim/world.h"

namespace rb::sim {

class SimAgent;

// One service on one server.
class SimService final : public HostPort {
 public:
  SimService(World& world, SimAgent& agent, int number);

  void Work(Nanos typical) override;
  Nanos Now() override { return world_.now(); }
  bool Fails(absl::string_view what) override;
  bool DiskIsFull() override;
  bool IsCancelled() override { return cancelled_; }
  bool IsHealthy(int version) override;
  void OnPrepared(const std::string& operation_id) override;
  void OnSwapBegins(const std::string& operation_id) override;
  void OnUndoBegins(const std::string& operation_id) override;
  void OnKept(const std::string& operation_id) override;
  void OnServiceStarts() override;

  const Disk& disk() const { return disk_; }
  const Unit& unit() const { return unit_; }
  SimEngine& engine() { return engine_; }
  const std::string& name() const { return name_; }
  // Whatever version it is brought to, nothing is in the way of it.
  bool in_order() const;

 private:
  friend class SimAgent;
  // Sleeping in a step lets the world go on.
  class ServiceClock final : public Clock {
   public:
    explicit ServiceClock(SimService& service) : service_(service) {}
    absl::Time Now() override;
    absl::Duration Monotonic() override { return service_.world_.Monotonic(); }
    void Sleep(absl::Duration duration) override;

   private:
    SimService& service_;
  };

  // The worker's queue, one step after another.
  void Post(agent::Task task);
  void BeginNext();
  void OpenRunner();
  void Die();
  void WaitFor(Nanos delay);

  World& world_;
  SimAgent& agent_;
  const int number_;
  const std::string name_;
  // What survives.
  Disk disk_;
  Unit unit_;
  bool healthy_[kVersions + 1] = {};
  // What does not.
  SimEngine engine_;
  SimSupervisor supervisor_;
  SimCommits commits_;
  ServiceClock clock_;
  std::unique_ptr<agent::StepRunner> runner_;
  std::unique_ptr<Fiber> fiber_;
  std::deque<agent::Task> waiting_;
  std::atomic<bool> cancelled_{false};
};

class SimAgent {
 public:
  SimAgent(World& world, int host);
  ~SimAgent();

  // The process starts: recovers, reads its journal, dials.
  void Boot();
  // `power`: the whole host goes, with what was not flushed. It comes back after `away`.
  void Crash(bool power, Nanos away);
  // From now on every version is healthy, no release is damaged, and nothing is slow.
  void Mend();
  void SetDiskFull(bool full) { disk_full_ = full; }

  void OnOpen(uint64_t process);
  void OnMessage(const ToAgent& message);

  int host() const { return host_; }
  const std::string& name() const { return name_; }
  bool up() const { return up_; }
  uint64_t process() const { return process_; }
  SimService& service(int number) { return *services_[static_cast<size_t>(number)]; }
  const agent::AgentState& state() const { return state_; }
  agent::AgentState ReadJournal() const;
  // No step is under way or waiting.
  bool idle() const;
  // Nobody waits for the controller to come back.
  bool attended() const;
  bool journal_closed() const { return journal_closed_; }

 private:
  friend class SimService;
  void Take(const agent::AgentEvent& event);
  // Durable when true. False: for good, until the process starts again.
  bool Append(const agent::AgentEvent& event);
  void Carry(const agent::AgentEffect& effect);
  void SendReports();
  // True when the process has died at this place.
  bool DiesHere(absl::string_view place);
  // Reads what is new in the journal.
  void Fold();
  // The journal says what the process believes.
  void CheckReplay();

  World& world_;
  const int host_;
  const std::string name_;
  Nanos slowness_;
  std::vector<std::string> names_;
  // What survives.
  std::vector<std::unique_ptr<SimService>> services_;
  std::vector<agent::AgentEvent> journal_;
  bool disk_full_ = false;
  // What does not.
  bool up_ = false;
  uint64_t process_ = 0;
  agent::AgentState state_;
  bool journal_closed_ = false;
  int boot_fuse_ = 0;
  bool booting_ = false;
  // The journal folded as far as `folded_`.
  agent::AgentState replayed_;
  size_t folded_ = 0;
};

}  // namespace rb::sim

#endif  // RB_TESTS_SIM_AGENT_H_
