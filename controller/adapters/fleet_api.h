// The gRPC services that people and joining hosts use: authorize, hand to the loop, convert the answer.
#ifndef RB_CONTROLLER_ADAPTERS_FLEET_API_H_
#define RB_CONTROLLER_ADAPTERS_FLEET_API_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "common/event_loop.h"
#include "controller/adapters/audit_log.h"
#include "controller/adapters/certificates.h"
#include "controller/adapters/driver.h"
#include "controller/adapters/peer.h"
#include "controller/adapters/store.h"

namespace rb::controller {

// Nothing is owned. Watch streams that are open are ended by the loop's last words: end them with EndWatches before the
// server shuts down.
class FleetApi {
 public:
  static std::unique_ptr<FleetApi> Create(Authorizer& authorizer, EventLoop& loop, Driver& driver, Store& store,
                                          AuditLog& audit);
  virtual ~FleetApi() = default;
  virtual grpc::Service* service() = 0;
  virtual void EndWatches() = 0;
};

// The only service of the join listener.
std::unique_ptr<grpc::Service> MakeEnrollment(Store& store, const KeyAndCertificate& authority, Clock& clock,
                                              AuditLog& audit);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_FLEET_API_H_
