#ifndef RB_CONTROLLER_CORE_NAMES_H_
#define RB_CONTROLLER_CORE_NAMES_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rb::controller {

inline constexpr size_t kMostNamed = 10;

// "a, b, c", or "a, b and 1998 others": texts stay readable, and small, with thousands of hosts.
std::string JoinSome(const std::vector<std::string>& parts, absl::string_view separator = ", ",
                     size_t most = kMostNamed);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_NAMES_H_
