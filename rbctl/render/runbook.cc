#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/clock.h"
#include "common/text.h"
#include "rbctl/render/documents.h"
#include "rbctl/render/markdown.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

// The newest good release that was really restored once; null when there is none.
const v1::Release* NewestProved(const v1::ServiceReport& report) {
  for (const v1::Release& release : report.releases()) {
    if (release.durability() == v1::DURABILITY_PROVED) return &release;
  }
  return nullptr;
}

// The release that a rollback would go to: the newest proved one that does not run.
const v1::Release* NextTarget(const v1::ServiceReport& report) {
  for (const v1::Release& release : report.releases()) {
    if (release.durability() == v1::DURABILITY_PROVED && release.name() != report.current_release()) return &release;
  }
  return nullptr;
}

std::string Version(const std::string& commit, const std::string& version) {
  std::string text = MarkdownText(version);
  if (!commit.empty()) absl::StrAppend(&text, text.empty() ? "" : " ", MarkdownText(commit.substr(0, 7)));
  return text.empty() ? "not known" : text;
}

// "data" of "data/**": what stands before the first wildcard, as a path; empty when there is nothing.
std::string FixedPart(const std::string& glob) {
  const std::string fixed = glob.substr(0, glob.find_first_of("*?["));
  const size_t slash = fixed.size() == glob.size() ? std::string::npos : fixed.rfind('/');
  if (fixed.size() == glob.size()) return std::string(absl::StripSuffix(fixed, "/"));
  return slash == std::string::npos ? "" : fixed.substr(0, slash);
}

std::string ParentOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

// What of the tree is data: folders and files that no deployment brings.
std::set<std::string> DataPaths(const v1::ServiceSetup& setup) {
  std::set<std::string> folders;
  for (const std::string& glob : setup.data()) {
    if (const std::string path = FixedPart(glob); !path.empty()) folders.insert(path);
  }
  std::set<std::string> paths = folders;
  for (const std::string& database : setup.sqlite()) {
    const bool inside = std::any_of(folders.begin(), folders.end(), [&](const std::string& folder) {
      return database == folder || absl::StartsWith(database, folder + "/");
    });
    if (inside) continue;
    for (const char* suffix : {"", "-wal", "-shm", "-journal"}) paths.insert(database + suffix);
  }
  return paths;
}

class ServiceRunbook {
 public:
  ServiceRunbook(const v1::GetRunbookResponse& runbook, const v1::RunbookService& service)
      : runbook_(runbook), service_(service) {}

  std::string Render() {
    absl::StrAppend(&text_, "## ", MarkdownText(service_.service()), "\n\n");
    Hosts();
    Assess();
    RollBack();
    Verify();
    WithoutController();
    ByHand();
    return std::move(text_);
  }

 private:
  std::string Reason() const { return runbook_.reason_required() ? " --reason \"what is wrong\"" : ""; }
  std::string Rollback() const {
    return absl::StrCat("rbctl rollback ", ShellWord(runbook_.environment()), " ", ShellWord(service_.service()));
  }
  // A report to take examples from: of a host with something to go back to, where there is one.
  const v1::ServiceReport* Example() const {
    const v1::ServiceReport* any = nullptr;
    for (const v1::RunbookHost& host : service_.hosts()) {
      if (!host.has_report()) continue;
      if (NextTarget(host.report()) != nullptr) return &host.report();
      if (any == nullptr) any = &host.report();
    }
    return any;
  }

  void Hosts() {
    std::vector<std::vector<std::string>> rows = {
        {"host", "unit", "folder", "owner", "runs", "newest proved good release", "proved"}};
    for (const v1::RunbookHost& host : service_.hosts()) {
      const v1::ServiceReport& report = host.report();
      const v1::Release* proved = NewestProved(report);
      rows.push_back(
          {MarkdownText(host.host()) + (host.connected() ? "" : " (OFFLINE when this was written)"),
           report.setup().unit().empty() ? "run by the agent" : MarkdownCode(report.setup().unit()),
           MarkdownCode(report.tree()), MarkdownCode(report.setup().owner()),
           Version(report.current_commit(), report.current_version()),
           proved == nullptr ? "**none**: `rbctl backup create`" : MarkdownCode(proved->name()),
           proved == nullptr || !proved->has_last_proved_at() ? "-" : FormatUtc(ToTime(proved->last_proved_at()))});
    }
    text_ += MarkdownTable(rows);
  }

