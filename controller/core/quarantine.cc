#include "controller/core/quarantine.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/failpoint.h"
#include "common/text.h"

namespace rb::controller {
namespace {

constexpr size_t kLongestReason = 500;
constexpr size_t kLeastDigits = 4;

void Add(const Operation& operation, const std::string& commit, const std::string& version, const std::string& reason,
         std::vector<QuarantineChange>* changes) {
  const auto has = [&](const QuarantineChange& change) { return change.commit == commit; };
  if (commit.empty() || std::any_of(changes->begin(), changes->end(), has)) return;
  QuarantineChange change;
  change.service = operation.plan.spec.service;
  change.commit = commit;
  change.version = version;
  change.at = operation.ended_at;
  change.by = operation.id;
  change.reason = Truncate(reason, kLongestReason);
  changes->push_back(std::move(change));
}

bool Fits(const QuarantineEntry& entry, const std::string& reference) {
  if (!entry.version.empty() && entry.version == reference) return true;
  return reference.size() >= kLeastDigits && absl::StartsWith(entry.commit, absl::AsciiStrToLower(reference));
}

Refusal Refuse(Refusal::Code code, const std::string& message, const std::string& next) {
  Refusal refusal;
  refusal.code = code;
  refusal.message = absl::StrCat(message, ". Nothing was changed");
  refusal.next_command = next;
  return refusal;
}

}  // namespace

void Apply(const QuarantineChange& change, Quarantine* quarantine) {
  const auto release = [&](QuarantineEntry* entry) {
    if (entry->released) return;
    entry->released = true;
    entry->released_by = change.by;
    entry->release_reason = change.reason;
    entry->released_at = change.at;
    entry->number = change.number;
  };
  switch (change.kind) {
    case QuarantineChange::Kind::kQuarantined: {
      QuarantineEntry entry;
      entry.service = change.service;
      entry.commit = change.commit;
      entry.version = change.version;
      entry.reason = change.reason;
      entry.operation_id = change.by;
      entry.since = change.at;
      entry.number = change.number;
      (*quarantine)[{change.service, change.commit}] = std::move(entry);
      break;
    }
    case QuarantineChange::Kind::kReleased:
      if (const auto found = quarantine->find({change.service, change.commit}); found != quarantine->end()) {
        release(&found->second);
      }
      break;
    case QuarantineChange::Kind::kUndone:
      for (auto& [key, entry] : *quarantine) {
        if (key.first == change.service && entry.operation_id == change.undone_operation_id) release(&entry);
      }
      break;
  }
}

std::vector<QuarantineChange> ChangesAtEnd(const Operation& operation) {
  std::vector<QuarantineChange> changes;
  const OperationSpec& spec = operation.plan.spec;
  const bool is_drill = !spec.drill_id.empty() && !RB_PLANTED_BUG("drill-quarantines");
  if (!IsFinal(operation.state) || is_drill || !BringsCode(spec)) return changes;
  switch (spec.kind) {
    case OperationKind::kRollback:
    case OperationKind::kLocal:
      for (const HostProgress& host : operation.hosts) {
        const bool left = host.state == HostState::kKept && host.verdict == Verdict::kHealthy;
        if (!left || host.replaced_commit == host.plan.commit) continue;
        Add(operation, host.replaced_commit, host.replaced_version,
            absl::StrCat("rolled back from", spec.reason.empty() ? "" : ": ", spec.reason), &changes);
      }
      break;
    case OperationKind::kDeploy: {
      const auto was_unhealthy = [](const HostProgress& host) { return host.found_unhealthy; };
      const auto went_back = [](const HostProgress& host) { return host.state == HostState::kReverted; };
      const auto bad = std::find_if(operation.hosts.begin(), operation.hosts.end(), was_unhealthy);
      if (bad == operation.hosts.end() || std::none_of(operation.hosts.begin(), operation.hosts.end(), went_back)) {
        break;
      }
      Add(operation, bad->plan.commit, bad->plan.version,
          absl::StrCat("its deploy was reverted: ", bad->plan.host, " ", bad->error), &changes);
      break;
    }
    case OperationKind::kUndo:
      if (operation.state == OperationState::kSucceeded && !operation.already_there) {
        QuarantineChange change;
        change.kind = QuarantineChange::Kind::kUndone;
        change.service = spec.service;
        change.at = operation.ended_at;
        change.by = operation.id;
        change.reason =
            Truncate(absl::StrCat("what had quarantined it was undone", spec.reason.empty() ? "" : ": ", spec.reason),
                     kLongestReason);
        change.undone_operation_id = spec.undo_operation_id;
        changes.push_back(std::move(change));
      }
      break;
    case OperationKind::kBackup:
    case OperationKind::kVerification:
    case OperationKind::kRepair:
    case OperationKind::kExternal:
    case OperationKind::kPrune:
      break;
  }
  return changes;
}

std::map<std::string, QuarantinedCommit> QuarantinedOf(const Quarantine& quarantine, const std::string& service) {
  std::map<std::string, QuarantinedCommit> commits;
  for (auto at = quarantine.lower_bound({service, ""}); at != quarantine.end() && at->first.first == service; ++at) {
    const QuarantineEntry& entry = at->second;
    if (!entry.released) commits[entry.commit] = {entry.reason, entry.operation_id, entry.since};
  }
  return commits;
}

Refusal ResolveRelease(const Quarantine& quarantine, const std::string& reference, const std::string& service,
                       const std::string& reason, QuarantineChange* change) {
  const std::string list = "rbctl quarantine list";
  if (absl::StripAsciiWhitespace(reason).empty()) {
    return Refuse(Refusal::Code::kReasonRequired, "a release from quarantine needs a reason, which is kept",
                  "the same command with --reason \"...\"");
  }
  if (reason.size() > kLongestReason || Printable(reason) != reason) {
    return Refuse(Refusal::Code::kBadRequest,
                  absl::StrCat("a reason is one line of at most ", kLongestReason, " bytes of readable text"), list);
  }
  std::vector<const QuarantineEntry*> fitting;
  const QuarantineEntry* released = nullptr;
  for (const auto& [key, entry] : quarantine) {
    if ((!service.empty() && key.first != service) || !Fits(entry, reference)) continue;
    if (entry.released) {
      released = &entry;
    } else {
      fitting.push_back(&entry);
    }
  }
  if (fitting.empty() && released != nullptr) {
    return Refuse(Refusal::Code::kNoCandidate,
                  absl::StrCat(released->commit.substr(0, 7), " was released already, by ", released->released_by),
                  list);
  }
  if (fitting.empty()) {
    return Refuse(Refusal::Code::kNoCandidate,
                  absl::StrCat("nothing that is quarantined is '", Printable(reference), "'"), list);
  }
  if (fitting.size() > 1) {
    const std::string all = absl::StrJoin(fitting, ", ", [](std::string* out, const QuarantineEntry* entry) {
      absl::StrAppend(out, entry->commit.substr(0, 12), " of ", entry->service);
    });
    return Refuse(Refusal::Code::kAmbiguous, absl::StrCat("'", Printable(reference), "' is more than one thing: ", all),
                  "the same command with a whole commit, or --service");
  }
  change->kind = QuarantineChange::Kind::kReleased;
  change->service = fitting[0]->service;
  change->commit = fitting[0]->commit;
  change->version = fitting[0]->version;
  change->reason = reason;
  return Refusal();
}

}  // namespace rb::controller
