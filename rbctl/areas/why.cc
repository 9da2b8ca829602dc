#include "rbctl/areas/why.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/text.h"
#include "rbctl/client/failure.h"
#include "rbctl/client/fleet_client.h"
#include "rbctl/client/run.h"
#include "rbctl/render/text.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

struct Section {
  v1::Reason::Rule rule;
  const char* title;
  const char* word;
};
// In the order in which it was decided.
constexpr Section kSections[] = {
    {v1::Reason::RULE_REFUSAL, "Refused", "refusal"},
    {v1::Reason::RULE_SCOPE, "Hosts", "scope"},
    {v1::Reason::RULE_NOT_TOUCHED, "Not touched", "not_touched"},
    {v1::Reason::RULE_METHOD, "Source", "method"},
    {v1::Reason::RULE_NOT_CHOSEN, "Not taken", "not_chosen"},
    {v1::Reason::RULE_FALLBACK, "Fallback", "fallback"},
    {v1::Reason::RULE_GATE, "Gates", "gate"},
    {v1::Reason::RULE_WAVE, "Waves", "wave"},
    {v1::Reason::RULE_VERIFICATION, "Verification", "verification"},
    {v1::Reason::RULE_EVENT, "While it ran", "event"},
};

std::string HostsOf(const v1::Reason& reason) {
  if (reason.hosts().empty()) return "";
  const int others = static_cast<int>(reason.host_count()) - reason.hosts_size();
  return absl::StrCat(" (", Printable(absl::StrJoin(reason.hosts(), ", ")),
                      others > 0 ? absl::StrCat(" and ", others, " others") : "", ")");
}

std::vector<const v1::Reason*> AllReasons(const v1::Operation& operation) {
  std::vector<const v1::Reason*> all;
  for (const v1::Reason& reason : operation.plan().reasons()) all.push_back(&reason);
  for (const v1::Reason& reason : operation.reasons()) all.push_back(&reason);
  return all;
}

int Why(const Command& command, FleetClient& client, const Terminal& terminal) {
  const absl::StatusOr<v1::GetOperationResponse> response = client.Get(command.operation_id);
  if (!response.ok()) return Failed(command, response.status(), false, terminal);
  terminal.out(command.json ? JsonWhy(response->operation()) : RenderWhy(response->operation()));
  return kDone;
}

}  // namespace

std::string RenderWhy(const v1::Operation& operation) {
  std::string text = absl::StrCat(Printable(operation.id()), ": ", Describe(operation.spec()), ", asked for by ",
                                  Printable(operation.requested_by()), "\n");
  const std::vector<const v1::Reason*> reasons = AllReasons(operation);
  for (const Section& section : kSections) {
    bool first = true;
    for (const v1::Reason* reason : reasons) {
      if (reason->rule() != section.rule) continue;
      if (first) absl::StrAppend(&text, section.title, ":\n");
      first = false;
      absl::StrAppend(&text, "  ", Printable(reason->text()), HostsOf(*reason), "\n");
    }
  }
  if (operation.plan().has_prediction()) {
    absl::StrAppend(&text, "Predicted:\n  ", DescribePrediction(operation.plan().prediction()), "\n");
  }
  if (reasons.empty()) text += "Its reasons were not kept: an earlier version planned it.\n";
  const std::string outcome = Outcome(operation);
  absl::StrAppend(&text, "It ",
                  outcome == "running" ? "runs: " : "ended: ", outcome == "running" ? Word(operation.state()) : outcome,
                  operation.summary().empty() ? "" : absl::StrCat(". ", Printable(operation.summary())),
                  "\nNext: rbctl show ", Printable(operation.id()), "\n");
  return text;
}

std::string JsonWhy(const v1::Operation& operation) {
  using Json = nlohmann::ordered_json;
  Json list = Json::array();
  for (const v1::Reason* reason : AllReasons(operation)) {
    std::string word = "unknown";
    for (const Section& section : kSections) {
      if (section.rule == reason->rule()) word = section.word;
    }
    Json hosts = Json::array();
    for (const std::string& host : reason->hosts()) hosts.push_back(host);
    list.push_back({{"rule", word}, {"text", reason->text()}, {"hosts", hosts}, {"host_count", reason->host_count()}});
  }
  const Json document = {{"id", operation.id()}, {"outcome", Outcome(operation)}, {"reasons", list}};
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

void AddWhy(CLI::App& app, Command& command) {
  CLI::App* why = app.add_subcommand("why", "Which rules made an operation what it was: hosts, source, waves, gates");
  why->add_option("OP", command.operation_id, "Operation, or the beginning of its id")->required();
  why->callback([&command] {
    command.verb = Verb::kArea;
    command.run = Why;
  });
  why->footer("Example:\n  rbctl why op-20261123T031407Z-4f2a9c");
}

}  // namespace rb::cli
