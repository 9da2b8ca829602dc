// QuarantineService.
#ifndef RB_CONTROLLER_ADAPTERS_QUARANTINE_API_H_
#define RB_CONTROLLER_ADAPTERS_QUARANTINE_API_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "controller/adapters/api_gate.h"
#include "controller/adapters/quarantine_book.h"

namespace rb::controller {

// Nothing is owned.
std::unique_ptr<grpc::Service> MakeQuarantineApi(ApiGate& gate, QuarantineBook& book);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_QUARANTINE_API_H_
