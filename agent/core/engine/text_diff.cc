#include "agent/core/engine/text_diff.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kMostLines = 2000;
constexpr size_t kContext = 3;

std::vector<absl::string_view> Lines(absl::string_view text) {
  std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();
  return lines;
}

}  // namespace

std::string UnifiedDiff(absl::string_view path, absl::string_view before, absl::string_view after) {
  if (before == after) return "";
  const std::string head = absl::StrCat("--- ", Printable(path), "\n+++ ", Printable(path), "\n");
  const std::vector<absl::string_view> a = Lines(before);
  const std::vector<absl::string_view> b = Lines(after);
  if (a.size() > kMostLines || b.size() > kMostLines || before.find('\0') != absl::string_view::npos ||
      after.find('\0') != absl::string_view::npos) {
    return absl::StrCat(head, "(differs)\n");
  }
  size_t start = 0;
  while (start < a.size() && start < b.size() && a[start] == b[start]) ++start;
  size_t a_end = a.size();
  size_t b_end = b.size();
  while (a_end > start && b_end > start && a[a_end - 1] == b[b_end - 1]) {
    --a_end;
    --b_end;
  }
  // Longest common subsequence of what is left; small files, so the plain table does.
  const size_t rows = a_end - start;
  const size_t columns = b_end - start;
  std::vector<std::vector<uint16_t>> length(rows + 1, std::vector<uint16_t>(columns + 1, 0));
  for (size_t i = rows; i-- > 0;) {
    for (size_t j = columns; j-- > 0;) {
      length[i][j] = a[start + i] == b[start + j] ? static_cast<uint16_t>(length[i + 1][j + 1] + 1)
                                                  : std::max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const size_t from = start > kContext ? start - kContext : 0;
  const size_t to = std::min(a.size(), a_end + kContext);
  std::string out =
      absl::StrCat(head, "@@ -", from + 1, ",", to - from, " +", from + 1, ",", to - from + columns - rows, " @@\n");
  for (size_t i = from; i < start; ++i) absl::StrAppend(&out, " ", Printable(a[i]), "\n");
  size_t i = 0;
  size_t j = 0;
  while (i < rows || j < columns) {
    if (i < rows && j < columns && a[start + i] == b[start + j]) {
      absl::StrAppend(&out, " ", Printable(a[start + i]), "\n");
      ++i;
      ++j;
    } else if (j == columns || (i < rows && length[i + 1][j] >= length[i][j + 1])) {
      absl::StrAppend(&out, "-", Printable(a[start + i++]), "\n");
    } else {
      absl::StrAppend(&out, "+", Printable(b[start + j++]), "\n");
    }
  }
  for (size_t k = a_end; k < to; ++k) absl::StrAppend(&out, " ", Printable(a[k]), "\n");
  return out;
}

}  // namespace rb::agent
