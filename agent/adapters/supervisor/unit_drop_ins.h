// Makes units wait for `rb-agent recover`: neither boot nor a person can start a service on a tree that is half
// swapped.
#ifndef RB_AGENT_ADAPTERS_SUPERVISOR_UNIT_DROP_INS_H_
#define RB_AGENT_ADAPTERS_SUPERVISOR_UNIT_DROP_INS_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rb::agent {

// One file for each unit, <units_folder>/UNIT.d/50-rb-agent.conf. <state_folder>/units lists them, and is written
// before they are: what an agent that was killed has left is removed as well.
class UnitDropIns {
 public:
  struct Options {
    std::string state_folder;
    std::string config_path;
    std::string program;  // of rb-agent; absolute
    std::string units_folder = "/etc/systemd/system";
    // Whether systemd has loaded the file, and makes it load all of them (daemon-reload).
    std::function<absl::StatusOr<bool>(const std::string& unit, const std::string& path)> is_loaded;
    std::function<absl::Status()> reload;
  };
  explicit UnitDropIns(Options options) : options_(std::move(options)) {}

  // Unit → service: exactly these have a drop-in from now on. Idempotent.
  absl::Status Set(const std::map<std::string, std::string>& services);
  // Those that have one, sorted.
  absl::StatusOr<std::vector<std::string>> List() const;
  std::string PathOf(const std::string& unit) const;
  std::string TextFor(const std::string& service) const;

 private:
  Options options_;
};

// With systemd's own functions.
UnitDropIns::Options SystemdDropIns(const std::string& state_folder, const std::string& config_path);

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_SUPERVISOR_UNIT_DROP_INS_H_
