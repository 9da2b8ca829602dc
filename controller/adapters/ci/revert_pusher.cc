#include "controller/adapters/ci/revert_pusher.h"

#include <git2.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"
#include "controller/adapters/http/http_client.h"

namespace rb::controller {
namespace {

constexpr absl::Duration kLongest = absl::Minutes(5);
constexpr int kMostAttempts = 2;
constexpr int kCommitsLookedAt = 200;
constexpr absl::Duration kRetry = absl::Seconds(2);
constexpr size_t kLargestKnownHosts = 1 << 20;

template <typename T, void (*kFree)(T*)>
struct Freer {
  void operator()(T* it) const { kFree(it); }
};
using Repository = std::unique_ptr<git_repository, Freer<git_repository, git_repository_free>>;
using Remote = std::unique_ptr<git_remote, Freer<git_remote, git_remote_free>>;
using CommitHandle = std::unique_ptr<git_commit, Freer<git_commit, git_commit_free>>;
using Tree = std::unique_ptr<git_tree, Freer<git_tree, git_tree_free>>;
using Signature = std::unique_ptr<git_signature, Freer<git_signature, git_signature_free>>;
using Walk = std::unique_ptr<git_revwalk, Freer<git_revwalk, git_revwalk_free>>;

// Of the last failure. libgit2 puts no credentials in its messages; URLs with user information are refused before.
std::string Why() {
  const git_error* error = git_error_last();
  return error == nullptr || error->message == nullptr ? "git failed" : Printable(error->message);
}

std::string Hex(const git_oid& oid) {
  char text[GIT_OID_HEXSZ + 1];
  git_oid_tostr(text, sizeof(text), &oid);
  return text;
}

// What the callbacks of one exchange need, and what they leave.
struct Exchange {
  const v1::RevertConfig& config;
  std::string token;
  std::string known_hosts;
  absl::Duration deadline;
  int attempts = 0;
  std::string refused;
};

int OnCredentials(git_credential** out, const char*, const char* user, unsigned int allowed, void* payload) {
  auto* exchange = static_cast<Exchange*>(payload);
  const std::string name = user != nullptr ? user : "git";
  if ((allowed & GIT_CREDENTIAL_USERNAME) != 0) return git_credential_username_new(out, name.c_str());
  if (++exchange->attempts > kMostAttempts) {
    exchange->refused = "what it was given to log in with was refused";
    return GIT_EAUTH;
  }
  if ((allowed & GIT_CREDENTIAL_SSH_KEY) != 0 && !exchange->config.ssh_key_file().empty()) {
    return git_credential_ssh_key_new(out, name.c_str(), nullptr, exchange->config.ssh_key_file().c_str(), nullptr);
  }
  if ((allowed & GIT_CREDENTIAL_USERPASS_PLAINTEXT) != 0 && !exchange->token.empty()) {
    const std::string as = exchange->config.user().empty() ? "x-access-token" : exchange->config.user();
    return git_credential_userpass_plaintext_new(out, as.c_str(), exchange->token.c_str());
  }
  return GIT_EAUTH;
}

// ssh: the host's key has to be in the file. https: what libgit2 found.
int OnCertificate(git_cert* certificate, int valid, const char* host, void* payload) {
  auto* exchange = static_cast<Exchange*>(payload);
  if (certificate->cert_type != GIT_CERT_HOSTKEY_LIBSSH2) return valid != 0 ? 0 : GIT_ECERTIFICATE;
  const auto* key = reinterpret_cast<const git_cert_hostkey*>(certificate);
  if ((key->type & GIT_CERT_SSH_RAW) != 0) {
    const std::string seen = absl::Base64Escape(absl::string_view(key->hostkey, key->hostkey_len));
    for (const absl::string_view line : absl::StrSplit(exchange->known_hosts, '\n')) {
      const std::vector<std::string> fields = absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
      if (fields.size() < 3 || fields[2] != seen) continue;
      for (const absl::string_view pattern : absl::StrSplit(fields[0], ',')) {
        if (pattern == host || absl::StartsWith(pattern, absl::StrCat("[", host, "]:"))) return 0;
      }
    }
  }
  exchange->refused = absl::StrCat("the host key of ", host, " is not in ", exchange->config.known_hosts_file());
  return GIT_ECERTIFICATE;
}

int OnTransfer(const git_indexer_progress*, void* payload) {
  return SystemClock().Monotonic() > static_cast<Exchange*>(payload)->deadline ? GIT_EUSER : 0;
}
int OnPush(unsigned int, unsigned int, size_t, void* payload) { return OnTransfer(nullptr, payload); }
int OnReference(const char*, const char* status, void* payload) {
  if (status != nullptr) static_cast<Exchange*>(payload)->refused = Printable(status);
  return 0;
}

void SetCallbacks(git_remote_callbacks* callbacks, Exchange* exchange) {
  callbacks->payload = exchange;
  callbacks->credentials = OnCredentials;
  callbacks->certificate_check = OnCertificate;
  callbacks->transfer_progress = OnTransfer;
  callbacks->push_transfer_progress = OnPush;
  callbacks->push_update_reference = OnReference;
}

absl::Status Failed(const std::string& what, const Exchange& exchange) {
  const std::string text = absl::StrCat(what, ": ", exchange.refused.empty() ? Why() : exchange.refused);
  const bool is_key = absl::StrContains(exchange.refused, "log in") || absl::StrContains(exchange.refused, "host key");
  if (is_key) return absl::PermissionDeniedError(text);
  return WithRetryAfter(absl::UnavailableError(text), kRetry);
}

absl::StatusOr<Exchange> NewExchange(const v1::RevertConfig& config) {
  Exchange exchange{config, "", "", SystemClock().Monotonic() + kLongest, 0, ""};
  if (!config.token_file().empty()) {
    RB_ASSIGN_OR_RETURN(exchange.token, ReadSecret(config.token_file()));
  }
  if (!config.ssh_key_file().empty()) {
    RB_RETURN_IF_ERROR(ReadSecret(config.ssh_key_file()).status());
  }
  if (!config.known_hosts_file().empty()) {
    RB_ASSIGN_OR_RETURN(exchange.known_hosts, ReadFile(config.known_hosts_file(), kLargestKnownHosts));
  }
  return exchange;
}

absl::StatusOr<Repository> Open(const std::string& folder) {
  static const int initialised = git_libgit2_init();
  (void)initialised;
  git_repository* raw = nullptr;
  if (git_repository_open_bare(&raw, folder.c_str()) == 0) return Repository(raw);
  git_repository_init_options options;
  git_repository_init_options_init(&options, GIT_REPOSITORY_INIT_OPTIONS_VERSION);
  options.flags = GIT_REPOSITORY_INIT_BARE | GIT_REPOSITORY_INIT_MKDIR | GIT_REPOSITORY_INIT_MKPATH;
  if (git_repository_init_ext(&raw, folder.c_str(), &options) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(folder, ": ", Why()));
  }
  return Repository(raw);
}

absl::StatusOr<Remote> RemoteOf(git_repository* repository, const std::string& url) {
  git_remote* raw = nullptr;
  git_remote_create_options options;
  git_remote_create_options_init(&options, GIT_REMOTE_CREATE_OPTIONS_VERSION);
  options.repository = repository;
  options.flags = GIT_REMOTE_CREATE_SKIP_INSTEADOF | GIT_REMOTE_CREATE_SKIP_DEFAULT_FETCHSPEC;
  if (git_remote_create_with_opts(&raw, url.c_str(), &options) != 0) return absl::FailedPreconditionError(Why());
  return Remote(raw);
}

absl::StatusOr<CommitHandle> CommitOf(git_repository* repository, const git_oid& oid) {
  git_commit* raw = nullptr;
  if (git_commit_lookup(&raw, repository, &oid) != 0) return absl::FailedPreconditionError(Why());
  return CommitHandle(raw);
}

std::string Trailer(const CiRequest& request) { return absl::StrCat("Rb-Operation: ", request.key); }

// The commit that was made for the key, among the newest of the branch; zero when there is none.
git_oid MadeBefore(git_repository* repository, const git_oid& head, const CiRequest& request) {
  git_oid none{};
  git_revwalk* raw = nullptr;
  if (git_revwalk_new(&raw, repository) != 0) return none;
  const Walk walk(raw);
  git_revwalk_push(walk.get(), &head);
  git_oid oid;
  for (int i = 0; i < kCommitsLookedAt && git_revwalk_next(&oid, walk.get()) == 0; ++i) {
    const absl::StatusOr<CommitHandle> commit = CommitOf(repository, oid);
    if (!commit.ok()) continue;
    for (const absl::string_view line : absl::StrSplit(git_commit_message(commit->get()), '\n')) {
      if (line == Trailer(request)) return oid;
    }
  }
  return none;
}

absl::Status FetchHeads(git_repository* repository, const v1::RevertConfig& config, Exchange* exchange) {
  RB_ASSIGN_OR_RETURN(const Remote remote, RemoteOf(repository, config.remote()));
  git_fetch_options fetch;
  git_fetch_options_init(&fetch, GIT_FETCH_OPTIONS_VERSION);
  SetCallbacks(&fetch.callbacks, exchange);
  fetch.prune = GIT_FETCH_PRUNE;
  fetch.update_fetchhead = 0;
  fetch.download_tags = GIT_REMOTE_DOWNLOAD_TAGS_NONE;
  fetch.proxy_opts.type = GIT_PROXY_NONE;
  char heads[] = "+refs/heads/*:refs/remotes/upstream/*";
  char* specs[] = {heads};
  const git_strarray refspecs{specs, 1};
  if (git_remote_fetch(remote.get(), &refspecs, &fetch, nullptr) == 0) return absl::OkStatus();
  return Failed(absl::StrCat("fetching ", config.remote()), *exchange);
}

}  // namespace

