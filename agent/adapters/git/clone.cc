#include "agent/adapters/git/clone.h"

#include <fcntl.h>
#include <git2.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/tree_files.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"
#include "common/unique_fd.h"

namespace rb::agent {
namespace {

constexpr size_t kLargestHeadBytes = 4096;
constexpr size_t kLargestFileBytes = size_t{1} << 30;

template <typename T, void (*Free)(T*)>
struct Freer {
  void operator()(T* handle) const { Free(handle); }
};
template <typename T, void (*Free)(T*)>
using Owned = std::unique_ptr<T, Freer<T, Free>>;

absl::Status GitStatus(absl::string_view what) {
  const git_error* error = git_error_last();
  return absl::UnavailableError(absl::StrCat(
      what, ": ", error != nullptr && error->message != nullptr ? Printable(Truncate(error->message, 300)) : "failed"));
}

bool IsPlainBranch(absl::string_view name) {
  for (absl::string_view part : absl::StrSplit(name, '/')) {
    if (part.empty() || part[0] == '.' || part[0] == '-' || absl::EndsWith(part, ".lock") ||
        absl::StrContains(part, "..") || part.back() == '.') {
      return false;
    }
    for (const char c : part) {
      if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-' && c != '+') {
        return false;
      }
    }
  }
  return name.size() <= 200;
}

class CloneSnapshot final : public SnapshotSource {
 public:
  CloneSnapshot(std::unique_ptr<SnapshotSource> commit, std::string scratch)
      : commit_(std::move(commit)), scratch_(std::move(scratch)) {}
  ~CloneSnapshot() override {
    std::error_code ignored;
    std::filesystem::remove_all(scratch_, ignored);
  }

  // `path` beneath .git. What it holds is in the scratch folder, or is `text`.
  absl::Status Add(const std::string& path, const std::string& id, const std::string& file, const std::string& text) {
    Entry entry;
    entry.path = absl::StrCat(".git/", path);
    entry.content_id = id;
    entry.size = text.size();
    if (!file.empty()) {
      struct stat info;
      if (stat(file.c_str(), &info) != 0) return ErrnoStatus(errno, file);
      entry.size = static_cast<uint64_t>(info.st_size);
    }
    contents_[id] = {file, text};
    entries_.push_back(std::move(entry));
    return absl::OkStatus();
  }

  absl::Status ForEach(const std::function<absl::Status(const Entry&)>& visit) override {
    std::vector<Entry> all = entries_;
    RB_RETURN_IF_ERROR(commit_->ForEach([&](const Entry& entry) {
      all.push_back(entry);
      return absl::OkStatus();
    }));
    std::sort(all.begin(), all.end(), [](const Entry& a, const Entry& b) { return a.path < b.path; });
    for (const Entry& entry : all) RB_RETURN_IF_ERROR(visit(entry));
    return absl::OkStatus();
  }

  absl::Status Read(const std::string& content_id, std::string* content) override {
    const auto found = contents_.find(content_id);
    if (found == contents_.end()) return commit_->Read(content_id, content);
    if (found->second.first.empty()) {
      *content = found->second.second;
      return absl::OkStatus();
    }
    RB_ASSIGN_OR_RETURN(*content, ReadFile(found->second.first, kLargestFileBytes));
    return absl::OkStatus();
  }

  absl::Time ModificationTime() override { return commit_->ModificationTime(); }

