#include "controller/adapters/ci/forge_ci.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"
#include "controller/adapters/ci/command_ci.h"
#include "controller/adapters/ci/revert_pusher.h"
#include "controller/adapters/http/http_client.h"
#include "nlohmann/json.hpp"

namespace rb::controller {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kLongestRetryAfter = absl::Minutes(10);
constexpr absl::Duration kRetry = absl::Seconds(2);
// A run that was made by a dispatch of ours cannot be older than it, but for the clocks.
constexpr absl::Duration kClockSkew = absl::Seconds(30);
constexpr int kRunsLookedAt = 30;
// Of the base URL of a GitHub Enterprise server; github.com and the like have a host of their own for it.
constexpr absl::string_view kEnterprisePath = "/api/v3";
constexpr absl::string_view kGithubHosts[] = {"api.github.com", ".ghe.com"};

// Of a value that may be absent, null, or something else.
std::string TextOf(const Json& json, const char* key) {
  if (!json.is_object()) return "";
  const auto found = json.find(key);
  if (found == json.end()) return "";
  if (found->is_string()) return found->get<std::string>();
  return found->is_number_integer() ? found->dump() : "";
}

class ForgeCi final : public CiProvider {
 public:
  ForgeCi(Forge forge, const v1::GithubCiConfig& config)
      : forge_(forge),
        config_(config),
        branch_(config.branch().empty() ? "main" : config.branch()),
        base_(std::string(
            absl::StripSuffix(config.base_url().empty() ? "https://api.github.com" : config.base_url(), "/"))),
        is_enterprise_(forge == Forge::kGithub && absl::EndsWith(base_, kEnterprisePath)),
        name_(forge == Forge::kGithub ? "GitHub" : "Gitea") {}