absl::Status RevertPusher::Check() {
  RB_ASSIGN_OR_RETURN(const Repository repository, Open(folder_));
  RB_ASSIGN_OR_RETURN(Exchange exchange, NewExchange(config_));
  return FetchHeads(repository.get(), config_, &exchange);
}

absl::StatusOr<RevertPushed> RevertPusher::Push(const CiRequest& request) {
  RB_ASSIGN_OR_RETURN(const Repository repository, Open(folder_));
  RB_ASSIGN_OR_RETURN(Exchange exchange, NewExchange(config_));
  RB_RETURN_IF_ERROR(FetchHeads(repository.get(), config_, &exchange));
  RevertPushed pushed;
  pushed.branch = config_.pull_request() ? absl::StrCat("rb/", request.key) : branch();
  const auto head_of = [&](const std::string& name, git_oid* oid) {
    return git_reference_name_to_id(oid, repository.get(), absl::StrCat("refs/remotes/upstream/", name).c_str()) == 0;
  };
  git_oid head;
  if (!head_of(branch(), &head)) {
    return absl::FailedPreconditionError(absl::StrCat(config_.remote(), " has no branch ", branch()));
  }
  git_oid own;
  const git_oid made = MadeBefore(repository.get(), head_of(pushed.branch, &own) ? own : head, request);
  if (git_oid_is_zero(&made) == 0) {
    pushed.commit = Hex(made);
    return pushed;
  }
  git_oid target_id;
  absl::StatusOr<CommitHandle> target = absl::FailedPreconditionError("");
  if (git_oid_fromstr(&target_id, request.commit.c_str()) == 0) target = CommitOf(repository.get(), target_id);
  if (!target.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("commit ", request.commit.substr(0, 7), " is in no branch of ", config_.remote()));
  }
  RB_ASSIGN_OR_RETURN(const CommitHandle parent, CommitOf(repository.get(), head));
  if (git_oid_equal(git_commit_tree_id(parent.get()), git_commit_tree_id(target->get())) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(branch(), " has the files of ", request.commit.substr(0, 7),
                                                      " already: there is nothing to push"));
  }
  git_tree* raw_tree = nullptr;
  if (git_commit_tree(&raw_tree, target->get()) != 0) return absl::FailedPreconditionError(Why());
  const Tree tree(raw_tree);
  // The same request on the same head is the same commit.
  git_signature* raw_signature = nullptr;
  if (git_signature_new(&raw_signature, "rbctl", "rbctl@localhost", absl::ToUnixSeconds(request.asked_at), 0) != 0) {
    return absl::FailedPreconditionError(Why());
  }
  const Signature signature(raw_signature);
  const std::string what = request.version.empty() ? request.commit.substr(0, 7) : request.version;
  const std::string message =
      absl::StrCat("Back to ", what, "\n\n", request.reason, request.reason.empty() ? "" : "\n\n",
                   "The files are those of ", request.commit, ".\n\n", Trailer(request), "\n");
  const git_commit* parents[] = {parent.get()};
  git_oid made_now;
  if (git_commit_create(&made_now, repository.get(), nullptr, signature.get(), signature.get(), "UTF-8",
                        message.c_str(), tree.get(), 1, parents) != 0) {
    return absl::FailedPreconditionError(Why());
  }
  const std::string local = absl::StrCat("refs/rb/", request.key);
  git_reference* raw_reference = nullptr;
  if (git_reference_create(&raw_reference, repository.get(), local.c_str(), &made_now, 1, nullptr) != 0) {
    return absl::FailedPreconditionError(Why());
  }
  git_reference_free(raw_reference);
  RB_ASSIGN_OR_RETURN(const Remote remote, RemoteOf(repository.get(), config_.remote()));
  git_push_options push;
  git_push_options_init(&push, GIT_PUSH_OPTIONS_VERSION);
  exchange.attempts = 0;
  SetCallbacks(&push.callbacks, &exchange);
  push.proxy_opts.type = GIT_PROXY_NONE;
  std::string spec = absl::StrCat(local, ":refs/heads/", pushed.branch);
  char* specs[] = {spec.data()};
  const git_strarray refspecs{specs, 1};
  const int code = git_remote_push(remote.get(), &refspecs, &push);
  if (code != 0 || !exchange.refused.empty()) {
    return Failed(absl::StrCat("pushing to ", pushed.branch, " of ", config_.remote()), exchange);
  }
  pushed.commit = Hex(made_now);
  return pushed;
}

}  // namespace rb::controller
