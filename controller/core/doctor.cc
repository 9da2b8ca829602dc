#include "controller/core/doctor.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/text.h"

namespace rb::controller {
namespace {

// "3 days", "5 h", "12 min": for what nobody measures to the second.
std::string About(absl::Duration duration) {
  if (duration >= absl::Hours(48)) return absl::StrCat(duration / absl::Hours(24), " days");
  if (duration >= absl::Hours(2)) return absl::StrCat(duration / absl::Hours(1), " h");
  if (duration >= absl::Minutes(2)) return absl::StrCat(duration / absl::Minutes(1), " min");
  return FormatSeconds(duration);
}

class Doctor {
 public:
  Doctor(const Examined& host, const DoctorContext& context) : host_(host), context_(context) {}

  std::vector<Finding> Look() {
    if (!LookAtAgent()) return std::move(findings_);
    LookAtBackups();
    if (host_.facts.has_value()) {
      LookAtConfig(*host_.facts);
      LookAtOwners(*host_.facts);
      LookAtDisk(host_.facts->tree_disk, host_.tree, "the tree's");
      LookAtDisk(host_.facts->state_disk, host_.state_folder, "the agent's");
      LookAtClock(*host_.facts);
      LookAtUnit(*host_.facts);
      LookAtGit(*host_.facts);
    }
    LookAtWhatRuns();
    return std::move(findings_);
  }

 private:
  void Add(Severity severity, const std::string& code, const std::string& seen, const std::string& mend) {
    findings_.push_back({severity, code, host_.environment, host_.service, host_.host, seen, mend});
  }
  std::string OnHost(const std::string& command) const { return absl::StrCat("on ", host_.host, ": ", command); }
  std::string BackupCommand(const std::string& reason) const {
    return absl::StrCat("rbctl backup create ", host_.environment, " ", host_.service, " --host ", host_.host,
                        " --reason \"", reason, "\"");
  }

  // False when there is nothing more to be said.
  bool LookAtAgent() {
    if (host_.last_seen_at == absl::InfinitePast() && !host_.connected) {
      Add(Severity::kError, "agent-unknown", "no agent has connected since the controller was started",
          absl::StrCat(OnHost("systemctl start rb-agent"), "; if it has never joined: rb-controller token ", host_.host,
                       ", on the controller"));
      return false;
    }
    if (!host_.connected) {
      Add(Severity::kError, "agent-offline", absl::StrCat("the agent was last seen ", FormatUtc(host_.last_seen_at)),
          OnHost("systemctl restart rb-agent; journalctl -u rb-agent"));
    }
    const absl::Duration left = host_.certificate_expires_at - context_.now;
    if (left < kCertificateEnds) {
      Add(left < kCertificateEndsSoon ? Severity::kError : Severity::kWarning, "certificate-expires",
          left < absl::ZeroDuration()
              ? absl::StrCat("the agent's certificate ended ", FormatUtc(host_.certificate_expires_at))
              : absl::StrCat("the agent's certificate ends in ", About(left)),
          absl::StrCat("rb-controller token ", host_.host, ", on the controller; then ",
                       OnHost("rb-agent join --token-file -")));
    }
    if (host_.connected && !host_.program_version.empty() && host_.program_version != context_.controller_version) {
      Add(Severity::kWarning, "agent-version",
          absl::StrCat("the agent is ", host_.program_version, ", the controller ", context_.controller_version),
          OnHost("install the package rb-agent of the controller's version"));
    }
    if (host_.connected && !host_.knows_service) {
      Add(Severity::kError, "service-unknown", "the host's own file does not name the service",
          OnHost(absl::StrCat("name ", host_.service, " in /etc/rb/agent.yaml, then systemctl restart rb-agent")));
      return false;
    }
    if (host_.connected && !host_.facts.has_value()) {
      Add(Severity::kError, "no-answer",
          host_.failure.empty() ? "the agent did not answer in time" : "the agent could not look: " + host_.failure,
          OnHost("journalctl -u rb-agent"));
    }
    return true;
  }

