// Puts requests on record, see core/audit.h.
#ifndef RB_CONTROLLER_ADAPTERS_AUDIT_LOG_H_
#define RB_CONTROLLER_ADAPTERS_AUDIT_LOG_H_

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "controller/adapters/peer.h"
#include "controller/adapters/store.h"
#include "controller/core/audit.h"

namespace rb::controller {

// What a request is about, in words for the record.
struct AuditSubject {
  std::string subject;
  std::string reason;
};

// Thread-safe. Nothing is owned.
class AuditLog {
 public:
  AuditLog(Store& store, Clock& clock) : store_(store), clock_(clock) {}

  // `method` is the full gRPC name, `outcome` OK when it is going to be done. Some reads and refusals are left out, see
  // AuditThrottle. An error means that there is no record:
  // what would change something is then not carried out. Durable when OK, for what changes something or was refused.
  absl::Status Record(const Peer& peer, absl::string_view method, const AuditSubject& about,
                      const grpc::Status& outcome);
  // For what is typed on the controller's own host; durable when OK.
  absl::Status RecordLocal(const std::string& request, const std::string& subject);

 private:
  Store& store_;
  Clock& clock_;
  Mutex mutex_;
  AuditThrottle throttle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_AUDIT_LOG_H_
