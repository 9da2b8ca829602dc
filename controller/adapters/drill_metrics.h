// What drills that ended say to Prometheus (docs/metrics.md).
#ifndef RB_CONTROLLER_ADAPTERS_DRILL_METRICS_H_
#define RB_CONTROLLER_ADAPTERS_DRILL_METRICS_H_

#include <map>

#include "common/adapters/metrics/metric_set.h"
#include "controller/core/drill.h"
#include "controller/core/fleet.h"

namespace rb::controller {

// On the loop only.
class EndedDrills {
 public:
  // Not owned.
  explicit EndedDrills(const Fleet& fleet) : fleet_(fleet) {}
  // One that ended just now.
  void Count(const LastDrill& drill);
  // One of the past: when and how it ended outlives a restart of the controller. The newest of its fault counts.
  void Learn(const LastDrill& drill);
  // Of services and environments that the fleet file names.
  void Measure(MetricSamples* samples) const;

 private:
  const Fleet& fleet_;
  std::map<LabelValues, double> ended_;
  // By environment, service and fault.
  std::map<LabelValues, LastDrill> last_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DRILL_METRICS_H_
