#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <set>
#include <string>

#define CPPHTTPLIB_OPENSSL_SUPPORT
#define CPPHTTPLIB_ZLIB_SUPPORT
#define CPPHTTPLIB_BROTLI_SUPPORT
#include <httplib.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/adapters/metrics/metric_set.h"
#include "common/adapters/metrics/metric_table.h"
#include "common/adapters/metrics/metrics_server.h"
#include "common/durable_file.h"
#include "common/test_util.h"

namespace rb {
namespace {

using ::rb::testing::FailsWith;
using ::rb::testing::TemporaryFolder;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricTable, IsInTheOrderOfItsEnumAndFollowsTheRulesOfNames) {
  std::set<std::pair<MetricProgram, std::string>> names;
  for (size_t i = 0; i < MetricTable().size(); ++i) {
    const MetricRow& row = MetricTable()[i];
    const std::string name = row.name;
    EXPECT_EQ(row.metric, static_cast<Metric>(i)) << name;
    EXPECT_TRUE(absl::StartsWith(name, "rb_")) << name;
    EXPECT_EQ(absl::EndsWith(name, "_total"), row.type == MetricType::kCounter) << name;
    EXPECT_TRUE(row.type != MetricType::kHistogram || absl::EndsWith(name, "_seconds")) << name;
    for (const std::string& label : row.labels) {
      EXPECT_THAT(label, Not(::testing::AnyOf("id", "operation", "commit", "reason", "release"))) << name;
    }
    EXPECT_TRUE(names.emplace(row.program, name).second) << name << " is there twice";
  }
  EXPECT_EQ(MetricTable().back().metric, Metric::kAgentStoreRatio);
}

// RB_WRITE_DOCUMENTS=1 writes it.
TEST(MetricTable, IsWhatTheDocumentSays) {
  const std::string path = RB_SOURCE_DIR "/docs/metrics.md";
  RB_ASSERT_OK_AND_ASSIGN(const std::string text, ReadFile(path));
  const std::string begin = "<!-- from the table in code: begin -->\n";
  const std::string end = "<!-- from the table in code: end -->\n";
  const size_t from = text.find(begin);
  const size_t to = text.find(end);
  ASSERT_NE(from, std::string::npos);
  ASSERT_NE(to, std::string::npos);
  const std::string wanted = text.substr(0, from) + begin + MetricTableAsMarkdown() + text.substr(to);
  if (std::getenv("RB_WRITE_DOCUMENTS") != nullptr) {
    RB_ASSERT_OK(WriteFileDurably(path, wanted, 0644));
    return;
  }
  EXPECT_EQ(text, wanted) << "run RB_WRITE_DOCUMENTS=1 build/dev/bin/metrics_test";
}

TEST(MetricSet, ShowsWhatIsThereNowAndNothingOfWhatIsGone) {
  MetricSet values(MetricProgram::kController);
  values.Count(Metric::kOperations, {"prod", "bot", "rollback", "succeeded", "false"}, 0);
  MetricSamples both;
  both.Set(Metric::kAgentConnected, {"prod-1"}, 1);
  both.Set(Metric::kAgentConnected, {"prod-2"}, 0);
  EXPECT_THAT(values.Text(both), HasSubstr("rb_agent_connected{host=\"prod-2\"} 0\n"));
  EXPECT_THAT(values.Text(both), HasSubstr("kind=\"rollback\",outcome=\"succeeded\",service=\"bot\"} 0\n"));
  MetricSamples one;
  one.Set(Metric::kAgentConnected, {"prod-1"}, 1);
  EXPECT_THAT(values.Text(one), HasSubstr("rb_agent_connected{host=\"prod-1\"} 1\n"));
  EXPECT_THAT(values.Text(one), Not(HasSubstr("prod-2")));
}

class MetricsServerTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& content, mode_t mode) {
    const std::string path = folder_ / name;
    EXPECT_TRUE(WriteFileDurably(path, content, mode).ok());
    return path;
  }
  void MakeCertificate() {
    const std::string command = absl::StrCat(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost ",
        "-addext subjectAltName=IP:127.0.0.1 -keyout ", folder_ / "key", " -out ", folder_ / "crt",
        " 2>/dev/null && chmod 600 ", folder_ / "key");
    ASSERT_EQ(std::system(command.c_str()), 0);
  }
  MetricsServerOptions Secured(const std::string& address) {
    return {address, folder_ / "crt", folder_ / "key", Write("password", "prometheus:much secret\n", 0600)};
  }
  absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const MetricsServerOptions& options) {
    return MetricsServer::Start(options, folder_.path(), [] { return std::string("rb_x 1\n"); });
  }
  static int PortOf(const MetricsServer& server) {
    int port = 0;
    EXPECT_TRUE(absl::SimpleAtoi(server.address().substr(server.address().rfind(':') + 1), &port));
    return port;
  }
  TemporaryFolder folder_;
};

