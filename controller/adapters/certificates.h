// The controller's certificate authority. Certificates say who someone is; what they may do is in the store.
#ifndef RB_CONTROLLER_ADAPTERS_CERTIFICATES_H_
#define RB_CONTROLLER_ADAPTERS_CERTIFICATES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb::controller {

struct KeyAndCertificate {
  std::string key_pem;  // a secret
  std::string certificate_pem;
};

// A new CA, ECDSA P-256, good for 10 years.
absl::StatusOr<KeyAndCertificate> MakeAuthority(absl::Time now);
// For the listeners: DNS names and IP addresses under which they are reached. Good for 2 years.
absl::StatusOr<KeyAndCertificate> MakeServerCertificate(const KeyAndCertificate& authority,
                                                        const std::vector<std::string>& names, absl::Time now);
// A client certificate for the public key of a request; everything else in the request is ignored. `uri` is
// "rb://agent/NAME" or "rb://operator/NAME". Good for 2 years. INVALID_ARGUMENT for a request that is none, or whose
// signature is not by its own key.
absl::StatusOr<std::string> SignClientRequest(const KeyAndCertificate& authority, const std::string& request_pem,
                                              const std::string& uri, absl::Time now);

// "rb://agent/prod-1" → ("prod-1", true). False when it is neither of the two kinds.
bool ParseIdentityUri(absl::string_view uri, std::string* name, bool* is_agent);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_CERTIFICATES_H_