  void Assess() {
    absl::StrAppend(&text_, "### 1. Is it the release?\n\n");
    const std::string environment = ShellWord(runbook_.environment());
    text_ += MarkdownCommands({"rbctl status " + environment + "      # what runs, is it healthy, which probe fails",
                               "rbctl history " + environment + "     # what was changed last",
                               "rbctl doctor " + environment + "      # what would be in the way"});
    const v1::ServiceReport* report = Example();
    if (report == nullptr) return;
    std::vector<std::string> commands;
    if (!report->setup().unit().empty()) {
      commands.push_back("systemctl status " + ShellWord(report->setup().unit()));
      commands.push_back("journalctl -u " + ShellWord(report->setup().unit()) + " -n 100");
    }
    for (const v1::ProbeResult& probe : report->probes()) {
      for (const char* kind : {"http ", "version http", "metrics "}) {
        if (!absl::StartsWith(probe.name(), kind)) continue;
        commands.push_back("curl -sS " + ShellWord(probe.name().substr(probe.name().find(' ') + 1)));
        break;
      }
    }
    std::vector<std::string> seen;
    for (std::string& command : commands) {
      if (std::find(seen.begin(), seen.end(), command) == seen.end()) seen.push_back(std::move(command));
    }
    if (!seen.empty()) absl::StrAppend(&text_, "On a host itself:\n\n", MarkdownCommands(seen));
    bool external = false;
    for (const v1::ProbeResult& probe : report->probes()) {
      if (!probe.external()) continue;
      if (!external) text_ += "No rollback mends these; when one of them is down, ask whoever runs it:\n\n";
      external = true;
      absl::StrAppend(&text_, "- ", MarkdownText(probe.name()), "\n");
    }
    if (external) text_ += "\n";
  }

  void RollBack() {
    absl::StrAppend(&text_, "### 2. Roll back\n\n");
    for (const std::string& gate : runbook_.gates()) {
      absl::StrAppend(&text_, "- It waits until ", MarkdownText(gate),
                      "; in an emergency: `--emergency`, with a reason.\n");
    }
    if (!runbook_.gates().empty()) text_ += "\n";
    const v1::ServiceReport* report = Example();
    const v1::Release* target = report == nullptr ? nullptr : NextTarget(*report);
    const std::string commit = target == nullptr ? "" : target->commit().substr(0, 12);
    absl::StrAppend(&text_, "**A. From backup**, the fastest; target ",
                    FormatSeconds(ToDuration(service_.target_backup())), ". To the last good release of each host:\n\n",
                    MarkdownCommands({Rollback() + " --plan", Rollback() + Reason()}));
    if (target != nullptr) {
      absl::StrAppend(
          &text_, "When this was written that was ", Version(target->commit(), target->version()), ". By name:\n\n",
          MarkdownCommands(
              {absl::StrCat(Rollback(), " --to ", ShellWord(commit.empty() ? target->name() : commit), Reason())}));
    }
    absl::StrAppend(
        &text_, "**B. Deploy an earlier version again**, through CI; target ",
        FormatSeconds(ToDuration(service_.target_redeploy())),
        ". When neither a backup nor the mirror on a host will do, and for when what was merged has to be taken back "
        "too. "
        "Every host keeps what it has first; CI is asked once for all hosts of the environment, and a host counts as "
        "recovered when the target is on its disk and its probes pass, whatever CI says. It wants `ci:` in the "
        "controller's fleet file (the plan says so where it is missing):\n\n",
        MarkdownCommands({absl::StrCat(Rollback(), " --method redeploy --to ",
                                       commit.empty() ? "GOOD_COMMIT" : ShellWord(commit), " --plan"),
                          absl::StrCat(Rollback(), " --method redeploy --to ",
                                       commit.empty() ? "GOOD_COMMIT" : ShellWord(commit), Reason())}),
        "Without `ci:`, or when the controller is down: let CI deploy the good commit from its own page (run the "
        "deploy "
        "workflow for that commit), or take the bad one back in the repository:\n\n",
        MarkdownCommands(
            {"git log --oneline -10                # which commit was the last good one?", "git revert BAD_COMMIT",
             absl::StrCat("git push origin ", report == nullptr || report->setup().git_branch().empty()
                                                  ? "main"
                                                  : ShellWord(report->setup().git_branch())),
             "rbctl status " + ShellWord(runbook_.environment()) + "      # until what CI has deployed is healthy"}));
    if (report != nullptr && !report->setup().git_remote().empty()) {
      absl::StrAppend(&text_, "**C. From git**, without a backup: from the mirror that lies on each host; target ",
                      FormatSeconds(ToDuration(service_.target_git())), ":\n\n",
                      MarkdownCommands({absl::StrCat(Rollback(), " --method git --to ",
                                                     commit.empty() ? "GOOD_COMMIT" : ShellWord(commit), Reason())}));
    }
    text_ += "Only the config, or the data as well (the plan says what is lost):\n\n";
    text_ += MarkdownCommands({Rollback() + " --only config --to previous" + Reason(),
                               Rollback() + " --with-data --plan", Rollback() + " --with-data" + Reason()});
    text_ += "While it runs and after it:\n\n";
    text_ += MarkdownCommands({"rbctl watch OP", "rbctl abort OP              # hosts that were changed go back",
                               "rbctl undo OP --reason \"…\"   # to what the rollback replaced",
                               "rbctl repair HOST           # a host that was offline meanwhile"});
  }

