#include "rbctl/render/text.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/clock.h"
#include "common/text.h"
#include "rbctl/render/checklist.h"
#include "rbctl/render/reasons.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

constexpr char kRed[] = "31";
constexpr char kGreen[] = "32";
constexpr char kYellow[] = "33";
constexpr char kBold[] = "1";

std::string Paint(const Style& style, const char* colour, const std::string& text) {
  return style.colour && !text.empty() ? absl::StrCat("\x1b[", colour, "m", text, "\x1b[0m") : text;
}

size_t Width(const std::string& text) {
  size_t width = 0;
  bool in_sequence = false;
  for (const char c : text) {
    if (c == '\x1b') {
      in_sequence = true;
    } else if (in_sequence) {
      in_sequence = c != 'm';
    } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {
      ++width;
    }
  }
  return width;
}

using Row = std::vector<std::string>;

std::vector<std::string> TableLines(const std::vector<Row>& rows, const std::string& indent = "") {
  std::vector<size_t> widths;
  for (const Row& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], Width(row[i]));
    }
  }
  std::vector<std::string> lines;
  for (const Row& row : rows) {
    std::string line = indent;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      line.append(i + 1 < row.size() ? widths[i] - Width(row[i]) + 2 : 0, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    lines.push_back(std::move(line));
  }
  return lines;
}

std::string Table(const std::vector<Row>& rows, const std::string& indent = "") {
  return absl::StrJoin(TableLines(rows, indent), "\n") + "\n";
}

std::string Dash(const std::string& text) { return text.empty() ? "-" : text; }

std::string Text(const std::string& remote) { return Printable(remote); }

// Printable escapes newlines too; a message of several lines keeps them.
std::string Lines(const std::string& remote, const std::string& indent) {
  std::vector<std::string> lines;
  for (const auto line : absl::StrSplit(remote, '\n')) {
    lines.push_back(Printable(line));
  }
  while (!lines.empty() && lines.back().empty()) {
    lines.pop_back();
  }
  return absl::StrJoin(lines, "\n" + indent);
}

// "v1.1.0 abc123f", or the release's name when neither is known.
std::string Version(const std::string& release, const std::string& commit, const std::string& version) {
  std::string text = Text(version);
  if (!commit.empty()) {
    absl::StrAppend(&text, text.empty() ? "" : " ", Text(commit.substr(0, 7)));
  }
  return text.empty() ? Dash(Text(release)) : text;
}

std::string Seconds(bool known, const google::protobuf::Duration& duration) {
  return known ? FormatSeconds(ToDuration(duration)) : "-";
}

std::string Time(bool known, const google::protobuf::Timestamp& time) { return known ? FormatUtc(ToTime(time)) : "-"; }

const char* ColourOf(const std::string& word) {
  if (word == "healthy" || word == "succeeded" || word == "good" || word == "already_there" || word == "yes") {
    return kGreen;
  }
  if (word == "unhealthy" || word == "needs_attention" || word == "bad" || word == "NO") {
    return kRed;
  }
  return kYellow;
}

std::string Coloured(const Style& style, const std::string& word) { return Paint(style, ColourOf(word), word); }

std::string NextCommands(const std::vector<std::string>& commands) {
  std::string text;
  for (const std::string& command : commands) {
    absl::StrAppend(&text, "Next: ", Text(command), "\n");
  }
  return text;
}

std::string ScopeOf(const v1::OperationSpec& spec) {
  std::string text = spec.through().empty() ? Text(spec.environment()) : Text(absl::StrJoin(spec.through(), ","));
  if (!spec.service().empty()) {
    absl::StrAppend(&text, "/", Text(spec.service()));
  }
  return text;
}

std::string TargetText(const v1::TargetReference& target) {
  switch (target.kind()) {
    case v1::TargetReference::KIND_NAMED:
      return Text(target.name());
    case v1::TargetReference::KIND_PREVIOUS:
      return "previous";
    case v1::TargetReference::KIND_BEFORE:
      return "before " + FormatUtc(ToTime(target.before()));
    default:
      return "last-good";
  }
}

std::string ProvedText(bool known, const google::protobuf::Timestamp& at) {
  return known ? FormatUtc(ToTime(at)) : "never";
}

