// Pieces of Markdown. Pure.
#ifndef RB_RBCTL_RENDER_MARKDOWN_H_
#define RB_RBCTL_RENDER_MARKDOWN_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rb::cli {

// Remote text as plain text: one line, and no markup whatever is in it.
std::string MarkdownText(absl::string_view remote);
// In backquotes.
std::string MarkdownCode(absl::string_view remote);
// Quoted for a POSIX shell where that is needed: for what is typed as root.
std::string ShellWord(absl::string_view word);
// A block of commands; a newline is put after each.
std::string MarkdownCommands(const std::vector<std::string>& commands);
// The first row is the head. Cells are Markdown already.
std::string MarkdownTable(const std::vector<std::vector<std::string>>& rows);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_MARKDOWN_H_
