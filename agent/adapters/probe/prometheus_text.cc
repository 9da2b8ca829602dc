// Prometheus' text format, as far as a probe has to know it: is every line one that a scraper takes?
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "agent/adapters/probe/probes.h"

namespace rb::agent {
namespace {

bool IsNameByte(char c, bool is_first, bool colon_allowed) {
  const auto byte = static_cast<unsigned char>(c);
  return absl::ascii_isalpha(byte) || c == '_' || (colon_allowed && c == ':') ||
         (!is_first && absl::ascii_isdigit(byte));
}

// Takes a name off the front; empty when there is none.
std::string TakeName(absl::string_view* rest, bool colon_allowed) {
  size_t length = 0;
  while (length < rest->size() && IsNameByte((*rest)[length], length == 0, colon_allowed)) ++length;
  std::string name(rest->substr(0, length));
  rest->remove_prefix(length);
  return name;
}

void SkipBlanks(absl::string_view* rest) {
  while (!rest->empty() && (rest->front() == ' ' || rest->front() == '\t')) rest->remove_prefix(1);
}

// name="value", with \\, \" and \n; commas between them, and one may follow the last. After the "{".
bool TakeLabels(absl::string_view* rest) {
  for (;;) {
    SkipBlanks(rest);
    if (absl::ConsumePrefix(rest, "}")) return true;
    if (TakeName(rest, false).empty()) return false;
    SkipBlanks(rest);
    if (!absl::ConsumePrefix(rest, "=")) return false;
    SkipBlanks(rest);
    if (!absl::ConsumePrefix(rest, "\"")) return false;
    for (;; rest->remove_prefix(1)) {
      if (rest->empty()) return false;
      if (rest->front() == '"') break;
      if (rest->front() != '\\') continue;
      rest->remove_prefix(1);
      if (rest->empty()) return false;
    }
    rest->remove_prefix(1);
    SkipBlanks(rest);
    if (absl::ConsumePrefix(rest, "}")) return true;
    if (!absl::ConsumePrefix(rest, ",")) return false;
  }
}

// What is wrong with a sample, or "".
std::string TakeSample(absl::string_view line, std::string* name) {
  *name = TakeName(&line, true);
  if (name->empty()) return "no name of a metric";
  SkipBlanks(&line);
  if (absl::ConsumePrefix(&line, "{") && !TakeLabels(&line)) return "bad labels";
  const std::vector<absl::string_view> words = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  double value = 0;
  int64_t milliseconds = 0;
  if (words.empty() || !absl::SimpleAtod(words[0], &value)) return "no value";
  if (words.size() > 2 || (words.size() == 2 && !absl::SimpleAtoi(words[1], &milliseconds))) return "a bad timestamp";
  return "";
}

}  // namespace

absl::StatusOr<std::map<std::string, size_t>> ParsePrometheusText(absl::string_view text) {
  std::map<std::string, size_t> samples;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line.front() == '#') continue;
    std::string name;
    if (const std::string problem = TakeSample(line, &name); !problem.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, " is no Prometheus text: ", problem, ": \"", OneLine(line, 80), "\""));
    }
    ++samples[name];
  }
  return samples;
}

}  // namespace rb::agent
