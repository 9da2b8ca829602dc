#include "agent/adapters/git/git_mirror.h"

#include <git2.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "agent/adapters/git/clone.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kMostEntries = 2'000'000;
constexpr int kDeepestTree = 100;
constexpr git_object_size_t kLargestBlobBytes = git_object_size_t{1} << 30;
constexpr size_t kMostNamed = 8;
constexpr size_t kShortestPrefix = 4;

// libgit2's handles, freed by their own functions.
template <typename T, void (*Free)(T*)>
struct Freer {
  void operator()(T* handle) const { Free(handle); }
};
template <typename T, void (*Free)(T*)>
using Owned = std::unique_ptr<T, Freer<T, Free>>;
using Repository = Owned<git_repository, git_repository_free>;
using Remote = Owned<git_remote, git_remote_free>;
using CommitHandle = Owned<git_commit, git_commit_free>;
using Tree = Owned<git_tree, git_tree_free>;
using Blob = Owned<git_blob, git_blob_free>;
using Object = Owned<git_object, git_object_free>;
using Reference = Owned<git_reference, git_reference_free>;
using ReferenceIterator = Owned<git_reference_iterator, git_reference_iterator_free>;
using Odb = Owned<git_odb, git_odb_free>;
using Walk = Owned<git_revwalk, git_revwalk_free>;

// Nothing outside the mirror has a say: no system-wide or personal configuration. Ownership is not validated, because
// that guards against running what a foreign repository's configuration names, and nothing is ever run here; a file://
// remote that belongs to the service's user is an ordinary case.
void InitialiseLibrary() {
  static std::once_flag once;
  std::call_once(once, [] {
    git_libgit2_init();
    for (const git_config_level_t level :
         {GIT_CONFIG_LEVEL_SYSTEM, GIT_CONFIG_LEVEL_XDG, GIT_CONFIG_LEVEL_GLOBAL, GIT_CONFIG_LEVEL_PROGRAMDATA}) {
      git_libgit2_opts(GIT_OPT_SET_SEARCH_PATH, level, "");
    }
    git_libgit2_opts(GIT_OPT_SET_TEMPLATE_PATH, "");
    git_libgit2_opts(GIT_OPT_SET_OWNER_VALIDATION, 0);
    git_libgit2_opts(GIT_OPT_ENABLE_FSYNC_GITDIR, 1);
  });
}

absl::Status GitStatus(int code, absl::string_view what) {
  const git_error* error = git_error_last();
  const std::string text = absl::StrCat(
      what, ": ", error != nullptr && error->message != nullptr ? Printable(Truncate(error->message, 300)) : "failed");
  switch (code) {
    case GIT_ENOTFOUND:
      return absl::NotFoundError(text);
    case GIT_EAMBIGUOUS:
    case GIT_EINVALIDSPEC:
      return absl::InvalidArgumentError(text);
    case GIT_EAUTH:
    case GIT_ECERTIFICATE:
      return absl::PermissionDeniedError(text);
    default:
      return absl::UnavailableError(text);
  }
}

std::string ToHex(const git_oid& oid) {
  char text[GIT_OID_HEXSZ + 1];
  return git_oid_tostr(text, sizeof text, &oid);
}

absl::Time TimeOf(git_commit* commit) { return absl::FromUnixSeconds(git_commit_time(commit)); }

// "v1.10" after "v1.9": numbers compare as numbers.
bool NaturalLess(absl::string_view a, absl::string_view b) {
  size_t i = 0;
  size_t j = 0;
  while (i < a.size() && j < b.size()) {
    if (absl::ascii_isdigit(static_cast<unsigned char>(a[i])) &&
        absl::ascii_isdigit(static_cast<unsigned char>(b[j]))) {
      const auto number = [](absl::string_view text, size_t* at) {
        size_t begin = *at;
        while (*at < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[*at]))) ++*at;
        while (begin + 1 < *at && text[begin] == '0') ++begin;
        return text.substr(begin, *at - begin);
      };
      const absl::string_view x = number(a, &i);
      const absl::string_view y = number(b, &j);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
      continue;
    }
    if (a[i] != b[j]) return a[i] < b[j];
    ++i;
    ++j;
  }
  return a.size() - i < b.size() - j;
}

struct TagName {
  std::string name;
  // 0 for one without an object of its own.
  git_time_t made_at = 0;
};
bool IsNewer(const TagName& a, const TagName& b) {
  return a.made_at != b.made_at ? a.made_at > b.made_at : NaturalLess(b.name, a.name);
}

