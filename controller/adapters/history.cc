#include "controller/adapters/history.h"

#include <algorithm>
#include <string>
#include <utility>

namespace rb::controller {
namespace {

// Named in the request.
constexpr int kMostBriefHosts = 4;

}  // namespace

v1::Operation Brief(v1::Operation operation) {
  operation.set_host_count(static_cast<uint32_t>(operation.hosts_size()));
  operation.clear_plan();
  operation.clear_reasons();
  if (operation.spec().hosts_size() > kMostBriefHosts) operation.mutable_spec()->clear_hosts();
  v1::Operation brief = std::move(operation);
  google::protobuf::RepeatedPtrField<v1::HostProgress> hosts;
  hosts.Swap(brief.mutable_hosts());
  if (!hosts.empty()) {
    v1::HostProgress* first = brief.add_hosts();
    first->set_host(hosts[0].host());
    first->set_environment(hosts[0].environment());
    first->set_method(hosts[0].method());
    first->set_to_commit(hosts[0].to_commit());
    first->set_to_version(hosts[0].to_version());
  }
  return brief;
}

std::vector<StoredTime> TimesOf(const Operation& operation) {
  std::vector<StoredTime> times;
  if (operation.state != OperationState::kSucceeded || !ChangesHosts(operation.plan.spec.kind)) return times;
  for (const HostProgress& host : operation.hosts) {
    if (times.size() == kMostTimeSamples) return times;
    if (host.plan.already_there || host.times.downtime == absl::ZeroDuration()) continue;
    const Method method = MethodOf(host);
    times.push_back({host.plan.environment, operation.plan.spec.service, NameOf(method),
                     absl::ToInt64Microseconds(host.times.prepare), absl::ToInt64Microseconds(host.times.downtime)});
  }
  return times;
}

void LearnTimes(const std::vector<StoredTime>& stored, PlanningHistory* history) {
  // How long CI takes is not told by these.
  for (const StoredTime& time : stored) {
    for (const Method method : {Method::kBackup, Method::kGit}) {
      if (time.method != NameOf(method)) continue;
      history->times[{time.environment, method}].push_back(
          {absl::Microseconds(time.prepare_us), absl::Microseconds(time.downtime_us)});
    }
  }
}

}  // namespace rb::controller
