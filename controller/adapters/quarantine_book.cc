#include "controller/adapters/quarantine_book.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "controller/adapters/wire.h"

namespace rb::controller {
namespace {

// An agent is sent the newest ones. So many bad commits of one service are not deployed again by mistake.
constexpr size_t kMostToldOfAService = 500;

bool IsNewer(const QuarantineEntry* a, const QuarantineEntry* b) { return a->number > b->number; }

}  // namespace

absl::Status QuarantineBook::Load() {
  RB_ASSIGN_OR_RETURN(const std::vector<QuarantineChange> changes, store_.QuarantineChanges());
  for (const QuarantineChange& change : changes) {
    Apply(change, &quarantine_);
    last_number_ = change.number;
  }
  return absl::OkStatus();
}

std::vector<QuarantineChange> QuarantineBook::ChangesOf(const Operation& operation) const {
  std::vector<QuarantineChange> changes = ChangesAtEnd(operation);
  uint64_t number = last_number_;
  for (QuarantineChange& change : changes) change.number = ++number;
  return changes;
}

void QuarantineBook::Take(const std::vector<QuarantineChange>& changes) {
  std::set<std::string> services;
  for (const QuarantineChange& change : changes) {
    Apply(change, &quarantine_);
    last_number_ = std::max(last_number_, change.number);
    services.insert(change.service);
  }
  std::set<std::string> agents;
  for (const std::string& service : services) {
    const auto found = fleet_.services.find(service);
    if (found == fleet_.services.end()) continue;
    for (const auto& [environment, hosts] : found->second.hosts) agents.insert(hosts.begin(), hosts.end());
  }
  for (const std::string& agent : agents) Tell(agent);
}

void QuarantineBook::Tell(const std::string& agent) const {
  v1::ConnectResponse message;
  v1::QuarantineList* list = message.mutable_quarantine_list();
  for (const auto& [name, service] : fleet_.services) {
    const bool is_there = std::any_of(service.hosts.begin(), service.hosts.end(), [&](const auto& of) {
      return std::find(of.second.begin(), of.second.end(), agent) != of.second.end();
    });
    if (!is_there) continue;
    std::vector<const QuarantineEntry*> entries;
    for (auto at = quarantine_.lower_bound({name, ""}); at != quarantine_.end() && at->first.first == name; ++at) {
      entries.push_back(&at->second);
    }
    std::sort(entries.begin(), entries.end(), IsNewer);
    if (entries.size() > kMostToldOfAService) entries.resize(kMostToldOfAService);
    for (const QuarantineEntry* entry : entries) *list->add_entries() = ToWire(*entry);
  }
  sender_.Send(agent, std::move(message));
}

v1::ListQuarantineResponse QuarantineBook::List(const v1::ListQuarantineRequest& request) const {
  std::vector<const QuarantineEntry*> entries;
  for (const auto& [key, entry] : quarantine_) {
    if (!request.service().empty() && key.first != request.service()) continue;
    if (!entry.released || request.with_released()) entries.push_back(&entry);
  }
  std::sort(entries.begin(), entries.end(), IsNewer);
  v1::ListQuarantineResponse response;
  for (const QuarantineEntry* entry : entries) *response.add_entries() = ToWire(*entry);
  return response;
}

absl::Status QuarantineBook::Release(const v1::ReleaseQuarantineRequest& request, const std::string& by,
                                     Refusal* refusal, v1::QuarantineEntry* released) {
  QuarantineChange change;
  *refusal = ResolveRelease(quarantine_, request.commit(), request.service(), request.reason(), &change);
  if (refusal->refused()) return absl::OkStatus();
  change.number = last_number_ + 1;
  change.at = clock_.Now();
  change.by = by;
  RB_RETURN_IF_ERROR(store_.AppendQuarantine(change));
  Take({change});
  *released = ToWire(quarantine_.at({change.service, change.commit}));
  return absl::OkStatus();
}

}  // namespace rb::controller
