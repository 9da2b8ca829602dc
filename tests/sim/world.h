// One simulated world: a controller, hosts, the network between them and people at the keyboard, on one queue of
// events. Everything that happens follows from the seed.
#ifndef RB_TESTS_SIM_WORLD_H_
#define RB_TESTS_SIM_WORLD_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "agent/core/task/task.h"
#include "controller/core/fleet.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"
#include "tests/sim/disk.h"
#include "tests/sim/random.h"

namespace rb::sim {

class SimAgent;
class SimController;
class Monitor;

// Bugs to plant in the drivers around the cores: a simulator that finds none of them finds nothing.
enum class Bug {
  kNone,
  kCommitBeforeAllPrepared,
  kWaveGateSkipped,
  kControllerActsBeforePersisting,
  kAgentActsBeforePersisting,
  kStaleFencingAccepted,
  kStepRunTwice,
  kLockReleasedEarly,
  kControllerRecordLost,
  kAgentRecordLost,
  kAcknowledgedBeforeStored,
  kRecoverySkipped,
  kDeadlineForgotten,
  kFencingNumberUsedTwice,
  kDeadlineByWallClock,
};
inline constexpr Bug kPlantedBugs[] = {
    Bug::kCommitBeforeAllPrepared,   Bug::kWaveGateSkipped,      Bug::kControllerActsBeforePersisting,
    Bug::kAgentActsBeforePersisting, Bug::kStaleFencingAccepted, Bug::kStepRunTwice,
    Bug::kLockReleasedEarly,         Bug::kControllerRecordLost, Bug::kAgentRecordLost,
    Bug::kAcknowledgedBeforeStored,  Bug::kRecoverySkipped,      Bug::kDeadlineForgotten,
    Bug::kFencingNumberUsedTwice,    Bug::kDeadlineByWallClock,
};
absl::string_view NameOf(Bug bug);

// What kind of world it is; drawn first.
struct Scenario {
  int hosts = 1;
  int services = 1;
  controller::WaveSize wave;
  controller::OnFailure on_failure = controller::OnFailure::kRevertAll;
  absl::Duration verify_deadline;
  absl::Duration verify_soak;
  // Faults may happen until then.
  Nanos faults_end = 0;
  // One message at a time may be lost, late, doubled or overtaken. Otherwise as on a stream: in order, and lost only
  // together with the connection.
  bool datagrams = false;
  int drop_per_mille = 0;
  int double_per_mille = 0;
  // Of those lost, how many turn up much later.
  int stray_percent = 0;
  int late_per_mille = 0;
  Nanos latest = 0;
  Nanos latency = kMillisecond;
  // At each place where an event is written down or carried out.
  int crash_per_mille = 0;
  // At each piece of a step's work.
  int crash_in_step_per_mille = 0;
  int fail_per_mille = 0;
  int unhealthy_percent = 0;
  int flaky_per_mille = 0;
};

struct Outcome {
  // The first invariant that did not hold, and how; empty: all held.
  std::string invariant;
  std::string details;
  // The same for two runs exactly when they went the same way.
  uint64_t digest = 0;
  uint64_t events = 0;
  // How operations ended, by controller::OperationState.
  std::map<int, int> ends;
  int refusals = 0;
  // One line for each thing that happened, when asked for.
  std::string log;
};

struct Welcome {};
struct ResultStoredMessage {
  std::string step_id;
};
struct OverMessage {
  std::string operation_id;
};
struct CancelMessage {
  std::string step_id;
};
using ToAgent = std::variant<Welcome, agent::Task, ResultStoredMessage, OverMessage, CancelMessage>;
// The part of a service's report that matters here: the operation that it still holds open.
struct Report {
  std::string open_operation_id;
};
using ToController = std::variant<agent::TaskResult, Report>;

class World {
 public:
  World(uint64_t seed, Bug bug, bool keep_log);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  Outcome Run();

