#include "agent/adapters/link/daemon.h"

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "agent/adapters/link/agent_link.h"
#include "agent/adapters/link/external.h"
#include "agent/adapters/link/fault_link.h"
#include "agent/adapters/link/journal.h"
#include "agent/adapters/link/service_setup.h"
#include "agent/adapters/link/wire.h"
#include "agent/adapters/metrics/agent_metrics.h"
#include "agent/adapters/records/host_records.h"
#include "agent/core/task/agent_state.h"
#include "common/adapters/identity.h"
#include "common/adapters/proto_time.h"
#include "common/durable_file.h"
#include "common/event_loop.h"
#include "common/failpoint.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/status.h"
#include "common/text.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

constexpr size_t kLoopCapacity = 1000;
constexpr absl::Duration kReportInterval = absl::Seconds(30);
// A host that is not healthy yet is looked at again after this, then after twice as long, until it is the interval:
// nobody waits half a minute to read that it came up.
constexpr absl::Duration kFirstLookAgain = absl::Seconds(1);
// While a fault is in: how quickly probes notice it is what is measured.
constexpr absl::Duration kFaultLook = absl::Milliseconds(500);
constexpr size_t kMostFaultTasks = 4;
constexpr size_t kReleasesReported = 200;

absl::string_view KindOf(const Task& task) {
  static constexpr absl::string_view kNames[] = {"inspect", "backup", "prepare", "commit", "verify",
                                                 "revert",  "keep",   "await",   "prune"};
  static_assert(std::size(kNames) == std::variant_size_v<decltype(Task::step)>);
  return kNames[task.step.index()];
}

std::string MethodName(Method method) {
  return method == Method::kGit ? "git" : method == Method::kRedeploy ? "redeploy" : "backup";
}

class Daemon {
 public:
  Daemon(const v1::AgentConfig& config, const DaemonOptions& options, Clock& clock)
      : config_(config), options_(options), clock_(clock), loop_(clock, kLoopCapacity), background_(clock, 16) {
    for (const auto& [name, service] : config.services()) names_.push_back(name);
    std::sort(names_.begin(), names_.end());
  }

