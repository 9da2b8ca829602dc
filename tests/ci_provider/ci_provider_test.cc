// One suite for whatever can be asked to deploy, and what is GitHub's own. The servers are tests/ci_provider/server.py;
// what was said to it as GitHub is held against GitHub's own description by openapi_test.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "controller/adapters/ci/command_ci.h"
#include "controller/adapters/ci/forge_ci.h"
#include "controller/adapters/ci/webhook_ci.h"
#include "controller/adapters/http/http_client.h"

extern char** environ;

namespace rb::controller {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kToken[] = "not-a-real-token";
const std::string kSource = RB_SOURCE_DIR "/tests/ci_provider/";

void Write(const std::string& path, const std::string& text, mode_t mode = 0600) {
  std::ofstream(path) << text;
  chmod(path.c_str(), mode);
}

std::string Read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A folder, and a server that keeps its state there, for as long as it lives.
class Server {
 public:
  explicit Server(const std::string& forge) {
    char name[] = "/tmp/rb-ci-XXXXXX";
    folder_ = mkdtemp(name);
    Write(file("token"), absl::StrCat(kToken, "\n"));
    if (forge.empty()) return;
    const std::string script = kSource + "server.py";
    const char* arguments[] = {"python3", script.c_str(), forge.c_str(), folder_.c_str(), nullptr};
    EXPECT_EQ(posix_spawnp(&pid_, "python3", nullptr, nullptr, const_cast<char**>(arguments), environ), 0);
    for (int i = 0; i < 1500 && !std::filesystem::exists(file("port")); ++i) {
      SystemClock().Sleep(absl::Milliseconds(20));
    }
  }
  ~Server() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    if (const char* keep = std::getenv("RB_EXCHANGES"); keep != nullptr && std::filesystem::exists(file("exchanges"))) {
      std::ofstream(keep, std::ios::app) << Read(file("exchanges"));
    }
    std::filesystem::remove_all(folder_);
  }
  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  std::string url() const { return absl::StrCat("http://127.0.0.1:", Read(file("port"))); }
  void SetMode(const std::string& mode) const { Write(file("mode"), mode); }
  void LetRunsFinish() const { Write(file("finish"), ""); }

 private:
  std::string folder_;
  pid_t pid_ = 0;
};

v1::GithubCiConfig ForgeConfig(const Server& server, const std::string& path) {
  v1::GithubCiConfig config;
  config.set_repository("team/bot");
  config.set_workflow("deploy.yml");
  config.set_base_url(server.url() + path);
  config.set_token_file(server.file("token"));
  config.set_ref_input("commit");
  config.set_environment_input("environment");
  config.set_key_input("rb_operation");
  return config;
}

CiRequest Request(const std::string& key) {
  CiRequest request;
  request.key = key;
  request.service = "bot";
  request.environment = "prod";
  request.commit = std::string(40, 'a');
  request.version = "v1";
  request.reason = "it burns";
  request.asked_at = SystemClock().Now();
  return request;
}

absl::StatusOr<CiRunHandle> Begin(CiProvider& provider, const CiRequest& request) {
  absl::StatusOr<std::optional<CiRunHandle>> run = provider.Dispatch(request);
  if (run.ok() && !run->has_value()) run = provider.Find(request);
  if (!run.ok()) return run.status();
  if (!run->has_value()) return absl::NotFoundError("no run");
  return **run;
}

CiRunStatus::State End(CiProvider& provider, const CiRequest& request, const CiRunHandle& run) {
  for (int i = 0; i < 200; ++i) {
    const absl::StatusOr<CiRunStatus> status = provider.Look(request, run);
    EXPECT_TRUE(status.ok()) << status.status();
    if (!status.ok() || status->ended()) return status.ok() ? status->state : CiRunStatus::State::kQueued;
    SystemClock().Sleep(absl::Milliseconds(20));
  }
  ADD_FAILURE() << "it never ends";
  return CiRunStatus::State::kQueued;
}

