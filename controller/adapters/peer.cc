#include "controller/adapters/peer.h"

#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "controller/adapters/certificates.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {
namespace {

absl::Time ExpiryOf(const std::string& pem) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())),
                                                      BIO_free);
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr),
                                                                X509_free);
  std::tm parts{};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &parts) != 1) {
    return absl::UnixEpoch();
  }
  return absl::FromTM(parts, absl::UTCTimeZone());
}

grpc::Status Denied(const std::string& message) {
  v1::Refusal refusal;
  refusal.set_code(v1::Refusal::CODE_PERMISSION);
  refusal.set_message(message);
  return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, message, refusal.SerializeAsString());
}

}  // namespace

grpc::Status Authorizer::Authorize(const grpc::CallbackServerContext& context, const char* method, Peer* peer) {
  peer->from = context.peer();
  const std::shared_ptr<const grpc::AuthContext> auth = context.auth_context();
  std::string name;
  bool is_agent = false;
  bool known = false;
  if (auth != nullptr && auth->IsPeerAuthenticated()) {
    for (const grpc::string_ref& uri : auth->FindPropertyValues("peer_uri")) {
      known = known || ParseIdentityUri(absl::string_view(uri.data(), uri.size()), &name, &is_agent);
    }
  }
  if (!known) {
    return grpc::Status(grpc::StatusCode::UNAUTHENTICATED,
                        "a certificate of this controller is needed. Nothing was changed");
  }
  peer->name = name;
  const absl::StatusOr<Role> role = store_.RoleOf(name, is_agent);
  if (!role.ok()) return grpc::Status(grpc::StatusCode::UNAVAILABLE, std::string(role.status().message()));
  peer->role = *role;
  if (!IsAllowed(*role, method)) {
    LogWarning("controller", name, " (", NameOf(*role), ") was denied ", method);
    if (*role == Role::kNone) return Denied(absl::StrCat(name, " is not known here any more. Nothing was changed"));
    return Denied(
        absl::StrCat(name, " has the role ", std::string(NameOf(*role)),
                     ", which may not do that. Nothing was changed. Ask an admin: rb-controller operator add ", name,
                     " --role operator"));
  }
  for (const grpc::string_ref& pem : auth->FindPropertyValues("x509_pem_cert")) {
    peer->certificate_expires_at = ExpiryOf(std::string(pem.data(), pem.size()));
  }
  return grpc::Status::OK;
}

}  // namespace rb::controller