std::string DeltaText(const v1::DeltaSummary& delta) {
  return absl::StrCat("+", delta.files_added(), " ~", delta.files_changed(), " -", delta.files_removed(),
                      delta.other_changes() == 0 ? "" : absl::StrCat(", ", delta.other_changes(), " other"), ", ",
                      FormatBytes(delta.bytes_to_stage()), " to stage");
}

void FailedProbes(const v1::HostProgress& host, std::string* text) {
  for (const v1::ProbeResult& probe : host.probes()) {
    if (!probe.passed()) {
      absl::StrAppend(text, "  ", Text(host.host()), probe.external() ? ": external probe " : ": probe ",
                      Text(probe.name()), ": saw ", Dash(Text(probe.observed())), ", expected ",
                      Dash(Text(probe.expected())), "\n");
    }
  }
}

// A line for each check of each host; where there are many hosts, only for those with one that has not passed.
std::string ChecklistText(const v1::Operation& operation, const Style& style) {
  constexpr int kMostHostsInFull = 8;
  std::vector<Row> rows = {{"HOST", "CHECK", "RESULT", "SEEN"}};
  size_t left_out = 0;
  for (const v1::HostProgress& host : operation.hosts()) {
    const std::vector<Check> checks = ChecklistOf(host);
    const bool all_passed = std::all_of(checks.begin(), checks.end(), [](const Check& check) { return check.passed; });
    if (operation.hosts_size() > kMostHostsInFull && all_passed) {
      left_out += checks.empty() ? 0 : 1;
      continue;
    }
    for (const Check& check : checks) {
      const std::string result = ResultOf(check);
      rows.push_back({Text(host.host()), Text(check.name),
                      Paint(style,
                            check.passed     ? kGreen
                            : check.external ? kYellow
                                             : kRed,
                            result),
                      check.passed ? Dash(Text(check.seen))
                                   : absl::StrCat(Dash(Text(check.seen)), "; expected ", Text(check.expected))});
    }
  }
  std::string text = rows.size() > 1 ? Table(rows) : "";
  if (left_out > 0) absl::StrAppend(&text, left_out, " hosts: every check has passed\n");
  return text;
}

}  // namespace

std::string Describe(const v1::OperationSpec& spec) {
  std::string text = absl::StrCat(Word(spec.kind()), " of ", ScopeOf(spec));
  if (spec.kind() == v1::OPERATION_KIND_REPAIR) absl::StrAppend(&text, " on ", Text(absl::StrJoin(spec.hosts(), ",")));
  if (spec.kind() == v1::OPERATION_KIND_ROLLBACK || spec.kind() == v1::OPERATION_KIND_DEPLOY) {
    absl::StrAppend(&text, " to ", TargetText(spec.target()));
  } else if (spec.kind() == v1::OPERATION_KIND_UNDO) {
    absl::StrAppend(&text, ": ", Text(spec.undo_operation_id()));
  }
  return text;
}

std::string RenderStatus(const v1::GetStatusResponse& response, const Style& style) {
  if (response.hosts().empty()) {
    return "No hosts.\nNext: rbctl agents\n";
  }
  std::vector<Row> rows = {{"ENV", "SERVICE", "HOST", "RUNS", "HEALTH", "LINK", "OPERATION"}};
  std::string notes;
  for (const v1::HostStatus& host : response.hosts()) {
    const v1::ServiceReport& report = host.report();
    std::string runs = Version(report.current_release(), report.current_commit(), report.current_version());
    if (report.drifted() && host.operation_id().empty()) {
      runs += " (changed by hand)";
    }
    const std::string verdict = Word(host.has_report() ? report.verdict() : v1::VERDICT_UNKNOWN);
    rows.push_back({Text(host.environment()), Text(host.service()), Text(host.host()), runs, Coloured(style, verdict),
                    host.connected() ? "connected" : Paint(style, kRed, "OFFLINE"),
                    host.operation_id().empty()
                        ? "-"
                        : absl::StrCat(Text(host.operation_id()), " ", Word(host.operation_state()))});
    if (host.has_missed()) {
      const v1::MissedOperation& missed = host.missed();
      absl::StrAppend(&notes, "  ", Text(host.host()), ": DRIFTED: missed ", Text(missed.operation_id()),
                      ", which meant it to run ", Version("", missed.commit(), missed.version()), ". Until ",
                      Time(missed.has_expires_at(), missed.expires_at()), ": rbctl repair ", Text(host.host()), "\n");
    }
    for (const v1::ProbeResult& probe : report.probes()) {
      if (!probe.passed()) {
        absl::StrAppend(&notes, "  ", Text(host.host()), probe.external() ? ": external probe " : ": probe ",
                        Text(probe.name()), ": saw ", Dash(Text(probe.observed())), ", expected ",
                        Dash(Text(probe.expected())), "\n");
      }
    }
  }
  return Table(rows) + notes;
}

