#include "rbctl/render/markdown.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/text.h"

namespace rb::cli {

std::string MarkdownText(absl::string_view remote) {
  std::string text;
  for (const char c : Printable(remote)) {
    if (absl::string_view("\\`*_[]<>|#").find(c) != absl::string_view::npos) text += '\\';
    text += c;
  }
  return text;
}

std::string MarkdownCode(absl::string_view remote) {
  std::string text = Printable(remote);
  // Neither ends the span, nor a cell of a table.
  absl::StrReplaceAll({{"`", "'"}, {"|", "\\|"}}, &text);
  return text.empty() ? "-" : absl::StrCat("`", text, "`");
}

std::string ShellWord(absl::string_view word) {
  const std::string text = Printable(word);
  const bool plain = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::string_view("/._-:@%+=,").find(c) != absl::string_view::npos;
  });
  return plain ? text : absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

std::string MarkdownCommands(const std::vector<std::string>& commands) {
  // A line that would end the block cannot be among them: no newline, and no line begins with a backquote.
  return absl::StrCat("```sh\n", absl::StrJoin(commands, "\n"), "\n```\n\n");
}

std::string MarkdownTable(const std::vector<std::vector<std::string>>& rows) {
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    absl::StrAppend(&text, "| ", absl::StrJoin(rows[i], " | "), " |\n");
    if (i != 0) continue;
    for (size_t column = 0; column < rows[0].size(); ++column) text += "|---";
    text += "|\n";
  }
  return text + "\n";
}

}  // namespace rb::cli