 private:
  const std::unique_ptr<SnapshotSource> commit_;
  const std::string scratch_;
  std::vector<Entry> entries_;
  // Content id → file, or the content itself.
  std::map<std::string, std::pair<std::string, std::string>> contents_;
};

// Without what it would know of files: git looks at each of them once, the first time that it is asked.
absl::Status WriteIndex(git_repository* mirror, const git_oid& commit_id, const std::string& path) {
  git_commit* commit_raw = nullptr;
  if (git_commit_lookup(&commit_raw, mirror, &commit_id) != 0) return GitStatus("reading the commit");
  const Owned<git_commit, git_commit_free> commit(commit_raw);
  git_tree* tree_raw = nullptr;
  if (git_commit_tree(&tree_raw, commit.get()) != 0) return GitStatus("reading the commit's tree");
  const Owned<git_tree, git_tree_free> tree(tree_raw);
  git_index* index_raw = nullptr;
  if (git_index_open(&index_raw, path.c_str()) != 0) return GitStatus("making an index");
  const Owned<git_index, git_index_free> index(index_raw);
  if (git_index_read_tree(index.get(), tree.get()) != 0 || git_index_write(index.get()) != 0) {
    return GitStatus("writing an index");
  }
  return absl::OkStatus();
}

// The pack's name, "" when no object is needed.
absl::StatusOr<std::string> WritePack(git_repository* mirror, const git_oid& commit_id, const std::string& from_commit,
                                      const std::string& folder) {
  git_revwalk* walk_raw = nullptr;
  if (git_revwalk_new(&walk_raw, mirror) != 0) return GitStatus("reading history");
  const Owned<git_revwalk, git_revwalk_free> walk(walk_raw);
  if (git_revwalk_push(walk.get(), &commit_id) != 0) return GitStatus("reading history");
  git_oid from;
  if (from_commit.size() == GIT_OID_HEXSZ && git_oid_fromstr(&from, from_commit.c_str()) == 0) {
    git_commit* known = nullptr;
    if (git_commit_lookup(&known, mirror, &from) == 0) {
      git_commit_free(known);
      if (git_revwalk_hide(walk.get(), &from) != 0) return GitStatus("reading history");
    }
  }
  git_packbuilder* pack_raw = nullptr;
  if (git_packbuilder_new(&pack_raw, mirror) != 0) return GitStatus("making a pack");
  const Owned<git_packbuilder, git_packbuilder_free> pack(pack_raw);
  git_packbuilder_set_threads(pack.get(), 1);
  if (git_packbuilder_insert_walk(pack.get(), walk.get()) != 0) return GitStatus("making a pack");
  if (git_packbuilder_object_count(pack.get()) == 0) return std::string();
  if (git_packbuilder_write(pack.get(), folder.c_str(), 0600, nullptr, nullptr) != 0)
    return GitStatus("writing a pack");
  return std::string(git_packbuilder_name(pack.get()));
}

}  // namespace

std::string CheckedOutFileFrom(absl::string_view head) {
  absl::string_view branch = absl::StripAsciiWhitespace(head);
  if (absl::ConsumePrefix(&branch, "ref:")) {
    branch = absl::StripLeadingAsciiWhitespace(branch);
    if (absl::ConsumePrefix(&branch, "refs/heads/") && IsPlainBranch(branch))
      return absl::StrCat("refs/heads/", branch);
  }
  return "HEAD";
}

absl::StatusOr<std::string> CheckedOutFile(const std::string& tree) {
  const UniqueFd root(open(tree.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return ErrnoStatus(errno, tree);
  const absl::StatusOr<UniqueFd> folder = OpenFolderBeneath(root.get(), ".git");
  if (!folder.ok()) return std::string();  // a link, or a file that names a folder elsewhere, is not followed
  const UniqueFd file(openat(folder->get(), "HEAD", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  struct stat info;
  if (!file.valid() || fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode)) return std::string();
  char head[kLargestHeadBytes];
  const ssize_t length = read(file.get(), head, sizeof head);
  if (length < 0) return ErrnoStatus(errno, absl::StrCat(tree, "/.git/HEAD"));
  return CheckedOutFileFrom(absl::string_view(head, static_cast<size_t>(length)));
}

absl::StatusOr<std::unique_ptr<SnapshotSource>> WithCloneFiles(std::unique_ptr<SnapshotSource> commit,
                                                               git_repository* mirror, const std::string& commit_id,
                                                               const std::string& from_commit,
                                                               const std::string& checked_out_file,
                                                               const std::string& scratch) {
  git_oid oid;
  if (git_oid_fromstr(&oid, commit_id.c_str()) != 0) return GitStatus("not a commit's id");
  RB_RETURN_IF_ERROR(MakeFolders(scratch));
  auto source = std::make_unique<CloneSnapshot>(std::move(commit), scratch);
  RB_RETURN_IF_ERROR(source->Add(checked_out_file, absl::StrCat("head-", commit_id), "", commit_id + "\n"));
  RB_RETURN_IF_ERROR(WriteIndex(mirror, oid, scratch + "/index"));
  RB_RETURN_IF_ERROR(source->Add("index", absl::StrCat("index-", commit_id), scratch + "/index", ""));
  RB_ASSIGN_OR_RETURN(const std::string pack, WritePack(mirror, oid, from_commit, scratch));
  if (!pack.empty()) {
    for (const char* kind : {"pack", "idx"}) {
      const std::string name = absl::StrCat("pack-", pack, ".", kind);
      RB_RETURN_IF_ERROR(source->Add(absl::StrCat("objects/pack/", name), name, absl::StrCat(scratch, "/", name), ""));
    }
  }
  return std::unique_ptr<SnapshotSource>(std::move(source));
}

}  // namespace rb::agent