std::string RenderHistory(const v1::ListOperationsResponse& response, const Style& style) {
  if (response.operations().empty()) {
    return "No operations yet.\n";
  }
  std::vector<Row> rows = {{"OPERATION", "AT", "WHAT", "OUTCOME", "RECOVERY", "BY", "REASON"}};
  for (const v1::Operation& operation : response.operations()) {
    const std::string outcome = Outcome(operation);
    rows.push_back({Text(operation.id()), Time(operation.has_accepted_at(), operation.accepted_at()),
                    Describe(operation.spec()),
                    Coloured(style, outcome == "running" ? Word(operation.state()) : outcome),
                    Seconds(operation.has_recovery(), operation.recovery()), Dash(Text(operation.requested_by())),
                    Dash(Text(operation.spec().reason()))});
  }
  return Table(rows);
}

std::string DescribePrediction(const v1::Prediction& prediction) {
  return absl::StrCat("p50 ", FormatSeconds(ToDuration(prediction.p50())), ", p95 ",
                      FormatSeconds(ToDuration(prediction.p95())), " (", prediction.samples(),
                      " measured: ", Text(prediction.basis()), ")");
}

std::string RenderPlan(const v1::Plan& plan, const Style& style) {
  std::string text = absl::StrCat("Plan: ", Describe(plan.spec()), ". Nothing is changed by a plan.\n");
  if (!plan.hosts().empty()) {
    std::vector<Row> rows = {{"HOST", "WAVE", "METHOD", "FROM", "TO", "CHANGES", "LAST PROVED", "PREDICTED"}};
    for (const v1::HostPlan& host : plan.hosts()) {
      rows.push_back({Text(host.host()), absl::StrCat(host.wave()), Word(host.method()),
                      Version(host.from_release(), host.from_commit(), host.from_version()),
                      Version(host.release_name(), host.commit(), host.version()),
                      host.already_there() ? "already there" : DeltaText(host.delta()),
                      ProvedText(host.has_last_proved_at(), host.last_proved_at()),
                      host.has_prediction() ? absl::StrCat(FormatSeconds(ToDuration(host.prediction().p50())), " / ",
                                                           FormatSeconds(ToDuration(host.prediction().p95())))
                                            : "-"});
    }
    text += Table(rows);
  }
  for (const v1::HostPlan& host : plan.hosts()) {
    if (!host.method_because().empty()) {
      absl::StrAppend(&text, Text(host.host()), ": ", Word(host.method()), " because ", Text(host.method_because()));
      if (!host.fallback_methods().empty()) {
        std::vector<std::string> fallbacks;
        for (const int method : host.fallback_methods()) {
          fallbacks.push_back(Word(static_cast<v1::Method>(method)));
        }
        absl::StrAppend(&text, "; if that fails: ", absl::StrJoin(fallbacks, ", "));
      }
      text += "\n";
    }
    for (const std::string& path : host.delta().sample_paths()) {
      absl::StrAppend(&text, "  ", Text(path), "\n");
    }
    if (!host.delta().config_diff().empty()) {
      absl::StrAppend(&text, "  ", Lines(host.delta().config_diff(), "  "), "\n");
    }
    if (host.delta().has_data_age()) {
      absl::StrAppend(&text, "  the data goes back ", FormatSeconds(ToDuration(host.delta().data_age())),
                      ": what was written since is lost to the service (and kept in a release, for rbctl undo)\n");
    }
    for (const v1::TableRows& rows : host.delta().table_rows()) {
      absl::StrAppend(&text, "  ", Text(rows.database()), " ", Text(rows.table()), ": ", rows.now(), " rows now, ",
                      rows.then(), " then\n");
    }
    for (const std::string& path : host.delta().not_captured()) {
      absl::StrAppend(&text, "  not kept by a release: ", Text(path), "\n");
    }
  }
  // The source of each host stands above.
  std::vector<const v1::Reason*> reasons;
  for (const v1::Reason& reason : plan.reasons()) {
    if (reason.rule() != v1::Reason::RULE_METHOD && reason.rule() != v1::Reason::RULE_REFUSAL)
      reasons.push_back(&reason);
  }
  text += RenderReasons(reasons);
  for (const std::string& note : plan.notes()) {
    const bool is_said = std::any_of(reasons.begin(), reasons.end(), [&note](const v1::Reason* reason) {
      return absl::EndsWith(reason->text(), note);
    });
    if (is_said) continue;
    absl::StrAppend(&text, "Note: ", Text(note), "\n");
  }
  if (plan.has_target()) {
    absl::StrAppend(&text, "Recovery target: ", FormatSeconds(ToDuration(plan.target())),
                    "; waves: ", plan.wave_count(), "\n");
  }
  if (plan.has_prediction()) {
    absl::StrAppend(&text, "Predicted recovery: ", DescribePrediction(plan.prediction()), "\n");
  }
  if (plan.has_refusal()) {
    absl::StrAppend(&text, "It would be refused.\n", RenderRefusal(plan.refusal(), style));
  }
  return text;
}

