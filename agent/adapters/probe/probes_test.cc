#include "agent/adapters/probe/probes.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "agent/adapters/probe/make_probes.h"
#include "agent/adapters/probe/service_logs.h"
#include "agent/adapters/supervisor/spawn.h"
#include "agent/core/ports/fake_supervisor.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/mutex.h"
#include "common/test_util.h"
#include "common/unique_fd.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

using ::rb::testing::FailsWith;
using ::rb::testing::TemporaryFolder;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// A service on a loopback port: one answer for all, until it is changed. One connection at a time.
class HttpServer {
 public:
  HttpServer() : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener_.get(), 16), 0);
    EXPECT_EQ(getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Serve(); });
  }
  ~HttpServer() {
    shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  void Answer(const std::string& status, const std::string& body) {
    AnswerRaw(
        absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Length: ", body.size(), "\r\nConnection: close\r\n\r\n", body));
  }
  void AnswerRaw(std::string answer) {
    MutexLock lock(mutex_);
    answer_ = std::move(answer);
  }
  // Accepts and never answers.
  void Hang() { AnswerRaw("hang"); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  std::string url() const { return absl::StrCat("http://", address(), "/api/health"); }

 private:
  void Serve() {
    std::vector<UniqueFd> hanging;
    for (;;) {
      UniqueFd connection(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!connection.valid()) return;
      std::string answer;
      {
        MutexLock lock(mutex_);
        answer = answer_;
      }
      if (answer == "hang") {
        hanging.push_back(std::move(connection));
        continue;
      }
      std::string request;
      char buffer[4096];
      while (!absl::StrContains(request, "\r\n\r\n")) {
        const ssize_t n = recv(connection.get(), buffer, sizeof buffer, 0);
        if (n <= 0) break;
        request.append(buffer, static_cast<size_t>(n));
      }
      for (size_t at = 0; at < answer.size();) {
        const ssize_t n = send(connection.get(), answer.data() + at, answer.size() - at, MSG_NOSIGNAL);
        if (n <= 0) break;
        at += static_cast<size_t>(n);
      }
    }
  }

  UniqueFd listener_;
  int port_ = 0;
  Mutex mutex_;
  std::string answer_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// A port that nobody listens on: bound, but never listened to.
class ClosedPort {
 public:
  ClosedPort() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  const std::string& address() const { return address_; }

 private:
  UniqueFd fd_;
  std::string address_;
};

ProbeContext Quick() {
  ProbeContext context;
  context.quick = true;
  return context;
}
ProbeContext Expecting(const std::string& commit, const std::string& version) {
  ProbeContext context;
  context.expected_commit = commit;
  context.expected_version = version;
  return context;
}

void ExpectReadable(const ProbeResult& result) {
  EXPECT_NE(result.observed, "");
  EXPECT_NE(result.expected, "");
  for (const std::string& text : {result.name, result.observed, result.expected}) {
    EXPECT_LE(text.size(), 1024u);
    for (const char c : text) EXPECT_GE(static_cast<unsigned char>(c), 0x20) << text;
  }
}

// ---- unit ----

class UnitProbeTest : public ::testing::Test {
 protected:
  std::unique_ptr<Probe> Make(absl::Duration stable_for, uint64_t memory_below = 0) {
    return MakeUnitProbe(
        {stable_for, memory_below}, supervisor_, clock_, [this](int64_t) { return age_; },
        [this](int64_t) { return memory_; });
  }
  FakeClock clock_;
  FakeSupervisor supervisor_;
  absl::StatusOr<absl::Duration> age_ = absl::NotFoundError("no such process");
  absl::StatusOr<uint64_t> memory_ = uint64_t{100} << 20;
};

TEST_F(UnitProbeTest, PassesOnceTheSameProcessHasRunForLongEnough) {
  const auto probe = Make(absl::Seconds(10));
  ProbeResult result = probe->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_TRUE(result.may_recover);
  EXPECT_EQ(result.observed, "inactive");
  RB_ASSERT_OK(supervisor_.Start(absl::Seconds(1)));
  EXPECT_FALSE(probe->Run({}).passed);
  clock_.Advance(absl::Seconds(9));
  result = probe->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_THAT(result.observed, HasSubstr("for 9.00 s (wants 10"));
  ExpectReadable(result);
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(probe->Run({}).passed);
}

TEST_F(UnitProbeTest, ARestartBeginsTheWaitAnew) {
  const auto probe = Make(absl::Seconds(20));
  RB_ASSERT_OK(supervisor_.Start(absl::Seconds(1)));
  EXPECT_FALSE(probe->Run({}).passed);
  clock_.Advance(absl::Seconds(19));
  supervisor_.Crash("exited with status 1");
  ProbeResult result = probe->Run({});
  clock_.Advance(absl::Seconds(19));
  result = probe->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_THAT(result.observed, HasSubstr("restarted 1×"));
  EXPECT_THAT(result.observed, HasSubstr("exited with status 1"));
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(probe->Run({}).passed);
}

// With Restart=always such a unit never reaches "failed", and is active for a moment each time.
TEST_F(UnitProbeTest, AUnitThatLoopsNeverPassesNotEvenAtAQuickLook) {
  const auto probe = Make(absl::ZeroDuration());
  RB_ASSERT_OK(supervisor_.Start(absl::Seconds(1)));
  supervisor_.Crash("exited with status 1");
  for (int i = 0; i < 20; ++i) {
    age_ = absl::Seconds(1);
    EXPECT_FALSE(probe->Run(Quick()).passed);
    EXPECT_FALSE(probe->Run({}).passed);
    clock_.Advance(absl::Seconds(2));
    supervisor_.Crash("exited with status 1");
  }
}

TEST_F(UnitProbeTest, AQuickLookIsEnoughForWhatHasRunForLong) {
  const auto probe = Make(absl::Seconds(10));
  RB_ASSERT_OK(supervisor_.Start(absl::Seconds(1)));
  EXPECT_TRUE(probe->Run(Quick()).passed);
  age_ = absl::Hours(3);
  EXPECT_TRUE(probe->Run({}).passed);
  supervisor_.Crash("killed by signal 9");
  EXPECT_TRUE(probe->Run(Quick()).passed);
}

TEST_F(UnitProbeTest, MemoryHasItsBoundAlsoAtAQuickLook) {
  const auto probe = Make(absl::ZeroDuration(), uint64_t{300} << 20);
  RB_ASSERT_OK(supervisor_.Start(absl::Seconds(1)));
  EXPECT_TRUE(probe->Run(Quick()).passed);
  EXPECT_THAT(probe->Run({}).observed, HasSubstr("100.0 MiB"));
  memory_ = uint64_t{300} << 20;
  const ProbeResult result = probe->Run(Quick());
  EXPECT_FALSE(result.passed);
  EXPECT_THAT(result.expected, HasSubstr("less than 300.0 MiB of memory"));
  EXPECT_THAT(result.observed, HasSubstr("300.0 MiB"));
  memory_ = absl::NotFoundError("gone");
  EXPECT_FALSE(probe->Run({}).passed);
  RB_ASSERT_OK_AND_ASSIGN(const uint64_t own, ProcessMemoryBytes(getpid()));
  EXPECT_GT(own, uint64_t{1} << 20);
  EXPECT_LT(own, uint64_t{1} << 40);
  EXPECT_FALSE(ProcessMemoryBytes(0).ok());
}

TEST_F(UnitProbeTest, WhatCannotBeAskedHasNotPassed) {
  const auto probe = Make(absl::ZeroDuration());
  supervisor_.FailGetState(absl::UnavailableError("systemd cannot be reached"));
  const ProbeResult result = probe->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.observed, "systemd cannot be reached");
}

// ---- http and version ----

TEST(HttpProbe, ComparesTheStatusAndJsonValues) {
  HttpServer server;
  const auto probe =
      MakeHttpProbe({.url = server.url(),
                     .json = {{"status", "healthy"}, {"checks.db.ready", "true"}, {"count", "3"}, {"error", "null"}}},
                    SystemClock());
  server.Answer("200 OK", R"({"status":"healthy","checks":{"db":{"ready":true}},"count":3,"error":null})");
  ProbeResult result = probe->Run({});
  EXPECT_TRUE(result.passed) << result.observed;
  ExpectReadable(result);

  struct Case {
    std::string status;
    std::string body;
    std::string observed;
  };
  for (const Case& each : std::vector<Case>{
           // A grep for "healthy" would have passed.
           {"200 OK", R"({"status":"unhealthy","checks":{"db":{"ready":true}},"count":3,"error":null})",
            "status = \"unhealthy\""},
           {"200 OK", R"({"status":"healthy","checks":{"db":{"ready":false}},"count":3,"error":null})",
            "checks.db.ready = false"},
           {"200 OK", R"({"status":"healthy","checks":{"db":{"ready":true}},"count":4,"error":null})", "count = 4"},
           {"200 OK", R"({"status":"healthy","checks":{},"count":3,"error":null})", "checks.db.ready is not there"},
           {"200 OK", R"({"status":["healthy"],"count":3})", "status = [\"healthy\"]"},
           {"503 Service Unavailable", R"({"status":"healthy","checks":{"db":{"ready":true}},"count":3,"error":null})",
            "status 503"},
           {"302 Found", "", "status 302"},
           {"200 OK", "<html>healthy</html>", "no JSON: \"<html>healthy</html>\""},
           {"200 OK", std::string(100000, '['), "no JSON"},
           {"200 OK", "\x01\xff\n{", "no JSON"},
           {"200 OK", "", "no JSON"}}) {
    server.Answer(each.status, each.body);
    result = probe->Run({});
    EXPECT_FALSE(result.passed) << each.body;
    EXPECT_TRUE(result.may_recover);
    EXPECT_THAT(result.observed, HasSubstr(each.observed));
    ExpectReadable(result);
  }
}

TEST(HttpProbe, SaysWhatWentWrongOnTheWay) {
  ClosedPort closed;
  const auto refused = MakeHttpProbe({.url = absl::StrCat("http://", closed.address(), "/")}, SystemClock());
  ProbeResult result = refused->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_THAT(result.observed, HasSubstr("Connection refused"));

  HttpServer server;
  server.Hang();
  const auto probe = MakeHttpProbe({.url = server.url(), .timeout = absl::Milliseconds(50)}, SystemClock());
  result = probe->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.observed, "no whole answer within 0.05 s");

  const auto patient = MakeHttpProbe({.url = server.url()}, SystemClock());
  server.Answer("200 OK", std::string((1 << 20) + 1, ' '));
  EXPECT_THAT(patient->Run({}).observed, HasSubstr("larger than"));
  server.AnswerRaw("garbage\r\n\r\n");
  EXPECT_FALSE(patient->Run({}).passed);
  server.AnswerRaw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut");
  EXPECT_FALSE(patient->Run({}).passed);
}

TEST(HttpProbe, LooksForTextInAPage) {
  HttpServer server;
  const auto probe = MakeHttpProbe({.url = server.url(), .contains = "Bot is online"}, SystemClock());
  server.Answer("200 OK", "<html><b>Bot is online</b></html>");
  EXPECT_TRUE(probe->Run({}).passed);
  server.Answer("200 OK", "<html><b>Bot is offline</b></html>");
  const ProbeResult result = probe->Run({});
  ExpectReadable(result);
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.expected, "status 200, \"Bot is online\" in it");
  EXPECT_EQ(result.observed, "status 200, 34 B without it");
  server.Answer("503 Nope", "Bot is online");
  EXPECT_FALSE(probe->Run({}).passed);
}

