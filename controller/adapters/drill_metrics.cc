#include "controller/adapters/drill_metrics.h"

#include <string>

#include "absl/strings/str_replace.h"
#include "absl/time/time.h"

namespace rb::controller {
namespace {

std::string OutcomeLabel(DrillState state) { return absl::StrReplaceAll(NameOf(state), {{" ", "_"}}); }

}  // namespace

void EndedDrills::Count(const LastDrill& drill) {
  ++ended_[{drill.environment, drill.service, OutcomeLabel(drill.outcome)}];
  Learn(drill);
}

void EndedDrills::Learn(const LastDrill& drill) {
  // What somebody stopped says nothing of the recovery.
  if (drill.outcome == DrillState::kStopped) return;
  LastDrill& last = last_[{drill.environment, drill.service, std::string(NameOf(drill.fault))}];
  if (last.id.empty() || drill.ended_at >= last.ended_at) last = drill;
}

void EndedDrills::Measure(MetricSamples* samples) const {
  for (const auto& [name, service] : fleet_.services) {
    for (const auto& [environment, hosts] : service.hosts) {
      for (const DrillState outcome :
           {DrillState::kPassed, DrillState::kMissedTarget, DrillState::kFailed, DrillState::kStopped}) {
        const LabelValues labels = {environment, name, OutcomeLabel(outcome)};
        const auto found = ended_.find(labels);
        samples->Set(Metric::kDrills, labels, found == ended_.end() ? 0 : found->second);
      }
    }
  }
  for (const auto& [labels, last] : last_) {
    const auto service = fleet_.services.find(last.service);
    if (service == fleet_.services.end() || service->second.hosts.count(last.environment) == 0) continue;
    samples->Set(Metric::kDrillLastEnded, labels, static_cast<double>(absl::ToUnixMillis(last.ended_at)) / 1000);
    for (const DrillState outcome : {DrillState::kPassed, DrillState::kMissedTarget, DrillState::kFailed}) {
      samples->Set(Metric::kDrillLastOutcome, {labels[0], labels[1], labels[2], OutcomeLabel(outcome)},
                   outcome == last.outcome ? 1 : 0);
    }
    for (const DrillPhase& phase : last.phases) {
      const LabelValues of_phase = {labels[0], labels[1], labels[2], phase.name};
      samples->Set(Metric::kDrillPhaseTarget, of_phase, absl::ToDoubleSeconds(phase.target));
      if (phase.took.has_value()) samples->Set(Metric::kDrillPhase, of_phase, absl::ToDoubleSeconds(*phase.took));
    }
  }
}

}  // namespace rb::controller