std::string RenderReport(const v1::Operation& operation, const Style& style) {
  std::string text;
  const bool changes = operation.spec().kind() != v1::OPERATION_KIND_VERIFICATION;
  const bool backup = operation.spec().kind() == v1::OPERATION_KIND_BACKUP;
  const bool prune = operation.spec().kind() == v1::OPERATION_KIND_PRUNE;
  if (!operation.hosts().empty() && !prune) {
    std::vector<Row> rows;
    if (backup) {
      rows.push_back({"HOST", "RELEASE"});
    } else if (!changes) {
      rows.push_back({"HOST", "RUNS", "VERDICT"});
    } else {
      rows.push_back(
          {"HOST", "METHOD", "FROM", "TO", "PREPARED", "DOWNTIME", "RECOVERY", "TARGET", "STATE", "VERDICT"});
    }
    for (const v1::HostProgress& host : operation.hosts()) {
      if (backup) {
        rows.push_back({Text(host.host()), Dash(Text(host.to_release()))});
        continue;
      }
      if (!changes) {
        rows.push_back({Text(host.host()), Version(host.from_release(), host.from_commit(), host.from_version()),
                        Coloured(style, Word(host.verdict()))});
        continue;
      }
      const v1::HostTimes& times = host.times();
      std::string target = Seconds(host.has_target(), host.target());
      if (IsJudged(host)) {
        target += host.target_met() ? Paint(style, kGreen, " met") : Paint(style, kRed, " MISSED");
      }
      rows.push_back({Text(host.host()), Word(host.method()),
                      Version(host.from_release(), host.from_commit(), host.from_version()),
                      Version(host.to_release(), host.to_commit(), host.to_version()),
                      Seconds(times.has_prepare(), times.prepare()), Seconds(times.has_downtime(), times.downtime()),
                      Seconds(times.has_recovery(), times.recovery()), target,
                      host.already_there() ? "already there" : Word(host.state()),
                      Coloured(style, Word(host.verdict()))});
    }
    text += Table(rows);
  }
  for (const v1::HostProgress& host : operation.hosts()) {
    if (!HasEnded(operation.state())) FailedProbes(host, &text);
    if (!host.error().empty()) {
      absl::StrAppend(&text, "  ", Text(host.host()), ": ", Lines(host.error(), "    "), "\n");
    }
  }
  if (HasEnded(operation.state()) && !prune) text += ChecklistText(operation, style);
  const std::string outcome = Outcome(operation);
  absl::StrAppend(&text, Paint(style, kBold, Text(operation.id())), ": ",
                  Coloured(style, outcome == "running" ? Word(operation.state()) : outcome),
                  operation.summary().empty() ? "" : ". ", Lines(operation.summary(), "  "), "\n");
  if (!operation.waits_for().empty()) {
    absl::StrAppend(&text, "Now: ", Text(operation.waits_for()), "\n");
  }
  if (operation.has_recovery() && !operation.already_there() && !backup && !prune && changes) {
    absl::StrAppend(&text, "Recovery ", FormatSeconds(ToDuration(operation.recovery())));
    if (operation.has_target()) {
      absl::StrAppend(&text, ", target ", FormatSeconds(ToDuration(operation.target())),
                      operation.target_met() ? ": met" : ": MISSED");
    }
    text += ".\n";
  }
  return text + NextCommands({operation.next_commands().begin(), operation.next_commands().end()});
}