TEST(MetricsProbe, WantsWhatPrometheusCanScrape) {
  HttpServer server;
  const auto probe = MakeMetricsProbe({.url = server.url(), .require = {"bot_messages_total"}}, SystemClock());
  server.Answer("200 OK",
                "# HELP bot_messages_total Seen.\n# TYPE bot_messages_total counter\n"
                "bot_messages_total{room=\"a \\\" b\",} 3 1700000000000\nup 1\n");
  ProbeResult result = probe->Run({});
  ExpectReadable(result);
  EXPECT_TRUE(result.passed) << result.observed;
  EXPECT_EQ(result.observed, "status 200, 2 samples");
  server.Answer("200 OK", "up 1\n");
  EXPECT_EQ(probe->Run({}).observed, "status 200, 1 samples, none of bot_messages_total");
  EXPECT_FALSE(probe->Run({}).passed);
  server.Answer("200 OK", "<html>Sign in</html>");
  result = probe->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_THAT(result.observed, HasSubstr("line 1 is no Prometheus text"));
  server.Answer("500 Oops", "bot_messages_total 1\n");
  EXPECT_FALSE(probe->Run({}).passed);
  server.Answer("200 OK", "");
  EXPECT_FALSE(MakeMetricsProbe({.url = server.url()}, SystemClock())->Run({}).passed) << "nothing is no metrics";
}

