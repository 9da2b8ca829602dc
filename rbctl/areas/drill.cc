#include "rbctl/areas/drill.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/text.h"
#include "rb/v1/drill_service.grpc.pb.h"
#include "rbctl/client/area_call.h"
#include "rbctl/client/failure.h"
#include "rbctl/client/run.h"
#include "rbctl/render/drill.h"

namespace rb::cli {
namespace {

const std::vector<std::string>& FaultNames() {
  static const auto* const kNames = new std::vector<std::string>{
      "bad-code", "bad-database", "bad-config", "host-power-cut", "agent-killed", "controller-killed", "disk-full"};
  return *kNames;
}

constexpr absl::Duration kLookEvery = absl::Milliseconds(300);
// A controller that kills itself, as a drill may ask for, is back by then.
constexpr absl::Duration kLost = absl::Minutes(2);

struct Flags {
  v1::DrillSpec spec;
  std::string fault;
  std::string environments;
  std::string method = "auto";
  std::string id;
  std::string reason;
  std::string environment;
  std::string service;
  std::string format = "text";
  uint32_t limit = 20;
  bool no_wait = false;
};

int Follow(const Command& command, FleetClient& client, const Terminal& terminal, const std::string& id) {
  uint64_t seen = 0;
  std::string alert;
  absl::Duration heard = SystemClock().Monotonic();
  if (terminal.on_watching) terminal.on_watching(id);
  while (true) {
    v1::GetDrillRequest request;
    request.set_drill_id(id);
    request.set_after_sequence(seen);
    const absl::StatusOr<v1::GetDrillResponse> got =
        CallArea<v1::DrillService>(client, &v1::DrillService::Stub::GetDrill, request);
    if (!got.ok()) {
      if (SystemClock().Monotonic() - heard > kLost || absl::IsNotFound(got.status())) {
        return Error(command, "unknown", kNotReached,
                     absl::StrCat("the controller was lost while ", Printable(id), " ran"),
                     "The drill goes on when it is back; each agent ends its fault alone when its time is up.",
                     "rbctl drill show " + Printable(id), terminal);
      }
      SystemClock().Sleep(kLookEvery);
      continue;
    }
    heard = SystemClock().Monotonic();
    for (const v1::DrillEvent& event : got->events()) {
      seen = event.sequence();
      if (!command.json) terminal.out(RenderDrillEvent(event) + "\n");
    }
    const bool by_hand = got->drill().spec().by_hand() && got->drill().state() == v1::DRILL_STATE_RECOVERING;
    if (by_hand && alert != got->drill().alert()) {
      alert = got->drill().alert();
      if (!command.json) terminal.out(absl::StrCat("ALERT: ", Printable(alert), "\n"));
    }
    if (!HasEnded(got->drill().state())) {
      SystemClock().Sleep(kLookEvery);
      continue;
    }
    const int code = ExitCodeFor(got->drill());
    if (command.json) {
      v1::GetDrillRequest all;
      all.set_drill_id(id);
      const absl::StatusOr<v1::GetDrillResponse> whole =
          CallArea<v1::DrillService>(client, &v1::DrillService::Stub::GetDrill, all);
      terminal.out(JsonDrill(whole.ok() ? *whole : *got, code));
    } else {
      terminal.out(RenderDrillEnd(got->drill()));
      for (const std::string& next : got->drill().spec().then()) {
        if (got->drill().state() == v1::DRILL_STATE_PASSED) {
          terminal.out(absl::StrCat("It goes on in ", Printable(next), ".\nNext: rbctl drill list\n"));
          break;
        }
      }
    }
    return code;
  }
}

int RunDrill(const Flags& flags, const Command& command, FleetClient& client, const Terminal& terminal) {
  v1::StartDrillRequest request;
  *request.mutable_spec() = flags.spec;
  request.set_idempotency_key(RandomHex(16));
  const absl::StatusOr<v1::StartDrillResponse> started =
      CallArea<v1::DrillService>(client, &v1::DrillService::Stub::StartDrill, request);
  if (!started.ok()) return Failed(command, started.status(), true, terminal);
  const std::string id = started->drill().id();
  if (flags.no_wait) {
    v1::GetDrillResponse response;
    *response.mutable_drill() = started->drill();
    terminal.out(command.json
                     ? JsonDrill(response, kDone)
                     : absl::StrCat(Printable(id), ": accepted.\nNext: rbctl drill show ", Printable(id), "\n"));
    return kDone;
  }
  if (!command.json) terminal.out(absl::StrCat(Printable(id), "\n"));
  return Follow(command, client, terminal, id);
}

template <typename Work>
void On(CLI::App* sub, Command& command, Work work) {
  sub->callback([&command, work] {
    command.verb = Verb::kArea;
    command.run = work;
  });
}

}  // namespace

void AddDrills(CLI::App& app, Command& command) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* drill = app.add_subcommand("drill", "Rehearse a failure: break it on purpose, recover it, measure it");
  drill->require_subcommand(1);

