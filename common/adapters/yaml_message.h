// Reads the files that people write (fleet.yaml, agent.yaml) into protobuf messages, strictly: whatever is not
// understood is refused, with its place and the nearest right spelling, and everything that is wrong is said at once.
#ifndef RB_COMMON_ADAPTERS_YAML_MESSAGE_H_
#define RB_COMMON_ADAPTERS_YAML_MESSAGE_H_

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace google::protobuf {
class Message;
}  // namespace google::protobuf

namespace rb {

struct YamlProblem {
  // From 1; 0 when it is about the whole file.
  int line = 0;
  int column = 0;
  // Where in the message: "services.rosey-bot.probes[0].http.url"; empty for the whole file.
  std::string path;
  std::string text;
};

// The line on which each value that was read begins, by its path. For checks that come after reading.
using YamlLines = std::map<std::string, int>;

inline constexpr size_t kLargestYamlBytes = 1 << 20;
inline constexpr int kDeepestYaml = 32;

// Fills `message` (cleared first) from one YAML document; keys are field names. Returns what is wrong, by line; the
// message is of use only when that is empty. Never fails otherwise: any bytes are fine.
//   - google.protobuf.Duration is written "90s", "3m", "1h30m"; not negative, at most 366 days.
//   - A message whose only field is a repeated `values` is written as a plain list.
//   - Strings take numbers and booleans as their text, so {count: 3} is a map<string, string>.
//   - At most one field of a oneof. No value (`unit:`) is an empty message, list or map.
//   - Refused: duplicate keys, anchors, aliases, tags, a second document, invalid UTF-8, control characters.
// `lines` may be null.
std::vector<YamlProblem> ReadYamlMessage(absl::string_view yaml, google::protobuf::Message* message,
                                         YamlLines* lines = nullptr);

// The line of `path`, or of the nearest part of it that is in the file; 0 when there is none.
int LineOf(const YamlLines& lines, absl::string_view path);

// One line each: "FILE:LINE: PATH: TEXT".
std::string FormatProblems(absl::string_view file, const std::vector<YamlProblem>& problems);

}  // namespace rb

#endif  // RB_COMMON_ADAPTERS_YAML_MESSAGE_H_
