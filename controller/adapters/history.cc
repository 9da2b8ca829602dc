#include "controller/adapters/history.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "google/protobuf/io/coded_stream.h"

namespace rb::controller {
namespace {

// Named in the request.
constexpr int kMostBriefHosts = 4;
// On the wire, a field that has a length.
constexpr uint32_t kLengthDelimited = 2;
constexpr uint32_t kOperationsTag = v1::ListOperationsResponse::kOperationsFieldNumber << 3 | kLengthDelimited;
constexpr uint32_t kPlanTag = v1::Operation::kPlanFieldNumber << 3 | kLengthDelimited;

using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;

// Over the fields of a rb.v1.Operation, without what is in them. False when they do not end where it does.
bool LookThrough(absl::string_view operation, bool* has_plan) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(operation.data()), static_cast<int>(operation.size()));
  while (const uint32_t tag = in.ReadTag()) {
    uint64_t number = 0;
    uint32_t length = 0;
    bool read = false;
    switch (tag & 7) {
      case 0:
        read = in.ReadVarint64(&number);
        break;
      case 1:
        read = in.Skip(8);
        break;
      case kLengthDelimited:
        read = in.ReadVarint32(&length) && in.Skip(static_cast<int>(length));
        break;
      case 5:
        read = in.Skip(4);
        break;
      default:
        break;
    }
    if (!read) return false;
    if (tag == kPlanTag) *has_plan = true;
  }
  return in.ConsumedEntireMessage();
}

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

bool ListWriter::AddStored(absl::string_view stored) {
  bool has_plan = false;
  if (!LookThrough(stored, &has_plan)) return false;
  if (!has_plan) {
    Append(stored);
    return true;
  }
  // An earlier version wrote it.
  v1::Operation operation;
  if (!operation.ParseFromArray(stored.data(), static_cast<int>(stored.size()))) return false;
  Add(Brief(std::move(operation)));
  return true;
}

void ListWriter::Add(const v1::Operation& brief) { Append(brief.SerializeAsString()); }

void ListWriter::Append(absl::string_view operation) {
  uint8_t head[10];
  uint8_t* end = CodedOutputStream::WriteVarint32ToArray(kOperationsTag, head);
  end = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(operation.size()), end);
  wire_.append(reinterpret_cast<const char*>(head), static_cast<size_t>(end - head));
  wire_.append(operation.data(), operation.size());
}

std::string ListWriter::Take(const std::string& next_page_token) && {
  v1::ListOperationsResponse rest;
  rest.set_next_page_token(next_page_token);
  rest.AppendToString(&wire_);
  return std::move(wire_);
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