  CLI::App* run = drill->add_subcommand("run", "Break something, recover it, and put everything back");
  run->add_option("FAULT", flags->fault, absl::StrJoin(FaultNames(), ", "))
      ->required()
      ->type_name("")
      ->check(CLI::IsMember(FaultNames()).description(""));
  run->add_option("ENV", flags->environments, "Environment; with commas one after the other: test,prod")->required();
  run->add_option("--service", flags->service, "Service; not needed when the environment has only one");
  run->add_option("--method", flags->method, "How to recover: auto, backup or git")
      ->check(CLI::IsMember({"auto", "backup", "git"}));
  run->add_flag_callback(
      "--by-hand", [flags] { flags->spec.set_by_hand(true); },
      "Training: a person recovers with rbctl, told only what an alert would");
  run->add_option("--reason", flags->reason, "Why, in your words; kept in the history");
  run->add_flag("--no-wait", flags->no_wait, "Return as soon as the drill is accepted");
  run->footer("Example:\n  rbctl drill run bad-code test");
  run->callback([flags, &command] {
    v1::DrillSpec& spec = flags->spec;
    for (size_t i = 0; i < FaultNames().size(); ++i) {
      if (FaultNames()[i] == flags->fault) spec.set_fault(static_cast<v1::FaultKind>(i + 1));
    }
    const std::vector<std::string> environments = absl::StrSplit(flags->environments, ',');
    spec.set_environment(environments.front());
    for (size_t i = 1; i < environments.size(); ++i) spec.add_then(environments[i]);
    spec.set_service(flags->service);
    spec.set_method(flags->method == "git"      ? v1::METHOD_GIT
                    : flags->method == "backup" ? v1::METHOD_BACKUP
                                                : v1::METHOD_AUTO);
    spec.set_reason(flags->reason);
    command.verb = Verb::kArea;
    command.run = [flags](const Command& asked, FleetClient& client, const Terminal& terminal) {
      return RunDrill(*flags, asked, client, terminal);
    };
  });

  const auto list = [flags](const Command& asked, FleetClient& client, const Terminal& terminal, bool report) {
    v1::ListDrillsRequest request;
    request.set_environment(flags->environment);
    request.set_service(flags->service);
    request.set_limit(flags->limit);
    const absl::StatusOr<v1::ListDrillsResponse> drills =
        CallArea<v1::DrillService>(client, &v1::DrillService::Stub::ListDrills, request);
    if (!drills.ok()) return Failed(asked, drills.status(), false, terminal);
    if (asked.json || flags->format == "json") {
      terminal.out(report ? JsonDrillReport(*drills) : JsonDrills(*drills));
    } else if (flags->format == "html") {
      terminal.out(HtmlDrillReport(*drills));
    } else {
      terminal.out(report ? RenderDrillReport(*drills) : RenderDrills(*drills));
    }
    return static_cast<int>(kDone);
  };
  CLI::App* listing = drill->add_subcommand("list", "Drills, newest first");
  CLI::App* report = drill->add_subcommand("report", "Recovery times against targets, and who was trained when");
  for (CLI::App* sub : {listing, report}) {
    sub->add_option("ENV", flags->environment, "Environment; all of them when left out");
    sub->add_option("--service", flags->service, "Only this service");
    sub->add_option("--limit", flags->limit, "How many at most; 20 when left out")->check(CLI::Range(1, 1000));
  }
  report->add_option("--format", flags->format, "text, json, or html: one page with charts")
      ->check(CLI::IsMember({"text", "json", "html"}));
  listing->footer("Example:\n  rbctl drill list test");
  report->footer("Example:\n  rbctl drill report --format html > drills.html");
  On(listing, command, [list](const Command& asked, FleetClient& client, const Terminal& terminal) {
    return list(asked, client, terminal, false);
  });
  On(report, command, [list](const Command& asked, FleetClient& client, const Terminal& terminal) {
    return list(asked, client, terminal, true);
  });

