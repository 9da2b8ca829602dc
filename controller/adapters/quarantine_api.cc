#include "controller/adapters/quarantine_api.h"

#include "absl/strings/str_cat.h"
#include "rb/v1/quarantine_service.grpc.pb.h"

namespace rb::controller {
namespace {

class QuarantineApi final : public v1::QuarantineService::CallbackService {
 public:
  QuarantineApi(ApiGate& gate, QuarantineBook& book) : gate_(gate), book_(book) {}

  grpc::ServerUnaryReactor* ListQuarantine(grpc::CallbackServerContext* context,
                                           const v1::ListQuarantineRequest* request,
                                           v1::ListQuarantineResponse* response) override {
    return gate_.OnLoop(context, "/rb.v1.QuarantineService/ListQuarantine", {request->service(), ""},
                        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                          *response = book_.List(*request);
                          reactor->Finish(grpc::Status::OK);
                        });
  }

  grpc::ServerUnaryReactor* ReleaseQuarantine(grpc::CallbackServerContext* context,
                                              const v1::ReleaseQuarantineRequest* request,
                                              v1::ReleaseQuarantineResponse* response) override {
    static constexpr char kMethod[] = "/rb.v1.QuarantineService/ReleaseQuarantine";
    const AuditSubject about = {
        absl::StrCat(request->commit(), request->service().empty() ? "" : " of ", request->service()),
        request->reason()};
    return gate_.OnLoop(
        context, kMethod, about, [this, about, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
          Refusal refusal;
          const absl::Status done = book_.Release(*request, peer.name, &refusal, response->mutable_entry());
          const grpc::Status status = refusal.refused() ? ToGrpc(refusal) : ToGrpc(done);
          if (!status.ok()) gate_.RecordRefusal(peer, kMethod, about, status);
          reactor->Finish(status);
        });
  }

 private:
  ApiGate& gate_;
  QuarantineBook& book_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeQuarantineApi(ApiGate& gate, QuarantineBook& book) {
  return std::make_unique<QuarantineApi>(gate, book);
}

}  // namespace rb::controller
