#ifndef RB_CONTROLLER_ADAPTERS_DOCTOR_API_H_
#define RB_CONTROLLER_ADAPTERS_DOCTOR_API_H_

#include <grpcpp/grpcpp.h>

#include <memory>

#include "controller/adapters/api_gate.h"
#include "controller/adapters/driver.h"

namespace rb::controller {

// DoctorService. Nothing is owned.
std::unique_ptr<grpc::Service> MakeDoctorApi(ApiGate& gate, Driver& driver);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_DOCTOR_API_H_