TEST(PrometheusText, TakesWhatAScraperTakesAndNothingElse) {
  const std::vector<std::string> good = {
      "a 1",         "a{} 1", "a{b=\"c\"} 1.5e-3", "a:b{c=\"d\",e=\"\"}\t+Inf", "a NaN", "a{b=\"x\\n\\\\y\"} -Inf 12",
      "# any thing", ""};
  for (const std::string& line : good) RB_EXPECT_OK(ParsePrometheusText(line)) << line;
  const std::vector<std::string> bad = {"a",       "1a 1",        "a{b} 1", "a{b=\"c} 1",  "a{b=c} 1", "a 1 2 3",
                                        "a 1 1.5", "a{b=\"c\" 1", "a one",  "{b=\"c\"} 1", "a{,} 1",   "a{b=\"c\\"};
  for (const std::string& line : bad) EXPECT_FALSE(ParsePrometheusText("up 1\n" + line).ok()) << line;
  EXPECT_THAT(ParsePrometheusText("up 1\nx"), FailsWith(absl::StatusCode::kInvalidArgument, "line 2"));
}

TEST(VersionProbe, ReadsAFileOfTheTreeAndNothingOutsideOfIt) {
  TemporaryFolder folder;
  std::filesystem::create_directories(folder / "tree");
  const auto probe = MakeVersionProbe({.file = "VERSION", .tree = folder / "tree"}, SystemClock());
  const ProbeContext context = Expecting("0123456789abcdef0123456789abcdef01234567", "v1.4.2");
  EXPECT_FALSE(probe->Run(context).passed) << "not there";
  std::ofstream(folder / "tree/VERSION") << "1.4.2 \nbuilt by ci\n";
  ProbeResult result = probe->Run(context);
  ExpectReadable(result);
  EXPECT_TRUE(result.passed) << result.observed;
  EXPECT_EQ(result.name, "version VERSION");
  std::ofstream(folder / "tree/VERSION") << "1.4.3\n";
  result = probe->Run(context);
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.observed, "\"1.4.3\"");
  const auto json = MakeVersionProbe({.file = "build.json", .tree = folder / "tree", .json = "git.sha"}, SystemClock());
  std::ofstream(folder / "tree/build.json") << "{\"git\":{\"sha\":\"0123456789ab\"}}";
  EXPECT_TRUE(json->Run(context).passed);
  // A link that the service's user has planted shows nobody what lies outside of the tree.
  std::ofstream(folder / "secret") << "v1.4.2\n";
  std::filesystem::remove(folder / "tree/VERSION");
  std::filesystem::create_symlink(folder / "secret", folder / "tree/VERSION");
  EXPECT_FALSE(probe->Run(context).passed);
}

