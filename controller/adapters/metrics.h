// What Prometheus scrapes from the controller, on a loopback address.
#ifndef RB_CONTROLLER_ADAPTERS_METRICS_H_
#define RB_CONTROLLER_ADAPTERS_METRICS_H_

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace rb::controller {

// Thread-safe. Labels come from the fleet file and from fixed words only.
class ControllerMetrics {
 public:
  // Serves http://ADDRESS/metrics; writes the real address to <folder>/metrics.address. INVALID_ARGUMENT for an address
  // that is not loopback.
  static absl::StatusOr<std::unique_ptr<ControllerMetrics>> Create(const std::string& address,
                                                                   const std::string& folder);
  virtual ~ControllerMetrics() = default;
  virtual void OnRecovery(const std::string& environment, const std::string& service, const std::string& method,
                          const std::string& outcome, absl::Duration recovery, absl::Duration downtime,
                          absl::Duration target) = 0;
  virtual void OnEnded(const std::string& environment, const std::string& service, const std::string& kind,
                       const std::string& outcome) = 0;
  virtual void SetRunning(size_t count) = 0;
  virtual void SetAgentsConnected(size_t count) = 0;
  virtual void SetLastProved(const std::string& environment, const std::string& service, const std::string& host,
                             absl::Time when) = 0;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_METRICS_H_