struct Kind {
  std::string name;
  std::string forge;
  std::string mode;
  std::function<std::unique_ptr<CiProvider>(const Server&)> make;
};

class CiProviders : public ::testing::TestWithParam<Kind> {
 protected:
  CiProviders() : server_(GetParam().forge) { server_.SetMode(GetParam().mode); }
  Server server_;
};

TEST_P(CiProviders, KeepTheContract) {
  const std::unique_ptr<CiProvider> provider = GetParam().make(server_);
  EXPECT_TRUE(provider->Check().ok()) << provider->Check();
  const CiRequest request = Request("op-1-1");
  const absl::StatusOr<std::optional<CiRunHandle>> none = provider->Find(request);
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->has_value());
  const absl::StatusOr<CiRunHandle> run = Begin(*provider, request);
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_FALSE(run->id.empty());

  // Another process finds it again, and it is not another's.
  const std::unique_ptr<CiProvider> later = GetParam().make(server_);
  const auto again = later->IsIdempotent() ? later->Dispatch(request) : later->Find(request);
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_TRUE(again->has_value());
  EXPECT_EQ((*again)->id, run->id);
  const absl::StatusOr<CiRunHandle> other = Begin(*provider, Request("op-2-1"));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_NE(other->id, run->id);

  const absl::StatusOr<CiRunStatus> status = provider->Look(request, *run);
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_FALSE(status->ended());
  EXPECT_THAT(status->text, HasSubstr(run->id));

  ASSERT_TRUE(provider->Cancel(request, *other).ok());
  EXPECT_EQ(End(*provider, request, *other), CiRunStatus::State::kCancelled);
  EXPECT_TRUE(provider->Cancel(request, *other).ok()) << "it has ended already";
  server_.LetRunsFinish();
  EXPECT_EQ(End(*provider, request, *run), CiRunStatus::State::kSucceeded);
}

std::unique_ptr<CiProvider> MakeCommand(const Server& server) {
  v1::CommandCiConfig config;
  const std::string script = server.file("ci.sh");
  Write(script,
        "#!/bin/sh\n"
        "set -e\n"
        "cd \"$(dirname \"$0\")\"\n"
        "case $1 in\n"
        "dispatch) [ -e \"run-$2\" ] || echo running > \"run-$2\"; echo \"run-$2\" ;;\n"
        "status) if [ -e finish ] && grep -q running \"$2\"; then echo succeeded; else cat \"$2\"; fi ;;\n"
        "cancel) if grep -q running \"$2\"; then echo cancelled > \"$2\"; fi ;;\n"
        "esac\n",
        0700);
  for (const std::string& argument : {script, std::string("dispatch"), std::string("{key}")})
    config.add_dispatch(argument);
  for (const std::string& argument : {script, std::string("status"), std::string("{run}")}) config.add_status(argument);
  for (const std::string& argument : {script, std::string("cancel"), std::string("{run}")}) config.add_cancel(argument);
  return MakeCommandCi(config);
}

std::unique_ptr<CiProvider> MakeWebhook(const Server& server) {
  v1::WebhookCiConfig config;
  config.set_dispatch_url(server.url() + "/runs");
  config.set_status_url(server.url() + "/runs/{run}");
  config.set_cancel_url(server.url() + "/runs/{run}/cancel");
  config.set_token_file(server.file("token"));
  return MakeWebhookCi(config);
}

const Kind kKinds[] = {
    {"GithubThatTellsTheRun", "github", "plain",
     [](const Server& server) { return MakeForgeCi(Forge::kGithub, ForgeConfig(server, "")); }},
    {"GithubThatDoesNot", "github", "no-run-details",
     [](const Server& server) { return MakeForgeCi(Forge::kGithub, ForgeConfig(server, "")); }},
    {"GithubEnterprise", "enterprise", "plain",
     [](const Server& server) { return MakeForgeCi(Forge::kGithub, ForgeConfig(server, "/api/v3")); }},
    {"GithubEnterpriseWithASlash", "enterprise", "plain",
     [](const Server& server) { return MakeForgeCi(Forge::kGithub, ForgeConfig(server, "/api/v3/")); }},
    {"Gitea", "gitea", "plain",
     [](const Server& server) { return MakeForgeCi(Forge::kGitea, ForgeConfig(server, "/api/v1")); }},
    {"Command", "", "plain", MakeCommand},
    {"Webhook", "webhook", "plain", MakeWebhook},
};
INSTANTIATE_TEST_SUITE_P(All, CiProviders, ::testing::ValuesIn(kKinds), [](const auto& of) { return of.param.name; });

