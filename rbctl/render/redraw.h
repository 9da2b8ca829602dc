// Drawing over what was drawn before. Pure: lines in, bytes out.
#ifndef RB_RBCTL_RENDER_REDRAW_H_
#define RB_RBCTL_RENDER_REDRAW_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rb::cli {

// At most `width` characters; colour sequences count nothing and are kept.
std::string FitWidth(absl::string_view line, size_t width);

// Replaces the `previous` lines above the cursor by `lines` on a terminal of that size, without clearing first (no
// flicker). Sets `previous` to the number of lines now drawn. The cursor ends on the line after them.
std::string Redraw(const std::vector<std::string>& lines, size_t width, size_t height, size_t* previous);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_REDRAW_H_