std::string RenderShow(const v1::GetOperationResponse& response, const Style& style) {
  const v1::Operation& operation = response.operation();
  std::vector<Row> rows = {{"Operation:", Text(operation.id())},
                           {"What:", Describe(operation.spec())},
                           {"Reason:", Dash(Text(operation.spec().reason()))},
                           {"Requested by:", Dash(Text(operation.requested_by()))},
                           {"Accepted:", Time(operation.has_accepted_at(), operation.accepted_at())},
                           {"Ended:", Time(operation.has_ended_at(), operation.ended_at())}};
  std::string text = Table(rows) + "\n";
  for (const v1::OperationEvent& event : response.events()) {
    absl::StrAppend(&text, RenderEvent(event), "\n");
  }
  return absl::StrCat(text, response.events().empty() ? "" : "\n", RenderReport(operation, style));
}

std::string RenderReleases(const v1::ListReleasesResponse& response, const Style& style) {
  if (response.hosts().empty()) {
    return "No hosts.\n";
  }
  std::vector<Row> rows = {{"HOST", "RELEASE", "VERSION", "STANDING", "STATE", "LAST PROVED", "SIZE", "WHY"}};
  std::string notes;
  for (const v1::HostReleases& host : response.hosts()) {
    for (const v1::Release& release : host.releases()) {
      std::string name = Text(release.name());
      name += release.name() == host.current_release() ? " (runs)" : "";
      name += release.pinned() ? " (pinned)" : "";
      rows.push_back(
          {Text(host.host()), name, Version("", release.commit(), release.version()),
           Coloured(style, Word(release.standing())), Word(release.durability()),
           ProvedText(release.has_last_proved_at(), release.last_proved_at()), FormatBytes(release.content_bytes()),
           absl::StrCat(Word(release.cause()), release.reason().empty() ? "" : ": ", Text(release.reason()))});
    }
    if (host.releases().empty()) {
      absl::StrAppend(&notes, Text(host.host()), ": no releases yet\n");
    }
    if (!host.connected()) {
      absl::StrAppend(&notes, Text(host.host()), ": offline; this is what it last reported\n");
    }
  }
  return Table(rows) + notes;
}

std::string RenderAudit(const v1::ListAuditRecordsResponse& response, const Style& style) {
  if (response.records().empty()) return "No records.\n";
  std::vector<Row> rows = {{"NUMBER", "AT", "WHO", "ROLE", "FROM", "REQUEST", "ABOUT", "ALLOWED", "REASON"}};
  for (const v1::AuditRecord& record : response.records()) {
    rows.push_back({absl::StrCat(record.number()), Time(record.has_at(), record.at()), Dash(Text(record.who())),
                    Text(record.role()), Dash(Text(record.from())), Text(record.request()),
                    Dash(Text(record.subject())),
                    record.allowed() ? "yes" : Paint(style, kRed, absl::StrCat("NO: ", Text(record.refusal()))),
                    Dash(Text(record.reason()))});
  }
  return Table(rows);
}

std::string RenderAuditCheck(const v1::VerifyAuditResponse& response, const Style& style) {
  if (!response.intact()) {
    return absl::StrCat(Paint(style, kRed, "The audit log is NOT intact"), ": ", Text(response.problem()), "\n",
                        response.count(), " records before that are in order; head ", Text(response.head()), "\n",
                        NextCommands({"compare with a copy of controller.db; what the operations did: rbctl history"}));
  }
  return absl::StrCat(response.count(), " records, intact; head ", Text(response.head()), "\n",
                      "Note the head elsewhere: it finds a log that was cut off or written anew.\n",
                      NextCommands({absl::StrCat("later: rbctl audit verify --expect ", Text(response.head()))}));
}

