// What every service that people call does first: authorize, put on record, go on on the loop. A service is a
// CallbackService whose calls are `return gate.OnLoop(context, "/rb.v1.SomeService/SomeCall", subject, work)`; the
// table in core/access.cc names each call.
#ifndef RB_CONTROLLER_ADAPTERS_API_GATE_H_
#define RB_CONTROLLER_ADAPTERS_API_GATE_H_

#include <grpcpp/grpcpp.h>

#include <functional>

#include "absl/status/status.h"
#include "common/event_loop.h"
#include "controller/adapters/audit_log.h"
#include "controller/adapters/peer.h"
#include "controller/core/plan.h"

namespace rb::controller {

grpc::Status ToGrpc(const absl::Status& status);
// FAILED_PRECONDITION, with the refusal as rb.v1.Refusal in the details.
grpc::Status ToGrpc(const Refusal& refusal);

// Thread-safe. Nothing is owned.
class ApiGate {
 public:
  ApiGate(Authorizer& authorizer, EventLoop& loop, AuditLog& audit)
      : authorizer_(authorizer), loop_(loop), audit_(audit) {}

  // Runs on the loop, when the caller is allowed and the request is on record (what only reads is carried out without
  // a record, too). Finishes the reactor exactly once, then or later.
  using Work = std::function<void(grpc::ServerUnaryReactor* reactor, const Peer& peer)>;
  // `method` is the full gRPC name, and outlives the call.
  grpc::ServerUnaryReactor* OnLoop(grpc::CallbackServerContext* context, const char* method, AuditSubject about,
                                   Work work);

  // For streams that only read: OK when the caller is allowed; the record is made on the loop.
  grpc::Status Admit(grpc::CallbackServerContext* context, const char* method, AuditSubject about);

  // On the loop: an allowed request was refused by what it asks for.
  void RecordRefusal(const Peer& peer, const char* method, const AuditSubject& about, const grpc::Status& refused);

 private:
  Authorizer& authorizer_;
  EventLoop& loop_;
  AuditLog& audit_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_API_GATE_H_
