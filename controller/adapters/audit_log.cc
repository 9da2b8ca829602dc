#include "controller/adapters/audit_log.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/text.h"
#include "controller/core/access.h"

namespace rb::controller {

absl::Status AuditLog::Record(const Peer& peer, absl::string_view method, const AuditSubject& about,
                              const grpc::Status& outcome) {
  AuditRecord record;
  record.at = clock_.Now();
  record.who = peer.name;
  record.role = std::string(NameOf(peer.role));
  record.from = peer.from;
  record.request = std::string(method.substr(method.rfind('/') + 1));
  record.subject = Printable(about.subject);
  record.reason = Printable(about.reason);
  record.allowed = outcome.ok();
  record.refusal = Printable(outcome.error_message());
  using What = AuditThrottle::What;
  const What what = !outcome.ok() ? What::kRefusal : ChangesSomething(method) ? What::kChange : What::kRead;
  {
    MutexLock lock(mutex_);
    uint64_t left_out = 0;
    if (!throttle_.Take(what, record.who, record.request, record.at, &left_out)) return absl::OkStatus();
    if (left_out > 0) {
      record.subject = absl::StrCat(Truncate(record.subject, kLongestAuditField / 2), record.subject.empty() ? "" : " ",
                                    "(and ", left_out, " more of these before, not on record)");
    }
  }
  const absl::Status recorded = store_.AppendAudit(std::move(record), !outcome.ok() || ChangesSomething(method));
  if (!recorded.ok()) LogError("controller", "a request could not be put on record: ", recorded.message());
  return recorded;
}

absl::Status AuditLog::RecordLocal(const std::string& request, const std::string& subject) {
  AuditRecord record;
  record.at = clock_.Now();
  record.who = "local";
  record.role = std::string(NameOf(Role::kAdmin));
  record.from = "this host";
  record.request = request;
  record.subject = Printable(subject);
  record.allowed = true;
  return store_.AppendAudit(std::move(record), true);
}

}  // namespace rb::controller