// The newest tag of each tagged commit.
std::map<std::string, TagName> TagsByCommit(git_repository* repository) {
  std::map<std::string, TagName> tags;
  git_reference_iterator* raw = nullptr;
  if (git_reference_iterator_glob_new(&raw, repository, "refs/tags/*") != 0) return tags;
  const ReferenceIterator iterator(raw);
  git_reference* next = nullptr;
  while (git_reference_next(&next, iterator.get()) == 0) {
    const Reference reference(next);
    git_object* peeled = nullptr;
    if (git_reference_peel(&peeled, reference.get(), GIT_OBJECT_COMMIT) != 0) continue;
    const Object commit(peeled);
    TagName tag{absl::StrCat(absl::StripPrefix(git_reference_name(reference.get()), "refs/tags/")), 0};
    git_tag* object = nullptr;
    const git_oid* target = git_reference_target(reference.get());
    if (target != nullptr && git_tag_lookup(&object, repository, target) == 0) {
      const git_signature* tagger = git_tag_tagger(object);
      if (tagger != nullptr) tag.made_at = tagger->when.time;
      git_tag_free(object);
    }
    auto [it, first] = tags.emplace(ToHex(*git_object_id(commit.get())), tag);
    if (!first && IsNewer(tag, it->second)) it->second = tag;
  }
  return tags;
}

Commit Describe(git_commit* commit, const std::map<std::string, TagName>& tags) {
  Commit described;
  described.id = ToHex(*git_commit_id(commit));
  const auto tag = tags.find(described.id);
  if (tag != tags.end()) described.version = Printable(tag->second.name);
  described.committed_at = TimeOf(commit);
  const char* summary = git_commit_summary(commit);
  described.subject = summary == nullptr ? "" : Printable(Truncate(summary, 200));
  return described;
}

// The commit that a reference leads to; NOT_FOUND when there is no such reference, or it leads to something else.
absl::StatusOr<CommitHandle> CommitOf(git_repository* repository, const std::string& reference_name) {
  git_reference* raw = nullptr;
  // Names that git does not allow are names that do not exist.
  const int code = git_reference_lookup(&raw, repository, reference_name.c_str());
  if (code != 0) return absl::NotFoundError(absl::StrCat("no ", Printable(reference_name)));
  const Reference reference(raw);
  git_object* object = nullptr;
  if (git_reference_peel(&object, reference.get(), GIT_OBJECT_COMMIT) != 0) {
    return absl::NotFoundError(absl::StrCat(Printable(reference_name), " names no commit"));
  }
  return CommitHandle(reinterpret_cast<git_commit*>(object));
}

struct PrefixSearch {
  git_repository* repository;
  git_oid prefix;
  size_t digits;
  std::set<std::string> commits;
};

int MatchPrefix(const git_oid* oid, void* payload) {
  auto* search = static_cast<PrefixSearch*>(payload);
  if (git_oid_ncmp(oid, &search->prefix, search->digits) != 0) return 0;
  git_commit* commit = nullptr;
  if (git_commit_lookup(&commit, search->repository, oid) == 0) {
    git_commit_free(commit);
    search->commits.insert(ToHex(*oid));
  }
  return 0;
}

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); });
}

// What is wrong with one element of a path in a tree, or "".
std::string ElementProblem(absl::string_view name) {
  if (name.empty() || name == "." || name == ".." || absl::StrContains(name, "/")) return "is not a name";
  if (name.size() > 255) return "is too long";
  if (absl::EqualsIgnoreCase(name, ".git")) return "would become a git folder";
  return "";
}

// A commit's tree, read blob by blob. Has its own handle: it may outlive the mirror.
class CommitSnapshot final : public SnapshotSource {
 public:
  CommitSnapshot(Repository repository, CommitHandle commit)
      : repository_(std::move(repository)), commit_(std::move(commit)) {}

