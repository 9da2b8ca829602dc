#ifndef RB_CONTROLLER_ADAPTERS_PEER_H_
#define RB_CONTROLLER_ADAPTERS_PEER_H_

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/time/time.h"
#include "controller/adapters/store.h"

namespace rb::controller {

// Who is at the other end, by client certificate and store.
struct Peer {
  std::string name;
  Role role = Role::kNone;
  // Its address, as gRPC writes it.
  std::string from;
  absl::Time certificate_expires_at;
};

// The one gate of every call. Thread-safe.
class Authorizer {
 public:
  explicit Authorizer(Store& store) : store_(store) {}
  // OK and fills `peer` (as far as it is known, also when refused), or the refusal to send: UNAUTHENTICATED without a
  // certificate of ours, PERMISSION_DENIED when the table does not allow it (with an rb.v1.Refusal in the details).
  grpc::Status Authorize(const grpc::CallbackServerContext& context, const char* method, Peer* peer);

 private:
  Store& store_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_PEER_H_
