#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/text.h"
#include "rbctl/render/checklist.h"
#include "rbctl/render/documents.h"
#include "rbctl/render/markdown.h"
#include "rbctl/render/text.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

std::string Time(bool known, const google::protobuf::Timestamp& time) { return known ? FormatUtc(ToTime(time)) : "-"; }
std::string Seconds(bool known, const google::protobuf::Duration& duration) {
  return known ? FormatSeconds(ToDuration(duration)) : "-";
}

std::string Version(const std::string& release, const std::string& commit, const std::string& version) {
  std::string text = MarkdownText(version);
  if (!commit.empty()) absl::StrAppend(&text, text.empty() ? "" : " ", MarkdownText(commit.substr(0, 7)));
  return text.empty() ? (release.empty() ? "-" : MarkdownCode(release)) : text;
}

bool Changed(const v1::HostProgress& host) {
  return !host.already_there() && (host.state() == v1::HOST_STATE_COMMITTED || host.state() == v1::HOST_STATE_KEPT ||
                                   host.state() == v1::HOST_STATE_REVERTED);
}

const v1::HostPlan* PlanOf(const v1::Operation& operation, const std::string& host) {
  for (const v1::HostPlan& plan : operation.plan().hosts()) {
    if (plan.host() == host) return &plan;
  }
  return nullptr;
}

// Commits that were left, with their versions; each once.
std::vector<std::string> LeftCommits(const v1::Operation& operation) {
  std::vector<std::string> left;
  for (const v1::HostProgress& host : operation.hosts()) {
    if (host.from_commit().empty() || host.from_commit() == host.to_commit() || host.already_there()) continue;
    const std::string text = Version(host.from_release(), host.from_commit(), host.from_version());
    if (std::find(left.begin(), left.end(), text) == left.end()) left.push_back(text);
  }
  return left;
}

bool IsRecovery(const v1::Operation& operation) {
  return operation.spec().kind() == v1::OPERATION_KIND_ROLLBACK || operation.spec().kind() == v1::OPERATION_KIND_UNDO ||
         operation.spec().kind() == v1::OPERATION_KIND_REPAIR;
}

std::string HostTable(const v1::Operation& operation) {
  std::vector<std::vector<std::string>> rows = {
      {"host", "from", "to", "method", "prepared", "stop", "swap", "start", "down", "recovered", "target", "state"}};
  for (const v1::HostProgress& host : operation.hosts()) {
    const v1::HostTimes& times = host.times();
    std::string target = Seconds(host.has_target(), host.target());
    if (IsJudged(host)) target += host.target_met() ? " met" : " **missed**";
    rows.push_back({MarkdownText(host.host()), Version(host.from_release(), host.from_commit(), host.from_version()),
                    Version(host.to_release(), host.to_commit(), host.to_version()), Word(host.method()),
                    Seconds(times.has_prepare(), times.prepare()), Seconds(times.has_stop(), times.stop()),
                    Seconds(times.has_swap(), times.swap()), Seconds(times.has_start(), times.start()),
                    Seconds(times.has_downtime(), times.downtime()), Seconds(times.has_recovery(), times.recovery()),
                    target, host.already_there() ? "already there" : Word(host.state())});
  }
  return MarkdownTable(rows);
}

// What is to be done, without what the figures cannot know.
std::vector<std::string> ActionItems(const v1::Operation& operation) {
  std::vector<std::string> items;
  for (const std::string& left : LeftCommits(operation)) {
    items.push_back("Find and mend the cause in " + left + ", and cover it with a test");
    items.push_back("See that " + left + " cannot be deployed again before that");
  }
  for (const std::string& command : operation.next_commands()) items.push_back("Do: " + MarkdownCode(command));
  bool unproved = false;
  bool missed_target = false;
  std::set<std::string> external;
  for (const v1::HostProgress& host : operation.hosts()) {
    if (!host.error().empty())
      items.push_back(absl::StrCat(MarkdownText(host.host()), ": ", MarkdownText(host.error())));
    missed_target = missed_target || (IsJudged(host) && !host.target_met());
    const v1::HostPlan* plan = PlanOf(operation, host.host());
    unproved = unproved || (plan != nullptr && plan->method() == v1::METHOD_BACKUP && !plan->has_last_proved_at());
    for (const Check& check : ChecklistOf(host)) {
      if (!check.passed && check.external) external.insert(check.name);
      if (!check.passed && !check.external && check.name != "time under target") {
        items.push_back(absl::StrCat(MarkdownText(host.host()), ": ", MarkdownText(check.name), " has not passed: saw ",
                                     MarkdownText(check.seen)));
      }
    }
  }
  if (missed_target)
    items.push_back("The target was missed: see which phase took the time (`rbctl notes`), and shorten it");
  if (unproved) items.push_back("A release was used that had never been restored for a test: `rbctl doctor` says why");
  for (const std::string& name : external) {
    items.push_back("Ask whoever runs it: external " + MarkdownText(name) + " was down");
  }
  if (operation.spec().emergency() || !operation.spec().override_gates().empty()) {
    items.push_back("Gates were skipped: let a second person look at what was done");
  }
  for (const v1::MissedHost& host : operation.plan().missed_hosts()) {
    items.push_back(absl::StrCat("When it is back: ", MarkdownCode("rbctl repair " + host.host())));
  }
  return items;
}

