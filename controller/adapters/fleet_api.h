// FleetService, which operators use: authorize, hand to the loop, convert the answer.
#ifndef RB_CONTROLLER_ADAPTERS_FLEET_API_H_
#define RB_CONTROLLER_ADAPTERS_FLEET_API_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "common/event_loop.h"
#include "controller/adapters/api_gate.h"
#include "controller/adapters/driver.h"
#include "controller/adapters/store.h"

namespace rb::controller {

// Nothing is owned. Watch streams that are open are ended by the loop's last words: end them with EndWatches before the
// server shuts down.
class FleetApi {
 public:
  static std::unique_ptr<FleetApi> Create(ApiGate& gate, EventLoop& loop, Driver& driver, Store& store);
  virtual ~FleetApi() = default;
  virtual grpc::Service* service() = 0;
  virtual void EndWatches() = 0;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_FLEET_API_H_
