// The only service of the join listener: a one-time token for a certificate.
#ifndef RB_CONTROLLER_ADAPTERS_ENROLLMENT_H_
#define RB_CONTROLLER_ADAPTERS_ENROLLMENT_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "common/clock.h"
#include "controller/adapters/audit_log.h"
#include "controller/adapters/certificates.h"
#include "controller/adapters/store.h"

namespace rb::controller {

// Nothing is owned but a copy of the authority.
std::unique_ptr<grpc::Service> MakeEnrollment(Store& store, const KeyAndCertificate& authority, Clock& clock,
                                              AuditLog& audit);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_ENROLLMENT_H_
