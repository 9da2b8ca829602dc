// Carries one step out on one service, against the ports. Knows how; what and when is decided elsewhere.
#ifndef RB_AGENT_CORE_TASK_STEP_RUNNER_H_
#define RB_AGENT_CORE_TASK_STEP_RUNNER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "agent/core/engine/engine.h"
#include "agent/core/ports/after_restore.h"
#include "agent/core/ports/commit_source.h"
#include "agent/core/ports/probe.h"
#include "agent/core/ports/service_log.h"
#include "agent/core/ports/supervisor.h"
#include "agent/core/task/task.h"
#include "common/clock.h"

namespace rb::agent {

// What a service is run with. Nothing is owned, but by the vector.
struct ServicePorts {
  std::string service;
  Engine* engine = nullptr;
  Supervisor* supervisor = nullptr;
  // Null where agent.yaml names no repository.
  CommitSource* commits = nullptr;
  std::vector<std::unique_ptr<Probe>> probes;
  // Null: nothing more is to be done.
  std::unique_ptr<AfterRestore> after_restore;
  // Null: an inspection of the host gives no facts.
  std::unique_ptr<HostExaminer> examiner;
  // Null: results carry no lines of it.
  std::unique_ptr<ServiceLog> log;
  // True while a step waits for what is being looked at. Null: never.
  const std::atomic<bool>* step_waits = nullptr;
  Clock* clock = nullptr;
  // Globs of config files, each of which has to pass `check_json`.
  std::vector<std::string> json_globs;
  // OK when the text is valid JSON; else what is wrong, with line and column.
  std::function<absl::Status(absl::string_view text)> check_json;
  // Longest wait for the service to stop, and to start.
  absl::Duration stop_timeout = absl::Seconds(90);
  absl::Duration start_timeout = absl::Seconds(90);
};

// One step at a time. Run blocks.
class StepRunner {
 public:
  using ProgressSink = std::function<void(Stage stage, const std::string& detail)>;

  explicit StepRunner(ServicePorts ports) : ports_(std::move(ports)) {}

  // Never fails otherwise than in the result: its status, and the state that the host is in now. `cancelled` is looked
  // at between probes and by the engine's long work; a swap that has begun is finished.
  TaskResult Run(const Task& task, const ProgressSink& progress, const std::atomic<bool>& cancelled);

  // One quick round of probes. Ends early, with what it has, once `hurry` is true: a probe of a service that hangs
  // takes its whole timeout, and a step may be waiting.
  std::vector<ProbeResult> ProbeOnce(const std::atomic<bool>* hurry = nullptr);

  // For what is done to the service between steps; as a step does it.
  absl::Status Stop();
  absl::Status Start();

  const ServicePorts& ports() const { return ports_; }

 private:
  struct Context {
    TaskResult* result;
    const ProgressSink& progress;
    const std::atomic<bool>& cancelled;
  };
  void Inspect(const InspectStep& step, TaskResult* result);
  void Backup(const Task& task, const BackupStep& step, Context* context);
  void Prune(const PruneStep& step, TaskResult* result);
  void Prepare(const Task& task, const PrepareStep& step, Context* context);
  void Commit(const Task& task, Context* context);
  void Verify(const VerifyPolicy& policy, Context* context);
  void Revert(const Task& task, const RevertStep& step, Context* context);
  void Keep(const Task& task, const KeepStep& step, Context* context);
  // Method B, where somebody else changes the tree (redeploy.cc).
  void PrepareForRedeploy(const Task& task, const PrepareStep& step, Context* context);
  void Await(const AwaitStep& step, Context* context);
  void RestoreReplaced(const Task& task, const RevertStep& step, Context* context);
  void KeepRedeployed(const Task& task, const KeepStep& step, Context* context);
  // A null snapshot with OK: the commit is not known here (yet).
  absl::StatusOr<Delta> CompareWithCommit(const std::string& commit, const Components& components);
  bool HasVersionProbe();

  // What an operation that is over has left open here.
  absl::Status CloseAbandoned(const std::string& operation_id);
  absl::Status CheckConfig(const std::string& operation_id);
  absl::Status StopService(Context* context);
  absl::Status StartService(Context* context);
  // The same on another release than the one that was stopped, with what has to happen beside it. What goes wrong with
  // that is said in the result's problems: it decides nothing.
  absl::Status StartRestored(Context* context);
  void FillCandidates(const InspectStep& step, TaskResult* result);
  std::vector<ProbeResult> ProbeRound(bool quick, const std::atomic<bool>* hurry = nullptr);

  ServicePorts ports_;
  // Of which its log is marked.
  std::string logged_operation_;
  ProbeContext probe_context_;
  // The run of the service when a redeploy was prepared; empty when not known (the agent was restarted since).
  std::string run_before_redeploy_;
  // Of the last stop: downtime counts from here. Zero when not known (the agent was restarted since).
  absl::Duration stopped_at_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_TASK_STEP_RUNNER_H_
