// doctor, and the documents: runbook, incident, notes.
#include "rbctl/render/documents.h"

#include <CLI/CLI.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "rb/v1/doctor_service.grpc.pb.h"
#include "rbctl/areas/areas.h"
#include "rbctl/client/area_call.h"
#include "rbctl/client/failure.h"
#include "rbctl/client/fleet_client.h"
#include "rbctl/client/run.h"
#include "rbctl/render/doctor.h"

namespace rb::cli {
namespace {

int Doctor(const Command& command, FleetClient& client, const Terminal& terminal) {
  v1::DiagnoseRequest request;
  request.set_environment(command.environment);
  request.set_service(command.service);
  const auto response = CallArea<v1::DoctorService>(client, &v1::DoctorService::Stub::Diagnose, request);
  if (!response.ok()) return Failed(command, response.status(), false, terminal);
  const int code = HasErrors(*response) ? kNeedsAttention : kDone;
  terminal.out(command.json ? JsonDiagnosis(*response, code) : RenderDiagnosis(*response, terminal.style));
  return code;
}

int Runbook(const Command& command, FleetClient& client, const Terminal& terminal) {
  v1::GetRunbookRequest request;
  request.set_environment(command.environment);
  request.set_service(command.service);
  const auto response = CallArea<v1::DoctorService>(client, &v1::DoctorService::Stub::GetRunbook, request);
  if (!response.ok()) return Failed(command, response.status(), false, terminal);
  const std::string document = RenderRunbook(*response);
  terminal.out(command.json ? JsonDocument(document) : document);
  return kDone;
}

template <std::string (*Render)(const v1::GetOperationResponse&)>
int OfOperation(const Command& command, FleetClient& client, const Terminal& terminal) {
  const auto response = client.Get(command.operation_id);
  if (!response.ok()) return Failed(command, response.status(), false, terminal);
  const std::string document = Render(*response);
  terminal.out(command.json ? JsonDocument(document) : document);
  return kDone;
}

}  // namespace

void AddDocuments(CLI::App& app, Command& command) {
  CLI::App* doctor = app.add_subcommand("doctor", "What would be in the way of a recovery, each with its mend");
  doctor->add_option("ENV", command.environment, "Environment; all of them when left out");
  doctor->add_option("--service", command.service, "Only this service");
  doctor->footer("Exit status 3 when a recovery would fail somewhere.\nExample:\n  rbctl doctor prod");
  doctor->callback([&command] {
    command.verb = Verb::kArea;
    command.run = Doctor;
  });

  CLI::App* runbook = app.add_subcommand("runbook", "Write what to type when it is broken, as Markdown");
  runbook->add_option("ENV", command.environment, "Environment")->required();
  runbook->add_option("--service", command.service, "Only this service");
  runbook->footer("Example:\n  rbctl runbook prod > rollback-prod.md");
  runbook->callback([&command] {
    command.verb = Verb::kArea;
    command.run = Runbook;
  });

  CLI::App* incident = app.add_subcommand("incident", "Write what happened in an operation, for a postmortem");
  CLI::App* notes = app.add_subcommand("notes", "Write what worked in an operation, and what needs improvement");
  for (CLI::App* sub : {incident, notes}) {
    sub->add_option("OP", command.operation_id, "Operation, or the beginning of its id")->required();
    sub->footer(
        absl::StrCat("Example:\n  rbctl ", sub->get_name(), " op-20261123T031407Z-4f2a9c > ", sub->get_name(), ".md"));
  }
  incident->callback([&command] {
    command.verb = Verb::kArea;
    command.run = OfOperation<RenderIncident>;
  });
  notes->callback([&command] {
    command.verb = Verb::kArea;
    command.run = OfOperation<RenderNotes>;
  });
}

}  // namespace rb::cli
