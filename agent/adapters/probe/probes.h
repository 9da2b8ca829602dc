// The probes themselves. make_probes.h makes them from agent.yaml.
#ifndef RB_AGENT_ADAPTERS_PROBE_PROBES_H_
#define RB_AGENT_ADAPTERS_PROBE_PROBES_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "agent/adapters/config/agent_config.h"
#include "agent/core/ports/probe.h"
#include "agent/core/ports/supervisor.h"
#include "common/clock.h"
#include "common/unique_fd.h"

namespace rb::agent {

// How long a process has been running; ProcessAge, or what a test wants.
using AgeOf = std::function<absl::StatusOr<absl::Duration>(int64_t pid)>;
// Its resident memory in bytes; ProcessMemoryBytes, or what a test wants.
using MemoryOf = std::function<absl::StatusOr<uint64_t>(int64_t pid)>;

struct UnitProbeOptions {
  absl::Duration stable_for;
  // 0: no bound.
  uint64_t memory_below_bytes = 0;
};

// Passes when the unit is active and its main process has been running for `stable_for`, and takes less memory than
// `memory_below_bytes`. After an automatic restart it
// has to run for at least kSettlesAfter, also for a quick look: a unit that loops is active for a moment each time.
inline constexpr absl::Duration kSettlesAfter = absl::Seconds(10);
std::unique_ptr<Probe> MakeUnitProbe(UnitProbeOptions options, Supervisor& supervisor, Clock& clock, AgeOf age_of,
                                     MemoryOf memory_of);

struct HttpProbeOptions {
  std::string url;
  int status = 200;
  // Field → value. A JSON string equals its text; anything else is compared as a JSON value.
  std::map<std::string, std::string> json = {};
  // Has to be in the answer; empty: anything.
  std::string contains = {};
  absl::Duration timeout = absl::Seconds(2);
};
std::unique_ptr<Probe> MakeHttpProbe(HttpProbeOptions options, Clock& clock);

struct VersionProbeOptions {
  std::string url = {};
  // Instead of a URL: a file relative to `tree`, opened beneath it.
  std::string file = {};
  std::string tree = {};
  // The field; of a file, empty: its first line.
  std::string json = {};
  absl::Duration timeout = absl::Seconds(2);
};
// Passes when what it finds is the expected version (a leading "v" apart) or the expected commit, or at least its first
// 7 digits; also when nothing is known about what should run, and says so.
std::unique_ptr<Probe> MakeVersionProbe(VersionProbeOptions options, Clock& clock);

struct MetricsProbeOptions {
  std::string url;
  std::vector<std::string> require = {};
  absl::Duration timeout = absl::Seconds(2);
};
std::unique_ptr<Probe> MakeMetricsProbe(MetricsProbeOptions options, Clock& clock);
// How many samples there are of each metric. INVALID_ARGUMENT, with the line, for what is not in Prometheus' text
// format.
absl::StatusOr<std::map<std::string, size_t>> ParsePrometheusText(absl::string_view text);

struct LogProbeOptions {
  // Absolute.
  std::string file;
  // When the file lies in it, it is opened beneath this folder: the service's user can plant links there, and lines
  // are shown to people.
  std::string tree = {};
  std::string expect = {};
  std::string forbid = {};
  absl::Duration within = absl::Seconds(30);
  // Remembers where the log ended when the service was started.
  std::string memory_path = {};
};
// INVALID_ARGUMENT for a bad regular expression.
absl::StatusOr<std::unique_ptr<Probe>> MakeLogProbe(LogProbeOptions options, Clock& clock);

struct JournalProbeOptions {
  std::string unit;
  std::string expect = {};
  std::string forbid = {};
  absl::Duration within = absl::Seconds(30);
};
absl::StatusOr<std::unique_ptr<Probe>> MakeJournalProbe(JournalProbeOptions options, Clock& clock);

// `path` absolute; `name` as it is written in agent.yaml.
std::unique_ptr<Probe> MakeSqliteProbe(std::string path, std::string name, Clock& clock);

struct DiskProbeOptions {
  // Absolute; of each folder's filesystem.
  std::vector<std::string> folders;
  // 0: 3 % of the filesystem, which is where `rbctl doctor` calls it full.
  uint64_t free_bytes = 0;
};
// Tells of the first folder without room, else of the first. A folder that is not there says nothing.
std::unique_ptr<Probe> MakeDiskProbe(DiskProbeOptions options, Clock& clock);

// `address` is "host:port".
std::unique_ptr<Probe> MakeTcpProbe(std::string address, absl::Duration timeout, Clock& clock);

struct CommandProbeOptions {
  std::vector<std::string> argv;
  std::string folder;
  absl::Duration timeout = absl::Seconds(10);
  // Regular expression that has to match a line of its output; empty: anything. It has been checked.
  std::string expect = {};
  bool switch_user = false;
  UserAndGroup user;
};
std::unique_ptr<Probe> MakeCommandProbe(CommandProbeOptions options, Clock& clock);

// Runs `inner`, and marks what it says as being about something that the service depends on.
std::unique_ptr<Probe> MakeExternalProbe(std::unique_ptr<Probe> inner);

// A regular file for reading, beneath `tree` when it lies in it: the service's user can plant links there. Not valid
// when it cannot be opened.
UniqueFd OpenBeneath(const std::string& tree, const std::string& file);

// One line for a person: printable, at most `limit` bytes, no spaces at the ends.
std::string OneLine(absl::string_view text, size_t limit = 300);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_PROBE_PROBES_H_
