// Status helpers that this Abseil version lacks.
#ifndef RB_COMMON_STATUS_H_
#define RB_COMMON_STATUS_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rb {

// An error for a failed system call: "WHAT: strerror(error_number)", with a code that fits errno.
absl::Status ErrnoStatus(int error_number, absl::string_view what);

// The same code, with "CONTEXT: " before the message. OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view context);

}  // namespace rb

// Returns the status from the enclosing function when it is not OK. Works with Status and StatusOr results.
#define RB_RETURN_IF_ERROR(expression)                 \
  do {                                                 \
    absl::Status rb_status_macro_value = (expression); \
    if (!rb_status_macro_value.ok()) {                 \
      return rb_status_macro_value;                    \
    }                                                  \
  } while (false)

// RB_ASSIGN_OR_RETURN(auto value, Expression());
#define RB_ASSIGN_OR_RETURN(declaration, expression) \
  RB_ASSIGN_OR_RETURN_IMPL(RB_STATUS_CONCAT(rb_status_or_value_, __LINE__), declaration, expression)
#define RB_STATUS_CONCAT(a, b) RB_STATUS_CONCAT_INNER(a, b)
#define RB_STATUS_CONCAT_INNER(a, b) a##b
#define RB_ASSIGN_OR_RETURN_IMPL(temporary, declaration, expression) \
  auto temporary = (expression);                                     \
  if (!temporary.ok()) {                                             \
    return temporary.status();                                       \
  }                                                                  \
  declaration = *std::move(temporary)

#endif  // RB_COMMON_STATUS_H_
