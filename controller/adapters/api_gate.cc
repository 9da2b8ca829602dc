#include "controller/adapters/api_gate.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/adapters/wire.h"
#include "controller/core/access.h"

namespace rb::controller {
namespace {

grpc::Status Busy() {
  return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the controller is busy; nothing was changed. Try again");
}

grpc::Status NotOnRecord(const absl::Status& why) {
  return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                      absl::StrCat("the request could not be put on record: ", why.message(), ". Nothing was changed"));
}

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

grpc::Status ToGrpc(const Refusal& refusal) {
  return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, refusal.message, ToWire(refusal).SerializeAsString());
}

grpc::ServerUnaryReactor* ApiGate::OnLoop(grpc::CallbackServerContext* context, const char* method, AuditSubject about,
                                          Work work) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  Peer peer;
  const grpc::Status allowed = authorizer_.Authorize(*context, method, &peer);
  if (!loop_.Post([this, reactor, peer, method, allowed, about = std::move(about), work = std::move(work)] {
        const absl::Status recorded = audit_.Record(peer, method, about, allowed);
        if (!allowed.ok()) return reactor->Finish(allowed);
        if (!recorded.ok() && ChangesSomething(method)) return reactor->Finish(NotOnRecord(recorded));
        work(reactor, peer);
      })) {
    reactor->Finish(Busy());
  }
  return reactor;
}

grpc::Status ApiGate::Admit(grpc::CallbackServerContext* context, const char* method, AuditSubject about) {
  Peer peer;
  const grpc::Status allowed = authorizer_.Authorize(*context, method, &peer);
  const bool posted = loop_.Post([this, peer, method, allowed, about = std::move(about)] {
    audit_.Record(peer, method, about, allowed).IgnoreError();
  });
  return posted ? allowed : Busy();
}

void ApiGate::RecordRefusal(const Peer& peer, const char* method, const AuditSubject& about,
                            const grpc::Status& refused) {
  audit_.Record(peer, method, about, refused).IgnoreError();
}

}  // namespace rb::controller