  void LookAtBackups() {
    if (host_.releases.empty()) {
      Add(Severity::kError, "no-backup", "there is no release to go back to",
          BackupCommand("the first one") + ", while it is healthy");
      return;
    }
    const Release* newest_good = nullptr;
    size_t good = 0;
    bool older_good = false;
    absl::Time proved = absl::InfinitePast();
    for (const Release& release : host_.releases) {
      if (release.standing != Standing::kGood) continue;
      ++good;
      if (newest_good == nullptr) newest_good = &release;
      older_good = older_good || release.name != host_.current_release;
      proved = std::max(proved, release.last_proved_at);
    }
    if (newest_good == nullptr) {
      Add(Severity::kError, "no-good-release",
          absl::StrCat(host_.releases.size(), " releases, and none of them is known to have been healthy"),
          BackupCommand("known to be good") + ", while it is healthy");
      return;
    }
    if (!older_good) {
      Add(Severity::kInfo, "only-what-runs", "the only good release is the one that runs now",
          "the next deploy leaves this one as the release to go back to");
    }
    if (good < kFewBackups) {
      Add(Severity::kWarning, "few-backups", absl::StrCat(good, good == 1 ? " good release" : " good releases"),
          absl::StrCat(BackupCommand("before the next deploy"), "; and retain: {releases: 10} in fleet.yaml"));
    }
    const absl::Duration age = context_.now - newest_good->captured_at;
    if (proved == absl::InfinitePast()) {
      Add(age < kProofIsDue ? Severity::kInfo : Severity::kError, "never-proved",
          absl::StrCat("no good release has ever been restored for a test; the newest is ", About(age), " old"),
          absl::StrCat(BackupCommand("to be proved"), "; a release is proved right after it is taken"));
    } else if (context_.now - proved > kProofIsOld) {
      Add(Severity::kWarning, "proof-is-old",
          absl::StrCat("the last restore for a test was ", About(context_.now - proved), " ago"),
          BackupCommand("to be proved"));
    } else if (newest_good->durability != Durability::kProved && age >= kProofIsDue) {
      Add(Severity::kWarning, "newest-not-proved",
          absl::StrCat("the newest good release, ", newest_good->name, ", is not proved"),
          OnHost("journalctl -u rb-agent says why"));
    }
  }

  void LookAtConfig(const HostFacts& facts) {
    for (const std::string& problem : facts.config_problems) {
      Add(Severity::kError, "agent-config", problem, OnHost("mend /etc/rb/agent.yaml, then: rb-agent check"));
    }
    for (const std::string& problem : facts.probe_problems) {
      Add(Severity::kError, "probe-cannot-pass", problem,
          OnHost("mend the probe in /etc/rb/agent.yaml: while it fails, every recovery is taken back"));
    }
  }

  void LookAtOwners(const HostFacts& facts) {
    const std::string owner = facts.expected_owner.empty() ? facts.tree_owner : facts.expected_owner;
    const std::string mend = OnHost(absl::StrCat("chown -Rh ", owner, " ", host_.tree));
    if (!facts.expected_owner.empty() && facts.tree_owner != facts.expected_owner) {
      Add(Severity::kError, "tree-owner",
          absl::StrCat(host_.tree, " belongs to ", facts.tree_owner, ", and should to ", facts.expected_owner), mend);
    }
    if (facts.foreign_entries > 0) {
      Add(Severity::kWarning, "foreign-files",
          absl::StrCat(facts.foreign_entries, facts.looked_at_all ? "" : " or more",
                       facts.foreign_entries == 1 ? " entry of the tree belongs" : " entries of the tree belong",
                       " to somebody else than ", owner, ": ", absl::StrJoin(facts.foreign_samples, ", ")),
          absl::StrCat(mend, "; or, if they are meant to be so, leave them: a release keeps owners"));
    }
    for (const std::string& folder : facts.exposed_folders) {
      Add(Severity::kError, "exposed-folder", absl::StrCat(folder, ": others can get at what root works with"),
          OnHost(absl::StrCat("chown root:root ", folder.substr(0, folder.find(' ')), " && chmod 0700 ",
                              folder.substr(0, folder.find(' ')))));
    }
  }

  void LookAtDisk(const DiskFacts& disk, const std::string& path, const std::string& whose) {
    if (disk.total_bytes == 0) return;
    const uint64_t tree_bytes = host_.releases.empty() ? 0 : host_.releases[0].content_bytes;
    const std::string seen = absl::StrCat(FormatBytes(disk.free_bytes), " of ", FormatBytes(disk.total_bytes),
                                          " are free on ", whose, " filesystem (", path, ")");
    const std::string mend = OnHost(absl::StrCat("df -h ", path, "; fewer releases: retain in fleet.yaml"));
    if (disk.free_bytes < disk.total_bytes / 100 * 3 || disk.free_bytes < tree_bytes) {
      Add(Severity::kError, "disk-full",
          disk.free_bytes < tree_bytes ? absl::StrCat(seen, "; a release holds ", FormatBytes(tree_bytes)) : seen,
          mend);
    } else if (disk.free_bytes < disk.total_bytes / 10) {
      Add(Severity::kWarning, "disk-low", seen, mend);
    }
    if (disk.total_inodes > 0 && disk.free_inodes < disk.total_inodes / 50) {
      Add(Severity::kError, "inodes-low",
          absl::StrCat(disk.free_inodes, " of ", disk.total_inodes, " inodes are free on ", whose, " filesystem"),
          OnHost(absl::StrCat("df -i ", path)));
    }
  }

