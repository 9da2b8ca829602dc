#include "common/text.h"

#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace rb {
namespace {

// Length of the valid UTF-8 sequence at the start of `text`, or 0.
size_t Utf8SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  size_t length = 0;
  uint32_t code = 0;
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
    code = first & 0x1F;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    code = first & 0x0F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    code = first & 0x07;
  } else {
    return 0;
  }
  if (text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = (code << 6) | (byte(i) & 0x3F);
  }
  if (length == 3 && (code < 0x800 || (code >= 0xD800 && code <= 0xDFFF))) return 0;
  if (length == 4 && (code < 0x10000 || code > 0x10FFFF)) return 0;
  return length;
}

// Matches one [set] at pattern[*position]; moves past it. Malformed sets match a literal '['.
bool SetMatches(absl::string_view pattern, size_t* position, char c) {
  size_t i = *position + 1;
  bool negated = false;
  if (i < pattern.size() && (pattern[i] == '!' || pattern[i] == '^')) {
    negated = true;
    ++i;
  }
  bool found = false;
  const size_t first = i;
  for (; i < pattern.size() && (pattern[i] != ']' || i == first); ++i) {
    if (i + 2 < pattern.size() && pattern[i + 1] == '-' && pattern[i + 2] != ']') {
      if (pattern[i] <= c && c <= pattern[i + 2]) found = true;
      i += 2;
    } else if (pattern[i] == c) {
      found = true;
    }
  }
  if (i >= pattern.size()) {
    ++*position;
    return c == '[';
  }
  *position = i + 1;
  return found != negated;
}

bool ElementMatches(absl::string_view pattern, absl::string_view text) {
  size_t p = 0;
  size_t t = 0;
  size_t star_p = absl::string_view::npos;
  size_t star_t = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star_p = ++p;
      star_t = t;
      continue;
    }
    size_t next = p;
    bool matches = false;
    if (p < pattern.size()) {
      if (pattern[p] == '?') {
        matches = true;
        next = p + 1;
      } else if (pattern[p] == '[') {
        matches = SetMatches(pattern, &next, text[t]);
      } else {
        matches = pattern[p] == text[t];
        next = p + 1;
      }
    }
    if (matches) {
      p = next;
      ++t;
    } else if (star_p != absl::string_view::npos) {
      p = star_p;
      t = ++star_t;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

// First element and the rest after its slash.
std::pair<absl::string_view, absl::string_view> SplitFirst(absl::string_view path) {
  const size_t slash = path.find('/');
  if (slash == absl::string_view::npos) return {path, absl::string_view()};
  return {path.substr(0, slash), path.substr(slash + 1)};
}

bool Matches(absl::string_view pattern, absl::string_view path) {
  while (true) {
    if (pattern.empty()) return path.empty();
    const auto [element, rest_of_pattern] = SplitFirst(pattern);
    if (element == "**") {
      if (rest_of_pattern.empty()) return !path.empty();
      for (absl::string_view rest = path;;) {
        if (Matches(rest_of_pattern, rest)) return true;
        const size_t slash = rest.find('/');
        if (slash == absl::string_view::npos) return false;
        rest = rest.substr(slash + 1);
      }
    }
    if (path.empty()) return false;
    const auto [name, rest_of_path] = SplitFirst(path);
    if (rest_of_pattern.empty() && !rest_of_path.empty()) return false;
    if (!ElementMatches(element, name)) return false;
    pattern = rest_of_pattern;
    path = rest_of_path;
  }
}

}  // namespace

std::string Truncate(absl::string_view text, size_t limit) {
  static constexpr absl::string_view kEllipsis = "…";
  if (text.size() <= limit) return std::string(text);
  size_t end = limit < kEllipsis.size() ? 0 : limit - kEllipsis.size();
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;
  std::string cut(text.substr(0, end));
  if (limit >= kEllipsis.size()) cut.append(kEllipsis.data(), kEllipsis.size());
  return cut;
}

std::string Printable(absl::string_view text) {
  std::string result;
  result.reserve(text.size());
  while (!text.empty()) {
    const size_t length = Utf8SequenceLength(text);
    const uint8_t first = static_cast<uint8_t>(text[0]);
    if (length == 0 || first < 0x20 || first == 0x7F) {
      absl::StrAppendFormat(&result, "\\x%02x", first);
      text.remove_prefix(1);
    } else {
      result.append(text.data(), length);
      text.remove_prefix(length);
    }
  }
  return result;
}

std::string FormatSeconds(absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  if (seconds < 10) return absl::StrFormat("%.2f s", seconds);
  if (seconds < 60) return absl::StrFormat("%.1f s", seconds);
  const auto whole = static_cast<int64_t>(seconds);
  if (whole >= int64_t{48} * 3600) return absl::StrFormat("%d days", whole / 86400);
  if (whole >= 3600) return absl::StrFormat("%dh %02dm", whole / 3600, whole / 60 % 60);
  return absl::StrFormat("%dm %02ds", whole / 60, whole % 60);
}

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1024) return absl::StrFormat("%d B", bytes);
  static constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  const char* unit = "";
  for (const char* next : kUnits) {
    value /= 1024;
    unit = next;
    if (value < 1024) break;
  }
  return absl::StrFormat("%.1f %s", value, unit);
}

bool GlobMatches(absl::string_view pattern, absl::string_view path) {
  // Nearly every path of a tree is told by its first character from a pattern that begins with a name.
  if (!pattern.empty() && !path.empty() && pattern[0] != path[0] &&
      absl::string_view("*?[/").find(pattern[0]) == absl::string_view::npos && path[0] != '/') {
    return false;
  }
  return Matches(absl::StripSuffix(pattern, "/"), absl::StripSuffix(path, "/"));
}

}  // namespace rb