TEST_F(MetricsServerTest, WithoutTlsOnlyOnLoopback) {
  MakeCertificate();
  for (const char* address : {"0.0.0.0:0", "10.0.0.1:0", "[::]:0", "127.evil.example:0", "example.org:0"}) {
    EXPECT_THAT(Start({address, "", "", ""}), FailsWith(absl::StatusCode::kInvalidArgument, "loopback")) << address;
    MetricsServerOptions no_password = Secured(address);
    no_password.password_file.clear();
    EXPECT_THAT(Start(no_password), FailsWith(absl::StatusCode::kInvalidArgument, "loopback")) << address;
    MetricsServerOptions no_tls = Secured(address);
    no_tls.certificate.clear();
    no_tls.key.clear();
    EXPECT_THAT(Start(no_tls), FailsWith(absl::StatusCode::kInvalidArgument, "loopback")) << address;
  }
  RB_ASSERT_OK_AND_ASSIGN(const auto server, Start({"127.0.0.1:0", "", "", ""}));
  EXPECT_EQ(ReadFile(folder_ / "metrics.address").value_or(""), server->address() + "\n");
  httplib::Client client("127.0.0.1", PortOf(*server));
  const auto answer = client.Get("/metrics");
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->status, 200);
  EXPECT_EQ(answer->body, "rb_x 1\n");
  EXPECT_EQ(client.Get("/")->status, 404);
}

TEST_F(MetricsServerTest, WithTlsAndPasswordOnAnyAddress) {
  MakeCertificate();
  RB_ASSERT_OK_AND_ASSIGN(const auto server, Start(Secured("0.0.0.0:0")));
  httplib::SSLClient client("127.0.0.1", PortOf(*server));
  client.set_ca_cert_path((folder_ / "crt").c_str());
  client.enable_server_certificate_verification(true);
  ASSERT_TRUE(client.Get("/metrics"));
  EXPECT_EQ(client.Get("/metrics")->status, 401);
  EXPECT_THAT(client.Get("/metrics")->body, Not(HasSubstr("rb_x")));
  for (const auto& [user, password] :
       {std::pair("prometheus", "wrong"), std::pair("root", "much secret"), std::pair("", "")}) {
    client.set_basic_auth(user, password);
    EXPECT_EQ(client.Get("/metrics")->status, 401) << user;
  }
  client.set_basic_auth("prometheus", "much secret");
  EXPECT_EQ(client.Get("/metrics")->status, 200);
  EXPECT_EQ(client.Get("/metrics")->body, "rb_x 1\n");
  // In plaintext there is nothing to be had.
  httplib::Client plain("127.0.0.1", PortOf(*server));
  plain.set_basic_auth("prometheus", "much secret");
  const auto answer = plain.Get("/metrics");
  EXPECT_FALSE(answer && answer->status == 200);
}

TEST_F(MetricsServerTest, SecretsAreTheirOwnersAlone) {
  MakeCertificate();
  MetricsServerOptions options = Secured("0.0.0.0:0");
  ASSERT_EQ(chmod(options.password_file.c_str(), 0640), 0);
  EXPECT_THAT(Start(options), FailsWith(absl::StatusCode::kInvalidArgument, "can be read by others"));
  ASSERT_EQ(chmod(options.password_file.c_str(), 0600), 0);
  ASSERT_EQ(chmod(options.key.c_str(), 0604), 0);
  EXPECT_THAT(Start(options), FailsWith(absl::StatusCode::kInvalidArgument, "can be read by others"));
  ASSERT_EQ(chmod(options.key.c_str(), 0600), 0);
  for (const char* bad : {"", "no-colon", ":only", "only:", "two:lines\nof:them"}) {
    options.password_file = Write("password", bad, 0600);
    const auto started = Start(options);
    EXPECT_THAT(started, FailsWith(absl::StatusCode::kInvalidArgument, "one line")) << bad;
    EXPECT_TRUE(*bad == '\0' || !absl::StrContains(started.status().message(), bad)) << bad;
  }
  options = Secured("127.0.0.1:0");
  options.certificate = Write("crt-bad", "no certificate", 0600);
  EXPECT_THAT(Start(options), FailsWith(absl::StatusCode::kInvalidArgument, "are not a certificate and its key"));
}

TEST_F(MetricsServerTest, SaysWhenThePortIsTaken) {
  RB_ASSERT_OK_AND_ASSIGN(const auto server, Start({"127.0.0.1:0", "", "", ""}));
  EXPECT_THAT(Start({server->address(), "", "", ""}), FailsWith(absl::StatusCode::kUnavailable, "cannot be served"));
}

}  // namespace
}  // namespace rb
