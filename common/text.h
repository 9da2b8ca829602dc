#ifndef RB_COMMON_TEXT_H_
#define RB_COMMON_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb {

// At most `limit` bytes, cut at a UTF-8 boundary, with "…" when cut. For messages that travel.
std::string Truncate(absl::string_view text, size_t limit);
// Control characters and invalid UTF-8 become \xNN: safe on a terminal and inside a proto3 string.
std::string Printable(absl::string_view text);
// "0.42 s", "12.3 s", "3m 05s".
std::string FormatSeconds(absl::Duration duration);
// "12 B", "3.4 KiB", "1.2 GiB".
std::string FormatBytes(uint64_t bytes);

// Globs over relative paths, as in agent.yaml: `*` and `?` stay within a path element, `**` crosses elements,
// "dir/**" matches everything below dir (not dir itself), [a-z] works. A trailing slash is ignored.
bool GlobMatches(absl::string_view pattern, absl::string_view path);

}  // namespace rb

#endif  // RB_COMMON_TEXT_H_
