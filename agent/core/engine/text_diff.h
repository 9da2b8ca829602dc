#ifndef RB_AGENT_CORE_ENGINE_TEXT_DIFF_H_
#define RB_AGENT_CORE_ENGINE_TEXT_DIFF_H_

#include <string>

#include "absl/strings/string_view.h"

namespace rb::agent {

// A unified diff of two texts, with all common lines at the start and the end left out but three; "" when they are
// equal. Text that is not printable UTF-8 or longer than 2,000 lines is only said to differ.
std::string UnifiedDiff(absl::string_view path, absl::string_view before, absl::string_view after);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_TEXT_DIFF_H_
