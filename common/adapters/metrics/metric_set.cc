#include "common/adapters/metrics/metric_set.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <stdexcept>
#include <utility>

namespace rb {
namespace {

// From what a tiny service needs to the longest target.
const prometheus::Histogram::BucketBoundaries& Buckets() {
  static const auto& buckets =
      *new prometheus::Histogram::BucketBoundaries{0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180, 300, 600, 1200};
  return buckets;
}

prometheus::Labels Named(const MetricRow& row, const LabelValues& values) {
  // A slip of the programmer's, and found by the first test that comes by.
  if (values.size() != row.labels.size()) throw std::logic_error(std::string("labels of ") + row.name);
  prometheus::Labels labels;
  for (size_t i = 0; i < values.size(); ++i) labels.emplace(row.labels[i], values[i]);
  return labels;
}

}  // namespace

struct MetricSet::Families {
  prometheus::Registry registry;
  std::map<Metric, prometheus::Family<prometheus::Counter>*> counters;
  std::map<Metric, prometheus::Family<prometheus::Gauge>*> gauges;
  std::map<Metric, prometheus::Family<prometheus::Histogram>*> histograms;
};

MetricSet::MetricSet(MetricProgram program) : families_(std::make_unique<Families>()) {
  Families& all = *families_;
  for (const MetricRow& row : MetricTable()) {
    if (row.program != program) continue;
    switch (row.type) {
      case MetricType::kCounter:
        all.counters[row.metric] = &prometheus::BuildCounter().Name(row.name).Help(row.help).Register(all.registry);
        break;
      case MetricType::kGauge:
        all.gauges[row.metric] = &prometheus::BuildGauge().Name(row.name).Help(row.help).Register(all.registry);
        break;
      case MetricType::kHistogram:
        all.histograms[row.metric] = &prometheus::BuildHistogram().Name(row.name).Help(row.help).Register(all.registry);
        break;
    }
  }
}
MetricSet::~MetricSet() = default;

void MetricSet::Count(Metric counter, const LabelValues& labels, double by) {
  prometheus::Counter& value = families_->counters.at(counter)->Add(Named(RowOf(counter), labels));
  if (by > 0) value.Increment(by);
}
void MetricSet::Observe(Metric histogram, const LabelValues& labels, double seconds) {
  families_->histograms.at(histogram)->Add(Named(RowOf(histogram), labels), Buckets()).Observe(seconds);
}
void MetricSet::Set(Metric gauge, const LabelValues& labels, double value) {
  families_->gauges.at(gauge)->Add(Named(RowOf(gauge), labels)).Set(value);
}

std::string MetricSet::Text(const MetricSamples& samples) const {
  std::vector<prometheus::MetricFamily> collected = families_->registry.Collect();
  for (const auto& [metric, values] : samples.values_) {
    const MetricRow& row = RowOf(metric);
    prometheus::MetricFamily* family = nullptr;
    for (prometheus::MetricFamily& one : collected) {
      if (one.name == row.name) family = &one;
    }
    if (family == nullptr) {
      family = &collected.emplace_back();
      family->name = row.name;
      family->help = row.help;
      family->type = row.type == MetricType::kCounter ? prometheus::MetricType::Counter : prometheus::MetricType::Gauge;
    }
    for (const auto& [labels, value] : values) {
      prometheus::ClientMetric added;
      for (const auto& [name, text] : Named(row, labels)) added.label.push_back({name, text});
      (row.type == MetricType::kCounter ? added.counter.value : added.gauge.value) = value;
      family->metric.push_back(std::move(added));
    }
  }
  return prometheus::TextSerializer().Serialize(collected);
}

}  // namespace rb
