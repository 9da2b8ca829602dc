#include "tests/sim/agent.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/sim/monitor.h"

namespace rb::sim {
namespace {

// A host's fibers are used again by the next world on this thread: a stack costs more than a world does.
std::vector<std::unique_ptr<Fiber>>& SpareFibers() {
  thread_local std::vector<std::unique_ptr<Fiber>> spare;
  return spare;
}

std::unique_ptr<Fiber> GetFiber() {
  std::vector<std::unique_ptr<Fiber>>& spare = SpareFibers();
  if (spare.empty()) return std::make_unique<Fiber>();
  std::unique_ptr<Fiber> fiber = std::move(spare.back());
  spare.pop_back();
  return fiber;
}

// Most hosts are alike; a few are slow, or very slow.
Nanos DrawSlowness(Random& random) {
  const uint64_t drawn = random.Below(20);
  return drawn < 15 ? 1 : drawn < 19 ? 8 : 200;
}

}  // namespace

// ---- a service

SimService::SimService(World& world, SimAgent& agent, int number)
    : world_(world),
      agent_(agent),
      number_(number),
      name_(World::ServiceName(number)),
      engine_(name_, disk_, *this),
      supervisor_(unit_, *this),
      commits_(*this),
      clock_(*this),
      fiber_(GetFiber()) {
  const Scenario& scenario = world.scenario();
  Random& random = world.random();
  for (int version = 1; version <= kVersions; ++version) {
    healthy_[version] = !random.Percent(scenario.unhealthy_percent);
  }
  disk_.tree.fill(kFirstVersion);
  disk_.flushed = disk_.tree;
  for (int version = 1; version <= kFirstVersion; ++version) {
    Disk::StoredRelease stored;
    stored.version = version;
    stored.damaged = random.PerMille(scenario.fail_per_mille);
    agent::Release& release = stored.release;
    release.name = ReleaseOf(name_, version);
    release.manifest_digest = absl::StrCat("d", version);
    release.service = name_;
    release.commit = CommitOf(version);
    release.version = absl::StrCat("v", version);
    release.captured_at = absl::UnixEpoch() + absl::Hours(version);
    release.durability = agent::Durability::kProved;
    release.standing = version == kFirstVersion ? agent::Standing::kUnknown : agent::Standing::kGood;
    release.entry_count = kFiles + 1;
    disk_.releases.push_back(std::move(stored));
  }
  disk_.current.release_name = ReleaseOf(name_, kFirstVersion);
  disk_.current.commit = CommitOf(kFirstVersion);
  disk_.current.version = absl::StrCat("v", kFirstVersion);
  unit_.runs = true;
}

absl::Time SimService::ServiceClock::Now() { return service_.world_.Now(service_.agent_.host()); }

void SimService::ServiceClock::Sleep(absl::Duration duration) {
  // Polls are counted in simulated time, and cost real time: a deadline is worth about twenty of them.
  const Nanos least = absl::ToInt64Nanoseconds(service_.world_.scenario().verify_deadline) / 20;
  service_.WaitFor(std::max<Nanos>(absl::ToInt64Nanoseconds(duration), least));
}

void SimService::WaitFor(Nanos delay) {
  world_.After(delay, [this, process = agent_.process_] {
    if (process == agent_.process_ && agent_.up_) fiber_->Resume();
  });
  fiber_->Wait();
}

void SimService::Work(Nanos typical) {
  if (agent_.booting_) {
    if (agent_.boot_fuse_ > 0 && --agent_.boot_fuse_ == 0) throw Killed{};
    return;
  }
  Random& random = world_.random();
  if (world_.faults() && random.PerMille(world_.scenario().crash_in_step_per_mille)) {
    const bool power = random.Percent(50);
    const Nanos away = random.Between(100 * kMillisecond, 60 * kSecond);
    world_.After(0, [this, power, away, process = agent_.process_] {
      if (process == agent_.process_) agent_.Crash(power, away);
    });
  }
  WaitFor(random.Between(typical / 2, typical * 2) * agent_.slowness_);
}

bool SimService::Fails(absl::string_view what) {
  if (!world_.faults() || !world_.random().PerMille(world_.scenario().fail_per_mille)) return false;
  world_.Log(agent_.name_, " ", name_, ": FAULT: ", what, " fails");
  return true;
}

bool SimService::DiskIsFull() { return agent_.disk_full_; }

bool SimService::IsHealthy(int version) {
  if (!healthy_[version]) return false;
  return !(world_.faults() && world_.random().PerMille(world_.scenario().flaky_per_mille));
}

void SimService::OnPrepared(const std::string& operation_id) {
  world_.monitor().OnPrepared(agent_.host_, number_, operation_id);
}
void SimService::OnSwapBegins(const std::string& operation_id) {
  world_.Log(agent_.name_, " ", name_, ": swap of ", operation_id, " begins");
  world_.monitor().OnSwapBegins(agent_.host_, number_, operation_id);
}
void SimService::OnUndoBegins(const std::string& operation_id) {
  world_.Log(agent_.name_, " ", name_, ": undo of ", operation_id, " begins");
  world_.monitor().OnUndoBegins(agent_.host_, number_, operation_id);
}
void SimService::OnKept(const std::string& operation_id) {
  world_.Log(agent_.name_, " ", name_, ": ", operation_id, " is kept");
}
void SimService::OnServiceStarts() {
  world_.Log(agent_.name_, " ", name_, ": starts on version ", disk_.Version());
  world_.monitor().OnServiceStarts(agent_.host_, number_);
}

bool SimService::in_order() const {
  for (int version = 1; version <= kVersions; ++version) {
    if (!healthy_[version]) return false;
  }
  return std::none_of(disk_.releases.begin(), disk_.releases.end(),
                      [](const Disk::StoredRelease& stored) { return stored.damaged; });
}

void SimService::OpenRunner() {
  agent::ServicePorts ports;
  ports.service = name_;
  ports.engine = &engine_;
  ports.supervisor = &supervisor_;
  ports.commits = &commits_;
  ports.probes.push_back(std::make_unique<SimProbe>(disk_, unit_, *this));
  ports.clock = &clock_;
  runner_ = std::make_unique<agent::StepRunner>(std::move(ports));
}

void SimService::Post(agent::Task task) {
  waiting_.push_back(std::move(task));
  world_.After(world_.random().Between(0, kMillisecond), [this, process = agent_.process_] {
    if (process == agent_.process_ && agent_.up_) BeginNext();
  });
}

void SimService::BeginNext() {
  if (fiber_->running() || waiting_.empty()) return;
  agent::Task task = std::move(waiting_.front());
  waiting_.pop_front();
  cancelled_ = false;
  world_.Log(agent_.name_, " ", name_, ": runs ", task.step_id);
  world_.monitor().OnStepBegins(agent_.host_, task);
  fiber_->Start([this, task = std::move(task)] {
    static const agent::StepRunner::ProgressSink* const quiet =
        new agent::StepRunner::ProgressSink([](agent::Stage /*stage*/, const std::string& /*detail*/) {});
    agent::TaskResult result = runner_->Run(task, *quiet, cancelled_);
    world_.After(0, [this, task, result = std::move(result), process = agent_.process_] {
      if (process != agent_.process_ || !agent_.up_) return;
      world_.Log(agent_.name_, " ", name_, ": ended ", task.step_id, ", ", result.status.ToString(), ", state ",
                 static_cast<int>(result.state), ", verdict ", static_cast<int>(result.verdict));
      world_.monitor().OnStepEnded(agent_.host_, task, result);
      agent_.Take(agent::StepEnded{result});
      if (process == agent_.process_ && agent_.up_) BeginNext();
    });
  });
}

void SimService::Die() {
  fiber_->Kill();
  waiting_.clear();
  runner_.reset();
  cancelled_ = false;
}

// ---- the agent

SimAgent::SimAgent(World& world, int host)
    : world_(world), host_(host), name_(World::HostName(host)), slowness_(DrawSlowness(world.random())) {
  for (int service = 0; service < world.scenario().services; ++service) {
    names_.emplace_back(World::ServiceName(service));
    services_.push_back(std::make_unique<SimService>(world, *this, service));
  }
}

SimAgent::~SimAgent() {
  for (const std::unique_ptr<SimService>& service : services_) {
    service->Die();
    SpareFibers().push_back(std::move(service->fiber_));
  }
}

agent::AgentState SimAgent::ReadJournal() const {
  agent::AgentState state;
  for (const agent::AgentEvent& event : journal_) state = agent::Decide(std::move(state), event, names_).state;
  return state;
}

bool SimAgent::idle() const {
  if (!up_) return false;
  for (const auto& [name, service] : state_.services) {
    if (service.running.has_value() || service.next.has_value() || !service.looking.empty()) return false;
  }
  return true;
}

bool SimAgent::attended() const {
  return std::none_of(state_.services.begin(), state_.services.end(),
                      [](const auto& service) { return service.second.unattended.has_value(); });
}

void SimAgent::Boot() {
  Random& random = world_.random();
  ++process_;
  booting_ = true;
  boot_fuse_ = world_.faults() && random.PerMille(int64_t{4} * world_.scenario().crash_in_step_per_mille)
                   ? static_cast<int>(random.Between(1, 8))
                   : 0;
  bool recovered = true;
  bool killed = false;
  try {
    for (const std::unique_ptr<SimService>& service : services_) {
      if (world_.bug() == Bug::kRecoverySkipped) break;
      const absl::StatusOr<std::string> said = service->engine_.Recover();
      recovered = recovered && said.ok();
      if (said.ok() && !said->empty()) world_.Log(name_, " ", service->name_, ": ", *said);
    }
  } catch (const Killed&) {
    killed = true;
  }
  booting_ = false;
  if (killed || !recovered) {
    world_.Log(name_, killed ? ": dies while it starts" : ": cannot recover now");
    if (killed) {
      for (const std::unique_ptr<SimService>& service : services_) {
        if (random.Percent(30)) service->disk_.CutPower(random);
      }
    }
    world_.After(5 * kSecond, [this, process = process_] {
      if (process == process_ && !up_) Boot();
    });
    return;
  }
  up_ = true;
  world_.Log(name_, ": starts, process ", process_);
  for (const std::unique_ptr<SimService>& service : services_) {
    service->OpenRunner();
    // After a power cut the system starts what should run, once the tree is recovered.
    if (!service->unit_.runs && service->unit_.started_at < 0) {
      service->OnServiceStarts();
      service->unit_.runs = true;
      service->unit_.started_at = world_.now();
    }
  }
  state_ = ReadJournal();
  if (Fingerprint(state_) != Fingerprint(replayed_)) {
    world_.Violate("the journal gives the same state again", absl::StrCat(name_, " reads another state than it kept"));
    return;
  }
  world_.monitor().OnAgentReplayed(host_, state_);
  const uint64_t process = process_;
  Take(agent::Restarted{});
  if (process == process_ && up_) world_.Dial(host_, process_);
}

void SimAgent::Crash(bool power, Nanos away) {
  if (!up_) return;
  world_.Log(name_, power ? ": FAULT: power cut" : ": FAULT: killed", ", back in ", away / kMillisecond, " ms");
  up_ = false;
  journal_closed_ = false;
  for (const std::unique_ptr<SimService>& service : services_) {
    service->Die();
    if (power) {
      service->disk_.CutPower(world_.random());
      service->unit_.runs = false;
      service->unit_.started_at = -1;
    }
  }
  state_ = agent::AgentState();
  world_.BreakLink(host_, power);
  world_.After(away, [this, process = process_] {
    if (process == process_ && !up_) Boot();
  });
}

void SimAgent::Mend() {
  slowness_ = 1;
  for (const std::unique_ptr<SimService>& service : services_) {
    std::fill(std::begin(service->healthy_), std::end(service->healthy_), true);
    for (Disk::StoredRelease& stored : service->disk_.releases) stored.damaged = false;
  }
}

bool SimAgent::DiesHere(absl::string_view place) {
  if (!world_.faults() || !world_.random().PerMille(world_.scenario().crash_per_mille)) return false;
  world_.Log(name_, ": FAULT: dies ", place);
  Crash(world_.random().Percent(30), world_.random().Between(100 * kMillisecond, 60 * kSecond));
  return true;
}

bool SimAgent::Append(const agent::AgentEvent& event) {
  // A journal that has failed once is closed until it is opened anew.
  if (disk_full_) journal_closed_ = true;
  if (journal_closed_) return false;
  if (world_.bug() == Bug::kAgentRecordLost && world_.random().Percent(2)) return true;
  journal_.push_back(event);
  return true;
}

void SimAgent::Fold() {
  for (; folded_ < journal_.size(); ++folded_) {
    replayed_ = agent::Decide(std::move(replayed_), journal_[folded_], names_).state;
  }
}

void SimAgent::Take(const agent::AgentEvent& event) {
  const bool planted_early = world_.bug() == Bug::kAgentActsBeforePersisting;
  const auto* arrived = std::get_if<agent::TaskArrived>(&event);
  agent::AgentEvent changed;
  const agent::AgentEvent* decided = &event;
  if (arrived != nullptr && world_.bug() == Bug::kStaleFencingAccepted) {
    agent::TaskArrived forged = *arrived;
    for (const auto& [name, service] : state_.services) {
      if (name == forged.task.service) {
        forged.task.fencing_number = std::max(forged.task.fencing_number, service.highest_fencing_number);
      }
    }
    changed = std::move(forged);
    decided = &changed;
  }
  if (arrived != nullptr && world_.bug() == Bug::kStepRunTwice) {
    SimService& asked = service(world_.ServiceNumber(arrived->task.service));
    for (const agent::TaskResult& result : state_.services[asked.name()].ended) {
      if (result.step_id == arrived->task.step_id) asked.Post(arrived->task);
    }
  }
  const bool journalled = agent::IsJournalled(state_, *decided);
  const bool fails = journalled && (disk_full_ || journal_closed_);
  agent::AgentDecision decision = agent::Decide(fails || planted_early ? state_ : std::move(state_), *decided, names_);
  const uint64_t process = process_;
  if (planted_early) {
    for (const agent::AgentEffect& effect : decision.effects) Carry(effect);
  }
  if (journalled) {
    if (!fails && DiesHere("before it writes down")) return;
    if (arrived != nullptr) world_.monitor().OnTaskArrived(host_, arrived->task, !fails);
    if (!Append(*decided)) {
      world_.Log(name_, ": cannot keep its journal");
      if (arrived != nullptr && agent::BeginsSomething(decision)) {
        agent::TaskResult result;
        result.operation_id = arrived->task.operation_id;
        result.step_id = arrived->task.step_id;
        result.service = arrived->task.service;
        result.status = absl::ResourceExhaustedError("the agent cannot keep its journal; nothing was changed");
        Carry(agent::SendResult{std::move(result)});
      } else if (arrived != nullptr) {
        for (const agent::AgentEffect& effect : decision.effects) Carry(effect);
      }
      return;
    }
    Fold();
    if (DiesHere("after it has written down")) return;
  }
  state_ = std::move(decision.state);
  CheckReplay();
  if (planted_early) return;
  for (const agent::AgentEffect& effect : decision.effects) {
    Carry(effect);
    if (DiesHere("between effects") || process != process_) return;
  }
}

void SimAgent::CheckReplay() {
  if (Fingerprint(state_) != Fingerprint(replayed_)) {
    world_.Violate("the journal gives the same state again",
                   absl::StrCat(name_, " believes something that its journal does not say"));
  }
}

void SimAgent::Carry(const agent::AgentEffect& effect) {
  if (const auto* run = std::get_if<agent::RunStep>(&effect)) {
    service(world_.ServiceNumber(run->task.service)).Post(run->task);
  } else if (const auto* cancel = std::get_if<agent::CancelRunning>(&effect)) {
    service(world_.ServiceNumber(cancel->service)).cancelled_ = true;
  } else if (const auto* send = std::get_if<agent::SendResult>(&effect)) {
    bool recorded = false;
    const auto found = replayed_.services.find(send->result.service);
    const auto live = state_.services.find(send->result.service);
    if (live != state_.services.end()) {
      for (const agent::TaskResult& result : live->second.ended) {
        recorded = recorded || result.step_id == send->result.step_id;
      }
    }
    if (recorded) {
      bool written = false;
      for (const agent::TaskResult& result : found->second.ended) {
        written = written || result.step_id == send->result.step_id;
      }
      if (!written) {
        world_.Violate("nothing is sent that is not written down",
                       absl::StrCat(name_, " sent the result of ", send->result.step_id));
      }
    }
    world_.monitor().OnResultSent(host_, send->result, recorded);
    world_.Send(host_, ToController(send->result));
  } else if (const auto* arm = std::get_if<agent::ArmPatience>(&effect)) {
    world_.After(absl::ToInt64Nanoseconds(arm->after), [this, arm = *arm, process = process_] {
      if (process != process_ || !up_) return;
      const bool attended = agent::IsAttended(state_, arm.service, world_.IsOpenAtAgent(host_));
      if (attended) {
        SendReports();
      } else {
        world_.Log(name_, " ", arm.service, ": patience ", arm.number, " ends");
      }
      Take(agent::PatienceEnded{arm.service, arm.number, attended});
    });
  }
}

void SimAgent::OnOpen(uint64_t process) {
  if (process != process_ || !up_) return;
  world_.Log(name_, ": connected");
  SendReports();
  Take(agent::LinkOpened{});
}

// In life also every half a minute; here when a timer looks, so that a world can come to rest.
void SimAgent::SendReports() {
  for (const auto& [name, service] : state_.services) {
    if (service.unattended.has_value()) world_.Send(host_, ToController(Report{service.unattended->operation_id}));
  }
}

void SimAgent::OnMessage(const ToAgent& message) {
  if (!up_) return;
  if (const auto* task = std::get_if<agent::Task>(&message)) {
    world_.Log(name_, ": gets ", task->step_id, " of ", task->fencing_number);
    Take(agent::TaskArrived{*task});
  } else if (const auto* stored = std::get_if<ResultStoredMessage>(&message)) {
    world_.Log(name_, ": hears that ", stored->step_id, " is stored");
    Take(agent::ResultStored{stored->step_id});
  } else if (const auto* over = std::get_if<OverMessage>(&message)) {
    world_.Log(name_, ": hears that ", over->operation_id, " is over");
    Take(agent::OperationIsOver{over->operation_id});
  } else if (const auto* cancel = std::get_if<CancelMessage>(&message)) {
    world_.Log(name_, ": is to stop ", cancel->step_id);
    Take(agent::CancelArrived{cancel->step_id});
  }
}

}  // namespace rb::sim
