// A revert commit, pushed to a real git server over HTTP and over SSH.
#include "controller/adapters/ci/revert_pusher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"

extern char** environ;

namespace rb::controller {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kPassword[] = "not-a-real-password";

std::string Read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class RevertPusherTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    char name[] = "/tmp/rb-revert-XXXXXX";
    folder_ = mkdtemp(name);
    Write("password", kPassword);
    Git("init -q --bare -b main remote.git && git -C remote.git config http.receivepack true");
    Git("init -q -b main work");
    for (const char* version : {"one", "two", "three"}) {
      Write("work/file", version);
      Write(absl::StrCat("work/only-", version), version);
      Git(absl::StrCat("-C work add -A && ", kGit, " -C work commit -q -m ", version));
    }
    Git("-C work push -q ../remote.git main");
    good_ = Git("-C work rev-parse HEAD~2");
    const std::string script = RB_SOURCE_DIR "/tests/ci_provider/git_server.py";
    const char* arguments[] = {"python3", script.c_str(), folder_.c_str(), GetParam() ? "ssh" : nullptr, nullptr};
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    ASSERT_EQ(posix_spawnp(&pid_, "python3", nullptr, &attributes, const_cast<char**>(arguments), environ), 0);
    const std::string port = folder_ + (GetParam() ? "/ssh-port" : "/http-port");
    for (int i = 0; i < 1500 && !std::filesystem::exists(port); ++i) SystemClock().Sleep(absl::Milliseconds(20));
    if (GetParam()) {
      config_.set_remote(
          absl::StrCat("ssh://", Read(folder_ + "/user"), "@127.0.0.1:", Read(port), folder_, "/remote.git"));
      config_.set_ssh_key_file(folder_ + "/key");
      config_.set_known_hosts_file(folder_ + "/known_hosts");
    } else {
      config_.set_remote(absl::StrCat("http://127.0.0.1:", Read(port), "/remote.git"));
      config_.set_token_file(folder_ + "/password");
    }
    request_.key = "op-1-1";
    request_.commit = good_;
    request_.version = "v1";
    request_.reason = "it burns";
    request_.asked_at = SystemClock().Now();
  }
  void TearDown() override {
    if (pid_ > 0) {
      kill(-pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    std::filesystem::remove_all(folder_);
  }

  static constexpr char kGit[] = "git -c user.name=t -c user.email=t@example.org -c commit.gpgsign=false";
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/" + name) << text;
    chmod((folder_ + "/" + name).c_str(), 0600);
  }
  std::string Git(const std::string& arguments) const {
    FILE* pipe = popen(absl::StrCat("cd ", folder_, " && ", kGit, " ", arguments).c_str(), "re");
    std::string output;
    char buffer[4096];
    for (size_t got = 0; (got = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output.append(buffer, got);
    EXPECT_EQ(pclose(pipe), 0) << arguments;
    return std::string(absl::StripAsciiWhitespace(output));
  }
  RevertPusher Pusher(const std::string& name = "pusher") const { return RevertPusher(folder_ + "/" + name, config_); }

  std::string folder_;
  std::string good_;
  pid_t pid_ = 0;
  v1::RevertConfig config_;
  CiRequest request_;
};

TEST_P(RevertPusherTest, MakesOneCommitWithTheGoodOnesFiles) {
  const std::string head = Git("-C remote.git rev-parse main");
  RevertPusher pusher = Pusher();
  EXPECT_TRUE(pusher.Check().ok()) << pusher.Check();
  const absl::StatusOr<RevertPushed> pushed = pusher.Push(request_);
  ASSERT_TRUE(pushed.ok()) << pushed.status();
  EXPECT_EQ(Git("-C remote.git rev-parse main"), pushed->commit);
  EXPECT_EQ(Git("-C remote.git rev-parse main^"), head) << "nothing is forced: it lies on top of what was there";
  EXPECT_EQ(Git("-C remote.git rev-parse main^{tree}"),
            Git(absl::StrCat("-C remote.git rev-parse ", good_, "^{tree}")));
  const std::string message = Git("-C remote.git log -1 --format=%B main");
  EXPECT_THAT(message, HasSubstr("Back to v1"));
  EXPECT_THAT(message, HasSubstr("it burns"));
  // Asked again, also by one that knows nothing of it, there is no other.
  for (const char* name : {"pusher", "another"}) {
    const absl::StatusOr<RevertPushed> again = Pusher(name).Push(request_);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->commit, pushed->commit);
  }
  request_.key = "op-2-1";
  EXPECT_THAT(std::string(Pusher().Push(request_).status().message()), HasSubstr("already"));
}

TEST_P(RevertPusherTest, PushesToABranchOfItsOwnForAPullRequest) {
  config_.set_pull_request(true);
  const std::string head = Git("-C remote.git rev-parse main");
  const absl::StatusOr<RevertPushed> pushed = Pusher().Push(request_);
  ASSERT_TRUE(pushed.ok()) << pushed.status();
  EXPECT_EQ(pushed->branch, "rb/op-1-1");
  EXPECT_EQ(Git("-C remote.git rev-parse main"), head);
  EXPECT_EQ(Git("-C remote.git rev-parse rb/op-1-1"), pushed->commit);
  EXPECT_EQ(Pusher("another").Push(request_)->commit, pushed->commit);
}

TEST_P(RevertPusherTest, WhoIsNotLetInSaysSoWithoutASecret) {
  if (GetParam()) {
    // Another host's key.
    Git("--version >/dev/null; ssh-keygen -q -t ed25519 -N '' -f other && sed -i \"s|^\\([^ ]*\\) .*|\\1 $(cut -d' ' "
        "-f1,2 "
        "other.pub)|\" known_hosts");
  } else {
    Write("wrong", "something-else");
    config_.set_token_file(folder_ + "/wrong");
  }
  const absl::Status status = Pusher().Push(request_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(status.ToString(), Not(HasSubstr("something-else")));
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam() ? "host key" : "log in"));
}

INSTANTIATE_TEST_SUITE_P(Over, RevertPusherTest, ::testing::Values(false, true),
                         [](const auto& of) { return of.param ? "Ssh" : "Http"; });

}  // namespace
}  // namespace rb::controller
