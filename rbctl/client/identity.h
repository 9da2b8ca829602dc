// Who we are and where the controller is: a folder with operator.key, operator.crt, ca.crt and `controller`.
#ifndef RB_RBCTL_CLIENT_IDENTITY_H_
#define RB_RBCTL_CLIENT_IDENTITY_H_

#include <string>

#include "absl/status/statusor.h"

namespace rb::cli {

struct Identity {
  std::string key_pem;
  std::string certificate_pem;
  std::string authority_pem;
  // host:port.
  std::string controller;
};

// `folder` empty: ~/.config/rbctl. `controller` overrides the folder's. The error says what to type. A key that others
// can read is refused.
absl::StatusOr<Identity> LoadIdentity(const std::string& folder, const std::string& controller);

}  // namespace rb::cli

#endif  // RB_RBCTL_CLIENT_IDENTITY_H_