TEST(VersionProbe, ComparesWhatRunsWithWhatWasMeantToRun) {
  HttpServer server;
  const auto probe = MakeVersionProbe({.url = server.url(), .json = "build.version"}, SystemClock());
  const std::string commit = "0123456789abcdef0123456789abcdef01234567";
  const auto passes = [&](const std::string& reported, const ProbeContext& context) {
    server.Answer("200 OK", absl::StrCat("{\"build\":{\"version\":", reported, "}}"));
    const ProbeResult result = probe->Run(context);
    ExpectReadable(result);
    return result.passed;
  };
  const ProbeContext both = Expecting(commit, "v1.4.2");
  EXPECT_TRUE(passes("\"v1.4.2\"", both));
  EXPECT_TRUE(passes("\"1.4.2\"", both));
  EXPECT_TRUE(passes("\"0123456\"", both));
  EXPECT_TRUE(passes("\"" + commit + "\"", both));
  EXPECT_FALSE(passes("\"v1.4.1\"", both));
  EXPECT_FALSE(passes("\"v1.4.20\"", both));
  EXPECT_FALSE(passes("\"012345\"", both));
  EXPECT_FALSE(passes("\"0123457\"", both));
  EXPECT_FALSE(passes("\"\"", both));
  EXPECT_FALSE(passes("null", both));
  EXPECT_FALSE(passes("\"\"", Expecting(commit, "")));
  EXPECT_TRUE(passes("\"anything\"", {}));
  EXPECT_THAT(probe->Run({}).observed, HasSubstr("not known"));
  server.Answer("200 OK", "{}");
  EXPECT_THAT(probe->Run(both).observed, HasSubstr("build.version is not there"));
}

// ---- log ----

class LogProbeTest : public ::testing::Test {
 protected:
  std::unique_ptr<Probe> Make(const std::string& expect, const std::string& forbid) {
    absl::StatusOr<std::unique_ptr<Probe>> probe = MakeLogProbe(
        {.file = file_, .expect = expect, .forbid = forbid, .memory_path = folder_ / "bot-0.offset"}, clock_);
    EXPECT_THAT(probe, rb::testing::IsOk());
    return *std::move(probe);
  }
  void Append(const std::string& text) { std::ofstream(file_, std::ios::app) << text; }
  ProbeContext Started() {
    ProbeContext context;
    context.started_at = clock_.Now();
    context.started_at_monotonic = clock_.Monotonic();
    return context;
  }

