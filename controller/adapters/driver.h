// The controller's loop: turns requests and agents' answers into events, decides, keeps the journal, carries effects
// out.
#ifndef RB_CONTROLLER_ADAPTERS_DRIVER_H_
#define RB_CONTROLLER_ADAPTERS_DRIVER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/event_loop.h"
#include "controller/adapters/agent_registry.h"
#include "controller/adapters/ci/ci_runner.h"
#include "controller/adapters/doctor.h"
#include "controller/adapters/driver_observer.h"
#include "controller/adapters/lock_queue.h"
#include "controller/adapters/metrics.h"
#include "controller/adapters/planning.h"
#include "controller/adapters/quarantine_book.h"
#include "controller/adapters/store.h"
#include "controller/adapters/watchers.h"
#include "controller/core/fleet.h"
#include "controller/core/intent.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"
#include "rb/v1/agent_link.pb.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// All methods are called on the loop, and all callbacks run on it.
class Driver {
 public:
  using Watcher = Watchers::Watcher;
  using Started = StartAnswer;

  // Nothing is owned; `fleet` is copied.
  Driver(Fleet fleet, Store& store, AgentSender& sender, EventLoop& loop, Clock& clock, ControllerMetrics& metrics);

  // Before Resume; not owned.
  void AddObserver(DriverObserver* observer) { observers_.push_back(observer); }
  const AgentRegistry& agents() const { return agents_; }
  // The operation that holds the lock; empty if none.
  std::string HolderOf(const std::string& service, const std::string& environment);
  // Not owned; to be called before Resume. Null: no service has CI.
  void SetCi(CiRunner* ci);

  // Takes up what an earlier controller left unfinished.
  absl::Status Resume();

  void Plan(const OperationSpec& spec, std::function<void(absl::Status, v1::Plan)> done);
  // With spec.wait_for_lock it stands in a queue while another operation holds a lock; it leaves the queue unanswered
  // when `is_given_up` says so: whoever asked is gone.
  void Start(const OperationSpec& spec, const std::string& by, const std::string& idempotency_key,
             std::function<bool()> is_given_up, std::function<void(Started)> done);
  absl::StatusOr<v1::Operation> Get(const std::string& id, std::vector<v1::OperationEvent>* events);
  // FAILED_PRECONDITION, with why and what to type, when it is refused.
  absl::StatusOr<v1::Operation> Ask(const std::string& id, const OperatorRequest& request);
  // rb.v1.ListOperationsResponse, as it is sent.
  absl::StatusOr<std::string> List(const v1::ListOperationsRequest& request);
  // See Watchers::Add.
  absl::StatusOr<uint64_t> Watch(const std::string& id, uint64_t after_sequence, Watcher watcher);
  void Unwatch(uint64_t number) { watchers_.Remove(number); }
  v1::ListReleasesResponse Releases(const v1::ListReleasesRequest& request, absl::Status* status) {
    return agents_.Releases(request, status);
  }
  v1::ListAgentsResponse Agents() { return agents_.List(); }
  v1::GetStatusResponse Status(const v1::GetStatusRequest& request, absl::Status* status);
  DoctorDesk& doctor() { return doctor_; }

  QuarantineBook& quarantine() { return quarantine_; }

  // All gauges of metrics, as they are now.
  void Measure(MetricSamples* samples);

  // What the fleet file says of the services on the agent's host.
  void FillPolicies(const std::string& agent, v1::Welcome* welcome) const { agents_.FillPolicies(agent, welcome); }
  void OnAgentConnected(const std::string& agent, const v1::Hello& hello, absl::Time certificate_expires_at);
  void OnAgentLost(const std::string& agent);
  void OnReport(const std::string& agent, const v1::ServiceReport& report);
  void OnProgress(const std::string& agent, const v1::TaskProgress& progress);
  void OnResult(const std::string& agent, v1::TaskResult result);
  // What was done on a host without us goes into the history, once.
  void OnHostRecord(const std::string& agent, const v1::HostRecord& record);