  absl::Status Check() override {
    RB_ASSIGN_OR_RETURN(const Json workflow, Call("GET", WorkflowPath(), Json(), {200}));
    const std::string state = TextOf(workflow, "state");
    if (!state.empty() && state != "active") {
      return absl::FailedPreconditionError(
          absl::StrCat("the workflow ", config_.workflow(), " is ", Printable(state), " at ", name_));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::optional<CiRunHandle>> Find(const CiRequest& request) override {
    const std::string since =
        absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", request.asked_at - kClockSkew, absl::UTCTimeZone());
    // Gitea lists the runs of a repository only.
    const std::string path =
        forge_ == Forge::kGithub
            ? absl::StrCat(WorkflowPath(), "/runs?event=workflow_dispatch&branch=", UrlEscape(branch_),
                           "&created=", UrlEscape(absl::StrCat(">=", since)), "&per_page=", kRunsLookedAt)
            : absl::StrCat(RepositoryPath(), "/actions/runs?event=workflow_dispatch&branch=", UrlEscape(branch_),
                           "&limit=", kRunsLookedAt);
    RB_ASSIGN_OR_RETURN(const Json answer, Call("GET", path, Json(), {200}));
    const auto runs = answer.is_object() ? answer.find("workflow_runs") : answer.end();
    if (!answer.is_object() || runs == answer.end() || !runs->is_array()) return Misunderstood();
    std::vector<CiRunHandle> made_since;
    for (const Json& run : *runs) {
      if (TextOf(run, "event") != "workflow_dispatch") continue;
      // Gitea: "deploy.yml@refs/heads/main"; GitHub: ".github/workflows/deploy.yml".
      const std::string file = TextOf(run, "path");
      if (!file.empty() && !absl::StrContains(absl::StrCat("/", file), absl::StrCat("/", config_.workflow()))) continue;
      CiRunHandle handle{TextOf(run, "id"), Printable(TextOf(run, "html_url")), ""};
      if (handle.id.empty()) continue;
      if (!config_.key_input().empty()) {
        const std::string title = absl::StrCat(TextOf(run, "display_title"), " ", TextOf(run, "name"));
        if (absl::StrContains(title, request.key)) return handle;
        continue;
      }
      absl::Time created;
      std::string created_at = TextOf(run, "created_at");
      if (created_at.empty()) created_at = TextOf(run, "started_at");
      if (absl::ParseTime(absl::RFC3339_full, created_at, &created, nullptr) &&
          created >= request.asked_at - kClockSkew) {
        made_since.push_back(std::move(handle));
      }
    }
    // With two of them nobody can say which is ours.
    if (made_since.size() > 1) {
      return absl::FailedPreconditionError(absl::StrCat(
          name_, " has ", made_since.size(), " runs of ", config_.workflow(),
          " that were dispatched since it was asked; which is ours is not known. Name a `key_input`, see docs/ci.md"));
    }
    if (made_since.empty()) return std::nullopt;
    return made_since.front();
  }

  absl::StatusOr<std::optional<CiRunHandle>> Dispatch(const CiRequest& request) override {
    Json inputs = Json::object();
    for (const auto& [key, value] : config_.inputs()) inputs[key] = FillIn(value, request, "");
    inputs[config_.ref_input()] = request.commit;
    if (!config_.environment_input().empty()) inputs[config_.environment_input()] = request.environment;
    if (!config_.key_input().empty()) inputs[config_.key_input()] = request.key;
    Json body = {{"ref", branch_}, {"inputs", std::move(inputs)}};
    // An Enterprise server refuses keys that it does not know; its run is found by the key in its name.
    if (forge_ == Forge::kGithub && !is_enterprise_) body["return_run_details"] = true;
    absl::StatusOr<Json> answer = Call("POST", WorkflowPath() + "/dispatches", body, {200, 201, 204});
    RB_RETURN_IF_ERROR(answer.status());
    std::string run = TextOf(*answer, "workflow_run_id");
    if (run.empty()) return std::nullopt;
    return CiRunHandle{run, Printable(TextOf(*answer, "html_url")), ""};
  }

  // The run that a push of the commit has begun; nullopt when there is none yet.
  absl::StatusOr<std::optional<CiRunHandle>> RunOfPush(const std::string& commit) {
    const std::string path =
        forge_ == Forge::kGithub
            ? absl::StrCat(WorkflowPath(), "/runs?event=push&head_sha=", UrlEscape(commit))
            : absl::StrCat(RepositoryPath(), "/actions/runs?event=push&head_sha=", UrlEscape(commit));
    RB_ASSIGN_OR_RETURN(const Json answer, Call("GET", path, Json(), {200}));
    const auto runs = answer.is_object() ? answer.find("workflow_runs") : answer.end();
    if (!answer.is_object() || runs == answer.end() || !runs->is_array()) return Misunderstood();
    for (const Json& run : *runs) {
      if (TextOf(run, "head_sha") != commit || TextOf(run, "event") != "push") continue;
      return CiRunHandle{TextOf(run, "id"), Printable(TextOf(run, "html_url")), commit};
    }
    return std::nullopt;
  }

  // The pull request from a branch, which is made when there is none. Its number is the id.
  absl::StatusOr<CiRunHandle> PullRequest(const CiRequest& request, const std::string& from, const std::string& to) {
    const std::string owner = config_.repository().substr(0, config_.repository().find('/'));
    const std::string path = RepositoryPath() + "/pulls";
    RB_ASSIGN_OR_RETURN(
        Json answer,
        Call("GET", absl::StrCat(path, "?state=all&head=", UrlEscape(absl::StrCat(owner, ":", from))), Json(), {200}));
    for (const Json& pull : answer.is_array() ? answer : Json::array()) {
      // Gitea does not know `head`, and lists them all.
      const auto head = pull.find("head");
      if (head == pull.end() || TextOf(*head, "ref") != from) continue;
      return CiRunHandle{TextOf(pull, "number"), Printable(TextOf(pull, "html_url")), ""};
    }
    const std::string what = request.version.empty() ? request.commit.substr(0, 7) : request.version;
    const Json body = {{"title", absl::StrCat("Back to ", what, " (", request.key, ")")},
                       {"head", from},
                       {"base", to},
                       {"body", request.reason}};
    RB_ASSIGN_OR_RETURN(answer, Call("POST", path, body, {201}));
    const std::string number = TextOf(answer, "number");
    if (number.empty()) return Misunderstood();
    return CiRunHandle{number, Printable(TextOf(answer, "html_url")), ""};
  }

  // The commit that merged it; empty while it is open. FAILED_PRECONDITION: it was closed.
  absl::StatusOr<std::string> MergeOf(const std::string& number) {
    RB_ASSIGN_OR_RETURN(const Json pull,
                        Call("GET", absl::StrCat(RepositoryPath(), "/pulls/", UrlEscape(number)), Json(), {200}));
    const auto merged = pull.find("merged");
    if (merged != pull.end() && merged->is_boolean() && merged->get<bool>()) return TextOf(pull, "merge_commit_sha");
    if (TextOf(pull, "state") == "closed") {
      return absl::FailedPreconditionError(absl::StrCat("pull request ", number, " was closed, and not merged"));
    }
    return std::string();
  }
  absl::Status ClosePull(const std::string& number) {
    return Call("PATCH", absl::StrCat(RepositoryPath(), "/pulls/", UrlEscape(number)), Json{{"state", "closed"}},
                {200, 201})
        .status();
  }

  absl::StatusOr<CiRunStatus> Look(const CiRequest&, const CiRunHandle& run) override {
    RB_ASSIGN_OR_RETURN(const Json answer, Call("GET", RunPath(run), Json(), {200}));
    const std::string state = TextOf(answer, "status");
    const std::string conclusion = TextOf(answer, "conclusion");
    CiRunStatus status;
    if (state.empty()) return Misunderstood();
    const std::string word = state == "completed" && !conclusion.empty() ? conclusion : state;
    // Gitea has no `conclusion` in older versions: its status says it.
    if (word == "success") {
      status.state = CiRunStatus::State::kSucceeded;
    } else if (word == "cancelled" || word == "canceled") {
      status.state = CiRunStatus::State::kCancelled;
    } else if (state == "completed" || word == "failure" || word == "timed_out" || word == "skipped") {
      status.state = CiRunStatus::State::kFailed;
    } else {
      status.state =
          word == "in_progress" || word == "running" ? CiRunStatus::State::kRunning : CiRunStatus::State::kQueued;
    }
    status.text = absl::StrCat("run ", run.id, " ", Printable(word), Jobs(run, status));
    return status;
  }

  absl::Status Cancel(const CiRequest&, const CiRunHandle& run) override {
    // 409: it has ended, or cannot be cancelled; Look tells.
    return Call("POST", RunPath(run) + "/cancel", Json(), {200, 202, 204, 409}).status();
  }

 private:
  std::string RepositoryPath() const { return absl::StrCat("/repos/", config_.repository()); }
  std::string WorkflowPath() const {
    return absl::StrCat(RepositoryPath(), "/actions/workflows/", UrlEscape(config_.workflow()));
  }
  std::string RunPath(const CiRunHandle& run) const {
    return absl::StrCat(RepositoryPath(), "/actions/runs/", UrlEscape(run.id));
  }
  absl::Status Misunderstood() const {
    return absl::UnavailableError(absl::StrCat(name_, " gave an answer that was not understood"));
  }

  // The jobs that matter now: those at work, or those that failed. For people: nothing when they cannot be asked for.
  std::string Jobs(const CiRunHandle& run, const CiRunStatus& status) {
    const absl::StatusOr<Json> answer = Call("GET", RunPath(run) + "/jobs?per_page=100", Json(), {200});
    if (!answer.ok() || !answer->is_object()) return "";
    const auto jobs = answer->find("jobs");
    if (jobs == answer->end() || !jobs->is_array()) return "";
    std::vector<std::string> texts;
    for (const Json& job : *jobs) {
      const std::string conclusion = TextOf(job, "conclusion");
      const bool at_work = TextOf(job, "status") == "in_progress" || TextOf(job, "status") == "running";
      const bool failed = conclusion == "failure" || conclusion == "timed_out";
      if (status.ended() ? !failed : !at_work && !failed) continue;
      texts.push_back(absl::StrCat("job ", Printable(TextOf(job, "name")), " ", failed ? conclusion : "at work"));
      if (texts.size() == 3) break;
    }
    return texts.empty() ? "" : absl::StrCat(": ", absl::StrJoin(texts, ", "));
  }

  // Null for an answer without a body.
  absl::StatusOr<Json> Call(const std::string& method, const std::string& path, const Json& body,
                            const std::vector<int>& expected) {
    RB_ASSIGN_OR_RETURN(const std::string token, ReadSecret(config_.token_file()));
    HttpRequest request;
    request.method = method;
    request.url = base_ + path;
    request.name = name_;
    request.headers = {absl::StrCat("Authorization: ", forge_ == Forge::kGithub ? "Bearer " : "token ", token),
                       "Accept: application/json"};
    if (forge_ == Forge::kGithub) {
      request.headers[1] = "Accept: application/vnd.github+json";
      request.headers.emplace_back("X-GitHub-Api-Version: 2022-11-28");
    }
    if (!body.is_null()) {
      request.body = body.dump(-1, ' ', false, Json::error_handler_t::replace);
      request.headers.emplace_back("Content-Type: application/json");
    }
    bool not_sent = false;
    const absl::StatusOr<HttpResponse> response = Fetch(request, &not_sent);
    if (!response.ok()) return not_sent ? WithRetryAfter(response.status(), kRetry) : response.status();
    if (std::find(expected.begin(), expected.end(), response->status) == expected.end()) {
      return Explain(*response, method);
    }
    if (response->body.empty()) return Json();
    Json json = Json::parse(response->body, nullptr, false);
    if (json.is_discarded()) return Misunderstood();
    return json;
  }

  absl::Status Explain(const HttpResponse& response, const std::string& method) const {
    const Json json = Json::parse(response.body, nullptr, false);
    const std::string said = Truncate(Printable(TextOf(json, "message")), 200);
    const std::string what =
        absl::StrCat(name_, " answered ", response.status, said.empty() ? "" : absl::StrCat(" (", said, ")"));
    const bool limited = response.header("x-ratelimit-remaining") == "0" || !response.header("retry-after").empty();
    if (response.status == 429 || (response.status == 403 && limited)) {
      return WithRetryAfter(absl::UnavailableError(absl::StrCat(what, ": its limit of requests is reached")),
                            WaitOf(response));
    }
    if (response.status == 401) {
      return absl::PermissionDeniedError(absl::StrCat(what, ": the token in ", config_.token_file(),
                                                      " is not valid, or has expired. Put a new one there"));
    }
    if (response.status == 403) {
      return absl::PermissionDeniedError(absl::StrCat(what, ": the token in ", config_.token_file(),
                                                      " lacks a right: it needs to read and write actions"));
    }
    if (response.status == 404) {
      const std::string path = LacksEnterprisePath()
                                   ? absl::StrCat("; the base_url of an Enterprise server ends with ", kEnterprisePath)
                                   : std::string();
      return absl::FailedPreconditionError(absl::StrCat(what, ": there is no ", config_.workflow(), " in ",
                                                        config_.repository(), ", or the token may not see it", path));
    }
    if (response.status >= 500) {
      const absl::Status status = absl::UnavailableError(what);
      // Whether it was carried out is not known.
      return method == "GET" ? WithRetryAfter(status, kRetry) : status;
    }
    return absl::FailedPreconditionError(what);
  }

  bool LacksEnterprisePath() const {
    return forge_ == Forge::kGithub && !is_enterprise_ &&
           std::none_of(std::begin(kGithubHosts), std::end(kGithubHosts),
                        [&](absl::string_view host) { return absl::EndsWith(base_, host); });
  }

  static absl::Duration WaitOf(const HttpResponse& response) {
    int64_t seconds = 0;
    absl::Duration wait = absl::Minutes(1);
    if (absl::SimpleAtoi(response.header("retry-after"), &seconds)) {
      wait = absl::Seconds(seconds);
    } else if (absl::SimpleAtoi(response.header("x-ratelimit-reset"), &seconds)) {
      wait = absl::FromUnixSeconds(seconds) - SystemClock().Now();
    }
    return std::clamp(wait, absl::Seconds(1), kLongestRetryAfter);
  }

  const Forge forge_;
  const v1::GithubCiConfig config_;
  const std::string branch_;
  const std::string base_;
  const bool is_enterprise_;
  const std::string name_;
};

// Runs are called "commit-SHA" or "pull-NUMBER" here: which of the forge's runs deploys it is known later.
class RevertCi final : public CiProvider {
 public:
  RevertCi(Forge forge, const v1::GithubCiConfig& config, const v1::RevertConfig& revert, const std::string& folder)
      : forge_(forge, config),
        pulls_(revert.pull_request()),
        pusher_(folder, revert),
        branch_(revert.branch().empty() ? "main" : revert.branch()) {}

  bool IsIdempotent() const override { return true; }
  absl::Status Check() override {
    RB_RETURN_IF_ERROR(forge_.Check());
    const MutexLock lock(mutex_);
    return pusher_.Check();
  }
  absl::StatusOr<std::optional<CiRunHandle>> Find(const CiRequest&) override { return std::nullopt; }
  absl::StatusOr<std::optional<CiRunHandle>> Dispatch(const CiRequest& request) override {
    absl::StatusOr<RevertPushed> pushed = absl::UnknownError("");
    {
      const MutexLock lock(mutex_);
      pushed = pusher_.Push(request);
    }
    RB_RETURN_IF_ERROR(pushed.status());
    if (!pulls_) return CiRunHandle{absl::StrCat(kCommit, pushed->commit), "", pushed->commit};
    RB_ASSIGN_OR_RETURN(CiRunHandle pull, forge_.PullRequest(request, pushed->branch, branch_));
    pull.id = absl::StrCat(kPull, pull.id);
    return pull;
  }
  absl::StatusOr<CiRunStatus> Look(const CiRequest& request, const CiRunHandle& run) override {
    CiRunStatus status;
    absl::StatusOr<std::string> commit = CommitOf(run);
    if (absl::IsFailedPrecondition(commit.status())) {
      status.state = CiRunStatus::State::kCancelled;
      status.text = std::string(commit.status().message());
      return status;
    }
    RB_RETURN_IF_ERROR(commit.status());
    if (commit->empty()) {
      status.text = absl::StrCat("waiting for somebody to merge ", run.url);
      return status;
    }
    RB_ASSIGN_OR_RETURN(const std::optional<CiRunHandle> begun, forge_.RunOfPush(*commit));
    if (!begun.has_value()) {
      status.text = absl::StrCat("pushed ", commit->substr(0, 7), "; its run has not begun");
      return status;
    }
    return forge_.Look(request, *begun);
  }
  absl::Status Cancel(const CiRequest& request, const CiRunHandle& run) override {
    const absl::StatusOr<std::string> commit = CommitOf(run);
    if (absl::IsFailedPrecondition(commit.status())) return absl::OkStatus();
    RB_RETURN_IF_ERROR(commit.status());
    if (commit->empty()) return forge_.ClosePull(run.id.substr(kPull.size()));
    RB_ASSIGN_OR_RETURN(const std::optional<CiRunHandle> begun, forge_.RunOfPush(*commit));
    return begun.has_value() ? forge_.Cancel(request, *begun)
                             : WithRetryAfter(absl::UnavailableError("its run has not begun"), kRetry);
  }

 private:
  static constexpr absl::string_view kCommit = "commit-";
  static constexpr absl::string_view kPull = "pull-";

  absl::StatusOr<std::string> CommitOf(const CiRunHandle& run) {
    absl::string_view id = run.id;
    if (absl::ConsumePrefix(&id, kCommit)) return std::string(id);
    if (absl::ConsumePrefix(&id, kPull)) return forge_.MergeOf(std::string(id));
    return absl::FailedPreconditionError("no run of ours");
  }

  ForgeCi forge_;
  const bool pulls_;
  Mutex mutex_;
  RevertPusher pusher_ ABSL_GUARDED_BY(mutex_);
  const std::string branch_;
};

}  // namespace

std::unique_ptr<CiProvider> MakeRevertCi(Forge forge, const v1::GithubCiConfig& config, const v1::RevertConfig& revert,
                                         const std::string& folder) {
  return std::make_unique<RevertCi>(forge, config, revert, folder);
}

std::unique_ptr<CiProvider> MakeForgeCi(Forge forge, const v1::GithubCiConfig& config) {
  return std::make_unique<ForgeCi>(forge, config);
}

}  // namespace rb::controller