  TemporaryFolder folder_;
  FakeClock clock_;
  const std::string file_ = folder_ / "bot.log";
};

TEST_F(LogProbeTest, LooksOnlyAtWhatWasLoggedSinceTheStart) {
  const auto probe = Make("Connected", "ERROR|CRITICAL");
  Append("ERROR of the run before\nConnected\n");
  probe->BeforeStart();
  const ProbeContext context = Started();
  ProbeResult result = probe->Run(context);
  EXPECT_FALSE(result.passed);
  EXPECT_TRUE(result.may_recover);
  Append("starting\nConnected to CyTube\n");
  result = probe->Run(context);
  EXPECT_TRUE(result.passed);
  EXPECT_EQ(result.observed, "\"Connected to CyTube\"");
  ExpectReadable(result);
  Append("an ERROR happened\n");
  result = probe->Run(context);
  EXPECT_FALSE(result.passed);
  EXPECT_FALSE(result.may_recover);
  EXPECT_EQ(result.observed, "\"an ERROR happened\"");
  // A new start forgets it.
  probe->BeforeStart();
  Append("Connected again\n");
  EXPECT_TRUE(probe->Run(Started()).passed);
}

TEST_F(LogProbeTest, AForbiddenLineIsFinalAlsoBeforeTheExpectedOne) {
  const auto probe = Make("Connected", "ERROR");
  probe->BeforeStart();
  Append("ERROR\nConnected\n");
  const ProbeResult result = probe->Run(Started());
  EXPECT_FALSE(result.passed);
  EXPECT_FALSE(result.may_recover);
}

TEST_F(LogProbeTest, ExpectHasItsTimeAndNoMore) {
  const auto probe = Make("Connected", "");
  probe->BeforeStart();
  Append("nothing\n");
  const ProbeContext context = Started();
  clock_.Advance(absl::Seconds(29));
  EXPECT_TRUE(probe->Run(context).may_recover);
  clock_.Advance(absl::Seconds(1));
  const ProbeResult result = probe->Run(context);
  EXPECT_FALSE(result.passed);
  EXPECT_FALSE(result.may_recover);
  EXPECT_THAT(result.observed, HasSubstr("30.0 s after the start"));
}

TEST_F(LogProbeTest, FollowsRotationAndTruncation) {
  const auto probe = Make("Connected", "ERROR");
  Append("old\nERROR\n");
  probe->BeforeStart();
  const ProbeContext context = Started();
  Append("Connected\n");
  std::filesystem::rename(file_, file_ + ".1");
  EXPECT_TRUE(probe->Run(context).passed);  // the end of the file that was moved away
  Append("first line of the new file\n");
  EXPECT_TRUE(probe->Run(context).passed);
  std::ofstream(file_, std::ios::trunc) << "cut\n";
  EXPECT_TRUE(probe->Run(context).passed);
  Append("ERROR\n");
  EXPECT_FALSE(probe->Run(context).passed);
}

TEST_F(LogProbeTest, ALogThatTheServiceMakesItself) {
  const auto probe = Make("Connected", "");
  probe->BeforeStart();
  ProbeResult result = probe->Run(Started());
  EXPECT_FALSE(result.passed);
  EXPECT_THAT(result.observed, HasSubstr("cannot read"));
  Append("Connected\n");
  EXPECT_TRUE(probe->Run(Started()).passed);
}

TEST_F(LogProbeTest, AnAgentThatWasRestartedGoesOnFromWhereTheServiceBegan) {
  Append("ERROR of the run before\n");
  Make("Connected", "ERROR")->BeforeStart();
  Append("Connected\n");
  EXPECT_TRUE(Make("Connected", "ERROR")->Run(Started()).passed);
  Append("ERROR\n");
  EXPECT_FALSE(Make("Connected", "ERROR")->Run(Started()).passed);
}

TEST_F(LogProbeTest, WhatWasRememberedBeforeTheBootIsNoMemory) {
  Make("Connected", "ERROR")->BeforeStart();
  Append("ERROR of the run before the power cut\nConnected\n");
  std::string memory;
  std::getline(std::ifstream(folder_ / "bot-0.offset"), memory);
  std::ofstream(folder_ / "bot-0.offset") << memory.substr(0, memory.rfind(' ')) << " another-boot\n";
  EXPECT_TRUE(Make("Connected", "ERROR")->Run(ProbeContext()).passed);
}