  // ---- for its parts
  using Action = absl::AnyInvocable<void()>;
  Nanos now() const { return now_; }
  absl::Duration Monotonic() const { return absl::Hours(1) + absl::Nanoseconds(now_); }
  // What a machine's own clock says, which may be set at any time. Nobody's monotonic clock jumps.
  static constexpr int kController = -1;
  absl::Time Now(int host) const {
    return absl::FromUnixSeconds(1'800'000'000) + absl::Nanoseconds(now_) +
           clock_offsets_[static_cast<size_t>(host - kController)];
  }
  Random& random() { return random_; }
  const Scenario& scenario() const { return scenario_; }
  const controller::Fleet& fleet() const { return fleet_; }
  Bug bug() const { return bug_; }
  bool faults() const { return now_ < scenario_.faults_end; }
  Monitor& monitor() { return *monitor_; }
  SimController& controller() { return *controller_; }
  SimAgent& agent(int host) { return *agents_[static_cast<size_t>(host)]; }
  int HostNumber(absl::string_view name) const { return name.back() - '1'; }
  static std::string HostName(int host) { return absl::StrCat("h", host + 1); }
  int ServiceNumber(absl::string_view name) const { return name == "bot" ? 0 : 1; }
  static absl::string_view ServiceName(int service) { return service == 0 ? "bot" : "web"; }

  void After(Nanos delay, Action action);
  template <typename... Parts>
  void Log(const Parts&... parts) {
    if (keep_log_) Append(absl::StrCat(parts...));
  }
  bool logging() const { return keep_log_; }
  // The world ends with the event that is under way.
  void Violate(absl::string_view invariant, std::string details);

  // ---- network
  // The agent's end: dials again and again while its process lives.
  void Dial(int host, uint64_t process);
  // Both processes' ends are gone at once; the other side learns of it. `silently`: only after its keepalive.
  void BreakLink(int host, bool silently);
  bool IsOpenAtAgent(int host) const { return links_[static_cast<size_t>(host)].open_at_agent; }
  // False when it knows of no connection.
  bool Send(int host, const ToAgent& message);
  bool Send(int host, const ToController& message);
  void ControllerIsGone(bool silently);

 private:
  struct Link {
    // Counts dials; `alive` is the one over which messages still get through, 0 for none.
    uint64_t number = 0;
    uint64_t alive = 0;
    uint64_t at_agent = 0;
    uint64_t at_controller = 0;
    bool open_at_agent = false;
    bool cut_off = false;
    bool dialling = false;
    Nanos wait = 0;
    Nanos last_to_agent = 0;
    Nanos last_to_controller = 0;
  };
  struct Queued {
    Nanos when;
    uint64_t order;
    size_t action;
  };
  struct Later {
    bool operator()(const Queued& one, const Queued& other) const {
      return one.when != other.when ? one.when > other.when : one.order > other.order;
    }
  };
  // One that an operator sends until it is answered.
  struct Request {
    controller::OperationSpec spec;
    std::string key;
    int tries = 0;
    bool answered = false;
    // What, and how long after it was accepted.
    std::vector<std::pair<int, Nanos>> later;
  };

  void Draw();
  void DrawFaults();
  void DrawOperator();
  controller::OperationSpec DrawSpec(int service);
  void Ask(size_t request);
  void AskLater(const std::string& id, int what, int tries);
  void Append(const std::string& text);
  void DialNow(int host, uint64_t process);
  void Deliver(int host, uint64_t number, const ToAgent& message);
  void Deliver(int host, uint64_t number, const ToController& message);
  // When a message arrives that is sent now; several times when doubled, never when lost.
  std::vector<Nanos> Arrivals(Nanos* last);
  void RunUntil(Nanos end);
  void FaultsEnd();
  void RollBackOnceMore();

  const uint64_t seed_;
  const Bug bug_;
  const bool keep_log_;
  Random random_;
  Nanos now_ = 0;
  uint64_t order_ = 0;
  uint64_t digest_ = 0;
  std::vector<Queued> queue_;
  std::vector<Action> actions_;
  std::vector<size_t> free_actions_;
  Scenario scenario_;
  controller::Fleet fleet_;
  std::unique_ptr<Monitor> monitor_;
  std::unique_ptr<SimController> controller_;
  std::vector<std::unique_ptr<SimAgent>> agents_;
  std::vector<Link> links_;
  std::vector<absl::Duration> clock_offsets_;  // the controller's, then each host's
  std::vector<Request> requests_;
  std::vector<std::string> accepted_;
  Outcome outcome_;
};

}  // namespace rb::sim

#endif  // RB_TESTS_SIM_WORLD_H_