std::string Evidence(const v1::HostProgress& host) {
  std::string text = absl::StrCat("### ", MarkdownText(host.host()), "\n\n");
  const std::vector<Check> checks = ChecklistOf(host);
  if (!checks.empty()) {
    std::vector<std::vector<std::string>> rows = {{"check", "result", "seen", "expected"}};
    for (const Check& check : checks) {
      rows.push_back(
          {MarkdownText(check.name), ResultOf(check), MarkdownText(check.seen), MarkdownText(check.expected)});
    }
    text += MarkdownTable(rows);
  } else {
    text += "Nobody has looked at its probes.\n\n";
  }
  // What probes of logs have found is quoted as it was seen.
  for (const v1::ProbeResult& probe : host.probes()) {
    if ((probe.kind() != "log" && probe.kind() != "journal") || probe.observed().empty()) continue;
    absl::StrAppend(&text, "From ", MarkdownText(probe.name()), ":\n\n    ", Printable(probe.observed()), "\n\n");
  }
  if (host.log_lines_size() > 0) {
    text +=
        "The last lines of its log since the operation began there, verbatim (secrets are not known: look before you "
        "pass it on):\n\n";
    for (const std::string& line : host.log_lines()) absl::StrAppend(&text, "    ", Printable(line), "\n");
    text += "\n";
  }
  if (!host.error().empty()) absl::StrAppend(&text, "Error: ", MarkdownText(host.error()), "\n\n");
  return text;
}

std::string Title(const v1::Operation& operation) {
  return MarkdownText(absl::StrCat(Describe(operation.spec()), ", ", Outcome(operation)));
}

}  // namespace

