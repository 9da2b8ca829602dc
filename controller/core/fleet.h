// The fleet file as the controller's decisions see it. adapters/config reads it.
#ifndef RB_CONTROLLER_CORE_FLEET_H_
#define RB_CONTROLLER_CORE_FLEET_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "controller/core/window.h"

namespace rb::controller {

struct Environment {
  std::string name;
  // Lower is earlier. Unique.
  uint32_t order = 0;
  // The same target must have succeeded in this environment before; empty: no gate.
  std::string gate_passed_in;
  // And not longer ago than this.
  absl::Duration gate_passed_within = absl::InfiniteDuration();
  // A second operator has to approve.
  bool gate_approval = false;
  // When it may be changed; empty: always.
  std::vector<Window> gate_windows;
  // Where drills are allowed at all, in the last environment; which faults; when; and what they have to keep to.
  bool allow_drills = false;
  std::vector<std::string> drill_faults;
  std::vector<Window> drill_windows;
  absl::Duration drill_longest = absl::Minutes(10);
  absl::Duration drill_detect = absl::Minutes(1);
  // Zero: 30 s, by hand 5 min.
  absl::Duration drill_decide;
  absl::Duration drill_verify = absl::Minutes(1);
};

// Names of the gates, as in the fleet file and in --override-gate.
inline constexpr absl::string_view kGatePassedIn = "passed_in";
inline constexpr absl::string_view kGateWindow = "window";
inline constexpr absl::string_view kGateApproval = "approval";

enum class OnFailure { kRevertWave, kRevertAll, kHold };

struct WaveSize {
  // One of them is not 0.
  uint32_t count = 0;
  uint32_t percent = 100;
};

struct FleetService {
  std::string name;
  // Environment → hosts, in the order in which they are changed.
  std::map<std::string, std::vector<std::string>> hosts;
  absl::Duration target_backup = absl::Minutes(3);
  absl::Duration target_redeploy = absl::Minutes(10);
  absl::Duration target_git = absl::Minutes(2);
  WaveSize wave;
  // New code goes to so many hosts of an environment first. Absent: the first wave is as large as the others.
  std::optional<WaveSize> canary;
  // Healthy hosts of one environment that may be out of service at the same time. {0, 100}: no other bound than `wave`.
  WaveSize max_unavailable;
  OnFailure on_failure = OnFailure::kRevertAll;
  uint32_t retain_releases = 10;
  absl::Duration verify_deadline = absl::Seconds(60);
  absl::Duration verify_soak;
  // Of a verification by itself; negative: 10 s, or the soak when that is longer.
  absl::Duration verify_watch = absl::Seconds(-1);
  // Method B. Whether the fleet file says how CI deploys it, and why that is not to be used now (empty: it may be).
  bool has_ci = false;
  std::string ci_off_because;
  absl::Duration ci_deadline = absl::Minutes(20);
};

// What is done again and again; see core/schedule.h.
struct ScheduleEntry {
  std::string name;
  std::string kind;
  std::string cron;
  std::vector<std::string> environments;
  std::string service;
  absl::Duration jitter;
  std::vector<Window> windows;
  // Of a drill.
  std::string fault;
  std::string method;
  // Missed runs are reported, not made up.
  bool only_report_missed = false;
};

// How the controller's own metrics are served; paths, empty where not given.
struct MetricsFiles {
  std::string certificate;
  std::string key;
  std::string password_file;
  std::string targets_file;
};

struct Fleet {
  // Environments in which --announce reaches somebody.
  std::vector<std::string> announces_in;
  // By order.
  std::vector<Environment> environments;
  std::map<std::string, FleetService> services;
  // By name.
  std::vector<ScheduleEntry> schedules;
  MetricsFiles metrics;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_FLEET_H_