  absl::Status ForEach(const std::function<absl::Status(const Entry&)>& visit) override {
    std::vector<Entry> entries;
    std::vector<std::string> problems;
    git_tree* raw = nullptr;
    const int code = git_commit_tree(&raw, commit_.get());
    if (code != 0) return GitStatus(code, "reading the tree of a commit");
    const Tree tree(raw);
    git_odb* odb_raw = nullptr;
    const int odb_code = git_repository_odb(&odb_raw, repository_.get());
    if (odb_code != 0) return GitStatus(odb_code, "opening the mirror");
    const Odb odb(odb_raw);
    RB_RETURN_IF_ERROR(Collect(tree.get(), odb.get(), "", 0, &entries, &problems));
    if (!problems.empty()) {
      return absl::FailedPreconditionError(absl::StrCat("commit ", ToHex(*git_commit_id(commit_.get())).substr(0, 12),
                                                        " cannot be exported: ", absl::StrJoin(problems, "; ")));
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.path < b.path; });
    for (const Entry& entry : entries) RB_RETURN_IF_ERROR(visit(entry));
    return absl::OkStatus();
  }

  absl::Status Read(const std::string& content_id, std::string* content) override {
    git_oid oid;
    if (content_id.size() != GIT_OID_HEXSZ || git_oid_fromstr(&oid, content_id.c_str()) != 0) {
      return absl::InvalidArgumentError(absl::StrCat("not an object id: ", Printable(content_id)));
    }
    git_blob* raw = nullptr;
    // Checks the content against its id (strict hash verification is libgit2's default).
    const int code = git_blob_lookup(&raw, repository_.get(), &oid);
    if (code != 0) return GitStatus(code, absl::StrCat("reading blob ", content_id));
    const Blob blob(raw);
    const git_object_size_t size = git_blob_rawsize(raw);
    if (size > kLargestBlobBytes) {
      return absl::ResourceExhaustedError(absl::StrCat("blob ", content_id, " has ", FormatBytes(size)));
    }
    content->assign(static_cast<const char*>(git_blob_rawcontent(raw)), static_cast<size_t>(size));
    return absl::OkStatus();
  }

  absl::Time ModificationTime() override { return TimeOf(commit_.get()); }

 private:
  absl::Status Collect(git_tree* tree, git_odb* odb, const std::string& folder, int depth, std::vector<Entry>* entries,
                       std::vector<std::string>* problems) {
    if (depth > kDeepestTree) return absl::FailedPreconditionError("the commit's folders are nested too deeply");
    for (size_t i = 0; i < git_tree_entrycount(tree); ++i) {
      const git_tree_entry* item = git_tree_entry_byindex(tree, i);
      const std::string name = git_tree_entry_name(item);
      const std::string path = folder.empty() ? name : absl::StrCat(folder, "/", name);
      std::string problem = ElementProblem(name);
      if (problem.empty() && path.size() > 4000) problem = "has too long a path";
      const git_filemode_t mode = git_tree_entry_filemode(item);
      if (problem.empty() && mode == GIT_FILEMODE_COMMIT) problem = "is a submodule, which is not fetched";
      if (!problem.empty()) {
        if (problems->size() < kMostNamed) {
          problems->push_back(absl::StrCat(Printable(Truncate(path, 200)), " ", problem));
        }
        continue;
      }
      if (mode == GIT_FILEMODE_TREE) {
        git_tree* raw = nullptr;
        const int code = git_tree_lookup(&raw, repository_.get(), git_tree_entry_id(item));
        if (code != 0) return GitStatus(code, absl::StrCat("reading folder ", Printable(path)));
        const Tree subtree(raw);
        RB_RETURN_IF_ERROR(Collect(raw, odb, path, depth + 1, entries, problems));
        continue;
      }
      if (entries->size() >= kMostEntries) {
        return absl::ResourceExhaustedError(absl::StrCat("the commit has more than ", kMostEntries, " files"));
      }
      Entry entry;
      entry.path = path;
      entry.type = mode == GIT_FILEMODE_LINK              ? Entry::Type::kSymlink
                   : mode == GIT_FILEMODE_BLOB_EXECUTABLE ? Entry::Type::kExecutable
                                                          : Entry::Type::kFile;
      entry.content_id = ToHex(*git_tree_entry_id(item));
      size_t size = 0;
      git_object_t type = GIT_OBJECT_INVALID;
      const int code = git_odb_read_header(&size, &type, odb, git_tree_entry_id(item));
      if (code != 0) return GitStatus(code, absl::StrCat("reading ", Printable(path)));
      entry.size = size;
      entries->push_back(std::move(entry));
    }
    return absl::OkStatus();
  }

  // The order matters: a commit is freed before its repository.
  const Repository repository_;
  const CommitHandle commit_;
};

