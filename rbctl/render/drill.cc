#include "rbctl/render/drill.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/clock.h"
#include "common/text.h"
#include "rbctl/commands/command.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

using Json = nlohmann::ordered_json;

std::string TimeOf(const google::protobuf::Timestamp& time) { return FormatUtc(ToTime(time)); }

double Seconds(const google::protobuf::Duration& duration) { return absl::ToDoubleSeconds(ToDuration(duration)); }

// Columns that are as wide as what is in them.
std::string Table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      absl::StrAppend(&line, row[i], std::string(i + 1 == row.size() ? 0 : widths[i] - row[i].size() + 2, ' '));
    }
    absl::StripTrailingAsciiWhitespace(&line);
    absl::StrAppend(&text, line, "\n");
  }
  return text;
}

std::string PhaseText(const v1::DrillPhase& phase) {
  return phase.has_took() ? absl::StrCat(FormatSeconds(ToDuration(phase.took())), phase.met() ? "" : " (late)") : "-";
}

std::string Phase(const v1::Drill& drill, const std::string& name) {
  for (const v1::DrillPhase& phase : drill.phases()) {
    if (phase.name() == name) return PhaseText(phase);
  }
  return "-";
}

std::string Where(const v1::Drill& drill) {
  return absl::StrCat(Printable(drill.spec().environment()), "/", Printable(drill.spec().service()));
}

Json ToJson(const v1::Drill& drill) {
  Json json;
  json["id"] = Printable(drill.id());
  json["fault"] = Word(drill.spec().fault());
  json["environment"] = Printable(drill.spec().environment());
  json["service"] = Printable(drill.spec().service());
  json["by_hand"] = drill.spec().by_hand();
  json["reason"] = Printable(drill.spec().reason());
  json["schedule"] = Printable(drill.spec().schedule());
  json["state"] = Word(drill.state());
  json["summary"] = Printable(drill.summary());
  json["requested_by"] = Printable(drill.requested_by());
  json["approved_by"] = Printable(drill.approved_by());
  json["recovered_by"] = Printable(drill.recovered_by());
  json["accepted_at"] = TimeOf(drill.accepted_at());
  if (drill.has_ended_at()) json["ended_at"] = TimeOf(drill.ended_at());
  json["alert"] = Printable(drill.alert());
  json["expected"] = Printable(drill.expected());
  json["observed"] = Printable(drill.observed());
  json["lost"] = Printable(drill.lost());
  json["waits_for"] = Printable(drill.waits_for());
  json["phases"] = Json::array();
  for (const v1::DrillPhase& phase : drill.phases()) {
    Json one;
    one["name"] = Printable(phase.name());
    if (phase.has_took()) one["took_seconds"] = Seconds(phase.took());
    one["target_seconds"] = Seconds(phase.target());
    one["met"] = phase.met();
    json["phases"].push_back(std::move(one));
  }
  if (drill.has_total()) json["total_seconds"] = Seconds(drill.total());
  json["hosts"] = Json::array();
  for (const v1::DrillHost& host : drill.hosts()) {
    Json one;
    one["host"] = Printable(host.host());
    if (host.has_fault()) {
      one["fault"] = Printable(host.fault().what());
      one["struck"] = host.fault().struck();
      one["put_back"] = host.fault().put_back();
      one["ended_alone"] = host.fault().ended_alone();
    }
    if (host.has_detected_after()) one["detected_after_seconds"] = Seconds(host.detected_after());
    one["detected_by"] = Printable(host.detected_by());
    one["error"] = Printable(host.error());
    json["hosts"].push_back(std::move(one));
  }
  json["safety_operation"] = Printable(drill.safety_operation_id());
  json["recovery_operation"] = Printable(drill.recovery_operation_id());
  json["verification_operation"] = Printable(drill.verification_operation_id());
  json["after_drill"] = Printable(drill.after_drill_id());
  return json;
}

