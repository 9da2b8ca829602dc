#include "controller/core/explain.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/core/names.h"

namespace rb::controller {
namespace {

std::vector<absl::Duration> Sorted(const std::vector<TimeSample>& samples,
                                   const std::function<absl::Duration(const TimeSample&)>& of) {
  std::vector<absl::Duration> sorted;
  sorted.reserve(samples.size());
  for (const TimeSample& sample : samples) sorted.push_back(of(sample));
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

// Nearest rank, of the slowest of `hosts`.
absl::Duration SlowestOf(const std::vector<absl::Duration>& sorted, uint32_t hosts, double quantile) {
  if (sorted.empty() || hosts == 0) return absl::ZeroDuration();
  const double of_one = std::pow(quantile, 1.0 / hosts);
  const auto rank = static_cast<size_t>(std::ceil(of_one * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

}  // namespace

std::string JoinSome(const std::vector<std::string>& parts, absl::string_view separator, size_t most) {
  if (parts.size() <= most) return absl::StrJoin(parts, separator);
  return absl::StrCat(absl::StrJoin(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(most), separator),
                      " and ", parts.size() - most, " others");
}

void Reasons::Add(Rule rule, absl::string_view text, const std::string& host) {
  for (Reason& reason : list_) {
    if (reason.rule != rule || reason.text != text || host.empty() != reason.hosts.empty()) continue;
    if (host.empty()) return;
    ++reason.host_count;
    if (reason.hosts.size() < kMostNamed) reason.hosts.push_back(host);
    return;
  }
  if (list_.size() >= kMost) return;
  Reason reason;
  reason.rule = rule;
  reason.text = std::string(text);
  if (!host.empty()) {
    reason.hosts.push_back(host);
    reason.host_count = 1;
  }
  list_.push_back(std::move(reason));
}

Prediction PredictHost(const std::vector<TimeSample>& samples) {
  Prediction prediction;
  const std::vector<absl::Duration> sorted =
      Sorted(samples, [](const TimeSample& sample) { return sample.prepare + sample.downtime; });
  prediction.samples = static_cast<uint32_t>(sorted.size());
  prediction.p50 = SlowestOf(sorted, 1, 0.5);
  prediction.p95 = SlowestOf(sorted, 1, 0.95);
  return prediction;
}

Prediction PredictOperation(const std::vector<PredictedGroup>& groups, absl::Duration soak) {
  Prediction prediction;
  std::vector<std::pair<absl::Duration, absl::Duration>> waves;
  absl::Duration prepare_p50;
  absl::Duration prepare_p95;
  for (const PredictedGroup& group : groups) {
    if (group.samples == nullptr || group.samples->empty()) return Prediction();
    const std::vector<absl::Duration> prepare =
        Sorted(*group.samples, [](const TimeSample& sample) { return sample.prepare; });
    const std::vector<absl::Duration> downtime =
        Sorted(*group.samples, [](const TimeSample& sample) { return sample.downtime; });
    uint32_t hosts = 0;
    if (waves.size() < group.hosts_in_wave.size()) waves.resize(group.hosts_in_wave.size());
    for (size_t wave = 0; wave < group.hosts_in_wave.size(); ++wave) {
      hosts += group.hosts_in_wave[wave];
      waves[wave].first = std::max(waves[wave].first, SlowestOf(downtime, group.hosts_in_wave[wave], 0.5));
      waves[wave].second = std::max(waves[wave].second, SlowestOf(downtime, group.hosts_in_wave[wave], 0.95));
    }
    prepare_p50 = std::max(prepare_p50, SlowestOf(prepare, hosts, 0.5));
    prepare_p95 = std::max(prepare_p95, SlowestOf(prepare, hosts, 0.95));
    prediction.samples += static_cast<uint32_t>(group.samples->size());
  }
  prediction.p50 = prepare_p50;
  prediction.p95 = prepare_p95;
  for (size_t wave = 0; wave < waves.size(); ++wave) {
    // The last wave is healthy before its soak is over.
    const absl::Duration soaked = wave + 1 < waves.size() ? soak : absl::ZeroDuration();
    prediction.p50 += waves[wave].first + soaked;
    prediction.p95 += waves[wave].second + soaked;
  }
  return prediction;
}

}  // namespace rb::controller