// In the mirror: written by each fetch that has succeeded.
constexpr char kFetchedMark[] = "/rb-fetched";

struct FetchState {
  Clock& clock;
  absl::Duration deadline;
  int asked_for_credentials = 0;
};

int OnProgress(const git_indexer_progress*, void* payload) {
  auto* state = static_cast<FetchState*>(payload);
  return state->clock.Monotonic() > state->deadline ? GIT_EUSER : 0;
}
int OnSideband(const char*, int, void* payload) { return OnProgress(nullptr, payload); }

// Keys of the agent's own user, and what the URL itself says; nobody is asked.
int OnCredentials(git_credential** out, const char*, const char* user, unsigned int allowed, void* payload) {
  auto* state = static_cast<FetchState*>(payload);
  if (++state->asked_for_credentials > 4) return GIT_EAUTH;
  const std::string name = user == nullptr ? "git" : user;
  if ((allowed & GIT_CREDENTIAL_USERNAME) != 0) return git_credential_username_new(out, name.c_str());
  if ((allowed & GIT_CREDENTIAL_SSH_KEY) == 0) return GIT_PASSTHROUGH;
  if (state->asked_for_credentials == 1 && getenv("SSH_AUTH_SOCK") != nullptr) {
    return git_credential_ssh_key_from_agent(out, name.c_str());
  }
  const char* home = getenv("HOME");
  for (const char* key : {"id_ed25519", "id_ecdsa", "id_rsa"}) {
    const std::string path = absl::StrCat(home == nullptr ? "/root" : home, "/.ssh/", key);
    if (access(path.c_str(), R_OK) == 0) {
      return git_credential_ssh_key_new(out, name.c_str(), nullptr, path.c_str(), nullptr);
    }
  }
  return GIT_EAUTH;
}

absl::StatusOr<Repository> OpenBare(const std::string& path) {
  git_repository* raw = nullptr;
  const int code = git_repository_open_bare(&raw, path.c_str());
  if (code != 0) return GitStatus(code, absl::StrCat("opening the mirror ", path));
  return Repository(raw);
}

}  // namespace

GitMirror::GitMirror(Options options, Clock& clock, std::string path, git_repository* repository)
    : options_(std::move(options)), clock_(clock), path_(std::move(path)), repository_(repository) {}

GitMirror::~GitMirror() { git_repository_free(repository_); }

absl::StatusOr<std::unique_ptr<GitMirror>> GitMirror::Create(Options options, Clock& clock) {
  InitialiseLibrary();
  const std::string folder = absl::StrCat(options.state_folder, "/mirrors");
  RB_RETURN_IF_ERROR(MakeFolders(folder));
  const std::string path = absl::StrCat(folder, "/", options.service, ".git");
  absl::StatusOr<Repository> repository = OpenBare(path);
  if (!repository.ok()) {
    // Not there, or not finished when it was made: an empty one is made again without harm.
    git_repository_init_options init;
    git_repository_init_options_init(&init, GIT_REPOSITORY_INIT_OPTIONS_VERSION);
    init.flags = GIT_REPOSITORY_INIT_BARE | GIT_REPOSITORY_INIT_MKDIR;
    git_repository* raw = nullptr;
    const int code = git_repository_init_ext(&raw, path.c_str(), &init);
    if (code != 0) return GitStatus(code, absl::StrCat("making the mirror ", path));
    repository = Repository(raw);
  }
  return std::unique_ptr<GitMirror>(new GitMirror(std::move(options), clock, path, repository->release()));
}

absl::Status GitMirror::Reach(const std::string& remote) {
  InitialiseLibrary();
  git_remote* raw = nullptr;
  git_remote_create_options options;
  git_remote_create_options_init(&options, GIT_REMOTE_CREATE_OPTIONS_VERSION);
  options.flags = GIT_REMOTE_CREATE_SKIP_INSTEADOF | GIT_REMOTE_CREATE_SKIP_DEFAULT_FETCHSPEC;
  int code = git_remote_create_with_opts(&raw, remote.c_str(), &options);
  if (code != 0) return GitStatus(code, absl::StrCat("reaching ", remote));
  const Remote owner(raw);
  FetchState state{SystemClock(), absl::InfiniteDuration()};
  git_remote_callbacks callbacks;
  git_remote_init_callbacks(&callbacks, GIT_REMOTE_CALLBACKS_VERSION);
  callbacks.payload = &state;
  callbacks.credentials = OnCredentials;
  git_proxy_options proxy;
  git_proxy_options_init(&proxy, GIT_PROXY_OPTIONS_VERSION);
  proxy.type = GIT_PROXY_NONE;
  code = git_remote_connect(owner.get(), GIT_DIRECTION_FETCH, &callbacks, &proxy, nullptr);
  if (code != 0) return GitStatus(code, absl::StrCat("reaching ", remote));
  git_remote_disconnect(owner.get());
  return absl::OkStatus();
}

