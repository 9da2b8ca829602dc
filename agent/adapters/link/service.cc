#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/adapters/config/agent_config.h"
#include "agent/adapters/database/hook_runner.h"
#include "agent/adapters/database/sqlite_copier.h"
#include "agent/adapters/doctor/host_examiner.h"
#include "agent/adapters/fault/fault_records.h"
#include "agent/adapters/fault/tree_fault_tools.h"
#include "agent/adapters/git/git_mirror.h"
#include "agent/adapters/link/daemon.h"
#include "agent/adapters/probe/make_probes.h"
#include "agent/adapters/probe/service_logs.h"
#include "agent/adapters/restore/after_restore.h"
#include "agent/adapters/supervisor/make_supervisor.h"
#include "agent/adapters/supervisor/systemd_supervisor.h"
#include "common/adapters/proto_time.h"
#include "common/log.h"
#include "common/status.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

constexpr absl::Duration kLockPatience = absl::Seconds(5);

absl::Status CheckJson(absl::string_view text) {
  try {
    [[maybe_unused]] const nlohmann::json parsed = nlohmann::json::parse(text.begin(), text.end());
    return absl::OkStatus();
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

class ServiceImpl final : public Service {
 public:
  StepRunner& runner() override { return *runner_; }
  Engine& engine() override { return *engine_; }
  std::atomic<bool>& cancelled() override { return cancelled_; }
  std::atomic<bool>& step_waits() override { return step_waits_; }
  FaultKeeper& faults() override { return *faults_; }

 private:
  friend class Service;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> step_waits_{false};
  SqliteCopier copier_;
  std::unique_ptr<DatabaseHooks> hooks_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Supervisor> supervisor_;
  std::unique_ptr<GitMirror> mirror_;
  std::unique_ptr<StepRunner> runner_;
  std::unique_ptr<TreeFaultTools> fault_tools_;
  std::unique_ptr<FileFaultRecords> fault_records_;
  std::unique_ptr<FaultKeeper> faults_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Service>> Service::Open(const std::string& name, const v1::AgentServiceConfig& config,
                                                       const std::string& state_folder, Clock& clock,
                                                       bool with_supervisor, std::string* recovered,
                                                       const std::string& config_path) {
  auto service = std::make_unique<ServiceImpl>();
  RB_ASSIGN_OR_RETURN(const ServiceTree tree, ToServiceTree(name, config));
  Engine::Options options;
  options.state_folder = state_folder;
  options.clock = &clock;
  options.database_copier = &service->copier_;
  service->hooks_ = MakeDatabaseHooks(config, tree, state_folder, clock,
                                      [cancelled = &service->cancelled_] { return cancelled->load(); });
  options.database_hooks = service->hooks_.get();
  options.is_cancelled = [cancelled = &service->cancelled_] { return cancelled->load(); };
  RB_ASSIGN_OR_RETURN(service->engine_, Engine::Open(std::move(options), tree));
  absl::StatusOr<std::string> whole = service->engine_->Recover();
  // After a boot, the service's unit asks for the same at the same time.
  for (const absl::Duration until = clock.Monotonic() + kLockPatience;
       absl::IsUnavailable(whole.status()) && clock.Monotonic() < until;) {
    clock.Sleep(absl::Milliseconds(20));
    whole = service->engine_->Recover();
  }
  if (!whole.ok()) {
    absl::Status failure = Annotate(whole.status(), absl::StrCat("recovery of ", name, " did not end"));
    // Another process that holds the service's lock is at work on it: that is no half-done recovery.
    if (!absl::IsUnavailable(failure)) failure.SetPayload(kInRecovery, absl::Cord());
    return failure;
  }
  *recovered = *std::move(whole);
  ServicePorts ports;
  ports.service = name;
  ports.engine = service->engine_.get();
  ports.clock = &clock;
  if (config.has_git() && !config.git().remote().empty()) {
    GitMirror::Options git;
    git.service = name;
    git.remote = config.git().remote();
    if (!config.git().branch().empty()) git.branch = config.git().branch();
    git.state_folder = state_folder;
    git.tree = config.tree();
    RB_ASSIGN_OR_RETURN(service->mirror_, GitMirror::Create(std::move(git), clock));
    ports.commits = service->mirror_.get();
  }
  for (const v1::CheckConfig& check : config.check_config()) ports.json_globs.push_back(check.json());
  ports.check_json = CheckJson;
  if (with_supervisor) {
    // Only now: a process that should run is started by this, and its tree is whole.
    RB_ASSIGN_OR_RETURN(service->supervisor_, MakeSupervisor(name, config, state_folder, clock));
    ports.supervisor = service->supervisor_.get();
    RB_ASSIGN_OR_RETURN(ports.probes, MakeProbes(config, *service->supervisor_, tree, state_folder, clock));
    if (config.has_after_restore()) {
      AfterRestoreOptions after;
      after.tree = tree;
      after.clear.assign(config.after_restore().clear().begin(), config.after_restore().clear().end());
      after.restart.assign(config.after_restore().restart().begin(), config.after_restore().restart().end());
      after.supervisor_of = [&clock](const std::string& unit) {
        return std::make_unique<SystemdSupervisor>(unit, clock);
      };
      if (config.after_restore().has_timeout()) after.restart_timeout = FromProto(config.after_restore().timeout());
      ports.after_restore = MakeAfterRestore(std::move(after), clock);
    }
    ports.log = config.unit().empty() ? MakeFileLog(ProcessLogPath(name, config, state_folder), config.tree())
                                      : MakeJournalLog(config.unit(), clock);
    HostExaminerOptions examiner;
    examiner.service = name;
    examiner.state_folder = state_folder;
    examiner.config_path = config_path;
    examiner.supervisor = service->supervisor_.get();
    ports.examiner = MakeHostExaminer(config, std::move(examiner), clock);
    ports.step_waits = &service->step_waits_;
  }
  service->runner_ = std::make_unique<StepRunner>(std::move(ports));
  service->fault_tools_ = std::make_unique<TreeFaultTools>(TreeFaultTools::OptionsFor(config, tree, &service->copier_));
  service->fault_records_ = std::make_unique<FileFaultRecords>(state_folder, name);
  FaultKeeper::Ports faults;
  faults.tools = service->fault_tools_.get();
  faults.records = service->fault_records_.get();
  faults.clock = &clock;
  faults.stop = [runner = service->runner_.get()] { return runner->Stop(); };
  faults.start = [runner = service->runner_.get()] { return runner->Start(); };
  faults.open_operation = [engine = service->engine_.get()] {
    const absl::StatusOr<OpenTransaction> open = engine->GetOpenTransaction();
    return open.ok() ? open->operation_id : std::string("an operation that cannot be read");
  };
  for (const std::string& allowed : config.drills().allow()) {
    FaultKind kind = FaultKind::kBadCode;
    if (ParseFaultKind(allowed, &kind)) faults.allowed.push_back(kind);
  }
  if (config.drills().has_longest()) faults.longest = FromProto(config.drills().longest());
  service->faults_ = std::make_unique<FaultKeeper>(std::move(faults));
  return service;
}

}  // namespace rb::agent
