// The values behind the table's families.
#ifndef RB_COMMON_ADAPTERS_METRICS_METRIC_SET_H_
#define RB_COMMON_ADAPTERS_METRICS_METRIC_SET_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/adapters/metrics/metric_table.h"

namespace rb {

using LabelValues = std::vector<std::string>;

// Gauges, and counters that somebody else keeps, as they are at one moment. What is not in it is not shown: a host that
// is no longer there leaves no series behind.
class MetricSamples {
 public:
  // `labels` in the table's order.
  void Set(Metric metric, LabelValues labels, double value) { values_[metric][std::move(labels)] = value; }

 private:
  friend class MetricSet;
  std::map<Metric, std::map<LabelValues, double>> values_;
};

// Thread-safe. The families of one program; each value has the labels that the table says, in its order.
class MetricSet {
 public:
  explicit MetricSet(MetricProgram program);
  ~MetricSet();
  // By 0 makes the series, so that its first increase is seen as one.
  void Count(Metric counter, const LabelValues& labels, double by = 1);
  void Observe(Metric histogram, const LabelValues& labels, double seconds);
  void Set(Metric gauge, const LabelValues& labels, double value);
  // In Prometheus' text format; `samples` beside what was set.
  std::string Text(const MetricSamples& samples) const;

 private:
  struct Families;
  const std::unique_ptr<Families> families_;
};

}  // namespace rb

#endif  // RB_COMMON_ADAPTERS_METRICS_METRIC_SET_H_