absl::Time GitMirror::FetchedAt(const std::string& state_folder, const std::string& service) {
  struct stat info;
  const std::string path = absl::StrCat(state_folder, "/mirrors/", service, ".git", kFetchedMark);
  return stat(path.c_str(), &info) == 0 ? absl::TimeFromTimespec(info.st_mtim) : absl::InfinitePast();
}

absl::Status GitMirror::Fetch() {
  git_remote* raw = nullptr;
  git_remote_create_options remote_options;
  git_remote_create_options_init(&remote_options, GIT_REMOTE_CREATE_OPTIONS_VERSION);
  remote_options.repository = repository_;
  // Fetch from the URL as it is. (Looking for rewrites of it also leaks 20 KiB an entry of the configuration in this
  // version of libgit2.)
  remote_options.flags = GIT_REMOTE_CREATE_SKIP_INSTEADOF | GIT_REMOTE_CREATE_SKIP_DEFAULT_FETCHSPEC;
  int code = git_remote_create_with_opts(&raw, options_.remote.c_str(), &remote_options);
  if (code != 0) return GitStatus(code, absl::StrCat("fetching ", options_.remote));
  const Remote remote(raw);
  FetchState state{clock_, clock_.Monotonic() + options_.fetch_timeout};
  git_fetch_options fetch;
  git_fetch_options_init(&fetch, GIT_FETCH_OPTIONS_VERSION);
  fetch.callbacks.payload = &state;
  fetch.callbacks.transfer_progress = OnProgress;
  fetch.callbacks.sideband_progress = OnSideband;
  fetch.callbacks.credentials = OnCredentials;
  fetch.prune = GIT_FETCH_PRUNE;
  fetch.update_fetchhead = 0;
  // Tags are fetched by their own refspec, which moves and removes them too.
  fetch.download_tags = GIT_REMOTE_DOWNLOAD_TAGS_NONE;
  fetch.proxy_opts.type = GIT_PROXY_NONE;
  char heads[] = "+refs/heads/*:refs/heads/*";
  char tags[] = "+refs/tags/*:refs/tags/*";
  char* specs[] = {heads, tags};
  const git_strarray refspecs{specs, 2};
  code = git_remote_fetch(remote.get(), &refspecs, &fetch, nullptr);
  if (code == 0) {
    // Its time of change says when. It decides nothing, so it is not flushed.
    std::ofstream(path_ + kFetchedMark) << FormatUtc(clock_.Now()) << "\n";
    return absl::OkStatus();
  }
  if (clock_.Monotonic() > state.deadline) {
    return absl::DeadlineExceededError(absl::StrCat("fetching ", options_.remote, " took longer than ",
                                                    FormatSeconds(options_.fetch_timeout),
                                                    "; the mirror is as it was"));
  }
  return GitStatus(code, absl::StrCat("fetching ", options_.remote));
}

