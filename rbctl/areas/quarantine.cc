#include "rbctl/areas/quarantine.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/text.h"
#include "rb/v1/quarantine_service.grpc.pb.h"
#include "rbctl/client/area_call.h"
#include "rbctl/client/failure.h"
#include "rbctl/client/run.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

using Json = nlohmann::ordered_json;

Json EntryJson(const v1::QuarantineEntry& entry) {
  Json json = {{"service", entry.service()},           {"commit", entry.commit()},
               {"version", entry.version()},           {"since", FormatUtc(ToTime(entry.since()))},
               {"operation_id", entry.operation_id()}, {"reason", entry.reason()},
               {"released", entry.released()}};
  if (entry.released()) {
    json["released_by"] = entry.released_by();
    json["release_reason"] = entry.release_reason();
    json["released_at"] = FormatUtc(ToTime(entry.released_at()));
  }
  return json;
}

std::string Dump(const Json& json) {
  return absl::StrCat(json.dump(2, ' ', false, Json::error_handler_t::replace), "\n");
}

std::string Name(const v1::QuarantineEntry& entry) {
  return Printable(absl::StrCat(entry.commit().substr(0, 12),
                                entry.version().empty() ? "" : absl::StrCat(" (", entry.version(), ")"), " of ",
                                entry.service()));
}

int List(const v1::ListQuarantineRequest& request, const Command& command, FleetClient& client,
         const Terminal& terminal) {
  const auto listed = CallArea<v1::QuarantineService>(client, &v1::QuarantineService::Stub::ListQuarantine, request);
  if (!listed.ok()) return Failed(command, listed.status(), false, terminal);
  terminal.out(command.json ? JsonQuarantine(*listed) : RenderQuarantine(*listed, terminal.style));
  return kDone;
}

int Release(const v1::ReleaseQuarantineRequest& request, const Command& command, FleetClient& client,
            const Terminal& terminal) {
  const auto released =
      CallArea<v1::QuarantineService>(client, &v1::QuarantineService::Stub::ReleaseQuarantine, request);
  if (!released.ok()) return Failed(command, released.status(), true, terminal);
  terminal.out(command.json
                   ? Dump(EntryJson(released->entry()))
                   : absl::StrCat(Name(released->entry()), " is released from quarantine, and may be deployed again.\n",
                                  "Next: rbctl deploy ENV --to ", Printable(released->entry().commit().substr(0, 12)),
                                  "\n"));
  return kDone;
}

}  // namespace

std::string RenderQuarantine(const v1::ListQuarantineResponse& response, const Style& /*style*/) {
  if (response.entries().empty()) return "Nothing is quarantined.\n";
  std::string text;
  bool any = false;
  for (const v1::QuarantineEntry& entry : response.entries()) {
    absl::StrAppend(&text, Name(entry), "  since ", FormatUtc(ToTime(entry.since())), " by ",
                    Printable(entry.operation_id()), "\n  ", Printable(entry.reason()), "\n");
    if (entry.released()) {
      absl::StrAppend(&text, "  released ", FormatUtc(ToTime(entry.released_at())), " by ",
                      Printable(entry.released_by()), ": ", Printable(entry.release_reason()), "\n");
    }
    any = any || !entry.released();
  }
  if (any) absl::StrAppend(&text, "Next: rbctl quarantine release COMMIT --reason \"...\"\n");
  return text;
}

std::string JsonQuarantine(const v1::ListQuarantineResponse& response) {
  Json entries = Json::array();
  for (const v1::QuarantineEntry& entry : response.entries()) entries.push_back(EntryJson(entry));
  return Dump({{"quarantine", entries}});
}

void AddQuarantine(CLI::App& app, Command& command) {
  CLI::App* area = app.add_subcommand("quarantine", "Commits that may not be deployed again");
  area->require_subcommand(1);
  const auto list_request = std::make_shared<v1::ListQuarantineRequest>();
  CLI::App* list = area->add_subcommand("list", "What is quarantined, since when and why; the newest first");
  list->add_option_function<std::string>(
      "--service", [list_request](const std::string& service) { list_request->set_service(service); },
      "Only this service");
  list->add_flag_callback(
      "--all", [list_request] { list_request->set_with_released(true); }, "Also what was released since");
  list->footer("Example:\n  rbctl quarantine list");
  list->callback([&command, list_request] {
    command.verb = Verb::kArea;
    command.run = [list_request](const Command& of, FleetClient& client, const Terminal& terminal) {
      return List(*list_request, of, client, terminal);
    };
  });
  const auto release_request = std::make_shared<v1::ReleaseQuarantineRequest>();
  CLI::App* release = area->add_subcommand("release", "Let a commit be deployed again");
  release
      ->add_option_function<std::string>(
          "COMMIT", [release_request](const std::string& commit) { release_request->set_commit(commit); },
          "A commit, the beginning of one, or a version")
      ->required();
  release->add_option_function<std::string>(
      "--service", [release_request](const std::string& service) { release_request->set_service(service); },
      "Of this service, when several have it");
  release
      ->add_option_function<std::string>(
          "--reason", [release_request](const std::string& reason) { release_request->set_reason(reason); },
          "Why, in your words; kept")
      ->required();
  release->footer("Example:\n  rbctl quarantine release abc123f --reason \"the bug was in the configuration\"");
  release->callback([&command, release_request] {
    command.verb = Verb::kArea;
    command.run = [release_request](const Command& of, FleetClient& client, const Terminal& terminal) {
      return Release(*release_request, of, client, terminal);
    };
  });
}

}  // namespace rb::cli
