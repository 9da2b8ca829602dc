// Every metric of agent and controller, in one table: the families are made from it, and so is docs/metrics.md.
#ifndef RB_COMMON_ADAPTERS_METRICS_METRIC_TABLE_H_
#define RB_COMMON_ADAPTERS_METRICS_METRIC_TABLE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rb {

enum class MetricType { kCounter, kGauge, kHistogram };
enum class MetricProgram { kAgent, kController };

// In the order of the table.
enum class Metric {
  // The controller's.
  kRecovery,
  kDowntime,
  kRecoveryTarget,
  kRecoveries,
  kRecoveryLast,
  kRecoveryLastAt,
  kOperations,
  kOperationLastEnded,
  kOperationsRunning,
  kOperationAccepted,
  kOperationProgress,
  kNeedsAttention,
  kBackupLast,
  kProofLast,
  kReleases,
  kReleasesProved,
  kHealthy,
  kProbePassed,
  kDrifted,
  kMissed,
  kDrills,
  kDrillsRunning,
  kDrillLastEnded,
  kDrillLastOutcome,
  kDrillPhase,
  kDrillPhaseTarget,
  kScheduleNext,
  kScheduleLastBegan,
  kScheduleLastOutcome,
  kScheduleOverdue,
  kScheduleMissedRuns,
  kNotificationsWaiting,
  kNotificationsOldestWait,
  kNotifications,
  kAgentsConnected,
  kAgentsExpected,
  kAgentConnected,
  kAgentLastSeen,
  kAgentLinkOpened,
  kAgentCertificate,
  kControllerCertificate,
  kControllerQueue,
  kStoreSize,
  kStoreContent,
  kStoreRatio,
  // The agent's.
  kAgentDowntime,
  kAgentSteps,
  kAgentBackupLast,
  kAgentProofLast,
  kAgentReleases,
  kAgentProbePassed,
  kAgentDrifted,
  kAgentLink,
  kAgentLinkSince,
  kAgentOwnCertificate,
  kAgentQueue,
  kAgentReleasesPruned,
  kAgentPrunedBytes,
  kAgentStoreSize,
  kAgentStoreContent,
  kAgentStoreRatio,
};

struct MetricRow {
  Metric metric;
  MetricProgram program;
  MetricType type;
  // By Prometheus' rules: base units, `_total` for counters.
  const char* name;
  // None is unbounded: words of a fixed list, and names from the two files.
  std::vector<std::string> labels;
  const char* help;
};

const std::vector<MetricRow>& MetricTable();
const MetricRow& RowOf(Metric metric);
// The tables of docs/metrics.md, in Markdown.
std::string MetricTableAsMarkdown();

}  // namespace rb

#endif  // RB_COMMON_ADAPTERS_METRICS_METRIC_TABLE_H_
