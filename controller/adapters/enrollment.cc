#include "controller/adapters/enrollment.h"

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/ids.h"
#include "common/log.h"
#include "controller/adapters/api_gate.h"
#include "rb/v1/enrollment.grpc.pb.h"

namespace rb::controller {
namespace {

class Enrollment final : public v1::Enrollment::CallbackService {
 public:
  Enrollment(Store& store, const KeyAndCertificate& authority, Clock& clock, AuditLog& audit)
      : store_(store), authority_(authority), clock_(clock), audit_(audit) {}

  grpc::ServerUnaryReactor* Join(grpc::CallbackServerContext* context, const v1::JoinRequest* request,
                                 v1::JoinResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    grpc::Status taken = ToGrpc(Take(*request, response));
    Peer peer;
    peer.from = context->peer();
    const absl::Status recorded = audit_.Record(peer, "/Join", {request->agent_name(), ""}, taken);
    if (taken.ok() && !recorded.ok()) {
      response->Clear();
      taken = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                           absl::StrCat("the request could not be put on record: ", recorded.message(),
                                        ". The token is used up; make another one"));
    }
    reactor->Finish(taken);
    return reactor;
  }

 private:
  absl::Status Take(const v1::JoinRequest& request, v1::JoinResponse* response) {
    if (!IsValidName(request.agent_name()) || request.secret().size() != 64) {
      return absl::PermissionDeniedError("the token is not valid for this name: wrong, used up or expired");
    }
    // The certificate is made before the token is used up: a bad request does not cost the token.
    absl::StatusOr<std::string> certificate = SignClientRequest(
        authority_, request.certificate_request_pem(), absl::StrCat("rb://agent/", request.agent_name()), clock_.Now());
    if (!certificate.ok()) return certificate.status();
    const absl::Status used = store_.UseToken(request.agent_name(), Sha256Of(request.secret()).ToHex(), clock_.Now());
    if (!used.ok()) {
      LogWarning("controller", "a join as ", request.agent_name(), " was refused");
      return used;
    }
    LogInfo("controller", request.agent_name(), " has joined");
    response->set_certificate_pem(*std::move(certificate));
    return absl::OkStatus();
  }

  Store& store_;
  const KeyAndCertificate authority_;
  Clock& clock_;
  AuditLog& audit_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeEnrollment(Store& store, const KeyAndCertificate& authority, Clock& clock,
                                              AuditLog& audit) {
  return std::make_unique<Enrollment>(store, authority, clock, audit);
}

}  // namespace rb::controller
