// One call of a service other than FleetService, for the areas (rbctl/areas):
//
//   absl::StatusOr<v1::ListThingsResponse> things =
//       CallArea<v1::ThingService>(client, &v1::ThingService::Stub::ListThings, request);
#ifndef RB_RBCTL_CLIENT_AREA_CALL_H_
#define RB_RBCTL_CLIENT_AREA_CALL_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/status.h"
#include "rbctl/client/fleet_client.h"

namespace rb::cli {

template <typename Service, typename Request, typename Response>
absl::StatusOr<Response> CallArea(FleetClient& client,
                                  grpc::Status (Service::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                        Response*),
                                  const Request& request) {
  RB_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, client.Connected());
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(client.limits().call));
  const auto stub = Service::NewStub(channel);
  Response response;
  RB_RETURN_IF_ERROR(FromGrpc((stub.get()->*method)(&context, request, &response)));
  return response;
}

}  // namespace rb::cli

#endif  // RB_RBCTL_CLIENT_AREA_CALL_H_
