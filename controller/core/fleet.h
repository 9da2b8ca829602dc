// The fleet file as the controller's decisions see it. adapters/config reads it.
#ifndef RB_CONTROLLER_CORE_FLEET_H_
#define RB_CONTROLLER_CORE_FLEET_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace rb::controller {

struct Environment {
  std::string name;
  // Lower is earlier. Unique.
  uint32_t order = 0;
  // The same target must have succeeded in this environment before; empty: no gate.
  std::string gate_passed_in;
};

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
  OnFailure on_failure = OnFailure::kRevertAll;
  uint32_t retain_releases = 10;
  absl::Duration verify_deadline = absl::Seconds(60);
  absl::Duration verify_soak;
};

struct Fleet {
  // By order.
  std::vector<Environment> environments;
  std::map<std::string, FleetService> services;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_FLEET_H_
