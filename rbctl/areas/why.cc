#include "rbctl/areas/why.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/text.h"
#include "rbctl/client/failure.h"
#include "rbctl/client/fleet_client.h"
#include "rbctl/client/run.h"
#include "rbctl/render/reasons.h"
#include "rbctl/render/text.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

constexpr char kNewestRefused[] = "refused";
constexpr uint32_t kSearched = 1000;

std::vector<const v1::Reason*> AllReasons(const v1::Operation& operation) {
  std::vector<const v1::Reason*> all;
  for (const v1::Reason& reason : operation.plan().reasons()) all.push_back(&reason);
  for (const v1::Reason& reason : operation.reasons()) all.push_back(&reason);
  return all;
}

struct Refused {
  std::string rule;
  std::string message;
};

// The record says "rule: message"; earlier versions wrote the message alone.
Refused RuleOf(const v1::AuditRecord& record) {
  const std::string said = Printable(record.refusal());
  const size_t colon = said.find(": ");
  const std::string first = said.substr(0, colon);
  const bool is_rule =
      colon != std::string::npos && !first.empty() &&
      std::all_of(first.begin(), first.end(), [](char c) { return absl::ascii_islower(c) || c == '_'; });
  return is_rule ? Refused{first, said.substr(colon + 2)} : Refused{"not on record", said};
}

// The newest refused request, or the one with this number. Null: there is none, or it was not refused.
const v1::AuditRecord* FindRefused(const v1::ListAuditRecordsResponse& records, uint64_t number) {
  for (const v1::AuditRecord& record : records.records()) {
    if (record.allowed() || (number != 0 && record.number() != number)) continue;
    return &record;
  }
  return nullptr;
}

int WhyRefused(const Command& command, uint64_t number, FleetClient& client, const Terminal& terminal) {
  const absl::StatusOr<v1::ListAuditRecordsResponse> records =
      client.AuditRecords(number == 0 ? kSearched : 1, number == 0 ? 0 : number + 1);
  if (!records.ok()) return Failed(command, records.status(), false, terminal);
  if (const v1::AuditRecord* record = FindRefused(*records, number)) {
    terminal.out(command.json ? JsonWhy(*record) : RenderWhy(*record));
    return kDone;
  }
  return Error(command, "refused", kRefused,
               number == 0 ? absl::StrCat("none of the newest ", kSearched, " requests was refused")
                           : absl::StrCat("record ", number, " is not that of a refused request"),
               "Nothing was changed by this command.", "rbctl audit list", terminal);
}

int Why(const Command& command, FleetClient& client, const Terminal& terminal) {
  uint64_t number = 0;
  if (command.operation_id == kNewestRefused || absl::SimpleAtoi(command.operation_id, &number)) {
    return WhyRefused(command, number, client, terminal);
  }
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
  text += RenderReasons(reasons);
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
  const Json document = {
      {"id", operation.id()}, {"outcome", Outcome(operation)}, {"reasons", ReasonsJson(AllReasons(operation))}};
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string RenderWhy(const v1::AuditRecord& record) {
  const Refused refused = RuleOf(record);
  std::string text =
      absl::StrCat("Request ", record.number(), " of ", record.has_at() ? FormatUtc(ToTime(record.at())) : "-", ": ",
                   Printable(record.request()), " ", Printable(record.subject()), ", from ",
                   record.who().empty() ? "somebody without a certificate" : Printable(record.who()));
  if (!record.reason().empty()) absl::StrAppend(&text, ", because: ", Printable(record.reason()));
  absl::StrAppend(&text, "\nRefused by the rule: ", refused.rule, "\n  ", refused.message,
                  "\nNothing was changed by it.\nNext: rbctl audit list\n");
  return text;
}

std::string JsonWhy(const v1::AuditRecord& record) {
  const Refused refused = RuleOf(record);
  const nlohmann::ordered_json document = {
      {"number", record.number()}, {"request", record.request()}, {"subject", record.subject()}, {"who", record.who()},
      {"outcome", "refused"},      {"rule", refused.rule},        {"message", refused.message}};
  return document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void AddWhy(CLI::App& app, Command& command) {
  CLI::App* why = app.add_subcommand("why", "Which rules made an operation what it was: hosts, source, waves, gates");
  why->add_option("OP", command.operation_id,
                  "Operation, or the beginning of its id; or `refused`: the newest request that was refused, "
                  "or its number in `rbctl audit list`")
      ->required();
  why->callback([&command] {
    command.verb = Verb::kArea;
    command.run = Why;
  });
  why->footer("Example:\n  rbctl why op-20261123T031407Z-4f2a9c\n  rbctl why refused");
}

}  // namespace rb::cli
