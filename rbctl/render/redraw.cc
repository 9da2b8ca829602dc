#include "rbctl/render/redraw.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace rb::cli {

std::string FitWidth(absl::string_view line, size_t width) {
  std::string fitted;
  size_t used = 0;
  for (size_t i = 0; i < line.size();) {
    size_t end = i + 1;
    if (line[i] == '\x1b') {
      while (end < line.size() && line[end] != 'm') {
        ++end;
      }
      end = std::min(end + 1, line.size());
    } else {
      while (end < line.size() && (static_cast<unsigned char>(line[end]) & 0xC0) == 0x80) {
        ++end;
      }
      if (++used > width) {
        i = end;
        continue;
      }
    }
    fitted.append(line.data() + i, end - i);
    i = end;
  }
  return fitted;
}

std::string Redraw(const std::vector<std::string>& lines, size_t width, size_t height, size_t* previous) {
  std::vector<std::string> shown = lines;
  // The last row is the cursor's.
  const size_t room = height > 2 ? height - 1 : 1;
  if (shown.size() > room) {
    const size_t hidden = shown.size() - room + 1;
    shown.resize(room - 1);
    shown.push_back(absl::StrCat("… and ", hidden, " more lines"));
  }
  std::string bytes;
  if (*previous > 0) {
    // The terminal may have become lower since: never more than it has.
    absl::StrAppend(&bytes, "\x1b[", std::min(*previous, room), "A\r");
  }
  for (const std::string& line : shown) {
    // One column is left free: a full line would wrap on some terminals.
    absl::StrAppend(&bytes, FitWidth(line, width > 1 ? width - 1 : 1), "\x1b[K\n");
  }
  absl::StrAppend(&bytes, "\x1b[J");
  *previous = shown.size();
  return bytes;
}

}  // namespace rb::cli