std::string Dump(const Json& json) { return json.dump(2) + "\n"; }

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(Printable(text),
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

std::string Number(double value) { return absl::StrCat(static_cast<double>(static_cast<int64_t>(value * 100)) / 100); }

// Bars of one phase over time, the newest at the right, with the target as a line.
std::string Chart(const std::string& phase_name, const std::vector<const v1::Drill*>& drills) {
  struct Bar {
    const v1::Drill* drill;
    const v1::DrillPhase* phase;
  };
  std::vector<Bar> bars;
  double most = 0;
  for (const v1::Drill* drill : drills) {
    for (const v1::DrillPhase& phase : drill->phases()) {
      if (phase.name() != phase_name) continue;
      bars.push_back({drill, &phase});
      most = std::max({most, Seconds(phase.took()), Seconds(phase.target())});
    }
  }
  if (bars.empty() || most <= 0) return "";
  constexpr double kHeight = 120;
  constexpr double kWidth = 26;
  const double width = kWidth * static_cast<double>(bars.size()) + 70;
  std::string svg = absl::StrCat("<svg role=\"img\" aria-label=\"", Escaped(phase_name), "\" width=\"", Number(width),
                                 "\" height=\"150\" viewBox=\"0 0 ", Number(width), " 150\">\n");
  absl::StrAppend(&svg, "<text x=\"0\" y=\"14\">", FormatSeconds(absl::Seconds(most)),
                  "</text><text x=\"0\" y=\"130\">0</text>\n");
  for (size_t i = 0; i < bars.size(); ++i) {
    const double x = 60 + kWidth * static_cast<double>(i);
    const double target = 10 + kHeight * (1 - Seconds(bars[i].phase->target()) / most);
    if (bars[i].phase->has_took()) {
      const double height = std::max(1.0, kHeight * Seconds(bars[i].phase->took()) / most);
      absl::StrAppend(&svg, "<rect class=\"", bars[i].phase->met() ? "met" : "late", "\" x=\"", Number(x), "\" y=\"",
                      Number(10 + kHeight - height), "\" width=\"18\" height=\"", Number(height), "\"><title>",
                      Escaped(bars[i].drill->id()), ": ", PhaseText(*bars[i].phase), "</title></rect>\n");
    } else {
      absl::StrAppend(&svg, "<text class=\"late\" x=\"", Number(x + 4), "\" y=\"130\">x<title>",
                      Escaped(bars[i].drill->id()), ": never</title></text>\n");
    }
    absl::StrAppend(&svg, "<line class=\"target\" x1=\"", Number(x - 3), "\" x2=\"", Number(x + 21), "\" y1=\"",
                    Number(target), "\" y2=\"", Number(target), "\"/>\n");
  }
  return svg + "</svg>\n";
}

constexpr char kStyle[] = R"(body{font:15px/1.45 sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{text-align:left;padding:.25em .7em;border-bottom:1px solid #ddd}
svg text{font:11px sans-serif;fill:#555}.met{fill:#3a8f5c}.late{fill:#c0392b}.target{stroke:#222;stroke-dasharray:4 2}
.passed{color:#2b7a4b}.missed_target,.failed{color:#c0392b}.stopped{color:#8a6d00}
)";

}  // namespace

std::string Word(v1::FaultKind fault) {
  if (fault == v1::FAULT_KIND_UNSPECIFIED) return "not told";
  return absl::StrReplaceAll(absl::AsciiStrToLower(absl::StripPrefix(v1::FaultKind_Name(fault), "FAULT_KIND_")),
                             {{"_", "-"}});
}

std::string Word(v1::DrillState state) {
  return absl::AsciiStrToLower(absl::StripPrefix(v1::DrillState_Name(state), "DRILL_STATE_"));
}

bool HasEnded(v1::DrillState state) { return state >= v1::DRILL_STATE_PASSED; }

int ExitCodeFor(const v1::Drill& drill) {
  switch (drill.state()) {
    case v1::DRILL_STATE_PASSED:
      return kDone;
    case v1::DRILL_STATE_MISSED_TARGET:
      return kFailedNothingChanged;
    case v1::DRILL_STATE_STOPPED:
      return kReverted;
    default:
      return kNeedsAttention;
  }
}

std::string RenderDrills(const v1::ListDrillsResponse& response) {
  if (response.drills().empty()) return "No drills yet.\nNext: rbctl drill run bad-code ENV\n";
  std::vector<std::vector<std::string>> rows = {
      {"DRILL", "FAULT", "WHERE", "STATE", "DETECT", "DECIDE", "EXECUTE", "VERIFY", "BY"}};
  for (const v1::Drill& drill : response.drills()) {
    rows.push_back(
        {Printable(drill.id()), Word(drill.spec().fault()), Where(drill), Word(drill.state()), Phase(drill, "detect"),
         Phase(drill, "decide"), Phase(drill, "execute"), Phase(drill, "verify"),
         absl::StrCat(Printable(drill.spec().by_hand() && !drill.recovered_by().empty() ? drill.recovered_by()
                                                                                        : drill.requested_by()),
                      drill.spec().by_hand() ? " (by hand)" : "")});
  }
  return Table(rows);
}

std::string RenderDrillEvent(const v1::DrillEvent& event) {
  return absl::StrCat(TimeOf(event.at()), " ", Word(event.state()), " ",
                      event.host().empty() ? "-" : Printable(event.host()), " ", Printable(event.text()));
}

std::string RenderDrillEnd(const v1::Drill& drill) {
  std::vector<std::vector<std::string>> rows = {{"PHASE", "TOOK", "TARGET", ""}};
  for (const v1::DrillPhase& phase : drill.phases()) {
    rows.push_back({Printable(phase.name()), phase.has_took() ? FormatSeconds(ToDuration(phase.took())) : "never",
                    FormatSeconds(ToDuration(phase.target())), phase.met() ? "met" : "missed"});
  }
  std::string text = Table(rows);
  const auto add = [&text](absl::string_view name, const std::string& value) {
    if (!value.empty()) absl::StrAppend(&text, name, Printable(value), "\n");
  };
  add("Expected: ", drill.expected());
  add("Observed: ", drill.observed());
  add("Lost: ", drill.lost().empty() && HasEnded(drill.state()) ? "nothing" : drill.lost());
  add("Recovered by: ", drill.recovered_by());
  absl::StrAppend(&text, Printable(drill.id()), ": ", Word(drill.state()),
                  drill.summary().empty() ? "" : absl::StrCat(". ", Printable(drill.summary())), "\n");
  for (const std::string& next : drill.next_commands()) absl::StrAppend(&text, "Next: ", Printable(next), "\n");
  return text;
}

std::string RenderDrill(const v1::GetDrillResponse& response) {
  const v1::Drill& drill = response.drill();
  std::string text =
      absl::StrCat(Printable(drill.id()), ": ", Word(drill.spec().fault()), " in ", Where(drill), ", asked for by ",
                   Printable(drill.requested_by()), drill.spec().by_hand() ? ", by hand" : "", "\n");
  for (const v1::DrillEvent& event : response.events()) absl::StrAppend(&text, RenderDrillEvent(event), "\n");
  return text + RenderDrillEnd(drill);
}

std::string RenderSchedules(const v1::ListSchedulesResponse& response) {
  if (response.schedules().empty()) return "Nothing is scheduled. See schedules: in the controller's fleet file.\n";
  std::vector<std::vector<std::string>> rows = {{"SCHEDULE", "KIND", "CRON", "WHERE", "NEXT", "LAST", "OUTCOME"}};
  for (const v1::Schedule& one : response.schedules()) {
    std::string where;
    for (const std::string& environment : one.environments()) {
      absl::StrAppend(&where, where.empty() ? "" : ",", Printable(environment));
    }
    rows.push_back({Printable(one.name()), Printable(one.kind()), Printable(one.cron()), where,
                    one.has_next_at() ? TimeOf(one.next_at()) : "never",
                    one.has_last_began_at() ? TimeOf(one.last_began_at()) : "never",
                    absl::StrCat(Printable(one.last_outcome()), one.overdue() ? " OVERDUE" : "")});
  }
  return Table(rows) + RenderOverdue(response);
}

std::string RenderOverdue(const v1::ListSchedulesResponse& response) {
  std::string overdue;
  for (const v1::Schedule& one : response.schedules()) {
    if (!one.overdue()) continue;
    absl::StrAppend(&overdue, "schedule ", Printable(one.name()),
                    ": OVERDUE: ", one.last_outcome().empty() ? "has not begun" : Printable(one.last_outcome()),
                    one.last_message().empty() ? "" : ": ", Printable(one.last_message()), "\n");
  }
  return overdue;
}

std::string JsonDrills(const v1::ListDrillsResponse& response) {
  Json json;
  json["drills"] = Json::array();
  for (const v1::Drill& drill : response.drills()) json["drills"].push_back(ToJson(drill));
  return Dump(json);
}

std::string JsonDrill(const v1::GetDrillResponse& response, int exit_code) {
  Json json = ToJson(response.drill());
  json["exit_code"] = exit_code;
  json["events"] = Json::array();
  for (const v1::DrillEvent& event : response.events()) {
    json["events"].push_back({{"at", TimeOf(event.at())},
                              {"host", Printable(event.host())},
                              {"state", Word(event.state())},
                              {"text", Printable(event.text())}});
  }
  return Dump(json);
}

std::string JsonSchedules(const v1::ListSchedulesResponse& response) {
  Json json;
  json["schedules"] = Json::array();
  for (const v1::Schedule& one : response.schedules()) {
    Json schedule;
    schedule["name"] = Printable(one.name());
    schedule["kind"] = Printable(one.kind());
    schedule["cron"] = Printable(one.cron());
    schedule["environments"] = Json::array();
    for (const std::string& environment : one.environments())
      schedule["environments"].push_back(Printable(environment));
    if (one.has_next_at()) schedule["next_at"] = TimeOf(one.next_at());
    if (one.has_last_due_at()) schedule["last_due_at"] = TimeOf(one.last_due_at());
    if (one.has_last_began_at()) schedule["last_began_at"] = TimeOf(one.last_began_at());
    schedule["last_outcome"] = Printable(one.last_outcome());
    schedule["last_message"] = Printable(one.last_message());
    schedule["overdue"] = one.overdue();
    json["schedules"].push_back(std::move(schedule));
  }
  return Dump(json);
}

namespace {

// What a report says beyond the list.
struct DrillFigures {
  struct Passed {
    std::string where;
    std::string fault;
    int passed = 0;
    int all = 0;
  };
  std::map<std::string, Passed> by_fault;
  // By hand, newest first.
  std::vector<const v1::Drill*> trained;
};

DrillFigures FiguresOf(const v1::ListDrillsResponse& response) {
  DrillFigures figures;
  for (const v1::Drill& drill : response.drills()) {
    if (!HasEnded(drill.state())) continue;
    const std::string fault = Word(drill.spec().fault());
    DrillFigures::Passed& counted = figures.by_fault[absl::StrCat(Where(drill), " ", fault)];
    counted.where = Where(drill);
    counted.fault = fault;
    ++counted.all;
    if (drill.state() == v1::DRILL_STATE_PASSED) ++counted.passed;
    if (drill.spec().by_hand() && !drill.recovered_by().empty()) figures.trained.push_back(&drill);
  }
  return figures;
}

}  // namespace

std::string RenderDrillReport(const v1::ListDrillsResponse& response) {
  const DrillFigures figures = FiguresOf(response);
  std::vector<std::vector<std::string>> trained = {{"WHO", "WHEN", "FAULT", "OUTCOME"}};
  for (const v1::Drill* drill : figures.trained) {
    trained.push_back({Printable(drill->recovered_by()), TimeOf(drill->ended_at()), Word(drill->spec().fault()),
                       Word(drill->state())});
  }
  std::vector<std::vector<std::string>> rows = {{"WHERE AND WHAT", "PASSED"}};
  for (const auto& [what, counted] : figures.by_fault) {
    rows.push_back({what, absl::StrCat(counted.passed, " of ", counted.all)});
  }
  std::string text = RenderDrills(response) + "\n" + Table(rows);
  if (trained.size() > 1) absl::StrAppend(&text, "\nTrained by hand:\n", Table(trained));
  return text;
}

std::string JsonDrillReport(const v1::ListDrillsResponse& response) {
  const DrillFigures figures = FiguresOf(response);
  Json json;
  json["drills"] = Json::array();
  for (const v1::Drill& drill : response.drills()) json["drills"].push_back(ToJson(drill));
  json["by_fault"] = Json::array();
  for (const auto& [what, counted] : figures.by_fault) {
    json["by_fault"].push_back(
        {{"where", counted.where}, {"fault", counted.fault}, {"passed", counted.passed}, {"ended", counted.all}});
  }
  json["trained"] = Json::array();
  for (const v1::Drill* drill : figures.trained) {
    json["trained"].push_back({{"who", Printable(drill->recovered_by())},
                               {"at", TimeOf(drill->ended_at())},
                               {"fault", Word(drill->spec().fault())},
                               {"outcome", Word(drill->state())}});
  }
  return Dump(json);
}

std::string HtmlDrillReport(const v1::ListDrillsResponse& response) {
  std::string html =
      absl::StrCat("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Drills</title>\n<style>",
                   kStyle, "</style></head><body>\n<h1>Drills: recovery times against their targets</h1>\n");
  std::map<std::string, std::vector<const v1::Drill*>> groups;
  for (int i = response.drills_size() - 1; i >= 0; --i) {
    const v1::Drill& drill = response.drills(i);
    if (HasEnded(drill.state())) groups[absl::StrCat(Where(drill), ": ", Word(drill.spec().fault()))].push_back(&drill);
  }
  if (groups.empty()) absl::StrAppend(&html, "<p>No drill has ended yet.</p>\n");
  for (const auto& [name, drills] : groups) {
    absl::StrAppend(&html, "<h2>", Escaped(name), "</h2>\n");
    for (const char* phase : {"detect", "decide", "execute", "verify"}) {
      const std::string chart = Chart(phase, drills);
      if (!chart.empty())
        absl::StrAppend(&html, "<figure><figcaption>", phase, "</figcaption>\n", chart, "</figure>\n");
    }
    absl::StrAppend(&html,
                    "<table><tr><th>Drill</th><th>Outcome</th><th>Detect</th><th>Decide</th><th>Execute</th>"
                    "<th>Verify</th><th>Lost</th><th>By</th><th>What came of it</th></tr>\n");
    for (const v1::Drill* drill : drills) {
      absl::StrAppend(&html, "<tr><td>", Escaped(drill->id()), "</td><td class=\"", Word(drill->state()), "\">",
                      Word(drill->state()), "</td>");
      for (const char* phase : {"detect", "decide", "execute", "verify"}) {
        absl::StrAppend(&html, "<td>", Escaped(Phase(*drill, phase)), "</td>");
      }
      absl::StrAppend(&html, "<td>", Escaped(drill->lost()), "</td><td>",
                      Escaped(drill->recovered_by().empty() ? drill->requested_by() : drill->recovered_by()),
                      drill->spec().by_hand() ? " (by hand)" : "", "</td><td>", Escaped(drill->summary()), "<br>",
                      Escaped(drill->observed()), "</td></tr>\n");
    }
    absl::StrAppend(&html, "</table>\n");
  }
  return html + "</body></html>\n";
}

}  // namespace rb::cli