TEST_F(LogProbeTest, WhereTheStartIsNotKnownTheTimeCountsFromTheFirstLook) {
  const auto probe = Make("Connected", "");
  Append("starting\n");
  EXPECT_TRUE(probe->Run(ProbeContext()).may_recover);
  clock_.Advance(absl::Seconds(31));
  EXPECT_FALSE(probe->Run(ProbeContext()).may_recover);
}

TEST_F(LogProbeTest, WithoutAMemoryOldErrorsDoNotCountAndNewOnesDo) {
  Append("Connected\nERROR of whenever\n");
  const auto probe = Make("Connected", "ERROR");
  EXPECT_TRUE(probe->Run(Quick()).passed);
  Append("ERROR now\n");
  EXPECT_FALSE(probe->Run(Quick()).passed);
}

TEST_F(LogProbeTest, ReadsALotInSeveralLooksAndLongLinesInPieces) {
  const auto probe = Make("needle", "ERROR");
  probe->BeforeStart();
  Append(std::string(3 << 20, 'x') + " needle\n");
  const ProbeContext context = Started();
  int looks = 0;
  while (!probe->Run(context).passed && looks < 20) ++looks;
  EXPECT_GE(looks, 2);
  EXPECT_LE(looks, 5);
}

TEST_F(LogProbeTest, OnlyForbid) {
  const auto probe = Make("", "ERROR");
  Append("");
  probe->BeforeStart();
  EXPECT_TRUE(probe->Run(Started()).passed);
  // Without its end, too: a service that dies may not write it.
  Append("fine\nERROR without end");
  EXPECT_FALSE(probe->Run(Started()).passed);
}

TEST_F(LogProbeTest, FollowsNoLinkOutOfTheTree) {
  const std::string tree = folder_ / "tree";
  ASSERT_EQ(mkdir(tree.c_str(), 0755), 0);
  Append("secret\n");
  const auto look = [&](const std::string& name) {
    absl::StatusOr<std::unique_ptr<Probe>> probe = MakeLogProbe(
        {.file = tree + "/" + name, .tree = tree, .expect = "secret", .memory_path = folder_ / name}, clock_);
    EXPECT_THAT(probe, rb::testing::IsOk());
    return (*probe)->Run(Started());
  };
  ASSERT_EQ(symlink(file_.c_str(), (tree + "/planted").c_str()), 0);
  EXPECT_FALSE(look("planted").passed);
  std::ofstream(tree + "/today.log") << "secret\n";
  ASSERT_EQ(symlink("today.log", (tree + "/current").c_str()), 0);
  EXPECT_TRUE(look("current").passed);
}

TEST_F(LogProbeTest, ABadRegularExpressionIsSaid) {
  EXPECT_THAT(MakeLogProbe({.file = file_, .expect = "("}, clock_),
              FailsWith(absl::StatusCode::kInvalidArgument, "regular expression"));
}

// ---- tcp, sqlite, command ----

TEST(TcpProbe, Connects) {
  HttpServer server;
  EXPECT_TRUE(MakeTcpProbe(server.address(), absl::Seconds(2), SystemClock())->Run({}).passed);
  ClosedPort closed;
  const ProbeResult result = MakeTcpProbe(closed.address(), absl::Seconds(2), SystemClock())->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_EQ(result.observed, "Connection refused");
  ExpectReadable(result);
}

TEST(SqliteProbe, FailsForADamagedAndAnEmptyDatabase) {
  TemporaryFolder folder;
  const std::string path = folder / "bot.db";
  const auto probe = MakeSqliteProbe(path, "data/bot.db", SystemClock());
  EXPECT_FALSE(probe->Run({}).passed);
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  sqlite3_exec(database, "CREATE TABLE t(a); INSERT INTO t VALUES(1)", nullptr, nullptr, nullptr);
  sqlite3_close(database);
  EXPECT_TRUE(probe->Run({}).passed);
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).write(std::string(100, '?').c_str(), 100);
  ProbeResult result = probe->Run({});
  EXPECT_FALSE(result.passed);
  EXPECT_THAT(result.observed, HasSubstr("not a database"));
  ExpectReadable(result);
  std::filesystem::resize_file(path, 0);
  EXPECT_THAT(probe->Run({}).observed, HasSubstr("is empty"));
}