std::string RenderIncident(const v1::GetOperationResponse& response) {
  const v1::Operation& operation = response.operation();
  const v1::OperationSpec& spec = operation.spec();
  std::string text = absl::StrCat("# Incident: ", Title(operation), "\n\n");
  text += MarkdownTable({{"", ""},
                         {"operation", MarkdownCode(operation.id())},
                         {"environment, service", MarkdownText(absl::StrCat(spec.environment(), ", ", spec.service()))},
                         {"asked for by", MarkdownText(operation.requested_by())},
                         {"reason", MarkdownText(spec.reason())},
                         {"accepted", Time(operation.has_accepted_at(), operation.accepted_at())},
                         {"ended", Time(operation.has_ended_at(), operation.ended_at())},
                         {"recovered in", absl::StrCat(Seconds(operation.has_recovery(), operation.recovery()),
                                                       ", target ", Seconds(operation.has_target(), operation.target()),
                                                       !operation.has_recovery() ? ""
                                                       : operation.target_met()  ? ", met"
                                                                                 : ", **missed**")},
                         {"outcome", MarkdownText(operation.summary())}});
  absl::StrAppend(&text, "## Detection\n\n",
                  spec.reason().empty() ? "No reason was given." : MarkdownText(spec.reason()), "\n\n");
  for (const std::string& note : operation.plan().notes()) absl::StrAppend(&text, "- ", MarkdownText(note), "\n");
  if (!operation.plan().notes().empty()) text += "\n";
  text += "How was it noticed, by whom, and how long after it began? …\n\n## Impact\n\n";
  absl::Duration longest;
  size_t changed = 0;
  for (const v1::HostProgress& host : operation.hosts()) {
    changed += Changed(host) ? 1 : 0;
    if (host.times().has_downtime()) longest = std::max(longest, ToDuration(host.times().downtime()));
  }
  absl::StrAppend(&text, "- ", changed, " of ", operation.hosts_size(), " hosts were changed.\n");
  if (longest > absl::ZeroDuration()) {
    absl::StrAppend(&text, "- The recovery itself kept the service down for at most ", FormatSeconds(longest),
                    " a host.\n");
  }
  for (const v1::HostPlan& plan : operation.plan().hosts()) {
    if (plan.delta().has_data_age()) {
      absl::StrAppend(&text, "- ", MarkdownText(plan.host()), ": its data went back ",
                      FormatSeconds(ToDuration(plan.delta().data_age())), ".\n");
    }
    for (const v1::TableRows& rows : plan.delta().table_rows()) {
      absl::StrAppend(&text, "- ", MarkdownText(plan.host()), ": ",
                      MarkdownText(absl::StrCat(rows.database(), " ", rows.table())), ": ", rows.now(),
                      " rows before, ", rows.then(), " after.\n");
    }
  }
  for (const v1::MissedHost& host : operation.plan().missed_hosts()) {
    absl::StrAppend(&text, "- ", MarkdownText(host.host()), " was offline and missed it.\n");
  }
  text += "- For whom, since when, and what could they not do? …\n\n## Timeline\n\n";
  std::vector<std::vector<std::string>> timeline = {{"time (UTC)", "state", "host", "what happened"}};
  for (const v1::OperationEvent& event : response.events()) {
    timeline.push_back({Time(event.has_at(), event.at()), Word(event.state()),
                        event.host().empty() ? "-" : MarkdownText(event.host()), MarkdownText(event.text())});
  }
  text += MarkdownTable(timeline);
  absl::StrAppend(&text, "## What was ", IsRecovery(operation) ? "rolled back" : "changed", "\n\n",
                  HostTable(operation));
  for (const v1::HostProgress& host : operation.hosts()) {
    if (host.replaced_release().empty()) continue;
    absl::StrAppend(&text, "- ", MarkdownText(host.host()), ": what was replaced is kept as ",
                    MarkdownCode(host.replaced_release()), "\n");
  }
  std::set<std::string> diffs;
  for (const v1::HostPlan& plan : operation.plan().hosts()) {
    const std::string& diff = plan.delta().config_diff();
    if (diff.empty() || !diffs.insert(diff).second) continue;
    absl::StrAppend(&text, "\nConfig, on ", MarkdownText(plan.host()), ":\n\n");
    size_t begin = 0;
    while (begin < diff.size()) {
      const size_t end = std::min(diff.find('\n', begin), diff.size());
      absl::StrAppend(&text, "    ", Printable(absl::string_view(diff).substr(begin, end - begin)), "\n");
      begin = end + 1;
    }
  }
  text += "\n## Evidence\n\n";
  for (const v1::HostProgress& host : operation.hosts()) text += Evidence(host);
  text += "## Root cause\n\n…\n\n## Action items\n\n";
  for (const std::string& item : ActionItems(operation)) absl::StrAppend(&text, "- [ ] ", item, "\n");
  return text + "- [ ] Hold the postmortem, and write down the root cause above\n";
}

