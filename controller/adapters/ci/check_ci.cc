#include "controller/adapters/ci/check_ci.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/adapters/proto_time.h"

namespace rb::controller {
namespace {

using Problems = std::vector<std::pair<std::string, std::string>>;

bool IsHttp(const std::string& url) { return absl::StartsWith(url, "https://") || absl::StartsWith(url, "http://"); }

void CheckForge(const std::string& key, const v1::GithubCiConfig& config, bool dispatches, bool needs_url,
                Problems* problems) {
  const std::vector<std::string> parts = absl::StrSplit(config.repository(), '/');
  if (parts.size() != 2 || parts[0].empty() || parts[1].empty()) {
    problems->emplace_back(key + ".repository", "is written owner/name");
  }
  if (config.workflow().empty())
    problems->emplace_back(key, "`workflow` is missing: the file name of the deploy workflow");
  if (config.token_file().empty()) problems->emplace_back(key, "`token_file` is missing: a file with one token");
  if (needs_url && config.base_url().empty()) {
    problems->emplace_back(key, "`base_url` is missing: https://HOST/api/v1");
  } else if (!config.base_url().empty() && !IsHttp(config.base_url())) {
    problems->emplace_back(key + ".base_url", "begins with https://");
  }
  if (dispatches && config.ref_input().empty()) {
    problems->emplace_back(key,
                           "`ref_input` is missing: the workflow's input that takes the commit. Where it has none, say "
                           "`how: revert`");
  }
}

void CheckRevert(const v1::RevertConfig& config, bool is_forge, Problems* problems) {
  const bool is_ssh = absl::StartsWith(config.remote(), "ssh://");
  if (!is_ssh && !IsHttp(config.remote())) {
    problems->emplace_back(".revert.remote", "begins with https:// or ssh://");
  }
  if (!is_ssh && absl::StrContains(config.remote(), "@")) {
    problems->emplace_back(".revert.remote", "holds no user and no password: they are in `user` and `token_file`");
  }
  if (is_ssh && (config.ssh_key_file().empty() || config.known_hosts_file().empty())) {
    problems->emplace_back(".revert", "ssh needs `ssh_key_file` and `known_hosts_file`");
  }
  if (config.pull_request() && !is_forge) {
    problems->emplace_back(".revert.pull_request", "is for github and gitea");
  }
}

}  // namespace

std::vector<std::pair<std::string, std::string>> CheckCi(const v1::CiConfig& config) {
  Problems problems;
  const int providers = (config.has_github() ? 1 : 0) + (config.has_gitea() ? 1 : 0) + (config.has_command() ? 1 : 0) +
                        (config.has_webhook() ? 1 : 0);
  if (providers != 1) problems.emplace_back("", "names exactly one of: github, gitea, command, webhook");
  const bool reverts = config.how() == "revert";
  if (!config.how().empty() && config.how() != "dispatch" && !reverts) {
    problems.emplace_back(".how", absl::StrCat("'", config.how(), "' is not one of: dispatch, revert"));
  }
  if (config.has_github()) CheckForge(".github", config.github(), !reverts, false, &problems);
  if (config.has_gitea()) CheckForge(".gitea", config.gitea(), !reverts, true, &problems);
  if (config.has_command()) {
    const v1::CommandCiConfig& command = config.command();
    if (command.dispatch().empty()) problems.emplace_back(".command", "`dispatch` is missing: program and arguments");
    if (command.status().empty()) problems.emplace_back(".command", "`status` is missing: program and arguments");
    if (command.cancel().empty()) problems.emplace_back(".command", "`cancel` is missing: program and arguments");
  }
  if (config.has_webhook()) {
    const v1::WebhookCiConfig& webhook = config.webhook();
    if (!IsHttp(webhook.dispatch_url())) problems.emplace_back(".webhook.dispatch_url", "begins with https://");
    if (!IsHttp(webhook.status_url())) problems.emplace_back(".webhook.status_url", "begins with https://");
    if (!IsHttp(webhook.cancel_url())) problems.emplace_back(".webhook.cancel_url", "begins with https://");
  }
  if (reverts) {
    if (!config.has_github() && !config.has_gitea()) {
      problems.emplace_back(".how", "`revert` is for github and gitea");
    }
    CheckRevert(config.revert(), config.has_github() || config.has_gitea(), &problems);
  }
  if (config.has_poll() && FromProto(config.poll()) < absl::Milliseconds(100)) {
    problems.emplace_back(".poll", "is at least 100ms");
  }
  if (config.has_deadline() && FromProto(config.deadline()) < absl::Seconds(1)) {
    problems.emplace_back(".deadline", "is at least 1s");
  }
  return problems;
}

}  // namespace rb::controller