 private:
  struct Running {
    Operation operation;
    std::vector<v1::OperationEvent> history;
    absl::Duration accepted_monotonic;
    std::map<std::string, v1::TaskProgress::Stage> stages;
    struct Overdue {
      std::string host;
      std::string step_id;
      // Only if the host has not connected since: how often it had connected before it was lost.
      std::optional<uint64_t> lost_after;
    };
    // When an answer is overdue, by the monotonic clock.
    std::multimap<absl::Duration, Overdue> deadlines;
    absl::Duration armed = absl::InfiniteDuration();
    // It has ended, and that is written.
    bool end_is_kept = false;
  };
  using EventBody = decltype(Event::body);
  // Waits for the next group commit.
  struct Pending {
    std::string id;
    Event event;
    // Called once it is in the journal and was acted on, or could not be appended: then nothing was done.
    std::function<void(const absl::Status&)> done;
  };

  // The event goes into the journal with all others that are in the loop's queue now, in one transaction; then all are
  // decided and acted on.
  void TakeSoon(const Running& running, EventBody body, std::function<void(const absl::Status&)> done);
  // At once, and alone in its transaction.
  absl::Status TakeNow(const Running& running, EventBody body);
  void Flush();
  void CarryOut(Running* running, const std::vector<Effect>& effects);
  static void Fold(Running* running, const Event& event, std::vector<Effect>* effects);
  // Of one that has reached a final state: keeps its snapshot, then lets it go. Tried again until it succeeds.
  void Finish(const std::string& id);
  // `hosts`: these only, and without the plan; null: all of it.
  v1::Operation Shown(const Running& running, const std::set<std::string>* hosts) const;
  absl::StatusOr<Watchers::View> ViewOf(const std::string& id);
  // The agents are in no hurry for it: it waits until no more results come, and is one message for each agent.
  void Acknowledge(const std::string& agent, const std::string& step_id);
  void SendAcknowledgements();
  void SendStep(const Operation& operation, const StartStep& step);
  void RecordLock(const std::string& id);
  void ArmDeadline(Running* running, const StartStep& step);
  // Of a step on a host that is not connected.
  void ArmLostDeadline(Running* running, const StartStep& step);
  void ArmNextDeadline(Running* running);
  void LookAtDeadlines(const std::string& id);
  void EndWait(const std::string& id, uint32_t number);
  // All or an error; what was taken before that is given back with ReleaseLock. `held_environment` may be null.
  absl::Status TakeLocks(const OperationSpec& spec, const std::string& id, std::string* held_environment);
  // The operation that the key began, as an answer. False when there is none.
  bool AnswerOfKey(const std::string& idempotency_key, Started* answer);
  Started Begin(rb::controller::Plan plan, const std::string& by, const std::string& idempotency_key);
  Event NewEvent(const Running& running) const;
  absl::Status LearnIntents();
  absl::StatusOr<std::unique_ptr<Running>> Load(const std::string& id);
  void Ended(const Running& running);
  void TryToStart(StartRequest request);
  // False: it could not be recorded.
  bool OnCi(const std::string& id, const CiRunner::Happened& happened);
  void VerifyAfterwards(const Operation& operation);

  const Fleet fleet_;
  Store& store_;
  AgentSender& sender_;
  EventLoop& loop_;
  Clock& clock_;
  ControllerMetrics& metrics_;
  CiRunner* ci_ = nullptr;
  std::map<std::string, std::unique_ptr<Running>> running_;
  std::vector<Pending> pending_;
  bool flush_posted_ = false;
  // Agent → the steps whose results are stored, and since when the first of all waits and the last one was added.
  std::map<std::string, std::vector<std::string>> acknowledgements_;
  absl::Duration first_acknowledgement_;
  absl::Duration last_acknowledgement_;
  Intents intents_;
  AgentRegistry agents_;
  QuarantineBook quarantine_;
  Planning planning_;
  LockQueue queue_;
  Watchers watchers_;
  DoctorDesk doctor_;
  std::vector<DriverObserver*> observers_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DRIVER_H_