std::string RenderNotes(const v1::GetOperationResponse& response) {
  const v1::Operation& operation = response.operation();
  std::vector<std::string> worked;
  std::vector<std::string> improve;
  const bool timed = operation.has_recovery() && operation.has_target();
  if (timed) {
    const absl::Duration recovery = ToDuration(operation.recovery());
    const absl::Duration target = ToDuration(operation.target());
    (operation.target_met() ? worked : improve)
        .push_back(absl::StrCat(
            "Recovered in ", FormatSeconds(recovery), ", target ", FormatSeconds(target), ": ",
            operation.target_met() ? "met" : absl::StrCat("missed by ", FormatSeconds(recovery - target))));
  } else if (HasEnded(operation.state()) && operation.state() != v1::OPERATION_STATE_SUCCEEDED) {
    improve.push_back("It did not recover: " + MarkdownText(operation.summary()));
  }
  size_t healthy = 0;
  size_t proved = 0;
  size_t from_backup = 0;
  absl::Duration longest_prepare, longest_stop, longest_swap, longest_start, longest_wait;
  for (const v1::HostProgress& host : operation.hosts()) {
    healthy += host.verdict() == v1::VERDICT_HEALTHY ? 1 : 0;
    const v1::HostTimes& times = host.times();
    longest_prepare = std::max(longest_prepare, ToDuration(times.prepare()));
    longest_stop = std::max(longest_stop, ToDuration(times.stop()));
    longest_swap = std::max(longest_swap, ToDuration(times.swap()));
    longest_start = std::max(longest_start, ToDuration(times.start()));
    if (times.has_downtime()) {
      longest_wait = std::max(longest_wait, ToDuration(times.downtime()) - ToDuration(times.stop()) -
                                                ToDuration(times.swap()) - ToDuration(times.start()));
    }
    if (const v1::HostPlan* plan = PlanOf(operation, host.host());
        plan != nullptr && plan->method() == v1::METHOD_BACKUP && !host.already_there()) {
      ++from_backup;
      proved += plan->has_last_proved_at() ? 1 : 0;
    }
    for (const Check& check : ChecklistOf(host)) {
      if (check.passed) continue;
      improve.push_back(absl::StrCat(MarkdownText(host.host()), ": ", MarkdownText(check.name), ": saw ",
                                     MarkdownText(check.seen), ", expected ", MarkdownText(check.expected),
                                     check.external ? " (external: not the release's fault)" : ""));
    }
    if (!host.error().empty())
      improve.push_back(absl::StrCat(MarkdownText(host.host()), ": ", MarkdownText(host.error())));
  }
  const auto hosts = static_cast<size_t>(operation.hosts_size());
  if (hosts > 0 && healthy == hosts) {
    worked.push_back(absl::StrCat(hosts == 1 ? "The host is" : absl::StrCat("All ", hosts, " hosts are"),
                                  " healthy by their own probes"));
  }
  if (from_backup > 0 && proved == from_backup) {
    worked.push_back("Every release that was gone to had been restored for a test before");
  } else if (from_backup > 0) {
    improve.push_back(absl::StrCat("Not proved before it was needed: the release of ", from_backup - proved, " of ",
                                   from_backup, " hosts (`rbctl doctor`)"));
  }
  if (longest_swap > absl::ZeroDuration() && longest_swap < absl::Seconds(1)) {
    worked.push_back(absl::StrCat("The tree itself was swapped in ", FormatSeconds(longest_swap)));
  }
  const std::pair<const char*, absl::Duration> phases[] = {{"preparing, while the service ran", longest_prepare},
                                                           {"stopping the service", longest_stop},
                                                           {"swapping the tree", longest_swap},
                                                           {"starting the service", longest_start},
                                                           {"from its start until all probes passed", longest_wait}};
  const auto* longest = std::max_element(std::begin(phases), std::end(phases),
                                         [](const auto& a, const auto& b) { return a.second < b.second; });
  if (longest->second > absl::ZeroDuration()) {
    improve.push_back(absl::StrCat("What took longest: ", longest->first, ", ", FormatSeconds(longest->second)));
  }
  if (operation.spec().reason().empty()) improve.push_back("No reason was given");
  if (operation.spec().emergency()) improve.push_back("It was an emergency: gates, soak and slow probes were skipped");
  for (const std::string& gate : operation.spec().override_gates()) {
    improve.push_back("A gate was skipped: " + MarkdownText(gate));
  }
  for (const v1::MissedHost& host : operation.plan().missed_hosts()) {
    improve.push_back(MarkdownText(host.host()) + " was offline and missed it");
  }
  std::string text = absl::StrCat("# Notes: ", Title(operation), "\n\n", MarkdownCode(operation.id()), ", ",
                                  Time(operation.has_accepted_at(), operation.accepted_at()), "\n\n## What worked\n\n");
  for (const std::string& line : worked) absl::StrAppend(&text, "- ", line, "\n");
  if (worked.empty()) text += "- Nothing that figures could show.\n";
  text += "\n## What needs improvement\n\n";
  for (const std::string& line : improve) absl::StrAppend(&text, "- ", line, "\n");
  if (improve.empty()) text += "- Nothing that figures could show.\n";
  absl::StrAppend(&text, "\n## Figures\n\n", HostTable(operation), "## Action items\n\n");
  for (const std::string& item : ActionItems(operation)) absl::StrAppend(&text, "- [ ] ", item, "\n");
  return text + "- [ ] What the figures do not say: …\n";
}

}  // namespace rb::cli
