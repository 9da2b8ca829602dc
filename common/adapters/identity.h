// Keys, certificate requests and join tokens: what a host needs to become a known one.
#ifndef RB_COMMON_ADAPTERS_IDENTITY_H_
#define RB_COMMON_ADAPTERS_IDENTITY_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb {

// A new ECDSA P-256 private key, PEM (PKCS#8). A secret.
absl::StatusOr<std::string> NewPrivateKeyPem();
// A PKCS#10 request for that key, with `common_name`.
absl::StatusOr<std::string> NewCertificateRequestPem(const std::string& private_key_pem,
                                                     const std::string& common_name);

// When the first certificate of a PEM file ends. INVALID_ARGUMENT when there is none.
absl::StatusOr<absl::Time> CertificateExpiry(const std::string& pem);

// What an agent needs to join; one line of text: "rbjoin1." and base64url of a JSON object. Holds a secret.
struct JoinToken {
  std::string agent_name;
  // host:port of the join listener, and of the link.
  std::string join_address;
  std::string link_address;
  // 64 hexadecimal digits.
  std::string secret;
  // The only CA that the agent will ever trust.
  std::string ca_pem;
};
std::string FormatJoinToken(const JoinToken& token);
// INVALID_ARGUMENT when it is not such a line; the message never holds the token. Total.
absl::StatusOr<JoinToken> ParseJoinToken(absl::string_view line);

}  // namespace rb

#endif  // RB_COMMON_ADAPTERS_IDENTITY_H_
