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

namespace rb::agent {

// How long a process has been running; ProcessAge, or what a test wants.
using AgeOf = std::function<absl::StatusOr<absl::Duration>(int64_t pid)>;

// Passes when the unit is active and its main process has been running for `stable_for`. After an automatic restart it
// has to run for at least kSettlesAfter, also for a quick look: a unit that loops is active for a moment each time.
inline constexpr absl::Duration kSettlesAfter = absl::Seconds(10);
std::unique_ptr<Probe> MakeUnitProbe(absl::Duration stable_for, Supervisor& supervisor, Clock& clock, AgeOf age_of);

struct HttpProbeOptions {
  std::string url;
  int status = 200;
  // Field → value. A JSON string equals its text; anything else is compared as a JSON value.
  std::map<std::string, std::string> json = {};
  absl::Duration timeout = absl::Seconds(2);
};
std::unique_ptr<Probe> MakeHttpProbe(HttpProbeOptions options, Clock& clock);

struct VersionProbeOptions {
  std::string url;
  std::string json;
  absl::Duration timeout = absl::Seconds(2);
};
// Passes when the field is the expected version (a leading "v" apart) or the expected commit, or at least its first 7
// digits; also when nothing is known about what should run, and says so.
std::unique_ptr<Probe> MakeVersionProbe(VersionProbeOptions options, Clock& clock);

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

// `address` is "host:port".
std::unique_ptr<Probe> MakeTcpProbe(std::string address, absl::Duration timeout, Clock& clock);

struct CommandProbeOptions {
  std::vector<std::string> argv;
  std::string folder;
  absl::Duration timeout = absl::Seconds(10);
  bool switch_user = false;
  UserAndGroup user;
};
std::unique_ptr<Probe> MakeCommandProbe(CommandProbeOptions options, Clock& clock);

// One line for a person: printable, at most `limit` bytes, no spaces at the ends.
std::string OneLine(absl::string_view text, size_t limit = 300);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_PROBE_PROBES_H_
