#ifndef RB_COMMON_EDIT_DISTANCE_H_
#define RB_COMMON_EDIT_DISTANCE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rb {

// The candidate nearest to `word` by edits (insert, delete, replace, swap of neighbours), or "" when none is near
// enough to be what was meant: at most a third of the word's length, rounded up. Ties go to the first.
std::string NearestSpelling(absl::string_view word, const std::vector<std::string>& candidates);

}  // namespace rb

#endif  // RB_COMMON_EDIT_DISTANCE_H_