  void LookAtClock(const HostFacts& facts) {
    // Somewhere between the two it looked: only what lies outside is surely wrong.
    const absl::Duration ahead = facts.clock_at - host_.answered_at;
    const absl::Duration behind = host_.asked_at - facts.clock_at;
    const absl::Duration off = std::max(ahead, behind);
    if (off < kClockIsOff) return;
    Add(off < kClockIsWrong ? Severity::kWarning : Severity::kError, "clock-skew",
        absl::StrCat("its clock is ", About(off), ahead > behind ? " ahead of" : " behind", " the controller's"),
        OnHost("timedatectl set-ntp true; timedatectl status") + ", and on the controller");
  }

  void LookAtUnit(const HostFacts& facts) {
    if (!facts.unit_problem.empty()) {
      Add(Severity::kError, "unit-unknown", facts.unit_problem, OnHost(absl::StrCat("systemctl status ", host_.unit)));
    }
    if (facts.unit_needs_reload) {
      Add(Severity::kWarning, "unit-needs-reload",
          absl::StrCat("the file of ", host_.unit, " is newer than what systemd has loaded"),
          OnHost("systemctl daemon-reload"));
    }
  }

  void LookAtGit(const HostFacts& facts) {
    if (!facts.has_git) return;
    if (!facts.git_problem.empty()) {
      Add(Severity::kWarning, "git-unreachable", facts.git_problem,
          "mend the remote or its key; a rollback to what is in the mirror already needs neither");
    }
    if (facts.git_fetched_at == absl::InfinitePast()) {
      Add(Severity::kWarning, "git-never-fetched", "the mirror has never been brought up to date",
          absl::StrCat("rbctl plan --deploy ", host_.environment, " ", host_.service, " --to main"));
    } else if (context_.now - facts.git_fetched_at > kMirrorIsStale) {
      Add(Severity::kInfo, "git-stale",
          absl::StrCat("the mirror was last brought up to date ", About(context_.now - facts.git_fetched_at), " ago"),
          absl::StrCat("rbctl plan --deploy ", host_.environment, " ", host_.service, " --to main"));
    }
  }

  void LookAtWhatRuns() {
    const std::string key = absl::StrCat(host_.environment, "/", host_.service);
    if (std::find(context_.busy.begin(), context_.busy.end(), key) != context_.busy.end()) return;
    if (host_.drifted) {
      Add(Severity::kWarning, "drift", absl::StrCat(host_.tree, " is not what was put there: it was changed by hand"),
          absl::StrCat(BackupCommand("keep what was changed"), ", or rbctl rollback ", host_.environment, " ",
                       host_.service, " --to ", host_.current_release, " --host ", host_.host));
    }
    for (const ProbeResult& probe : host_.probes) {
      if (probe.passed) continue;
      Add(probe.external ? Severity::kWarning : Severity::kError, probe.external ? "external-down" : "unhealthy",
          absl::StrCat(probe.name, ": saw ", probe.observed, ", expected ", probe.expected),
          probe.external ? "no rollback mends what the service depends on: ask whoever runs it"
                         : absl::StrCat("rbctl rollback ", host_.environment, " ", host_.service, " --reason \"…\""));
    }
  }

  const Examined& host_;
  const DoctorContext& context_;
  std::vector<Finding> findings_;
};

}  // namespace

std::vector<Finding> Diagnose(const std::vector<Examined>& hosts, const DoctorContext& context) {
  std::vector<Finding> all;
  for (const Examined& host : hosts) {
    for (Finding& finding : Doctor(host, context).Look()) all.push_back(std::move(finding));
  }
  std::stable_sort(all.begin(), all.end(), [](const Finding& a, const Finding& b) {
    return std::make_tuple(-static_cast<int>(a.severity), a.environment, a.service, a.host) <
           std::make_tuple(-static_cast<int>(b.severity), b.environment, b.service, b.host);
  });
  return all;
}

}  // namespace rb::controller