TEST(CommandProbe, PassesWithStatusZero) {
  TemporaryFolder folder;
  const auto run = [&](const std::string& script, absl::Duration timeout = absl::Seconds(10)) {
    CommandProbeOptions options;
    options.argv = {"/bin/sh", "-c", script};
    options.folder = folder.path();
    options.timeout = timeout;
    const ProbeResult result = MakeCommandProbe(options, SystemClock())->Run({});
    ExpectReadable(result);
    return result;
  };
  EXPECT_TRUE(run("exit 0").passed);
  const ProbeResult failed = run("echo 'no channel' >&2; exit 3");
  EXPECT_FALSE(failed.passed);
  EXPECT_EQ(failed.observed, "exited with status 3: no channel");
  EXPECT_EQ(run("kill -9 $$").observed, "killed by signal 9");
  EXPECT_TRUE(run("head -c 5000000 /dev/zero; exit 0").passed);

  // What it started goes with it.
  const ProbeResult late = run("sleep 1000 & echo $! > pid; wait", absl::Milliseconds(200));
  EXPECT_FALSE(late.passed);
  EXPECT_THAT(late.observed, HasSubstr("did not end within 0.20 s"));
  pid_t left = 0;
  ASSERT_TRUE(absl::SimpleAtoi(ReadFile(folder / "pid").value_or(""), &left));
  // It was sent SIGKILL; the kernel takes a moment.
  const absl::Duration deadline = SystemClock().Monotonic() + absl::Seconds(20);
  while (IdentifyProcess(left).ok() && SystemClock().Monotonic() < deadline) SystemClock().Sleep(absl::Milliseconds(1));
  EXPECT_FALSE(IdentifyProcess(left).ok());
  // So it does when the command itself ended well: a pipe that is held open keeps nobody waiting.
  const absl::Duration begun = SystemClock().Monotonic();
  EXPECT_TRUE(run("sleep 1000 & exit 0").passed);
  EXPECT_LT(SystemClock().Monotonic() - begun, absl::Seconds(9));

  const auto expecting = [&](const std::string& script, const std::string& expect) {
    CommandProbeOptions with;
    with.argv = {"/bin/sh", "-c", script};
    with.folder = folder.path();
    with.expect = expect;
    return MakeCommandProbe(with, SystemClock())->Run({});
  };
  EXPECT_TRUE(expecting("echo hello; echo pong 12", "^pong [0-9]+$").passed);
  EXPECT_FALSE(expecting("echo pong; exit 1", "pong").passed);
  const ProbeResult silent = expecting("echo ping", "^pong$");
  EXPECT_FALSE(silent.passed);
  EXPECT_EQ(silent.expected, "exit status 0, a line with /^pong$/");
  EXPECT_EQ(silent.observed, "exited with status 0, no such line: ping");

  CommandProbeOptions options;
  options.argv = {"/no/such/program"};
  options.folder = folder.path();
  EXPECT_THAT(MakeCommandProbe(options, SystemClock())->Run({}).observed, HasSubstr("cannot run /no/such/program"));
}

TEST(FileLog, GivesTheLastLinesSinceTheMark) {
  TemporaryFolder folder;
  const std::string path = folder / "bot.log";
  const auto write = [&](const std::string& text) { std::ofstream(path, std::ios::app) << text; };
  const std::unique_ptr<ServiceLog> log = MakeFileLog(path, "");
  EXPECT_THAT(log->Last(3), ::testing::IsEmpty()) << "there is none yet";
  write("before\n");
  log->Mark();
  EXPECT_THAT(log->Last(3), ::testing::IsEmpty());
  write("one\ntwo\n\nthree\nfour\x1b[31m " + std::string(1000, 'x') + "\n");
  const std::vector<std::string> last = log->Last(3);
  ASSERT_THAT(last, SizeIs(3));
  EXPECT_EQ(last[0], "two");
  EXPECT_LE(last[2].size(), 210u);
  EXPECT_FALSE(absl::StrContains(last[2], "\x1b"));
  EXPECT_EQ(log->Last(20)[0], "one") << "nothing of before";
  // Rotated: all of the new file is of this run.
  std::filesystem::rename(path, path + ".1");
  write("anew\n");
  EXPECT_THAT(log->Last(3), ::testing::ElementsAre("anew"));
  // However much there is, a bounded part of it is read.
  log->Mark();
  for (int i = 0; i < 3000; ++i) write(absl::StrCat("line ", i, " ", std::string(50, '.'), "\n"));
  EXPECT_THAT(log->Last(1), ::testing::ElementsAre(HasSubstr("line 2999 ")));
}