class Github : public ::testing::Test {
 protected:
  Github() : server_("github"), provider_(MakeForgeCi(Forge::kGithub, ForgeConfig(server_, ""))) {}
  Server server_;
  std::unique_ptr<CiProvider> provider_;
};

TEST_F(Github, AnExpiredTokenSaysWhichFileAndNeverTheToken) {
  server_.SetMode("expired");
  const absl::Status status = provider_->Dispatch(Request("k")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr(server_.file("token")));
  EXPECT_THAT(status.ToString(), Not(HasSubstr(kToken)));
}

TEST_F(Github, ALimitOfRequestsIsWaitedFor) {
  server_.SetMode("rate-limited");
  const absl::Status status = provider_->Dispatch(Request("k")).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_EQ(RetryAfter(status), absl::Seconds(2));
  EXPECT_TRUE(Begin(*provider_, Request("k")).ok());
}

TEST_F(Github, AWorkflowThatIsSwitchedOffIsNotOffered) {
  server_.SetMode("disabled");
  EXPECT_THAT(std::string(provider_->Check().message()), HasSubstr("disabled_manually"));
}

TEST_F(Github, ADispatchWithoutAnAnswerMayHaveBegunARun) {
  server_.SetMode("error-500");
  const absl::Status status = provider_->Dispatch(Request("k")).status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_EQ(RetryAfter(status), absl::ZeroDuration());
  v1::GithubCiConfig nobody = ForgeConfig(server_, "");
  nobody.set_base_url("http://127.0.0.1:1");
  const absl::Status unreached = MakeForgeCi(Forge::kGithub, nobody)->Dispatch(Request("k")).status();
  EXPECT_TRUE(absl::IsUnavailable(unreached));
  EXPECT_GT(RetryAfter(unreached), absl::ZeroDuration()) << "nothing was begun";
}

TEST_F(Github, AFailureNamesTheJob) {
  const CiRequest request = Request("k");
  const absl::StatusOr<CiRunHandle> run = Begin(*provider_, request);
  ASSERT_TRUE(run.ok()) << run.status();
  server_.SetMode("failing");
  server_.LetRunsFinish();
  EXPECT_EQ(End(*provider_, request, *run), CiRunStatus::State::kFailed);
  EXPECT_THAT(provider_->Look(request, *run)->text, HasSubstr("job deploy failure"));
}

TEST_F(Github, WithoutAKeyTwoRunsAreOneTooMany) {
  server_.SetMode("no-run-details");
  v1::GithubCiConfig config = ForgeConfig(server_, "");
  config.clear_key_input();
  const std::unique_ptr<CiProvider> provider = MakeForgeCi(Forge::kGithub, config);
  EXPECT_TRUE(Begin(*provider, Request("a")).ok());
  EXPECT_THAT(std::string(Begin(*provider, Request("b")).status().message()), HasSubstr("key_input"));
}

TEST_F(Github, ABaseUrlWithoutItsPathIsNotFound) {
  const Server enterprise("enterprise");
  const absl::Status status = MakeForgeCi(Forge::kGithub, ForgeConfig(enterprise, ""))->Check();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/api/v3"));
}

TEST_F(Github, ATokenThatOthersMayReadIsNotUsed) {
  chmod(server_.file("token").c_str(), 0644);
  const absl::Status status = provider_->Check();
  EXPECT_THAT(std::string(status.message()), HasSubstr("chmod 600"));
}

}  // namespace
}  // namespace rb::controller
