#include "controller/adapters/audit_log.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/log.h"
#include "common/text.h"
#include "controller/core/access.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {
namespace {

// Which rule refused it, in one word: that of the plan's refusal, or else that of the status.
std::string RuleOf(const grpc::Status& refused) {
  v1::Refusal refusal;
  if (!refused.error_details().empty() && refusal.ParseFromString(refused.error_details()) &&
      v1::Refusal::Code_IsValid(refusal.code()) && refusal.code() != v1::Refusal::CODE_UNSPECIFIED) {
    return absl::AsciiStrToLower(absl::StripPrefix(v1::Refusal::Code_Name(refusal.code()), "CODE_"));
  }
  switch (refused.error_code()) {
    case grpc::StatusCode::PERMISSION_DENIED:
    case grpc::StatusCode::UNAUTHENTICATED:
      return "permission";
    case grpc::StatusCode::NOT_FOUND:
      return "unknown_operation";
    case grpc::StatusCode::INVALID_ARGUMENT:
      return "bad_request";
    case grpc::StatusCode::FAILED_PRECONDITION:
      return "state";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return "busy";
    default:
      return "error";
  }
}

}  // namespace

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
  if (!outcome.ok()) record.refusal = absl::StrCat(RuleOf(outcome), ": ", Printable(outcome.error_message()));
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
