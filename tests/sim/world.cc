#include "tests/sim/world.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "tests/sim/agent.h"
#include "tests/sim/controller.h"
#include "tests/sim/monitor.h"

namespace rb::sim {
namespace {

constexpr Nanos kFirstWait = 100 * kMillisecond;
constexpr Nanos kLongestWait = 5 * kSecond;
// How long after the last fault everything has to have ended: the deadlines of every step of two operations that were
// answered by nobody, and room.
// What an operator asks for after the operation was accepted.
enum { kAborts, kPauses, kResumes, kApproves };

constexpr Nanos kPatience = 8 * kHour;
// A world that does not come to rest is broken.
constexpr uint64_t kMostEvents = 200'000;

}  // namespace

absl::string_view NameOf(Bug bug) {
  switch (bug) {
    case Bug::kNone:
      return "none";
    case Bug::kCommitBeforeAllPrepared:
      return "commit sent before all have prepared";
    case Bug::kWaveGateSkipped:
      return "a wave does not wait for the one before";
    case Bug::kControllerActsBeforePersisting:
      return "the controller acts before it writes down";
    case Bug::kAgentActsBeforePersisting:
      return "the agent acts before it writes down";
    case Bug::kStaleFencingAccepted:
      return "a stale fencing number is accepted";
    case Bug::kStepRunTwice:
      return "a repeated step is run again";
    case Bug::kLockReleasedEarly:
      return "the lock is given back before the end";
    case Bug::kControllerRecordLost:
      return "the controller's journal loses a record";
    case Bug::kAgentRecordLost:
      return "the agent's journal loses a record";
    case Bug::kAcknowledgedBeforeStored:
      return "a result is acknowledged before it is stored";
    case Bug::kRecoverySkipped:
      return "an agent does not recover when it starts";
    case Bug::kDeadlineForgotten:
      return "steps have no deadline";
    case Bug::kFencingNumberUsedTwice:
      return "a fencing number is used twice";
    case Bug::kDeadlineByWallClock:
      return "deadlines go by a clock that may be set";
  }
  return "";
}

World::World(uint64_t seed, Bug bug, bool keep_log) : seed_(seed), bug_(bug), keep_log_(keep_log), random_(seed) {}
World::~World() = default;

// ---- what kind of world it is

void World::Draw() {
  Random& random = random_;
  scenario_.hosts = static_cast<int>(random.Between(1, 5));
  scenario_.services = random.Percent(15) ? 2 : 1;
  if (random.Percent(50)) {
    scenario_.wave.count = static_cast<uint32_t>(random.Between(1, scenario_.hosts));
  } else {
    scenario_.wave.percent = random.Percent(50) ? 50 : 100;
  }
  scenario_.on_failure = static_cast<controller::OnFailure>(random.Below(3));
  scenario_.verify_deadline = absl::Seconds(random.Between(2, 60));
  if (random.Percent(30)) scenario_.verify_soak = absl::Seconds(random.Between(1, 20));
  const uint64_t length = random.Below(20);
  const Nanos longest = length < 11 ? 20 * kSecond : length < 16 ? 3 * kMinute : length < 18 ? kHour : 6 * kHour;
  // A few worlds are without any fault: what should work does.
  scenario_.faults_end = random.Percent(4) ? 0 : random.Between(longest / 4, longest);
  if (random.Percent(30)) scenario_.latency = random.Between(kMillisecond, 300 * kMillisecond);
  scenario_.datagrams = scenario_.faults_end > 0 && random.Percent(40);
  if (scenario_.datagrams) {
    scenario_.drop_per_mille = static_cast<int>(random.Below(3) * random.Below(40));
    scenario_.double_per_mille = static_cast<int>(random.Below(3) * random.Below(100));
    scenario_.late_per_mille = static_cast<int>(random.Below(3) * random.Below(50));
    scenario_.latest = random.Percent(70) ? 30 * kSecond : random.Percent(50) ? 10 * kMinute : 2 * kHour;
    scenario_.stray_percent = random.Percent(50) ? static_cast<int>(random.Between(1, 60)) : 0;
  }
  if (random.Percent(40)) scenario_.crash_per_mille = static_cast<int>(random.Between(1, 20));
  if (random.Percent(40)) scenario_.crash_in_step_per_mille = static_cast<int>(random.Between(1, 15));
  if (random.Percent(40)) scenario_.fail_per_mille = static_cast<int>(random.Between(1, 40));
  if (random.Percent(30)) scenario_.unhealthy_percent = static_cast<int>(random.Between(5, 40));
  if (random.Percent(30)) scenario_.flaky_per_mille = static_cast<int>(random.Between(5, 400));

  controller::Environment prod;
  prod.name = "prod";
  prod.order = 1;
  prod.gate_approval = random.Percent(10);
  fleet_.environments.push_back(prod);
  for (int number = 0; number < scenario_.services; ++number) {
    controller::FleetService service;
    service.name = std::string(ServiceName(number));
    for (int host = 0; host < scenario_.hosts; ++host) service.hosts["prod"].push_back(HostName(host));
    service.wave = scenario_.wave;
    if (random.Percent(20)) service.max_unavailable.count = 1;
    service.on_failure = scenario_.on_failure;
    service.verify_deadline = scenario_.verify_deadline;
    service.verify_soak = scenario_.verify_soak;
    fleet_.services[service.name] = service;
  }
  if (!keep_log_) return;
  Log("seed ", seed_, ": ", scenario_.hosts, " hosts, ", scenario_.services, " services, waves of ",
      scenario_.wave.count > 0 ? absl::StrCat(scenario_.wave.count) : absl::StrCat(scenario_.wave.percent, "%"),
      ", on failure ", static_cast<int>(scenario_.on_failure), ", verify ",
      absl::FormatDuration(scenario_.verify_deadline), " soak ", absl::FormatDuration(scenario_.verify_soak),
      ", faults until ", scenario_.faults_end / kMillisecond, " ms, ",
      scenario_.datagrams ? "messages on their own" : "streams", ", latency ", scenario_.latency / kMillisecond,
      " ms; per mille: drop ", scenario_.drop_per_mille, ", double ", scenario_.double_per_mille, ", stray ",
      scenario_.stray_percent, " %, late ", scenario_.late_per_mille, ", crash ", scenario_.crash_per_mille,
      ", crash in a step ", scenario_.crash_in_step_per_mille, ", fail ", scenario_.fail_per_mille, ", flaky ",
      scenario_.flaky_per_mille, "; unhealthy ", scenario_.unhealthy_percent, " %");
}

void World::DrawFaults() {
  const Nanos end = scenario_.faults_end;
  if (end == 0) return;
  Random& random = random_;
  const auto when = [&] { return random.Between(0, end); };
  const auto some = [&](int most) { return random.Percent(40) ? random.Between(1, most) : 0; };
  const auto how_long = [&](Nanos typical) {
    return random.Percent(85) ? random.Between(typical / 10, typical) : random.Between(typical, typical * 60);
  };
  for (int64_t n = some(3); n > 0; --n) {
    const int host = static_cast<int>(random.Below(static_cast<uint64_t>(scenario_.hosts)));
    const bool power = random.Percent(40);
    const Nanos away = how_long(20 * kSecond);
    After(when(), [this, host, power, away] { agent(host).Crash(power, away); });
  }
  for (int64_t n = some(2); n > 0; --n) {
    const Nanos away = how_long(20 * kSecond);
    After(when(), [this, away] { controller_->Crash(away); });
  }
  for (int64_t n = some(3); n > 0; --n) {
    const int host = static_cast<int>(random.Below(static_cast<uint64_t>(scenario_.hosts)));
    const Nanos begin = when();
    const Nanos length = how_long(30 * kSecond);
    After(begin, [this, host] {
      Log(HostName(host), ": FAULT: cut off");
      links_[static_cast<size_t>(host)].cut_off = true;
      BreakLink(host, true);
    });
    After(begin + length, [this, host] {
      Log(HostName(host), ": reachable again");
      links_[static_cast<size_t>(host)].cut_off = false;
    });
  }
  for (int64_t n = some(3); n > 0; --n) {
    const int host = static_cast<int>(random.Below(static_cast<uint64_t>(scenario_.hosts)));
    After(when(), [this, host] {
      Log(HostName(host), ": FAULT: its connection breaks");
      BreakLink(host, random_.Percent(30));
    });
  }
  if (random.Percent(20)) {
    const int host = static_cast<int>(random.Below(static_cast<uint64_t>(scenario_.hosts)));
    const Nanos begin = when();
    After(begin, [this, host] {
      Log(HostName(host), ": FAULT: its disk is full");
      agent(host).SetDiskFull(true);
    });
    After(begin + how_long(20 * kSecond), [this, host] { agent(host).SetDiskFull(false); });
  }
  if (random.Percent(10)) {
    const Nanos begin = when();
    After(begin, [this] {
      Log("controller: FAULT: its store is full");
      controller_->SetStoreFull(true);
    });
    After(begin + how_long(10 * kSecond), [this] { controller_->SetStoreFull(false); });
  }
  for (int64_t n = some(3); n > 0; --n) {
    const int host = random.Percent(50) ? kController : static_cast<int>(random.Below(links_.size()));
    const Nanos far[] = {kSecond, kMinute, kHour, kDay, 1000 * kDay};
    const Nanos most = far[random.Below(std::size(far))];
    const Nanos jump = random.Between(-most, most);
    After(when(), [this, host, jump] {
      Log(host == kController ? "controller" : HostName(host), ": FAULT: its clock jumps by ", jump / kMillisecond,
          " ms");
      clock_offsets_[static_cast<size_t>(host - kController)] += absl::Nanoseconds(jump);
    });
  }
}

controller::OperationSpec World::DrawSpec(int service) {
  Random& random = random_;
  controller::OperationSpec spec;
  spec.environment = "prod";
  spec.service = std::string(ServiceName(service));
  spec.reason = "it broke";
  const uint64_t kind = random.Below(20);
  using Kind = controller::TargetReference::Kind;
  if (kind < 12) {
    spec.kind = controller::OperationKind::kRollback;
    const uint64_t target = random.Below(4);
    if (target == 1) spec.target.kind = Kind::kPrevious;
    if (target == 2) {
      spec.target.kind = Kind::kNamed;
      spec.target.name = absl::StrCat("v", random.Between(1, kVersions));
    }
    if (random.Percent(15)) spec.method = controller::Method::kGit;
  } else if (kind < 16) {
    spec.kind = controller::OperationKind::kDeploy;
    spec.target.kind = Kind::kNamed;
    spec.target.name = absl::StrCat("v", random.Between(1, kVersions));
  } else if (kind < 18 && !accepted_.empty()) {
    spec.kind = controller::OperationKind::kUndo;
    spec.undo_operation_id = accepted_[random.Below(accepted_.size())];
  } else {
    constexpr controller::OperationKind kOthers[] = {controller::OperationKind::kBackup,
                                                     controller::OperationKind::kVerification,
                                                     controller::OperationKind::kPrune};
    spec.kind = kOthers[random.Below(std::size(kOthers))];
  }
  spec.hold_on_failure = random.Percent(10);
  if (random.Percent(10)) {
    spec.force = true;
    spec.target.force = true;
  }
  if (random.Percent(15))
    spec.hosts.push_back(HostName(static_cast<int>(random.Below(static_cast<uint64_t>(scenario_.hosts)))));
  return spec;
}

void World::DrawOperator() {
  Random& random = random_;
  // The first comes before most faults; rivals come at any time.
  const int64_t count = 1 + (random.Percent(60) ? random.Between(1, 3) : 0);
  for (int64_t n = 0; n < count; ++n) {
    const Nanos when = n == 0 ? kSecond : random.Between(kSecond, std::max<Nanos>(scenario_.faults_end, 30 * kSecond));
    After(when, [this] {
      Request request;
      request.spec = DrawSpec(random_.Percent(20) && scenario_.services > 1 ? 1 : 0);
      request.key = absl::StrCat("key-", requests_.size() + 1);
      if (random_.Percent(15)) request.later.emplace_back(kAborts, random_.Between(0, 10 * kSecond));
      if (random_.Percent(15)) {
        request.later.emplace_back(kPauses, random_.Between(0, 5 * kSecond));
        if (random_.Percent(80)) request.later.emplace_back(kResumes, random_.Between(0, 20 * kMinute));
      }
      if (fleet_.environments[0].gate_approval && random_.Percent(80)) {
        request.later.emplace_back(kApproves, random_.Between(0, random_.Percent(80) ? kMinute : 3 * kHour));
      }
      requests_.push_back(std::move(request));
      Ask(requests_.size() - 1);
    });
  }
}

void World::Ask(size_t number) {
  Request& request = requests_[number];
  if (request.answered || request.tries >= 5) return;
  ++request.tries;
  Log("operator: asks, ", request.key, ", kind ", static_cast<int>(request.spec.kind), " of ", request.spec.service,
      " ", request.spec.target.name, request.spec.undo_operation_id);
  // Whoever gets no answer asks again, with the same key.
  After(40 * kSecond, [this, number] { Ask(number); });
  if (!controller_->up()) return;
  controller_->Start(request.spec, request.key, [this, number](const SimController::Answer& answer) {
    Request& asked = requests_[number];
    if (asked.answered) return;
    asked.answered = true;
    if (answer.id.empty()) {
      ++outcome_.refusals;
      Log("operator: ", asked.key, " is refused: ", answer.refusal.message, " ", answer.refusal.holder_operation_id);
      return;
    }
    Log("operator: ", asked.key, " is ", answer.id);
    accepted_.push_back(answer.id);
    monitor_->OnAnswered(answer.id, asked.key);
    for (const auto& [what, after] : asked.later) {
      After(after, [this, id = answer.id, what = what] { AskLater(id, what, 5); });
    }
  });
}

// ---- time

void World::After(Nanos delay, Action action) {
  size_t slot = actions_.size();
  if (free_actions_.empty()) {
    actions_.push_back(std::move(action));
  } else {
    slot = free_actions_.back();
    free_actions_.pop_back();
    actions_[slot] = std::move(action);
  }
  queue_.push_back({now_ + delay, ++order_, slot});
  std::push_heap(queue_.begin(), queue_.end(), Later());
}

void World::Append(const std::string& text) {
  absl::StrAppendFormat(&outcome_.log, "%5d.%09d %s\n", now_ / kSecond, now_ % kSecond, text);
}

void World::Violate(absl::string_view invariant, std::string details) {
  if (!outcome_.invariant.empty()) return;
  outcome_.invariant = std::string(invariant);
  outcome_.details = std::move(details);
  Log("VIOLATION: ", outcome_.invariant, ": ", outcome_.details);
}

Outcome World::Run() {
  Draw();
  monitor_ = std::make_unique<Monitor>(*this);
  controller_ = std::make_unique<SimController>(*this);
  links_.resize(static_cast<size_t>(scenario_.hosts));
  clock_offsets_.resize(links_.size() + 1);
  for (int host = 0; host < scenario_.hosts; ++host) agents_.push_back(std::make_unique<SimAgent>(*this, host));
  DrawFaults();
  DrawOperator();
  After(scenario_.faults_end, [this] { FaultsEnd(); });
  controller_->Boot();
  for (const std::unique_ptr<SimAgent>& agent : agents_) agent->Boot();
  RunUntil(std::max<Nanos>(scenario_.faults_end, 30 * kSecond) + kPatience);
  if (outcome_.invariant.empty()) monitor_->AtTheEnd();
  if (outcome_.invariant.empty()) RollBackOnceMore();
  for (const SimController::Stored& stored : controller_->store())
    ++outcome_.ends[static_cast<int>(stored.replayed.state)];
  outcome_.digest = digest_ ^ random_.Next();
  return std::move(outcome_);
}

void World::RunUntil(Nanos end) {
  while (!queue_.empty() && outcome_.invariant.empty()) {
    if (queue_.front().when > end) break;
    std::pop_heap(queue_.begin(), queue_.end(), Later());
    const Queued next = queue_.back();
    queue_.pop_back();
    if (++outcome_.events > kMostEvents) {
      Violate("everything comes to rest", "events without end");
      return;
    }
    now_ = next.when;
    digest_ = (digest_ ^ static_cast<uint64_t>(now_) ^ next.order) * 0x100000001b3;
    Action action = std::move(actions_[next.action]);
    free_actions_.push_back(next.action);
    action();
    monitor_->AfterEvent();
  }
  now_ = end;
}

// Whatever has happened: a fleet on which nothing is broken any more can be rolled back.
void World::RollBackOnceMore() {
  Log("once more, with everything in order");
  for (const std::unique_ptr<SimAgent>& agent : agents_) agent->Mend();
  controller::OperationSpec spec;
  spec.environment = "prod";
  spec.service = std::string(ServiceName(0));
  spec.reason = "is it all in order?";
  spec.target.kind = controller::TargetReference::Kind::kNamed;
  spec.target.name = "v1";
  spec.target.force = true;
  spec.force = true;
  spec.even_if_already_there = true;
  spec.override_gates = {std::string(controller::kGateApproval)};
  std::string id;
  std::string refused = "nobody answered";
  controller_->Start(spec, "once-more", [&](const SimController::Answer& answer) {
    id = answer.id;
    refused = answer.refusal.message;
  });
  RunUntil(now_ + 30 * kMinute);
  if (!outcome_.invariant.empty()) return;
  const SimController::Stored* stored = controller_->Find(id);
  if (stored == nullptr) {
    Violate("a fleet in order can be rolled back", absl::StrCat("it was refused: ", refused));
  } else if (stored->replayed.state != controller::OperationState::kSucceeded) {
    Violate("a fleet in order can be rolled back",
            absl::StrCat("it ", controller::NameOf(stored->replayed.state), ": ", stored->replayed.summary));
  }
}

void World::AskLater(const std::string& id, int what, int tries) {
  static constexpr absl::string_view kWords[] = {"aborts", "pauses", "resumes", "approves"};
  Log("operator: ", kWords[what], " ", id);
  const controller::OperatorRequest requests[] = {
      controller::AbortRequested{"operator", "changed my mind"}, controller::PauseRequested{"operator", "to look"},
      controller::ResumeRequested{"operator"}, controller::Approved{"another operator", "go"}};
  if (controller_->up() && controller_->Ask(id, requests[what])) return;
  // Somebody who looks: the controller may be down, or its disk full.
  if (tries > 1) After(kMinute, [this, id, what, tries] { AskLater(id, what, tries - 1); });
}

void World::FaultsEnd() {
  Log("no more faults");
  for (int host = 0; host < scenario_.hosts; ++host) {
    links_[static_cast<size_t>(host)].cut_off = false;
    SimAgent& one = agent(host);
    one.SetDiskFull(false);
    // Whoever is down comes back now, and an agent whose journal was closed is started anew by whoever looks after it.
    if (one.up() && one.journal_closed()) one.Crash(false, kSecond);
    if (!one.up()) one.Boot();
  }
  controller_->SetStoreFull(false);
  if (!controller_->up()) controller_->Boot();
}

// ---- network

std::vector<Nanos> World::Arrivals(Nanos* last) {
  const Nanos latency = random_.Between(scenario_.latency / 2, scenario_.latency * 2);
  if (!scenario_.datagrams || !faults()) {
    *last = std::max(*last, now_ + latency);
    return {*last};
  }
  std::vector<Nanos> arrivals;
  if (random_.PerMille(scenario_.drop_per_mille)) {
    // Given up by everybody, and there all the same when nobody expects it.
    if (random_.Percent(scenario_.stray_percent)) arrivals.push_back(now_ + random_.Between(kMinute, 3 * kHour));
    return arrivals;
  }
  const int copies = random_.PerMille(scenario_.double_per_mille) ? 2 : 1;
  for (int copy = 0; copy < copies; ++copy) {
    const bool late = random_.PerMille(scenario_.late_per_mille);
    arrivals.push_back(now_ + latency + (copy > 0 ? random_.Between(0, kSecond) : 0) +
                       (late ? random_.Between(0, scenario_.latest) : 0));
  }
  return arrivals;
}

bool World::Send(int host, const ToAgent& message) {
  Link& link = links_[static_cast<size_t>(host)];
  if (link.at_controller == 0) return false;
  if (!scenario_.datagrams && link.at_controller != link.alive) return true;
  const uint64_t number = link.at_controller;
  for (const Nanos when : Arrivals(&link.last_to_agent)) {
    After(when - now_, [this, host, number, message] { Deliver(host, number, message); });
  }
  return true;
}

void World::Deliver(int host, uint64_t number, const ToAgent& message) {
  Link& link = links_[static_cast<size_t>(host)];
  if (link.cut_off || !agent(host).up()) return;
  if (!scenario_.datagrams && number != link.alive) return;
  if (std::holds_alternative<Welcome>(message)) {
    if (number != link.at_agent || link.open_at_agent) return;
    link.open_at_agent = true;
    link.wait = kFirstWait;
    agent(host).OnOpen(agent(host).process());
    return;
  }
  if (!scenario_.datagrams && !link.open_at_agent) return;
  agent(host).OnMessage(message);
}

bool World::Send(int host, const ToController& message) {
  Link& link = links_[static_cast<size_t>(host)];
  if (!link.open_at_agent || link.at_agent == 0) return false;
  if (!scenario_.datagrams && link.at_agent != link.alive) return true;
  const uint64_t number = link.at_agent;
  for (const Nanos when : Arrivals(&link.last_to_controller)) {
    After(when - now_, [this, host, number, message] { Deliver(host, number, message); });
  }
  return true;
}

void World::Deliver(int host, uint64_t number, const ToController& message) {
  Link& link = links_[static_cast<size_t>(host)];
  if (link.cut_off || !controller_->up()) return;
  if (!scenario_.datagrams && number != link.at_controller) return;
  if (const auto* result = std::get_if<agent::TaskResult>(&message)) {
    controller_->OnResult(host, *result);
  } else {
    controller_->OnReport(host, std::get<Report>(message));
  }
}

void World::Dial(int host, uint64_t process) {
  Link& link = links_[static_cast<size_t>(host)];
  if (link.dialling) return;
  link.dialling = true;
  // The first time at once.
  const Nanos wait = link.wait == 0 ? 0 : random_.Between(link.wait / 2, link.wait);
  if (link.wait == 0) link.wait = kFirstWait;
  After(wait, [this, host, process] { DialNow(host, process); });
}

void World::DialNow(int host, uint64_t process) {
  Link& link = links_[static_cast<size_t>(host)];
  link.dialling = false;
  if (!agent(host).up()) return;
  if (agent(host).process() != process) {
    // Another process has taken its place meanwhile, and found somebody dialling.
    Dial(host, agent(host).process());
    return;
  }
  if (link.at_agent != 0) return;
  if (link.cut_off || !controller_->up()) {
    link.wait = std::min(link.wait * 2, kLongestWait);
    Dial(host, process);
    return;
  }
  const uint64_t number = ++link.number;
  link.alive = number;
  link.at_agent = number;
  link.open_at_agent = false;
  link.last_to_agent = link.last_to_controller = 0;
  After(random_.Between(scenario_.latency / 2, scenario_.latency * 2), [this, host, number] {
    Link& now = links_[static_cast<size_t>(host)];
    if (now.alive != number || !controller_->up()) return;
    now.at_controller = number;
    // The greeting is what opens a connection: it is not lost by itself.
    now.last_to_agent = now_ + scenario_.latency;
    After(scenario_.latency, [this, host, number] { Deliver(host, number, ToAgent(Welcome())); });
    controller_->OnAgentConnected(host);
  });
}

void World::BreakLink(int host, bool silently) {
  Link& link = links_[static_cast<size_t>(host)];
  const uint64_t number = link.alive;
  link.alive = 0;
  const bool agent_is_up = agent(host).up();
  if (!agent_is_up) {
    link.at_agent = 0;
    link.open_at_agent = false;
  }
  if (number == 0) return;
  const auto notice = [&] {
    return silently ? random_.Between(10 * kSecond, 15 * kSecond) : random_.Between(0, 20 * kMillisecond);
  };
  if (agent_is_up) {
    After(notice(), [this, host, number] {
      Link& now = links_[static_cast<size_t>(host)];
      if (now.at_agent != number) return;
      now.at_agent = 0;
      now.open_at_agent = false;
      if (agent(host).up()) Dial(host, agent(host).process());
    });
  }
  After(notice(), [this, host, number] {
    Link& now = links_[static_cast<size_t>(host)];
    if (now.at_controller != number) return;
    now.at_controller = 0;
    if (controller_->up()) controller_->OnAgentLost(host);
  });
}

void World::ControllerIsGone(bool silently) {
  for (int host = 0; host < scenario_.hosts; ++host) {
    BreakLink(host, silently);
    links_[static_cast<size_t>(host)].at_controller = 0;
  }
}

}  // namespace rb::sim
