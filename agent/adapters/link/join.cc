#include "agent/adapters/link/join.h"

#include <grpcpp/grpcpp.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "common/adapters/identity.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "rb/v1/enrollment.grpc.pb.h"

namespace rb::agent {

absl::StatusOr<std::string> JoinController(const std::string& token_line, const std::string& state_folder) {
  RB_ASSIGN_OR_RETURN(const JoinToken token, ParseJoinToken(token_line));
  const std::string folder = state_folder + "/identity";
  if (ReadFile(folder + "/agent.crt", 1 << 20).ok()) {
    return absl::AlreadyExistsError(absl::StrCat("this host has joined before (", folder,
                                                 "). Nothing was changed. To join anew, move that folder away first"));
  }
  RB_ASSIGN_OR_RETURN(const std::string key, NewPrivateKeyPem());
  RB_ASSIGN_OR_RETURN(const std::string request_pem, NewCertificateRequestPem(key, token.agent_name));

  grpc::SslCredentialsOptions options;
  options.pem_root_certs = token.ca_pem;
  const std::unique_ptr<v1::Enrollment::Stub> stub =
      v1::Enrollment::NewStub(grpc::CreateChannel(token.join_address, grpc::SslCredentials(options)));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  v1::JoinRequest request;
  request.set_agent_name(token.agent_name);
  request.set_secret(token.secret);
  request.set_certificate_request_pem(request_pem);
  v1::JoinResponse response;
  const grpc::Status called = stub->Join(&context, request, &response);
  if (!called.ok()) {
    return absl::Status(
        static_cast<absl::StatusCode>(called.error_code()),
        absl::StrCat("the controller at ", token.join_address, " did not accept this host: ", called.error_message(),
                     ". Nothing was changed here. For a new token type on the "
                     "controller: rb-controller token ",
                     token.agent_name));
  }
  RB_RETURN_IF_ERROR(MakeFolders(folder, 0700));
  RB_RETURN_IF_ERROR(WriteFileDurably(folder + "/agent.key", key, 0600));
  RB_RETURN_IF_ERROR(WriteFileDurably(folder + "/ca.crt", token.ca_pem, 0644));
  RB_RETURN_IF_ERROR(WriteFileDurably(folder + "/controller", token.link_address + "\n", 0644));
  // Last: its presence says that joining is complete.
  RB_RETURN_IF_ERROR(WriteFileDurably(folder + "/agent.crt", response.certificate_pem(), 0644));
  return token.agent_name;
}

}  // namespace rb::agent
