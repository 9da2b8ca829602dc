// Who may call what. Every call that is not in the table is denied.
#ifndef RB_CONTROLLER_CORE_ACCESS_H_
#define RB_CONTROLLER_CORE_ACCESS_H_

#include <string>

#include "absl/strings/string_view.h"

namespace rb::controller {

enum class Role { kNone, kAgent, kViewer, kOperator, kAdmin };

// `method` is the full gRPC name, for example "/rb.v1.FleetService/StartOperation". An admin may do what an operator
// may, an operator what a viewer may; an agent may use its link alone.
bool IsAllowed(Role role, absl::string_view method);

// Whether a call changes something: such a call is not carried out when it cannot be put on record.
bool ChangesSomething(absl::string_view method);

bool ParseRole(absl::string_view text, Role* role);
absl::string_view NameOf(Role role);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_ACCESS_H_