std::string RenderAgents(const v1::ListAgentsResponse& response, const Style& style) {
  if (response.agents().empty()) {
    return "No agent has joined.\nNext: rb-controller token NAME, on the controller\n";
  }
  std::vector<Row> rows = {
      {"AGENT", "CONNECTED", "LAST SEEN", "PROGRAM", "ENVIRONMENTS", "SERVICES", "CERTIFICATE UNTIL"}};
  for (const v1::Agent& agent : response.agents()) {
    rows.push_back({Text(agent.name()), Coloured(style, agent.connected() ? "yes" : "NO"),
                    agent.has_last_seen_at() ? FormatUtc(ToTime(agent.last_seen_at())) : "never",
                    Dash(Text(agent.program_version())), Dash(Text(absl::StrJoin(agent.environments(), ","))),
                    Dash(Text(absl::StrJoin(agent.services(), ","))),
                    Time(agent.has_certificate_expires_at(), agent.certificate_expires_at())});
  }
  return Table(rows);
}

std::string RenderRefusal(const v1::Refusal& refusal, const Style& style) {
  std::string text = absl::StrCat(Paint(style, kRed, "Refused"), " (", Word(refusal.code()),
                                  "): ", Lines(refusal.message(), "  "), "\n");
  if (!refusal.holder_operation_id().empty()) {
    absl::StrAppend(&text, "Held by ", Text(refusal.holder_operation_id()), "\n");
  }
  std::vector<Row> rows = {{"HOST", "METHOD", "CANDIDATE", "VERSION", "STANDING", "PROVED", "NOTE"}};
  for (const v1::HostCandidates& host : refusal.candidates()) {
    for (const v1::Candidate& candidate : host.candidates()) {
      const bool release = candidate.has_release();
      const v1::Release& of = candidate.release();
      rows.push_back({Text(host.host()), Word(candidate.method()), Dash(Text(release ? of.name() : candidate.commit())),
                      Version("", candidate.commit(), candidate.version()),
                      release ? Coloured(style, Word(of.standing())) : "-",
                      release ? ProvedText(of.has_last_proved_at(), of.last_proved_at()) : "-",
                      candidate.already_there() ? "runs now" : Dash(Text(candidate.refused_because()))});
    }
  }
  if (rows.size() > 1) {
    text += Table(rows);
  }
  if (!refusal.next_command().empty()) {
    text += NextCommands({refusal.next_command()});
  }
  return text;
}

std::string RenderEvent(const v1::OperationEvent& event) {
  return absl::StrCat(Time(event.has_at(), event.at()), " ", Word(event.state()), " ", Dash(Text(event.host())), " ",
                      Text(event.text()));
}

std::vector<std::string> LiveLines(const v1::Operation& operation, absl::Time now, const Style& style) {
  const absl::Time end = operation.has_ended_at() ? ToTime(operation.ended_at()) : now;
  const absl::Duration elapsed = operation.has_accepted_at()
                                     ? std::max(end - ToTime(operation.accepted_at()), absl::ZeroDuration())
                                     : absl::ZeroDuration();
  std::vector<std::string> lines = {
      absl::StrCat(Paint(style, kBold, Text(operation.id())), "  ", Describe(operation.spec()), "  ",
                   Coloured(style, Word(operation.state())), "  ", FormatSeconds(elapsed))};
  if (!operation.waits_for().empty()) lines.push_back(Text(operation.waits_for()));
  std::vector<Row> rows = {{"HOST", "WAVE", "STATE", "DOING", "FROM", "TO", "DOWNTIME", "RECOVERY", "VERDICT"}};
  for (const v1::HostProgress& host : operation.hosts()) {
    rows.push_back({Text(host.host()), absl::StrCat(host.wave()),
                    host.already_there() ? "already there" : Word(host.state()),
                    host.stage() == v1::TaskProgress::STAGE_UNSPECIFIED ? "-" : Word(host.stage()),
                    Version(host.from_release(), host.from_commit(), host.from_version()),
                    Version(host.to_release(), host.to_commit(), host.to_version()),
                    Seconds(host.times().has_downtime(), host.times().downtime()),
                    Seconds(host.times().has_recovery(), host.times().recovery()),
                    Coloured(style, host.connected() ? Word(host.verdict()) : "offline")});
  }
  for (std::string& line : TableLines(rows)) {
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace rb::cli
