#include "controller/adapters/doctor_api.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "rb/v1/doctor_service.grpc.pb.h"

namespace rb::controller {
namespace {

class DoctorApi final : public v1::DoctorService::CallbackService {
 public:
  DoctorApi(ApiGate& gate, Driver& driver) : gate_(gate), driver_(driver) {}

  grpc::ServerUnaryReactor* Diagnose(grpc::CallbackServerContext* context, const v1::DiagnoseRequest* request,
                                     v1::DiagnoseResponse* response) override {
    return gate_.OnLoop(
        context, "/rb.v1.DoctorService/Diagnose", {absl::StrCat(request->environment(), " ", request->service()), ""},
        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
          const absl::Status asked = driver_.doctor().Diagnose(request->environment(), request->service(),
                                                               [reactor, response](v1::DiagnoseResponse findings) {
                                                                 *response = std::move(findings);
                                                                 reactor->Finish(grpc::Status::OK);
                                                               });
          if (!asked.ok()) reactor->Finish(ToGrpc(asked));
        });
  }

  grpc::ServerUnaryReactor* GetRunbook(grpc::CallbackServerContext* context, const v1::GetRunbookRequest* request,
                                       v1::GetRunbookResponse* response) override {
    return gate_.OnLoop(context, "/rb.v1.DoctorService/GetRunbook",
                        {absl::StrCat(request->environment(), " ", request->service()), ""},
                        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                          absl::StatusOr<v1::GetRunbookResponse> runbook =
                              driver_.doctor().Runbook(request->environment(), request->service());
                          const grpc::Status status = ToGrpc(runbook.status());
                          if (runbook.ok()) *response = *std::move(runbook);
                          reactor->Finish(status);
                        });
  }

 private:
  ApiGate& gate_;
  Driver& driver_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeDoctorApi(ApiGate& gate, Driver& driver) {
  return std::make_unique<DoctorApi>(gate, driver);
}

}  // namespace rb::controller
