#include "rbctl/client/run.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/text.h"
#include "google/protobuf/arena.h"
#include "rb/v1/drill_service.grpc.pb.h"
#include "rbctl/client/area_call.h"
#include "rbctl/client/failure.h"
#include "rbctl/render/drill.h"
#include "rbctl/render/json.h"
#include "rbctl/render/redraw.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

class Runner {
 public:
  Runner(const Command& command, FleetClient& client, const Terminal& terminal)
      : command_(command), client_(client), terminal_(terminal) {}

  int Run() {
    switch (command_.verb) {
      case Verb::kStart:
        return Start();
      case Verb::kPlan:
        return Plan();
      case Verb::kStatus: {
        const auto response = client_.Status(command_.environment, command_.service);
        if (!response.ok()) return Failed(response.status(), false);
        const v1::ListSchedulesResponse schedules = Schedules();
        return Print(RenderStatus(*response, terminal_.style) + RenderOverdue(schedules),
                     JsonStatus(*response, &schedules));
      }
      case Verb::kHistory: {
        google::protobuf::Arena arena;
        const auto response = client_.List(command_.environment, command_.service, command_.limit, &arena);
        if (!response.ok()) return Failed(response.status(), false);
        // Of thousands of operations, only what is asked for.
        terminal_.out(command_.json ? JsonHistory(**response) : RenderHistory(**response, terminal_.style));
        return kDone;
      }
      case Verb::kShow: {
        const auto response = client_.Get(command_.operation_id);
        return response.ok() ? Print(RenderShow(*response, terminal_.style), JsonShow(*response))
                             : Failed(response.status(), false);
      }
      case Verb::kBackupList: {
        const auto response = client_.Releases(command_.environment, command_.service);
        return response.ok() ? Print(RenderReleases(*response, terminal_.style), JsonReleases(*response))
                             : Failed(response.status(), false);
      }
      case Verb::kAgents: {
        const auto response = client_.Agents();
        return response.ok() ? Print(RenderAgents(*response, terminal_.style), JsonAgents(*response))
                             : Failed(response.status(), false);
      }
      case Verb::kAuditList: {
        const auto response = client_.AuditRecords(command_.limit);
        return response.ok() ? Print(RenderAudit(*response, terminal_.style), JsonAudit(*response))
                             : Failed(response.status(), false);
      }
      case Verb::kAuditVerify: {
        const auto response = client_.VerifyAudit(command_.expected_hash);
        if (!response.ok()) return Failed(response.status(), false);
        Print(RenderAuditCheck(*response, terminal_.style), JsonAuditCheck(*response));
        return response->intact() ? kDone : kFailedNothingChanged;
      }
      case Verb::kWatch: {
        const auto response = client_.Get(command_.operation_id);
        return response.ok() ? Watch(response->operation()) : Failed(response.status(), false);
      }
      case Verb::kAbort:
        return Ask(&FleetClient::Abort, "abort requested");
      case Verb::kPause:
        return Ask(&FleetClient::Pause, "paused; no further wave begins");
      case Verb::kResume:
        return Ask(&FleetClient::Resume, "resumed");
      case Verb::kApprove:
        return Ask(&FleetClient::Approve, "approved");
      case Verb::kArea:
        return command_.run(command_, client_, terminal_);
      case Verb::kPrint:
        break;
    }
    terminal_.out(command_.text);
    return kDone;
  }

 private:
  // Those that are about the environment and service that were asked for. None when they are not to be had: what runs
  // is more important to say.
  v1::ListSchedulesResponse Schedules() {
    const auto got =
        CallArea<v1::DrillService>(client_, &v1::DrillService::Stub::ListSchedules, v1::ListSchedulesRequest());
    v1::ListSchedulesResponse asked;
    if (!got.ok()) return asked;
    for (const v1::Schedule& one : got->schedules()) {
      const auto& environments = one.environments();
      const bool in_environment = command_.environment.empty() || std::find(environments.begin(), environments.end(),
                                                                            command_.environment) != environments.end();
      const bool of_service = command_.service.empty() || one.service().empty() || one.service() == command_.service;
      if (in_environment && of_service) *asked.add_schedules() = one;
    }
    return asked;
  }

  absl::StatusOr<v1::Operation> AskToStart() {
    if (terminal_.on_asking) terminal_.on_asking(true);
    absl::StatusOr<v1::Operation> operation = client_.Start(command_.spec);
    if (!operation.ok() && RefusalOf(operation.status()).has_value() && terminal_.on_asking) terminal_.on_asking(false);
    return operation;
  }

  int Print(const std::string& text, const std::string& json) {
    terminal_.out(command_.json ? json : text);
    return kDone;
  }

  int Failed(const absl::Status& status, bool may_have_begun) {
    return rb::cli::Failed(command_, status, may_have_begun, terminal_);
  }

  int Error(const std::string& outcome, int code, const std::string& message, const std::string& state,
            const std::string& next) {
    return rb::cli::Error(command_, outcome, code, message, state, next, terminal_);
  }

  // Undo names an operation: the controller is asked where that one was.
  absl::Status ResolveUndo(v1::OperationSpec* spec) {
    if (spec->kind() != v1::OPERATION_KIND_UNDO) {
      return absl::OkStatus();
    }
    const auto response = client_.Get(spec->undo_operation_id());
    if (!response.ok()) {
      return response.status();
    }
    spec->set_undo_operation_id(response->operation().id());
    spec->set_environment(response->operation().spec().environment());
    spec->set_service(response->operation().spec().service());
    *spec->mutable_through() = response->operation().spec().through();
    return absl::OkStatus();
  }

