#include "agent/adapters/records/tree_commit.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/tree_files.h"
#include "common/text.h"
#include "common/unique_fd.h"

namespace rb::agent {
namespace {

constexpr size_t kCommitDigits = 40;
constexpr size_t kLongestVersion = 64;
constexpr size_t kLargestRefs = 4 << 20;

bool IsCommit(absl::string_view text) {
  return text.size() == kCommitDigits && std::all_of(text.begin(), text.end(), [](char c) {
           return absl::ascii_isdigit(static_cast<unsigned char>(c)) || (c >= 'a' && c <= 'f');
         });
}

// A regular file below the tree, without following links anywhere; empty when there is none, or it is too large.
std::string ReadBelow(const std::string& tree, const std::string& path, size_t limit) {
  if (!IsSafePath(path)) return "";
  const UniqueFd root(open(tree.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW));
  if (!root.valid()) return "";
  const absl::StatusOr<Place> place = LocateBeneath(root.get(), path);
  if (!place.ok()) return "";
  const UniqueFd fd(openat(place->parent.get(), place->name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat info {};
  if (!fd.valid() || fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode)) return "";
  if (info.st_size < 0 || static_cast<size_t>(info.st_size) > limit) return "";
  std::string content(static_cast<size_t>(info.st_size), '\0');
  const ssize_t got = pread(fd.get(), content.data(), content.size(), 0);
  content.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return content;
}

std::string FirstLine(const std::string& text) {
  return std::string(absl::StripAsciiWhitespace(text.substr(0, text.find('\n'))));
}

// The code of the tree is that of the commit.
bool IsCodeOf(const std::string& commit, Engine& engine, CommitSource& commits) {
  const absl::StatusOr<std::unique_ptr<SnapshotSource>> snapshot = commits.Open(commit);
  if (!snapshot.ok()) return false;
  EngineTarget target;
  target.snapshot = snapshot->get();
  target.commit = commit;
  Components code;
  code.config = false;
  const absl::StatusOr<Delta> delta = engine.Compare(target, code);
  return delta.ok() && delta->files_added == 0 && delta->files_changed == 0;
}

}  // namespace

std::string HeadOfTree(const std::string& tree) {
  constexpr size_t kLargestHead = 4096;
  const std::string head = FirstLine(ReadBelow(tree, ".git/HEAD", kLargestHead));
  if (IsCommit(head)) return head;
  absl::string_view reference = head;
  if (!absl::ConsumePrefix(&reference, "ref: ") || !absl::StartsWith(reference, "refs/")) return "";
  const std::string loose = FirstLine(ReadBelow(tree, absl::StrCat(".git/", std::string(reference)), kLargestHead));
  if (IsCommit(loose)) return loose;
  const std::string packed = ReadBelow(tree, ".git/packed-refs", kLargestRefs);
  for (const absl::string_view line : absl::StrSplit(packed, '\n')) {
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    if (parts.second == reference && IsCommit(parts.first)) return std::string(parts.first);
  }
  return "";
}

std::string VersionFileOf(const std::string& tree) {
  for (const char* name : {"REVISION", ".revision", "VERSION"}) {
    const std::string word = FirstLine(ReadBelow(tree, name, 4096));
    const bool is_word = std::all_of(word.begin(), word.end(), [](char c) {
      return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-' || c == '_' || c == '+';
    });
    if (!word.empty() && word.size() <= kLongestVersion && is_word) return word;
  }
  return "";
}

TreeCommit FindTreeCommit(const std::string& tree, const std::string& given, const std::string& before, Engine& engine,
                          CommitSource* commits) {
  TreeCommit found;
  const auto resolve = [&](const std::string& reference) -> std::optional<rb::agent::Commit> {
    if (commits == nullptr || reference.empty()) return std::nullopt;
    const absl::StatusOr<rb::agent::Commit> commit = commits->Resolve(reference);
    if (!commit.ok()) return std::nullopt;
    return *commit;
  };
  if (!given.empty()) {
    const std::optional<rb::agent::Commit> commit = resolve(given);
    const std::string lower = absl::AsciiStrToLower(given);
    found.how = "as given";
    if (commit.has_value()) {
      found.commit = commit->id;
      found.version = commit->version;
    } else if (IsCommit(lower)) {
      found.commit = lower;
    } else {
      found.version = Printable(given.substr(0, kLongestVersion));
      found.how = "as given; the mirror does not know it";
    }
    return found;
  }
  const std::string head = HeadOfTree(tree);
  const std::string word = VersionFileOf(tree);
  for (const auto& [reference, where] :
       {std::make_pair(head, ".git/HEAD"), std::make_pair(word, "a version file"),
        std::make_pair(word.empty() ? word : absl::StrCat("v", word), "a version file")}) {
    const std::optional<rb::agent::Commit> commit = resolve(reference);
    if (!commit.has_value() || !IsCodeOf(commit->id, engine, *commits)) continue;
    found.commit = commit->id;
    found.version = commit->version;
    found.how = absl::StrCat("from ", where, ", and the files are those of the mirror");
    return found;
  }
  if (!head.empty() && head != before && !resolve(head).has_value()) {
    found.commit = head;
    found.how = "from .git/HEAD, which the mirror does not know";
    return found;
  }
  found.version = IsCommit(word) ? "" : word;
  found.how = head.empty() && word.empty() ? "the tree has no .git and no version file"
                                           : "what .git/HEAD and version files say is not what the files are";
  return found;
}

}  // namespace rb::agent
