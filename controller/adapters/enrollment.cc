#include "controller/adapters/enrollment.h"

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/status.h"
#include "common/text.h"
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
    std::string certificate;
    grpc::Status outcome = ToGrpc(Check(*request, &certificate));
    Peer peer;
    peer.from = context->peer();
    const AuditSubject about = {request->agent_name(), ""};
    const absl::Status recorded = audit_.Record(peer, kJoin, about, outcome);
    if (outcome.ok() && !recorded.ok()) {
      outcome = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                             absl::StrCat("the request could not be put on record: ", recorded.message(),
                                          ". Nothing was changed; the token is still good"));
    } else if (outcome.ok()) {
      // Of two that come with one token at the same moment, the second is on record as refused, too.
      outcome = ToGrpc(store_.UseToken(request->agent_name(), Sha256Of(request->secret()).ToHex(), clock_.Now()));
      if (!outcome.ok()) audit_.Record(peer, kJoin, about, outcome).IgnoreError();
    }
    if (outcome.ok()) {
      LogInfo("controller", request->agent_name(), " has joined");
      response->set_certificate_pem(std::move(certificate));
    } else {
      LogWarning("controller", "a join as ", Printable(request->agent_name()), " was refused");
    }
    reactor->Finish(outcome);
    return reactor;
  }

 private:
  static constexpr char kJoin[] = "/Join";

  // Whether it would be taken; changes nothing.
  absl::Status Check(const v1::JoinRequest& request, std::string* certificate_pem) {
    if (!IsValidName(request.agent_name()) || request.secret().size() != 64) {
      return absl::PermissionDeniedError("the token is not valid for this name: wrong, used up or expired");
    }
    // A bad request does not cost the token.
    absl::StatusOr<std::string> certificate = SignClientRequest(
        authority_, request.certificate_request_pem(), absl::StrCat("rb://agent/", request.agent_name()), clock_.Now());
    if (!certificate.ok()) return certificate.status();
    RB_RETURN_IF_ERROR(store_.CheckToken(request.agent_name(), Sha256Of(request.secret()).ToHex(), clock_.Now()));
    *certificate_pem = *std::move(certificate);
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