  CLI::App* show = drill->add_subcommand("show", "One drill with its history");
  CLI::App* stop = drill->add_subcommand("stop", "End a drill now; what was broken is put back");
  CLI::App* approve = drill->add_subcommand("approve", "Let a drill of another operator begin");
  for (CLI::App* sub : {show, stop, approve}) {
    sub->add_option("DRILL", flags->id, "Drill, or the beginning of its id")->required();
    sub->footer(absl::StrCat("Example:\n  rbctl drill ", sub->get_name(), " drill-20261123T031407Z-4f2a9c"));
  }
  for (CLI::App* sub : {stop, approve}) sub->add_option("--reason", flags->reason, "Why, in your words");
  On(show, command, [flags](const Command& asked, FleetClient& client, const Terminal& terminal) {
    v1::GetDrillRequest request;
    request.set_drill_id(flags->id);
    const absl::StatusOr<v1::GetDrillResponse> got =
        CallArea<v1::DrillService>(client, &v1::DrillService::Stub::GetDrill, request);
    if (!got.ok()) return Failed(asked, got.status(), false, terminal);
    terminal.out(asked.json ? JsonDrill(*got, kDone) : RenderDrill(*got));
    return static_cast<int>(kDone);
  });
  const auto answer = [](const Command& asked, const v1::Drill& answered, const Terminal& terminal) {
    v1::GetDrillResponse response;
    *response.mutable_drill() = answered;
    terminal.out(asked.json ? JsonDrill(response, kDone)
                            : absl::StrCat(Printable(answered.id()), ": ", Word(answered.state()),
                                           ".\nNext: rbctl drill show ", Printable(answered.id()), "\n"));
    return static_cast<int>(kDone);
  };
  On(stop, command, [flags, answer](const Command& asked, FleetClient& client, const Terminal& terminal) {
    v1::StopDrillRequest request;
    request.set_drill_id(flags->id);
    request.set_reason(flags->reason);
    const absl::StatusOr<v1::StopDrillResponse> stopped =
        CallArea<v1::DrillService>(client, &v1::DrillService::Stub::StopDrill, request);
    return stopped.ok() ? answer(asked, stopped->drill(), terminal) : Failed(asked, stopped.status(), true, terminal);
  });
  On(approve, command, [flags, answer](const Command& asked, FleetClient& client, const Terminal& terminal) {
    v1::ApproveDrillRequest request;
    request.set_drill_id(flags->id);
    request.set_reason(flags->reason);
    const absl::StatusOr<v1::ApproveDrillResponse> approved =
        CallArea<v1::DrillService>(client, &v1::DrillService::Stub::ApproveDrill, request);
    return approved.ok() ? answer(asked, approved->drill(), terminal)
                         : Failed(asked, approved.status(), true, terminal);
  });

  const auto list_schedules = [](const Command& asked, FleetClient& client, const Terminal& terminal,
                                 bool only_drills) {
    const absl::StatusOr<v1::ListSchedulesResponse> got =
        CallArea<v1::DrillService>(client, &v1::DrillService::Stub::ListSchedules, v1::ListSchedulesRequest());
    if (!got.ok()) return Failed(asked, got.status(), false, terminal);
    v1::ListSchedulesResponse shown;
    for (const v1::Schedule& one : got->schedules()) {
      if (!only_drills || one.kind() == "drill") *shown.add_schedules() = one;
    }
    terminal.out(asked.json ? JsonSchedules(shown) : RenderSchedules(shown));
    return static_cast<int>(kDone);
  };
  CLI::App* drill_schedules = drill->add_subcommand("schedule", "Drills that the controller runs by itself, and when");
  drill_schedules->footer("They are written in the controller's fleet file.\nExample:\n  rbctl drill schedule");
  On(drill_schedules, command, [list_schedules](const Command& asked, FleetClient& client, const Terminal& terminal) {
    return list_schedules(asked, client, terminal, true);
  });
  CLI::App* schedule = app.add_subcommand("schedule", "What the controller does by itself, and when");
  schedule->require_subcommand(1);
  CLI::App* schedules = schedule->add_subcommand("list", "Each schedule: next, last, overdue");
  schedules->footer("Example:\n  rbctl schedule list");
  On(schedules, command, [list_schedules](const Command& asked, FleetClient& client, const Terminal& terminal) {
    return list_schedules(asked, client, terminal, false);
  });
}

}  // namespace rb::cli