  absl::Status Run() {
    // Blocked before any thread starts, so that only the wait below sees them.
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    const UniqueFd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC));
    if (!signal_fd.valid()) return ErrnoStatus(errno, "signalfd");

    RB_RETURN_IF_ERROR(RemoveFileDurably(options_.state_folder + "/ready"));
    RB_ASSIGN_OR_RETURN(metrics_, AgentMetrics::Create(options_.metrics, options_.state_folder));
    metrics_->SetQueueDepth([this] { return loop_.depth(); });
    for (const std::string& name : names_) {
      Worker& worker = workers_[name];
      std::string recovered;
      absl::StatusOr<std::unique_ptr<Service>> service = Service::Open(
          name, config_.services().at(name), options_.state_folder, clock_, true, &recovered, options_.config_path);
      worker.loop = std::make_unique<EventLoop>(clock_, 8);
      if (service.status().GetPayload(kInRecovery).has_value()) {
        // Its tree may be half of each state: nothing runs on it. The other services are not to suffer for it.
        worker.not_recovered = service.status();
        worker.not_recovered.ErasePayload(kInRecovery);
        LogError("agent", name, ": ", worker.not_recovered.message(),
                 ". It is left stopped. Mend the cause, then start rb-agent again");
        continue;
      }
      if (!service.ok()) return Annotate(service.status(), absl::StrCat("service ", name));
      if (!recovered.empty()) LogWarning("agent", name, ": after a crash: ", recovered);
      worker.service = *std::move(service);
      worker.external = std::make_unique<ExternalDeploys>(name, config_.services().at(name).tree(),
                                                          options_.state_folder, options_.external_settle, clock_);
      if (const absl::Status known = worker.service->faults().Recover(); !known.ok()) {
        LogError("agent", name, ": what a drill has left cannot be read: ", known.message());
      }
      worker.fault_is_open = IsOpen(worker.service->faults().record());
    }
    RB_ASSIGN_OR_RETURN(journal_, AgentJournal::Open(options_.state_folder, names_, &state_));

    v1::Hello hello;
    hello.set_program_version(RB_VERSION);
    hello.set_protocol_version(1);
    hello.set_process_id(RandomHex(8));
    hello.set_metrics_address(metrics_->address());
    hello.set_metrics_tls(!options_.metrics.certificate.empty());
    LookAtCertificate();
    for (const std::string& name : names_) hello.add_services(name);
    AgentLinkClient::Handlers handlers;
    handlers.on_open = [this](const v1::Welcome& welcome) { OnOpen(welcome); };
    handlers.on_close = [this] {
      connected_ = false;
      metrics_->SetLinkConnected(false, clock_.Now());
    };
    handlers.on_message = [this](const v1::ConnectResponse& message) { OnMessage(message); };
    absl::StatusOr<std::unique_ptr<AgentLinkClient>> link = AgentLinkClient::Create(
        options_.state_folder + "/identity", loop_, clock_, std::move(hello), std::move(handlers));
    if (link.ok()) {
      link_ = *std::move(link);
    } else {
      LogWarning("agent", "working alone: ", link.status().message());
    }
    for (auto& [name, worker] : workers_) worker.loop->Start();
    background_.Start();
    loop_.PostResult([this] {
      Take(Restarted{});
      if (link_ != nullptr) link_->Start();
      for (const std::string& name : names_) Report(name);
      ScheduleReports();
      for (const std::string& name : names_) LookAtFault(name);
    });
    loop_.Start();
    RB_RETURN_IF_ERROR(WriteFileDurably(options_.state_folder + "/ready", absl::StrCat(getpid(), "\n"), 0644));
    LogInfo("agent", "ready, ", names_.size(), " services, metrics at ",
            options_.metrics.certificate.empty() ? "http://" : "https://", metrics_->address(), "/metrics");

    signalfd_siginfo info{};
    while (read(signal_fd.get(), &info, sizeof(info)) < 0 && errno == EINTR) {
    }
    LogInfo("agent", "stopping; services go on as they are");
    for (auto& [name, worker] : workers_) {
      if (worker.service != nullptr) worker.service->cancelled() = true;
    }
    metrics_->SetQueueDepth(nullptr);
    loop_.Stop();
    if (link_ != nullptr) link_->Stop();
    background_.Stop();
    for (auto& [name, worker] : workers_) worker.loop->Stop();
    return absl::OkStatus();
  }

 private:
  struct Worker {
    // Null when it could not be recovered: `not_recovered` says why.
    std::unique_ptr<Service> service;
    absl::Status not_recovered;
    // Touched on the loop below alone.
    std::unique_ptr<ExternalDeploys> external;
    std::unique_ptr<EventLoop> loop;
    bool report_waits = false;
    bool proof_waits = false;
    bool fault_is_open = false;
    bool fault_look_waits = false;
    bool look_again_waits = false;
    absl::Duration look_again_after = kFirstLookAgain;
    size_t fault_tasks = 0;
    uint32_t retain_releases = 0;  // 0: not known, so nothing is pruned
    std::string last_report;
    // Of the operation that was prepared last, as metrics call it.
    std::string operation_id;
    std::string method;
    // What copies of its releases would take.
    uint64_t content_bytes = 0;
  };

  void Take(const AgentEvent& event) {
    AgentDecision decision = Decide(state_, event, names_);
    if (IsJournalled(state_, event)) {
      if (const absl::Status appended = journal_->Append(event); !appended.ok()) {
        // Without a journal nothing may be promised: the step is refused or its result is not sent, and asked for
        // again.
        LogError("agent", appended.message(), "; nothing was begun for it");
        const auto* arrived = std::get_if<TaskArrived>(&event);
        if (arrived != nullptr && BeginsSomething(decision)) {
          TaskResult result;
          result.operation_id = arrived->task.operation_id;
          result.step_id = arrived->task.step_id;
          result.service = arrived->task.service;
          result.status = Annotate(appended, "the agent cannot keep its journal; nothing was changed");
          Send(result);
        } else if (arrived != nullptr) {
          // It runs, or has ended: to say that nothing was changed would not be true.
          for (const AgentEffect& effect : decision.effects) {
            std::visit([this](const auto& one) { Carry(one); }, effect);
          }
        }
        return;
      }
      RB_FAILPOINT("agent.loop.after-append");
    }
    state_ = std::move(decision.state);
    for (const AgentEffect& effect : decision.effects) {
      std::visit([this](const auto& one) { Carry(one); }, effect);
    }
  }

  void Carry(const RunStep& effect) {
    Worker& worker = workers_.at(effect.task.service);
    Service* service = worker.service.get();
    if (service == nullptr) {
      TaskResult result;
      result.operation_id = effect.task.operation_id;
      result.step_id = effect.task.step_id;
      result.service = effect.task.service;
      result.status =
          Annotate(worker.not_recovered, "nothing was begun: mend this on the host, then start rb-agent again");
      loop_.PostResult([this, result = std::move(result)] { Take(StepEnded{result}); });
      return;
    }
    service->step_waits() = true;
    if (const auto* prepare = std::get_if<PrepareStep>(&effect.task.step)) {
      worker.operation_id = effect.task.operation_id;
      worker.method = MethodName(prepare->method);
    }
    // After a restart within the operation it is not known.
    const std::string method = worker.operation_id == effect.task.operation_id ? worker.method : "other";
    Task step = effect.task;
    if (auto* prune = std::get_if<PruneStep>(&step.step)) prune->keep_good = worker.retain_releases;
    worker.loop->PostResult([this, service, method, task = std::move(step)] {
      service->step_waits() = false;
      service->cancelled() = false;
      TaskProgress progress;
      progress.operation_id = task.operation_id;
      progress.step_id = task.step_id;
      progress.service = task.service;
      TaskResult result = service->runner().Run(
          task,
          [this, &progress, service](Stage stage, const std::string& detail) {
            if (stage == Stage::kSwapping) service->faults().OnSwapping();
            progress.stage = stage;
            progress.detail = detail;
            loop_.PostResult([this, progress] {
              v1::ConnectRequest message;
              *message.mutable_task_progress() = ToWire(progress);
              if (link_ != nullptr) link_->Send(std::move(message));
            });
          },
          service->cancelled());
      const std::string kind(KindOf(task));
      loop_.PostResult([this, result = std::move(result), kind, method] {
        metrics_->OnStep(kind, result.status.ok());
        if (kind == "backup" && result.status.ok()) {
          last_captured_[result.service] = clock_.Now();
          metrics_->OnBackup(result.service, clock_.Now());
        }
        if (result.pruned.has_value()) OnPruned(result.service, result.pruned->removed, result.pruned->freed_bytes);
        if (kind == "verify" && result.times.downtime > absl::ZeroDuration()) {
          metrics_->OnRecovery(result.service, method, result.verdict == Verdict::kHealthy ? "kept" : "unhealthy",
                               result.times.downtime);
        }
        if (!result.status.ok()) LogWarning("agent", result.service, " ", kind, ": ", result.status.message());
        Take(StepEnded{result});
        // Not in the middle of an operation: its next step would wait for the probes.
        if (kind == "backup" || kind == "revert" || kind == "keep" || kind == "prune") Report(result.service);
      });
    });
  }

  void Carry(const CancelRunning& effect) {
    Service* service = workers_.at(effect.service).service.get();
    if (service != nullptr) service->cancelled() = true;
  }

  void Carry(const SendResult& effect) { Send(effect.result); }

  void Send(const TaskResult& result) {
    RB_FAILPOINT("agent.loop.before-send");
    v1::ConnectRequest message;
    *message.mutable_task_result() = ToWire(result);
    if (link_ != nullptr) link_->Send(std::move(message));
  }

  void Carry(const ArmPatience& effect) {
    loop_.PostAt(clock_.Monotonic() + effect.after, [this, effect] {
      Take(PatienceEnded{effect.service, effect.number, IsAttended(state_, effect.service, connected_)});
    });
  }

  void OnOpen(const v1::Welcome& welcome) {
    connected_ = true;
    metrics_->SetLinkConnected(true, clock_.Now());
    for (const v1::ServicePolicy& policy : welcome.policies()) {
      const auto worker = workers_.find(policy.service());
      if (worker != workers_.end()) worker->second.retain_releases = policy.retain_releases();
    }
    for (auto& [name, worker] : workers_) {
      if (!worker.last_report.empty()) {
        v1::ConnectRequest message;
        if (message.ParseFromString(worker.last_report)) link_->Send(std::move(message));
      }
      Report(name);
    }
    SendRecords();
    Take(LinkOpened{});
  }

  void OnMessage(const v1::ConnectResponse& message) {
    if (message.has_task() && message.task().has_fault()) {
      RunFault(message.task());
    } else if (message.has_task()) {
      absl::StatusOr<Task> task = FromWire(message.task());
      if (task.ok()) {
        Take(TaskArrived{*std::move(task)});
        return;
      }
      TaskResult result;
      result.operation_id = message.task().operation_id();
      result.step_id = message.task().step_id();
      result.service = message.task().service();
      result.status = task.status();
      Send(result);
    } else if (message.has_result_stored()) {
      for (const std::string& step_id : message.result_stored().step_ids()) Take(ResultStored{step_id});
    } else if (message.has_operation_over()) {
      Take(OperationIsOver{message.operation_over().operation_id()});
    } else if (message.has_quarantine_list()) {
      TakeQuarantine(message.quarantine_list());
    } else if (message.has_host_record_stored()) {
      const absl::Status forgotten = ForgetRecord(options_.state_folder, message.host_record_stored().id());
      if (!forgotten.ok()) LogWarning("agent", "a record is sent again: ", forgotten.message());
    } else if (message.has_cancel_task()) {
      Take(CancelArrived{message.cancel_task().step_id()});
    }
  }

  // What was done here without the controller; acknowledged one by one.
  void SendRecords() {
    if (!connected_) return;
    for (v1::HostRecord& record : RecordsOwed(options_.state_folder)) {
      v1::ConnectRequest message;
      *message.mutable_host_record() = std::move(record);
      if (!link_->Send(std::move(message))) return;
    }
  }

  // Standings first: when this is cut short, the list is still the old one, and they are set again.
  void TakeQuarantine(const v1::QuarantineList& list) {
    background_.PostResult([this, list] {
      const std::vector<StandingChange> changes =
          StandingChanges(LoadQuarantine(options_.state_folder), FromWire(list));
      if (changes.empty()) return;
      for (const StandingChange& change : changes) {
        const auto worker = workers_.find(change.service);
        if (worker == workers_.end() || worker->second.service == nullptr) continue;
        Engine& engine = worker->second.service->engine();
        const absl::StatusOr<std::vector<Release>> releases = engine.Releases();
        if (!releases.ok()) return;
        for (const Release& release : *releases) {
          const bool differs = change.standing == Standing::kBad ? release.standing != Standing::kBad
                                                                 : release.standing == Standing::kBad;
          if (release.commit != change.commit || !differs) continue;
          const absl::Status set = engine.SetStanding(release.name, change.standing, change.reason);
          if (!set.ok()) LogWarning("agent", release.name, ": ", set.message());
        }
      }
      if (const absl::Status saved = SaveQuarantine(options_.state_folder, list); !saved.ok()) {
        LogWarning("agent", "the quarantine could not be kept: ", saved.message());
      }
      loop_.PostResult([this] {
        for (const std::string& name : names_) Report(name);
      });
    });
  }

  // Beside the steps' journal: a fault has a record of its own, and its end must never be refused.
  void RunFault(const v1::Task& task) {
    const auto found = workers_.find(task.service());
    v1::TaskResult refused;
    refused.set_operation_id(task.operation_id());
    refused.set_step_id(task.step_id());
    refused.set_service(task.service());
    if (found == workers_.end() || found->second.service == nullptr) {
      refused.set_code(static_cast<int>(absl::StatusCode::kFailedPrecondition));
      refused.set_message("this host has no such service that is whole. Nothing was changed");
    } else if (found->second.fault_tasks >= kMostFaultTasks) {
      refused.set_code(static_cast<int>(absl::StatusCode::kUnavailable));
      refused.set_message("the host is at work on the service; ask again");
    }
    if (refused.code() != 0) {
      v1::ConnectRequest message;
      *message.mutable_task_result() = refused;
      if (link_ != nullptr) link_->Send(std::move(message));
      return;
    }
    Service* const service = found->second.service.get();
    ++found->second.fault_tasks;
    service->step_waits() = true;
    found->second.loop->PostResult([this, service, task] {
      service->step_waits() = false;
      auto message = std::make_shared<v1::ConnectRequest>();
      *message->mutable_task_result() = RunFaultTask(task, service->faults());
      loop_.PostResult([this, message, name = task.service(), open = IsOpen(service->faults().record())] {
        Worker& worker = workers_.at(name);
        --worker.fault_tasks;
        worker.fault_is_open = open;
        if (link_ != nullptr) link_->Send(*message);
        if (open) {
          LookAtFault(name);
        } else {
          Report(name);
        }
      });
    });
  }

  // Reports at a fast pace while a fault is in; each report also ends what is over.
  void LookAtFault(const std::string& name) {
    Worker& worker = workers_.at(name);
    if (!worker.fault_is_open || worker.fault_look_waits) return;
    worker.fault_look_waits = true;
    Report(name);
    loop_.PostAt(clock_.Monotonic() + kFaultLook, [this, name] {
      workers_.at(name).fault_look_waits = false;
      LookAtFault(name);
    });
  }

  void LookAgain(const std::string& name, bool healthy) {
    Worker& worker = workers_.at(name);
    if (healthy) worker.look_again_after = kFirstLookAgain;
    if (healthy || worker.look_again_waits || worker.look_again_after >= kReportInterval) return;
    worker.look_again_waits = true;
    loop_.PostAt(clock_.Monotonic() + worker.look_again_after, [this, name] {
      workers_.at(name).look_again_waits = false;
      Report(name);
    });
    worker.look_again_after *= 2;
  }

  void ScheduleReports() {
    loop_.PostAt(clock_.Monotonic() + kReportInterval, [this] {
      for (const std::string& name : names_) Report(name);
      ScheduleReports();
    });
  }

  // Looks at a service on its own worker, between steps, and tells the controller.
  void Report(const std::string& name) {
    Worker& worker = workers_.at(name);
    if (worker.report_waits) return;
    if (worker.service == nullptr) {
      ReportNotRecovered(name, &worker);
      return;
    }
    worker.report_waits = true;
    const std::string open_operation = OpenOperation(state_, name);
    worker.loop->PostResult(
        [this, name, service = worker.service.get(), external = worker.external.get(), open_operation] {
          service->faults().Tick();
          auto message = std::make_shared<v1::ConnectRequest>();
          v1::ServiceReport* report = message->mutable_service_report();
          report->set_service(name);
          report->set_tree(config_.services().at(name).tree());
          report->set_open_operation_id(open_operation);
          *report->mutable_setup() = SetupOf(config_.services().at(name), options_.state_folder);
          *report->mutable_reported_at() = ToProto(clock_.Now());
          // First: what it captures belongs to the releases that are reported.
          absl::StatusOr<Current> current = service->engine().CheckDrift();
          if (!current.ok()) current = service->engine().GetCurrent();
          bool look_again = false;
          if (current.ok()) {
            // What a drill has broken is not what somebody deployed.
            const bool is_busy = !open_operation.empty() || IsOpen(service->faults().record());
            look_again = external->Look(*service, is_busy, &*current);
            report->set_current_release(current->release_name);
            report->set_current_commit(current->commit);
            report->set_current_version(current->version);
            report->set_drifted(current->drifted);
            metrics_->SetDrifted(name, current->drifted);
          }
          std::string unproved;
          std::map<Standing, uint64_t> standings = {{Standing::kUnknown, 0}, {Standing::kGood, 0}, {Standing::kBad, 0}};
          absl::Time last_proved = absl::InfinitePast();
          absl::Time last_captured = absl::InfinitePast();
          uint64_t content_bytes = 0;
          if (const absl::StatusOr<std::vector<Release>> releases = service->engine().Releases(); releases.ok()) {
            for (const Release& release : *releases) {
              ++standings[release.standing];
              last_proved = std::max(last_proved, release.last_proved_at);
              last_captured = std::max(last_captured, release.captured_at);
              content_bytes += release.content_bytes;
              if (static_cast<size_t>(report->releases_size()) < kReleasesReported) {
                *report->add_releases() = ToWire(release);
              }
              // The newest good one first; then, when all good ones are proved, nothing.
              if (unproved.empty() && release.standing == Standing::kGood &&
                  release.durability != Durability::kProved && release.durability != Durability::kCaptured) {
                unproved = release.name;
              }
            }
          }
          bool healthy = true;
          std::map<std::string, bool> by_kind;
          const std::vector<ProbeResult> probes = service->runner().ProbeOnce(&service->step_waits());
          if (service->step_waits()) {
            // What follows the step is reported after it.
            loop_.PostResult([this, name] { workers_.at(name).report_waits = false; });
            return;
          }
          for (const ProbeResult& probe : probes) {
            healthy = healthy && !CountsAgainst(probe);
            by_kind.try_emplace(probe.kind, true).first->second &= probe.passed;
            *report->add_probes() = ToWire(probe);
          }
          if (current.ok()) ExternalDeploys::Judge(*service, *current, healthy);
          report->set_verdict(healthy ? v1::VERDICT_HEALTHY : v1::VERDICT_UNHEALTHY);
          FillFaults(service->faults(), report);
          for (const auto& [kind, passed] : by_kind) metrics_->SetProbe(name, kind, passed);
          for (const auto& [standing, count] : standings) metrics_->SetReleases(name, standing, count);
          if (last_proved != absl::InfinitePast()) metrics_->OnReleaseProved(name, last_proved);
          loop_.PostResult([this, name, message, unproved, look_again, healthy, settle = external->settle(),
                            fault_is_open = IsOpen(service->faults().record()), last_captured, content_bytes,
                            stored = StoredBytes()] {
            Worker& reported = workers_.at(name);
            ReportStore(name, stored, content_bytes, message->mutable_service_report()->mutable_store());
            if (last_captured > last_captured_[name]) {
              last_captured_[name] = last_captured;
              metrics_->OnBackup(name, last_captured);
            }
            reported.fault_is_open = fault_is_open;
            if (look_again && settle < kReportInterval) {
              loop_.PostAt(clock_.Monotonic() + settle, [this, name] { Report(name); });
            }
            LookAgain(name, healthy);
            SendRecords();
            reported.report_waits = false;
            reported.last_report = message->SerializeAsString();
            if (link_ != nullptr) link_->Send(*message);
            if (!unproved.empty()) ProveInBackground(name, unproved);
          });
        });
  }

  void ReportStore(const std::string& name, uint64_t stored_bytes, uint64_t content_bytes, v1::StoreUsage* store) {
    workers_.at(name).content_bytes = content_bytes;
    uint64_t all = 0;
    for (const auto& [other, worker] : workers_) all += worker.content_bytes;
    store->set_stored_bytes(stored_bytes);
    store->set_content_bytes(all);
    metrics_->SetStore(stored_bytes, all);
  }

  void ReportNotRecovered(const std::string& name, Worker* worker) {
    v1::ConnectRequest message;
    v1::ServiceReport* report = message.mutable_service_report();
    report->set_service(name);
    report->set_tree(config_.services().at(name).tree());
    *report->mutable_reported_at() = ToProto(clock_.Now());
    ProbeResult probe;
    probe.name = probe.kind = "recovery";
    probe.expected = "the tree is whole";
    probe.observed = std::string(worker->not_recovered.message());
    *report->add_probes() = ToWire(probe);
    report->set_verdict(v1::VERDICT_UNHEALTHY);
    metrics_->SetProbe(name, probe.kind, false);
    worker->last_report = message.SerializeAsString();
    if (link_ != nullptr) link_->Send(std::move(message));
  }

  // What all packs of the store take.
  uint64_t StoredBytes() const {
    uint64_t bytes = 0;
    std::error_code error;
    for (std::filesystem::directory_iterator file(options_.state_folder + "/store/packs", error), end;
         !error && file != end; file.increment(error)) {
      std::error_code gone;
      const uintmax_t size = file->file_size(gone);
      if (!gone) bytes += size;
    }
    return bytes;
  }

  void LookAtCertificate() {
    const absl::StatusOr<std::string> certificate = ReadFile(options_.state_folder + "/identity/agent.crt");
    if (!certificate.ok()) return;
    if (const absl::StatusOr<absl::Time> end = CertificateExpiry(*certificate); end.ok()) {
      metrics_->SetCertificateExpiry(*end);
    }
  }

  // A new release is proved right after it was taken; old ones are thinned out after that.
  void ProveInBackground(const std::string& name, const std::string& release) {
    Worker& worker = workers_.at(name);
    if (worker.proof_waits) return;
    worker.proof_waits = true;
    background_.PostResult([this, name, release, service = worker.service.get(), retain = worker.retain_releases] {
      const absl::StatusOr<ProofReport> proof = service->engine().Prove(release);
      if (!proof.ok()) {
        LogWarning("agent", release, " could not be proved now: ", proof.status().message());
      } else if (!proof->findings.empty()) {
        LogError("agent", release, " is damaged: ", proof->findings[0]);
      }
      for (const std::string& healed : proof.ok() ? proof->healed : std::vector<std::string>()) {
        LogWarning("agent", release, ": ", healed);
      }
      if (retain > 0) Prune(name, service, retain);
      const bool try_next = proof.ok();
      loop_.PostResult([this, name, try_next] {
        workers_.at(name).proof_waits = false;
        if (try_next) Report(name);
      });
    });
  }

  void Prune(const std::string& name, Service* service, uint32_t retain) {
    const absl::StatusOr<PruneReport> pruned = service->engine().Prune(retain, {});
    if (!pruned.ok()) {
      LogWarning("agent", name, ": old releases stay for now: ", pruned.status().message());
    } else {
      OnPruned(name, pruned->removed.size(), pruned->bytes_freed);
    }
  }

  // On any thread.
  void OnPruned(const std::string& name, uint64_t removed, uint64_t freed_bytes) {
    metrics_->OnPruned(name, removed, freed_bytes);
    if (removed > 0) LogInfo("agent", name, ": removed ", removed, " old releases, freed ", FormatBytes(freed_bytes));
  }

  const v1::AgentConfig& config_;
  const DaemonOptions options_;
  Clock& clock_;
  std::vector<std::string> names_;
  std::unique_ptr<AgentMetrics> metrics_;
  std::map<std::string, Worker> workers_;
  std::map<std::string, absl::Time> last_captured_;  // touched on the loop; absent: the year 1970
  // What follows is touched on the loop only, once it runs.
  AgentState state_;
  std::unique_ptr<AgentJournal> journal_;
  std::unique_ptr<AgentLinkClient> link_;
  bool connected_ = false;
  EventLoop loop_;
  EventLoop background_;
};

}  // namespace

absl::Status RunDaemon(const v1::AgentConfig& config, const DaemonOptions& options, Clock& clock) {
  return Daemon(config, options, clock).Run();
}

}  // namespace rb::agent
