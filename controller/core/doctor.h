// What would be in the way of a recovery, before one is needed: from facts to findings, each with what was seen and the
// mend. Pure.
#ifndef RB_CONTROLLER_CORE_DOCTOR_H_
#define RB_CONTROLLER_CORE_DOCTOR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "controller/core/plan.h"

namespace rb::controller {

enum class Severity { kInfo, kWarning, kError };

struct Finding {
  Severity severity = Severity::kInfo;
  // Stable, for scripts.
  std::string code;
  std::string environment;
  std::string service;
  std::string host;
  // What was seen.
  std::string seen;
  // What to type, or to do.
  std::string mend;
  friend bool operator==(const Finding&, const Finding&) = default;
};

struct DiskFacts {
  uint64_t free_bytes = 0;
  // 0: not known.
  uint64_t total_bytes = 0;
  uint64_t free_inodes = 0;
  uint64_t total_inodes = 0;
};

// What the agent saw; mirrors proto/rb/v1/agent_link.proto, where each field is explained.
struct HostFacts {
  absl::Time clock_at;
  DiskFacts tree_disk;
  DiskFacts state_disk;
  std::string expected_owner;
  std::string tree_owner;
  uint64_t foreign_entries = 0;
  std::vector<std::string> foreign_samples;
  std::vector<std::string> exposed_folders;
  bool unit_needs_reload = false;
  std::string unit_problem;
  absl::Time git_fetched_at = absl::InfinitePast();
  bool has_git = false;
  std::string git_problem;
  std::vector<std::string> config_problems;
  std::vector<std::string> probe_problems;
  bool looked_at_all = true;
};

// One service on one host, as far as it is known.
struct Examined {
  std::string environment;
  std::string service;
  std::string host;
  bool connected = false;
  // absl::InfinitePast() when it has never been seen.
  absl::Time last_seen_at = absl::InfinitePast();
  absl::Time certificate_expires_at = absl::InfiniteFuture();
  std::string program_version;
  // Its own file names the service.
  bool knows_service = false;
  // When it was asked, and when the answer came, on the controller's clock.
  absl::Time asked_at;
  absl::Time answered_at;
  // Absent when it did not answer; `failure` may say why.
  std::optional<HostFacts> facts;
  std::string failure;
  // What it last reported.
  std::string tree;
  std::string state_folder;
  std::string unit;
  std::vector<Release> releases;
  std::string current_release;
  bool drifted = false;
  Verdict verdict = Verdict::kUnknown;
  std::vector<ProbeResult> probes;
};

struct DoctorContext {
  absl::Time now;
  std::string controller_version;
  // An operation is at work there: environment and service, "prod/rosey-bot". What changes meanwhile is no finding.
  std::vector<std::string> busy;
};

// The worst first; then by environment, service and host, and in the order in which a person would mend them.
std::vector<Finding> Diagnose(const std::vector<Examined>& hosts, const DoctorContext& context);

inline constexpr size_t kFewBackups = 3;
inline constexpr absl::Duration kProofIsOld = absl::Hours(24 * 8);
inline constexpr absl::Duration kProofIsDue = absl::Minutes(15);
inline constexpr absl::Duration kMirrorIsStale = absl::Hours(24);
inline constexpr absl::Duration kClockIsOff = absl::Seconds(2);
inline constexpr absl::Duration kClockIsWrong = absl::Minutes(2);
inline constexpr absl::Duration kCertificateEnds = absl::Hours(24 * 30);
inline constexpr absl::Duration kCertificateEndsSoon = absl::Hours(24 * 7);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_DOCTOR_H_