TEST(DiskProbe, TellsOfTheFolderWithoutRoom) {
  TemporaryFolder folder;
  struct statvfs space;
  ASSERT_EQ(statvfs(folder.path().c_str(), &space), 0);
  const uint64_t free_bytes = uint64_t{space.f_bavail} * space.f_frsize;
  const auto look = [](std::vector<std::string> folders, uint64_t wanted) {
    return MakeDiskProbe({std::move(folders), wanted}, SystemClock())->Run({});
  };
  EXPECT_TRUE(look({folder.path()}, free_bytes / 2).passed);
  const ProbeResult full = look({"/proc", folder.path(), "/no/such/folder"}, free_bytes * 2);
  ExpectReadable(full);
  EXPECT_FALSE(full.passed);
  EXPECT_THAT(full.observed, HasSubstr(" free at "));
  const ProbeResult second = look({folder.path(), "/proc"}, free_bytes / 2);
  EXPECT_FALSE(second.passed) << "nothing is free on a filesystem of nothing";
  EXPECT_THAT(second.observed, HasSubstr("free at /proc"));
  EXPECT_TRUE(look({"/no/such/folder"}, 1).passed) << "the tree is not there yet";
}

// ---- make_probes ----

TEST(MakeProbes, MakesWhatTheFileAsksForInItsOrder) {
  TemporaryFolder folder;
  v1::AgentServiceConfig config;
  config.mutable_process()->add_command("x");
  config.add_probes()->mutable_tcp()->set_address("127.0.0.1:1");
  config.add_probes()->mutable_unit();
  config.add_probes()->mutable_http()->set_url("http://127.0.0.1:1/");
  config.add_probes()->mutable_log()->set_expect("x");
  config.add_probes()->mutable_sqlite()->set_path("data/bot.db");
  config.add_probes()->mutable_command()->add_argv("/bin/true");
  config.add_probes()->mutable_version()->set_url("http://127.0.0.1:1/");
  config.add_probes()->mutable_metrics()->set_url("http://127.0.0.1:1/");
  config.add_probes()->mutable_disk();
  config.mutable_probes(0)->set_external(true);
  ServiceTree tree;
  tree.service = "bot";
  tree.tree = folder.path();
  FakeSupervisor supervisor;
  RB_ASSERT_OK_AND_ASSIGN(const auto probes, MakeProbes(config, supervisor, tree, folder.path(), SystemClock()));
  std::vector<std::string> kinds;
  for (const auto& probe : probes) {
    const ProbeResult result = probe->Run({});
    ExpectReadable(result);
    kinds.push_back(result.kind);
    EXPECT_EQ(result.external, result.kind == "tcp" || result.kind == "disk");
  }
  EXPECT_THAT(kinds,
              ::testing::ElementsAre("tcp", "unit", "http", "log", "sqlite", "command", "version", "metrics", "disk"));
}

TEST(MakeProbes, AServiceWithoutProbesGetsAUnitProbe) {
  TemporaryFolder folder;
  FakeSupervisor supervisor;
  RB_ASSERT_OK_AND_ASSIGN(
      const auto probes, MakeProbes(v1::AgentServiceConfig(), supervisor, ServiceTree(), folder.path(), SystemClock()));
  ASSERT_THAT(probes, SizeIs(1));
  EXPECT_EQ(probes[0]->Run({}).kind, "unit");
}

TEST(MakeProbes, RootRunsACommandAsTheOwnerOfTheTree) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  TemporaryFolder folder;
  ASSERT_EQ(chmod(folder.path().c_str(), 0755), 0);
  ASSERT_EQ(chown(folder.path().c_str(), 54321, 54321), 0);
  v1::AgentServiceConfig config;
  for (const char* argument : {"/bin/sh", "-c", "id -u; exit 1"}) {
    config.add_probes()->mutable_command();
    config.mutable_probes(0)->mutable_command()->add_argv(argument);
  }
  ServiceTree tree;
  tree.tree = folder.path();
  FakeSupervisor supervisor;
  TemporaryFolder state;
  RB_ASSERT_OK_AND_ASSIGN(const auto probes, MakeProbes(config, supervisor, tree, state.path(), SystemClock()));
  EXPECT_EQ(probes[0]->Run({}).observed, "exited with status 1: 54321");
}

}  // namespace
}  // namespace rb::agent