absl::StatusOr<Commit> GitMirror::Resolve(absl::string_view reference) {
  const std::string name(reference);
  const auto describe = [&](git_commit* commit) { return Describe(commit, TagsByCommit(repository_)); };
  const bool hex = IsHex(name);
  git_oid oid;
  git_commit* raw = nullptr;
  if (hex && name.size() == GIT_OID_HEXSZ) {
    git_oid_fromstr(&oid, name.c_str());
    const int code = git_commit_lookup(&raw, repository_, &oid);
    if (code == 0) return describe(CommitHandle(raw).get());
    return absl::NotFoundError(absl::StrCat("commit ", name, " is not in the mirror of ", options_.remote));
  }
  if (!name.empty() && name.size() <= 255) {
    for (const char* space : {"refs/tags/", "refs/heads/"}) {
      absl::StatusOr<CommitHandle> commit = CommitOf(repository_, absl::StrCat(space, name));
      if (commit.ok()) return describe(commit->get());
    }
  }
  if (hex && name.size() >= kShortestPrefix && name.size() < GIT_OID_HEXSZ) {
    git_oid_fromstrn(&oid, name.c_str(), name.size());
    const int code = git_commit_lookup_prefix(&raw, repository_, &oid, name.size());
    if (code == 0) return describe(CommitHandle(raw).get());
    if (code == GIT_EAMBIGUOUS) {
      // Maybe only one of them is a commit.
      PrefixSearch search{repository_, oid, name.size(), {}};
      git_odb* odb_raw = nullptr;
      const int odb_code = git_repository_odb(&odb_raw, repository_);
      if (odb_code != 0) return GitStatus(odb_code, "opening the mirror");
      const Odb odb(odb_raw);
      const int found = git_odb_foreach(odb.get(), MatchPrefix, &search);
      if (found != 0) return GitStatus(found, "searching the mirror");
      if (search.commits.size() == 1) return Resolve(*search.commits.begin());
      if (search.commits.size() > 1) {
        std::vector<std::string> named(search.commits.begin(), search.commits.end());
        const size_t count = named.size();
        named.resize(std::min(named.size(), kMostNamed));
        return absl::InvalidArgumentError(absl::StrCat(name, " is the beginning of ", count,
                                                       " commits: ", absl::StrJoin(named, ", "),
                                                       count > kMostNamed ? ", …" : "", ". Give more digits"));
      }
    }
  }
  return absl::NotFoundError(absl::StrCat("no commit, tag or branch \"", Printable(Truncate(name, 100)),
                                          "\" in the mirror of ", options_.remote));
}

absl::StatusOr<std::vector<Commit>> GitMirror::Recent(size_t limit) {
  const std::string branch = options_.branch.empty() ? "main" : options_.branch;
  RB_ASSIGN_OR_RETURN(const CommitHandle head, CommitOf(repository_, absl::StrCat("refs/heads/", branch)));
  git_revwalk* raw = nullptr;
  int code = git_revwalk_new(&raw, repository_);
  if (code != 0) return GitStatus(code, "reading history");
  const Walk walk(raw);
  git_revwalk_sorting(raw, GIT_SORT_TOPOLOGICAL | GIT_SORT_TIME);
  git_revwalk_push(raw, git_commit_id(head.get()));
  const std::map<std::string, TagName> tags = TagsByCommit(repository_);
  std::vector<Commit> commits;
  git_oid oid;
  while (commits.size() < limit && (code = git_revwalk_next(&oid, raw)) == 0) {
    git_commit* commit = nullptr;
    code = git_commit_lookup(&commit, repository_, &oid);
    if (code != 0) return GitStatus(code, "reading history");
    commits.push_back(Describe(CommitHandle(commit).get(), tags));
  }
  if (code != 0 && code != GIT_ITEROVER) return GitStatus(code, "reading history");
  return commits;
}

absl::StatusOr<std::unique_ptr<SnapshotSource>> GitMirror::Open(const std::string& commit_id) {
  git_oid oid;
  if (commit_id.size() != GIT_OID_HEXSZ || git_oid_fromstr(&oid, commit_id.c_str()) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("not a commit's id: ", Printable(Truncate(commit_id, 100))));
  }
  RB_ASSIGN_OR_RETURN(Repository repository, OpenBare(path_));
  git_commit* raw = nullptr;
  const int code = git_commit_lookup(&raw, repository.get(), &oid);
  if (code != 0) return GitStatus(code, absl::StrCat("commit ", commit_id));
  return std::unique_ptr<SnapshotSource>(new CommitSnapshot(std::move(repository), CommitHandle(raw)));
}

absl::StatusOr<std::unique_ptr<SnapshotSource>> GitMirror::OpenForTree(const std::string& commit_id,
                                                                       const std::string& from_commit) {
  RB_ASSIGN_OR_RETURN(std::unique_ptr<SnapshotSource> commit, Open(commit_id));
  if (options_.tree.empty()) return commit;
  RB_ASSIGN_OR_RETURN(const std::string checked_out, CheckedOutFile(options_.tree));
  if (checked_out.empty()) return commit;
  // One operation at a time: what one that was killed has left is in the way.
  const std::string scratch = absl::StrCat(options_.state_folder, "/mirrors/", options_.service, ".for-clone");
  std::error_code ignored;
  std::filesystem::remove_all(scratch, ignored);
  return WithCloneFiles(std::move(commit), repository_, commit_id, from_commit, checked_out, scratch);
}

}  // namespace rb::agent