  int Plan() {
    const auto plan = client_.Plan(command_.spec);
    if (!plan.ok()) {
      return Failed(plan.status(), false);
    }
    Print(RenderPlan(*plan, terminal_.style), JsonPlan(*plan));
    return plan->has_refusal() ? kRefused : kDone;
  }

  int Start() {
    if (const absl::Status status = ResolveUndo(&command_.spec); !status.ok()) {
      return Failed(status, false);
    }
    const auto& components = command_.spec.components();
    const bool data = std::find(components.begin(), components.end(), v1::COMPONENT_DATA) != components.end();
    if (terminal_.ask && !command_.yes && (data || command_.spec.force())) {
      const std::string answer =
          terminal_.ask(absl::StrCat(Describe(command_.spec), data ? ", with its data" : "",
                                     command_.spec.force() ? ", forced" : "", ". Go on? [y/N] "));
      if (answer != "y" && answer != "Y" && answer != "yes") {
        return Error("failed", kFailedNothingChanged, "not confirmed", "Nothing was changed.", "rbctl status");
      }
    }
    if (terminal_.size)
      terminal_.err(absl::StrCat("Asking the hosts of ", Printable(command_.spec.environment()), " …\n"));
    auto operation = AskToStart();
    if (!operation.ok() && terminal_.ask && command_.spec.reason().empty()) {
      const auto refusal = RefusalOf(operation.status());
      if (refusal && refusal->code() == v1::Refusal::CODE_REASON_REQUIRED) {
        const std::string reason(absl::StripAsciiWhitespace(terminal_.ask("Reason: ")));
        if (!reason.empty()) {
          command_.spec.set_reason(reason);
          operation = AskToStart();
        }
      }
    }
    if (!operation.ok()) {
      return Failed(operation.status(), true);
    }
    if (HasEnded(operation->state())) {
      return Ended(*operation);
    }
    if (!command_.wait) {
      Print(
          absl::StrCat(Printable(operation->id()), ": accepted.\nNext: rbctl watch ", Printable(operation->id()), "\n"),
          JsonOperation(*operation, kDone));
      return kDone;
    }
    return Watch(*operation);
  }

  int Watch(const v1::Operation& begun) {
    const std::string id = Printable(begun.id());
    if (terminal_.on_watching) {
      terminal_.on_watching(id);
    }
    const bool live = terminal_.size && !command_.json;
    size_t drawn = 0;
    if (!live && !command_.json) {
      terminal_.out(absl::StrCat(id, ": ", Describe(begun.spec()), "\n"));
    }
    const auto end = client_.Watch(begun.id(), [&](const v1::OperationEvent* event, const v1::Operation& operation) {
      if (live) {
        const TerminalSize size = terminal_.size();
        terminal_.out(
            Redraw(LiveLines(operation, SystemClock().Now(), terminal_.style), size.columns, size.rows, &drawn));
      } else if (event != nullptr && (!command_.json || command_.progress)) {
        (command_.json ? terminal_.err : terminal_.out)(RenderEvent(*event) + "\n");
      }
    });
    if (end.ok()) {
      if (live) {
        // The report takes the table's place.
        const TerminalSize size = terminal_.size();
        terminal_.out(Redraw({}, size.columns, size.rows, &drawn));
      }
      return Ended(*end);
    }
    if (absl::IsCancelled(end.status())) {
      return Error("running", kInterrupted, "no longer watching " + id, "The operation goes on.",
                   absl::StrCat("rbctl watch ", id, ", or rbctl abort ", id));
    }
    if (absl::IsUnavailable(end.status()) || absl::IsDeadlineExceeded(end.status())) {
      return Error(
          "unknown", kNotReached,
          absl::StrCat("the controller was lost while ", id, " ran: ", Printable(std::string(end.status().message()))),
          "The operation goes on: the controller resumes it when it is back, and agents finish what they began.",
          "rbctl watch " + id);
    }
    return Error("unknown", kNeedsAttention,
                 absl::StrCat("cannot watch ", id, ": ", Printable(std::string(end.status().message()))),
                 "The operation was accepted; how it stands is not known.", "rbctl show " + id);
  }

  int Ended(const v1::Operation& operation) {
    const int code = ExitCodeFor(operation);
    Print(RenderReport(operation, terminal_.style), JsonOperation(operation, code));
    return code;
  }

  // `method` asks something of an operation that runs.
  int Ask(absl::StatusOr<v1::Operation> (FleetClient::*method)(const std::string&, const std::string&),
          const std::string& done) {
    if (terminal_.on_asking) terminal_.on_asking(true);
    const auto operation = (client_.*method)(command_.operation_id, command_.reason);
    if (!operation.ok()) {
      return Failed(operation.status(), true);
    }
    const std::string id = Printable(operation->id());
    Print(HasEnded(operation->state()) ? RenderReport(*operation, terminal_.style)
                                       : absl::StrCat(id, ": ", done, ".\nNext: rbctl watch ", id, "\n"),
          JsonOperation(*operation, kDone));
    return kDone;
  }

  Command command_;
  FleetClient& client_;
  const Terminal& terminal_;
};

}  // namespace

int Run(const Command& command, FleetClient& client, const Terminal& terminal) {
  return Runner(command, client, terminal).Run();
}

}  // namespace rb::cli