  void Verify() {
    absl::StrAppend(&text_, "### 3. Did it work?\n\n");
    text_ += MarkdownCommands(
        {absl::StrCat("rbctl verify ", ShellWord(runbook_.environment()), " ", ShellWord(service_.service()))});
    text_ += "Each on its own:\n\n";
    if (const v1::ServiceReport* report = Example(); report != nullptr) {
      for (const v1::ProbeResult& probe : report->probes()) {
        if (probe.external()) continue;
        absl::StrAppend(&text_, "- [ ] ", MarkdownText(probe.name()), ": ", MarkdownText(probe.expected()), "\n");
      }
    }
    absl::StrAppend(&text_, "- [ ] recovered within the target of its method\n\n");
  }

  void WithoutController() {
    absl::StrAppend(&text_, "### 4. The controller is down\n\n",
                    "On each host, as root. The releases and the git mirror lie there; nothing else is needed. When "
                    "the controller is back it sees what runs there.\n\n");
    const std::string service = ShellWord(service_.service());
    const v1::ServiceReport* report = Example();
    const v1::Release* target = report == nullptr ? nullptr : NextTarget(*report);
    const std::string to = target == nullptr ? "last-good" : ShellWord(target->name());
    text_ +=
        MarkdownCommands({"rb-agent local status " + service, "rb-agent local list " + service,
                          absl::StrCat("rb-agent local plan ", service, " --to ", to),
                          absl::StrCat("rb-agent local rollback ", service, " --to ", to, " --reason \"…\""),
                          "rb-agent recover " + service + "      # after a power cut: makes a half-done swap whole"});
  }

  void ByHand() {
    absl::StrAppend(&text_, "### 5. Nothing of ours runs\n\n",
                    "The last resort, on one host at a time, as root, in `bash`. Stop the agent first, so that nobody "
                    "else is at work: `systemctl stop rb-agent`.\n\n");
    std::set<std::string> written;
    for (const v1::RunbookHost& host : service_.hosts()) {
      const v1::ServiceReport& report = host.report();
      if (report.tree().empty()) {
        absl::StrAppend(&text_, "- ", MarkdownText(host.host()),
                        ": it has not reported yet; read its `/etc/rb/agent.yaml`.\n\n");
        continue;
      }
      const std::string steps = StepsByHand(report);
      // Hosts that are alike are written about once.
      if (!written.insert(steps).second) continue;
      std::vector<std::string> names;
      for (const v1::RunbookHost& other : service_.hosts()) {
        if (!other.report().tree().empty() && StepsByHand(other.report()) == steps)
          names.push_back(MarkdownText(other.host()));
      }
      absl::StrAppend(&text_, "#### On ", absl::StrJoin(names, ", "), "\n\n", steps);
    }
  }

  std::string StepsByHand(const v1::ServiceReport& report) const {
    const std::string tree = ShellWord(report.tree());
    const v1::ServiceSetup& setup = report.setup();
    const std::string owner = setup.owner().empty() ? "OWNER" : ShellWord(setup.owner());
    const bool unit = !setup.unit().empty();
    const std::string stop =
        unit ? "systemctl stop " + ShellWord(setup.unit()) : "# stop the service: end its main process";
    const std::string start = unit ? "systemctl start " + ShellWord(setup.unit())
                                   : "systemctl start rb-agent    # it runs the service itself";
    const v1::Release* target = NextTarget(report);
    std::string text =
        "**Code and config**, from the mirror on the host. Nothing is deleted: what is there is moved aside.\n\n";
    std::vector<std::string> commands = {
        "set -euo pipefail",
        absl::StrCat("tree=", tree),
        absl::StrCat("commit=",
                     target == nullptr || target->commit().empty() ? "GOOD_COMMIT" : ShellWord(target->commit())),
        "stamp=$(date -u +%Y%m%dT%H%M%SZ)",
        "mkdir \"$tree.new\"",
        absl::StrCat(
            "git --git-dir=", ShellWord(absl::StrCat(setup.state_folder(), "/mirrors/", service_.service(), ".git")),
            " archive \"$commit\" | tar -x -C \"$tree.new\""),
        absl::StrCat("chown -R --no-dereference ", owner, " \"$tree.new\""),
        stop};
    // cp -a: owner, mode, times, links and attributes are kept; a plain cp -r loses them.
    for (const std::string& path : DataPaths(setup)) {
      const std::string word = ShellWord(path);
      commands.push_back(absl::StrCat("if [ -e \"$tree\"/", word, " ]; then rm -rf \"$tree.new\"/", word,
                                      "; mkdir -p \"$tree.new\"/", ShellWord(ParentOf(path)), "; cp -a \"$tree\"/",
                                      word, " \"$tree.new\"/", word, "; fi    # the data stays as it is"));
    }
    commands.push_back("chown --reference=\"$tree\" \"$tree.new\" && chmod --reference=\"$tree\" \"$tree.new\"");
    commands.push_back("mv -T \"$tree\" \"$tree.failed-$stamp\" && mv -T \"$tree.new\" \"$tree\"");
    commands.push_back(start);
    text += MarkdownCommands(commands);
    text +=
        "Files that are not in git (an environment file, logs) are in `$tree.failed-…`: bring them over with `cp -a`. "
        "To take it back: stop, move the two folders the other way, start.\n\n";
    for (const std::string& database : setup.sqlite()) {
      absl::StrAppend(
          &text, "**The database** ", MarkdownCode(database),
          ", from a copy that you trust. It goes together with what SQLite keeps beside it: an old `-wal` next to a "
          "new "
          "file brings the damage back.\n\n",
          MarkdownCommands({"set -euo pipefail",
                            absl::StrCat("db=", ShellWord(absl::StrCat(report.tree(), "/", database))),
                            "copy=/path/to/the/copy.db", "stamp=$(date -u +%Y%m%dT%H%M%SZ)",
                            "sqlite3 \"$copy\" 'PRAGMA integrity_check'        # must say: ok", stop,
                            "mkdir \"$db.bad-$stamp\"", "for f in \"$db\" \"$db-wal\" \"$db-shm\" \"$db-journal\"; do",
                            "  if [ -e \"$f\" ]; then mv \"$f\" \"$db.bad-$stamp/\"; fi", "done",
                            "cp -a \"$copy\" \"$db\"", absl::StrCat("chown ", owner, " \"$db\""), start}));
    }
    for (const std::string& hook : setup.database_hooks()) {
      absl::StrAppend(&text, "**The database** ", MarkdownCode(hook),
                      " is no file of the tree: its own restore command is in `/etc/rb/agent.yaml`.\n\n");
    }
    std::vector<std::string> cleared(setup.clears().begin(), setup.clears().end());
    if (!cleared.empty()) {
      absl::StrAppend(&text, "Caches to clear before the start: ", MarkdownText(absl::StrJoin(cleared, ", ")), ".\n\n");
    }
    std::vector<std::string> restarts(setup.restarts().begin(), setup.restarts().end());
    if (!restarts.empty()) {
      absl::StrAppend(&text, "To be restarted after it: ", MarkdownText(absl::StrJoin(restarts, ", ")), ".\n\n");
    }
    return text;
  }

  const v1::GetRunbookResponse& runbook_;
  const v1::RunbookService& service_;
  std::string text_;
};

}  // namespace

std::string RenderRunbook(const v1::GetRunbookResponse& runbook) {
  std::string text = absl::StrCat(
      "# Emergency rollback: ", MarkdownText(runbook.environment()), "\n\nWritten ",
      runbook.has_at() ? FormatUtc(ToTime(runbook.at())) : "-", " by `rbctl runbook ", Printable(runbook.environment()),
      "`. Keep a copy where you can read it when nothing else works, and write it anew when hosts or releases have "
      "changed.\n\n");
  for (const v1::RunbookService& service : runbook.services()) text += ServiceRunbook(runbook, service).Render();
  absl::StrAppend(&text, "## After it\n\n",
                  MarkdownCommands({"rbctl incident OP > incident.md     # what happened, for the postmortem",
                                    "rbctl notes OP                      # what worked, what needs improvement"}),
                  "1. Tell the team what runs now, and that the bad commit must not be deployed again.\n"
                  "2. Mend the cause, in test first.\n"
                  "3. Do the action items of the incident.\n");
  return text;
}

}  // namespace rb::cli
